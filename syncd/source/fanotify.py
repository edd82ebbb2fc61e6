"""fanotify without the kernel: raw bytes of a group that reports directory handles and names into events (fanotify(7)).

A directory is told by its handle, not by a number that the kernel gave out for it. The handle is made one integer here, its
*number*: the same for as long as the directory lives, wherever it is moved, and never used again. It is unique within one
file system; which of them an event is of (fsid) is not looked at, since a group here has one mark.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol

# <linux/fanotify.h>
MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
CREATE = 0x100
DELETE = 0x200
Q_OVERFLOW = 0x4000
RENAME = 0x1000_0000
ONDIR = 0x4000_0000

CLOEXEC = 0x1
NONBLOCK = 0x2
REPORT_FID = 0x200
REPORT_DIR_FID = 0x400
REPORT_NAME = 0x800
REPORT_TARGET_FID = 0x1000

MARK_ADD = 0x1
MARK_FILESYSTEM = 0x100

GROUP_FLAGS = CLOEXEC | NONBLOCK | REPORT_FID | REPORT_DIR_FID | REPORT_NAME | REPORT_TARGET_FID
"""FAN_CLASS_NOTIF is 0. The handle of the directory that was moved or deleted itself is wanted too (TARGET_FID): the kernel
merges an event with an equal one anywhere in its queue, so what is at a name by now need not be what the event is of."""

EVENT_MASK = MODIFY | ATTRIB | CLOSE_WRITE | CREATE | DELETE | RENAME | ONDIR
"""What is asked for the file system. RENAME tells both ends in one event; MOVED_FROM and MOVED_TO would say it again."""

WROTE = MODIFY | CLOSE_WRITE

_METADATA = struct.Struct("=IBBHQii")
_METADATA_VERSION = 3
_RECORD = struct.Struct("=BBH")
_HANDLE = struct.Struct("=Ii")
_FSID_BYTES = 8

_FID = 1
_DFID_NAME = 2
_DFID = 3
_OLD_DFID_NAME = 10
_NEW_DFID_NAME = 12
_MAY_BE_OURS = RENAME | ONDIR | Q_OVERFLOW
"""With one of these an event may be of the tree though the directory it tells first is not."""
_WITH_HANDLE = frozenset({_FID, _DFID_NAME, _DFID, _OLD_DFID_NAME, _NEW_DFID_NAME})

MAX_EVENT_BYTES = 4096
"""Three records with a handle (MAX_HANDLE_SZ is 128) and two with a name of 255 bytes are less than 1,100 bytes."""

SELF = b"."
"""The name in an event of a directory itself."""


class EventError(ValueError):
    """Bytes that are no stream of fanotify events."""


class Event(NamedTuple):
    """One event; a directory's number is 0 where none was told.

    `directory` and `name` say where it happened (for a rename: where it was), `new_directory` and `new_name` where it is
    after a rename, `target` what was created, deleted, renamed or changed itself.
    """

    mask: int
    directory: int = 0
    name: bytes = b""
    target: int = 0
    new_directory: int = 0
    new_name: bytes = b""


class Known(Protocol):
    """The numbers of the directories that are known."""

    def __contains__(self, number: int, /) -> bool: ...


def number_of(handle_type: int, handle: bytes) -> int:
    """The number of a directory by its `struct file_handle` (name_to_handle_at(2))."""
    return int.from_bytes(_HANDLE.pack(len(handle), handle_type) + handle, "little")


class Decoder:
    """Turns what `read()` gave into events, with whatever was left of the last buffer in front.

    `foreign` counts the events that were left out since nothing in them is of a known directory.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.foreign = 0

    def feed(self, data: bytes, known: Known | None = None) -> list[Event]:
        """The whole events in `data`; EventError when it cannot be one, after which the stream is of no use.

        With `known`, only events of which a directory's number, or a renamed or deleted directory's own, is in it.
        """
        if self._rest:
            data = self._rest + data
        events = []
        done = 0
        for mask, at, end in _events(data):
            event = _event(mask, data, at, end, known)
            if event is None:
                self.foreign += 1
            else:
                events.append(event)
            done = end
        self._rest = data[done:]
        return events


