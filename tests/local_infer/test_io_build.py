"""`local-infer build`: an index all or nothing, refused when it is another version's, and only for whom it is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from core.errors import ConfigError, NearpathError
from local_infer.retrieval.faq import read_faq
from local_infer.retrieval.io_build import build_command, build_index, read_files, read_index
from local_infer.retrieval.io_faq_index import FaqIndex, words_digest
from local_infer.retrieval.io_sayings import shipped_sayings
from local_infer.retrieval.ngrams import code_points
from local_infer.retrieval.sayings import gram_text
from local_infer.retrieval.verdict import Look
from local_infer.retrieval.wording import read_wording

FAQ = b'{"question": "How do I pay?", "answer": "By card."}\n{"question": "x", "answer": "y", "tenant": "shop"}\n'


def make(folder: Path, data: bytes = FAQ) -> Path:
    build_index(read_faq(data, "f.jsonl"), folder, embedder=None, now=5.0)
    return folder


def opened(folder: Path) -> FaqIndex:
    index = FaqIndex(folder, words_digest(), "", ["cpu"], 1)
    index.load()
    return index


def test_command(tmp_path: Path) -> None:
    (tmp_path / "faq.jsonl").write_bytes(FAQ)
    (tmp_path / "more.yaml").write_text("- {question: 如何退款, answer: 在订单页}\n", "utf-8")
    app = typer.Typer()
    app.command()(build_command)
    files = ["--faq", str(tmp_path / "faq.jsonl"), "--faq", str(tmp_path / "more.yaml")]
    result = CliRunner().invoke(app, [*files, "--out", str(tmp_path / "index")])
    assert result.exit_code == 0, result.output
    assert "3 entries, 3 questions, n-grams" in result.output
    assert read_index(tmp_path / "index").questions == 3


def test_questions_that_nobody_can_find_are_named(tmp_path: Path) -> None:
    text = "- {id: place, questions: [Where are you?, 你们在哪里, What is the address of the shop?], answer: Here}\n"
    (tmp_path / "faq.yaml").write_text(text, "utf-8")
    app = typer.Typer()
    app.command()(build_command)
    result = CliRunner().invoke(app, ["--faq", str(tmp_path / "faq.yaml"), "--out", str(tmp_path / "index")])
    assert result.exit_code == 0, result.output
    warned = [line for line in result.output.splitlines() if line.startswith("warning: ")]
    assert ["'Where are you?'" in warned[0], "'你们在哪里'" in warned[1], len(warned)] == [True, True, 2]
    assert all("entry place" in line for line in warned)


def test_rows_are_for_their_tenant_context_and_language(tmp_path: Path) -> None:
    index = opened(make(tmp_path / "index"))
    key = code_points(gram_text(read_wording("How do I pay?"), shipped_sayings()))
    assert [f.answer for f in index.run([Look(key, "any", b"", "en")])[0]] == ["By card."]
    both = index.run([Look(key, "shop", b"", "en")])[0]
    assert [(f.answer, f.source, f.made_s) for f in both] == [("By card.", "faq", 5.0), ("y", "faq", 5.0)]
    assert index.run([Look(key, "shop", b"other", "en"), Look(key, "shop", b"", "zh")]) == [[], []]


def test_what_was_learned_is_void_when_the_answer_changes(tmp_path: Path) -> None:
    key = code_points(gram_text(read_wording("How do I pay?"), shipped_sayings()))
    lines = [
        f'{{"id": "pay", "question": "How do I pay?", "answer": "{a}"}}'.encode() for a in ("By card.", "In cash.")
    ]
    names = [
        opened(make(tmp_path / str(i), line)).run([Look(key, "", b"", "en")])[0][0].entry
        for i, line in enumerate(lines)
    ]
    assert names[0] != names[1]
    assert all(name.startswith("faq:pay:") for name in names)


def test_an_index_is_replaced_but_nothing_else_is(tmp_path: Path) -> None:
    make(tmp_path / "index")
    make(tmp_path / "index", FAQ[: FAQ.index(b"\n")])
    assert read_index(tmp_path / "index").questions == 1
    assert [p.name for p in tmp_path.iterdir()] == ["index"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo").write_bytes(b"x")
    with pytest.raises(NearpathError, match="is no index"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "photo").exists()


def test_a_failed_build_leaves_the_old_index(tmp_path: Path) -> None:
    make(tmp_path / "index")
    with pytest.raises(NearpathError, match=r"tokenizer\.json"):
        build_index(read_faq(FAQ, "f.jsonl"), tmp_path / "index", embedder=tmp_path / "none", now=9.0)
    assert read_index(tmp_path / "index").built_s == 5.0
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_an_index_of_another_version_is_refused(tmp_path: Path) -> None:
    about = make(tmp_path / "index") / "index.json"
    fields = json.loads(about.read_text())
    for name, value in (("words", "0"), ("form", 0)):
        about.write_text(json.dumps({**fields, name: value}))
        with pytest.raises(NearpathError, match="another version"):
            opened(tmp_path / "index")
        with pytest.raises(NearpathError, match="another version"):
            read_index(tmp_path / "index")
    about.write_text(json.dumps({**fields, "embedder": "abc"}))
    with pytest.raises(NearpathError, match="another embedder"):
        opened(tmp_path / "index")
    about.write_text("{")
    with pytest.raises(NearpathError, match="cannot be read"):
        opened(tmp_path / "index")
    about.unlink()
    with pytest.raises(NearpathError, match="holds no index"):
        opened(tmp_path / "index")


def test_faults_of_all_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{")
    (tmp_path / "b.yaml").write_bytes(b"- 5")
    with pytest.raises(ConfigError) as caught:
        read_files([tmp_path / "a.jsonl", tmp_path / "b.yaml"])
    assert {Path(p.file).name for p in caught.value.problems} == {"a.jsonl", "b.yaml"}
    with pytest.raises(NearpathError, match="cannot read"):
        read_files([tmp_path / "none.yaml"])


def test_one_id_in_two_files(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(b'{"id": "x", "question": "q", "answer": "a"}')
    with pytest.raises(NearpathError, match="'x' is in"):
        read_files([tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
