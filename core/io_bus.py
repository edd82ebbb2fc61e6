"""The embedded bus: streams and last values in one SQLite file, written by one thread with group commit.

Callers on the event loop queue their write and wait; the thread takes all that is queued, runs it in one transaction and
commits with synchronous=FULL, so one disk flush serves every agent that reported meanwhile. Subscribers are called on the
event loop after the commit, in the order of positions: nobody sees what a crash could take back.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from core.bus import Published, Record, StreamHandler, Unsubscribe, Value, ValueHandler
from core.errors import BusConflict, BusUnavailable, NearpathError
from core.io_clock import AnchoredClock

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
  stream TEXT NOT NULL, position INTEGER NOT NULL, stored_s REAL NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (stream, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (
  stream TEXT NOT NULL, source TEXT NOT NULL, last_sequence INTEGER NOT NULL, seen_s REAL NOT NULL,
  PRIMARY KEY (stream, source)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions (stream TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS latest (key TEXT PRIMARY KEY, body BLOB NOT NULL, revision INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS revisions (one INTEGER PRIMARY KEY CHECK (one = 1), last INTEGER NOT NULL);
INSERT OR IGNORE INTO revisions VALUES (1, 0);
"""
_SCHEMA_VERSION = 1
_MAX_GROUP = 256
_REPLAY_PAGE = 500

R = TypeVar("R")
T = TypeVar("T")
_Work = Callable[[sqlite3.Connection], tuple[Any, Callable[[], None] | None]]
"""Runs inside a transaction; returns (result, what to do on the event loop once it is committed)."""


