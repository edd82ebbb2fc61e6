"""Verified earlier answers and what shadow answers proved, in one SQLite file; and their `ModelPart`.

An upstream's answer to a plain question is kept as a candidate; it answers only after `retrieval.proofs` later answers to
the same or a similar question agreed with it. Tenants and contexts are apart: a look-up sees only its own.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import NearpathError
from local_infer.generation.io_onnx import open_session
from local_infer.retrieval.io_sayings import shipped_sayings
from local_infer.retrieval.ngrams import (
    BUCKETS,
    ROW_GRAMS,
    Floats,
    GramIndex,
    Ints,
    index_questions,
    score_rows,
    weigh,
)
from local_infer.retrieval.proof import Agreement, Proof
from local_infer.retrieval.sayings import gram_text
from local_infer.retrieval.verdict import Found, Look
from local_infer.retrieval.wording import read_wording

VERSION = 1
_SCHEMA = """
CREATE TABLE kept (
  id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, context BLOB NOT NULL, language TEXT NOT NULL, question TEXT NOT NULL,
  answer TEXT NOT NULL, made_s REAL NOT NULL, embedder TEXT NOT NULL, vector BLOB,
  UNIQUE (tenant, context, question));
CREATE TABLE proofs (
  entry TEXT PRIMARY KEY, agreed INTEGER NOT NULL, disagreed INTEGER NOT NULL, lowest_agreed REAL NOT NULL,
  highest_disagreed REAL NOT NULL) WITHOUT ROWID;
"""
LONGEST_ANSWER = 16_384
"""Characters; longer answers are not kept."""

GRAPH_FROM = 2_000
"""From so many kept questions on they are looked up by a graph; below, and for those since, numpy is fast enough (1 ms)."""

MOST_ADDED = 1_000
"""So many kept since are looked at one by one, which takes 1.5 ms (CPU); then the index is made anew."""

_KEPT_RE = re.compile(r"kept:(\d{1,19}):\d+\.\d{3}")
"""The names of kept answers among the proofs. An entry of a FAQ may begin alike, but ends with a digest of its answer."""

_TOP = 32
"""More than of a FAQ: some of the nearest may be other tenants', which are dropped."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A kept answer; `entry` is its name among the proofs."""

    id: int
    tenant: str
    context: bytes
    language: str
    question: str
    answer: str
    made_s: float
    vector: NDArray[np.float32] | None = None

    @property
    def entry(self) -> str:
        """The name of what was learned of it; void when the answer is replaced."""
        return f"kept:{self.id}:{self.made_s:.3f}"


