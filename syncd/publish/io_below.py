"""Paths below a directory, walked name by name with O_NOFOLLOW: a symlink swapped in cannot lead outside.

Every change to a published tree goes through here. Nothing but a directory is ever walked through, so what another
process, or a hostile parent, puts into the tree can make a step fail but cannot turn it against the rest of the disk.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from types import TracebackType

from syncd.publish.steps import PublishError

CACHED_DIRECTORIES = 128
"""Open directories kept: neighbours in a batch mostly lie in the same few."""

_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


class Below:
    """An open directory and what lies below it. Use as a context manager, from one thread."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        try:
            self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise PublishError(
                f"{os.fsdecode(root)}: {error.strerror}", "check the tree's path and its owner"
            ) from error
        self._open: dict[bytes, int] = {}

    def __enter__(self) -> Below:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()
        os.close(self.fd)

    def forget(self) -> None:
        """Close the directories kept open: to be called when any directory moves or goes."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def at(self, path: bytes) -> tuple[int, bytes]:
        """(descriptor of the directory, last name; b"." for the root) of a path; it lives until `forget` or `at`."""
        directory, _, name = path.rpartition(b"/")
        return self.directory(directory), name or b"."

    def directory(self, path: bytes) -> int:
        """An O_PATH descriptor of directory `path`, closed by this object."""
        if not path:
            return self.fd
        found = self._open.get(path)
        if found is not None:
            return found
        if len(self._open) >= CACHED_DIRECTORIES:
            self.forget()  # so that of two paths looked up, the second is open for sure, and the first when asked again
        above, name = path.rpartition(b"/")[0], path.rpartition(b"/")[2]
        start, names = self.fd, [name]
        while above:
            if (kept := self._open.get(above)) is not None:
                start = kept
                break
            above, _, name = above.rpartition(b"/")
            names.append(name)
        fd = self._walk(start, names, path)
        self._open[path] = fd
        return fd

    def _walk(self, fd: int, names: list[bytes], path: bytes) -> int:
        """Open `names` (last first) one below the other, starting at `fd`, which stays open."""
        start = fd
        for name in reversed(names):
            try:
                deeper = os.open(name, _WALK, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.ENOENT):
                    raise PublishError(
                        f"{os.fsdecode(self.root)}: {path!r} is not a directory any more",
                        "something besides syncd changes this tree; it is compared with the parent's and put right",
                    ) from error
                raise
            finally:
                if fd != start:
                    os.close(fd)
            fd = deeper
        return fd

    def stat(self, path: bytes) -> os.stat_result | None:
        """lstat of a path below; None when there is nothing, or no directory for it to be in."""
        try:
            fd, name = self.at(path)
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except (FileNotFoundError, PublishError):
            return None

    def open_directory(self, path: bytes) -> int:
        """A descriptor of directory `path` that can be listed and synced; the caller closes it."""
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory(path))


def exchange(source_fd: int, source: bytes, target_fd: int, target: bytes) -> None:
    """renameat2(RENAME_EXCHANGE): both names swap what they stand for, at once. OSError where it cannot be done."""
    if _libc.renameat2(source_fd, source, target_fd, target, _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(target))


def sync_file_system(fd: int) -> None:
    """syncfs(2): all that was written to the file system of `fd` is on disk. OSError when it could not be written."""
    if _libc.syncfs(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def remove_all(path: bytes) -> int:
    """Remove whatever lies in directory `path`, but not itself; the number of entries removed.

    Sub-directories are first brought up to `path`: so it takes no recursion, however deep they are, and a removal that
    was cut short goes on where it was. Who still writes there, as a process that outlived its daemon may, is no obstacle:
    what comes meanwhile may stay.
    """
    with Below(path) as top:
        removed, todo = _clear(top.fd, top.fd, None)
        taken = frozenset(todo)
        labels = (label for number in count() if (label := b"%d.up" % number) not in taken)
        while todo:
            name = todo.pop()
            if os.geteuid():
                set_mode(top.fd, name, 0o700)  # one that was read-only can be emptied by its owner then
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top.fd)
            try:
                files, found = _clear(fd, top.fd, labels)
            finally:
                os.close(fd)
            todo += found
            removed += files
            try:
                os.rmdir(name, dir_fd=top.fd)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
            else:
                removed += 1
    return removed


def _clear(fd: int, top: int, labels: Iterator[bytes] | None) -> tuple[int, list[bytes]]:
    """Unlink the files in `fd`; give its directories (at `top`, under new names from `labels`): (files, directories)."""
    files, directories = 0, []
    with os.scandir(fd) as found:
        entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_dir in entries:
        if not is_dir:
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=fd)
                files += 1
        elif labels is None:
            directories.append(name)
        else:
            label = next(labels)
            with suppress(FileNotFoundError):
                if os.geteuid():
                    set_mode(fd, name, 0o700)
                os.rename(name, label, src_dir_fd=fd, dst_dir_fd=top)
                directories.append(label)
    return files, directories


def set_mode(directory: int, name: bytes, mode: int) -> None:
    """chmod of `name` itself, never of what a symlink there leads to (fchmodat cannot say so before Linux 6.6)."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)


def is_directory(found: os.stat_result | None) -> bool:
    """Whether this is the stat of a directory."""
    return found is not None and stat.S_ISDIR(found.st_mode)
