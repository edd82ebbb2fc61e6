"""Grams by hand, normal forms, and the graph against numpy: the same hash, the same weights, the same order."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_infer.generation.io_onnx import open_session
from local_infer.retrieval import ngram_graph
from local_infer.retrieval.ngram_graph import write_graph
from local_infer.retrieval.ngrams import BUCKETS, code_points, hash_grams, index_questions, normalise, score_rows, weigh
from tests.local_infer.distractors import make_distractors


def test_hash_of_one_character_by_hand() -> None:
    mixed = ((ord("a") + 0x1000000) % 2**31) * 0x9E3779B1 // 128 % 2**18
    assert hash_grams(code_points("a")).tolist() == [mixed]


def test_number_of_grams() -> None:
    assert [len(hash_grams(code_points("x" * n))) for n in range(5)] == [0, 1, 3, 6, 9]


@given(st.text(max_size=40))
def test_hash_never_overflows_or_leaves_its_range(text: str) -> None:
    exact = []
    points = [ord(c) for c in text]
    for size, offset in ((1, 0x1000000), (2, 0x2000000), (3, 0x3000000)):
        for i in range(len(points) - size + 1):
            value = points[i]
            for point, factor in zip(points[i + 1 : i + size], (1_000_003, 1_048_573), strict=False):
                value = value * factor + point
            exact.append((value + offset) % 2**31 * 0x9E3779B1 // 128 % BUCKETS)
    assert hash_grams(code_points(text)).tolist() == exact


def test_weights_by_hand() -> None:
    idf = np.full(BUCKETS, 2.0, np.float32)
    ids, weights = weigh("aa", idf)  # "a" twice, "aa" once
    twice, once = 2 * (1 + math.log(2)), 2.0
    length = math.hypot(twice, once)
    by_bucket = dict(zip(ids.tolist(), weights.tolist(), strict=True))
    two, _, pair = hash_grams(code_points("aa")).tolist()
    assert by_bucket[two] == pytest.approx(twice / length)
    assert by_bucket[pair] == pytest.approx(once / length)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("ＶＩＰ１　会员", "vip1 会员"),
        ("如何關閉自動續費", "如何关闭自动续费"),
        ("Don’t  panic\n", "don't panic"),
        ("ﬁle", "file"),
        ("a\ue000b", "a b"),
    ],
)
def test_normal_forms(written: str, normal: str) -> None:
    assert normalise(written) == normal


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, object, list[str]]:
    """An index of 12,000 made-up questions: above `SMALL`, so common grams are left out of the first sum."""
    texts = make_distractors(12_000)
    index = index_questions(texts)
    file = tmp_path_factory.mktemp("graph") / "g.onnx"
    file.write_bytes(write_graph(index))
    return open_session(file, providers=["cpu"], threads=1), index, texts


def run(session: object, text: str) -> tuple[list[float], list[int]]:
    scores, rows = session.run(None, {ngram_graph.INPUT: code_points(text)})  # type: ignore[attr-defined]
    return scores.tolist(), rows.tolist()


def test_graph_scores_as_numpy_does(stored: tuple[object, object, list[str]]) -> None:
    session, index, texts = stored
    for text in [*texts[::1500], "如何关闭自动续费", "x", "", "囧囧囧", "\U0010ffff\U0010ffff\U0010ffff", "a " * 200]:
        scores, rows = run(session, text)
        assert scores == pytest.approx(score_rows(text, index, np.array(rows)).tolist(), abs=1e-4)  # type: ignore[arg-type]
        assert scores == sorted(scores, reverse=True)


def test_graph_finds_what_is_nearest(stored: tuple[object, object, list[str]]) -> None:
    session, index, texts = stored
    for row in range(0, len(texts), 400):
        changed = texts[row][1:]
        best = float(score_rows(changed, index).max())  # type: ignore[arg-type]
        scores, _ = run(session, changed)
        assert scores[0] == pytest.approx(best, abs=1e-4)
        assert run(session, texts[row])[1][0] == row


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=300))
def test_graph_takes_any_text(stored: tuple[object, object, list[str]], text: str) -> None:
    scores, rows = run(stored[0], text)
    assert len(scores) == len(rows) == 8
    assert all(0 <= row < 12_000 for row in rows)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_tiny_indexes(count: int, tmp_path: Path) -> None:
    texts = ["如何退款", "", "x", "refund", "退货", "y", "z"][:count]
    (tmp_path / "g.onnx").write_bytes(write_graph(index_questions(texts)))
    session = open_session(tmp_path / "g.onnx", providers=["cpu"], threads=1)
    scores, rows = run(session, "如何退款")
    assert len(rows) == count
    assert rows[0] == 0
    assert scores[0] == pytest.approx(1.0, abs=0.01)
