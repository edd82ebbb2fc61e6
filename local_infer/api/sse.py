"""Server-sent events as the OpenAI API uses them (WHATWG HTML 9.2): cutting a byte stream at event borders, writing events.

Events are passed on as the bytes they came in; only who needs what is in them calls `data_of`. So a character that an
upstream split over two chunks is never decoded in halves.
"""

from __future__ import annotations

import re

DONE = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 4 << 20
"""An event that does not end within this is no event: the upstream is broken, and memory must not grow with it."""

# Events end at a blank line; lines end with CR LF, LF or CR. The last alternative must not match half of `\r\n\r\n`.
_END_RE = re.compile(rb"\r\n\r\n|\n\n|\r\r(?!\n)")
_LINE_RE = re.compile(rb"\r\n|\n|\r")


class Overlong(ValueError):
    """An event longer than MAX_EVENT_BYTES."""


class Splitter:
    """Bytes in as they come, whole events out; what is left at the end is an event that was cut."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> bytes:
        """All events completed by `data`, as one run of bytes; empty: none yet. Overlong when one does not end."""
        rest = self._rest
        if not rest and data.endswith(b"\n\n"):
            return data  # the common case: an upstream writes whole events
        # Borders lie in the new part, or begin in the three bytes before it. What lies before those is neither looked at
        # nor copied again: an upstream that dribbles a long event must not cost its square.
        seen = max(0, len(rest) - 3)
        rest += data
        end = _last_end(rest, seen)
        events = bytes(rest[:end])
        del rest[:end]
        if len(rest) > MAX_EVENT_BYTES:
            raise Overlong(f"an event of over {MAX_EVENT_BYTES} bytes")
        return events

    @property
    def held_bytes(self) -> int:
        """What the begun event takes."""
        return len(self._rest)

    @property
    def rest(self) -> bytes:
        """The begun event; empty at a clean end."""
        return bytes(self._rest)


def _last_end(data: bytearray, start: int) -> int:
    """Where the last event that ends after `start` ends; 0: none does."""
    found = data.rfind(b"\n\n", start)
    end = found + 2 if found >= 0 else 0
    if data.find(b"\r", start) >= 0:
        for match in _END_RE.finditer(data, start):
            end = max(end, match.end())
    return end


def split_events(data: bytes) -> list[bytes]:
    """The events in a run of whole ones, each with its blank line."""
    events, at = [], 0
    for match in _END_RE.finditer(data):
        events.append(data[at : match.end()])
        at = match.end()
    return events


def data_of(event: bytes) -> bytes:
    """The data of one event: its `data` lines, joined by LF; empty when it has none (a comment, say)."""
    lines = []
    for line in _LINE_RE.split(event):
        name, _colon, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines)


def write_event(data: bytes) -> bytes:
    """One event that carries `data` (JSON, so without line ends)."""
    return b"data: " + data + b"\n\n"


def ends_with_done(events: bytes) -> bool:
    """Whether the last event of a run is `[DONE]`."""
    return events.rstrip(b"\r\n").endswith((b"data: [DONE]", b"data:[DONE]"))


def up_to_done(events: bytes) -> bytes:
    """A run of events without what comes after the first `[DONE]` in it."""
    first = events.find(b"[DONE]")
    if first < 0 or (events[first + 6 :].strip(b"\r\n") == b"" and ends_with_done(events)):
        return events  # nearly always
    at = 0
    for event in split_events(events):
        at += len(event)
        if data_of(event) == b"[DONE]":
            return events[:at]
    return events
