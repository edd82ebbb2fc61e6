"""What daemons exchange messages over: durable streams and keyed last values.

A *stream* is append-only. Each record comes from a source and carries the source's sequence number; a record whose number
is not higher than the last one stored from that source is a repetition and is left out. A subscriber is handed each
stored record once, in order, with its position; it may start after any position that is still kept.

A *value* is the last state of a key, with a revision that rises with every change.

Both shapes exist in NATS JetStream (streams, key-value buckets), so a second implementation needs no third idea.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Record:
    """One message of a stream, numbered by its source."""

    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a publish: how many records were new, and the last sequence now stored from that source."""

    accepted: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Value:
    """The last value of a key."""

    body: bytes
    revision: int


StreamHandler = Callable[[int, bytes], None]
"""Called with (position, body); it must not block."""

ValueHandler = Callable[[str, Value | None], None]
"""Called with (key, value or None when it was deleted); it must not block."""

Unsubscribe = Callable[[], None]


class Bus(Protocol):
    """Publish, subscribe, and keyed last values with compare-and-set. Methods raise BusUnavailable when storing fails."""

    async def publish(self, stream: str, source: str, records: Sequence[Record]) -> Published:
        """Store `records` (rising sequence) and hand them to the subscribers; returns once they are durable."""
        ...

    async def subscribe(self, stream: str, handler: StreamHandler, *, after: int) -> Unsubscribe:
        """Hand every record stored after position `after` to `handler`, then each new one."""
        ...

    async def trim(self, stream: str, *, upto: int, older_than_s: float) -> int:
        """Forget records up to position `upto` that were stored before `older_than_s`; returns how many."""
        ...

    async def get(self, key: str) -> Value | None:
        """The last value of `key`."""
        ...

    async def put(self, key: str, body: bytes, *, expected: int | None = None) -> int:
        """Set `key`, returns its new revision. With `expected` (0: must not exist) BusConflict when it differs."""
        ...

    async def delete(self, key: str) -> None:
        """Forget `key`."""
        ...

    async def items(self, prefix: str) -> Mapping[str, Value]:
        """All keys that start with `prefix`."""
        ...

    def watch(self, prefix: str, handler: ValueHandler) -> Unsubscribe:
        """Call `handler` on each later change of a key that starts with `prefix`."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go."""
        ...
