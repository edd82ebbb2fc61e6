"""What an agent reports: samples as spooled, their age when sent, batches, and how long to wait after a failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from core.messages import MAX_AGE_S, MAX_SAMPLES_PER_REPORT, Family, ReportedSample, SampleReport
from probes.schedule import Rng

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
BACKOFF_FLOOR_S = 0.05
RETRY_AFTER_MAX_S = 300.0
"""An appliance (or something that plays it) cannot silence an agent for longer than this by Retry-After."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One moment by the agent's clocks: `boot_s` is CLOCK_BOOTTIME and means something under the same `boot_id` only."""

    boot_id: str
    boot_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one probe found: `rtt_s`, or None and the reason in `loss`."""

    rtt_s: float | None
    loss: str = ""
    stamp: Literal["kernel", "user"] = "user"
    load_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class SpooledSample:
    """A probe's outcome with its sequence and the moment the probe ended."""

    sequence: int
    mirror: str
    check: str
    family: Family
    outcome: Outcome
    taken: Moment


def age_of(taken: Moment, now: Moment) -> tuple[float, Literal["boot", "wall"]]:
    """(age in seconds, clock it was taken from); by the wall clock when the host was started again in between."""
    if taken.boot_id == now.boot_id:
        return _clamp(now.boot_s - taken.boot_s), "boot"
    return _clamp(now.wall_s - taken.wall_s), "wall"


def _clamp(age_s: float) -> float:
    return min(max(0.0, age_s), MAX_AGE_S)


def make_report(incarnation: str, samples: Sequence[SpooledSample], now: Moment) -> SampleReport:
    """The report of `samples`, which are in rising sequence, as of `now`."""
    return SampleReport(incarnation, now.wall_s, [_reported(sample, now) for sample in samples])


def _reported(sample: SpooledSample, now: Moment) -> ReportedSample:
    age_s, age_by = age_of(sample.taken, now)
    outcome = sample.outcome
    return ReportedSample(
        sequence=sample.sequence,
        mirror=sample.mirror,
        check=sample.check,
        family=sample.family,
        rtt_s=outcome.rtt_s,
        age_s=age_s,
        loss=outcome.loss[:80],
        stamp=outcome.stamp,
        age_by=age_by,
        load_ratio=outcome.load_ratio,
    )


class Backoff:
    """Exponential backoff with full jitter: after n failures a wait drawn from 0 to min(30 s, 0.5 s * 2^n)."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self.failures = 0

    def failed(self, retry_after_s: float | None = None) -> float:
        """Count a failure; how long to wait now. The server's Retry-After is the least wait, up to 5 minutes."""
        ceiling_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self.failures, 16))
        self.failures += 1
        wait_s = max(BACKOFF_FLOOR_S, self._rng.random() * ceiling_s)
        return max(wait_s, min(retry_after_s, RETRY_AFTER_MAX_S)) if retry_after_s is not None else wait_s

    def succeeded(self) -> None:
        """The next failure is a first one again."""
        self.failures = 0


class BatchSize:
    """How many samples go into one report: halved when the appliance finds it too large or faulty, then grown again."""

    def __init__(self, most: int = MAX_SAMPLES_PER_REPORT) -> None:
        self._most = most
        self.count = most

    def refused(self) -> bool:
        """The report was refused for its content; True when it held a single sample, which then is the culprit."""
        if self.count <= 1:
            return True
        self.count //= 2
        return False

    def accepted(self) -> None:
        """The report was taken: twice as many may go next."""
        self.count = min(self._most, self.count * 2)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header (RFC 9110 10.2.3); a date or anything else is None: the agent backs off itself."""
    text = (value or "").strip()
    return float(text) if text.isdigit() and text.isascii() and len(text) <= 9 else None
