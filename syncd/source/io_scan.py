"""Looking at the disk: directories opened step by step below the root (never through a symlink), listed and statted.

The difference between "it is not there" and "it could not be looked at" is kept all the way: only ENOENT and ENOTDIR (and
ELOOP, a symlink in place of a directory) mean the first. Everything else is trouble, and deletes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from core.exclude import NOTHING, Exclude
from syncd.model import MAX_PATH_BYTES, join
from syncd.source.io_left_out import ELSEWHERE, SPECIAL, TOO_LONG, LeftOut
from syncd.source.io_marks import NO_MARK, mark_of
from syncd.source.row import RACY_NS, UNSURE, Row, held_ns

_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

MOUNTED = "another file system is mounted here; it is not entered"

WatchHook = Callable[[int, int | None, bytes, bytes], tuple[int | None, bool]]
"""Watcher.watch: (fd, parent's descriptor, name, path) -> (descriptor, whether it is a new watch)."""


class Gone(Exception):
    """The directory `path` is not there (any more), or is not a directory."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


class Trouble(Exception):
    """`path` could not be looked at, for a reason that says nothing about whether it exists."""

    def __init__(self, path: bytes, why: str) -> None:
        super().__init__(f"{os.fsdecode(path) or '.'}: {why}")
        self.path = path
        self.why = why


def no_watch(_fd: int, _parent: int | None, _name: bytes, _path: bytes) -> tuple[int | None, bool]:
    """A WatchHook that watches nothing."""
    return None, False


@dataclass(slots=True)
class Listing:
    """One directory, as it was at one moment after its watch was set.

    `listed_ns` is the ctime by which it can be told later that no name in it came or went; 0 when that is not sure.
    """

    path: bytes
    row: Row
    """of the directory itself"""
    listed_ns: int
    rows: dict[bytes, Row] = field(default_factory=dict)
    troubled: set[bytes] = field(default_factory=set)
    """names that are there but could not be looked at"""
    mounts: set[bytes] = field(default_factory=set)
    """directories that are mount points, not to be entered"""


class Disk:
    """The tree below one open root directory. `watch` is called on every directory before anything in it is looked at.

    Directories stay open between calls as long as the next path is below or beside them; call `rest()` before anything
    else is waited for, since a directory that is kept open may be renamed under us.
    """

    def __init__(
        self,
        root: bytes,
        watch: WatchHook = no_watch,
        *,
        cross_mounts: bool = False,
        left_out: LeftOut | None = None,
        exclude: Exclude = NOTHING,
    ) -> None:
        """`left_out`: of an origin, is told of what copies do not get; directories and symlinks are marked then.

        `exclude`: what is as if it were not there, and is neither entered nor watched.
        """
        self.root = root
        self._left_out = left_out
        self._exclude = exclude
        self.watch = watch
        self._cross_mounts = cross_mounts
        self._root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._root_device = os.fstat(self._root_fd).st_dev
        self._chain: list[tuple[bytes, int, int | None]] = []
        self._root_wd: int | None = None
        self._root_seen = False
        self.fresh: list[bytes] = []
        """Directories whose watch was set just now; whoever takes one lists it, and all below it."""

    def close(self) -> None:
        """Close the root and all that is open."""
        self.rest()
        os.close(self._root_fd)

    def root_identity(self) -> tuple[int, int]:
        """(device, inode) of the root that is open."""
        st = os.fstat(self._root_fd)
        return st.st_dev, st.st_ino

    def root_moved(self) -> str:
        """Why the root's path is no longer the directory that is open; empty when it is."""
        try:
            st = os.stat(self.root)
        except OSError as error:
            return os.strerror(error.errno or 0)
        return "" if (st.st_dev, st.st_ino) == self.root_identity() else "another directory is there now"

    def rest(self) -> None:
        """Close all directories but the root."""
        for _, fd, _ in self._chain:
            os.close(fd)
        self._chain.clear()
        self._root_seen = False

    def look(self, path: bytes) -> Row | None:
        """What is at `path` now; None when nothing that is replicated is. Raises Gone (of a directory above), Trouble."""
        if not path:
            return self._row(os.fstat(self._root_fd), self._root_fd, b"")
        if len(path) > MAX_PATH_BYTES:
            self._skip(path, TOO_LONG)
            return None
        parent, _, name = path.rpartition(b"/")
        fd, _ = self._open(parent)
        return self._look_at(fd, name, path)

    def look_all(self, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Row]]:
        """(path, row) of those of `paths` where something that is replicated is; quick where many share a directory.

        What cannot be looked at is left out as well: for who knows what should be there. The directory is not opened anew
        for each, so nothing else may be done with this disk meanwhile.
        """
        last, fd = b"/", -1
        for path in paths:
            above, _, name = path.rpartition(b"/")
            if above != last or not name:
                last, fd = above, -1
                with suppress(Gone, Trouble):
                    fd = self._open(above)[0]
            row = None
            if not name:
                row = self.look(b"")
            elif fd >= 0 and len(path) <= MAX_PATH_BYTES:
                with suppress(Trouble):
                    row = self._look_at(fd, name, path)
            if row is not None:
                yield path, row

    def hides(self, path: bytes, is_directory: bool) -> bool:
        """Whether what would be at `path`, in a directory that is looked at, is as if it were not there."""
        return self._exclude.leaves_out(path, is_directory)

    def directory(self, path: bytes) -> int:
        """A descriptor of the directory `path`, which lives until the next call. Raises Gone, Trouble."""
        return self._open(path)[0]

    def list(self, path: bytes) -> Listing:
        """The directory `path` with a row for each name. Raises Gone, Trouble."""
        fd, _ = self._open(path)
        try:
            st = os.fstat(fd)
            row = self._row(st, fd, b"")
            assert row is not None
            listing = Listing(path, row, _sure_ns(st.st_ctime_ns))
            with os.scandir(fd) as names:
                for found in names:
                    self._list_one(listing, fd, os.fsencode(found.name), found)
        except OSError as error:
            raise Trouble(path, os.strerror(error.errno or 0)) from error
        return listing

    def listed_ns(self, path: bytes) -> int:
        """The ctime of the directory `path` (0 when it is not sure); it is watched now. Raises Gone, Trouble."""
        fd, _ = self._open(path)
        return _sure_ns(os.fstat(fd).st_ctime_ns)

    def _list_one(self, listing: Listing, fd: int, name: bytes, found: os.DirEntry[str]) -> None:
        if self._exclude and self._exclude.leaves_out(join(listing.path, name), found.is_dir(follow_symlinks=False)):
            return
        if len(listing.path) + bool(listing.path) + len(name) > MAX_PATH_BYTES:
            self._skip(join(listing.path, name), TOO_LONG)
            return
        try:
            st = found.stat(follow_symlinks=False)
            row = self._row(st, fd, name)
        except FileNotFoundError:
            return  # it went between the listing and the look: its event is on the way
        except OSError:
            listing.troubled.add(name)
            return
        if row is None:
            self._skip(join(listing.path, name), SPECIAL)
            return
        if row.device and not self._cross_mounts and row.is_directory:
            listing.mounts.add(name)
            self._skip(join(listing.path, name), ELSEWHERE)
        elif self._left_out is not None:
            self._see(self._left_out, st, fd, name, listing.path)
        listing.rows[name] = row

    def _look_at(self, fd: int, name: bytes, path: bytes) -> Row | None:
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if self._exclude.leaves_out(path, stat.S_ISDIR(st.st_mode)):
                return None
            row = self._row(st, fd, name)
            if row is None:
                self._skip(path, SPECIAL)
            elif self._left_out is not None:
                self._see(self._left_out, st, fd, name, path.rpartition(b"/")[0])
            return row
        except OSError as error:
            if error.errno in _GONE or error.errno == errno.ENAMETOOLONG:
                if self._left_out:
                    self._left_out.forget(path)
                return None
            raise Trouble(path, os.strerror(error.errno or 0)) from error

    def _row(self, st: os.stat_result, fd: int | None, name: bytes) -> Row | None:
        mode, mtime_ns = st.st_mode, held_ns(st.st_mtime_ns)
        device = 0 if st.st_dev == self._root_device else st.st_dev
        if stat.S_ISREG(mode):
            ctime_ns = _sure_ns(st.st_ctime_ns) or UNSURE
            return Row(mode, st.st_size, mtime_ns, ctime_ns, device, st.st_ino, b"")
        if stat.S_ISDIR(mode):
            return Row(mode, 0, mtime_ns, self._mark(st, fd, name), device, st.st_ino, b"")
        if stat.S_ISLNK(mode) and fd is not None:
            try:
                target = os.readlink(name, dir_fd=fd)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    # It is something else by now.
                    return self._row(os.stat(name, dir_fd=fd, follow_symlinks=False), None, name)
                raise
            return Row(mode, 0, mtime_ns, self._mark(st, fd, name), device, st.st_ino, target)
        return None

    def _skip(self, path: bytes, why: str) -> None:
        if self._left_out is not None:
            self._left_out.skip(path, why)

    def _see(self, left_out: LeftOut, st: os.stat_result, fd: int, name: bytes, above: bytes) -> None:
        """Whether the file `name` can be read by those who serve it."""
        if not left_out.may_be_read(st, fd, name):
            left_out.lock_out(join(above, name), st)
        elif left_out:
            left_out.forget(join(above, name))

    def _mark(self, st: os.stat_result, fd: int | None, name: bytes) -> int:
        if self._left_out is None or fd is None:
            return NO_MARK
        return mark_of(st, b"/proc/self/fd/%d/%s" % (fd, name) if name else fd)

    def _open(self, path: bytes) -> tuple[int, int | None]:
        """(fd, watch descriptor) of the directory `path`, opened name by name from the root, each watched."""
        if not self._root_seen:
            self._root_wd, fresh = self.watch(self._root_fd, None, b"", b"")
            self._root_seen = True
            if fresh:
                self.fresh.append(b"")
        fd, wd = self._root_fd, self._root_wd
        names = path.split(b"/") if path else []
        kept = 0
        while kept < len(self._chain) and kept < len(names) and self._chain[kept][0] == names[kept]:
            fd, wd = self._chain[kept][1:]
            kept += 1
        for _, old, _ in self._chain[kept:]:
            os.close(old)
        del self._chain[kept:]
        for depth in range(kept, len(names)):
            fd, wd = self._open_one(fd, wd, names[depth], b"/".join(names[: depth + 1]))
        return fd, wd

    def _open_one(self, above: int, above_wd: int | None, name: bytes, path: bytes) -> tuple[int, int | None]:
        if self._exclude.leaves_out(path, is_directory=True):
            raise Gone(path)
        try:
            fd = os.open(name, _OPEN, dir_fd=above)
        except OSError as error:
            if error.errno in _GONE:
                raise Gone(path) from None
            raise Trouble(path, os.strerror(error.errno or 0)) from error
        if not self._cross_mounts and os.fstat(fd).st_dev != self._root_device:
            os.close(fd)
            raise Trouble(path, MOUNTED)
        wd, fresh = self.watch(fd, above_wd, name, path)
        if fresh:
            self.fresh.append(path)
        self._chain.append((name, fd, wd))
        return fd, wd


def _sure_ns(ctime_ns: int) -> int:
    """The ctime, or 0 when it is so recent that a later change may not move it."""
    return 0 if abs(time.time_ns() - ctime_ns) < RACY_NS else ctime_ns
