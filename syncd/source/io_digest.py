"""Reading a file for the digest of its content, such that it is of what the file was said to be, or there is none."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import threading
from collections.abc import Callable
from contextlib import suppress

from syncd.publish.io_below import Below

CHUNK_BYTES = 1 << 20
DIGEST_BYTES = 32

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Non-blocking: what is a fifo by now must not hang the thread.


def digest_below(
    root: bytes,
    path: bytes,
    is_of: Callable[[os.stat_result], bool],
    took: Callable[[int], bool],
    *,
    from_disk: bool = False,
) -> tuple[bytes, os.stat_result] | None:
    """(digest, stat) of the file at `path` below `root`; None when it is not the wanted one, or changes meanwhile.

    `is_of` is asked before and after the reading. `took` is told of each so many bytes, and says whether to go on.
    `from_disk`: past the page cache, and none of it is left there. OSError, PublishError when it cannot be read.
    """
    with Below(root) as tree:
        directory = tree.directory(path.rpartition(b"/")[0])
        fd = open_to_read(path.rpartition(b"/")[2], directory)
    try:
        before = os.fstat(fd)
        if not is_of(before):
            return None
        if from_disk:
            _drop(fd)
        state = hashlib.blake2b(digest_size=DIGEST_BYTES)
        while chunk := os.read(fd, CHUNK_BYTES):
            state.update(chunk)
            if not took(len(chunk)):
                return None
        if from_disk:
            _drop(fd)
        after = os.fstat(fd)
        is_same = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_size,
            after.st_mtime_ns,
            after.st_ctime_ns,
        )
        return (state.digest(), after) if is_same and is_of(after) else None
    finally:
        os.close(fd)


def open_to_read(name: bytes, directory: int) -> int:
    """Open a file of the directory that is open, without leaving a trace in its access time where that is allowed."""
    try:
        return os.open(name, _FLAGS | os.O_NOATIME, dir_fd=directory)
    except PermissionError:  # of another user's file
        return os.open(name, _FLAGS, dir_fd=directory)


def digest_of(content: bytes) -> bytes:
    """The digest of a content that is at hand."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def _drop(fd: int) -> None:
    # From the disk, not from memory; and clients' hot files are not pushed out of it by ours.
    with suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IDLE = 3 << 13


def lowest_priority() -> None:
    """This thread gets the disk when nobody else wants it, and the processor last. Linux takes both by thread."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None, use_errno=True).syscall(number, 1, 0, _IDLE)
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
