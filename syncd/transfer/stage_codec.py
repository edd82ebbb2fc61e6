"""What the daemon and its stager (`io_stager_process`) say to each other: a request, then its answer, one after the other.

    request: head, stage, entries (each a head and its path), the bytes that the parent answered
    answer:  head, JSON of what failed, rows of what was written

Both ends are of one release and one host. Only the parent's bytes are of a stranger: nothing here looks into them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from syncd.model import Entry, Kind
from syncd.source.row import Row, Written
from syncd.transfer.wire import MAX_FILES_ASKED, MAX_FILES_BYTES

READY = b"r"
"""What the stager says first of all, once: a request can be sent."""

REQUEST_HEAD = struct.Struct(">?HHII")
"""hard links or not, number of entries, bytes of the stage's path, of the entries, of the parent's answer"""
ANSWER_HEAD = struct.Struct(">II")
"""bytes of the JSON, of the rows"""
MAX_JSON_BYTES = 32 * 1024 * 1024
"""Far more than a reason for each of MAX_FILES_ASKED files takes, with paths whose every byte is escaped."""

_ENTRY = struct.Struct(">HHQqB")  # length of the path, mode, size, mtime_ns, bytes of the digest: 32 or none
_ROW = struct.Struct(">H?IqqqQ")  # index of the entry, known or None, mode, size, mtime_ns, ctime_ns, inode


@dataclass(frozen=True, slots=True)
class Request:
    """What `io_small.stage_answer` takes; the stager gives back what it gives."""

    stage: bytes
    entries: tuple[Entry, ...]
    hard_links: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request: to how many entries there was an answer, those that failed, and what was written.

    `error`: class, what and fix of the error that `stage_answer` raised; what was written before it still counts.
    """

    answered: int
    failed: dict[bytes, str] = field(default_factory=dict)
    written: Written = field(default_factory=dict)
    error: tuple[str, str, str] | None = None


def encode_request(stage: bytes, entries: Sequence[Entry], hard_links: bool, data: bytes) -> bytes:
    """All of a request but `data`, the parent's answer, which follows it as it came."""
    if len(entries) > MAX_FILES_ASKED:
        raise ValueError(f"{len(entries)} files at once; {MAX_FILES_ASKED} are allowed")
    parts: list[bytes] = []
    for entry in entries:
        digest = entry.digest or b""
        head = _ENTRY.pack(len(entry.path), entry.mode, entry.size, entry.mtime_ns, len(digest))
        parts += (head, entry.path, digest)
    body = b"".join(parts)
    head = REQUEST_HEAD.pack(hard_links, len(entries), len(stage), len(body), len(data))
    return head + stage + body


def request_bytes(head: bytes) -> int:
    """How many bytes follow this head of a request."""
    _, _, stage_bytes, entries_bytes, data_bytes = REQUEST_HEAD.unpack(head)
    if data_bytes > MAX_FILES_BYTES:
        raise ValueError(f"{data_bytes} bytes from the parent; {MAX_FILES_BYTES} are allowed")
    return int(stage_bytes + entries_bytes + data_bytes)


def decode_request(head: bytes, body: bytes) -> Request:
    """A request, of its head and what followed it."""
    hard_links, count, at, entries_bytes, _ = REQUEST_HEAD.unpack(head)
    stage, data_at = body[:at], at + entries_bytes
    entries: list[Entry] = []
    for _ in range(count):
        path_bytes, mode, size, mtime_ns, digest_bytes = _ENTRY.unpack_from(body, at)
        at += _ENTRY.size + path_bytes
        path, digest = body[at - path_bytes : at], body[at : at + digest_bytes] or None
        at += digest_bytes
        entries.append(Entry(path, Kind.FILE, mode, size, mtime_ns, b"", digest))
    if at != data_at:
        raise ValueError(f"{count} entries that end at {at}, not at {data_at}")
    return Request(stage, tuple(entries), hard_links, body[data_at:])


def encode_answer(entries: Sequence[Entry], outcome: Outcome) -> bytes:
    """An answer, to a request for `entries`; each path in it is one of theirs."""
    index = {entry.path: number for number, entry in enumerate(entries)}
    rows: list[bytes] = []
    for path, row in outcome.written.items():
        if row is None:
            rows.append(_ROW.pack(index[path], False, 0, 0, 0, 0, 0))
        else:
            rows.append(_ROW.pack(index[path], True, row.mode, row.size, row.mtime_ns, row.ctime_ns, row.inode))
    failed = [(index[path], why) for path, why in outcome.failed.items()]
    fields = {"answered": outcome.answered, "failed": failed, "error": outcome.error}
    told = json.dumps(fields).encode()
    return b"".join([ANSWER_HEAD.pack(len(told), len(rows) * _ROW.size), told, *rows])


def answer_bytes(head: bytes, asked: int) -> int:
    """How many bytes follow this head of an answer to a request for `asked` files; ValueError when too many."""
    told_bytes, rows_bytes = ANSWER_HEAD.unpack(head)
    if told_bytes > MAX_JSON_BYTES or rows_bytes > asked * _ROW.size:
        raise ValueError(f"an answer of {told_bytes} and {rows_bytes} bytes to {asked} files")
    return int(told_bytes + rows_bytes)


def decode_answer(head: bytes, body: bytes, entries: Sequence[Entry]) -> Outcome:
    """The answer to a request for `entries`, of its head and what followed; ValueError or LookupError when it is none."""
    told_bytes, _ = ANSWER_HEAD.unpack(head)
    fields = json.loads(body[:told_bytes])
    written: Written = {}
    for index, is_known, mode, size, mtime_ns, ctime_ns, inode in _ROW.iter_unpack(memoryview(body)[told_bytes:]):
        row = Row(mode, size, mtime_ns, ctime_ns, 0, inode, b"") if is_known else None
        written[entries[index].path] = row
    failed = {entries[index].path: why for index, why in fields["failed"]}
    error = fields["error"]
    return Outcome(fields["answered"], failed, written, tuple(error) if error else None)
