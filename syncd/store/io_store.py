"""The file that index and journal of one tree share: SQLite, WAL, synchronous=FULL.

One file, so that a path enters the journal in the same transaction as its new index entry. FULL, because NORMAL may lose
the last commits on power loss: the index would then be older than what a child was already told, and the sequence numbers
of those changes would be given out again for others.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import NearpathError

SCHEMA_VERSION = 2
"""2: changes carry digests of contents. A store of format 1 is taken over."""
SEALED = "sealed"
"""The fact that says whether the tree's hashes cover contents: at the origin whether every content was read, at a copy what
the newest root says that the origin signed."""

_CACHE_KIB = 32_768

_SCHEMA = """
CREATE TABLE facts (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE entries (
  parent INTEGER NOT NULL, name BLOB NOT NULL,
  mode INTEGER NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
  device INTEGER NOT NULL, inode INTEGER NOT NULL, target BLOB NOT NULL,
  directory INTEGER, listed_ns INTEGER, digest BLOB,
  PRIMARY KEY (parent, name)) WITHOUT ROWID;
CREATE UNIQUE INDEX entries_directory ON entries (directory) WHERE directory IS NOT NULL;
CREATE INDEX entries_inode ON entries (inode);
CREATE TABLE changes (
  sequence INTEGER PRIMARY KEY, op TEXT NOT NULL, path BLOB NOT NULL, source BLOB NOT NULL, at_s REAL NOT NULL,
  mode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, device INTEGER, inode INTEGER, target BLOB,
  digest BLOB);
CREATE TABLE cursors (child TEXT PRIMARY KEY, sequence INTEGER NOT NULL, seen_s REAL NOT NULL) WITHOUT ROWID;
"""


class StoreError(NearpathError):
    """The store cannot be used: damaged, in use by another daemon, of a newer version, or the disk is full."""


class StoreBusy(StoreError):
    """Another process has this tree."""


class _Connection(sqlite3.Connection):
    """Its lock goes with it: by close_store, or when it is forgotten by who failed half-way."""

    unlock: Callable[[], object] | None = None


def open_store(file: Path, *, exclusive: bool = True) -> sqlite3.Connection:
    """Open or make the store; with `exclusive` (the daemon's own), a second such opening raises StoreBusy.

    Other connections, for reading or for moving cursors, take `exclusive=False`. A connection is for one thread at a time.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(file, isolation_level=None, timeout=10.0, check_same_thread=False, factory=_Connection)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        # A WAL that grew in a burst is cut down again at the next check-point.
        db.execute("PRAGMA journal_size_limit=67108864")
        _prepare(db, file)
    except sqlite3.Error as error:
        raise StoreError(
            f"the index {file} cannot be used ({error})",
            "check the disk; if the file is damaged, move it away: "
            "syncd reads the whole tree again, and children compare manifests",
        ) from error
    if exclusive:
        _lock(db, file)
    return db


def _prepare(db: sqlite3.Connection, file: Path) -> None:
    with transaction(db):
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    db.execute(statement)
            # Tells a child that its cursor is of another journal: one that was lost, or of another tree.
            set_fact(db, "journal_id", secrets.token_bytes(16))
            set_fact(db, "last_sequence", 0)
            set_fact(db, "floor", 0)
            set_fact(db, "next_directory", 1)
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version == 1:
            db.execute("ALTER TABLE changes ADD COLUMN digest BLOB")
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"the index {file} has format {version}, this syncd knows {SCHEMA_VERSION}", "update syncd"
            )


def _lock(db: _Connection, file: Path) -> None:
    """Take the lock file beside the store for as long as the connection lives."""
    fd = os.open(file.with_name(file.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        db.close()
        fix = "another syncd has this tree; stop it, or give it another"
        raise StoreBusy(f"the index {file} is in use", fix) from error
    db.unlock = weakref.finalize(db, os.close, fd)


def hold_directory(directory: bytes, what: str = "tree") -> int:
    """Lock a directory (`what` it is, for the error) until the descriptor that is returned is closed.

    StoreBusy when another syncd has it, from whatever state_dir: two would undo each other's work. OSError when it cannot
    be opened. A file system without locks of directories (some of NFS) is taken as it is.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        fix = "it may have another state_dir: stop it, or give one of them another path"
        raise StoreBusy(f"another syncd has the {what} {os.fsdecode(directory)}", fix) from error
    except OSError:
        pass
    return fd


def close_store(db: sqlite3.Connection) -> None:
    """Close it, and give up the lock."""
    db.close()
    if isinstance(db, _Connection) and db.unlock is not None:
        db.unlock()


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, durable on leaving. StoreError when the disk refuses (full, say): then nothing was changed."""
    try:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")
    except BaseException as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        if isinstance(error, sqlite3.OperationalError):
            is_busy = "locked" in str(error)
            fix = "it is being written to" if is_busy else "free some space on its disk; it goes on by itself"
            raise StoreError(f"the index cannot be written ({error})", fix) from error
        raise


def fact(db: sqlite3.Connection, key: str) -> int | bytes | None:
    """A single stored value."""
    row = db.execute("SELECT value FROM facts WHERE key=?", (key,)).fetchone()
    value: int | bytes | None = row[0] if row else None
    return value


def set_fact(db: sqlite3.Connection, key: str, value: int | bytes) -> None:
    """Store a single value."""
    db.execute("INSERT OR REPLACE INTO facts VALUES (?,?)", (key, value))
