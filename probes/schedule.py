"""When to probe what: phases spread, gaps jittered, a loss confirmed fast, never two probes of one target at once.

Each target is in one of three states, which decide the gap from the start of one probe to the start of the next:

    state    entered by                                 gap                  left by
    steady   the start; RISE_PROBES successes in rising  interval ± 10 %      a loss -> falling
    falling  a loss in steady or rising                  interval / 2         a success -> rising; FALL_PROBES -> down
    down     FALL_PROBES losses in a row                 interval ± 10 %      a success -> rising
    rising   a success in falling or down                interval / 2         RISE_PROBES -> steady; a loss -> falling

A probe never starts before the one before has ended, so a lost one holds its target for `timeout`. HAProxy's `fastinter`
does the same for servers in transition. `worst_case_down_s` is the bound that follows from it.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from core.messages import Target

JITTER_SHARE = 0.1
FAST_SHARE = 0.5
FALL_PROBES = 5
RISE_PROBES = 5
"""As many fast probes as the appliance's defaults want to see (fall 3, rise 5), with room for a stricter `fall`."""

FIRST_ROUND_S = 1.0
FIRST_ROUND_PER_S = 200
"""A new list is probed once within a second, so that answers are live early, but at most this many starts a second."""

_GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio modulo 1 are spread evenly however many there are (Knuth, TAOCP 3, 6.4)."""

TargetKey = tuple[str, str, int, str]


class Rng(Protocol):
    """A source of random numbers, such as `random.Random`."""

    def random(self) -> float:
        """Uniform in [0, 1)."""


class _State(Enum):
    STEADY = "steady"
    FALLING = "falling"
    DOWN = "down"
    RISING = "rising"


def key_of(target: Target) -> TargetKey:
    """What makes two targets the same one, even when the check's details were changed."""
    return target.mirror, target.check, target.family, target.address


def worst_case_down_s(interval_s: float, timeout_s: float, fall: int = 3) -> float:
    """Longest time from the start of the last good probe until the `fall`-th loss is known.

    1.1 intervals to the first lost probe, then `fall` - 1 gaps of half an interval, or of the timeout where that is
    longer, then the last timeout. Under 3 intervals for `fall` 3 whenever timeout <= 0.63 interval; 4.1 intervals when
    timeout = interval, since a probe must be given its time and two at once would share one fate. Starts that wait for a
    free slot (`concurrency`) come on top.
    """
    gap_s = max(FAST_SHARE * interval_s, timeout_s)
    slow = max(0, fall - FALL_PROBES)
    down_gap_s = max((1 + JITTER_SHARE) * interval_s, timeout_s)
    fast = fall - 1 - slow
    return (1 + JITTER_SHARE) * interval_s + fast * gap_s + slow * down_gap_s + timeout_s


@dataclass(slots=True)
class _Entry:
    target: Target
    due_s: float
    state: _State = _State.STEADY
    streak: int = 0
    started_s: float | None = None
    probed: bool = False


class Schedule:
    """The due times of all targets. `start` hands out what is due, `finish` takes the outcome back."""

    def __init__(self, concurrency: int, rng: Rng) -> None:
        self.concurrency = concurrency
        self._rng = rng
        self._entries: dict[TargetKey, _Entry] = {}
        self._heap: list[tuple[float, TargetKey]] = []
        self._running: set[TargetKey] = set()

    @property
    def size(self) -> int:
        """How many targets there are."""
        return len(self._entries)

    @property
    def running(self) -> int:
        """How many probes are under way."""
        return len(self._running)

    def replace(self, targets: Sequence[Target], now: float) -> None:
        """Probe these from now on; a target that was there before keeps its phase and state. Duplicates count once."""
        fresh = {key_of(target): target for target in targets}
        added = [key for key in fresh if key not in self._entries]
        first_round_s = max(FIRST_ROUND_S, len(added) / FIRST_ROUND_PER_S)
        shift = self._rng.random()
        for key in [key for key in self._entries if key not in fresh]:
            del self._entries[key]
        for key, entry in self._entries.items():
            before_s, entry.target = entry.target.how.interval, fresh[key]
            if entry.target.how.interval < before_s and entry.started_s is None:
                entry.due_s = min(entry.due_s, now + entry.target.how.interval)
        for index, key in enumerate(added):
            phase = (shift + index * _GOLDEN) % 1.0
            due_s = now + phase * min(first_round_s, fresh[key].how.interval)
            self._entries[key] = _Entry(fresh[key], due_s)
        self._heap = [(entry.due_s, key) for key, entry in self._entries.items() if entry.started_s is None]
        heapq.heapify(self._heap)

    def due(self) -> float | None:
        """When `start` will next have something to hand out; None when it waits for a `finish` or a `replace`."""
        if len(self._running) >= self.concurrency:
            return None
        while self._heap:
            due_s, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is None or entry.started_s is not None or key in self._running:
                heapq.heappop(self._heap)
                continue
            return due_s
        return None

    def start(self, now: float) -> list[tuple[Target, float]]:
        """(target, how late in seconds) of all that start now, the most overdue first, within `concurrency`."""
        begun: list[tuple[Target, float]] = []
        while (due_s := self.due()) is not None and due_s <= now:
            _, key = heapq.heappop(self._heap)
            entry = self._entries[key]
            entry.started_s = now
            self._running.add(key)
            begun.append((entry.target, now - due_s))
        return begun

    def finish(self, target: Target, lost: bool | None, now: float) -> bool:
        """A probe of `target` ended (`lost` None: it could not be sent); False when nobody wants it any more."""
        key = key_of(target)
        if key not in self._running:
            raise ValueError(f"no probe of {key} is under way")
        self._running.discard(key)
        entry = self._entries.get(key)
        if entry is None:
            return False
        if entry.started_s is None:
            # The target went and came back while this probe was under way: it is due as a new one.
            heapq.heappush(self._heap, (entry.due_s, key))
            return True
        if lost is not None:
            _step(entry, lost)
        entry.due_s = max(now, entry.started_s + self._gap_s(entry))
        entry.started_s, entry.probed = None, True
        heapq.heappush(self._heap, (entry.due_s, key))
        return True

    def _gap_s(self, entry: _Entry) -> float:
        interval_s = entry.target.how.interval
        if entry.state in (_State.FALLING, _State.RISING):
            return FAST_SHARE * interval_s
        if not entry.probed:
            # The first round was pressed into a second; the second one is drawn apart, and never later than it should.
            return interval_s * (FAST_SHARE + (1 - FAST_SHARE) * self._rng.random())
        return interval_s * (1 + JITTER_SHARE * (2 * self._rng.random() - 1))


def _step(entry: _Entry, lost: bool) -> None:
    match entry.state, lost:
        case ((_State.STEADY | _State.RISING), True):
            entry.state, entry.streak = _State.FALLING, 1
        case _State.FALLING, True:
            entry.streak += 1
            if entry.streak >= FALL_PROBES:
                entry.state, entry.streak = _State.DOWN, 0
        case ((_State.FALLING | _State.DOWN), False):
            entry.state, entry.streak = _State.RISING, 1
        case _State.RISING, False:
            entry.streak += 1
            if entry.streak >= RISE_PROBES:
                entry.state, entry.streak = _State.STEADY, 0
        case _:
            pass
