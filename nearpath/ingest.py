"""Reports of agents, checked and turned into samples on the appliance's timeline."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from core.config import Agent, Node
from core.messages import PathSample, SampleReport

CLOCK_JUMP_S = 1.0
"""An agent's wall clock that moved by more than this between two reports was set, not slewed (adjtime slews 0.5 ms/s)."""

MAX_INCARNATIONS = 64
"""Incarnations of one agent that are remembered; it draws a new one only when it has lost its disk."""

NEW_INCARNATION_EVERY_S = 10.0
"""Each is kept for 30 days: beyond the first 64, new ones are taken no faster than this."""

_NO_TOKEN = hashlib.sha256(b"no agent has this token").hexdigest()

Known = TypeVar("Known", Agent, Node)


def token_sha256(token: str) -> str:
    """What the configuration keeps of a token."""
    # A header may hold bytes that are no UTF-8, which aiohttp hands on as lone surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def authenticate(name: str, authorization: str, known: Mapping[str, Known]) -> Known | None:
    """The agent or node that `name` and its bearer token belong to, or None.

    Takes the same time for a wrong token and an unknown name, so that names cannot be found out.
    """
    scheme, _space, token = authorization.partition(" ")
    entry = known.get(name)
    expected = entry.token_sha256 if entry is not None else _NO_TOKEN
    same = hmac.compare_digest(token_sha256(token.strip()), expected)
    return entry if same and scheme.lower() == "bearer" else None


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
