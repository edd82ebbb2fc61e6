"""The picture of a running appliance that `nearpath status` shows, as plain JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.messages import SyncStamp
from policy.engine import SteeringEngine, Unit
from policy.estimate import PathEstimator
from policy.evidence import Candidate
from policy.freshness import lag_at

if TYPE_CHECKING:
    from nearpath.appliance import Appliance


def make_picture(appliance: Appliance) -> dict[str, Any]:
    """Appliance, agents, nodes with their stamps, mirrors; per catchment every mirror's RTT, loss, age, state, choice."""
    now = appliance.clock.now()
    engine, steerer = appliance.steerer.engine, appliance.steerer
    return {
        "appliance": {
            "config": str(appliance.config_file),
            "uptime_s": now - appliance.started_s,
            "ready": not appliance.not_ready(),
            "not_ready": appliance.not_ready(),
            "generation": engine.generation,
            "decide_ms": steerer.decide_s * 1000,
            "switches": engine.switches(),
            "reload_error": appliance.reload_error,
            "store_error": steerer.bus_error,
            "clock_skew_s": appliance.clock.skew_s(),
            "dns": appliance.dns_addresses,
            "report": appliance.report_addresses,
            "metrics": appliance.metrics_addresses,
            "warnings": list(appliance.warnings),
        },
        "agents": [
            {
                "agent": state.name,
                "region": appliance.config.agents[name].region,
                "heard_age_s": None if state.heard_s is None else now - state.heard_s,
                "newest_sample_age_s": _newest_age(engine, name, now),
                "clock_skew_s": state.skew_s,
                "samples": state.samples,
                "counted": sum(path.count for key, path in engine.paths.items() if key[0] == name),
                "last_sequence": state.last_sequence,
                "quarantined": state.quarantined,
                "missing": state.missing,
                "address": state.address,
            }
            for name, state in sorted(appliance.api.agents.items())
        ],
        "nodes": [
            {
                "node": name,
                "mirrors": list(appliance.config.nodes[name].mirrors),
                "heard_age_s": None if node.heard_s is None else now - node.heard_s,
                "clock_skew_s": node.skew_s,
                "stamps": node.stamps,
                "address": node.address,
            }
            for name, node in sorted(appliance.api.nodes.items())
        ],
        "stamps": [_stamp(stamp, now) for stamp in engine.stamps()],
        "mirrors": [
            {
                "mirror": name,
                "addresses": list(mirror.addresses),
                "drained": engine.drained(name),
            }
            for name, mirror in sorted(appliance.config.mirrors.items())
        ],
        "catchments": [_catchment(engine, i, unit, now) for i, unit in enumerate(engine.units)],
    }


def _newest_age(engine: SteeringEngine, agent: str, now: float) -> float | None:
    newest = max((path.taken_s for key, path in engine.paths.items() if key[0] == agent and path.count), default=None)
    return None if newest is None else max(0.0, now - newest)


def _stamp(stamp: SyncStamp, now: float) -> dict[str, Any]:
    return {
        "mirror": stamp.mirror,
        "tree": stamp.tree,
        "node": stamp.node,
        "version": stamp.version,
        "root_hash": stamp.root_hash,
        "lag_s": lag_at(stamp, now),
        "state": stamp.state,
        "busy": stamp.busy,
        "age_s": max(0.0, now - stamp.taken_s),
    }


def _catchment(engine: SteeringEngine, index: int, unit: Unit, now: float) -> dict[str, Any]:
    catchment = unit.catchment
    decision = engine.decisions[index]
    assert decision is not None
    names = engine.plan.tree.names
    candidates = {c.name: c for c in engine.candidates(index, now)}
    return {
        "service": catchment.service,
        "family": catchment.family,
        "catchment": catchment.name,
        "regions": [names[i] for i in catchment.region_ids],
        "quality": decision.quality.label,
        "fail_open": decision.fail_open,
        "decided_by": decision.decided_by,
        "held_back": decision.held,
        "incumbent_for_s": max(0.0, now - decision.memory.since_s),
        "switches": decision.memory.switches,
        "mirrors": [
            _mirror(candidates[name], unit, rank, rank < decision.eligible, now)
            for rank, name in enumerate(decision.order)
        ],
    }


def _mirror(candidate: Candidate, unit: Unit, rank: int, eligible: bool, now: float) -> dict[str, Any]:
    watched = next(w for w in unit.watched if w.mirror.name == candidate.name)
    nearest: list[PathEstimator] = [v.rtt for v in watched.levels[0]] if watched.levels else []
    losses = [path.loss_ratio for path in nearest if path.count]
    state = "drained" if candidate.drained else {True: "up", False: "down", None: "unknown"}[candidate.up]
    damped = any(p.state.value == "damped" for v in (watched.levels[0] if watched.levels else ()) for p in v.checks)
    return {
        "mirror": candidate.name,
        "rank": rank + 1,
        "chosen": rank == 0,
        "eligible": eligible,
        "state": "damped" if damped and state == "down" else state,
        "rtt_ms": None if candidate.rtt_s is None else candidate.rtt_s * 1000,
        "loss_ratio": max(losses) if losses else None,
        "age_s": None if candidate.taken_s is None else max(0.0, now - candidate.taken_s),
        "quality": candidate.quality.label,
        "lag_s": candidate.sync.lag_s,
        "version": candidate.sync.version,
        "sync_state": candidate.sync.state,
        "busy": candidate.busy,
    }
