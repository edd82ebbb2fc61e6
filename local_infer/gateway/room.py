"""How much memory requests under way may take together: a body of many small parts takes some twenty times its bytes."""

from __future__ import annotations

from types import TracebackType

from core.config_infer import GatewayLimits
from local_infer.fault import RATE_LIMIT, ApiError

_EACH_BYTES = 1 << 20
_LONGEST_AT_ONCE = 8
_CONTAINER_BYTES = 250
_VALUE_BYTES = 40
_BUSY_RETRY_S = 1.0


def weigh(body: bytes) -> int:
    """About the bytes of memory that a body and what is parsed of it take (CPython 3.11: an object with a field 232)."""
    containers = body.count(b"{") + body.count(b"[")
    return len(body) + _CONTAINER_BYTES * containers + _VALUE_BYTES * body.count(b",")


class Room:
    """What bodies under way take. A MiB for each request that may be under way, eight of the longest bodies at least."""

    def __init__(self, limits: GatewayLimits) -> None:
        self.held_bytes = 0
        self.limit(limits)

    def limit(self, limits: GatewayLimits) -> None:
        """Take up limits, first or new ones."""
        # A body of unknown length counts as the longest until it is here: some of them must find room at once.
        self.most_bytes = max(limits.requests * _EACH_BYTES, _LONGEST_AT_ONCE * limits.body)

    def place(self, size_bytes: int) -> Place:
        """A place of that size, held while it is entered."""
        return Place(self, size_bytes)


class Place:
    """What one request takes; ApiError 429 when there is no room for it."""

    __slots__ = ("_room", "_size_bytes")

    def __init__(self, room: Room, size_bytes: int) -> None:
        self._room = room
        self._size_bytes = size_bytes

    def __enter__(self) -> Place:
        size_bytes, self._size_bytes = self._size_bytes, 0
        self.resize(size_bytes)
        return self

    def resize(self, size_bytes: int) -> None:
        """Take another size, now that more is known; when there is no room the old one stays."""
        others = self._room.held_bytes - self._size_bytes
        if others and others + size_bytes > self._room.most_bytes:
            raise ApiError(
                429, RATE_LIMIT, "the requests under way take as much memory as the gateway has for them",
                "try again soon", code="overloaded", retry_after_s=_BUSY_RETRY_S,
            )  # fmt: skip
        self._room.held_bytes = others + size_bytes
        self._size_bytes = size_bytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._room.held_bytes -= self._size_bytes
        self._size_bytes = 0
