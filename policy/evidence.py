"""Evidence: what the vantages of a catchment, together, know about each of its mirrors.

Up or down is asked of the nearest level of the region tree that has live vantages: a majority decides, a tie counts as up.
RTT is the median over the vantages of one level: of the region itself while live, else the region's own old values, then
the levels above; see `Quality` for the names of these steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.config import Steering
from policy.estimate import PathEstimator, PathState
from policy.freshness import Freshness
from policy.plan import Catchment, MirrorPlan, ServicePlan, SteeringPlan
from policy.table import Quality

PathKey = tuple[str, str, str, int]
"""(agent, mirror, check, family)"""


class Predictor(Protocol):
    """A model of RTT for paths nobody measured; handed in by the composition root, None while it has not proved itself."""

    def predict(self, region: str, mirror: str, family: int) -> float | None:
        """Expected RTT in seconds, or None when it cannot say."""
        ...


@dataclass(frozen=True, slots=True)
class Vantage:
    """One agent's paths to one mirror: `rtt` ranks, all of `checks` must be up."""

    agent: str
    rtt: PathEstimator
    checks: tuple[PathEstimator, ...]


@dataclass(frozen=True, slots=True)
class Watched:
    """A mirror of a catchment with the vantages to ask, by level, and what the configuration says of it."""

    mirror: MirrorPlan
    position: int
    preference: int
    distance: int | None
    levels: tuple[tuple[Vantage, ...], ...]


_NO_WORD = Freshness()


