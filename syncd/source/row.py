"""What `lstat` tells of one name, in the form that is compared and stored; and what a difference between two means."""

from __future__ import annotations

import stat
from typing import NamedTuple

from syncd.model import UNTOLD, Entry, Kind

RACY_NS = 20_000_000
"""A file changed less than this before it was looked at can change again without a new ctime: the clock of local file
systems ticks every 1 to 10 ms. (git calls such an index entry racy, and solves it in the same way.)"""

UNSURE = -1
"""The ctime of a racy row: it equals no real one, so the next look takes the path for changed, and not its own word."""

REFUSED = -1
"""As the device of a row at a copy: the index has it, since the origin has, but it is not published."""

EXCLUDED = -2
"""Likewise, because the copy's patterns leave it out: with the size, times and mode that were told."""


class Row(NamedTuple):
    """`mode` is all of st_mode. For directories size is 0: what is in them is told by its own rows.

    `ctime_ns` of directories and symlinks is their mark (see `io_marks`), or 0 when it was not looked at: never at a copy.

    `device` is 0 for the device of the tree's root, so that a disk that gets another number after a reboot changes nothing.
    """

    mode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int
    target: bytes

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory."""
        return stat.S_ISDIR(self.mode)


def is_published(row: Row) -> bool:
    """Whether what the row tells of lies in the tree that clients see, as far as the index knows."""
    return row.device >= 0


def as_left_out(entry: Entry) -> Row:
    """The row of what is told of and left out."""
    form = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}[entry.kind]
    return Row(form | entry.mode, entry.size, entry.mtime_ns, 0, EXCLUDED, 0, entry.target)


Written = dict[bytes, Row | None]
"""Files that lie in the stage of a copy, by path: as this process wrote them, and as they stay until they are published,
since nothing else comes there; None: something is known to lie there, and no more."""


_MAX_NS = 2**63 - 1


def held_ns(mtime_ns: int) -> int:
    """A file's mtime as rows, entries and the wire have it.

    Disks hold times after 2262 and before 1677, which are no 64-bit number of nanoseconds; and the one that means UNTOLD.
    """
    return 0 if mtime_ns == UNTOLD else min(max(mtime_ns, -_MAX_NS), _MAX_NS)


def as_sure(row: Row, now_ns: int) -> Row:
    """`row` of a file that was looked at before `now_ns` (wall clock), its ctime UNSURE when it was racy still."""
    return row if abs(now_ns - row.ctime_ns) >= RACY_NS else row._replace(ctime_ns=UNSURE)


def kind_of(mode: int) -> Kind | None:
    """What is replicated of a st_mode; None for devices, sockets and fifos."""
    form = stat.S_IFMT(mode)
    return _KINDS.get(form)


_KINDS = {stat.S_IFREG: Kind.FILE, stat.S_IFDIR: Kind.DIRECTORY, stat.S_IFLNK: Kind.SYMLINK}


def to_entry(path: bytes, row: Row, digest: bytes | None = None) -> Entry:
    """The model's entry of a row; ValueError for what is not replicated."""
    mode, size, mtime_ns, ctime_ns, device, inode, target = row
    kind = kind_of(mode)
    if kind is None:
        raise ValueError(f"{path!r} is neither a file, nor a directory, nor a symlink")
    size = size if kind is Kind.FILE else 0
    return Entry(path, kind, mode & 0o7777, size, mtime_ns, target, digest, ctime_ns, (device, inode))


def has_other_mark(old: Row, new: Row) -> bool:
    """Whether a directory's or symlink's owner or extended attributes are others than they were, as far as is known."""
    return bool(old.ctime_ns) and old.ctime_ns != new.ctime_ns


def is_only_marked(old: Row, new: Row) -> bool:
    """Whether `new` is a directory or symlink as it was, whose owner and extended attributes were not looked at before."""
    is_news = bool(new.ctime_ns) and not old.ctime_ns
    return is_news and not stat.S_ISREG(new.mode) and old._replace(ctime_ns=new.ctime_ns) == new


def is_same_thing(old: Row, new: Row) -> bool:
    """Whether `new` is what `old` was, under another name: the same inode, nothing but ctime and permissions different.

    A rename moves the ctime of what is renamed. A file that was freed and whose inode was given to another is told by its
    size and mtime; a directory needs no more than the inode, what is in it is compared by itself.
    """
    if (old.device, old.inode) != (new.device, new.inode) or stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        return False
    if stat.S_ISDIR(old.mode):
        return True
    return old.size == new.size and old.mtime_ns == new.mtime_ns and old.target == new.target
