"""inotify without the kernel: raw bytes into events, and the two halves of a move into one (inotify(7)).

The names stay bytes. The kernel never splits an event over two reads, but a buffer that was cut in a test, or a pipe in
between, is taken up again where it ended.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

# <linux/inotify.h>
MODIFY = 0x2
ATTRIB = 0x4
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
UNMOUNT = 0x2000
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x0100_0000
EXCL_UNLINK = 0x0400_0000
ISDIR = 0x4000_0000

DIRECTORY_MASK = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | ONLYDIR | EXCL_UNLINK
"""What is asked for every directory. MODIFY as well as CLOSE_WRITE: a log is written for days before it is closed."""

WROTE = MODIFY | CLOSE_WRITE

ROOT_MASK = DIRECTORY_MASK | DELETE_SELF | MOVE_SELF
"""The root has nobody above it who would tell that it went away."""

_HEAD = struct.Struct("=iIII")
MAX_NAME_FIELD_BYTES = 4096
"""NAME_MAX + 1 padded to 16 is 256; anything far beyond is not a stream of inotify events."""

MOVE_WINDOW_S = 0.5
"""The kernel queues both halves of a move one after the other; only events of other processors come between."""


class EventError(ValueError):
    """Bytes that are no stream of inotify events."""


class Event(NamedTuple):
    """One event: watch descriptor (-1 for an overflow), mask, cookie of a move, name in the watched directory or b""."""

    wd: int
    mask: int
    cookie: int
    name: bytes


class Decoder:
    """Turns what `read()` gave into events, with whatever was left of the last buffer in front."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """The whole events in `data`; EventError when it cannot be one, after which the stream is of no use."""
        if self._rest:
            data = self._rest + data
        events = []
        at, end = 0, len(data)
        while end - at >= _HEAD.size:
            wd, mask, cookie, name_len = _HEAD.unpack_from(data, at)
            if name_len > MAX_NAME_FIELD_BYTES:
                raise EventError(f"an inotify event with a name of {name_len} bytes")
            after = at + _HEAD.size + name_len
            if after > end:
                break
            name = data[at + _HEAD.size : after].rstrip(b"\0") if name_len else b""
            events.append(Event(wd, mask, cookie, name))
            at = after
        self._rest = data[at:]
        return events


@dataclass(frozen=True, slots=True)
class Move:
    """Both halves of a rename within what is watched."""

    from_wd: int
    from_name: bytes
    to_wd: int
    to_name: bytes
    is_directory: bool


class Moves:
    """Pairs MOVED_FROM with MOVED_TO by cookie, over any number of buffers, within `window_s`."""

    def __init__(self, window_s: float = MOVE_WINDOW_S) -> None:
        self._window_s = window_s
        self._open: dict[int, tuple[float, Event]] = {}

    def moved_from(self, event: Event, now: float) -> None:
        """The first half; it leaves the tree unless the other half comes in time."""
        self._open[event.cookie] = (now, event)

    def moved_to(self, event: Event, now: float) -> Move | None:
        """The second half: the whole move, or None when it came from outside of what is watched."""
        started_s, first = self._open.pop(event.cookie, (0.0, None))
        # A cookie is a counter that starts again one day: an old half is not of this move.
        if first is None or now - started_s > self._window_s or (first.mask ^ event.mask) & ISDIR:
            return None
        return Move(first.wd, first.name, event.wd, event.name, bool(event.mask & ISDIR))

    def expired(self, now: float) -> list[Event]:
        """First halves whose second half did not come: what they name was moved out of the tree."""
        gone = [cookie for cookie, (started_s, _) in self._open.items() if now - started_s > self._window_s]
        return [self._open.pop(cookie)[1] for cookie in gone]

    def forget(self) -> None:
        """After an overflow no half can be trusted to have its other half in the queue."""
        self._open.clear()