class Candidate:
    """What is known of one mirror when a decision is made. Plain slots: thousands are made in one pass.

    `full` sends it behind the others: it reports too much load, or (then `busy` too) takes in much content.
    """

    __slots__ = (
        "busy",
        "distance",
        "drained",
        "empty",
        "fresh",
        "full",
        "jitter_se_s",
        "loss_cost_s",
        "mirror",
        "name",
        "position",
        "preference",
        "quality",
        "rtt_level",
        "rtt_s",
        "score_s",
        "se_s",
        "sync",
        "taken_s",
        "up",
        "up_level",
        "up_votes",
        "votes",
    )

    def __init__(self, watched: Watched) -> None:
        self.mirror = watched.mirror
        self.name = watched.mirror.name
        self.position = watched.position
        self.preference = watched.preference
        self.distance = watched.distance
        self.drained = watched.mirror.drained
        self.up: bool | None = None
        self.up_votes = 0
        self.votes = 0
        self.up_level: int | None = None
        self.rtt_s: float | None = None
        self.se_s = 0.0
        self.jitter_se_s = 0.0
        self.loss_cost_s = 0.0
        self.score_s: float | None = None
        self.rtt_level: int | None = None
        self.taken_s: float | None = None
        self.quality = Quality.STATIC
        self.fresh = True
        self.empty = False
        self.sync = _NO_WORD
        self.full = False
        self.busy = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What operators and daemons have said about mirrors, beside the samples; `freshness` by (service, mirror)."""

    drained: Mapping[str, bool]
    freshness: Mapping[tuple[str, str], Freshness]


def watch(catchment: Catchment, plan: SteeringPlan, path: Callable[[PathKey], PathEstimator]) -> tuple[Watched, ...]:
    """The mirrors of a catchment with their vantages; `path` gives (or makes) the estimator of a key."""
    service = plan.services[catchment.service]

    def vantage(agent: str, mirror: str) -> Vantage:
        checks = {check: path((agent, mirror, check, catchment.family)) for check in service.checks}
        rtt = path((agent, mirror, service.rtt_check, catchment.family))
        return Vantage(agent, rtt, tuple(checks.values()))

    return tuple(
        Watched(
            plan.mirrors[mirror],
            position,
            catchment.preference[mirror],
            catchment.distance.get(mirror),
            tuple(tuple(vantage(agent, mirror) for agent in agents) for _region, agents in catchment.levels),
        )
        for position, mirror in enumerate(catchment.mirrors)
    )


def gather(
    catchment: Catchment,
    watched: Sequence[Watched],
    service: ServicePlan,
    facts: Facts,
    steering: Steering,
    live_for_s: float,
    now: float,
    predictor: Predictor | None = None,
) -> list[Candidate]:
    """The candidates of a catchment as of `now`."""
    live_after, stale_after = now - live_for_s, now - steering.stale_for
    candidates = []
    for one in watched:
        candidate = Candidate(one)
        _set_up(candidate, one.levels, live_after, stale_after)
        _set_rtt(candidate, one.levels[: catchment.measured], catchment.own, live_after, stale_after)
        if candidate.score_s is None:
            _set_unmeasured(candidate, catchment, predictor)
        if facts.drained:
            candidate.drained = facts.drained.get(one.mirror.name, candidate.drained)
        if facts.freshness:
            _set_fresh(candidate, facts.freshness.get((service.owner, one.mirror.name), _NO_WORD))
        candidates.append(candidate)
    return candidates


def _set_up(candidate: Candidate, levels: Sequence[Sequence[Vantage]], live_after: float, stale_after: float) -> None:
    for limit in (live_after, stale_after):
        for index, vantages in enumerate(levels):
            votes = ups = 0
            for vantage in vantages:
                up = known = True
                for path in vantage.checks:
                    if path.taken_s < limit or path.state is PathState.UNKNOWN:
                        known = False
                    elif path.state is not PathState.UP:
                        up = False
                # One failed check is proof enough; to call it up, all must be known.
                if known or not up:
                    votes += 1
                    ups += up
            if votes:
                candidate.up = 2 * ups >= votes
                candidate.up_votes, candidate.votes = ups, votes
                candidate.up_level = index
                return
        # Only the catchment's own level may answer from old values: further away, old says nothing.
        levels = levels[:1]


def _set_rtt(
    candidate: Candidate, levels: Sequence[Sequence[Vantage]], own: bool, live_after: float, stale_after: float
) -> None:
    for index, vantages in enumerate(levels):
        paths = [v.rtt for v in vantages if v.rtt.taken_s >= live_after and v.rtt.rtt_s is not None]
        live = bool(paths)
        if not live:
            paths = [v.rtt for v in vantages if v.rtt.taken_s >= stale_after and v.rtt.rtt_s is not None]
        if paths:
            _take_median(candidate, paths)
            candidate.rtt_level = index
            candidate.quality = Quality.LIVE if live and own and index == 0 else Quality.STALE
            return


def _take_median(candidate: Candidate, paths: list[PathEstimator]) -> None:
    # For an even count the slower of the middle two: a vantage that sees trouble is not averaged away.
    middle = paths[0] if len(paths) == 1 else sorted(paths, key=_score)[len(paths) // 2]
    candidate.rtt_s = middle.rtt_s
    candidate.se_s = middle.se_s
    candidate.jitter_se_s = middle.jitter_se_s
    candidate.loss_cost_s = middle.loss_cost_s
    candidate.score_s = _score(middle)
    candidate.taken_s = middle.taken_s
    for path in paths:
        if path.taken_s > candidate.taken_s:
            candidate.taken_s = path.taken_s
        if path.load_ratio is not None and path.load_ratio > candidate.mirror.max_load_ratio:
            candidate.full = True


def _score(path: PathEstimator) -> float:
    return (path.rtt_s or 0.0) + path.loss_cost_s


def _set_unmeasured(candidate: Candidate, catchment: Catchment, predictor: Predictor | None) -> None:
    expected_s = predictor.predict(catchment.name, candidate.name, catchment.family) if predictor else None
    if expected_s is not None:
        candidate.rtt_s = candidate.score_s = expected_s
        # A prediction is worth about one sample: a fifth of its value as standard error.
        candidate.se_s = expected_s / 5
        candidate.quality = Quality.PREDICTED
    elif candidate.distance is not None:
        candidate.quality = Quality.TABLE


def _set_fresh(candidate: Candidate, word: Freshness) -> None:
    candidate.sync = word
    candidate.fresh = word.fresh
    candidate.empty = word.empty
    # Measured mirrors get their place back after a dwell, see `decide`. Others would at once: they are held here.
    if word.busy or (word.lately_busy and candidate.score_s is None):
        candidate.busy = candidate.full = True
