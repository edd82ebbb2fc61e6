"""The mark of a directory or symlink: a number that is another when its owner or an extended attribute is.

A file tells that by its ctime. That of a directory moves with every name in it, and so says nothing.
"""

from __future__ import annotations

import hashlib
import os
import struct
from functools import lru_cache

NO_MARK = 0
"""It was not looked at."""
_BITS = 63
"""What SQLite has for a number without a sign."""


def mark_of(found: os.stat_result, place: int | bytes) -> int:
    """The mark of what `found` is the stat of; `place`: its descriptor, or a path whose last part is not followed."""
    try:
        names = os.listxattr(place) if isinstance(place, int) else os.listxattr(place, follow_symlinks=False)
        if not names:
            return _mark(found.st_uid, found.st_gid, ())
        if isinstance(place, int):
            values = tuple((name, os.getxattr(place, name)) for name in sorted(names))
        else:
            values = tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in sorted(names))
    except OSError:
        # A file system without them; or it is going just now, which is told by itself.
        values = ()
    return _mark(found.st_uid, found.st_gid, values)


@lru_cache(maxsize=4096)
def _mark(uid: int, gid: int, values: tuple[tuple[str, bytes], ...]) -> int:
    digest = hashlib.blake2b(struct.pack(">QQ", uid, gid), digest_size=8)
    for name, value in values:
        digest.update(struct.pack(">II", len(name), len(value)) + os.fsencode(name) + value)
    return (int.from_bytes(digest.digest(), "big") >> (64 - _BITS)) or 1
