"""What `keep` adds to directories and symlinks: owners, extended attributes, access control lists.

Files get theirs from rsync as they are fetched. Directories and symlinks are brought by it, with nothing in them, into a
room of the work directory; from there their attributes, and nothing else, are taken over when a step makes them or sets
theirs. So the parent decides about attributes only: what is a directory here stays one, and no symlink of the room is ever
followed or published.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass

ROOM = b"attributes"
"""In the work directory."""

_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_CANNOT = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.ENODATA, errno.EINVAL, errno.ENOENT})
"""This user, or this file system, does not have it: then rsync has said so, and it shows in the status."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Which attributes are kept, besides mode and mtime."""

    xattrs: bool = False
    acls: bool = False
    owners: bool = False

    def __bool__(self) -> bool:
        return self.xattrs or self.acls or self.owners


NOTHING = Kept()


def take_over(source: tuple[int, bytes], target: tuple[int, bytes], kept: Kept) -> None:
    """Give `target` the attributes of `source`, each (descriptor of a directory, name in it), if both are of one kind.

    Before the mode is set: a new owner takes set-user-ID away, and a list has a mode in it.
    """
    with suppress(FileNotFoundError):
        found = os.stat(source[1], dir_fd=source[0], follow_symlinks=False)
        there = os.stat(target[1], dir_fd=target[0], follow_symlinks=False)
        if stat.S_IFMT(found.st_mode) != stat.S_IFMT(there.st_mode) or stat.S_ISREG(found.st_mode):
            return
        owner, is_owner = (found.st_uid, found.st_gid), (there.st_uid, there.st_gid)
        if kept.owners and owner != is_owner:
            with _if_it_can():
                os.chown(target[1], *owner, dir_fd=target[0], follow_symlinks=False)
        if kept.xattrs or kept.acls:
            _take_over_names(_place(source), _place(target), kept)


def _take_over_names(source: bytes, target: bytes, kept: Kept) -> None:
    wanted, have = _names(source, kept), _names(target, kept)
    for name in have - wanted:
        with _if_it_can():
            os.removexattr(target, name, follow_symlinks=False)
    for name in wanted:
        with _if_it_can():
            value = os.getxattr(source, name, follow_symlinks=False)
            if name not in have or os.getxattr(target, name, follow_symlinks=False) != value:
                os.setxattr(target, name, value, follow_symlinks=False)


def _names(place: bytes, kept: Kept) -> set[str]:
    """Names of the attributes that are kept: as rsync has it, all but those of the system for root, else the user's."""
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError:
        return set()
    ours = ("user.", "trusted.", "security.") if os.geteuid() == 0 else ("user.",)
    return {name for name in names if (kept.acls and name in _ACLS) or (kept.xattrs and name.startswith(ours))}


def _place(at: tuple[int, bytes]) -> bytes:
    """A path for calls that take no descriptor of a directory; its last part is never followed."""
    return b"/proc/self/fd/%d/%s" % at


class _if_it_can:
    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, OSError) and error.errno in _CANNOT
