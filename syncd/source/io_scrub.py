"""The slow scrub: every content is read again in its turn, and compared with what it was when it was read before.

A disk may give back other bytes than it was given, and say nothing; size, times and inode are then as they were, and no
comparison of listings finds it. What is read is kept as a digest in the index, with the row that it belongs to. A pass
over the tree takes `every_s`, at idle IO priority, past the page cache, and goes on after a restart where it was.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import NearpathError
from core.io_log import get_logger
from syncd.source.io_digest import digest_below, lowest_priority
from syncd.source.row import Row, held_ns, is_published
from syncd.store.io_index import Index
from syncd.store.io_store import SEALED, fact, open_store, set_fact, transaction

FILE_WEIGHT_BYTES = 16 * 1024
"""What a file costs besides its content: a seek or two."""
KEEP_EVERY_S = 10.0
KEEP_EVERY_FILES = 500
"""How often digests are written down: what a crash loses of them is read again."""
SLACK = 0.8
"""A pass is planned to take this much of its time, for what comes in between."""
AGAIN_S = 60.0
FIRST_S = 5.0
"""After the start, and after a failure."""
MAX_SHOWN = 100

_log = get_logger("scrub")


@dataclass(frozen=True, slots=True)
class ScrubStatus:
    """A snapshot. `wrong`: (path, what is wrong with it), the newest first; `passes` since the start."""

    passes: int = 0
    files: int = 0
    first: int = 0
    """those of `files` whose content nothing was known of: there was nothing to compare it with"""
    bytes_: int = 0
    found: int = 0
    wrong: tuple[tuple[bytes, str], ...] = ()
    why: str = ""
    """why it cannot go on just now"""


class Wrong:
    """Paths found wrong, handed from the scrubber's thread to the event loop that made this; `told` is called there."""

    def __init__(self, told: Callable[[], None]) -> None:
        self.paths: set[bytes] = set()
        self._told = told
        self._loop = asyncio.get_running_loop()

    def add(self, path: bytes) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._add, path)

    def _add(self, path: bytes) -> None:
        self.paths.add(path)
        self._told()


