"""Which parent a copy follows: the nearest that answers and is fresh, held on to until another is clearly better.

Bad news acts at once: a parent that fails is left for the next best. Good news must last: a nearer one takes over when it
has been nearer by a fifth and 5 ms for a minute; so parents of about equal distance do not take turns, each of which costs
a comparison of manifests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GAIN_RATIO = 0.2
GAIN_S = 0.005
DWELL_S = 60.0
SMOOTHING = 0.125
"""Weight of a new round trip in the smoothed one (RFC 6298 2.3)."""
FIRST_REST_S = 1.0
MAX_REST_S = 60.0
"""How long a parent that failed is left alone; doubled with each failure in a row."""
STALE_S = 30.0
"""A parent whose content is further behind than the freshest one's by this is passed over."""


@dataclass(slots=True)
class Standing:
    """What is known of one parent for one tree."""

    srtt_s: float | None = None
    lag_s: float = 0.0
    failures: int = 0
    rest_until: float = 0.0
    why: str = ""

    def worked(self, rtt_s: float | None = None, lag_s: float | None = None) -> None:
        """It answered; after `rtt_s` where that is a measure of the network alone."""
        self.failures, self.rest_until, self.why = 0, 0.0, ""
        if rtt_s is not None:
            self.srtt_s = rtt_s if self.srtt_s is None else self.srtt_s + SMOOTHING * (rtt_s - self.srtt_s)
        if lag_s is not None:
            self.lag_s = lag_s

    def failed(self, now: float, why: str) -> None:
        """It did not answer as it must."""
        self.failures += 1
        self.rest_until = now + min(FIRST_REST_S * 2.0 ** min(self.failures - 1, 16), MAX_REST_S)
        self.why = why


@dataclass(slots=True)
class Choice:
    """The parent of one tree. `allowed`: names in the operator's order, which decides between equals."""

    allowed: Sequence[str]
    incumbent: str = ""
    _better_since: dict[str, float] = field(default_factory=dict)
    _is_guess: bool = False

    def choose(self, standings: Mapping[str, Standing], now: float) -> str:
        """The parent to follow now, of those with a standing; "" when all of them rest after failures."""
        awake = [name for name in self.allowed if name in standings and standings[name].rest_until <= now]
        if not awake:
            self._better_since.clear()
            return ""
        freshest_s = min(standings[name].lag_s for name in awake)
        fresh = [name for name in awake if standings[name].lag_s <= freshest_s + STALE_S]
        best = min(fresh, key=lambda name: (_distance(standings[name]), self.allowed.index(name)))
        # The first choice is made before anything is measured: it has no time to be held on to.
        was_guess = self._is_guess and self.incumbent in fresh and standings[self.incumbent].srtt_s is not None
        if self.incumbent not in fresh or was_guess or self._has_proved(best, standings, now):
            self.incumbent = best
            self._is_guess = standings[best].srtt_s is None
            self._better_since.clear()
        return self.incumbent

    def _has_proved(self, challenger: str, standings: Mapping[str, Standing], now: float) -> bool:
        mine, theirs = _distance(standings[self.incumbent]), _distance(standings[challenger])
        if challenger == self.incumbent or not theirs < mine * (1 - GAIN_RATIO) or not theirs < mine - GAIN_S:
            self._better_since.clear()
            return False
        self._better_since = {challenger: self._better_since.get(challenger, now)}
        return now - self._better_since[challenger] >= DWELL_S


def _distance(standing: Standing) -> float:
    return standing.srtt_s if standing.srtt_s is not None else float("inf")
