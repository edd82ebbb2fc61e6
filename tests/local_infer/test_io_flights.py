"""Single flight: one source, many readers; leaving, errors, long streams. Sources are stepped by the test, not by time."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_infer.api.sse import DONE
from local_infer.cache.io_flights import Boarded, Flights
from local_infer.fault import Unreachable
from local_infer.model import Answer, Stream
from tests.local_infer.cache_asks import answered, read_all

KEY = b"k"
ROOM = 1000


async def settle(turns: int = 12) -> None:
    """Let everything that can run do so."""
    for _ in range(turns):
        await asyncio.sleep(0)


@dataclass
class Upstream:
    """A source that gives what the test puts in; None ends it, an exception is raised."""

    items: asyncio.Queue[bytes | Exception | None] = field(default_factory=asyncio.Queue)
    begin: asyncio.Event = field(default_factory=asyncio.Event)
    fail: Exception | None = None
    whole: bytes | None = None
    asked: int = 0
    given: int = 0
    cancelled: int = 0
    closed: int = 0
    landed: list[bytes] = field(default_factory=list)

    async def start(self) -> Answer:
        self.asked += 1
        try:
            await self.begin.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fail is not None:
            raise self.fail
        return answered(self.whole if self.whole is not None else self.stream())

    async def stream(self) -> Stream:
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.given += 1
                yield item
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.closed += 1

    def land(self, _answer: Answer, body: bytes) -> bool:
        self.landed.append(body)
        return True

    def put(self, *items: bytes | Exception | None) -> None:
        for item in items:
            self.items.put_nowait(item)


def boarding(flights: Flights, source: Upstream, *, alone: bool = False) -> asyncio.Task[Boarded]:
    return asyncio.create_task(flights.join(KEY, source.start, source.land, alone=alone))


def stream_of(boarded: Boarded) -> Stream:
    assert not isinstance(boarded.answer.body, bytes)
    return boarded.answer.body


async def begun(flights: Flights, source: Upstream, count: int) -> list[Stream]:
    source.begin.set()
    return [stream_of(each) for each in await asyncio.gather(*(boarding(flights, source) for _ in range(count)))]


async def test_a_whole_answer_is_asked_for_once() -> None:
    flights, source = Flights(ROOM), Upstream(whole=b"{}")
    waiting = [boarding(flights, source) for _ in range(50)]
    await settle()
    assert flights.under_way(KEY)
    source.begin.set()
    boarded = await asyncio.gather(*waiting)
    assert source.asked == 1
    assert [each.answer.body for each in boarded] == [b"{}"] * 50
    assert [each.collapsed for each in boarded] == [False] + [True] * 49
    assert all(each.stored for each in boarded)
    assert source.landed == [b"{}"]
    await settle()
    assert len(flights) == 0


async def test_late_readers_get_what_was_sent_before_at_once() -> None:
    flights, source = Flights(ROOM), Upstream()
    (first,) = await begun(flights, source, 1)
    for chunk in (b"a", b"b"):
        source.put(chunk)
        assert await anext(first) == chunk
    (late,) = await begun(flights, source, 1)
    assert await anext(late) == b"ab"
    source.put(b"c", DONE, None)
    assert [await read_all(answered(each)) for each in (first, late)] == [b"c" + DONE] * 2
    assert source.asked == 1
    assert source.landed == [b"abc" + DONE]


async def test_each_may_leave_without_the_others_noticing_and_the_last_cancels() -> None:
    flights, source = Flights(ROOM), Upstream()
    one, two, three = await begun(flights, source, 3)
    source.put(b"a")
    assert [await anext(each) for each in (one, two, three)] == [b"a"] * 3
    await one.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(one)
    reading = asyncio.create_task(anext(two))
    await settle()
    reading.cancel()  # as when the client's handler is cancelled while it waits for the next event
    with pytest.raises(asyncio.CancelledError):
        await reading
    source.put(b"b")
    assert await anext(three) == b"b"
    assert source.cancelled == source.closed == 0
    await three.aclose()
    assert not flights.under_way(KEY)  # who comes now must not board a flight that is being cancelled
    await settle()
    assert (source.cancelled, source.closed, source.landed, len(flights)) == (1, 1, [], 0)


async def test_who_waits_for_the_beginning_may_leave_too() -> None:
    flights, source = Flights(ROOM), Upstream()
    one, two = boarding(flights, source), boarding(flights, source)
    await settle()
    one.cancel()
    await settle()
    assert source.cancelled == 0
    two.cancel()
    await settle()
    assert (one.cancelled(), two.cancelled(), source.cancelled, len(flights)) == (True, True, 1, 0)


async def test_one_that_never_read_cancels_too() -> None:
    for leave in ("close", "drop"):
        flights, source = Flights(ROOM), Upstream()
        readers = await begun(flights, source, 1)
        if leave == "close":
            await readers[0].aclose()
        readers.clear()
        gc.collect()
        await settle()
        assert (source.cancelled, len(flights)) == (1, 0), leave


async def test_an_error_at_the_start_reaches_all() -> None:
    flights, source = Flights(ROOM), Upstream(fail=Unreachable("connect", {"east": "refused"}))
    waiting = [boarding(flights, source) for _ in range(3)]
    await settle()
    source.begin.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert results == [source.fail] * 3
    assert source.asked == 1
    await settle()
    assert len(flights) == 0
    assert not flights.under_way(KEY)


async def test_an_error_in_the_middle_reaches_all_after_what_came_before() -> None:
    flights, source = Flights(ROOM), Upstream()
    one, two = await begun(flights, source, 2)
    source.put(b"a", OSError("reset"))
    assert await anext(one) == b"a"
    await settle()
    assert await anext(two) == b"a"
    for each in (one, two):
        with pytest.raises(OSError, match="reset"):
            await anext(each)
    assert source.landed == []


async def test_a_stream_without_done_ends_and_is_not_kept() -> None:
    flights, source = Flights(ROOM), Upstream()
    one, two = await begun(flights, source, 2)
    source.put(b"a", b'data: {"error":{}}\n\n', None)
    assert [await read_all(answered(each)) for each in (one, two)] == [b'adata: {"error":{}}\n\n'] * 2
    assert source.landed == []


async def test_clients_that_leave_at_done_do_not_undo_it() -> None:
    """As all clients of the API do: the upstream has not even ended its response."""
    flights, source = Flights(ROOM), Upstream()
    (only,) = await begun(flights, source, 1)
    source.put(b"a", DONE)
    await settle()
    assert await anext(only) == b"a" + DONE
    await only.aclose()
    assert source.landed == [b"a" + DONE]
    await settle()
    assert (source.cancelled, source.closed) == (0, 0)  # it may end by itself: its connection can be used again
    assert not flights.under_way(KEY)
    source.put(None)
    await settle()
    assert (source.cancelled, source.closed, len(flights)) == (0, 1, 0)


async def test_who_wants_nothing_older_begins_anew_and_later_ones_join_that() -> None:
    flights, old, new = Flights(ROOM), Upstream(whole=b"old"), Upstream(whole=b"new")
    waiting = [boarding(flights, old)]
    await settle()
    waiting += [boarding(flights, new, alone=True)]
    await settle()
    waiting += [boarding(flights, old)]
    await settle()
    old.begin.set()
    new.begin.set()
    assert [each.answer.body for each in await asyncio.gather(*waiting)] == [b"old", b"new", b"new"]
    assert (old.asked, new.asked) == (1, 1)


async def test_a_long_stream_waits_for_its_reader_and_is_not_kept() -> None:
    flights, source = Flights(ROOM), Upstream()
    (only,) = await begun(flights, source, 1)
    source.put(*([b"x" * 300] * 20), DONE, None)
    await settle(60)
    assert source.given == 4  # 1,200 bytes: over the limit, no more is taken in
    assert not flights.under_way(KEY)  # too late to join from the start
    assert await read_all(answered(only)) == b"x" * 6000 + DONE
    assert source.landed == []
    assert flights.buffered_bytes <= ROOM + 300


async def test_of_a_long_stream_those_who_lag_fall_out_with_an_error_event() -> None:
    flights, source = Flights(ROOM), Upstream()
    fast, slow = await begun(flights, source, 2)
    source.put(b"a" * 300)
    assert await anext(slow) == b"a" * 300
    read = b""
    for _ in range(10):
        source.put(b"x" * 300)
        read += await anext(fast)
    assert flights.buffered_bytes <= ROOM
    event = await anext(slow)
    assert b"reader_too_slow" in event
    assert event.startswith(b"data: {")
    with pytest.raises(StopAsyncIteration):
        await anext(slow)
    source.put(DONE, None)
    assert read + await read_all(answered(fast)) == b"a" * 300 + b"x" * 3000 + DONE


async def test_in_the_background_nobody_waits_but_others_may_join() -> None:
    flights, source = Flights(ROOM), Upstream()
    task = flights.background(KEY, source.start, source.land)
    assert task is not None
    assert flights.background(KEY, source.start, source.land) is None
    (reader,) = await begun(flights, source, 1)
    await reader.aclose()
    source.put(b"a", DONE, None)
    await task
    assert (source.asked, source.landed, source.cancelled) == (1, [b"a" + DONE], 0)


async def test_in_the_background_a_stream_too_long_to_be_kept_is_given_up() -> None:
    flights, source = Flights(ROOM), Upstream()
    flights.background(KEY, source.start, source.land)
    source.begin.set()
    source.put(*([b"x" * 300] * 20))
    await settle(60)
    assert (source.given, source.closed, len(flights)) == (4, 1, 0)


async def test_closing_tells_all_who_wait() -> None:
    flights, waiting, streaming = Flights(ROOM), Upstream(), Upstream()
    (reader,) = await begun(flights, streaming, 1)
    other = asyncio.create_task(flights.join(b"other", waiting.start, waiting.land))
    await settle()
    await flights.close()
    with pytest.raises(Unreachable):
        await other
    with pytest.raises(Unreachable):
        await anext(reader)
    assert (waiting.cancelled, streaming.cancelled, len(flights)) == (1, 1, 0)


acts = st.lists(st.tuples(st.sampled_from(["send", "join", "read", "leave", "cancel"]), st.integers(0, 4)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(acts, st.sampled_from(["done", "cut", "error"]))
def test_whatever_others_do_each_reads_the_stream_from_its_start(script: list[tuple[str, int]], end: str) -> None:
    asyncio.run(_play(script, end))


async def _play(script: list[tuple[str, int]], end: str) -> None:
    flights, source = Flights(10_000), Upstream()
    (first,) = await begun(flights, source, 1)
    readers, read, sent = [first], {0: b""}, b""
    gone: set[int] = set()
    for what, n in script:
        at = n % len(readers)
        if what == "send":
            chunk = b"data: %d\n\n" % len(sent)
            sent += chunk
            source.put(chunk)
        elif what == "join" and len(gone) < len(readers):
            readers += await begun(flights, source, 1)
            read[len(readers) - 1] = b""
        elif what == "read" and at not in gone and len(read[at]) < len(sent):
            read[at] += await anext(readers[at])
        elif what == "cancel" and at not in gone and len(read[at]) == len(sent):
            task = asyncio.create_task(anext(readers[at]))
            await settle(2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            gone.add(at)
        elif what == "leave" and at not in gone:
            await readers[at].aclose()
            gone.add(at)
        await settle(2)
    alive = len(gone) < len(readers)
    last = {"done": [DONE, None], "cut": [None], "error": [OSError("cut")]}[end]
    source.put(*last)
    for at in set(range(len(readers))) - gone:
        try:
            async for chunk in readers[at]:
                read[at] += chunk
        except OSError:
            assert end == "error"
        assert read[at] == sent + (DONE if end == "done" else b"")
    await settle()
    assert all(sent.startswith(read[at]) for at in gone)
    assert source.landed == ([sent + DONE] if end == "done" and alive else [])
    assert (source.asked, source.closed, len(flights)) == (1, 1, 0)
