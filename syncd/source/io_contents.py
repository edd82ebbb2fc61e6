"""Contents at the origin of a sealed tree: each is read for its digest when its change is looked at, before it is told.

A small one is read at once, by the thread that owns the tree. What is larger, or more than a slice of work, is read by a
thread beside it: the path is looked at again when that is done, and other changes do not wait for it. What changes while it
is read has no digest, and is looked at again once it had time to settle. Nor do smaller ones wait for a large one, which
may be a sparse file of some terabytes: they are read in between.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from core.errors import NearpathError
from syncd.source.io_digest import digest_below, digest_of, open_to_read
from syncd.source.io_scan import Disk, Gone, Trouble
from syncd.source.row import UNSURE, Row, held_ns
from syncd.store.io_index import UNREADABLE

SMALL_BYTES = 256 * 1024
SLICE_BYTES = 32 * 1024 * 1024
"""At most so much is read between two looks at what the kernel told: some 50 ms where it is cached."""
FILE_WEIGHT_BYTES = 4 * 1024
"""What a file costs besides its content."""
AGAIN_S = 0.1
MAX_AGAIN_S = 60.0
"""After a file that changed while it was read it is looked at again; doubled each time, since reading costs."""
MAX_ASKED = 100_000
"""Paths that wait for the thread; what is beyond is looked at again."""


_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""It is something else by now: its event is on the way."""
PASSING = _GONE | {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}
"""Or it cannot be had just now: somebody has a lease on it (fcntl(2); so does Samba), say. Nothing tells when it can."""


class Later(Exception):
    """The content is being read, or changes: the path will be looked at again."""


class _Result(NamedTuple):
    path: bytes
    row: Row
    digest: bytes | None
    ctime_ns: int = 0


class Contents:
    """See the module. For one thread, that of the tree; `ready` is called from the other when something can be taken."""

    def __init__(self, root: bytes, ready: Callable[[], None]) -> None:
        self._root = root
        self._ready = ready
        self._asked: queue.PriorityQueue[tuple[int, bytes, Row | None]] = queue.PriorityQueue()
        """(size, path, row); the row is None when that was all"""
        self._done: queue.SimpleQueue[_Result] = queue.SimpleQueue()
        self._waiting: set[bytes] = set()
        self._read: dict[bytes, _Result] = {}
        self._restless: dict[bytes, float] = {}
        self._again: list[tuple[bytes, float]] = []
        self._left_bytes = SLICE_BYTES
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._asked.put((-1, b"", None))
        if self._thread is not None:
            self._thread.join()

    @property
    def waiting(self) -> int:
        """How many files are to be read by the thread."""
        return len(self._waiting)

    def take_again(self) -> list[tuple[bytes, float]]:
        """(path, in how many seconds): what is to be looked at again. To be called once for each slice of work."""
        self._left_bytes = SLICE_BYTES
        with suppress(queue.Empty):
            while True:
                result = self._done.get_nowait()
                self._waiting.discard(result.path)
                if result.digest is None:
                    self._put_off(result.path)
                else:
                    self._read[result.path] = result
                    self._again.append((result.path, 0.0))
        again, self._again = self._again, []
        return again

    def of(self, disk: Disk, path: bytes, row: Row) -> bytes:
        """The digest of the file at `path`, which `row` was just now; UNREADABLE when it cannot be had. Raises Later."""
        kept = self._read.pop(path, None)
        if kept is not None and _is_of(row, kept.row.size, kept.row.mtime_ns, kept.ctime_ns, kept.row.inode):
            self._restless.pop(path, None)
            return kept.digest or UNREADABLE
        if row.size > SMALL_BYTES or self._left_bytes <= 0:
            self._ask(path, row)
            raise Later
        self._left_bytes -= row.size + FILE_WEIGHT_BYTES
        try:
            digest = _read_small(disk, path, row)
        except (OSError, Trouble) as error:
            if isinstance(error, Trouble) or error.errno not in PASSING:
                return UNREADABLE
            digest = None
        except Gone:
            digest = None
        if digest is None:
            self._put_off(path)
            raise Later
        if self._restless:
            self._restless.pop(path, None)
        return digest

    def _put_off(self, path: bytes) -> None:
        wait_s = self._restless.get(path, AGAIN_S)
        if len(self._restless) < MAX_ASKED:
            self._restless[path] = min(2 * wait_s, MAX_AGAIN_S)
        self._again.append((path, wait_s))

    def _ask(self, path: bytes, row: Row) -> None:
        if path in self._waiting:
            return
        if len(self._waiting) >= MAX_ASKED:
            self._again.append((path, 1.0))
            return
        self._waiting.add(path)
        self._asked.put((row.size, path, row))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="contents", daemon=True)
            self._thread.start()

    # -- in the thread

    def _run(self) -> None:
        while (row := (asked := self._asked.get())[2]) is not None and not self._stop.is_set():
            self._read_one(asked[1], row)

    def _read_one(self, path: bytes, row: Row) -> None:
        self._done.put(self._read_large(path, row))
        if self._asked.empty() or row.size > SMALL_BYTES:
            self._ready()

    def _read_smaller(self, size: int) -> None:
        """Read what waits and has at most `size` bytes: so no two that are read at once are of about the same size."""
        while not self._stop.is_set():
            try:
                asked = self._asked.get_nowait()
            except queue.Empty:
                return
            if asked[2] is None or asked[0] > size:
                self._asked.put(asked)
                return
            self._read_one(asked[1], asked[2])

    def _read_large(self, path: bytes, row: Row) -> _Result:
        def is_of(st: os.stat_result) -> bool:
            return _is_of(row, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino)

        def took(_size: int) -> bool:
            self._read_smaller(row.size // 2)
            return not self._stop.is_set()

        try:
            read = digest_below(self._root, path, is_of, took)
        except NearpathError:
            return _Result(path, row, None)  # a directory above it went
        except OSError as error:
            return _Result(path, row, None if error.errno in PASSING else UNREADABLE, row.ctime_ns)
        return _Result(path, row, None) if read is None else _Result(path, row, read[0], read[1].st_ctime_ns)


def _is_of(row: Row, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> bool:
    is_same = (size, held_ns(mtime_ns), inode) == (row.size, row.mtime_ns, row.inode)
    return is_same and row.ctime_ns in (ctime_ns, UNSURE)


def _read_small(disk: Disk, path: bytes, row: Row) -> bytes | None:
    """The digest of what is at `path`; None when that is not `row` any more. OSError, Gone, Trouble."""
    above, _, name = path.rpartition(b"/")
    fd = open_to_read(name, disk.directory(above))
    try:
        content = os.read(fd, row.size + 1)
        while len(content) < row.size and (more := os.read(fd, row.size + 1 - len(content))):
            content += more  # some network file systems give less at a time
        found = os.fstat(fd)
    finally:
        os.close(fd)
    is_same = len(content) == row.size and _is_of(
        row, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    )
    return digest_of(content) if is_same else None
