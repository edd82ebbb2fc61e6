"""Changes as bytes: what no parent sends is refused, field by field. That the others arrive is shown in test_wire."""

from __future__ import annotations

import struct

import pytest

from core.errors import MessageError
from syncd.model import Change, Entry, Kind, Op
from syncd.transfer.change_codec import pack_changes, unpack_changes

HEAD = struct.Struct(">cQccHQqHHHB")


def packed(
    op: bytes = b"u",
    path: bytes = b"a",
    kind: bytes = b"f",
    n: int = 1,
    mode: int = 0o644,
    size: int = 1,
    mtime_ns: int = 2,
    source: bytes = b"",
    target: bytes = b"",
    digest: bytes = b"",
    mark: bytes = b"/",
    flag: int | None = None,
) -> bytes:
    """A change as the format says, whatever is in it."""
    has_digest = bool(digest) if flag is None else flag
    lengths = (len(path), len(source), len(target), has_digest)
    return HEAD.pack(op, n, kind, mark, mode, size, mtime_ns, *lengths) + path + source + target + digest


FILE = Entry(b"a", Kind.FILE, 0o644, 1, 2)


def test_the_format() -> None:
    for data, change in [
        (packed(), Change(1, Op.UPSERT, b"a", FILE)),
        (packed(op=b"r", source=b"b"), Change(1, Op.RENAME, b"a", FILE, b"b")),
        (packed(source=b"b"), Change(1, Op.UPSERT, b"a", FILE, b"b")),
        (packed(digest=b"d" * 32), Change(1, Op.UPSERT, b"a", Entry(b"a", Kind.FILE, 0o644, 1, 2, digest=b"d" * 32))),
        (
            packed(kind=b"l", size=0, target=b"t"),
            Change(1, Op.UPSERT, b"a", Entry(b"a", Kind.SYMLINK, 0o644, 0, 2, b"t")),
        ),
        (packed(kind=b"d", size=0, path=b""), Change(1, Op.UPSERT, b"", Entry(b"", Kind.DIRECTORY, 0o644, 0, 2))),
        (packed(op=b"x", kind=b"-", mode=0, size=0, mtime_ns=0), Change(1, Op.DELETE, b"a")),
    ]:
        assert pack_changes([change]) == data
        assert unpack_changes(data, 1) == (change,)
        assert unpack_changes(data * 3, 3) == (change,) * 3


@pytest.mark.parametrize(
    "data",
    [
        packed(path=b"../etc/passwd"),
        packed(path=b"/etc/passwd"),
        packed(path=b"a/../b"),
        packed(path=b"a\0b"),
        packed(path=b"a//b"),
        packed(path=b""),
        packed(path=b"x" * 256),
        packed(path=b"a/" * 4000 + b"a"),
        packed(op=b"r"),
        packed(op=b"r", source=b"../a"),
        packed(op=b"r", path=b"", source=b"a", kind=b"d", size=0),
        packed(op=b"z"),
        packed(op=b"z", digest=b"d" * 32),
        packed(op=b"x"),
        packed(op=b"x", kind=b"-"),
        packed(op=b"x", kind=b"-", mode=0, size=0, mtime_ns=0, path=b""),
        packed(op=b"x", kind=b"-", mode=0, size=0, mtime_ns=0, source=b"b"),
        packed(kind=b"d", size=0, source=b"b"),
        packed(op=b"u", kind=b"-", mode=0, size=0, mtime_ns=0),
        packed(kind=b"b"),
        packed(mode=0o10000),
        packed(size=2**63),
        packed(mtime_ns=-(2**63)),
        packed(n=2**63),
        packed(target=b"b"),
        packed(flag=1),
        packed(flag=2, digest=b"d" * 64),
        packed(mark=b"."),
        packed(kind=b"d", size=1),
        packed(kind=b"d", size=0, digest=b"d" * 32),
        packed(kind=b"l", size=0),
        packed(kind=b"l", size=0, target=b"\0"),
        packed(kind=b"l", size=0, target=b"x" * 5000),
        packed(kind=b"l", target=b"x"),
        packed(kind=b"l", size=0, target=b"x", mode=0o10000),
        packed() + b"x",
    ],
)
def test_changes_that_no_parent_sends_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        unpack_changes(data, 1)


def test_more_or_fewer_changes_than_were_promised_are_refused() -> None:
    for count in (0, 1, 3):
        with pytest.raises(MessageError):
            unpack_changes(packed() * 2, count)
