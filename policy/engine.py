"""The steering engine: samples in, steering tables out. Pure; its owner brings the time and keeps its state.

The owner calls `take` for every sample, `decide` when something changed and at least once a second (time alone makes values
stale and challengers ripe), and stores `dump()` together with the stream position it had reached.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.errors import MessageError
from core.messages import MirrorAdmin, PathSample, SyncStamp
from policy.decide import Decision, Memory, Trace, decide
from policy.estimate import PathEstimator
from policy.evidence import Candidate, Facts, PathKey, Predictor, Watched, gather, watch
from policy.freshness import Freshness, judge
from policy.plan import FAMILIES, Catchment, ServicePlan, SteeringPlan
from policy.table import Quality, Row, SteeredService, SteeringTable

_DUMP_VERSION = 1

_TTL_SHARE = {
    Quality.LIVE: 1.0,
    Quality.STALE: 0.5,
    Quality.PREDICTED: 0.5,
    Quality.TABLE: 1 / 3,
    Quality.STATIC: 1 / 3,
}
"""The less an answer rests on, the sooner resolvers shall ask again."""

_LEAST_TTL_S = 5


@dataclass(frozen=True, slots=True)
class Unit:
    """A catchment with everything its decision needs."""

    catchment: Catchment
    service: ServicePlan
    watched: tuple[Watched, ...]
    live_for_s: float


@dataclass(frozen=True, slots=True)
class Examination:
    """One decision laid open."""

    unit: Unit
    candidates: list[Candidate]
    decision: Decision
    trace: Trace


class SteeringEngine:
    """Estimates, memories and the last table of one plan."""

    def __init__(self, plan: SteeringPlan, predictor: Predictor | None = None) -> None:
        self.plan = plan
        self._predictor = predictor
        self.paths: dict[PathKey, PathEstimator] = {}
        self._drained: dict[str, bool] = {}
        self._stamps: dict[str, dict[str, SyncStamp]] = {}
        self._busy_s: dict[str, float] = {}
        self.units = tuple(self._unit(c) for c in plan.catchments)
        self._memories = [Memory() for _ in self.units]
        self.decisions: list[Decision | None] = [None for _ in self.units]
        self._rows: list[Row | None] = [None for _ in self.units]
        self._by_region = {
            (u.catchment.service, u.catchment.family, region): i
            for i, u in enumerate(self.units)
            for region in u.catchment.region_ids
        }
        self.generation = 0
        self.unknown_samples = 0
        self.table: SteeringTable | None = None

    def _unit(self, catchment: Catchment) -> Unit:
        service = self.plan.services[catchment.service]
        live_for_s = max(self.plan.live_for_s[check] for check in (*service.checks, service.rtt_check))
        return Unit(catchment, service, watch(catchment, self.plan, self._path), live_for_s)

    def _path(self, key: PathKey) -> PathEstimator:
        path = self.paths.get(key)
        if path is None:
            path = self.paths[key] = PathEstimator(self.plan.steering)
        return path

    # -- what comes in

    def take(self, sample: PathSample) -> bool:
        """Take one sample; True when a mirror went up or down over this path, which is worth deciding at once.

        A sample of a path that the plan does not name (a mirror was removed, a report was on its way) is counted only.
        """
        path = self.paths.get((sample.agent, sample.mirror, sample.check, sample.family))
        if path is None:
            self.unknown_samples += 1
            return False
        return path.take(sample)

    def set_admin(self, admin: MirrorAdmin | None, mirror: str) -> None:
        """An operator's word on a mirror; None takes back what was said."""
        if admin is None:
            self._drained.pop(mirror, None)
        else:
            self._drained[mirror] = admin.drained

    def set_stamp(self, stamp: SyncStamp) -> bool:
        """How fresh a mirror's tree is; True when that is news which is worth deciding at once.

        A stamp of a mirror, or from a node, that the plan does not name does not count.
        """
        if stamp.mirror not in self.plan.mirrors or stamp.node not in ("", self.plan.nodes.get(stamp.mirror)):
            return False
        by_tree = self._stamps.setdefault(stamp.mirror, {})
        last, by_tree[stamp.tree] = by_tree.get(stamp.tree), stamp
        if stamp.busy:
            self._busy_s[stamp.mirror] = max(stamp.taken_s, self._busy_s.get(stamp.mirror, -math.inf))
        return last is None or (last.state, last.busy, last.version) != (stamp.state, stamp.busy, stamp.version)

    def drop_stamp(self, mirror: str, tree: str) -> None:
        """Forget what was said of a tree."""
        self._stamps.get(mirror, {}).pop(tree, None)

    def stamps(self) -> list[SyncStamp]:
        """All that count, by mirror and tree."""
        return [by_tree[tree] for _mirror, by_tree in sorted(self._stamps.items()) for tree in sorted(by_tree)]

    def stamps_of(self, mirror: str) -> Collection[SyncStamp]:
        """Those of one mirror."""
        return self._stamps.get(mirror, {}).values()

    def adopt(self, older: SteeringEngine) -> None:
        """Take over from the engine of an older plan what its dump does not hold: what was said of mirrors."""
        self._drained = dict(older._drained)
        for stamp in older.stamps():
            self.set_stamp(stamp)
        self._busy_s = {mirror: busy_s for mirror, busy_s in older._busy_s.items() if mirror in self._stamps}
        self.unknown_samples = older.unknown_samples

    # -- what goes out

    def decide(self, now: float) -> SteeringTable:
        """Decide every catchment; the table is a new generation only if an answer changed, else the last one.

        Mirrors that change places behind the answered ones change no answer: the `mirrors` of a kept row are as of its
        last change; `decisions` holds the newest order.
        """
        facts = self._facts(self.plan.services.values(), now)
        changed = False
        for i, unit in enumerate(self.units):
            decision = decide(self._gather(unit, facts, now), self._memories[i], self.plan.steering, now)
            self._memories[i] = decision.memory
            self.decisions[i] = decision
            row = make_row(unit, decision)
            if not _same_answer(row, self._rows[i]):
                self._rows[i] = row
                changed = True
        if changed or self.table is None:
            self.generation += 1
            self.table = SteeringTable(self.generation, now, self.plan.regions, self._services())
        return self.table

    def _facts(self, services: Iterable[ServicePlan], now: float) -> Facts:
        """Freshness is asked for once for each service and mirror, not in each of the many catchments."""
        freshness: dict[tuple[str, str], Freshness] = {}
        for service in services:
            asks = service.asks_freshness
            for mirror in service.mirrors if asks or self._stamps else ():
                stamps, busy_s = self.stamps_of(mirror), self._busy_s.get(mirror, -math.inf)
                if asks or stamps:
                    word = judge(stamps, service, now, busy_s, self.plan.steering.dwell)
                    freshness[service.owner, mirror] = word
        return Facts(self._drained, freshness)

    def _gather(self, unit: Unit, facts: Facts, now: float) -> list[Candidate]:
        return gather(
            unit.catchment,
            unit.watched,
            unit.service,
            facts,
            self.plan.steering,
            unit.live_for_s,
            now,
            self._predictor,
        )

    def examine(self, service: str, family: int, region_id: int, now: float) -> Examination | None:
        """The decision for one region made afresh as of `now` with its reasons kept; nothing is changed by asking."""
        i = self._by_region.get((service, family, region_id))
        if i is None:
            return None
        unit = self.units[i]
        trace = Trace()
        candidates = self._gather(unit, self._facts([unit.service], now), now)
        decision = decide(candidates, self._memories[i], self.plan.steering, now, trace)
        return Examination(unit, candidates, decision, trace)

    def candidates(self, index: int, now: float) -> list[Candidate]:
        """What is known of the mirrors of the catchment `units[index]` as of `now`."""
        unit = self.units[index]
        return self._gather(unit, self._facts([unit.service], now), now)

    def drained(self, mirror: str) -> bool:
        """Is the mirror administratively down, by an operator's last word or else by the configuration?"""
        return self._drained.get(mirror, self.plan.mirrors[mirror].drained)

    def switches(self) -> int:
        """How often a first place has changed, over all catchments."""
        return sum(memory.switches for memory in self._memories)

    def _services(self) -> dict[str, SteeredService]:
        count = len(self.plan.tree.names)
        rows: dict[tuple[str, int], list[Row | None]] = {}
        for unit, row in zip(self.units, self._rows, strict=True):
            slots = rows.setdefault((unit.service.owner, unit.catchment.family), [None] * count)
            for region in unit.catchment.region_ids:
                slots[region] = row
        return {
            owner: SteeredService(owner, _full(rows.get((owner, 4))), _full(rows.get((owner, 6))))
            for owner in self.plan.services
        }

    # -- over a restart

    def dump(self, position: int) -> bytes:
        """The state after the sample at `position` of the stream, for `restore`."""
        body = {
            "version": _DUMP_VERSION,
            "position": position,
            "generation": self.generation,
            "addresses": self._addresses(),
            "paths": [[*key, *path.dump()] for key, path in self.paths.items() if path.count],
            "memories": [
                [
                    unit.catchment.service, unit.catchment.family, unit.catchment.name, memory.order,
                    memory.since_s, memory.settled_s, memory.beaten_since_s, memory.switches, memory.compared,
                ]
                for unit, memory in zip(self.units, self._memories, strict=True)
                if memory.order
            ],
        }  # fmt: skip
        return json.dumps(body, separators=(",", ":")).encode()

    def _addresses(self) -> dict[str, list[str]]:
        return {
            name: [address for family in FAMILIES for address in mirror.addresses[family]]
            for name, mirror in self.plan.mirrors.items()
        }

    def restore(self, dumped: bytes) -> int:
        """Take over a dumped state as far as the plan still knows its parts; returns the stream position it includes.

        MessageError when it is damaged; the engine is then as new.
        """
        try:
            body = json.loads(dumped, parse_constant=_refuse)
            if body["version"] != _DUMP_VERSION:
                raise ValueError(f"version {body['version']!r}")
            position, generation = int(body["position"]), int(body["generation"])
            same = {name for name, texts in self._addresses().items() if body["addresses"].get(name) == texts}
            for agent, mirror, check, family, *rest in body["paths"]:
                path = self.paths.get((agent, mirror, check, family))
                # A mirror that moved to another address has nothing to do with what was measured of the old one.
                if path is not None and mirror in same:
                    path.load(rest)
            self._restore_memories(body["memories"])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            for path in self.paths.values():
                path.reset()
            self._memories = [Memory() for _ in self.units]
            raise MessageError(
                "the kept engine state is damaged", f"{error!r}; it is rebuilt from new samples"
            ) from None
        self.generation = max(self.generation, generation)
        return position

    def no_later_than(self, now: float) -> None:
        """Take restored times that lie after `now` for `now`: the wall clock may have been set back before the restart."""
        for path in self.paths.values():
            path.no_later_than(now)
        self._memories = [
            replace(
                memory,
                since_s=min(memory.since_s, now),
                beaten_since_s=None if memory.beaten_since_s is None else min(memory.beaten_since_s, now),
            )
            for memory in self._memories
        ]

    def _restore_memories(self, dumped: Sequence[Sequence[Any]]) -> None:
        kept = {(service, family, name): rest for service, family, name, *rest in dumped}
        for i, unit in enumerate(self.units):
            rest = kept.get((unit.catchment.service, unit.catchment.family, unit.catchment.name))
            if rest is not None:
                self._memories[i] = _restored(unit.catchment.mirrors, *rest)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not a number that was ever kept")


