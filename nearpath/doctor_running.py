"""A running appliance's own state: what `nearpath status` would show, read as a list of complaints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.config import Config
from core.units import format_duration
from nearpath.doctor_finding import Area, Finding, some
from nearpath.doctor_host import clock_synchronised

_APPLIANCE = Area("appliance")
_AGENTS = Area("agents")
_NODES = Area("nodes")
_MIRRORS = Area("mirrors")
_CLOCK = Area("clock")

_SILENT_INTERVALS = 3
_SILENT_AT_LEAST_S = 15.0
_CLOCK_MOVED_S = 1.0
_AGENT_SKEW_S = 5.0
_DOWN = {"down", "damped"}
_FALLEN = {"static": "nothing is known of any mirror", "table": "nothing is measured, mirrors go by place"}

Picture = Mapping[str, Any]


def check_clock(picture: Picture | None) -> Iterator[Finding]:
    """Whether the host's clock is kept right, and whether it was set while the appliance ran."""
    match clock_synchronised():
        case True:
            yield _CLOCK.good("the clock of this host is synchronised")
        case False:
            yield _CLOCK.note(
                "the clock of this host is not synchronised: certificates, logs and ages over a restart depend on it",
                "`apt-get install systemd-timesyncd && timedatectl set-ntp true`, or chrony; see `timedatectl`",
            )
        case None:
            yield _CLOCK.note("the kernel does not tell whether the clock is synchronised", "see `timedatectl`")
    if picture is None:
        return
    skew_s = float(picture["appliance"]["clock_skew_s"])
    if abs(skew_s) > _CLOCK_MOVED_S:
        yield _CLOCK.note(
            f"the clock was set by {skew_s:+.1f} s since the appliance's start; it goes on with its own timeline",
            "nothing is wrong now; restart it when convenient, so that stored times and the clock agree again",
        )
    else:
        yield _CLOCK.good(f"the appliance's timeline and the clock agree ({skew_s * 1000:+.0f} ms)")


def check_appliance(picture: Picture) -> Iterator[Finding]:
    """Ready, last reload, storage."""
    state = picture["appliance"]
    for reason in state["not_ready"]:
        yield _APPLIANCE.bad(f"not ready: {reason}", "see its log: `journalctl -u nearpath`")
    if state["reload_error"]:
        yield _APPLIANCE.bad(
            f"the last reload failed, the old configuration runs on: {state['reload_error']}",
            "correct it, then `nearpath check-config FILE && nearpath reload`",
        )
    if state["store_error"]:
        yield _APPLIANCE.bad(
            f"state is not being stored: {state['store_error']}",
            "answers go on, agents keep their samples; make room or mend the disk under state_dir",
        )
    if not state["not_ready"]:
        yield _APPLIANCE.good(
            f"running for {format_duration(state['uptime_s'])}, generation {state['generation']}, ready"
        )


def check_agents(config: Config, picture: Picture) -> Iterator[Finding]:
    """Agents that are silent, lose samples or have a wrong clock; services that nobody measures for."""
    interval_s = max((check.interval for check in config.checks.values()), default=5.0)
    silent_s = max(_SILENT_INTERVALS * interval_s, _SILENT_AT_LEAST_S)
    agents: Sequence[Mapping[str, Any]] = picture["agents"]
    just_started = float(picture["appliance"]["uptime_s"]) < silent_s
    for agent in agents:
        yield from _agent(agent, silent_s, just_started)
    if not agents and config.services:
        yield _AGENTS.note(
            "no agent is configured: nothing is measured, mirrors are chosen by their place and the order of the file",
            "`nearpath agent-token`, an entry under agents, and a probe agent in each region (docs/operations.md)",
        )
    unwatched = _unwatched_regions(config)
    if agents and unwatched:
        yield _AGENTS.note(
            f"regions without an agent of their own: {some(unwatched)}",
            "they go by what the regions above them measure, marked as stale; run an agent there if they matter",
        )


def _agent(agent: Mapping[str, Any], silent_s: float, just_started: bool) -> Iterator[Finding]:
    name, heard_s = f"agent {agent['agent']} ({agent['region']})", agent["heard_age_s"]
    look = "on its host: `systemctl status probe-agent`, `nearpath doctor --agent -c /etc/nearpath/agent.yaml`"
    if heard_s is None and just_started:
        yield _AGENTS.note(f"{name} has not been heard since the start a moment ago", "try again in a minute")
    elif heard_s is None:
        yield _AGENTS.bad(f"{name} was never heard since the appliance's start", look)
    elif heard_s > silent_s:
        yield _AGENTS.bad(f"{name} is silent for {format_duration(heard_s)}", look)
    else:
        yield _AGENTS.good(f"{name} heard {format_duration(heard_s)} ago, {agent['samples']} samples")
    if agent["missing"]:
        yield _AGENTS.note(
            f"{name} had to drop {agent['missing']} samples: its spool was full",
            "raise spool.max_samples in its file, or find out why the appliance was away so long",
        )
    if agent["quarantined"]:
        yield _AGENTS.note(
            f"{name}: {agent['quarantined']} samples are quarantined, its clock jumped while it was down",
            "run an NTP client on its host; they are kept but not used",
        )
    skew_s = agent["clock_skew_s"]
    if skew_s is not None and abs(skew_s) > _AGENT_SKEW_S:
        yield _AGENTS.note(
            f"{name}: its clock is {skew_s:+.1f} s off ours",
            "harmless for steering (agents report ages), not for TLS: run an NTP client there, or here",
        )


