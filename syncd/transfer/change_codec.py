"""Changes as bytes, one after the other: what a journal batch carries.

Each is a head of fixed size, then path, source, target of a symlink, and digest. There is one encoding of every change;
whatever is not of its form is a MessageError.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from core.errors import MessageError
from syncd.model import MAX_PATH_BYTES, Change, Entry, Kind, Op, PathError, check_path

_HEAD = struct.Struct(">cQccHQqHHHB")
"""op, sequence, kind (`-`: no entry), a mark, mode, size, mtime_ns, lengths of path, source, target, digest or not"""

_MARK, _NO_KIND, _DIGEST_BYTES = b"/", b"-", 32
_MAX_NUMBER = 2**63 - 1
_OPS = {op.value.encode(): op for op in Op}
_KINDS = {kind.value.encode(): kind for kind in Kind}
_FORMS = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l"}
_OP_CODES = {op: code for code, op in _OPS.items()}
_KIND_CODES = {kind: code for code, kind in _KINDS.items()}


class PackedChanges(Sequence[Change]):
    """Changes that are bytes already; they are decoded only when somebody looks at one."""

    def __init__(self, packed: bytes, count: int) -> None:
        self.packed = packed
        self._count = count
        self._changes: tuple[Change, ...] | None = None

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Change: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Change]: ...

    def __getitem__(self, index: int | slice) -> Change | Sequence[Change]:
        return self._unpacked()[index]

    def __iter__(self) -> Iterator[Change]:
        return iter(self._unpacked())

    def _unpacked(self) -> tuple[Change, ...]:
        if self._changes is None:
            self._changes = unpack_changes(self.packed, self._count)
        return self._changes


def pack_upserts(rows: Iterable[tuple[int, bytes, int, int, int, bytes, bytes | None]]) -> bytes:
    """As `pack_changes`, of upserts given as (sequence, path, st_mode, size, mtime_ns, target, digest)."""
    parts: list[bytes] = []
    pack = _HEAD.pack
    for sequence, path, mode, size, mtime_ns, target, digest in rows:
        form = _FORMS[stat.S_IFMT(mode)]
        flag = 0 if digest is None else 1
        head = pack(b"u", sequence, form, _MARK, mode & 0o7777, size, mtime_ns, len(path), 0, len(target), flag)
        parts += (head, path, target, digest) if digest is not None else (head, path, target)
    return b"".join(parts)


def pack_changes(changes: Iterable[Change]) -> bytes:
    """Bytes of changes. What only one node knows of an entry (ctime, inode) stays there."""
    if isinstance(changes, PackedChanges):
        return changes.packed
    parts: list[bytes] = []
    for change in changes:
        entry, path, source = change.entry, change.path, change.source
        if entry is None:
            head = _HEAD.pack(
                _OP_CODES[change.op], change.sequence, _NO_KIND, _MARK, 0, 0, 0, len(path), len(source), 0, 0
            )
            parts += (head, path, source)
            continue
        digest = entry.digest or b""
        head = _HEAD.pack(
            _OP_CODES[change.op],
            change.sequence,
            _KIND_CODES[entry.kind],
            _MARK,
            entry.mode,
            entry.size,
            entry.mtime_ns,
            len(path),
            len(source),
            len(entry.target),
            bool(digest),
        )
        parts += (head, path, source, entry.target, digest)
    return b"".join(parts)


def unpack_changes(data: bytes, count: int) -> tuple[Change, ...]:
    """The `count` changes in `data`; MessageError unless they are all of it, and each is one of a real tree."""
    changes: list[Change] = []
    at, end = 0, len(data)
    unpack = _HEAD.unpack_from
    for _ in range(count):
        if end - at < _HEAD.size:
            raise MessageError(f"a journal batch with {len(changes)} changes where {count} were promised", "it was cut")
        code, sequence, kind, mark, mode, size, mtime_ns, path_len, source_len, target_len, flag = unpack(data, at)
        at += _HEAD.size
        middle = at + path_len
        path = data[at:middle]
        at = middle + source_len + target_len + _DIGEST_BYTES * flag
        if at > end or mark != _MARK or flag > 1 or sequence > _MAX_NUMBER:
            raise MessageError("a journal batch with a malformed change", "it was cut, or the sender is broken")
        _check(path)
        if kind == _NO_KIND:
            if code != b"x" or not path or mode or size or mtime_ns or source_len or target_len or flag:
                raise _malformed(path)
            changes.append(Change(sequence, Op.DELETE, path))
        elif source_len or target_len or flag or code != b"u" or kind != b"f":
            source = data[middle : middle + source_len]
            target = data[middle + source_len : middle + source_len + target_len]
            digest = data[at - _DIGEST_BYTES : at] if flag else None
            entry = _entry(path, kind, mode, size, mtime_ns, target, digest)
            changes.append(_rarer(sequence, code, path, source, entry))
        else:
            if mode > 0o7777 or size > _MAX_NUMBER or mtime_ns < -_MAX_NUMBER or not path:
                raise _malformed(path)
            changes.append(Change(sequence, Op.UPSERT, path, Entry(path, Kind.FILE, mode, size, mtime_ns)))
    if at != end:
        raise MessageError(f"a journal batch with more than the {count} changes it promised", "the sender is broken")
    return tuple(changes)


def _entry(path: bytes, code: bytes, mode: int, size: int, mtime_ns: int, target: bytes, digest: bytes | None) -> Entry:
    kind = _KINDS.get(code)
    if kind is None:
        raise MessageError(f"an entry of kind {code!r}", "the parent runs a newer syncd")
    # One encoding of everything, as in a listing: see manifest.decode_listing.
    if bool(target) != (kind is Kind.SYMLINK) or b"\0" in target or len(target) >= MAX_PATH_BYTES:
        raise MessageError(f"{path!r} has a malformed target", "the sender is broken or hostile")
    if kind is not Kind.FILE and (size or digest):
        raise MessageError(f"{path!r} has what only a file has", "the sender is broken or hostile")
    if mode > 0o7777 or size > _MAX_NUMBER or mtime_ns < -_MAX_NUMBER:
        raise _malformed(path)
    return Entry(path, kind, mode, size, mtime_ns, target, digest)


def _rarer(sequence: int, code: bytes, path: bytes, source: bytes, entry: Entry) -> Change:
    op = _OPS.get(code)
    if op is None:
        raise MessageError(f"a change of kind {code!r}", "the parent runs a newer syncd")
    is_link = op is Op.UPSERT and entry.kind is Kind.FILE and bool(source)
    if op is Op.DELETE or (bool(source) != (op is Op.RENAME) and not is_link):
        raise _malformed(path)
    if not path and (op is Op.RENAME or entry.kind is not Kind.DIRECTORY):
        raise MessageError(f"a change ({op.value}) of the root itself", "the sender is broken or hostile")
    _check(source)
    return Change(sequence, op, path, entry, source)


def _check(path: bytes) -> None:
    try:
        check_path(path)
    except PathError as error:
        raise MessageError(error.what, error.fix) from None


def _malformed(path: bytes) -> MessageError:
    return MessageError(f"a malformed change of {path!r}", "the sender is broken or hostile")
