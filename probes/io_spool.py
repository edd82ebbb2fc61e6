"""The spool: samples on disk in SQLite until the appliance has them, numbered once and for all.

One thread owns the database. Samples are kept in memory for `flush_every_s` and committed together; only committed ones
are reported. A commit survives the death of the process at once and that of the machine after a second.

Sequence numbers are without holes, so that the appliance can count what a full spool dropped, also over a restart. Only
after the machine died, when commits of the last second may be gone, the numbers go on after the block that was reserved
(synced) ahead of use: none that was reported is ever used again.

When the disk fails (full, read-only), samples wait in memory up to a limit, are reported from there, and go to disk again
when it works. When the file is damaged it is moved aside and a new one with a new incarnation takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.errors import NearpathError
from core.io_log import get_logger
from core.messages import Family
from probes.io_moment import boot_id
from probes.report import Moment, Outcome, SpooledSample

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (one INTEGER PRIMARY KEY CHECK (one = 1), incarnation TEXT NOT NULL,
  reserved INTEGER NOT NULL, last INTEGER NOT NULL, booted TEXT NOT NULL, dropped INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS samples (
  sequence INTEGER PRIMARY KEY, mirror TEXT NOT NULL, target_check TEXT NOT NULL, family INTEGER NOT NULL,
  rtt_s REAL, loss TEXT NOT NULL, stamp TEXT NOT NULL, load_ratio REAL,
  boot_id TEXT NOT NULL, boot_s REAL NOT NULL, wall_s REAL NOT NULL);
"""
BLOCK = 4096
"""Sequences reserved ahead of use, renewed when half of them are gone: what is lost at most in a second."""

MEMORY_SAMPLES = 20_000
"""Samples kept in memory while the disk fails: some 10 MB."""

_FLUSH_AT_ONCE = 500
_SYNC_EVERY_S = 1.0
_RETRY_S = 1.0
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Batch:
    """The oldest samples, in rising sequence, and the incarnation that their numbers belong to."""

    incarnation: str
    samples: Sequence[SpooledSample]


class _Damaged(Exception):
    pass


