"""What syncd speaks of: entries of a tree and changes to it. Paths are bytes below the root, as the disk has them."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from core.errors import NearpathError

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
"""PATH_MAX and NAME_MAX of Linux: what a longer one would be called cannot exist on disk."""


UNTOLD = -1
"""As `mtime_ns`: not known, or not to be set. (One nanosecond before the epoch; zero is what reproducible builds use.)"""


class PathError(NearpathError):
    """A path that must not be used below a tree: absolute, with `..`, empty parts, NUL, or too long."""


def check_path(path: bytes) -> bytes:
    """`path` when it is a clean relative path (b"" is the root itself); PathError otherwise.

    Whatever comes from another node goes through here before it touches the disk.
    """
    if not path:
        return path
    if len(path) > MAX_PATH_BYTES:
        raise PathError(f"a path of {len(path)} bytes", f"{MAX_PATH_BYTES} are allowed")
    above, slash, name = path.rpartition(b"/")
    if not _is_name(name) or (slash and not _are_names(above)):
        raise PathError(f"{path!r} is not a path below a tree", "the sender is broken or hostile")
    return path


def join(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`; b"" is the root."""
    return directory + b"/" + name if directory else name


def _is_name(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and len(name) <= MAX_NAME_BYTES and b"\0" not in name


@lru_cache(maxsize=512)
def _are_names(path: bytes) -> bool:
    """Remembered, since neighbours in a batch lie in the same few directories."""
    return all(_is_name(name) for name in path.split(b"/"))


class Kind(Enum):
    """What an entry is. Devices, sockets and fifos are not replicated."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"


class Entry(NamedTuple):
    """One name in a tree, as `lstat` tells it.

    `mode` holds the permission bits only. `size` in bytes counts for files, `target` for symlinks; 0 and b"" otherwise.
    `ctime_ns` and `inode` (device and inode number) never leave the node: they tell cheaply that nothing changed, and which
    names are one file. `digest` is BLAKE2b-256 of a file's content, None until it was read.
    """

    path: bytes
    kind: Kind
    mode: int
    size: int = 0
    mtime_ns: int = 0
    target: bytes = b""
    digest: bytes | None = None
    ctime_ns: int = 0
    inode: tuple[int, int] = (0, 0)


class Op(Enum):
    """What a change says of its path."""

    UPSERT = "u"
    """the entry is new or different: fetch it"""
    DELETE = "x"
    """the entry, with all below it, is gone"""
    RENAME = "r"
    """the entry, with all below it, was moved from `source`; nothing else about it changed"""


class Change(NamedTuple):
    """One line of a journal. `entry` comes with UPSERT and RENAME, `source` with RENAME.

    `source` with UPSERT of a file: another name of the same file (a hard link), as far as the sender knows.
    """

    sequence: int
    op: Op
    path: bytes
    entry: Entry | None = None
    source: bytes = b""
