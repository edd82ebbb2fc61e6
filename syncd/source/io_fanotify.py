"""fanotify: one mark on a whole file system instead of an inotify watch for each directory of a huge tree.

*Nothing is missed.* The mark is set before anything of the tree is opened, so every change is in the queue. What an event
tells of its directory is a file handle; which directory of the tree that is, is known once `Disk` has opened it, and it
does so before it lists it. So an event of a directory that is not known when the event is read may be dropped: either the
directory is not of the tree, or it will be listed later than that. It will be, since it came into the tree by a CREATE or
RENAME in a directory above it, and each of these has what it names walked. There are two differences to inotify:

- The kernel merges an event with an equal one anywhere in its queue, so the order of events of one directory is not
  kept. A rename therefore moves the directory whose handle it tells, not whatever is known under the old name; and both
  names are looked into, so that a directory that is back under its old name is placed there again.
- No path is kept or asked for: it is put together from the names of the directories above when an event is taken. So none
  becomes stale when a directory far above is renamed.

The queue is bounded (fs.fanotify.max_queued_events), as inotify's: while we are stopped, the churn of a whole file system
would fill the kernel's memory otherwise. What is lost is found by the same rescan.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any

from syncd.source.fanotify import (
    CREATE,
    DELETE,
    EVENT_MASK,
    GROUP_FLAGS,
    MARK_ADD,
    MARK_FILESYSTEM,
    ONDIR,
    Q_OVERFLOW,
    RENAME,
    SELF,
    WROTE,
    Decoder,
    Event,
    EventError,
    number_of,
    tells_of,
)
from syncd.source.io_watch import News, WatchError
from syncd.source.watch_tree import WatchTree

_AT_EMPTY_PATH = 0x1000
_MAX_HANDLE_BYTES = 128


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("handle", ctypes.c_ubyte * _MAX_HANDLE_BYTES),
    )


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
    libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
    libc.name_to_handle_at.argtypes = (
        ctypes.c_int,
        ctypes.c_char_p,
        ctypes.POINTER(_FileHandle),
        ctypes.POINTER(ctypes.c_int),
        ctypes.c_int,
    )
    return libc


def _checked(result: int) -> int:
    """What a function of the C library returned; OSError when it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_INIT_PROBLEMS = {
    errno.EPERM: ("fanotify is not allowed", "give the unit CAP_SYS_ADMIN"),
    errno.EINVAL: ("the kernel's fanotify does not tell both ends of a rename", "Linux 5.17 or newer does"),
    errno.ENOSYS: ("the kernel has no fanotify", "use one with CONFIG_FANOTIFY"),
    errno.EMFILE: ("no fanotify group is left for this user", "raise the sysctl fs.fanotify.max_user_groups"),
}
_MARK_PROBLEMS = {
    errno.EPERM: ("a whole file system may not be watched", "give the unit CAP_SYS_ADMIN"),
    errno.EINVAL: ("the kernel's fanotify does not tell both ends of a rename", "Linux 5.17 or newer does"),
    errno.ENODEV: ("the file system has no identity (fsid) to tell its events by", ""),
    errno.EXDEV: ("the tree lies in a subvolume that shares its file system with others", ""),
    errno.EOPNOTSUPP: ("the file system has no file handles", ""),
    errno.ENOSPC: ("no fanotify mark is left for this user", "raise the sysctl fs.fanotify.max_user_marks"),
}


def fanotify_problem(root: bytes) -> str:
    """Why the file system of the tree `root` cannot be watched by fanotify; empty when it can. Tried, not guessed."""
    try:
        Fanotify(root).close()
    except WatchError as error:
        return str(error)
    return ""


