"""When a request goes to an upstream that is not the best by what is known, so that what it takes be known too.

Who is first gets all requests, and so all measurements; of the others only probes tell. So a small share of the
requests of each lane goes to a *rival*: one of the first's preference that is well and whose times are missing or old.
When the first has become much slower than it was, rivals whose times are not known are tried at once. What is learned
so is for policy's decision to judge, with its margin and its dwell: nothing here changes an order.

Bounds: one exploring request at a time in a lane, a second's pause between two at one rival, a long one after one in vain;
over all lanes longer and longer ones at a rival that is overtaken or fails each time.
Pure: time is an argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policy.decide import CLEAR

START_CREDIT = 2.0
"""A lane begins with so many: the share alone would leave a quiet one with a bad first for hours."""

MOST_CREDIT = 3.0
LEAST_SAMPLES = 3
"""Fewer say little of the first, and of a rival: policy's estimate rests on the median of three."""

SLOWER = 2.0
"""The first is much slower than it was above this many times its best, and 50 ms more."""
SLOWER_BY_S = 0.05

BESIDE_S = 0.25
"""A rival has twice the usual time of the first, or so much more, to begin: then the first is asked too."""

PAUSE_S = 1.0
_BEST_WINDOW_S = 600.0
"""The best is of the last one to two windows: what has been so for longer is how things are."""

_MOST_RIVALS = 64


class Best:
    """The best (lowest) value of the last ten to twenty minutes."""

    __slots__ = ("_before_s", "_now_s", "_since_s")

    def __init__(self) -> None:
        self._before_s = self._now_s = math.inf
        self._since_s = -math.inf

    def take(self, value_s: float, now: float) -> None:
        """One more value."""
        if now - self._since_s > _BEST_WINDOW_S:
            self._before_s = self._now_s if now - self._since_s <= 2 * _BEST_WINDOW_S else math.inf
            self._now_s = math.inf
            self._since_s = now
        self._now_s = min(self._now_s, value_s)

    def or_else(self, value_s: float) -> float:
        """The best, or `value_s` when that is better or nothing else is known."""
        return min(self._before_s, self._now_s, value_s)


def is_much_slower(time_s: float, best_s: float, jitter_se_s: float) -> bool:
    """Whether a first that takes `time_s` has become so slow, and not by chance, that its rivals are tried at once."""
    return time_s > SLOWER * best_s and time_s - best_s > max(SLOWER_BY_S, CLEAR * jitter_se_s)


@dataclass(slots=True)
class Exploration:
    """What is kept for one lane."""

    credit: float = START_CREDIT
    _until_s: float = -math.inf
    _from_s: dict[str, float] = field(default_factory=dict)

    def earn(self, share: float) -> None:
        """A request came."""
        self.credit = min(MOST_CREDIT, self.credit + share)

    def may(self, now: float, *, urgent: bool) -> bool:
        """Whether a rival may be asked now, if there is one."""
        return now >= self._until_s and (urgent or self.credit >= 1.0)

    def may_ask(self, rival: str, now: float) -> bool:
        """Whether that one may be asked again."""
        return now >= self._from_s.get(rival, -math.inf)

    def rest(self, now: float) -> None:
        """Nobody is to be explored: looked for again in a while, not with each request."""
        self._until_s = now + PAUSE_S

    def begin(self, rival: str, now: float, longest_s: float) -> None:
        """A rival is asked; nobody else within `longest_s`, unless `end` says earlier that it is over."""
        self.credit = max(0.0, self.credit - 1.0)
        self._until_s = now + longest_s
        if len(self._from_s) >= _MOST_RIVALS:
            self._from_s.clear()
        self._from_s[rival] = now + PAUSE_S

    def end(self, rival: str, now: float, again_s: float) -> None:
        """It is over; that rival is asked again in `again_s` at the earliest."""
        self._until_s = -math.inf
        self._from_s[rival] = now + again_s


@dataclass(slots=True)
class Rival:
    """What is kept of one upstream over all lanes: one that hangs would else slow the first requests of each model."""

    _times: int = 0
    _from_s: float = -math.inf

    def may_ask(self, now: float) -> bool:
        """Whether it may be explored again, in whatever lane."""
        return now >= self._from_s

    def end(self, outcome: str, now: float, longest_s: float) -> None:
        """An exploring request to it is over. Each in a row that was overtaken, or failed, doubles the pause."""
        if outcome == "ok":
            self._times, self._from_s = 0, -math.inf
        elif outcome in ("overtaken", "failed"):
            self._from_s = now + min(PAUSE_S * 2.0 ** min(self._times, 16), longest_s)
            self._times += 1
