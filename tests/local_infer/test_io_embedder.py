"""An embedder folder: mean over real tokens, length 1, padding without effect; and what cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.errors import NearpathError
from local_infer.generation.io_onnx import open_session
from local_infer.retrieval.io_embedder import Embedder, embedder_digest
from local_infer.retrieval.vector_graph import write_vector_graph
from tests.local_infer.tiny_embedder import SIZE, make_embedder


def test_mean_of_the_tokens_by_hand(tmp_path: Path) -> None:
    part = Embedder(make_embedder(tmp_path / "e", [["a"], ["b"]]), ["cpu"], 1)
    part.load()
    one, long = part.run(["a a b", "b b b b b b"])
    assert one[:2].tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert np.linalg.norm(long) == pytest.approx(1)
    (alone,) = part.run(["a a b"])
    assert alone.tolist() == pytest.approx(one.tolist())  # what it was padded to does not matter


def test_digest_tells_embedders_apart(tmp_path: Path) -> None:
    first, second = (make_embedder(tmp_path / name, [[name]]) for name in "ab")
    assert embedder_digest(first) == embedder_digest(first) != embedder_digest(second)


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(NearpathError, match="cannot be read"):
        embedder_digest(tmp_path)
    folder = make_embedder(tmp_path / "e", [["a"]])
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(NearpathError, match=r"tokenizer\.json cannot be used"):
        Embedder(folder, ["cpu"], 1).load()


def test_vector_graph_finds_the_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(500, SIZE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (tmp_path / "g.onnx").write_bytes(write_vector_graph(vectors))
    session = open_session(tmp_path / "g.onnx", providers=["cpu"], threads=1)
    for row in range(0, 500, 50):
        scores, rows = session.run(None, {"vector": vectors[row]})
        assert rows[0] == row
        assert scores.tolist() == pytest.approx((vectors @ vectors[row])[rows].tolist(), abs=0.01)


def test_vector_graph_at_the_ends_of_its_numbers(tmp_path: Path) -> None:
    # One number alone makes a product of 127 by 127, and a vector of zeros is nothing to divide by.
    axes = np.concatenate([np.eye(SIZE, dtype=np.float32), -np.eye(SIZE, dtype=np.float32)])
    (tmp_path / "g.onnx").write_bytes(write_vector_graph(axes))
    session = open_session(tmp_path / "g.onnx", providers=["cpu"], threads=1)
    for row in (3, SIZE + 3):
        scores, rows = session.run(None, {"vector": axes[row]})
        assert (rows[0], scores[0]) == (row, pytest.approx(1.0))
        assert scores[1:].tolist() == [0.0] * 7
    assert session.run(None, {"vector": axes[0] * 0})[0].tolist() == [0.0] * 8
