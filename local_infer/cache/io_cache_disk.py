"""Kept answers on disk: one SQLite file in WAL mode, written by one thread and read by another, limited in bytes.

Nothing here waits on the event loop, and nothing that fails stops the gateway: a cache that cannot be read has nothing,
one that cannot be written keeps nothing, and says so in the log once. Commits survive the death of the process (WAL, no
sync for each: those of the last moment may be lost with the machine). A damaged file is moved aside, and a new one is
begun; damage that SQLite does not notice is found by the digest of the record.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from core.io_log import get_logger
from local_infer.cache.cache_entry import Entry, pack, unpack
from local_infer.cache.cache_key import KEY_BYTES
from local_infer.cache.memory_cache import KeyFilter
from local_infer.model import Clock

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE entries (key BLOB NOT NULL UNIQUE, used_s REAL NOT NULL, born_s REAL NOT NULL, record BLOB NOT NULL);
CREATE INDEX by_use ON entries (used_s);
CREATE INDEX by_birth ON entries (born_s);
"""
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_GROUP_BYTES = 4 << 20
_QUEUED_BYTES = 16 << 20
"""Waiting to be written at most; with a slow disk, more is not kept there."""

_ROW_BYTES = 250
"""Of an entry's place in the file: row, three indexes, half of a page that its record does not fill."""

_TOUCH_EVERY_S = 30.0
_RETRY_S = 5.0
_ANSWER_S = 0.5
"""A look-up that takes longer (a locked file, a disk that hangs) is given up, and so are all for a while: who asks must not
wait for it as long as for an upstream, and what waits must not pile up."""

_READS = "cache look-ups"
_PURGED_AT_ONCE = 500

R = TypeVar("R")


class Store(Protocol):
    """Where answers are kept beyond memory."""

    def may_have(self, key: bytes) -> bool:
        """Whether it is worth asking for `key`."""
        ...

    async def get(self, key: bytes) -> Entry | None:
        """The entry of `key`; None also when it cannot be read."""
        ...

    def put(self, entry: Entry) -> None:
        """Keep an entry, some time soon."""
        ...

    def touch(self, key: bytes) -> None:
        """The entry of `key` was used."""
        ...

    async def recent(self, bytes_at_most: int) -> Sequence[Entry]:
        """Those used last, the last one first."""
        ...

    def trouble(self) -> str:
        """Why it does not work now; empty: it does."""
        ...

    async def close(self) -> None:
        """Write what waits, and close."""
        ...


