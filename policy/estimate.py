"""Estimate of one path: what the samples of one (agent, mirror, check, family) say about RTT, loss and up or down.

States and what moves them (`fall`, `rise`, `hold_down` and damping from the configuration):

| state   | a success                                            | a loss                            |
|---------|------------------------------------------------------|-----------------------------------|
| UNKNOWN | -> UP                                                | -> DOWN at the `fall`th in a row  |
| UP      | stays                                                | -> DOWN at the `fall`th in a row, penalty += 1000 |
| DOWN    | -> UP at the `rise`th in a row, after `hold_down`; but -> DAMPED if penalty > suppress | starts its count anew |
| DAMPED  | -> UP once penalty <= reuse (and `rise` in a row)    | -> DOWN at the `fall`th in a row, penalty += 1000 |

A path once damped stays so, through DOWN too, until its penalty is down to `reuse` (RFC 2439 4.2: suppressing is one
threshold, using again another).

RTT is the mean of two robust locations: the median of the last 3 samples, which follows a shift within two samples, and the
mean of the last 9 clipped at three times their median, which a single outlier moves little. Its standard error is that of
a median of n normal values, 1.2533 * sigma / sqrt(n), with sigma = 1.4826 * MAD (Rousseeuw & Croux 1993).

Jitter is the root mean square of how far samples fall from the estimate before them, over about 64 samples: unlike the MAD
it sees rare outliers and paths that jump between two values, so it tells what lead over this path could be chance.

Loss is counted over the last 30 samples; what it costs, over the last 30 taken while up, outages left out. Damping follows
RFC 2439: a penalty that halves every `half_life`.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

from core.config import Damping, Steering
from core.messages import PathSample

WINDOW = 9
LOSS_WINDOW = 30
_LOSS_MASK = (1 << LOSS_WINDOW) - 1
FLAP_PENALTY = 1000.0
_MEDIAN_SE = 1.2533
"""Standard error of the median of n normal values in sigma / sqrt(n): sqrt(pi / 2)."""

_MIN_SIGMA_S = 0.0002
"""No path is steadier than this for us: timer and scheduling noise of ordinary hosts."""

LOSS_COST_S = 1.0
"""What one lost packet costs a client: the initial retransmission timeout of TCP (RFC 6298 2.1)."""

_WILSON_Z = 2.326
"""99%, one-sided: one lost probe in 30 then costs 1.3 ms, less than any sensible `min_gain`; 9 in 30 cost 137 ms."""

_JITTER_MEMORY = 64
"""Samples over which jitter is averaged: at 5% of outliers about three are always remembered."""

_JITTER_LAG = 3
"""The latest samples do not count as jitter yet, so that a shift, which they show, is not taken for noise."""


class PathState(Enum):
    """Is the mirror up, as seen over this path?"""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"
    DAMPED = "damped"


class PathEstimator:
    """The running estimate of one path. `take` is the hot call: one sample, a few microseconds."""

    __slots__ = (
        "_ceiling",
        "_damping",
        "_fall",
        "_hold_down_s",
        "_jitter_count",
        "_jitter_var",
        "_outcomes",
        "_rise",
        "_rtts",
        "_surprises",
        "_unloaded",
        "_up_count",
        "_up_outcomes",
        "count",
        "down_since_s",
        "jitter_se_s",
        "load_ratio",
        "loss",
        "loss_cost_s",
        "penalty",
        "penalty_s",
        "rtt_s",
        "run_lost",
        "run_ok",
        "se_s",
        "state",
        "suppressed",
        "taken_s",
    )

    def __init__(self, steering: Steering) -> None:
        self._fall = steering.fall
        self._rise = steering.rise
        self._hold_down_s = steering.hold_down
        self._damping: Damping = steering.damping
        # The ceiling is what decays to `reuse` in `max_suppress` (RFC 2439 4.2); 2^64 is as good as none.
        halvings = min(64.0, steering.damping.max_suppress / steering.damping.half_life)
        self._ceiling = steering.damping.reuse * 2.0**halvings
        self.reset()

    def reset(self) -> None:
        """Forget everything, as if no sample had come."""
        self._rtts: list[float] = []
        self._outcomes = 0
        self._up_outcomes = 0
        self._up_count = 0
        self.state = PathState.UNKNOWN
        self.count = 0
        self.run_ok = 0
        self.run_lost = 0
        self.taken_s = -math.inf
        self.down_since_s = -math.inf
        self.penalty = 0.0
        self.penalty_s = 0.0
        self.suppressed = False
        self.rtt_s: float | None = None
        self.se_s = math.inf
        self._surprises: list[float] = []
        self._jitter_var = 0.0
        self._jitter_count = 0
        self.jitter_se_s = 0.0
        self.loss_cost_s = 0.0
        self.loss = ""
        self.load_ratio: float | None = None
        self._unloaded = 0

    def no_later_than(self, now: float) -> None:
        """Take kept times that lie after `now` for `now`: the wall clock was set back before a restart.

        Else the path would count as just measured, and as just fallen, until the clock has caught up.
        """
        self.taken_s = min(self.taken_s, now)
        self.down_since_s = min(self.down_since_s, now)
        self.penalty_s = min(self.penalty_s, now)

    def take(self, sample: PathSample) -> bool:
        """Take one sample in; True when the state (up, down, ...) changed. Quarantined samples are ignored."""
        if sample.quarantined:
            return False
        # A spool delivers in order, but ages are rounded and an agent may have restarted; never go back.
        self.taken_s = now = max(self.taken_s, sample.taken_s)
        self.count += 1
        if sample.load_ratio is not None:
            self.load_ratio, self._unloaded = sample.load_ratio, 0
        before = self.state
        if sample.rtt_s is None:
            self._outcomes = (self._outcomes << 1 | 1) & _LOSS_MASK
            self._count_loss(1)
            self.loss = sample.loss
            self._lost(now)
        else:
            self._outcomes = self._outcomes << 1 & _LOSS_MASK
            self._count_loss(0)
            rtts = self._rtts
            if rtts and self.rtt_s is not None:
                self._surprise(sample.rtt_s - self.rtt_s)
            rtts.append(sample.rtt_s)
            if len(rtts) > WINDOW:
                del rtts[0]
            self.rtt_s, self.se_s = locate(rtts)
            self.jitter_se_s = _MEDIAN_SE * math.sqrt(self._jitter_var / len(rtts))
            if self.load_ratio is not None and sample.load_ratio is None:
                # A mirror that has stopped reporting its load must not stay behind for its last word.
                self._unloaded += 1
                if self._unloaded >= WINDOW:
                    self.load_ratio = None
            self._ok(now)
        return self.state is not before

    @property
    def loss_ratio(self) -> float:
        """Share lost of the last 30 samples."""
        return self._outcomes.bit_count() / min(self.count, LOSS_WINDOW) if self.count else 0.0

    def penalty_at(self, now: float) -> float:
        """The flap penalty, decayed to `now` (RFC 2439 4.8)."""
        if self.penalty == 0.0:
            return 0.0
        return float(self.penalty * 0.5 ** (max(0.0, now - self.penalty_s) / self._damping.half_life))

    def _count_loss(self, lost: int) -> None:
        """Losses cost only while the path is up: an outage has been paid for by being down, and is over when it is over."""
        if self.state is not PathState.UP:
            return
        had = self._up_outcomes
        self._up_outcomes = (had << 1 | lost) & _LOSS_MASK
        self._up_count = min(self._up_count + 1, LOSS_WINDOW)
        if had or lost:
            self.loss_cost_s = wilson_lower(self._up_outcomes.bit_count(), self._up_count) * LOSS_COST_S

    def _forget_outage(self) -> None:
        """Take the losses that led to the fall out of what loss costs."""
        run = min(self.run_lost, self._up_count)
        self._up_outcomes >>= run
        self._up_count -= run
        self.loss_cost_s = wilson_lower(self._up_outcomes.bit_count(), self._up_count) * LOSS_COST_S

    def _surprise(self, off_s: float) -> None:
        """A sample fell `off_s` from the estimate before it."""
        surprises = self._surprises
        surprises.append(off_s * off_s)
        if len(surprises) > _JITTER_LAG:
            self._jitter_count += 1
            # Starts as if two quiet samples had been before.
            weight = 1 / min(self._jitter_count + 2, _JITTER_MEMORY)
            self._jitter_var += weight * (surprises.pop(0) - self._jitter_var)

    def _lost(self, now: float) -> None:
        self.run_ok = 0
        self.run_lost += 1
        if self.state is not PathState.DOWN and self.run_lost >= self._fall:
            if self.state is not PathState.UNKNOWN:
                self.penalty = min(self.penalty_at(now) + FLAP_PENALTY, self._ceiling)
                self.penalty_s = now
            if self.state is PathState.UP:
                self._forget_outage()
            self.state = PathState.DOWN
            self.down_since_s = now
            # What it measured before it died says nothing about the path it comes back on.
            self._rtts.clear()

    def _ok(self, now: float) -> None:
        self.run_lost = 0
        self.run_ok += 1
        if self.state is PathState.UP:
            return
        if self.state is PathState.UNKNOWN:
            self.state = PathState.UP
            return
        if self.run_ok < self._rise or now - self.down_since_s < self._hold_down_s:
            return
        limit = self._damping.reuse if self.suppressed else self._damping.suppress
        self.suppressed = self.penalty_at(now) > limit
        self.state = PathState.DAMPED if self.suppressed else PathState.UP

    def dump(self) -> list[Any]:
        """All that must outlive a restart, as JSON values; only for a path that has taken a sample."""
        return [
            self.state.value, self._rtts, self._outcomes, self._up_outcomes, self._up_count, self.count, self.run_ok,
            self.run_lost, self.taken_s, self.down_since_s if self.down_since_s > -math.inf else None,
            self.penalty, self.penalty_s, self.suppressed,
            self.rtt_s, self.se_s if self.rtt_s is not None else None, self.loss, self.load_ratio,
            self._surprises, self._jitter_var, self._jitter_count, self.jitter_se_s,
        ]  # fmt: skip

    def load(self, dumped: list[Any]) -> None:
        """The inverse of `dump`; ValueError or TypeError when it is not one (the estimator is then as new)."""
        self.reset()
        try:
            self._load(*dumped)
        except (ValueError, TypeError, OverflowError) as error:
            self.reset()
            raise ValueError(f"not a dumped path: {error}") from None

    def _load(
        self, state: str, rtts: list[float], outcomes: int, up_outcomes: int, up_count: int, count: int, run_ok: int,
        run_lost: int, taken_s: float, down_since_s: float | None, penalty: float, penalty_s: float, suppressed: bool,
        rtt_s: float | None, se_s: float | None, loss: str, load_ratio: float | None,
        surprises: list[float], jitter_var: float, jitter_count: int, jitter_se_s: float,
    ) -> None:  # fmt: skip
        self.state = PathState(state)
        self._rtts = [_amount(value) for value in rtts][-WINDOW:]
        self._outcomes = int(outcomes) & _LOSS_MASK
        self.count, self.run_ok, self.run_lost = int(_amount(count)), int(_amount(run_ok)), int(_amount(run_lost))
        self._up_outcomes, self._up_count = int(up_outcomes) & _LOSS_MASK, min(int(_amount(up_count)), LOSS_WINDOW)
        if self.count < 1:
            raise ValueError("a path without a sample")
        if self._outcomes >> self.count or self._up_outcomes >> self._up_count:
            raise ValueError("more losses than samples")
        self.taken_s, self.penalty_s = _finite(taken_s), _finite(penalty_s)
        self.down_since_s = -math.inf if down_since_s is None else _finite(down_since_s)
        self.penalty, self.suppressed = _amount(penalty), bool(suppressed)
        if rtt_s is not None:
            self.rtt_s, self.se_s = _amount(rtt_s), _amount(se_s)
        self.loss = str(loss)
        self.load_ratio = None if load_ratio is None else _amount(load_ratio)
        self._surprises = [_amount(value) for value in surprises][-_JITTER_LAG:]
        self._jitter_var, self._jitter_count = _amount(jitter_var), int(_amount(jitter_count))
        self.jitter_se_s = _amount(jitter_se_s)
        self.loss_cost_s = wilson_lower(self._up_outcomes.bit_count(), self._up_count) * LOSS_COST_S


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a time")
    return number


def _amount(value: Any) -> float:
    number = _finite(value)
    if number < 0:
        raise ValueError(f"{number} is below zero")
    return number


def locate(rtts: list[float]) -> tuple[float, float]:
    """(location, standard error) in seconds of up to 9 RTTs, newest last; see the head of this module."""
    n = len(rtts)
    ordered = sorted(rtts)
    middle = ordered[n >> 1] if n & 1 else (ordered[n // 2 - 1] + ordered[n // 2]) / 2
    if n < 3:
        short = sum(rtts) / n
    else:
        a, b, c = rtts[-3:]
        short = max(min(a, b), min(max(a, b), c))
    limit = 3 * middle
    mean = (sum(ordered) if ordered[-1] <= limit else sum([x if x < limit else limit for x in ordered])) / n
    deviations = sorted([x - middle if x > middle else middle - x for x in ordered])
    mad = deviations[n >> 1] if n & 1 else (deviations[n // 2 - 1] + deviations[n // 2]) / 2
    # With one or two values there is no spread to see: take a tenth of the RTT.
    sigma = max(1.4826 * mad, _MIN_SIGMA_S) if n > 2 else max(0.1 * middle, _MIN_SIGMA_S)
    return 0.5 * (short + mean), _MEDIAN_SE * sigma / math.sqrt(n)


def wilson_lower(lost: int, count: int, z: float = _WILSON_Z) -> float:
    """Lower end of the score interval of a share: what loss is *proved*, so that one lost probe proves next to nothing.

    Wilson (1927) with continuity correction: Newcombe, "Two-sided confidence intervals for the single proportion",
    Statistics in Medicine 17 (1998), method 4.
    """
    if lost == 0 or count == 0:
        return 0.0
    share, z2 = lost / count, z * z
    root = math.sqrt(max(0.0, z2 - 2 - 1 / count + 4 * share * (count - lost + 1)))
    return max(0.0, (2 * lost + z2 - 1 - z * root) / (2 * (count + z2)))
