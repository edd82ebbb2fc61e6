"""Single flight: equal requests under way are made once, and their answer is shared; streams from their first event.

A flight is one task that asks, and pumps a stream into one buffer; every waiter reads it with a cursor of its own. A
waiter may leave at any time without the others noticing; when the last one leaves, the task is cancelled, and with it the
upstream.

The buffer keeps the whole answer up to a limit. Past it the answer will not be kept, nobody can join any more, what all
have read is dropped, those who lag behind by the limit fall out with an error event, and the pump waits for the fastest.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from local_infer.api.sse import ends_with_done, write_event
from local_infer.fault import SERVER, ApiError, Unreachable
from local_infer.model import Answer, Stream

DRAIN_S = 5.0
"""Time an upstream gets to end its response after `[DONE]`: the connection can be used again then."""

Landed = Callable[[Answer, bytes], bool]
"""Told of a complete answer at the moment it is complete; says whether it was kept."""

_LAGGED = ApiError(503, SERVER, "the answer was read too slowly", "ask again", code="reader_too_slow")


@dataclass(frozen=True, slots=True)
class Boarded:
    """An answer from a flight: whether somebody else had begun it, and whether it is kept (known of whole ones only)."""

    answer: Answer
    collapsed: bool
    stored: bool


class Flights:
    """The flights under way, by key."""

    def __init__(self, buffer_bytes: int) -> None:
        self.buffer_bytes = buffer_bytes
        self._newest: dict[bytes, _Flight] = {}
        self._all: set[_Flight] = set()

    def __len__(self) -> int:
        return len(self._all)

    @property
    def buffered_bytes(self) -> int:
        """What all buffers hold."""
        return sum(flight.held for flight in self._all)

    def under_way(self, key: bytes) -> bool:
        """Whether a request of this key is being made, and can be joined."""
        return key in self._newest

    async def join(
        self, key: bytes, start: Callable[[], Awaitable[Answer]], landed: Landed, *, alone: bool = False
    ) -> Boarded:
        """The answer of the flight of `key`; without one (or `alone`: for who wants nothing older) `start()` begins it.

        Raises what `start()` raises, to everyone who waits.
        """
        flight = None if alone else self._newest.get(key)
        collapsed = flight is not None
        if flight is None:
            flight = self._begin(key, start, landed)
        reader = _Reader(flight)
        try:
            answer = await asyncio.shield(flight.begun)
        except BaseException:
            reader.leave()
            raise
        if isinstance(answer.body, bytes):
            reader.leave()
            return Boarded(answer, collapsed, flight.stored)
        return Boarded(replace(answer, body=reader), collapsed, False)

    def background(
        self, key: bytes, start: Callable[[], Awaitable[Answer]], landed: Landed
    ) -> asyncio.Task[None] | None:
        """Begin a flight that goes on without waiters; others may join. Its task, or None: there is one under way."""
        if key in self._newest:
            return None
        flight = self._begin(key, start, landed)
        flight.alone = True
        return flight.task

    def _begin(self, key: bytes, start: Callable[[], Awaitable[Answer]], landed: Landed) -> _Flight:
        flight = _Flight(self, key, landed)
        self._newest[key] = flight
        self._all.add(flight)
        flight.task = asyncio.create_task(flight.fly(start), name="flight")
        flight.task.add_done_callback(flight.gone)
        return flight

    def close_door(self, flight: _Flight) -> None:
        """Nobody can join this flight any more; the next equal request begins another."""
        if self._newest.get(flight.key) is flight:
            del self._newest[flight.key]

    def forget(self, flight: _Flight) -> None:
        """The flight is over."""
        self.close_door(flight)
        self._all.discard(flight)

    async def close(self) -> None:
        """Cancel all that is under way; who waits gets Unreachable."""
        tasks = [flight.task for flight in self._all]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Flight:
    """One request under way. `chunks` are what is still held, from number `base` on."""

    task: asyncio.Task[None]

    def __init__(self, flights: Flights, key: bytes, landed: Landed) -> None:
        self.key = key
        self.begun: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        # Weak: a reader that was dropped unread must not keep its flight alive.
        self.readers: set[weakref.ref[_Reader]] = set()
        self.chunks: list[bytes] = []
        self.base = 0
        self.held = 0
        self.ended = False
        self.error: BaseException | None = None
        self.stored = False
        self.alone = False
        self._flights = flights
        self._landed = landed
        self._too_long = False
        self._room: asyncio.Future[None] | None = None
        self._drain: asyncio.TimerHandle | None = None

    async def fly(self, start: Callable[[], Awaitable[Answer]]) -> None:
        """Ask, and pump the answer to its end."""
        try:
            answer = await start()
        except asyncio.CancelledError:
            self._fail(Unreachable("stopping", {}))
            raise
        except Exception as error:
            self._fail(error)
            return
        if isinstance(answer.body, bytes):
            self.stored = self._landed(answer, answer.body)
            self._end()
            self.begun.set_result(answer)
            return
        self.begun.set_result(answer)
        await self._pump(answer, answer.body)

    async def _pump(self, answer: Answer, stream: Stream) -> None:
        try:
            async for chunk in stream:
                if self.ended:
                    continue  # after [DONE]: only until the response ends
                self._take(chunk)
                if ends_with_done(chunk):
                    self._complete(answer)
                while self.held > self._flights.buffer_bytes and not self.ended:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        except asyncio.CancelledError:
            self._stop(Unreachable("stopping", {}))
            raise
        except Exception as error:
            self._stop(error)
        else:
            self._stop(None)
        finally:
            await stream.aclose()

    def _take(self, chunk: bytes) -> None:
        self.chunks.append(chunk)
        self.held += len(chunk)
        if self.held > self._flights.buffer_bytes:
            self._too_long = True
            self._flights.close_door(self)
            self.make_room()
        self._wake()

    def _complete(self, answer: Answer) -> None:
        # Clients leave at [DONE]: waiting for the end of the response would mean that nothing is ever kept.
        if not self._too_long:
            self.stored = self._landed(answer, b"".join(self.chunks))
        self._end()
        self._wake()
        self._drain = asyncio.get_running_loop().call_later(DRAIN_S, self.task.cancel)

    def _stop(self, error: BaseException | None) -> None:
        if not self.ended:
            self.error = error
            self._end()
        self._wake()

    def _fail(self, error: BaseException) -> None:
        self._end()
        if not self.begun.done():
            # Its traceback holds the frame that runs this flight: a ring that only the cycle collector would free, late.
            self.begun.set_exception(error.with_traceback(None))
            self.begun.exception()  # seen, also when everybody has left

    def _end(self) -> None:
        self.ended = True
        self._flights.close_door(self)

    def gone(self, task: asyncio.Task[None]) -> None:
        """The task has ended, however: a cancelled one may never have run."""
        # A cancelled task gives its exception up when it is asked for it, and with it the frames in the traceback, this
        # flight and its request: else only the cycle collector would free them, late.
        with suppress(asyncio.CancelledError):
            task.exception()
        if self._drain is not None:
            self._drain.cancel()
        self._fail(Unreachable("stopping", {}))
        self._wake()
        self._flights.forget(self)

    def _wake(self) -> None:
        for reader in self._present():
            reader.wake()

    def _present(self) -> list[_Reader]:
        return [reader for ref in self.readers if (reader := ref()) is not None]

    # -- readers

    def make_room(self) -> None:
        """Drop what all have read, and while there is too much what only those who lag have not."""
        if not self._too_long or self.ended:
            return
        places = [reader.at for reader in self._present() if reader.at >= self.base]
        if not places:
            if self.alone:
                self.task.cancel()  # too long to be kept, and nobody reads it
            return
        drop = min(places) - self.base
        furthest = max(places) - self.base
        left = self.held - sum(map(len, self.chunks[:drop]))
        while left > self._flights.buffer_bytes and drop < furthest:
            left -= len(self.chunks[drop])
            drop += 1
        if drop > 0:
            del self.chunks[:drop]
            self.base += drop
            self.held = left
            self._wake()
        if self._room is not None and not self._room.done() and self.held <= self._flights.buffer_bytes:
            self._room.set_result(None)

    def leave(self, reader: _Reader) -> None:
        """A reader is gone; with the last one goes the flight, unless it is at its end anyway."""
        self.readers.discard(reader.ref)
        if not self.readers and not self.alone and not self.ended:
            self._flights.close_door(self)
            self.task.cancel()
        else:
            self.make_room()


class _Reader(AsyncGenerator[bytes, None]):
    """A cursor in a flight, and the flight's reason to go on. Not a generator function: `aclose()` of one that was never
    iterated does nothing, and the flight would go on for ever.
    """

    def __init__(self, flight: _Flight) -> None:
        self.at = 0
        self._flight = flight
        self._sleep: asyncio.Future[None] | None = None
        self._over = False
        self.ref = weakref.ref(self)
        flight.readers.add(self.ref)

    def leave(self) -> None:
        """Read no more."""
        if not self._over:
            self._over = True
            self._flight.leave(self)
            self.wake()

    def wake(self) -> None:
        """There is something to look at."""
        if self._sleep is not None and not self._sleep.done():
            self._sleep.set_result(None)

    async def __anext__(self) -> bytes:
        flight = self._flight
        while not self._over:
            at = self.at - flight.base
            if at < 0:
                self.leave()
                return write_event(_LAGGED.body())
            chunks = flight.chunks
            if at < len(chunks):
                data = chunks[at] if at == len(chunks) - 1 else b"".join(chunks[at:])
                self.at = flight.base + len(chunks)
                flight.make_room()
                return data
            if flight.ended:
                self.leave()
                if flight.error is not None:
                    raise flight.error.with_traceback(None)
                break
            self._sleep = asyncio.get_running_loop().create_future()
            try:
                await self._sleep
            except asyncio.CancelledError:
                self.leave()
                raise
        raise StopAsyncIteration

    async def asend(self, _value: None) -> bytes:
        """As for the next one: nothing can be sent."""
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> Any:
        """End, with the error."""
        self.leave()
        raise typ

    async def aclose(self) -> None:
        """Leave; the flight is cancelled if this was the last one."""
        self.leave()

    def __del__(self) -> None:
        # Dropped unread, without aclose(): still the flight must not go on for nobody.
        if not self._over and not self._flight.task.get_loop().is_closed():
            self.leave()
