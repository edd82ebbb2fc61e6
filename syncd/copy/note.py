"""The note of a publish: what has to be recorded when its steps are done, so that a crash between both is made up for.

It is written with the intent, read by the same daemon only: a compact form, with no limits but those of the disk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import MessageError, NearpathError
from syncd.model import Change, Entry, Kind, Op
from syncd.transfer.change_codec import pack_changes, unpack_changes
from syncd.transfer.wire import Cursor


class NoteError(NearpathError):
    """A note that cannot be read."""


@dataclass(frozen=True, slots=True)
class Note:
    """What one publish brings the tree to.

    `changes` are those that were planned, in order; `later` those that could not be done yet, in terms of the tree
    afterwards; `refused` paths are left out for good. `cursor`: where the parent's journal is gone on from; None when this
    is a part of something larger.
    """

    changes: tuple[Change, ...]
    later: tuple[Change, ...] = ()
    refused: tuple[bytes, ...] = ()
    cursor: Cursor | None = None
    deletes: tuple[tuple[float, int], ...] | None = None
    """what `RecentDeletes` keeps from then on; None: as before"""


def encode_note(note: Note) -> bytes:
    """Bytes of a note: a line of JSON with all that is little, then the changes as a journal page has them."""
    cursor = [note.cursor.journal.hex(), note.cursor.sequence] if note.cursor else None
    refused = [path.decode("latin-1") for path in note.refused]
    fields = [len(note.changes), _rows(note.later), refused, cursor, note.deletes]
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n" + pack_changes(note.changes)


def decode_note(data: bytes) -> Note:
    """The note in `data`; NoteError when it is damaged."""
    try:
        line, _, packed = data.partition(b"\n")
        changes, later, refused, cursor, *rest = json.loads(line)
        deletes = rest[0] if rest else None
        is_older = isinstance(changes, list)  # of a syncd that wrote all in the one line
        return Note(
            tuple(_change(row) for row in changes) if is_older else unpack_changes(packed, changes),
            tuple(_change(row) for row in later),
            tuple(path.encode("latin-1") for path in refused),
            Cursor(bytes.fromhex(cursor[0]), int(cursor[1])) if cursor else None,
            None if deletes is None else tuple((float(at), int(count)) for at, count in deletes),
        )
    except (ValueError, TypeError, IndexError, AttributeError, MessageError) as error:
        raise NoteError(
            "the note of a publish is damaged", "the disk is read anew, and what is undone is done again"
        ) from error


def encode_changes(changes: Sequence[Change]) -> bytes:
    """Bytes of changes that wait."""
    return json.dumps(_rows(changes), separators=(",", ":")).encode()


def decode_changes(data: bytes) -> tuple[Change, ...]:
    """The changes in `data`; NoteError when they are damaged."""
    try:
        return tuple(_change(row) for row in json.loads(data))
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise NoteError("the changes that wait are damaged", "`syncd verify` finds what is missing") from error


def _rows(changes: Sequence[Change]) -> list[list[Any]]:
    return [_row(change) for change in changes]


def _row(change: Change) -> list[Any]:
    # latin-1 gives every byte a character, and back.
    row: list[Any] = [change.sequence, change.op.value, change.path.decode("latin-1"), change.source.decode("latin-1")]
    if (entry := change.entry) is not None:
        row += [entry.kind.value, entry.mode, entry.size, entry.mtime_ns, entry.target.decode("latin-1")]
        row += [entry.digest.hex()] if entry.digest is not None else []
    return row


def _change(row: list[Any]) -> Change:
    sequence, op, path, source, *rest = row
    path = path.encode("latin-1")
    entry = None
    if rest:
        kind, mode, size, mtime_ns, target, *digest = rest
        content = bytes.fromhex(digest[0]) if digest else None
        entry = Entry(path, Kind(kind), mode, size, mtime_ns, target.encode("latin-1"), content)
    return Change(sequence, Op(op), path, entry, source.encode("latin-1"))
