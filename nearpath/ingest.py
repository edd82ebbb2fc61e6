"""Reports of agents, checked and turned into samples on the appliance's timeline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from core.config import Agent
from core.messages import PathSample, SampleReport, TargetList
from nearpath.admission import Allowance

CLOCK_JUMP_S = 1.0
"""An agent's wall clock that moved by more than this between two reports was set, not slewed (adjtime slews 0.5 ms/s)."""

MAX_INCARNATIONS = 64
"""Incarnations of one agent that are remembered; it draws a new one only when it has lost its disk."""

NEW_INCARNATION_EVERY_S = 10.0
"""Each is kept for 30 days: beyond the first 64, new ones are taken no faster than this."""


LEAST_RATE = 2000.0
RATE_FACTOR = 4.0
SAMPLES_AHEAD_S = 60.0
"""Samples a second of one agent: four times what its targets make, 2,000 at least, in the long run; a minute's worth at
once. So a full spool (a million) is taken over in ten minutes, and no agent fills the disk or takes the time of answers."""


@dataclass(slots=True)
class AgentState:
    """What the appliance remembers of one agent while it runs."""

    name: str
    incarnation: str = ""
    skew_s: float | None = None
    heard_s: float | None = None
    samples: int = 0
    quarantined: int = 0
    missing: int = 0
    last_sequence: int = 0
    address: str = ""
    doubtful: bool = False
    under_way: int = 0
    allowance: Allowance = field(default_factory=lambda: Allowance(SAMPLES_AHEAD_S))
    _known: dict[str, None] = field(default_factory=dict)
    _paid_until_s: float = -math.inf

    def admits(self, incarnation: str, now: float) -> bool:
        """Whether a report of `incarnation` may be taken: of a known one always, of new ones at a bounded rate."""
        if incarnation not in self._known:
            paid_until_s = max(self._paid_until_s, now) + NEW_INCARNATION_EVERY_S
            if paid_until_s > now + MAX_INCARNATIONS * NEW_INCARNATION_EVERY_S:
                return False
            self._paid_until_s = paid_until_s
        self._known.pop(incarnation, None)
        self._known[incarnation] = None
        if len(self._known) > MAX_INCARNATIONS:
            del self._known[next(iter(self._known))]
        return True


def sample_cost_s(targets: TargetList) -> float:
    """What one sample costs of an agent's allowance: it may send RATE_FACTOR times what these targets make."""
    return 1.0 / max(LEAST_RATE, RATE_FACTOR * sum(1.0 / target.how.interval for target in targets.targets))


def accept_report(report: SampleReport, agent: Agent, state: AgentState, now: float) -> list[PathSample]:
    """The samples of a report in rising sequence, dated on the appliance's timeline; updates `state`.

    A sample whose age was taken from the agent's wall clock is quarantined when that clock has jumped. These are what its
    spool held at a reboot; they end where samples dated by the boot-time clock begin, which may take many reports.
    """
    skew_s = report.wall_s - now
    doubtful = state.doubtful or (state.skew_s is not None and abs(skew_s - state.skew_s) > CLOCK_JUMP_S)
    state.doubtful = doubtful and all(sample.age_by == "wall" for sample in report.samples)
    state.skew_s, state.heard_s = skew_s, now
    if state.incarnation != report.incarnation:
        state.incarnation, state.last_sequence = report.incarnation, 0
    return [
        PathSample(
            agent=state.name,
            region=agent.region,
            mirror=sample.mirror,
            check=sample.check,
            family=sample.family,
            sequence=sample.sequence,
            rtt_s=sample.rtt_s,
            taken_s=now - sample.age_s,
            loss=sample.loss,
            stamp=sample.stamp,
            load_ratio=sample.load_ratio,
            quarantined=doubtful and sample.age_by == "wall",
            incarnation=report.incarnation,
        )
        for sample in sorted(report.samples, key=lambda sample: sample.sequence)
    ]
