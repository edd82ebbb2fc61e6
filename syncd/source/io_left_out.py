"""What an origin has and its copies do not get: what is not replicated at all, and files that syncd may not read.

Both are found by looking at the disk as it is looked at anyway; nothing is opened for it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_NAMED = 1_000
"""So many paths of either kind are held; who has more sees the same reason in the first of them."""

SPECIAL = "a device, socket or fifo"
TOO_LONG = "its path is longer than any program can name"
ELSEWHERE = "another file system is mounted here"

_DAC_OVERRIDE, _DAC_READ_SEARCH = 1 << 1, 1 << 2
"""Capabilities (capabilities(7)) with which every file can be read."""


class LeftOut:
    """`skipped` and `unreadable`: path -> why. For the thread that owns the disk."""

    def __init__(self) -> None:
        self.skipped: dict[bytes, str] = {}
        self.unreadable: dict[bytes, str] = {}
        self._uid = os.geteuid()
        self._groups = frozenset((os.getegid(), *os.getgroups()))
        self._reads_all = _reads_all()

    def __bool__(self) -> bool:
        return bool(self.skipped or self.unreadable)

    def skip(self, path: bytes, why: str) -> None:
        """`path` is there, and not replicated."""
        if len(self.skipped) < MAX_NAMED:
            self.skipped[path] = why

    def forget(self, path: bytes) -> None:
        """`path` is gone, or well."""
        self.skipped.pop(path, None)
        self.unreadable.pop(path, None)

    def may_be_read(self, found: os.stat_result, directory: int, name: bytes) -> bool:
        """Whether this file can be read: as its mode says, which most do, else as the kernel does."""
        if self._reads_all or not stat.S_ISREG(found.st_mode):
            return True
        if found.st_uid == self._uid:  # noqa: SIM108 (three ways)
            bit = stat.S_IRUSR
        else:
            bit = stat.S_IRGRP if found.st_gid in self._groups else stat.S_IROTH
        return bool(found.st_mode & bit) or _can_read(name, directory)

    def lock_out(self, path: bytes, found: os.stat_result) -> None:
        """`path` is a file that cannot be read."""
        if len(self.unreadable) < MAX_NAMED:
            mode = f"mode {stat.S_IMODE(found.st_mode):04o}, owner {found.st_uid}, group {found.st_gid}"
            self.unreadable[path] = f"user {self._uid} may not read it: {mode}"

    def look_again(self, root: bytes) -> None:
        """Forget what went with a directory above it, of which nothing tells by name."""
        for path in [*self.skipped, *self.unreadable]:
            try:
                os.lstat(os.path.join(root, path))
            except (FileNotFoundError, NotADirectoryError):
                self.forget(path)
            except OSError:
                continue
        for path in list(self.unreadable):
            if _can_read(os.path.join(root, path), None):
                self.forget(path)


def _can_read(name: bytes, directory: int | None) -> bool:
    return os.access(name, os.R_OK, dir_fd=directory, effective_ids=True)


def _reads_all() -> bool:
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & (_DAC_OVERRIDE | _DAC_READ_SEARCH))
    return False
