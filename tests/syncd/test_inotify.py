"""The decoder with bytes as the kernel lays them out, and the pairing of moves over time."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.source.inotify import (
    CREATE,
    IGNORED,
    ISDIR,
    MOVED_FROM,
    MOVED_TO,
    Q_OVERFLOW,
    Decoder,
    Event,
    EventError,
    Move,
    Moves,
)


def raw(event: Event) -> bytes:
    """As inotify(7) says: the name is followed by one or more NULs, up to a multiple of the head's size."""
    field = event.name + b"\0" * (16 - len(event.name) % 16) if event.name else b""
    return struct.pack("=iIII", event.wd, event.mask, event.cookie, len(field)) + field


EVENTS = [
    Event(1, CREATE, 0, b"plain"),
    Event(2, CREATE | ISDIR, 0, b"\n-\xff\xfe \xe8\xbf\x91"),
    Event(3, MOVED_FROM, 0xFFFFFFFF, b"x" * 255),
    Event(3, MOVED_TO, 0xFFFFFFFF, b"y" * 16),
    Event(-1, Q_OVERFLOW, 0, b""),
    Event(4, IGNORED, 0, b""),
]


def test_events_whole() -> None:
    assert Decoder().feed(b"".join(map(raw, EVENTS))) == EVENTS


def test_events_byte_by_byte() -> None:
    decoder = Decoder()
    data = b"".join(map(raw, EVENTS))
    assert [event for i in range(len(data)) for event in decoder.feed(data[i : i + 1])] == EVENTS


@given(st.lists(st.integers(0, 600), max_size=8))
def test_events_cut_anywhere(cuts: list[int]) -> None:
    data = b"".join(map(raw, EVENTS))
    at = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    decoder = Decoder()
    assert [e for a, b in itertools.pairwise(at) for e in decoder.feed(data[a:b])] == EVENTS


def test_what_cannot_be_an_event_is_refused() -> None:
    with pytest.raises(EventError, match="1000000 bytes"):
        Decoder().feed(struct.pack("=iIII", 1, CREATE, 0, 1_000_000))


@given(st.binary(max_size=200))
def test_any_bytes_give_events_or_an_event_error(data: bytes) -> None:
    decoder = Decoder()
    try:
        events = decoder.feed(data)
    except EventError:
        return
    assert len(events) <= len(data) // 16


def test_a_move_is_paired_by_its_cookie() -> None:
    moves = Moves(0.5)
    moves.moved_from(Event(1, MOVED_FROM, 7, b"a"), 100.0)
    moves.moved_from(Event(1, MOVED_FROM | ISDIR, 8, b"d"), 100.0)
    assert moves.moved_to(Event(2, MOVED_TO | ISDIR, 8, b"e"), 100.1) == Move(1, b"d", 2, b"e", True)
    assert moves.moved_to(Event(2, MOVED_TO, 7, b"b"), 100.4) == Move(1, b"a", 2, b"b", False)
    assert moves.expired(200.0) == []


def test_a_move_from_outside_has_no_first_half() -> None:
    assert Moves().moved_to(Event(2, MOVED_TO, 7, b"b"), 100.0) is None


def test_a_move_to_the_outside_expires() -> None:
    moves = Moves(0.5)
    first = Event(1, MOVED_FROM, 7, b"a")
    moves.moved_from(first, 100.0)
    assert moves.expired(100.5) == []
    assert moves.expired(100.6) == [first]
    assert moves.moved_to(Event(2, MOVED_TO, 7, b"b"), 100.6) is None


def test_halves_that_do_not_fit_are_not_paired() -> None:
    moves = Moves(0.5)
    moves.moved_from(Event(1, MOVED_FROM | ISDIR, 7, b"a"), 100.0)
    assert moves.moved_to(Event(2, MOVED_TO, 7, b"b"), 100.0) is None
    moves.moved_from(Event(1, MOVED_FROM, 8, b"a"), 100.0)
    assert moves.moved_to(Event(2, MOVED_TO, 8, b"b"), 100.7) is None
    moves.moved_from(Event(1, MOVED_FROM, 9, b"a"), 101.0)
    moves.forget()
    assert moves.moved_to(Event(2, MOVED_TO, 9, b"b"), 101.0) is None