class DiskCache:
    """A Store in SQLite. Open it with `await DiskCache.open(...)`; all methods are for one event loop."""

    def __init__(self, file: Path, limit_bytes: int, lifetime_s: float, clock: Clock) -> None:
        self._files = _Files(file)
        self._limit_bytes = limit_bytes
        self._lifetime_s = lifetime_s
        self._clock = clock
        self._filter = KeyFilter()
        self._loop = asyncio.get_running_loop()
        self._reader = _Lane(self._files, "cache-reader")
        self._writer = _Lane(self._files, "cache-writer")
        self._lock = threading.Lock()
        self._waiting: dict[bytes, Entry] = {}
        self._waiting_bytes = 0
        self._touched: dict[bytes, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loaded = False
        self._closed = False
        self._read_again_s = 0.0
        self.dropped = 0
        """Entries that were not written, because the disk was too slow or failed."""
        self.full_ratio = 0.0
        """How much of what the file may have it had, with what was then written."""

    @classmethod
    async def open(cls, file: Path, limit_bytes: int, lifetime_s: float, clock: Clock) -> DiskCache:
        """Open or make the file (mode 0600). Never fails: see `trouble`."""
        disk = cls(file, limit_bytes, lifetime_s, clock)
        await disk._writer.call(disk._load)
        return disk

    def may_have(self, key: bytes) -> bool:
        """Whether the key was ever put, as far as is known."""
        return not self._loaded or key in self._filter

    def trouble(self) -> str:
        """Why the disk cannot be used now."""
        return self._files.trouble

    async def get(self, key: bytes) -> Entry | None:
        """The entry of `key`, also one that is not yet written."""
        entry = self._waiting.get(key)
        if entry is not None or self._closed or time.monotonic() < self._read_again_s:
            return entry
        try:
            async with asyncio.timeout(_ANSWER_S):
                record = await self._reader.call(lambda db: read_record(db, key))
        except TimeoutError:
            self._read_again_s = time.monotonic() + _RETRY_S
            self._files.note(_READS, f"a look-up took longer than {_ANSWER_S:g} s")
            return None
        self._files.note(_READS, "")
        if record is None:
            return None
        entry = unpack(key, record)
        if entry is None:
            get_logger("cache").warning("cache_entry_damaged", file=str(self._files.file))
            self._writer.do(lambda db: _forget(db, key))
        return entry

    def put(self, entry: Entry) -> None:
        """Keep an entry: written by the next group."""
        if self._closed or self._waiting_bytes + entry.size_bytes > _QUEUED_BYTES:
            self.dropped += 1
            return
        with self._lock:
            first = not self._waiting
            if entry.key in self._waiting:
                self._waiting_bytes -= self._waiting.pop(entry.key).size_bytes
            self._waiting[entry.key] = entry
            self._waiting_bytes += entry.size_bytes
        self._filter.add([entry.key])
        if first:
            self._writer.do(self._write_groups, self._give_up)

    def touch(self, key: bytes) -> None:
        """Note the use; written every half a minute."""
        if self.may_have(key):
            self._touched[key] = self._clock()
            if self._timer is None and not self._closed:
                self._timer = self._loop.call_later(_TOUCH_EVERY_S, self._flush_touches)

    async def recent(self, bytes_at_most: int) -> Sequence[Entry]:
        """Those used last, the last one first."""
        return await self._reader.call(lambda db: _recent(db, bytes_at_most, self._clock() - self._lifetime_s)) or ()

    async def settle(self) -> None:
        """Wait until all that was put is written, or given up."""
        self._flush_touches()
        await self._writer.call(lambda _db: None, proof=False)

    async def close(self) -> None:
        """Write what waits, and close."""
        if not self._closed:
            self._flush_touches()
            self._closed = True
            await self._reader.close()
            await self._writer.close()  # the last connection: it empties the WAL into the file

    def _flush_touches(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        touched, self._touched = self._touched, {}
        before_s = self._clock() - self._lifetime_s
        self._writer.do(lambda db: _note_uses(db, touched, before_s))

    # -- the writer's side

    def _load(self, db: sqlite3.Connection) -> None:
        self._trim(db, 0)
        while _note_uses(db, {}, self._clock() - self._lifetime_s) == _PURGED_AT_ONCE:
            pass
        db.executescript("PRAGMA incremental_vacuum")  # `execute` would give back one page
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # the file is cut only now
        rows = db.execute("SELECT key FROM entries WHERE typeof(key)='blob' AND length(key)=?", (KEY_BYTES,))
        self._filter.add(row[0] for row in rows)
        self._loaded = True

    def _write_groups(self, db: sqlite3.Connection) -> None:
        if not self._loaded:
            self._load(db)  # it could not be at the start
        while group := self._next_group():
            self._write(db, group)
            with self._lock:
                for entry in group:
                    # Not if a newer one came meanwhile. Until now it was found here, from now on it is in the file.
                    if self._waiting.get(entry.key) is entry:
                        self._waiting_bytes -= self._waiting.pop(entry.key).size_bytes

    def _next_group(self) -> list[Entry]:
        group: list[Entry] = []
        taken = 0
        with self._lock:
            for entry in self._waiting.values():
                group.append(entry)
                taken += entry.size_bytes
                if taken > _GROUP_BYTES:
                    break
        return group

    def _give_up(self) -> None:
        """The disk fails: what waits is not kept."""
        with self._lock:
            self.dropped += len(self._waiting)
            self._waiting.clear()
            self._waiting_bytes = 0

    def _write(self, db: sqlite3.Connection, group: Sequence[Entry]) -> None:
        records = [(entry.key, self._clock(), entry.born_s, pack(entry)) for entry in group]
        rows = [row for row in records if len(row[3]) <= self._limit_bytes // 4]
        self._trim(db, sum(len(row[3]) + _ROW_BYTES for row in rows))
        with db:
            db.executemany("INSERT OR REPLACE INTO entries (key, used_s, born_s, record) VALUES (?,?,?,?)", rows)

    def _trim(self, db: sqlite3.Connection, coming_bytes: int) -> None:
        """Make room, counted in pages of the file: those used least recently go, a tenth more than needed."""
        page_bytes = _pragma(db, "page_size")
        spare = 0
        while True:
            used = (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * page_bytes
            self.full_ratio = min(1.0, (used + coming_bytes) / self._limit_bytes)
            excess = used + coming_bytes + spare - self._limit_bytes
            if excess <= 0:
                return
            spare = self._limit_bytes // 10
            excess += spare
            rows = []
            for rowid, size in db.execute("SELECT rowid, length(record) FROM entries ORDER BY used_s"):
                rows.append((rowid,))
                excess -= size + _ROW_BYTES
                if excess <= 0:
                    break
            if not rows:
                return
            with db:
                db.executemany("DELETE FROM entries WHERE rowid=?", rows)


def read_record(db: sqlite3.Connection, key: bytes) -> bytes | None:
    """The record of `key`; sqlite3.Error."""
    row = db.execute("SELECT record FROM entries WHERE key=?", (key,)).fetchone()
    return None if row is None else row[0]


def _forget(db: sqlite3.Connection, key: bytes) -> None:
    with db:
        db.execute("DELETE FROM entries WHERE key=?", (key,))


def _note_uses(db: sqlite3.Connection, touched: dict[bytes, float], before_s: float) -> int:
    """Write times of use, and delete some of what is too old for anything; how many were deleted."""
    with db:
        db.executemany("UPDATE entries SET used_s=? WHERE key=?", [(used, key) for key, used in touched.items()])
        return db.execute(
            "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries WHERE born_s < ? LIMIT ?)",
            (before_s, _PURGED_AT_ONCE),
        ).rowcount


def _recent(db: sqlite3.Connection, bytes_at_most: int, since_s: float) -> list[Entry]:
    entries: list[Entry] = []
    left = bytes_at_most
    for key, record in db.execute("SELECT key, record FROM entries WHERE born_s >= ? ORDER BY used_s DESC", (since_s,)):
        entry = unpack(key, record)
        if entry is not None:
            left -= entry.size_bytes
            if left < 0:
                break
            entries.append(entry)
    return entries


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


class _Files:
    """The database file, which may be replaced: connections of an older `generation` are to the one moved aside."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.generation = 0
        self._troubles: dict[str, str] = {}
        self._lock = threading.Lock()

    @property
    def trouble(self) -> str:
        """Why it cannot be read or written; empty: it can."""
        return next(iter(self._troubles.values()), "")

    def connect(self) -> tuple[sqlite3.Connection, int]:
        """A connection and its generation; sqlite3.Error or OSError."""
        with self._lock:
            self.file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            # Made by us: SQLite would use the umask, and these are people's questions.
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(self.file, timeout=2.0, check_same_thread=False)
            try:
                _prepare(db)
            except BaseException:
                db.close()
                raise
            return db, self.generation

    def replace(self, generation: int, why: str) -> None:
        """Move a damaged file aside (over an older damaged one), unless somebody has done so already. OSError."""
        with self._lock:
            if generation != self.generation:
                return
            aside = self.file.with_name(self.file.name + ".damaged")
            os.replace(self.file, aside)
            for tail in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{self.file}{tail}")
            self.generation += 1
        get_logger("cache").error(
            "cache_damaged", file=str(self.file), why=why, moved_to=str(aside), fix="check the disk"
        )

    def note(self, who: str, trouble: str) -> None:
        """Tell when the disk begins to fail for `who`, and when it works again."""
        before = self._troubles.get(who, "")
        if trouble:
            self._troubles[who] = trouble
        else:
            self._troubles.pop(who, None)
        log = get_logger("cache")
        if trouble and not before:
            fix = "free space on this disk, or check its rights"
            log.error("cache_disk_failed", who=who, file=str(self.file), why=trouble, fix=fix)
        elif before and not trouble:
            log.info("cache_disk_works_again", who=who, file=str(self.file))


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA auto_vacuum=INCREMENTAL")  # only does something while the file is empty
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(f"PRAGMA journal_size_limit={_GROUP_BYTES}")
    db.execute("PRAGMA cache_size=-2048")
    if _pragma(db, "user_version") != SCHEMA_VERSION:
        # Of another version, or new: it is only a cache.
        db.executescript(
            f"BEGIN IMMEDIATE; DROP TABLE IF EXISTS entries; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )


class _Lane:
    """A thread with a connection of its own, that does one thing after the other."""

    def __init__(self, files: _Files, name: str) -> None:
        self._files = files
        self._name = name
        self._trouble = False
        self._db: sqlite3.Connection | None = None
        self._generation = -1
        self._retry_s = 0.0
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[sqlite3.Connection], object], failed: Callable[[], None] | None = None) -> None:
        """Do it some time; when the disk fails, `failed` is called in the thread.

        Only what has something to do on failure proves that the disk works: on a full one, small changes may succeed.
        """

        def run() -> None:
            if not self._attempt(work, failed is not None)[0] and failed is not None:
                failed()

        self._queue.put(run)

    async def call(self, work: Callable[[sqlite3.Connection], R], *, proof: bool = True) -> R | None:
        """The result; None when the disk fails."""
        future: asyncio.Future[R | None] = self._loop.create_future()

        def run() -> None:
            _, result = self._attempt(work, proof)
            # The loop may be gone when a gateway is torn down in the middle of a call.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(result))

        self._queue.put(run)
        return await future

    async def close(self) -> None:
        """Do what is queued, then end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
        self._disconnect()

    def _attempt(self, work: Callable[[sqlite3.Connection], R], proof: bool) -> tuple[bool, R | None]:
        """Whether it could be done, and the result; a `proof` that could ends the trouble."""
        if self._trouble and self._db is None and time.monotonic() < self._retry_s:
            return False, None
        try:
            if self._generation != self._files.generation:
                self._disconnect()
            if self._db is None:
                self._db, self._generation = self._files.connect()
            result = work(self._db)
        except Exception as error:
            # Whatever it is, the thread must live: requests wait for its answers.
            self._fail(error)
            return False, None
        if self._trouble and proof:
            self._note("")
        return True, result

    def _fail(self, error: Exception) -> None:
        seen = self._generation if self._db is not None else self._files.generation
        self._disconnect()
        self._retry_s = time.monotonic() + _RETRY_S
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(_DAMAGED):
            try:
                self._files.replace(seen, str(error))
            except OSError as another:
                self._note(str(another))
        else:
            self._note(str(error) or type(error).__name__)

    def _note(self, trouble: str) -> None:
        self._trouble = bool(trouble)
        self._files.note(self._name, trouble)

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()
