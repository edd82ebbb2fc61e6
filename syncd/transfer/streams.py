"""Transfers: how a batch is split over parallel streams, when a path that failed is tried again, how fast it may go."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Protocol

from core.errors import NearpathError
from syncd.publish.plan import Fetch

FILE_COST_BYTES = 32 * 1024
"""A small file costs about as much as so many bytes: rsync does some 30,000 small files a second, or about 1 GB."""
MIN_STREAM_BYTES = 4 * 1024 * 1024
"""Below this a stream of its own costs more (a process, a handshake) than it gains."""
MAX_STREAMS = 4
MAX_BATCH_FILES = 50_000
"""So that progress is recorded now and then, and rsync's file list stays small (about 100 bytes a file)."""

FIRST_RETRY_S = 2.0
MAX_RETRY_S = 1800.0
"""Soon enough that a file made readable at the parent is there within half an hour without anybody's help."""

_DAY_MINUTES = 24 * 60


def split(fetches: Iterable[Fetch], streams: int = MAX_STREAMS) -> tuple[tuple[Fetch, ...], ...]:
    """Fetches for up to `streams` rsyncs side by side, of about equal cost, each in order of path.

    `exact` ones are kept apart, since they need an option of their own: so there may be one stream more. A single large
    file cannot be split, and hard links between files of different streams become copies. No stream has more than
    MAX_BATCH_FILES; further ones are to be run one after another.
    """
    normal: list[Fetch] = []
    exact: list[Fetch] = []
    for fetch in fetches:
        (exact if fetch.exact else normal).append(fetch)
    batches = [part for kind in (normal, exact) for part in _balance(kind, max(1, min(streams, MAX_STREAMS)))]
    return tuple(batch[i : i + MAX_BATCH_FILES] for batch in batches for i in range(0, len(batch), MAX_BATCH_FILES))


def _balance(fetches: list[Fetch], streams: int) -> list[tuple[Fetch, ...]]:
    """Longest first, each to the stream that has least: at most 4/3 of the best possible (Graham 1969)."""
    total = sum(_cost(fetch) for fetch in fetches)
    streams = min(streams, len(fetches), 1 + total // MIN_STREAM_BYTES)
    if streams <= 1:
        return [tuple(fetches)] if fetches else []
    bins: list[list[Fetch]] = [[] for _ in range(streams)]
    loads = [(0, number) for number in range(streams)]
    for fetch in sorted(fetches, key=lambda f: (-_cost(f), f.entry.path)):
        load, number = heapq.heappop(loads)
        bins[number].append(fetch)
        heapq.heappush(loads, (load + _cost(fetch), number))
    return [tuple(sorted(part, key=lambda f: f.entry.path)) for part in bins]


def _cost(fetch: Fetch) -> int:
    return fetch.entry.size + FILE_COST_BYTES


# --- again --------------------------------------------------------------------------------------------------------------


class Rng(Protocol):
    """The part of random.Random that is used."""

    def uniform(self, a: float, b: float) -> float:
        """A float between a and b."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A path that could not be fetched: how often, since when (`now` of the first time), why, and when it is due again."""

    path: bytes
    tries: int
    since: float
    due: float
    why: str


class Retries:
    """Paths that failed, each with a back-off of its own: one unreadable file does not slow down the others."""

    def __init__(self) -> None:
        self._troubles: dict[bytes, Trouble] = {}

    def failed(self, path: bytes, why: str, now: float, rng: Rng) -> Trouble:
        """Note a failure; due again after 2, 4, 8 ... 1800 s, a quarter more or less so that nodes do not march in step."""
        old = self._troubles.get(path)
        tries = old.tries + 1 if old else 1
        wait_s = min(FIRST_RETRY_S * 2.0 ** min(tries - 1, 30), MAX_RETRY_S) * rng.uniform(0.75, 1.25)
        trouble = Trouble(path, tries, old.since if old else now, now + wait_s, why)
        self._troubles[path] = trouble
        return trouble

    def forget(self, path: bytes) -> None:
        """The path arrived, or is not wanted any more."""
        self._troubles.pop(path, None)

    def due(self, now: float) -> tuple[bytes, ...]:
        """Paths to try now."""
        return tuple(sorted(path for path, trouble in self._troubles.items() if trouble.due <= now))

    def next_due(self) -> float | None:
        """When to ask `due` again; None while nothing is in trouble."""
        return min((trouble.due for trouble in self._troubles.values()), default=None)

    def most_tries(self) -> int:
        """Of the path that was tried most often; 0 when nothing is in trouble."""
        return max((trouble.tries for trouble in self._troubles.values()), default=0)

    def troubles(self) -> tuple[Trouble, ...]:
        """All of them, those in trouble for longest first: for `syncd status`."""
        return tuple(sorted(self._troubles.values(), key=lambda trouble: (trouble.since, trouble.path)))


# --- bandwidth ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the day with a limit: from `start` to before `end` (minutes of the day), over midnight when end <= start.

    `days`: of the start, 0 is Monday; empty for all. `limit_bytes_s` 0: no limit.
    """

    start: int
    end: int
    limit_bytes_s: int
    days: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if not (0 <= self.start < _DAY_MINUTES and 0 <= self.end <= _DAY_MINUTES and self.limit_bytes_s >= 0):
            raise NearpathError(f"bandwidth window {self}", "times are between 00:00 and 24:00, limits not negative")

    def holds(self, day: int, minute: int) -> bool:
        """Whether it is open at `minute` of weekday `day`."""
        if self.start < self.end:
            return self._on(day) and self.start <= minute < self.end
        return (self._on(day) and minute >= self.start) or (self._on((day - 1) % 7) and minute < self.end)

    def _on(self, day: int) -> bool:
        return not self.days or day in self.days


def limit_at(schedule: Sequence[Window], wall_s: float, zone: tzinfo) -> int:
    """The limit in bytes/s at a wall time in time zone `zone`: of the first window that is open; 0 is no limit."""
    at = datetime.fromtimestamp(wall_s, zone)
    minute = at.hour * 60 + at.minute
    return next((w.limit_bytes_s for w in schedule if w.holds(at.weekday(), minute)), 0)


def share(limit_bytes_s: int, streams: int) -> int:
    """What each of so many streams may take, that together they keep the limit; 0 stays no limit."""
    return max(1024, limit_bytes_s // max(1, streams)) if limit_bytes_s else 0
