"""Explain: why a client gets the answer it gets, from the serving code's own decision with its reasons kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from policy.engine import Examination, SteeringEngine, make_row
from policy.estimate import PathEstimator, PathState
from policy.evidence import Candidate
from policy.regions import RegionMap

_MOST_CULPRITS = 4


@dataclass(frozen=True, slots=True)
class CandidateView:
    """One mirror as the decision saw it; times in ms and seconds, None where nothing is known."""

    mirror: str
    rank: int
    eligible: bool
    up: bool | None
    votes: str
    rtt_ms: float | None
    error_ms: float | None
    loss_cost_ms: float
    measured_from: str
    age_s: float | None
    quality: str
    drained: bool
    lag_s: float | None
    version: int | None
    sync_state: str
    stamp_age_s: float | None
    busy: bool
    preference: int
    cost: int
    reason: str


@dataclass(frozen=True, slots=True)
class StepView:
    """One step: what it did, and for the mirrors it touched, why."""

    step: str
    remark: str
    mirrors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole story of one answer."""

    service: str
    family: int
    client: str
    region: str
    scope_len: int
    matched: str
    catchment: str
    quality: str
    fail_open: str
    decided_by: str
    held_back: str
    addresses: tuple[str, ...]
    ttl_s: int
    note: str
    incumbent_for_s: float | None
    candidates: tuple[CandidateView, ...]
    steps: tuple[StepView, ...]


def explain(
    engine: SteeringEngine, service: str, family: int, client: str, address: int, client_family: int, now: float
) -> Explanation | None:
    """The story of the answer for `service` to a client (its address as a number), or None when it has no such addresses.

    `family` is the address family asked for (A or AAAA), `client_family` that of the client.
    """
    regions: RegionMap = engine.plan.regions
    region_id, scope_len = regions.lookup(client_family, address)
    examined = engine.examine(service, family, region_id, now)
    if examined is None:
        return None
    decision = examined.decision
    row = make_row(examined.unit, decision)
    since_s = decision.memory.since_s
    return Explanation(
        service=service,
        family=family,
        client=client,
        region=engine.plan.tree.names[region_id],
        scope_len=scope_len,
        matched=regions.provenance(client_family, address),
        catchment=examined.unit.catchment.name,
        quality=decision.quality.label,
        fail_open=decision.fail_open,
        decided_by=decision.decided_by,
        held_back=decision.held,
        addresses=row.addresses,
        ttl_s=row.ttl_s,
        note=row.note,
        incumbent_for_s=max(0.0, now - since_s),
        candidates=_candidates(examined, now),
        steps=tuple(StepView(step, remark, reasons) for step, remark, reasons in examined.trace.steps),
    )


def _candidates(examined: Examination, now: float) -> tuple[CandidateView, ...]:
    decision, catchment = examined.decision, examined.unit.catchment
    reasons: dict[str, str] = {}
    for step, _remark, touched in examined.trace.steps:
        for mirror, why in touched.items():
            culprits = _culprits(examined, mirror, now) if step == "up" else ""
            reasons.setdefault(mirror, f"{step}: {why}{culprits}")
    by_name = {c.name: c for c in examined.candidates}
    views = []
    for rank, name in enumerate(decision.order):
        c: Candidate = by_name[name]
        views.append(
            CandidateView(
                mirror=name,
                rank=rank + 1,
                eligible=rank < decision.eligible,
                up=c.up,
                votes=f"{c.up_votes}/{c.votes}" if c.votes else "-",
                rtt_ms=None if c.rtt_s is None else c.rtt_s * 1000,
                error_ms=None if c.rtt_s is None else c.se_s * 1000,
                loss_cost_ms=c.loss_cost_s * 1000,
                measured_from=catchment.levels[c.rtt_level][0] if c.rtt_level is not None else "-",
                age_s=None if c.taken_s is None else max(0.0, now - c.taken_s),
                quality=c.quality.label,
                drained=c.drained,
                lag_s=c.sync.lag_s,
                version=c.sync.version,
                sync_state=c.sync.state,
                stamp_age_s=c.sync.age_s,
                busy=c.busy,
                preference=c.preference,
                cost=c.mirror.cost,
                reason="chosen" if rank == 0 else reasons.get(name, ""),
            )
        )
    return tuple(views)


def _culprits(examined: Examination, mirror: str, now: float) -> str:
    """Which vantage's check keeps a mirror out, and why: what an operator asks next."""
    unit = examined.unit
    watched = next(w for w in unit.watched if w.mirror.name == mirror)
    candidate = next(c for c in examined.candidates if c.name == mirror)
    if candidate.up_level is None:
        return ""
    found = [
        f"{vantage.agent}: {check} {_why_out(path, now)}"
        for vantage in watched.levels[candidate.up_level]
        for check, path in zip(unit.service.checks, vantage.checks, strict=True)
        if path.state in (PathState.DOWN, PathState.DAMPED)
    ]
    more = [f"{len(found) - _MOST_CULPRITS} more"] if len(found) > _MOST_CULPRITS else []
    return "".join(f"; {text}" for text in found[:_MOST_CULPRITS] + more)


def _why_out(path: PathEstimator, now: float) -> str:
    if path.state is PathState.DAMPED:
        return f"answers, but is damped (flap penalty {path.penalty_at(now):.0f})"
    if path.run_ok:
        return f"was down, {path.run_ok} good in a row so far"
    # The agent's word, and perhaps the mirror's: it goes to a terminal.
    loss = "".join(c if c.isprintable() else "?" for c in path.loss)
    return f"down ({loss})" if loss else "down"