class Scrubber:
    """Reads the files of one tree in a thread of its own.

    `root`: what is read now, None while there is nothing to read. `found`: told of each path whose content is not what it
    was, from that thread. `by_inode`: for a copy, whose contents come with inodes of their own, so that links and modes,
    which move the ctime, say nothing of the content; at an origin a ctime that moved says that it may have been written.
    """

    def __init__(
        self,
        name: str,
        store: Path,
        root: Callable[[], str | None],
        every_s: float,
        found: Callable[[bytes], None],
        *,
        by_inode: bool,
    ) -> None:
        self.status = ScrubStatus()
        self._name = name
        self._store = store
        self._root = root
        self._every_s = every_s
        self._found = found
        self._by_inode = by_inode
        self._only_looks = False
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"scrub-{name}", daemon=True)

    def start(self) -> None:
        """Begin, or go on, some seconds from now."""
        self._thread.start()

    def stop(self) -> None:
        """End within the reading of a chunk."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def hurry(self, repair: bool = True) -> None:
        """Read all that is there from the beginning, without pauses; without `repair`, what is wrong is only shown."""
        self._only_looks = not repair
        self._hurry.set()
        self._wake.set()

    # -- in the thread

    def _run(self) -> None:
        lowest_priority()
        self._rest(FIRST_S)
        while not self._stop.is_set():
            try:
                if self._root() is None:
                    self._rest(FIRST_S)
                    continue
                self._pass()
                self.status = replace(self.status, why="")
            except (NearpathError, OSError) as error:
                # The store is busy or full, the disk is gone: whoever owns the tree says so louder.
                self.status = replace(self.status, why=str(error))
                self._rest(AGAIN_S)
            except Exception:
                _log.exception("scrub_crashed", tree=self._name)
                self._rest(AGAIN_S)

    def _rest(self, seconds: float) -> None:
        if not self._hurry.is_set():
            self._wake.wait(seconds)
        self._wake.clear()

    def _pass(self) -> None:
        db = open_store(self._store, exclusive=False)
        try:
            index = Index(db)
            hurried = self._hurry.is_set()
            self._hurry.clear()
            kept = fact(db, "scrub_at")
            after = _names(kept) if isinstance(kept, bytes) and not hurried else ()
            size = index.size()
            weight = size.bytes + size.entries * FILE_WEIGHT_BYTES
            rate = 0.0 if hurried else max(1.0, weight / (self._every_s * SLACK))
            done: list[tuple[bytes, Row, bytes]] = []
            started_s = kept_s = time.monotonic()
            for path in _files(index, after):
                if self._stop.is_set() or self._hurry.is_set() or (root := self._root()) is None:
                    break
                if (read := self._read(index, os.fsencode(root), path, rate)) is not None:
                    done.append((path, *read))
                if len(done) >= KEEP_EVERY_FILES or time.monotonic() - kept_s > KEEP_EVERY_S:
                    self._keep(db, index, done, path)
                    done, kept_s = [], time.monotonic()
            else:
                self._keep(db, index, done, b"")
                self._only_looks = self._only_looks and self._hurry.is_set()  # of another pass, which is asked for
                self.status = replace(self.status, passes=self.status.passes + 1)
                self._rest(self._every_s * SLACK - (time.monotonic() - started_s))
                return
            self._keep(db, index, done, None)
        finally:
            db.close()

    def _keep(
        self, db: sqlite3.Connection, index: Index, done: list[tuple[bytes, Row, bytes]], at: bytes | None
    ) -> None:
        """Write down digests of what the index still has as it was when it was read, and where the pass is."""
        with transaction(db):
            index.rolled_back()  # its owner may have moved directories since
            # In a sealed tree each content has the digest that the origin signed; what has none waits for that.
            if not fact(db, SEALED):
                for path, row, digest in done:
                    index.set_digest(path, row, digest)
            if at is not None:
                set_fact(db, "scrub_at", at)

    def _read(self, index: Index, root: bytes, path: bytes, rate: float) -> tuple[Row, bytes] | None:
        """(row, digest) of a file that was not read before; None when there is nothing to write down."""
        index.rolled_back()
        child, known = index.get(path), index.digest(path)
        if child is None or not stat.S_ISREG(child.row.mode) or not is_published(child.row):
            return None
        try:
            digest = self._digest_of(root, path, child.row, rate)
        except OSError as error:
            if self._is_as_before(index, path, child.row):
                self._tell(path, f"it cannot be read: {error.strerror}")
            return None
        if digest is None or not self._is_as_before(index, path, child.row):
            return None  # it is changing, or was changed by others: not for us to say
        self.status = replace(self.status, files=self.status.files + 1, bytes_=self.status.bytes_ + child.row.size)
        if known is None:
            self.status = replace(self.status, first=self.status.first + 1)
            return child.row, digest
        if known != digest:
            self._tell(path, "its content is not what it was, though nobody wrote to it")
        return None

    def _is_as_before(self, index: Index, path: bytes, row: Row) -> bool:
        index.rolled_back()
        child = index.get(path)
        return child is not None and child.row == row

    def _digest_of(self, root: bytes, path: bytes, row: Row, rate: float) -> bytes | None:
        """The digest of the file if it is the one of the row, before and after it was read; OSError when it fails."""

        def took(size: int) -> bool:
            self._pace(size, rate)
            return not self._stop.is_set()

        self._pace(FILE_WEIGHT_BYTES, rate)
        read = digest_below(root, path, lambda found: self._is_of(found, row), took, from_disk=True)
        return read[0] if read is not None else None

    def _is_of(self, st: os.stat_result, row: Row) -> bool:
        same = (st.st_size, held_ns(st.st_mtime_ns), st.st_ino) == (row.size, row.mtime_ns, row.inode)
        return same and (self._by_inode or st.st_ctime_ns == row.ctime_ns)

    def _pace(self, weight: int, rate: float) -> None:
        if rate and not self._hurry.is_set() and not self._stop.is_set():
            self._wake.wait(weight / rate)

    def _tell(self, path: bytes, what: str) -> None:
        _log.error("content_wrong", tree=self._name, path=os.fsdecode(path), what=what)
        others = tuple(entry for entry in self.status.wrong if entry[0] != path)
        self.status = replace(self.status, found=self.status.found + 1, wrong=((path, what), *others)[:MAX_SHOWN])
        if not self._only_looks:
            self._found(path)


def _names(path: bytes) -> tuple[bytes, ...]:
    return tuple(path.split(b"/")) if path else ()


def _files(index: Index, after: tuple[bytes, ...]) -> Iterator[bytes]:
    """Files and symlinks of the index behind the path `after` (its names), in the order of their names; b"" is before all.

    Each directory is read when it is come to: what changes meanwhile is met, or not.
    """
    stack: list[tuple[tuple[bytes, ...], bool]] = [((), True)]
    while stack:
        names, is_directory = stack.pop()
        path = b"/".join(names)
        if not is_directory:
            yield path
            continue
        index.rolled_back()
        number = index.number(path)
        children = index.children(number) if number is not None else {}
        below = [((*names, name), child.directory is not None) for name, child in children.items()]
        # A directory on the way to `after` has files behind it still.
        below = [(new, is_dir) for new, is_dir in below if new > after or (is_dir and new == after[: len(new)])]
        stack.extend(sorted(below, reverse=True))
