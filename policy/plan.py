"""The plan: what the configuration asks policy to decide, laid out for deciding fast. Frozen; a reload makes a new one."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from core.config import Config, Steering
from policy.regions import RegionMap, RegionTree

FAMILIES = (4, 6)
DEFAULT_PREFERENCE = 100


@dataclass(frozen=True, slots=True)
class MirrorPlan:
    """A mirror: addresses by family, place in the region tree, cost and load limit."""

    name: str
    addresses: Mapping[int, tuple[str, ...]]
    region: str | None
    cost: int
    max_load_ratio: float
    drained: bool


@dataclass(frozen=True, slots=True)
class Catchment:
    """All regions that always get the same decision for one service and family, as nothing tells them apart.

    `levels` are the agents to ask, nearest first: those of the region, then of each region above that has more. `measured`
    is the number of levels whose RTT may rank mirrors: an average over the whole world says less about one region than
    where the mirrors stand, so `world` counts only for itself and where that is not known. `own` tells whether level 0 is
    the region's own.
    """

    service: str
    family: int
    name: str
    region_ids: tuple[int, ...]
    levels: tuple[tuple[str, tuple[str, ...]], ...]
    measured: int
    own: bool
    mirrors: tuple[str, ...]
    preference: Mapping[str, int]
    distance: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """A steered owner name."""

    owner: str
    mirrors: tuple[str, ...]
    checks: tuple[str, ...]
    rtt_check: str
    answers: int
    ttl_s: float
    max_lag_s: float | None
    min_version: int | None
    tree: str | None

    @property
    def asks_freshness(self) -> bool:
        """Whether a mirror needs a stamp to be answered."""
        return self.max_lag_s is not None or self.min_version is not None


@dataclass(frozen=True, slots=True)
class SteeringPlan:
    """Everything policy needs to know of the configuration; `nodes`: mirror -> the node whose stamps count for it."""

    steering: Steering
    regions: RegionMap
    tree: RegionTree
    mirrors: Mapping[str, MirrorPlan]
    services: Mapping[str, ServicePlan]
    agents: Mapping[str, str]
    live_for_s: Mapping[str, float]
    catchments: tuple[Catchment, ...]
    nodes: Mapping[str, str]


def make_plan(config: Config, regions: RegionMap) -> SteeringPlan:
    """The plan for a checked configuration and the region map compiled from its region sections."""
    tree = regions.tree
    mirrors = {
        name: MirrorPlan(
            name,
            {f: tuple(a for a in mirror.addresses if ipaddress.ip_address(a).version == f) for f in FAMILIES},
            mirror.region,
            mirror.cost,
            mirror.max_load,
            mirror.drained,
        )
        for name, mirror in config.mirrors.items()
    }
    services = {
        owner: ServicePlan(
            owner,
            tuple(service.mirrors),
            tuple(service.checks),
            service.rtt_check or service.checks[0],
            service.answers,
            service.ttl,
            service.max_lag,
            service.min_version,
            service.tree,
        )
        for owner, service in config.services.items()
    }
    agents = {name: agent.region for name, agent in config.agents.items()}
    levels = {region: _levels(region, tree, agents) for region in tree.names}
    catchments: list[Catchment] = []
    for owner, service in services.items():
        preferences = _preferences(config.services[owner].prefer, tree)
        for family in FAMILIES:
            members = tuple(m for m in service.mirrors if mirrors[m].addresses[family])
            if members:
                catchments += _catchments(service, family, members, mirrors, tree, levels, preferences)
    live_for = {
        name: max(config.steering.live_for, 3 * check.interval + check.timeout) for name, check in config.checks.items()
    }
    nodes = {mirror: name for name, node in config.nodes.items() for mirror in node.mirrors}
    return SteeringPlan(config.steering, regions, tree, mirrors, services, agents, live_for, tuple(catchments), nodes)


Levels = tuple[tuple[str, tuple[str, ...]], ...]


def _levels(region: str, tree: RegionTree, agents: Mapping[str, str]) -> Levels:
    """(region, agents in it or below) from `region` up to the root, leaving out levels that add no agent."""
    levels: list[tuple[str, tuple[str, ...]]] = []
    for at in (region, *tree.ancestors(region)):
        here = tuple(sorted(name for name, place in agents.items() if at == place or tree.is_descendant(place, at)))
        if here and (not levels or here != levels[-1][1]):
            levels.append((at, here))
    return tuple(levels)


def _preferences(prefer: Mapping[str, Mapping[str, int]], tree: RegionTree) -> dict[str, dict[str, int]]:
    """region -> mirror -> local preference, the nearest region that names the mirror deciding."""
    result: dict[str, dict[str, int]] = {}
    for region in tree.names:
        merged: dict[str, int] = {}
        for at in (region, *tree.ancestors(region)):
            for mirror, value in prefer.get(at, {}).items():
                merged.setdefault(mirror, value)
        result[region] = merged
    return result


def _catchments(
    service: ServicePlan,
    family: int,
    members: tuple[str, ...],
    mirrors: Mapping[str, MirrorPlan],
    tree: RegionTree,
    levels: Mapping[str, Levels],
    preferences: Mapping[str, Mapping[str, int]],
) -> list[Catchment]:
    groups: dict[tuple[object, ...], list[str]] = {}
    facts: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
    for region in tree.names:
        distance = {m: tree.distance(region, place) for m in members if (place := mirrors[m].region)}
        preference = {m: preferences[region].get(m, DEFAULT_PREFERENCE) for m in members}
        facts[region] = (preference, distance)
        own = bool(levels[region]) and levels[region][0][0] == region
        key = (levels[region], own, tuple(sorted(preference.items())), tuple(sorted(distance.items())))
        groups.setdefault(key, []).append(region)
    result = []
    for regions in groups.values():
        # Named after the one nearest to the root, which is the one that people know.
        first = min(regions, key=lambda region: len(tree.ancestors(region)))
        preference, distance = facts[first]
        chain = levels[first]
        placed = len({distance.get(m) for m in members}) > 1
        result.append(
            Catchment(
                service.owner,
                family,
                first,
                tuple(tree.id_of(region) for region in regions),
                chain,
                sum(1 for region, _agents in chain if region != tree.root or first == tree.root or not placed),
                bool(chain) and chain[0][0] == first,
                members,
                preference,
                distance,
            )
        )
    return result