class Fanotify:
    """One fanotify group with one mark, on the file system of `root`: a `Kernel` of io_watch.

    What is mounted below the root (another file system) is not watched, but scanned; a bind mount of the same is watched.
    """

    def __init__(self, root: bytes) -> None:
        """WatchError when it cannot be had; `fanotify_problem` tells why beforehand."""
        self._libc = _libc()
        self._handle = _FileHandle()
        self._mount = ctypes.c_int()
        self._root_mount = -1
        self._device = -1
        self._decoder = Decoder()
        self._foreign_read = 0
        self.tree = WatchTree()
        self.unwatched: dict[bytes, str] = {}
        try:
            self._fd = _checked(self._libc.fanotify_init(GROUP_FLAGS, os.O_RDONLY))
        except OSError as error:
            raise _problem(error, _INIT_PROBLEMS) from error
        try:
            self._mark(root)
        except BaseException:
            os.close(self._fd)
            raise

    def _mark(self, root: bytes) -> None:
        """Have everything told that happens in the file system of `root`."""
        try:
            root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise WatchError(f"{os.fsdecode(root)} cannot be opened ({error.strerror})") from error
        try:
            self._device = os.fstat(root_fd).st_dev
            # Asked for first: with this kind of handle only a file system answers that keeps it for a directory's whole
            # life. overlayfs lets itself be marked all the same, and its handles change when a directory is copied up.
            self._number(root_fd)
            _checked(self._libc.fanotify_mark(self._fd, MARK_ADD | MARK_FILESYSTEM, EVENT_MASK, root_fd, None))
        except OSError as error:
            raise _problem(error, _MARK_PROBLEMS) from error
        finally:
            os.close(root_fd)

    @property
    def foreign(self) -> int:
        """Events of the file system that were not of the tree."""
        return self._decoder.foreign + self._foreign_read

    def concerns(self, data: bytes) -> bool:
        """See `Kernel`. A directory that comes to be known just now is listed after that: see the module."""
        try:
            events, is_ours = tells_of(data, self.tree)
        except EventError:
            return True  # for the owner to find
        if not is_ours:
            self._foreign_read += events
        return is_ours

    def fileno(self) -> int:
        """See `Kernel`."""
        return self._fd

    def close(self) -> None:
        """Give the mark back."""
        os.close(self._fd)

    def watch(self, fd: int, parent_wd: int | None, name: bytes, path: bytes) -> tuple[int | None, bool]:
        """See `Kernel`: from now on events of the open directory `fd` are understood."""
        try:
            wd = self._number(fd)
            is_marked = self._mount.value == self._root_mount or os.fstat(fd).st_dev == self._device
        except OSError as error:
            self.unwatched[path] = os.strerror(error.errno or 0)
            return None, False
        if not is_marked:
            self.unwatched[path] = "it is on another file system than the one that is marked"
            return None, False
        if self.unwatched:
            self.unwatched.pop(path, None)
        fresh = wd not in self.tree
        if not path:
            # Whoever watches keeps the root open, so that no other mount gets its number.
            self._root_mount = self._mount.value
            self.tree.place_root(wd)
        elif parent_wd is not None:
            self.tree.place(wd, parent_wd, name)
        elif fresh:
            self.unwatched[path] = "its parent directory is not watched"
            return None, False
        return wd, fresh

    def unwatch(self, wd: int) -> None:
        """See `Kernel`."""
        self.tree.forget(wd)

    def take(self, data: bytes, news: News, now: float) -> int:
        """See `Kernel`."""
        events = self._decoder.feed(data, self.tree)
        paths: dict[int, bytes | None] = {}
        for event in events:
            self._take_event(event, news, paths)
        return len(events)

    def all_taken(self, overflowed: bool, now: float) -> None:
        """See `Kernel`: nothing is kept between events."""

    def _take_event(self, event: Event, news: News, paths: dict[int, bytes | None]) -> None:
        mask, directory, name, target, new_directory, new_name = event
        if mask & Q_OVERFLOW:
            news.overflowed = True
            return
        is_directory = bool(mask & ONDIR)
        path = self._path(directory, name, paths)
        if mask & RENAME:
            new_path = self._path(new_directory, new_name, paths)
            if path is not None and new_path is not None:
                news.moves.append((path, new_path))
            if is_directory:
                self._move_directory(target, new_directory, new_name, news)
                paths.clear()
            # Both ends of a directory's: see the module.
            _hint(news, path, is_directory)
            _hint(news, new_path, is_directory)
            return
        if path is not None and mask & WROTE and not is_directory:
            news.written.append(path)
        _hint(news, path, is_directory and bool(mask & CREATE))
        if is_directory and mask & DELETE and target in self.tree:
            if target == self.tree.root_wd:
                news.root_lost = news.root_lost or "deleted"
            else:
                # A deleted directory never comes back, and its number is not used again.
                self.tree.forget(target)
                paths.clear()

    def _move_directory(self, wd: int, new_directory: int, new_name: bytes, news: News) -> None:
        """A directory that is known is somewhere else: in the tree, or (below what is not known) loose."""
        if wd not in self.tree:
            return
        if wd == self.tree.root_wd:
            news.root_lost = news.root_lost or "moved away"
        else:
            self.tree.place(wd, new_directory, new_name)

    def _path(self, directory: int, name: bytes, paths: dict[int, bytes | None]) -> bytes | None:
        """Where `name` in `directory` is below the root; None when that is not in the tree."""
        above = paths.get(directory, b"/")
        if above == b"/":
            above = paths[directory] = self.tree.path(directory)
        if above is None or name == SELF:
            return above
        return above + b"/" + name if above else name

    def _number(self, fd: int) -> int:
        """The number of the open directory `fd`; leaves the number of its mount in `_mount`."""
        handle = self._handle
        handle.handle_bytes = _MAX_HANDLE_BYTES
        _checked(self._libc.name_to_handle_at(fd, b"", handle, self._mount, _AT_EMPTY_PATH))
        return number_of(handle.handle_type, bytes(handle.handle[: handle.handle_bytes]))


def _hint(news: News, path: bytes | None, subtree: bool) -> None:
    if path is None:
        return
    if subtree:
        news.hints[path] = True
    else:
        news.hints.setdefault(path, False)


def _problem(error: OSError, known: dict[int, tuple[str, str]]) -> WatchError:
    what, fix = known.get(error.errno or 0, (f"fanotify cannot be used ({error.strerror})", ""))
    return WatchError(what, fix)