class VerifiedStore:
    """The file, read whole at the start. Its methods block (a commit each): call them in a thread, any."""

    def __init__(self, file: Path, embedder: str) -> None:
        self._embedder = embedder
        self._lock = threading.RLock()
        try:
            file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=10)
            self._db.execute("PRAGMA journal_mode=WAL")
            # What was learned since the last check-point may be lost with the power; it is learned again.
            self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
            elif version != VERSION:
                raise NearpathError(f"{file} is of version {version}, this is {VERSION}", "move it away to start anew")
            self.proofs = {entry: Proof(*rest) for entry, *rest in self._db.execute("SELECT * FROM proofs").fetchall()}
            self.kept = {kept.id: kept for kept in self._read()}
        except sqlite3.Error as error:
            raise NearpathError(f"{file} cannot be used ({error})", "move it away to start anew") from None
        file.chmod(0o640)
        self.changes = 0
        self._added: tuple[tuple[int, Kept], ...] = ()
        self._by_question = {(k.tenant, k.context, k.question): k.id for k in self.kept.values()}

    def _read(self) -> list[Kept]:
        rows = self._db.execute(
            "SELECT id, tenant, context, language, question, answer, made_s, vector FROM kept "
            "WHERE embedder = ? ORDER BY id",
            (self._embedder,),
        )
        found = []
        for ident, tenant, context, language, question, answer, made_s, blob in rows:
            vector = None if blob is None else np.frombuffer(blob, np.float32)
            found.append(Kept(ident, tenant, context, language, question, answer, made_s, vector))
        return found

    def find(self, tenant: str, context: bytes, question: str) -> Kept | None:
        """What is kept of exactly this question."""
        return self.kept.get(self._by_question.get((tenant, context, question), -1))

    def keep(self, new: Kept, most: int) -> list[Kept]:
        """Keep an answer (with an id of its own; one to the same question is replaced); returns what was dropped."""
        with self._lock, self._transaction():
            self.changes += 1
            if (old := self.find(new.tenant, new.context, new.question)) is not None:
                self._drop(old)
            cursor = self._db.execute(
                "INSERT INTO kept (tenant, context, language, question, answer, made_s, embedder, vector) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET answer = excluded.answer, "
                "made_s = excluded.made_s, embedder = excluded.embedder, vector = excluded.vector RETURNING id",
                (
                    *(new.tenant, new.context, new.language, new.question, new.answer, new.made_s, self._embedder),
                    None if new.vector is None else new.vector.astype(np.float32).tobytes(),
                ),
            )
            kept = replace(new, id=int(cursor.fetchone()[0]))
            self.kept[kept.id] = kept
            self._by_question[kept.tenant, kept.context, kept.question] = kept.id
            self._added = (*self._added, (self.changes, kept))
            dropped = [old] if old is not None else []
            while len(self.kept) > most:
                dropped.append(self._least_proved())
                self._drop(dropped[-1])
            return dropped

    def snapshot(self) -> tuple[list[Kept], int]:
        """What is kept now, oldest first, and the count of changes up to it."""
        with self._lock:
            return list(self.kept.values()), self.changes

    def added_since(self, changes: int) -> list[Kept]:
        """What was kept after so many changes, as far back as `forget_added` left it; waits for nobody."""
        return [kept for number, kept in self._added if number > changes]

    def forget_added(self, changes: int) -> None:
        """Nobody will ask for what was kept up to so many changes."""
        with self._lock:
            self._added = tuple(one for one in self._added if one[0] > changes)

    def learn(self, entry: str, similarity: float, agreement: Agreement) -> None:
        """One more shadow answer of an entry; nothing of a kept one that was dropped since it was looked up."""
        with self._lock:
            if (of_kept := _KEPT_RE.fullmatch(entry)) is not None:
                kept = self.kept.get(int(of_kept[1]))
                if kept is None or kept.entry != entry:
                    return  # nobody would ever drop what is learned of it
            proof = self.proofs.get(entry, Proof()).learn(similarity, agreement)
            self.proofs[entry] = proof
            values = (entry, proof.agreed, proof.disagreed, proof.lowest_agreed, proof.highest_disagreed)
            self._db.execute("INSERT OR REPLACE INTO proofs VALUES (?, ?, ?, ?, ?)", values)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _least_proved(self) -> Kept:
        """The oldest of the least proved; the newest is spared, or nothing new could ever be learned."""
        newest = max(self.kept)
        rest = [k for k in self.kept.values() if k.id != newest] or list(self.kept.values())
        return min(rest, key=lambda k: (self.proofs.get(k.entry, Proof()).agreed > 0, k.id))

    def _drop(self, old: Kept) -> None:
        self._db.execute("DELETE FROM kept WHERE id = ?", (old.id,))
        self._db.execute("DELETE FROM proofs WHERE entry = ?", (old.entry,))
        self.proofs.pop(old.entry, None)
        self.kept.pop(old.id, None)
        self._by_question.pop((old.tenant, old.context, old.question), None)

    def _transaction(self) -> _Transaction:
        return _Transaction(self._db)