class EmbeddedBus:
    """A Bus in one process. Open it with `await EmbeddedBus.open(file, clock)`; all methods are for one event loop."""

    def __init__(self, file: Path, clock: AnchoredClock) -> None:
        self._file = file
        self._clock = clock
        self._queue: queue.SimpleQueue[tuple[_Work, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._streams: dict[str, list[StreamHandler]] = {}
        self._watchers: list[tuple[str, ValueHandler]] = []
        self._thread = threading.Thread(target=self._write_forever, name="bus-writer", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed = False

    @classmethod
    async def open(cls, file: Path, clock: AnchoredClock) -> EmbeddedBus:
        """Open or create the store in `file`; NearpathError when it cannot be used."""
        bus = cls(file, clock)
        bus._thread.start()
        await bus._opened
        return bus

    async def publish(self, stream: str, source: str, records: Sequence[Record]) -> Published:
        """Store the records that are new from `source`, durable on return; see Bus."""
        now = self._clock.now()

        def work(db: sqlite3.Connection) -> tuple[Published, Callable[[], None] | None]:
            row = db.execute(
                "SELECT last_sequence FROM sources WHERE stream=? AND source=?", (stream, source)
            ).fetchone()
            last = row[0] if row else 0
            position = _last_position(db, stream)
            stored: list[tuple[int, bytes]] = []
            for record in records:
                if record.sequence > last:
                    last = record.sequence
                    position += 1
                    stored.append((position, record.body))
            if stored:
                db.executemany("INSERT INTO records VALUES (?,?,?,?)", [(stream, p, now, body) for p, body in stored])
                db.execute("INSERT OR REPLACE INTO positions VALUES (?,?)", (stream, position))
            db.execute("INSERT OR REPLACE INTO sources VALUES (?,?,?,?)", (stream, source, last, now))
            return Published(len(stored), last), lambda: self._hand_out(stream, stored)

        return await self._write(work)

    async def subscribe(self, stream: str, handler: StreamHandler, *, after: int) -> Unsubscribe:
        """Replay what is kept after position `after`, then deliver each new record; see Bus."""
        # New commits are handed out while the pages are still being read: they wait here, so none is lost or overtakes.
        waiting: list[tuple[int, bytes]] = []
        live = False

        def receive(at: int, body: bytes) -> None:
            if live:
                handler(at, body)
            else:
                waiting.append((at, body))

        handlers = self._streams.setdefault(stream, [])
        handlers.append(receive)
        position = after
        try:
            while True:
                page = await self._write(_reading(stream, position))
                for position, body in page:
                    handler(position, body)
                if len(page) < _REPLAY_PAGE:
                    break
        except BaseException:
            handlers.remove(receive)
            raise
        for at, body in waiting:
            if at > position:
                handler(at, body)
        live = True
        return _remover(handlers, receive)

    async def trim(self, stream: str, *, upto: int, older_than_s: float) -> int:
        """Forget old records; see Bus. Also forgets sources that have not been heard for as long, but 30 days at least."""

        def work(db: sqlite3.Connection) -> tuple[int, None]:
            gone = db.execute(
                "DELETE FROM records WHERE stream=? AND position<=? AND stored_s<?", (stream, upto, older_than_s)
            ).rowcount
            old = min(older_than_s, self._clock.now() - 30 * 86400)
            db.execute("DELETE FROM sources WHERE stream=? AND seen_s<?", (stream, old))
            return gone, None

        return await self._write(work)

    async def get(self, key: str) -> Value | None:
        """The last value of `key`; see Bus."""
        return await self._write(lambda db: (_get(db, key), None))

    async def put(self, key: str, body: bytes, *, expected: int | None = None) -> int:
        """Set `key`; see Bus."""

        def work(db: sqlite3.Connection) -> tuple[int, Callable[[], None]]:
            if expected is not None:
                current = _get(db, key)
                revision = current.revision if current else 0
                if revision != expected:
                    raise BusConflict(f"{key} is at revision {revision}, not {expected}", "read it again, then retry")
            revision = _next_revision(db)
            db.execute("INSERT OR REPLACE INTO latest VALUES (?,?,?)", (key, body, revision))
            return revision, lambda: self._tell(key, Value(body, revision))

        return await self._write(work)

    async def delete(self, key: str) -> None:
        """Forget `key`; see Bus."""

        def work(db: sqlite3.Connection) -> tuple[None, Callable[[], None] | None]:
            gone = db.execute("DELETE FROM latest WHERE key=?", (key,)).rowcount
            return None, (lambda: self._tell(key, None)) if gone else None

        await self._write(work)

    async def items(self, prefix: str) -> Mapping[str, Value]:
        """All keys that start with `prefix`; see Bus."""

        def work(db: sqlite3.Connection) -> tuple[dict[str, Value], None]:
            rows = db.execute(
                "SELECT key, body, revision FROM latest WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
            )
            return {key: Value(body, revision) for key, body, revision in rows}, None

        return await self._write(work)

    def watch(self, prefix: str, handler: ValueHandler) -> Unsubscribe:
        """Call `handler` on later changes; see Bus."""
        entry = (prefix, handler)
        self._watchers.append(entry)
        return _remover(self._watchers, entry)

    async def close(self) -> None:
        """Finish queued writes, check-point, close the file."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    # -- the event loop's side

    async def _write(self, work: Callable[[sqlite3.Connection], tuple[R, Callable[[], None] | None]]) -> R:
        if self._closed:
            raise BusUnavailable(f"the store {self._file} is closed", "the appliance is shutting down")
        future: asyncio.Future[R] = self._loop.create_future()
        self._queue.put((work, future))
        return await future

    def _hand_out(self, stream: str, stored: Sequence[tuple[int, bytes]]) -> None:
        for handler in list(self._streams.get(stream, ())):
            for position, body in stored:
                self._call(handler, position, body)

    def _tell(self, key: str, value: Value | None) -> None:
        for prefix, handler in list(self._watchers):
            if key.startswith(prefix):
                self._call(handler, key, value)

    def _call(self, handler: Callable[..., None], *what: object) -> None:
        # A subscriber's fault must take neither this record from the others nor the next ones from itself.
        try:
            handler(*what)
        except Exception as error:
            self._loop.call_exception_handler({"message": f"a subscriber of {self._file} failed", "exception": error})

    # -- the writer thread's side

    def _write_forever(self) -> None:
        try:
            db = _open_database(self._file)
        except Exception as error:
            # Also for a fault of our own: whoever opens the bus must not wait for ever.
            self._settle(self._opened, None, error, None)
            return
        self._settle(self._opened, None, None, None)
        last = False
        while not last:
            item = self._queue.get()
            group: list[tuple[_Work, asyncio.Future[Any]]] = []
            while True:
                if item is None:
                    last = True
                    break
                group.append(item)
                if len(group) >= _MAX_GROUP or self._queue.empty():
                    break
                item = self._queue.get()
            self._run_group(db, group)
        # On a full disk the check-point waits for the next start; everything committed is in the log beside the file.
        with contextlib.suppress(sqlite3.Error):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()

    def _run_group(self, db: sqlite3.Connection, group: Sequence[tuple[_Work, asyncio.Future[Any]]]) -> None:
        outcomes: list[tuple[Any, Exception | None, Callable[[], None] | None]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            outcomes = [self._run_one(db, work) for work, _future in group]
            db.execute("COMMIT")
        except Exception as error:
            # Also for a fault of our own: the thread must live on, and every waiting caller must hear of it.
            with contextlib.suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            outcomes = [(None, self._failure(error), None)] * len(group)
        for (_work, future), (result, problem, after) in zip(group, outcomes, strict=True):
            self._settle(future, result, problem, after)

    def _run_one(self, db: sqlite3.Connection, work: _Work) -> tuple[Any, Exception | None, Callable[[], None] | None]:
        """(result, error, what to do after the commit) of one work of a group.

        A work that fails takes back its own changes only; the others of the group go on. If the database can no longer do
        that, it raises and the whole group fails.
        """
        db.execute("SAVEPOINT one")
        try:
            result, after = work(db)
        except Exception as error:
            db.execute("ROLLBACK TO one")
            db.execute("RELEASE one")
            return None, self._failure(error), None
        db.execute("RELEASE one")
        return result, None, after

    def _failure(self, error: Exception) -> Exception:
        return _unavailable(self._file, error) if isinstance(error, sqlite3.Error) else error

    def _settle(
        self,
        future: asyncio.Future[Any],
        result: Any,
        error: Exception | None,
        after: Callable[[], None] | None,
    ) -> None:
        def on_loop() -> None:
            try:
                if after is not None:
                    after()
            finally:
                if not future.done():
                    if error is not None:
                        future.set_exception(error)
                    else:
                        future.set_result(result)

        self._loop.call_soon_threadsafe(on_loop)


def _remover(entries: list[T], entry: T) -> Unsubscribe:
    """Takes `entry` out; calling it again does nothing."""

    def remove() -> None:
        if entry in entries:
            entries.remove(entry)

    return remove


def read_value(file: Path, key: str) -> Value | None:
    """The last value of `key` in the store of another process (None: no such key, or no store yet).

    BusUnavailable when the store is there but cannot be read.
    """
    if not file.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
            return _get(db, key)
    except sqlite3.Error as error:
        raise _unavailable(file, error) from None


def _open_database(file: Path) -> sqlite3.Connection:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(file, isolation_level=None, timeout=5.0)
    except sqlite3.Error as error:
        raise _unavailable(file, error) from None
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise NearpathError(f"cannot use {file}: {what}", "create its folder with the daemon's user as owner") from None
    try:
        _prepare(db, file)
    except BaseException as error:
        db.close()
        if isinstance(error, sqlite3.Error):
            raise _unavailable(file, error) from None
        raise
    return db


def _prepare(db: sqlite3.Connection, file: Path) -> None:
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _SCHEMA_VERSION):
        raise NearpathError(
            f"the store {file} is of version {version}, this program knows {_SCHEMA_VERSION}",
            "use the nearpath version that wrote it, or move the file away to start afresh",
        )
    if version == 0:
        # In this order a kill in between leaves version 0, and the next start does the rest.
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
    # A file that may only be read is told at the start, not by the first report. Nothing reaches the disk: it may be full.
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE revisions SET last = last")
    db.execute("ROLLBACK")


def _unavailable(file: Path, error: sqlite3.Error) -> BusUnavailable:
    fixes = {
        "SQLITE_FULL": "the disk is full: free some space; agents keep their samples until then",
        "SQLITE_NOTADB": "the file is damaged: move it away to start afresh",
        "SQLITE_CORRUPT": "the file is damaged: move it away to start afresh",
        "SQLITE_BUSY": "another process holds it: is a second appliance running on this state_dir?",
        "SQLITE_READONLY": "make the file and its folder writable for the daemon's user",
        "SQLITE_CANTOPEN": "create its folder with the daemon's user as owner",
    }
    name = getattr(error, "sqlite_errorname", "")
    fix = next((text for code, text in fixes.items() if name.startswith(code)), "see the system log for disk errors")
    return BusUnavailable(f"cannot use the store {file}: {error}", fix)


def _last_position(db: sqlite3.Connection, stream: str) -> int:
    row = db.execute("SELECT last FROM positions WHERE stream=?", (stream,)).fetchone()
    return int(row[0]) if row else 0


def _reading(stream: str, after: int) -> Callable[[sqlite3.Connection], tuple[list[tuple[int, bytes]], None]]:
    def work(db: sqlite3.Connection) -> tuple[list[tuple[int, bytes]], None]:
        rows = db.execute(
            "SELECT position, body FROM records WHERE stream=? AND position>? ORDER BY position LIMIT ?",
            (stream, after, _REPLAY_PAGE),
        )
        return rows.fetchall(), None

    return work


def _get(db: sqlite3.Connection, key: str) -> Value | None:
    row = db.execute("SELECT body, revision FROM latest WHERE key=?", (key,)).fetchone()
    return Value(row[0], row[1]) if row else None


def _next_revision(db: sqlite3.Connection) -> int:
    return int(db.execute("UPDATE revisions SET last = last + 1 WHERE one = 1 RETURNING last").fetchone()[0])
