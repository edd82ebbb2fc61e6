"""`local-infer build`: the operator's FAQ files into the folder that retrieval answers from."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from core.errors import ConfigError, NearpathError, Problem
from local_infer.retrieval.faq import FaqEntry, read_faq
from local_infer.retrieval.io_embedder import Embedder, embedder_digest
from local_infer.retrieval.io_faq_index import (
    ABOUT_FILE,
    ENTRIES_FILE,
    FORM,
    GRAPH_FILE,
    About,
    read_about,
    words_digest,
    write_about,
)
from local_infer.retrieval.io_sayings import shipped_sayings
from local_infer.retrieval.ngram_graph import write_graph
from local_infer.retrieval.ngrams import index_questions
from local_infer.retrieval.question import language_of
from local_infer.retrieval.sayings import gram_text
from local_infer.retrieval.vector_graph import write_vector_graph
from local_infer.retrieval.wording import read_wording

_BATCH = 64
_MOST_QUESTIONS = 2_000_000


def read_files(files: Sequence[Path]) -> list[FaqEntry]:
    """The entries of all files; ConfigError with the faults of all of them."""
    entries: list[FaqEntry] = []
    problems: list[Problem] = []
    ids: dict[str, Path] = {}
    for file in files:
        try:
            read = read_faq(file.read_bytes(), str(file))
        except OSError as error:
            raise NearpathError(f"cannot read {file}: {error.strerror}", "check the path and its permissions") from None
        except ConfigError as error:
            problems += error.problems
            continue
        for entry in read:
            if ids.setdefault(entry.id, file) != file:
                raise NearpathError(f"entry {entry.id!r} is in {ids[entry.id]} and in {file}", "give it another id")
        entries += read
    if problems:
        raise ConfigError(problems)
    return entries


@dataclass(frozen=True, slots=True)
class Built:
    """An index. `never_found`: (entry, question) of questions that say nothing but what all questions say, by n-grams."""

    about: About
    never_found: Sequence[tuple[str, str]]


def build_index(entries: Sequence[FaqEntry], out: Path, *, embedder: Path | None, now: float) -> Built:
    """Write the index of `entries` to the folder `out`, all or nothing; an index that was there is replaced.

    NearpathError when `out` is something else, or cannot be written.
    """
    if out.exists() and not (out / ABOUT_FILE).exists() and (not out.is_dir() or any(out.iterdir())):
        raise NearpathError(f"{out} is there and is no index", "name a new folder, or an index to replace")
    if sum(len(entry.questions) for entry in entries) > _MOST_QUESTIONS:
        raise NearpathError(f"more than {_MOST_QUESTIONS} questions", "split the FAQ over several nodes")
    temporary = out.parent / f".{out.name}.{os.getpid()}"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        built = _write(entries, temporary, embedder, now)
        _put_in_place(temporary, out)
    except OSError as error:
        raise NearpathError(f"cannot write {out}: {error.strerror}", "check space and permissions") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return built


def _write(entries: Sequence[FaqEntry], folder: Path, embedder: Path | None, now: float) -> Built:
    questions = [(question, i) for i, entry in enumerate(entries) for question in entry.questions]
    texts = [question for question, _ in questions]
    never_found: list[tuple[str, str]] = []
    if embedder is None:
        # A question of nothing but fillers has no gram text; it is then found by nobody, which is right.
        sayings = shipped_sayings()
        grams = []
        for text, i in questions:
            wording = read_wording(text)
            grams.append(gram_text(wording, sayings))
            if not wording.gram_text.strip():
                never_found.append((entries[i].id, text))
        graph = write_graph(index_questions(grams))
        digest = ""
    else:
        graph = write_vector_graph(embed(texts, embedder))
        digest = embedder_digest(embedder)
    (folder / GRAPH_FILE).write_bytes(graph)
    db = sqlite3.connect(folder / ENTRIES_FILE)
    try:
        db.executescript(
            "CREATE TABLE answers (id INTEGER PRIMARY KEY, entry TEXT, tenant TEXT, context BLOB, answer TEXT);"
            "CREATE TABLE questions (row INTEGER PRIMARY KEY, answer INTEGER, language TEXT, question TEXT);"
        )
        db.executemany(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?)",
            ((i, _learned_as(e), e.tenant, e.context, e.answer) for i, e in enumerate(entries)),
        )
        db.executemany(
            "INSERT INTO questions VALUES (?, ?, ?, ?)",
            ((row, i, language_of(text), text) for row, (text, i) in enumerate(questions)),
        )
        db.commit()
    finally:
        db.close()
    about = About(FORM, words_digest(), digest, len(texts), len(entries), now)
    write_about(folder, about)
    return Built(about, never_found)


def _learned_as(entry: FaqEntry) -> str:
    """What was learned of an entry is void when its answer changes."""
    return f"{entry.id}:{hashlib.sha256(entry.answer.encode()).hexdigest()[:12]}"


def embed(texts: Sequence[str], folder: Path) -> np.typing.NDArray[np.float32]:
    """float32[texts, d], rows of length 1; NearpathError when the folder cannot be used."""
    part = Embedder(folder, ["cpu"], 1)
    part.load()
    # Like with like: padding to the longest of a batch costs least when its texts are about as long.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    vectors: list[np.typing.NDArray[np.float32] | None] = [None] * len(texts)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        for i, vector in zip(chosen, part.run([texts[i] for i in chosen]), strict=True):
            vectors[i] = vector
    return np.stack([v for v in vectors if v is not None])


def _put_in_place(new: Path, out: Path) -> None:
    """A reader that has the old files open keeps them; one that opens in between finds no folder and is told so."""
    old = out.parent / f".{out.name}.old.{os.getpid()}"
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def build_command(
    faq: Annotated[list[Path], typer.Option("--faq", help="FAQ file, .yaml or .jsonl; may be given several times.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; an index there is replaced.")],
    embedder: Annotated[
        Path | None, typer.Option("--embedder", help="Folder with tokenizer.json and model.onnx instead of n-grams.")
    ] = None,
) -> None:
    """Build the FAQ index that `retrieval.index` names."""
    started = time.monotonic()
    entries = read_files(faq)
    built = build_index(entries, out, embedder=embedder, now=time.time())
    about = built.about
    kind = "embedder" if about.embedder else "n-grams"
    size_mb = sum(file.stat().st_size for file in out.iterdir()) / 1e6
    took_s = time.monotonic() - started
    for id, question in built.never_found:
        # To standard error: what was built is fine, but for these.
        print(
            f"warning: entry {id}: {question!r} can never be found: it has no word of its own. Add a wording with one.",
            file=sys.stderr,
        )
    print(f"{out}: {about.entries} entries, {about.questions} questions, {kind}, {size_mb:.1f} MB, {took_s:.1f} s")


def read_index(folder: Path) -> About:
    """For `local-infer check`: what index is there; NearpathError when it cannot be used by this version."""
    about = read_about(folder)
    if (about.form, about.words) != (FORM, words_digest()):
        raise NearpathError(f"the index in {folder} was made by another version of nearpath", "local-infer build")
    return about
