"""Sealing a tree at its origin: every content that has no digest yet is read, and then the signature covers all of them.

What changes is read by whoever tells of it (`io_contents`); this is for what lay there when `contents: signed` was switched
on, and what could not be read then. It reads at the lowest priority of disk and processor, in a thread of its own, and what
it has read is never read again while it stays as it was. The tree is sealed once no file is left, but for those that cannot
be read: these no copy can fetch either. From then on children compare listings with digests.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import NearpathError
from core.io_log import get_logger
from syncd.model import Op
from syncd.source.io_contents import PASSING
from syncd.source.io_digest import digest_below, lowest_priority
from syncd.source.row import UNSURE, Row, held_ns
from syncd.store.io_index import UNREADABLE, Index
from syncd.store.io_journal import Draft, Journal
from syncd.store.io_store import SEALED, fact, open_store, set_fact, transaction

FILE_WEIGHT_BYTES = 16 * 1024
"""What a file costs besides its content: a seek or two."""
KEEP_EVERY_S = 5.0
KEEP_EVERY_FILES = 500
"""How often digests are written down: what a crash loses of them is read again."""
LOOK_S = 0.2
REST_S = 1.0
"""Before what changed while it was read is read again."""
AGAIN_S = 30.0

_log = get_logger("seal")


@dataclass(frozen=True, slots=True)
class SealStatus:
    """A snapshot. `share`: how much of the tree is read, None until that is known; `unreadable`: files left out."""

    is_sealed: bool = False
    share: float | None = None
    unreadable: int = 0
    why: str = ""
    """why it cannot go on just now"""


class Sealer:
    """See the module. `root`: what is read, None while there is nothing to; `told` is called when the journal has grown."""

    def __init__(self, name: str, store: Path, root: Callable[[], str | None], told: Callable[[], None]) -> None:
        self.status = SealStatus()
        self._name = name
        self._store = store
        self._root = root
        self._told = told
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"seal-{name}", daemon=True)
        self._left = 0
        self._whole = 1

    def start(self) -> None:
        """Begin, or go on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it has read is kept."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    # -- in the thread

    def _run(self) -> None:
        lowest_priority()
        while not self._stop.is_set():
            if self._root() is None:
                self._stop.wait(LOOK_S)
                continue
            try:
                self._seal()
                return
            except (NearpathError, OSError) as error:
                # The store is busy or full, the disk is gone: whoever owns the tree says so louder.
                self.status = replace(self.status, why=str(error))
            except Exception:
                _log.exception("seal_crashed", tree=self._name)
            self._stop.wait(AGAIN_S)

    def _seal(self) -> None:
        db = open_store(self._store, exclusive=False)
        try:
            index = Index(db)
            with transaction(db):
                index.retry_unreadable()
            size, unread = index.size(), index.unread()
            files = size.entries - size.directories
            self._whole = max(1, size.bytes + files * FILE_WEIGHT_BYTES)
            self._left = unread.bytes + unread.entries * FILE_WEIGHT_BYTES
            self._show(bool(fact(db, SEALED)))
            if not self.status.is_sealed:
                _log.info("sealing", tree=self._name, files=unread.entries, bytes=unread.bytes)
            while not self._stop.is_set() and not self._finish(db, index):
                self._pass(db, index)
        finally:
            db.close()

    def _finish(self, db: sqlite3.Connection, index: Index) -> bool:
        """Seal the tree if nothing is left; False when something is."""
        with transaction(db):
            left = index.unread()
            if left.entries:
                return False
            is_new = not fact(db, SEALED)
            if is_new:
                set_fact(db, SEALED, 1)
                # Nobody is told of each digest: children compare listings, which have them from now on.
                Journal(db).append_baseline()
        self._left = 0
        self._show(True)
        if is_new:
            _log.info("sealed", tree=self._name, unreadable=self.status.unreadable)
            self._told()
        return True

    def _pass(self, db: sqlite3.Connection, index: Index) -> None:
        """Read what has no digest, once; what changes meanwhile is for the next pass."""
        after = (0, b"")
        done: list[tuple[bytes, Row, bytes, int | None]] = []
        kept_s = time.monotonic()
        missed = False
        while not self._stop.is_set():
            index.rolled_back()  # its owner may have moved directories since
            found = index.unread_files(KEEP_EVERY_FILES, after)
            for place, path, row in found:
                root = self._root()
                if self._stop.is_set() or root is None:
                    missed = True
                    break
                after = place
                read = self._read(os.fsencode(root), path, row)
                missed = missed or read is None
                if read is not None:
                    done.append((path, row, *read))
                if time.monotonic() - kept_s > KEEP_EVERY_S:
                    self._keep(db, index, done)
                    done, kept_s = [], time.monotonic()
            self._keep(db, index, done)
            done, kept_s = [], time.monotonic()
            if len(found) < KEEP_EVERY_FILES or self._root() is None:
                break
        if missed:
            self._stop.wait(REST_S)

    def _read(self, root: bytes, path: bytes, row: Row) -> tuple[bytes, int | None] | None:
        """(digest, ctime of the file for a row that was not sure of it); None when it is not the row's content any more."""

        def is_of(st: os.stat_result) -> bool:
            same = (st.st_size, held_ns(st.st_mtime_ns), st.st_ino) == (row.size, row.mtime_ns, row.inode)
            return same and row.ctime_ns in (st.st_ctime_ns, UNSURE)

        def took(size: int) -> bool:
            self._left -= size
            self._show()
            return not self._stop.is_set()

        try:
            read = digest_below(root, path, is_of, took, from_disk=True)
        except NearpathError:
            return None  # a directory above it went
        except OSError as error:
            if error.errno in PASSING:
                return None
            self.status = replace(self.status, unreadable=self.status.unreadable + 1)
            _log.warning("not_sealed", tree=self._name, path=os.fsdecode(path), why=error.strerror)
            return UNREADABLE, None
        self._left -= FILE_WEIGHT_BYTES
        return None if read is None else (read[0], read[1].st_ctime_ns)

    def _keep(self, db: sqlite3.Connection, index: Index, done: list[tuple[bytes, Row, bytes, int | None]]) -> None:
        """Write down digests of what the index still has as it was; in a sealed tree children are told of each."""
        if not done:
            return
        drafts: list[Draft] = []
        with transaction(db):
            index.rolled_back()
            for path, row, digest, ctime_ns in done:
                if index.set_digest(path, row, digest, ctime_ns) and digest:
                    drafts.append(Draft(Op.UPSERT, path, row, b"", digest))
            is_sealed = bool(fact(db, SEALED))
            if is_sealed and drafts:
                Journal(db).append(drafts, time.time())
        if is_sealed and drafts:
            self._told()

    def _show(self, is_sealed: bool | None = None) -> None:
        share = min(1.0, max(0.0, 1.0 - self._left / self._whole))
        is_sealed = self.status.is_sealed if is_sealed is None else is_sealed
        self.status = replace(self.status, share=share, is_sealed=is_sealed, why="")
