"""A configuration with all that it names read, checked and compiled, for the appliance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.config import Config
from core.errors import ConfigError, Problem
from core.io_http import server_tls
from dnsd.io_files import read_names, read_region_sources
from dnsd.zone import Zone
from policy.plan import SteeringPlan, make_plan
from policy.regions import Finding, RegionMap, lint_regions
from probes.schedule import worst_case_down_s

_Stamp = tuple[int, int, int]

LEAST_MAX_LAG_S = 15.0
"""Twice the 7 s that an idle node's lag may show, and a little: one lost report must not leave a fresh mirror out."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a configuration comes to; `stamps` tell whether the files of region tables changed since."""

    config: Config
    zones: tuple[Zone, ...]
    plan: SteeringPlan
    warnings: tuple[str, ...]
    stamps: dict[str, _Stamp]


def load(config: Config, older: Loaded | None = None) -> Loaded:
    """Read and compile all files of `config`; the region map of `older` is kept when nothing of it changed.

    Raises ConfigError with every fault of every file.
    """
    stamps = {table.file: _stamp(table.file) for table in config.region_tables}
    unchanged = older and stamps == older.stamps and _region_part(config) == _region_part(older.config)
    names = read_names(config, older.plan.regions if older and unchanged else None)
    _check_region_names(config, names.regions)
    if config.report.tls:
        server_tls(config.report.tls.cert, config.report.tls.key)
    warnings = (*names.warnings, *_slow_checks(config), *_odd_freshness(config))
    return Loaded(config, names.zones, make_plan(config, names.regions), warnings, stamps)


def lint_config_regions(config: Config) -> tuple[Finding, ...]:
    """What the linter has to say about the region tables of a configuration."""
    return lint_regions(*read_region_sources(config))


def _slow_checks(config: Config) -> list[str]:
    fall = config.steering.fall
    found = []
    for name, check in config.checks.items():
        worst_s, promised_s = worst_case_down_s(check.interval, check.timeout, fall), fall * check.interval + 1
        if worst_s > promised_s:
            found.append(
                f"check {name}: a dead mirror may be answered for {worst_s:.1f} s, more than {fall} intervals + 1 s: "
                f"make its timeout at most 60% of its interval"
            )
    return found


def _odd_freshness(config: Config) -> list[str]:
    """Services that would leave out mirrors whose content is as fresh as can be told."""
    stamped = {mirror for node in config.nodes.values() for mirror in node.mirrors}
    found = []
    for owner, service in config.services.items():
        if service.max_lag is not None and service.max_lag < LEAST_MAX_LAG_S:
            found.append(
                f"service {owner}: max_lag {service.max_lag:g}s is short: a node that is idle reports a lag of up to its "
                f"poll time of 5 s plus the report interval 2 s, and reports may be late: make it {LEAST_MAX_LAG_S:g}s"
            )
        unknown = [mirror for mirror in service.mirrors if mirror not in stamped]
        if unknown and (service.max_lag is not None or service.min_version is not None):
            found.append(
                f"service {owner}: it asks for fresh content, and no node sends stamps for {', '.join(unknown)}: they are "
                f"left out while another mirror is fresh: name them under nodes"
            )
        elif service.tree and not stamped.intersection(service.mirrors):
            found.append(f"service {owner}: tree {service.tree} means nothing: no node sends stamps for its mirrors")
    return found


def _region_part(config: Config) -> object:
    return config.regions, config.region_tables


def _check_region_names(config: Config, regions: RegionMap) -> None:
    """Names that may come from a table's labels can be checked only now."""
    known = set(regions.tree.names)
    used = [(f"agents.{name}.region", agent.region) for name, agent in config.agents.items()]
    used += [(f"mirrors.{name}.region", mirror.region) for name, mirror in config.mirrors.items() if mirror.region]
    used += [(f"services.{owner}.prefer", region) for owner, s in config.services.items() for region in s.prefer]
    problems = [
        Problem("configuration", 0, path, f"region {name!r} is not known") for path, name in used if name not in known
    ]
    if problems:
        raise ConfigError(problems)


def _stamp(file: str) -> _Stamp:
    try:
        status = Path(file).stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