def _restored(
    mirrors: Sequence[str],
    order: Sequence[str],
    since_s: float,
    settled_s: float | None,
    beaten_since_s: float | None,
    switches: int,
    compared: Mapping[str, int],
) -> Memory:
    known = tuple(name for name in order if name in mirrors)
    kept = Memory(
        known,
        float(since_s),
        None if settled_s is None else float(settled_s),
        None if beaten_since_s is None else float(beaten_since_s),
        int(switches),
        {name: Quality(quality) for name, quality in compared.items() if name in mirrors},
    )
    # What was remembered of a first that the plan no longer has says nothing about the next one.
    return kept if known[:1] == tuple(order[:1]) else replace(kept, settled_s=None, beaten_since_s=None)


def _same_answer(row: Row, last: Row | None) -> bool:
    return last is not None and (row.addresses, row.ttl_s, row.quality, row.fail_open, row.note) == (
        last.addresses, last.ttl_s, last.quality, last.fail_open, last.note,
    )  # fmt: skip


def make_row(unit: Unit, decision: Decision) -> Row:
    """The answer that follows from a decision: addresses of the eligible mirrors in order, TTL and note."""
    service, family = unit.service, unit.catchment.family
    by_name = {w.mirror.name: w.mirror for w in unit.watched}
    addresses: list[str] = []
    for name in decision.order[: decision.eligible]:
        addresses += by_name[name].addresses[family][: service.answers - len(addresses)]
        if len(addresses) >= service.answers:
            break
    share = _TTL_SHARE[Quality.STATIC] if decision.fail_open else _TTL_SHARE[decision.quality]
    ttl_s = max(min(_LEAST_TTL_S, int(service.ttl_s)), int(service.ttl_s * share))
    return Row(
        decision.order,
        tuple(addresses),
        ttl_s,
        decision.quality,
        bool(decision.fail_open),
        _note(decision),
    )


_FAIL_OPEN_NOTES = {
    "admin": "all are drained",
    "up": "all are down from here",
    "content": "all say that they are empty",
    "fresh": "none is fresh",
}
_QUALITY_NOTES = {
    Quality.STALE: "by old or more distant measurements",
    Quality.PREDICTED: "chosen by a model, not measured",
    Quality.TABLE: "chosen by region distance, not measured",
    Quality.STATIC: "chosen by configured order, not measured",
}


def _note(decision: Decision) -> str:
    """What a client is told beside the answer; in 64 bytes (`dnsd.template`), so the worse of two things alone."""
    if decision.fail_open:
        note = f"{_FAIL_OPEN_NOTES[decision.fail_open]}, answered anyway"
    else:
        note = _QUALITY_NOTES.get(decision.quality, "")
    return f"nearpath {decision.quality.label}: {note}" if note else ""


def _full(rows: list[Row | None] | None) -> tuple[Row, ...]:
    return tuple(row for row in rows if row is not None) if rows else ()