class Spool:
    """Open it with `await Spool.open(folder, max_samples)`; all methods are for one event loop."""

    def __init__(self, folder: Path, max_samples: int, flush_every_s: float) -> None:
        self._file = folder / "spool.sqlite"
        self._max_samples = max_samples
        self._flush_every_s = flush_every_s
        self._log = get_logger("spool")
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._fresh: deque[SpooledSample] = deque()
        self._closing = False
        self._db: sqlite3.Connection | None = None
        self._synced_s = 0.0
        self._acked = 0
        self._owed = False
        self._next = 1
        self._reserved = 0
        self._incarnation = ""
        self._stored = 0
        self._dropped_unsaved = 0
        self.dropped = 0
        """Samples given up since the spool was made, because it was full."""
        self.trouble = ""
        """Why the disk cannot be used right now; empty when it can."""
        self.on_ready: Callable[[], None] = lambda: None
        """Called on the event loop when samples can be read that could not before."""
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)

    @classmethod
    async def open(cls, folder: Path, max_samples: int, *, flush_every_s: float = 0.1) -> Spool:
        """Open or create the spool in `folder`; NearpathError when it cannot be used at all."""
        spool = cls(folder, max_samples, flush_every_s)
        await asyncio.to_thread(spool._open_or_replace)
        spool._thread.start()
        return spool

    def __len__(self) -> int:
        """How many samples are not yet acknowledged."""
        return self._stored + len(self._fresh)

    @property
    def incarnation(self) -> str:
        """Drawn when the spool was made; its sequence numbers mean something together with it only."""
        return self._incarnation

    @property
    def last_sequence(self) -> int:
        """The highest number that was ever given out."""
        return self._next - 1

    def alive(self) -> bool:
        """Whether the writer thread runs."""
        return self._thread.is_alive()

    def add(self, mirror: str, check: str, family: Family, outcome: Outcome, taken: Moment) -> int:
        """Take a sample in; its sequence. Never waits for the disk."""
        with self._lock:
            sequence = self._next
            self._next += 1
            was_empty = not self._fresh
            self._fresh.append(SpooledSample(sequence, mirror, check, family, outcome, taken))
            if len(self._fresh) > MEMORY_SAMPLES:
                self._fresh.popleft()
                self._count_dropped(1)
        if was_empty or len(self._fresh) == _FLUSH_AT_ONCE:
            self._queue.put(_nothing)
        return sequence

    async def oldest(self, limit: int) -> Batch:
        """Up to `limit` of the oldest samples that may be reported."""
        return await self._call(lambda: self._oldest(limit))

    async def forget(self, upto: int) -> None:
        """Every sample up to and including sequence `upto` is with the appliance."""
        await self._call(lambda: self._forget(upto))

    async def give_up(self, sequence: int) -> None:
        """Drop one sample that the appliance will never take; it is counted."""
        self._count_dropped(1)
        await self._call(lambda: self._forget(sequence))

    async def renew(self) -> str:
        """Draw a new incarnation for everything that is not yet acknowledged; it."""
        return await self._call(self._renew)

    async def flush(self) -> None:
        """Bring to disk what is in memory, if the disk works."""
        await self._call(self._flush)

    async def close(self) -> None:
        """Flush, sync and close."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    async def _call(self, work: Callable[[], R]) -> R:
        if self._closing:
            raise NearpathError(f"the spool {self._file} is closed", "the agent is stopping")
        future: asyncio.Future[R] = self._loop.create_future()

        def run() -> None:
            try:
                result = work()
            except Exception as error:
                self._on_loop(_settle, future, None, error)
            else:
                self._on_loop(_settle, future, result, None)

        self._queue.put(run)
        return await future

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        # The loop may be gone already when an agent is torn down in the middle of a call.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call, *args)

    def _count_dropped(self, count: int) -> None:
        self.dropped += count
        self._dropped_unsaved += count

    # -- the writer thread's side

    def _run(self) -> None:
        flush_at_s: float | None = None
        while True:
            work: Callable[[], None] | None = _nothing
            with contextlib.suppress(queue.Empty):
                wait_s = None if flush_at_s is None else max(0.0, flush_at_s - time.monotonic())
                work = self._queue.get(timeout=wait_s)
            if work is None:
                break
            work()
            if not self._fresh:
                flush_at_s = None
                continue
            now_s = time.monotonic()
            if flush_at_s is None:
                flush_at_s = now_s + (_RETRY_S if self.trouble else self._flush_every_s)
            full = len(self._fresh) >= _FLUSH_AT_ONCE and not self.trouble
            if now_s >= flush_at_s or full:
                self._flush()
                flush_at_s = None if not self._fresh else now_s + (_RETRY_S if self.trouble else self._flush_every_s)
        self._flush(last=True)
        if self._db is not None:
            self._db.close()

    def _flush(self, *, last: bool = False) -> None:
        with self._lock:
            group = list(self._fresh)
        if not group and not (last or self._dropped_unsaved):
            return
        now_s, at = time.monotonic(), self.last_sequence
        running_short = self._reserved - at < BLOCK // 2
        sync = last or now_s - self._synced_s >= _SYNC_EVERY_S or running_short

        def work(db: sqlite3.Connection) -> int:
            kept = [sample for sample in group if sample.sequence > self._acked]
            db.executemany("INSERT OR REPLACE INTO samples VALUES (?,?,?,?,?,?,?,?,?,?,?)", map(_row, kept))
            excess = max(0, self._stored + len(kept) - self._max_samples)
            if excess:
                db.execute(
                    "DELETE FROM samples WHERE sequence IN (SELECT sequence FROM samples ORDER BY sequence LIMIT ?)",
                    (excess,),
                )
            db.execute(
                "UPDATE meta SET reserved=max(reserved, ?), last=max(last, ?), dropped=?, booted=?",
                (at + BLOCK if sync else 0, at, self.dropped + excess, "" if last else boot_id()),
            )
            return excess

        excess = self._attempt(work, sync=sync, proof=True)
        if excess is None:
            self._on_loop(self._ready)
            return
        if sync:
            self._synced_s = now_s
            self._reserved = max(self._reserved, at + BLOCK)
        self._dropped_unsaved = 0
        self.dropped += excess
        with self._lock:
            # What overflowed in memory meanwhile, or was acknowledged from there, is no longer in `_fresh`.
            while self._fresh and group and self._fresh[0].sequence <= group[-1].sequence:
                self._fresh.popleft()
            self._stored += sum(1 for sample in group if sample.sequence > self._acked) - excess
        if self._owed:
            # What was acknowledged while the disk failed is still there.
            self._forget(self._acked)
        if group:
            self._on_loop(self._ready)

    def _ready(self) -> None:
        self.on_ready()

    def _oldest(self, limit: int) -> Batch:
        def read(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
            return db.execute(
                "SELECT * FROM samples WHERE sequence > ? ORDER BY sequence LIMIT ?", (self._acked, limit)
            ).fetchall()

        samples: list[SpooledSample] = []
        rows = self._attempt(read, write=False)
        if rows is not None:
            samples = [_sample(row) for row in rows]
        elif self._stored:
            # Reporting from memory now would overtake what is on disk, and the appliance would take that for repeats.
            return Batch(self._incarnation, [])
        if self.trouble and len(samples) < limit:
            with self._lock:
                fresh = [sample for sample in self._fresh if sample.sequence > self._acked]
            samples += fresh[: limit - len(samples)]
        return Batch(self._incarnation, samples)

    def _forget(self, upto: int) -> None:
        self._acked = max(self._acked, min(upto, self.last_sequence))
        with self._lock:
            while self.trouble and self._fresh and self._fresh[0].sequence <= self._acked:
                self._fresh.popleft()

        def work(db: sqlite3.Connection) -> int:
            return db.execute("DELETE FROM samples WHERE sequence <= ?", (self._acked,)).rowcount

        gone = self._attempt(work, sync=False)
        self._owed = gone is None
        self._stored -= gone or 0
        if gone and self._stored == 0:
            # After a long outage the file gives its space back.
            self._attempt(lambda db: db.execute("PRAGMA incremental_vacuum(2000)").fetchall(), write=False)

    def _renew(self) -> str:
        fresh = secrets.token_hex(16)
        if self._attempt(lambda db: db.execute("UPDATE meta SET incarnation=?", (fresh,)).rowcount, sync=True) is None:
            raise NearpathError("cannot store a new incarnation of the spool", self.trouble)
        self._incarnation, self._acked = fresh, 0
        return fresh

    def _attempt(
        self, work: Callable[[sqlite3.Connection], R], *, write: bool = True, sync: bool = False, proof: bool = False
    ) -> R | None:
        """The result of `work`, in a transaction when it writes; None when the disk fails, `trouble` then says why.

        While samples wait in memory only a `proof`, their own way to disk, ends the trouble: on a full disk small
        changes may succeed in between.
        """
        try:
            if self._db is None:
                self._load()
            assert self._db is not None
            db = self._db
            if write:
                db.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
                db.execute("BEGIN IMMEDIATE")
            result = work(db)
            if write:
                db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            if _is_damage(error):
                self._replace(str(error))
            else:
                self._note_trouble(error)
            return None
        except _Damaged as damage:
            self._replace(str(damage))
            return None
        if write and self.trouble and (proof or not self._fresh):
            self.trouble = ""
            self._log.info("spool_works_again", file=str(self._file), samples=self._stored)
        return result

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._db is not None and self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _note_trouble(self, error: sqlite3.Error) -> None:
        trouble = f"{error} ({self._file})"
        if not self.trouble:
            self._log.error(
                "spool_failed",
                file=str(self._file),
                why=str(error),
                fix="free space on this disk; until then samples wait in memory",
                memory_samples=MEMORY_SAMPLES,
            )
        self.trouble = trouble

    def _open_or_replace(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._load()
            except _Damaged as damage:
                self._replace(str(damage))
                if self._db is None:
                    raise NearpathError(f"cannot make a new spool: {self.trouble}", "see the log") from None
        except (sqlite3.Error, OSError) as error:
            raise NearpathError(
                f"cannot use the spool {self._file}: {error}",
                "the agent's user must own `state_dir`, and its disk needs some free space",
            ) from None

    def _load(self) -> None:
        """Open the file, check it, and number on after all that were ever used."""
        try:
            self._db = db = _connect(self._file)
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise _Damaged("the integrity check failed")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT OR IGNORE INTO meta VALUES (1, ?, 0, 0, '', 0)", (secrets.token_hex(16),))
            incarnation, reserved, last, booted, self.dropped = db.execute(
                "SELECT incarnation, reserved, last, booted, dropped FROM meta"
            ).fetchone()
            (stored,) = db.execute("SELECT count(*) FROM samples").fetchone()
            # Closed cleanly (''), or by the end of the process alone: every commit is there.
            used = last if booted in ("", boot_id()) else max(reserved, last)
            with self._lock:
                self._next = max(self._next, used + 1)
                self._reserved = self._next - 1 + BLOCK
                db.execute("UPDATE meta SET reserved=?, last=?, booted=?", (self._reserved, self._next - 1, boot_id()))
                db.execute("COMMIT")
                self._incarnation, self._stored = incarnation, stored
        except sqlite3.Error as error:
            if _is_damage(error):
                raise _Damaged(str(error)) from None
            raise

    def _replace(self, why: str) -> None:
        """Move the damaged file aside (the one before it is overwritten) and start a new spool."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None
        aside = self._file.with_name(self._file.name + ".damaged")
        try:
            os.replace(self._file, aside)
            for suffix in ("-wal", "-shm"):
                self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
            self._log.error(
                "spool_damaged",
                why=why,
                doing="it was moved aside, a new one is begun",
                moved_to=str(aside),
                lost_samples=self._stored or "unknown",
            )
            self._stored, self._acked = 0, 0
            self._load()
        except (OSError, sqlite3.Error, _Damaged) as error:
            self._db = None
            self.trouble = f"a damaged spool could not be replaced: {error} ({self._file})"
            self._log.error("spool_not_replaced", why=str(error), file=str(self._file))


def _nothing() -> None:
    pass


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "").startswith(_DAMAGED)


def _connect(file: Path) -> sqlite3.Connection:
    db = sqlite3.connect(file, isolation_level=None, timeout=2.0, check_same_thread=False)
    try:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA journal_size_limit=8388608")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _SCHEMA_VERSION):
            raise NearpathError(
                f"the spool {file} is of version {version}, this program knows {_SCHEMA_VERSION}",
                "use the agent version that wrote it, or move the file away (its samples are lost then)",
            )
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _row(sample: SpooledSample) -> tuple[Any, ...]:
    outcome, taken = sample.outcome, sample.taken
    return (
        *(sample.sequence, sample.mirror, sample.check, sample.family),
        *(outcome.rtt_s, outcome.loss, outcome.stamp, outcome.load_ratio),
        *(taken.boot_id, taken.boot_s, taken.wall_s),
    )


def _sample(row: tuple[Any, ...]) -> SpooledSample:
    sequence, mirror, check, family, rtt_s, loss, stamp, load_ratio, boot_id, boot_s, wall_s = row
    outcome = Outcome(rtt_s, loss, stamp, load_ratio)
    return SpooledSample(sequence, mirror, check, family, outcome, Moment(boot_id, boot_s, wall_s))
