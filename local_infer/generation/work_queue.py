"""The queue in front of the models: who is next, who waits in vain, how many run together, what to unload.

Pure: `now` is an argument. Strict priority (interactive, background, shadow, prefetch), then first come, first served:
nobody waits for shadows and prefetches, so they may starve.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from local_infer.model import Priority

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Waiting(Generic[K]):
    """One who waits, until `deadline_s`; `part` is what it waits for."""

    key: K
    part: str
    priority: Priority
    deadline_s: float
    number: int

    @property
    def rank(self) -> tuple[int, int]:
        """Lower is next."""
        return self.priority, self.number


class WorkQueue(Generic[K]):
    """At most `most` wait. Keys are the caller's, and unique."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting: dict[K, Waiting[K]] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, key: K, part: str, priority: Priority, deadline_s: float, now: float) -> list[K]:
        """Queue `key`; returns who must leave for it: those who wait in vain, and the last of a lower priority.

        When that includes `key` itself, there was no room for it, or no time.
        """
        left = self.expire(now)
        if deadline_s <= now:
            return [*left, key]
        self._count += 1
        mine = Waiting(key, part, priority, deadline_s, self._count)
        if len(self._waiting) >= self.most:
            last = max(self._waiting.values(), key=lambda one: one.rank, default=mine)
            if last.priority <= priority:
                return [*left, key]
            del self._waiting[last.key]
            left.append(last.key)
        self._waiting[key] = mine
        return left

    def expire(self, now: float) -> list[K]:
        """Who waited in vain, taken out."""
        late = [one.key for one in self._waiting.values() if one.deadline_s <= now]
        for key in late:
            del self._waiting[key]
        return late

    def remove(self, key: K) -> None:
        """Take out who waits no more; harmless when it is not there."""
        self._waiting.pop(key, None)

    def waiting(self, priority: Priority) -> int:
        """How many of a priority wait."""
        return sum(one.priority is priority for one in self._waiting.values())

    def next_part(self, parts: Iterable[str]) -> str | None:
        """Of `parts`, the one that the next in order waits for."""
        wanted = frozenset(parts)
        ready = [one for one in self._waiting.values() if one.part in wanted]
        return min(ready, key=lambda one: one.rank).part if ready else None

    def parts(self) -> list[str]:
        """The parts that somebody waits for, the most urgent first."""
        return list(dict.fromkeys(one.part for one in sorted(self._waiting.values(), key=lambda one: one.rank)))

    def take(self, part: str, count: int) -> list[K]:
        """The next `count` for a part, in order, taken out. A batch never mixes priorities: the urgent wait for nobody."""
        mine = sorted((one for one in self._waiting.values() if one.part == part), key=lambda one: one.rank)
        taken = [one.key for one in mine[:count] if one.priority is mine[0].priority]
        for key in taken:
            del self._waiting[key]
        return taken

    def take_all(self, part: str) -> list[K]:
        """Everybody who waits for a part, taken out."""
        keys = [one.key for one in self._waiting.values() if one.part == part]
        for key in keys:
            del self._waiting[key]
        return keys


def batch_size(waiting: int, most: int, spare_bytes: int, item_bytes: int) -> int:
    """How many of `waiting` are run together: as many as there are, but what they need must fit into half of `spare_bytes`
    (memory above the floor). At least one, and at most `most`; `item_bytes` is what one needed before (0: not known).
    """
    fits = max(1, spare_bytes // 2 // item_bytes) if item_bytes > 0 else most
    return max(1, min(waiting, most, fits))


@dataclass(frozen=True, slots=True)
class Held:
    """A loaded model: when it was last used, and about what memory it holds. A busy one stays."""

    name: str
    used_s: float
    size_bytes: int
    busy: bool


def to_unload(held: Sequence[Held], available_bytes: int, floor_bytes: int) -> list[str]:
    """What to unload so that `floor_bytes` are available again: the longest unused first, of those the largest."""
    names = []
    for one in sorted((one for one in held if not one.busy), key=lambda one: (one.used_s, -one.size_bytes)):
        if available_bytes >= floor_bytes:
            break
        names.append(one.name)
        available_bytes += max(one.size_bytes, 1)
    return names


def may_load(size_bytes: int, available_bytes: int, floor_bytes: int) -> bool:
    """Whether a model of `size_bytes` (0: not known) may be loaded without going below the floor."""
    return available_bytes - size_bytes >= floor_bytes
