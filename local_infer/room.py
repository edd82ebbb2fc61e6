"""How much memory requests and their answers may take together: a body of many small parts takes some twenty times its
bytes, and a whole answer may have tens of megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from core.config_infer import GatewayLimits
from local_infer.fault import RATE_LIMIT, ApiError

_EACH_BYTES = 1 << 20
_LONGEST_AT_ONCE = 8
_CONTAINER_BYTES = 250
_VALUE_BYTES = 40
_BUSY_RETRY_S = 1.0

UNCOUNTED_BYTES = 1 << 16
"""Answers up to this are not counted: what is reckoned for each request has room for them."""


def weigh(body: bytes) -> int:
    """About the bytes of memory that a body and what is parsed of it take (CPython 3.11: an object with a field 232)."""
    containers = body.count(b"{") + body.count(b"[")
    return len(body) + _CONTAINER_BYTES * containers + _VALUE_BYTES * body.count(b",")


class Room:
    """What bodies under way take. A MiB for each request that may be under way, eight of the longest bodies at least."""

    def __init__(self, limits: GatewayLimits) -> None:
        self.held_bytes = 0
        self.answer_bytes = 0
        """Of these, what long answers take."""
        self._sent: dict[int, tuple[Place, int]] = {}
        self.limit(limits)

    def limit(self, limits: GatewayLimits) -> None:
        """Take up limits, first or new ones."""
        # A body of unknown length counts as the longest until it is here: some of them must find room at once.
        self.most_bytes = max(limits.requests * _EACH_BYTES, _LONGEST_AT_ONCE * limits.body)

    def place(self, size_bytes: int) -> Place:
        """A place of that size, held while it is entered."""
        return Place(self, size_bytes)

    def answer_place(self) -> Place:
        """A place for a long answer as it comes, of no size yet. The only one is never too large."""
        return Place(self, 0, of_answer=True)

    @contextmanager
    def sending(self, answer: bytes) -> Iterator[None]:
        """A long answer is held while it is sent; one that many get (a kept one, say) takes its place once."""
        key = id(answer)
        place, count = self._sent.get(key) or (self.answer_place(), 0)
        if not count:
            place.resize(len(answer))
        self._sent[key] = (place, count + 1)
        try:
            yield
        finally:
            place, count = self._sent.pop(key)
            if count > 1:
                self._sent[key] = (place, count - 1)
            else:
                place.resize(0)


class Place:
    """What one request, or one answer, takes; ApiError 429 when there is no room for it."""

    __slots__ = ("_of_answer", "_room", "_size_bytes", "counted")

    def __init__(self, room: Room, size_bytes: int, *, of_answer: bool = False) -> None:
        self._room = room
        self._size_bytes = size_bytes
        self._of_answer = of_answer
        self.counted = False
        """Whether `hold` has taken any."""

    def __enter__(self) -> Place:
        size_bytes, self._size_bytes = self._size_bytes, 0
        self.resize(size_bytes)
        return self

    def hold(self, size_bytes: int) -> None:
        """`resize` for what is nearly always short, and then not counted: call it when it is long, or `counted`."""
        self.counted = size_bytes > UNCOUNTED_BYTES
        self.resize(size_bytes if self.counted else 0)

    def resize(self, size_bytes: int) -> None:
        """Take another size, now that more is known; when there is no room the old one stays."""
        room, old_bytes = self._room, self._size_bytes
        others = room.held_bytes - old_bytes
        # Its own request is there too, when an answer is the only one.
        alone = room.answer_bytes == old_bytes if self._of_answer else not others
        if size_bytes > old_bytes and not alone and others + size_bytes > room.most_bytes:
            raise ApiError(
                429, RATE_LIMIT, "the requests under way take as much memory as the gateway has for them",
                "try again soon", code="overloaded", retry_after_s=_BUSY_RETRY_S,
            )  # fmt: skip
        room.held_bytes = others + size_bytes
        room.answer_bytes += size_bytes - old_bytes if self._of_answer else 0
        self._size_bytes = size_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.resize(0)