class _Transaction:
    """BEGIN, and COMMIT or ROLLBACK."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def __enter__(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        self._db.execute("COMMIT" if kind is None else "ROLLBACK")


_Row = tuple[Ints, Floats]
"""The buckets of a stored question and their weights, as in an index."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """An index of `rows`, made after so many `changes`; `grams`: rows of what was kept since, made when first looked at."""

    rows: list[Kept]
    index: GramIndex | None
    session: Any
    changes: int
    grams: dict[str, _Row] = field(default_factory=dict)


class VerifiedIndex:
    """Looks questions up among the kept ones: those of the last `load` in an index, those since one by one."""

    def __init__(self, store: VerifiedStore, folder: Path, providers: Sequence[str], threads: int) -> None:
        self._store, self._file = store, folder / "verified.onnx"
        self._providers, self._threads = tuple(providers), threads
        self._loaded: _Loaded | None = None
        self._loading = threading.Lock()

    @property
    def name(self) -> str:
        """For logs and metrics."""
        return "verified-index"

    @property
    def loaded(self) -> bool:
        """Whether it holds memory."""
        return self._loaded is not None

    def load(self) -> None:
        """Index what is kept; may be called again while look-ups go on."""
        with self._loading:
            kept, changes = self._store.snapshot()
            vectors = [k.vector for k in kept if k.vector is not None]
            index = session = None
            if not vectors and kept:
                sayings = shipped_sayings()
                index = index_questions([gram_text(read_wording(k.question), sayings) for k in kept])
            if len(kept) >= GRAPH_FROM and len(vectors) in (0, len(kept)):
                self._file.write_bytes(_write(index, vectors))
                session = open_session(self._file, providers=self._providers, threads=self._threads)
            self._loaded = _Loaded(kept, index, session, changes)
            self._store.forget_added(changes)

    def unload(self) -> None:
        """Give the memory back."""
        self._loaded = None

    def is_outgrown(self) -> bool:
        """Whether it is time to `load` again: what was kept since is found too, but costs time at each look-up."""
        now = self._loaded
        return now is not None and self._store.changes - now.changes > min(len(now.rows) // 10, MOST_ADDED)

    def run(self, items: Sequence[Look]) -> Sequence[list[Found]]:
        """For each look-up the nearest kept questions of its own tenant and context."""
        return [self._look(item) for item in items]

    def _look(self, item: Look) -> list[Found]:
        now = self._loaded
        if now is None:
            return []
        near = [*self._near_rows(item, now), *self._near_added(item, now)]
        best = sorted(near, key=lambda one: one[0], reverse=True)[:_TOP]
        return [
            Found(min(score, 1.0), k.entry, k.question, k.answer, "verified", k.made_s)
            for score, k in best
            # Ids are used again: what was dropped since must be told by more than that.
            if _may_see(item, k) and self._store.kept.get(k.id) is k
        ]

    def _near_rows(self, item: Look, now: _Loaded) -> list[tuple[float, Kept]]:
        key: Any = item.key
        rows = now.rows
        if now.session is not None:
            scores, docs = now.session.run(None, {now.session.get_inputs()[0].name: key})
            return [(score, rows[row]) for score, row in zip(scores.tolist(), docs.tolist(), strict=True)]
        own = [i for i, k in enumerate(rows) if _may_see(item, k)]
        if not own:
            return []
        if now.index is None:
            return _near_vectors([rows[i] for i in own], key)
        scores = score_rows(_text_of(key), now.index, np.array(own))
        return [(score, rows[i]) for score, i in zip(scores.tolist(), own, strict=True)]

    def _near_added(self, item: Look, now: _Loaded) -> list[tuple[float, Kept]]:
        """What was kept since the index was made, by its weights: similarities are on one scale."""
        own = [k for k in self._store.added_since(now.changes) if _may_see(item, k)]
        if not own or (now.index is None and own[0].vector is None):
            return []  # nothing to weigh by: the first answers of all bring an index at once
        if now.index is None:
            return _near_vectors(own, item.key)
        rows = []
        for kept in own:
            row = now.grams.get(kept.entry)
            if row is None:
                row = now.grams[kept.entry] = _row_of(kept.question, now.index.idf)
            rows.append(row)
        ids, weights = weigh(_text_of(item.key), now.index.idf)
        by_bucket = np.zeros(BUCKETS, np.float32)
        by_bucket[ids] = weights
        products = by_bucket[np.concatenate([row[0] for row in rows])] * np.concatenate([row[1] for row in rows])
        begins = np.cumsum([0, *(len(row[0]) for row in rows[:-1])])
        return list(zip(np.add.reduceat(products, begins).tolist(), own, strict=True))


def _write(index: GramIndex | None, vectors: list[NDArray[np.float32]]) -> bytes:
    """The graph over grams, or over an embedder's vectors; imported here: 25 MB with `onnx` that few gateways need."""
    from local_infer.retrieval.ngram_graph import write_graph
    from local_infer.retrieval.vector_graph import write_vector_graph

    return write_vector_graph(np.stack(vectors), top=_TOP) if index is None else write_graph(index, top=_TOP)


def _near_vectors(kept: list[Kept], key: Any) -> list[tuple[float, Kept]]:
    with_vector = [(k, k.vector) for k in kept if k.vector is not None]
    if not with_vector:
        return []
    scores = np.stack([vector for _, vector in with_vector]) @ key
    return [(score, k) for score, (k, _) in zip(scores.tolist(), with_vector, strict=True)]


def _row_of(question: str, idf: Floats) -> _Row:
    """As `index_questions` makes a row: the heaviest grams, in steps of 1/255."""
    ids, weights = weigh(gram_text(read_wording(question), shipped_sayings()), idf)
    if len(ids) > ROW_GRAMS:
        heaviest = np.argsort(-weights, kind="stable")[:ROW_GRAMS]
        ids, weights = ids[heaviest], weights[heaviest]
    return ids, np.rint(weights * 255).astype(np.float32) / np.float32(255)


def _text_of(key: Any) -> str:
    text: str = key.astype(np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
    return text


def _may_see(item: Look, kept: Kept) -> bool:
    return (kept.tenant, kept.context, kept.language) == (item.tenant, item.context, item.language)