def tells_of(data: bytes, known: Known) -> tuple[int, bool]:
    """(whole events looked at, whether one of them is of what is `known`); nothing is decoded behind the first that is."""
    count = 0
    foreign = b""
    for mask, at, end in _events(data):
        count += 1
        is_plain = not mask & _MAY_BE_OURS
        # Most events of a busy directory come one after the other: the same handle as before, then, and only that is seen.
        if is_plain and foreign and data.startswith(foreign, at + _RECORD.size):
            continue
        if _event(mask, data, at, end, known) is not None:
            return count, True
        foreign = _handle_at(data, at) if is_plain else b""
    return count, False


def _handle_at(data: bytes, at: int) -> bytes:
    """File system and handle of the record at `at`; b"" unless it is that of a directory with a name."""
    kind, _, _ = _RECORD.unpack_from(data, at)
    if kind != _DFID_NAME:
        return b""
    handle_bytes, _ = _HANDLE.unpack_from(data, at + _RECORD.size + _FSID_BYTES)
    return data[at + _RECORD.size : at + _RECORD.size + _FSID_BYTES + _HANDLE.size + handle_bytes]


def _events(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(mask, where the information records begin, where they end) of each whole event."""
    at, end = 0, len(data)
    while end - at >= _METADATA.size:
        event_bytes, version, _, metadata_bytes, mask, _, _ = _METADATA.unpack_from(data, at)
        if version != _METADATA_VERSION:
            raise EventError(f"fanotify events of version {version}, not {_METADATA_VERSION}")
        if not _METADATA.size <= metadata_bytes <= event_bytes <= MAX_EVENT_BYTES:
            raise EventError(f"a fanotify event of {event_bytes} bytes with {metadata_bytes} bytes of metadata")
        if event_bytes > end - at:
            return
        yield mask, at + metadata_bytes, at + event_bytes
        at += event_bytes


def _event(mask: int, data: bytes, at: int, end: int, known: Known | None) -> Event | None:
    """The event whose information records are `data[at:end]`; None when it is of nothing that is known."""
    directory = target = new_directory = 0
    name = new_name = b""
    while at < end:
        if end - at < _RECORD.size:
            raise EventError(f"{end - at} bytes behind the last record of a fanotify event")
        kind, _, record_bytes = _RECORD.unpack_from(data, at)
        if not _RECORD.size <= record_bytes <= end - at:
            raise EventError(f"a fanotify record of {record_bytes} bytes in {end - at}")
        if kind in _WITH_HANDLE:
            number, name_at = _number_at(data, at, at + record_bytes)
            if kind == _FID:
                target = number
            elif kind == _NEW_DFID_NAME:
                new_directory, new_name = number, _name_at(data, name_at, at + record_bytes)
            else:
                if known is not None and number not in known and not mask & _MAY_BE_OURS:
                    return None  # the commonest of foreign events: not looked into any further
                directory = number
                name = _name_at(data, name_at, at + record_bytes) if kind != _DFID else SELF
        at += record_bytes
    is_ours = (
        known is None
        or mask & Q_OVERFLOW
        or directory in known
        or (new_directory and new_directory in known)
        or (mask & ONDIR and target in known)
    )
    return Event(mask, directory, name, target, new_directory, new_name) if is_ours else None


def _number_at(data: bytes, at: int, end: int) -> tuple[int, int]:
    """(number, where the name begins) of the record `data[at:end]`."""
    number_at = at + _RECORD.size + _FSID_BYTES
    handle_at = number_at + _HANDLE.size
    if handle_at > end:
        raise EventError(f"a fanotify record of {end - at} bytes has no room for a handle")
    handle_end = handle_at + _HANDLE.unpack_from(data, number_at)[0]
    if handle_end > end:
        raise EventError(f"a file handle of {handle_end - handle_at} bytes does not fit in its fanotify record")
    return int.from_bytes(data[number_at:handle_end], "little"), handle_end


def _name_at(data: bytes, at: int, end: int) -> bytes:
    """The name up to its NUL; the record is padded behind it."""
    stop = data.find(b"\0", at, end)
    if stop < 0:
        raise EventError("a name without its end in a fanotify record")
    return data[at:stop]
