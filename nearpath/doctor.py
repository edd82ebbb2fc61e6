"""`nearpath doctor`: checks an installation the way a delegation fails in practice, and says what to do.

From the inside out: files, rights, ports, clock, the running appliance, its agents and mirrors, real answers from its own
addresses, then the delegation as the parent and the world see it. Each check bounds its time, with or without a network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dns.resolver
from rich.console import Console
from rich.table import Table
from rich.text import Text

from core.config import Config
from core.errors import ConfigError, NearpathError
from core.io_config import read_config
from core.io_control import CONTROL_SOCKET
from nearpath.client import ask
from nearpath.doctor_answers import check_answers, own_servers
from nearpath.doctor_ask import Server, parse_server
from nearpath.doctor_delegation import check_delegations
from nearpath.doctor_files import (
    Account,
    check_files,
    check_loading,
    check_state_dir,
    check_tls,
    daemon_account,
    refuse,
)
from nearpath.doctor_finding import Area, Finding
from nearpath.doctor_host import control_peer, local_addresses
from nearpath.doctor_parent import World, make_resolver
from nearpath.doctor_ports import check_capability, check_ping, check_ports
from nearpath.doctor_running import Picture, check_agents, check_appliance, check_clock, check_mirrors, check_nodes
from nearpath.doctor_zone import OwnZone, read_own_zones

__all__ = ["Finding", "examine", "show_findings"]

_APPLIANCE = Area("appliance")
_MARKS = {"good": ("✔", "green"), "note": ("!", "yellow"), "bad": ("✘", "bold red")}


def examine(
    config_file: Path, *, parent: str | None = None, resolver: str | None = None, ns_port: int = 53
) -> list[Finding]:
    """All findings on the installation of `config_file`, in the order of the areas.

    `parent` is a server of the parent zone to ask (`ADDR[:PORT]`) instead of finding it through `resolver` (default:
    /etc/resolv.conf); `ns_port` is where the delegation's servers are asked. NearpathError when these are no addresses.
    """
    parent_server = parse_server(parent) if parent else None
    resolver_server = parse_server(resolver) if resolver else None
    try:
        config = read_config(config_file)
    except ConfigError as error:
        return refuse(error)
    return list(_examine(config_file, config, parent_server, resolver_server, ns_port))


def _examine(
    config_file: Path, config: Config, parent: Server | None, resolver: Server | None, ns_port: int
) -> Iterator[Finding]:
    state_dir = Path(config.state_dir)
    account = daemon_account(state_dir, state_dir / CONTROL_SOCKET)
    yield from check_loading(config)
    yield from _check_rights(config_file, config, account)
    pid, findings = _find_appliance(state_dir / CONTROL_SOCKET)
    picture: Picture | None = None
    if pid:
        try:
            picture = ask(config_file, "GET", "/v1/status")
        except NearpathError as error:
            findings.append(_APPLIANCE.bad(error.what, error.fix or "see its log: `journalctl -u nearpath`"))
    elsewhere = picture is not None and not picture["appliance"]["dns"]
    yield from check_ports(config, pid, dns_elsewhere=elsewhere)
    yield from check_capability(config, pid)
    yield from check_clock(picture)
    yield from findings
    if picture is not None:
        yield from check_appliance(picture)
        yield from check_agents(config, picture)
        yield from check_nodes(picture)
        yield from check_mirrors(picture)
    zones = read_own_zones(config)
    if pid:
        yield from check_answers(config, zones, own_servers(_served(config, picture)))
    yield from _check_outside(zones, parent, resolver, ns_port)


def _check_rights(config_file: Path, config: Config, account: Account) -> Iterator[Finding]:
    yield from check_files(config_file, config, account)
    yield from check_state_dir(Path(config.state_dir), account)
    if config.report.tls is not None:
        yield from check_tls(config.report.tls, account)
    elif any(not listen.startswith(("127.", "[::1]")) for listen in config.report.listen):
        yield Area("TLS").note(
            "agents and nodes report without TLS: their tokens can be read on the way",
            "set report.tls (docs/operations.md), or reach the appliance through a tunnel",
        )
    if any(check.kind == "icmp" for check in config.checks.values()):
        yield from check_ping()


def _find_appliance(socket_path: Path) -> tuple[int, list[Finding]]:
    """(pid of the running appliance or 0, findings)."""
    try:
        pid, _uid, _gid = control_peer(socket_path)
    except PermissionError:
        return 0, [
            _APPLIANCE.note(
                f"no permission for {socket_path}: what runs cannot be looked at",
                "run doctor as root, or as a member of its group",
            )
        ]
    except OSError:
        return 0, [
            _APPLIANCE.note(
                f"no appliance runs (nobody answers at {socket_path}): answers, agents and mirrors are not checked",
                "start it with `systemctl start nearpath` or `nearpath up -c FILE`, then run doctor again",
            )
        ]
    return pid, []


def _served(config: Config, picture: Picture | None) -> list[str]:
    """The addresses DNS is really served on (port 0 of the configuration is resolved), as `ADDRESS:PORT`."""
    if picture is None or not picture["appliance"]["dns"]:
        return list(config.dns.listen)
    return [a if isinstance(a, str) else str(Server(str(a[0]), int(a[1]))) for a in picture["appliance"]["dns"]]


def _check_outside(
    zones: list[OwnZone], parent: Server | None, resolver: Server | None, ns_port: int
) -> Iterator[Finding]:
    area = Area("delegation")
    if not zones:
        return
    try:
        world = World(make_resolver(resolver), parent, ns_port)
    except dns.resolver.NoResolverConfiguration:
        if parent is None:
            yield area.note("/etc/resolv.conf names no resolver: the parent could not be asked", "use --resolver ADDR")
            return
        world = World(dns.resolver.Resolver(configure=False), parent, ns_port)
    try:
        local = local_addresses()
    except Exception:  # pyroute2's own family of errors; `doctor_ports` has said so already
        local = {"127.0.0.1": "", "::1": ""}
    yield from check_delegations(world, zones, local)


def show_findings(console: Console, findings: list[Finding]) -> None:
    """Print findings grouped by area, with what to do under each that is not good, and a count."""
    areas = dict.fromkeys(finding.area for finding in findings)
    for area in areas:
        console.print(Text(area, style="bold"))
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for finding in (f for f in findings if f.area == area):
            mark, style = _MARKS[finding.level]
            text = Text(finding.what)
            if finding.fix and finding.level != "good":
                text.append(f"\n→ {finding.fix}", style="cyan" if finding.level == "bad" else "dim")
            table.add_row(Text(f"  {mark}", style=style), text)
        console.print(table)
    count = {level: sum(f.level == level for f in findings) for level in _MARKS}
    console.print(
        Text.assemble(
            (f"{count['good']} good", "green"),
            ", ",
            (f"{count['note']} note{'' if count['note'] == 1 else 's'}", "yellow"),
            ", ",
            (f"{count['bad']} bad", "bold red" if count["bad"] else "green"),
        )
    )
