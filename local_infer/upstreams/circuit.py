"""When an upstream is left alone, and how many second tries all upstreams together may cost. Pure: time is an argument.

The circuit breaker of one upstream:

| state     | success                            | failure                                         | time                 |
|-----------|------------------------------------|-------------------------------------------------|----------------------|
| CLOSED    | counted                            | counted; share of failures too high -> OPEN     |                      |
| OPEN      | of an earlier request: ignored     | of an earlier request: ignored                  | over -> HALF_OPEN    |
| HALF_OPEN | of the trial -> CLOSED, count new  | of the trial -> OPEN, for twice as long         |                      |

In HALF_OPEN one request at a time is let through, the trial; if it is given up without an outcome (the client left), the
next one is. Each request carries a `Ticket`, so that outcomes of requests from before a change of state move nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from core.config_infer import Breaker as BreakerRules

_SLOTS = 10
"""A window is counted in so many slots: old counts leave a tenth at a time, and a busy hour costs no more memory."""

RETRY_WINDOW_S = 10.0
HEDGE_WINDOW_S = 60.0
"""Longer than for retries: hedges have no floor, so that a quiet gateway must be able to save up for one."""

RETRY_FLOOR = 3
"""Retries in a window that are always allowed: a share of few requests is none (Envoy's min_retry_concurrency is 3)."""


class CircuitState(Enum):
    """May an upstream be asked?"""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Ticket:
    """Leave to ask an upstream once: of which period of the breaker it is, and whether it is the trial."""

    period: int
    trial: bool = False


class Window:
    """Two counts (of what, the owner says) over the last `length_s`, in ten slots."""

    __slots__ = ("_counts", "_slot_s", "_slots")

    def __init__(self, length_s: float) -> None:
        self._slot_s = length_s / _SLOTS
        self.clear()

    def clear(self) -> None:
        """Forget all counts."""
        self._slots = [-1] * _SLOTS
        self._counts = [[0, 0] for _ in range(_SLOTS)]

    def add(self, which: int, now: float) -> None:
        """Count one for 0 or 1."""
        slot = int(now / self._slot_s)
        at = slot % _SLOTS
        if self._slots[at] != slot:
            self._slots[at] = slot
            self._counts[at] = [0, 0]
        self._counts[at][which] += 1

    def totals(self, now: float) -> tuple[int, int]:
        """Both counts over the slots that are not too old."""
        oldest = int(now / self._slot_s) - _SLOTS
        zero = one = 0
        for slot, counts in zip(self._slots, self._counts, strict=True):
            if slot > oldest:
                zero += counts[0]
                one += counts[1]
        return zero, one


class Circuit:
    """The breaker of one upstream, and its ejection as an outlier; see the table at the head of this module."""

    __slots__ = (
        "_ejections",
        "_openings",
        "_outcomes",
        "_period",
        "_rules",
        "_since_s",
        "_trial",
        "ejected_until_s",
        "open_until_s",
    )

    def __init__(self, rules: BreakerRules) -> None:
        self._rules = rules
        self._outcomes = Window(rules.window)
        self._period = 0
        self._openings = 0
        self._ejections = 0
        self._trial = False
        self._since_s = -math.inf
        self.open_until_s: float | None = None
        self.ejected_until_s = -math.inf

    def state(self, now: float) -> CircuitState:
        """The state as of `now`."""
        if self.open_until_s is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now < self.open_until_s else CircuitState.HALF_OPEN

    def would_admit(self, now: float) -> bool:
        """Whether `admit` would give leave."""
        return self.open_until_s is None or (now >= self.open_until_s and not self._trial)

    def admit(self, now: float) -> Ticket | None:
        """Leave to ask; None while the circuit is open or a trial is under way. Hand the ticket back with the outcome."""
        if self.open_until_s is None:
            return Ticket(self._period)
        if now < self.open_until_s or self._trial:
            return None
        self._trial = True
        return Ticket(self._period, trial=True)

    def succeeded(self, ticket: Ticket, now: float) -> None:
        """The request was answered."""
        if ticket.period != self._period:
            return
        if ticket.trial:
            self._move(None, now)
        else:
            self._outcomes.add(0, now)

    def failed(self, ticket: Ticket, now: float) -> bool:
        """The request failed; True when that opened the circuit."""
        if ticket.period != self._period:
            return False
        if not ticket.trial:
            self._outcomes.add(1, now)
            good, bad = self._outcomes.totals(now)
            if good + bad < self._rules.least or bad <= self._rules.error_share * (good + bad):
                return False
            if now - self._since_s > max(self._time_s(self._openings), self._rules.window):
                # It stayed closed for longer than it was open: the trouble before was another one.
                self._openings = 0
        self._openings += 1
        self._move(now + self._time_s(self._openings), now)
        return True

    def abandoned(self, ticket: Ticket) -> None:
        """The request was given up from our side and says nothing about the upstream."""
        if ticket.trial and ticket.period == self._period:
            self._trial = False

    def retry_now(self, now: float) -> None:
        """News from outside that it may be well again: the next request is the trial."""
        if self.open_until_s is not None:
            self.open_until_s = min(self.open_until_s, now)

    def eject(self, now: float) -> None:
        """Leave a slow upstream out for a while, twice as long when it comes soon after the last time."""
        if now - self.ejected_until_s > self._time_s(self._ejections + 1):
            self._ejections = 0
        self._ejections += 1
        self.ejected_until_s = now + self._time_s(self._ejections)

    def is_ejected(self, now: float) -> bool:
        """Whether it is left out for being slow. It may still be asked when there is nobody else."""
        return now < self.ejected_until_s

    def _time_s(self, times: int) -> float:
        return min(self._rules.open_most, self._rules.open_for * 2.0 ** min(max(times - 1, 0), 64))

    def _move(self, open_until_s: float | None, now: float) -> None:
        self.open_until_s = open_until_s
        self._since_s = now
        self._period += 1
        self._trial = False
        self._outcomes.clear()


def find_outliers(times_s: Mapping[str, float], factor: float) -> set[str]:
    """Those whose time is above `factor` times the median of the others'; never all, as one has no others.

    With two upstreams the other one is the measure. The fastest is never among them.
    """
    outliers = set()
    for name, time_s in times_s.items():
        others = sorted(other for key, other in times_s.items() if key != name)
        if others and time_s > factor * others[(len(others) - 1) // 2]:
            outliers.add(name)
    return outliers


class Budget:
    """Second tries as a share of the requests in a window, with a floor (none when the share is 0)."""

    __slots__ = ("_counts", "_floor", "_share")

    def __init__(self, share: float, window_s: float, floor: int = 0) -> None:
        self._share = share
        self._floor = floor if share > 0 else 0
        self._counts = Window(window_s)

    def count_request(self, now: float) -> None:
        """A request came in."""
        self._counts.add(0, now)

    def take(self, now: float) -> bool:
        """Take one second try out of the budget; False when there is none left."""
        requests, taken = self._counts.totals(now)
        if taken + 1 > max(self._floor, self._share * requests):
            return False
        self._counts.add(1, now)
        return True


class Quantile:
    """The p95 of the last 128 times; sorting is put off until 16 new ones have come."""

    __slots__ = ("_count", "_p95_s", "_sorted_at", "_times")

    KEPT = 128
    LEAST = 20
    """With fewer values the 95th percentile is the maximum, or a guess."""
    _EVERY = 16

    def __init__(self) -> None:
        self._times: list[float] = []
        self._count = 0
        self._sorted_at = -self._EVERY
        self._p95_s: float | None = None

    def add(self, time_s: float) -> None:
        """One more time."""
        if len(self._times) < self.KEPT:
            self._times.append(time_s)
        else:
            self._times[self._count % self.KEPT] = time_s
        self._count += 1

    def p95_s(self) -> float | None:
        """The 95th percentile (nearest rank); None while too few times are known."""
        if self._count < self.LEAST:
            return None
        if self._p95_s is None or self._count - self._sorted_at >= self._EVERY:
            ordered = sorted(self._times)
            self._p95_s = ordered[math.ceil(0.95 * len(ordered)) - 1]
            self._sorted_at = self._count
        return self._p95_s


def hedge_after_s(p95_s: float | None, waited_s: float, limit_s: float) -> float | None:
    """In how many seconds a second request is due; None: not at all (p95 unknown, or not before the limit anyway)."""
    if p95_s is None or p95_s >= limit_s:
        return None
    return max(0.0, p95_s - waited_s)