def check_nodes(picture: Picture) -> Iterator[Finding]:
    """Mirror nodes that send no stamps, and trees that are empty or stalled."""
    just_started = float(picture["appliance"]["uptime_s"]) < _SILENT_AT_LEAST_S
    look = "on that node: `systemctl status syncd`, its log; its token and name as under `nodes` here"
    stamps: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for stamp in picture["stamps"]:
        stamps[stamp["node"]].append(stamp)
    for node in picture["nodes"]:
        name, heard_s = f"node {node['node']} ({', '.join(node['mirrors'])})", node["heard_age_s"]
        if heard_s is None and just_started:
            yield _NODES.note(f"{name} has not been heard since the start a moment ago", "try again in a minute")
        elif heard_s is None:
            yield _NODES.bad(f"{name} was never heard since the appliance's start", look)
        elif heard_s > _SILENT_AT_LEAST_S:
            yield _NODES.bad(f"{name} is silent for {format_duration(heard_s)}: the lag of its content grows", look)
        else:
            count = len({stamp["tree"] for stamp in stamps[node["node"]]})
            yield _NODES.good(f"{name} heard {format_duration(heard_s)} ago, trees: {count}")
        for state in ("empty", "stalled"):
            trees = {stamp["tree"] for stamp in stamps[node["node"]] if stamp["state"] == state}
            if trees:
                yield _NODES.bad(
                    f"{name}: {state}: {some(sorted(trees))}", "`syncd status` on that node tells what it waits for"
                )


def _unwatched_regions(config: Config) -> list[str]:
    """Configured regions that hold clients and have no agent in themselves or below."""
    watched: set[str] = set()
    for agent in config.agents.values():
        at: str | None = agent.region
        while at is not None and at not in watched:
            watched.add(at)
            at = config.regions[at].parent if at in config.regions else None
    return [
        name for name, region in config.regions.items() if name not in watched and (region.match or region.prefixes)
    ]


def check_mirrors(picture: Picture) -> Iterator[Finding]:
    """Mirrors that are down everywhere or drained; services that fail open or are not answered from live data."""
    states: dict[str, set[str]] = defaultdict(set)
    down: dict[str, set[str]] = defaultdict(set)
    services: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for catchment in picture["catchments"]:
        services[catchment["service"], catchment["family"]].append(catchment)
        for mirror in catchment["mirrors"]:
            states[mirror["mirror"]].add(mirror["state"])
            if mirror["state"] in _DOWN:
                down[mirror["mirror"]].add(catchment["catchment"])
    for mirror in picture["mirrors"]:
        seen = states[mirror["mirror"]] - {"unknown"}
        if mirror["drained"]:
            yield _MIRRORS.note(
                f"{mirror['mirror']} is drained", f"`nearpath undrain {mirror['mirror']}` when it may be answered"
            )
        elif seen and seen <= _DOWN:
            yield _MIRRORS.bad(
                f"{mirror['mirror']} ({', '.join(mirror['addresses'])}) is {' or '.join(sorted(seen))} from everywhere",
                "see its service on the mirror; `nearpath explain NAME --client IP` shows what the agents see",
            )
        elif down[mirror["mirror"]]:
            yield _MIRRORS.note(
                f"{mirror['mirror']} is down as seen from {some(sorted(down[mirror['mirror']]))}, which others answer for",
                "`nearpath explain NAME --client IP` shows what the agents there see",
            )
    for (service, family), catchments in services.items():
        yield from _service(f"{service} {'A' if family == 4 else 'AAAA'}", catchments)


def _service(name: str, catchments: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    regions = sum(len(c["regions"]) for c in catchments)
    open_ones = [c for c in catchments if c["fail_open"]]
    if open_ones:
        why = sorted({c["fail_open"] for c in open_ones})
        yield _MIRRORS.bad(
            f"{name} fails open in {some([c['catchment'] for c in open_ones])}: step {' and '.join(why)} left no mirror, "
            "so all are answered as if they were good",
            "bring one mirror back (`nearpath status`); when all are up in truth, see the check and the agents' hosts"
            if not set(why) <= {"content", "fresh"}
            else "see the stamps in `nearpath status`, `syncd status` on the nodes; is max_lag or min_version too strict?",
        )
    fallen: dict[str, list[str]] = defaultdict(list)
    for catchment in catchments:
        fallen[catchment["quality"]].append(catchment["catchment"])
    for quality, where in fallen.items():
        if quality in _FALLEN:
            yield _MIRRORS.note(
                f"{name} is answered from `{quality}` in {some(where)}: {_FALLEN[quality]}",
                "run an agent there, or see why it is silent",
            )
        elif quality != "live":
            yield _MIRRORS.note(
                f"{name} is answered from `{quality}` data in {some(where)}",
                "run an agent there, or see why it is silent",
            )
    if not open_ones and set(fallen) == {"live"}:
        yield _MIRRORS.good(f"{name} is answered from live measurements in all {regions} regions")
