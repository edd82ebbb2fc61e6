"""Verified earlier answers and what shadow answers proved, in one SQLite file; and their `ModelPart`.

An upstream's answer to a plain question is kept as a candidate; it answers only after `retrieval.proofs` later answers to
the same or a similar question agreed with it. Tenants and contexts are apart: a look-up sees only its own.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import NearpathError
from local_infer.generation.io_onnx import open_session
from local_infer.retrieval.ngrams import GramIndex, index_questions, score_rows
from local_infer.retrieval.proof import Agreement, Proof
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
            dropped = [old] if old is not None else []
            while len(self.kept) > most:
                dropped.append(self._least_proved())
                self._drop(dropped[-1])
            return dropped

    def snapshot(self) -> tuple[list[Kept], int]:
        """What is kept now, oldest first, and the count of changes up to it."""
        with self._lock:
            return list(self.kept.values()), self.changes

    def learn(self, entry: str, similarity: float, agreement: Agreement) -> None:
        """One more shadow answer of an entry."""
        with self._lock:
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


class VerifiedIndex:
    """Looks questions up among the kept ones, as they were at the last `load`."""

    def __init__(self, store: VerifiedStore, folder: Path, providers: Sequence[str], threads: int) -> None:
        self._store, self._file = store, folder / "verified.onnx"
        self._providers, self._threads = tuple(providers), threads
        self._rows: list[Kept] | None = None
        self._index: GramIndex | None = None
        self._session: Any = None
        self._changes = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """For logs and metrics."""
        return "verified-index"

    @property
    def loaded(self) -> bool:
        """Whether it holds memory."""
        return self._rows is not None

    def load(self) -> None:
        """Index what is kept; may be called again while look-ups go on."""
        kept, changes = self._store.snapshot()
        self._renew(kept)
        self._changes = changes

    def unload(self) -> None:
        """Give the memory back."""
        with self._lock:
            self._rows = self._index = self._session = None

    def is_outgrown(self) -> bool:
        """Whether it is time to `load` again: what was kept since the last time is not seen before that."""
        with self._lock:
            return self._rows is not None and self._store.changes - self._changes > len(self._rows) // 10

    def _renew(self, kept: list[Kept]) -> None:
        vectors = bool(kept) and kept[0].vector is not None
        index = session = None
        if kept and not vectors:
            index = index_questions([read_wording(k.question).gram_text for k in kept])
            if len(kept) >= GRAPH_FROM:
                from local_infer.retrieval.ngram_graph import write_graph  # with `onnx`: 25 MB that few gateways need

                self._file.write_bytes(write_graph(index, top=_TOP))
                session = open_session(self._file, providers=self._providers, threads=self._threads)
        with self._lock:
            self._rows, self._index, self._session = kept, index, session

    def run(self, items: Sequence[Look]) -> Sequence[list[Found]]:
        """For each look-up the nearest kept questions of its own tenant and context."""
        return [self._look(item) for item in items]

    def _look(self, item: Look) -> list[Found]:
        with self._lock:
            rows, index, session = self._rows, self._index, self._session
        if not rows:
            return []
        key: Any = item.key
        if session is not None:
            scores, docs = session.run(None, {session.get_inputs()[0].name: key})
            near = zip(scores.tolist(), docs.tolist(), strict=True)
        else:
            own = [i for i, k in enumerate(rows) if _may_see(item, k)]
            if not own:
                return []
            if index is not None:
                text = key.astype(np.uint32).tobytes().decode("utf-32-le", "surrogatepass")
                scores = score_rows(text, index, np.array(own))
            else:
                scores = np.stack([v for i in own if (v := rows[i].vector) is not None]) @ key
            near = zip(scores.tolist(), own, strict=True)
        best = sorted(near, reverse=True)[:_TOP]
        return [
            Found(min(score, 1.0), k.entry, k.question, k.answer, "verified", k.made_s)
            for score, row in best
            if _may_see(item, k := rows[row]) and k.id in self._store.kept
        ]


def _may_see(item: Look, kept: Kept) -> bool:
    return (kept.tenant, kept.context, kept.language) == (item.tenant, item.context, item.language)
