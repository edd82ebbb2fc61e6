"""When a lost connection is worth a probe at once: it may be the first word of an upstream that goes away, or a habit.

Many servers close connections that were idle for some seconds, and the probe that asks makes the next one to be closed.
Each time that such a probe is answered the next one waits twice as long, up to the time at which idle upstreams are probed
anyway. Pure.
"""

from __future__ import annotations

LEAST_S = 1.0
"""Between two probes over lost connections: one that goes away is known within seconds."""

_HABIT_ENDS = 10
"""Times the longest wait without a lost connection, after which the next one is news again."""


class Suspicion:
    """Of one upstream. `longest_s` is how often it is probed when it is idle."""

    __slots__ = ("_asked_s", "_longest_s", "_lost", "_lost_s", "_wait_s")

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._wait_s = LEAST_S
        self._asked_s = self._lost_s = 0.0
        self._lost = False

    def lost(self, now: float) -> None:
        """It ended a kept connection."""
        if now - self._lost_s > _HABIT_ENDS * self._longest_s:
            self._wait_s = LEAST_S
        self._lost, self._lost_s = True, now

    def is_due(self, heard_s: float, now: float) -> bool:
        """Whether to ask now; it was probed, or asked for something, last at `heard_s`.

        What real requests tell needs no probe; connections that are lost beside them are too many, and no news.
        """
        return self._lost and now >= max(heard_s + LEAST_S, self._asked_s + self._wait_s)

    def heard(self) -> None:
        """A probe is on its way, so there is no need for another one."""
        self._lost = False

    def answered(self, well: bool, now: float) -> None:
        """How a probe over a lost connection went: `well` says that it meant nothing."""
        self._asked_s = now
        self._wait_s = max(LEAST_S, min(2 * self._wait_s, self._longest_s)) if well else LEAST_S
