"""Listen addresses and ports: on this host at all, free or ours, and who else has them."""

from __future__ import annotations

import errno
import ipaddress
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.config import Config, split_listen
from nearpath.doctor_finding import Area, Finding
from nearpath.doctor_host import Holder, Protocol, is_local, local_addresses, port_holders, try_bind

_AREA = Area("ports")
_CAP_NET_BIND_SERVICE = 10
_RESOLVED = "systemd-resolve"


@dataclass(frozen=True, slots=True)
class Wanted:
    """One socket the configuration asks for."""

    key: str
    host: str
    port: int
    protocol: Protocol

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{shown}:{self.port}/{self.protocol}"


def wanted_sockets(config: Config) -> list[Wanted]:
    """Every socket of the configuration, DNS twice (UDP and TCP)."""
    kinds: list[tuple[str, Sequence[str], tuple[Protocol, ...]]] = [
        ("dns.listen", config.dns.listen, ("UDP", "TCP")),
        ("report.listen", config.report.listen, ("TCP",)),
        ("metrics.listen", config.metrics.listen, ("TCP",)),
    ]
    return [
        Wanted(key, *split_listen(listen), protocol)
        for key, listens, protocols in kinds
        for listen in listens
        for protocol in protocols
    ]


def check_ports(config: Config, pid: int, *, dns_elsewhere: bool = False) -> Iterator[Finding]:
    """Findings on all sockets; `pid` is the running appliance's, 0 when none runs.

    `dns_elsewhere`: it only decides (`nearpath up --no-dns`), and a dnsd beside it answers.
    """
    wanted = wanted_sockets(config)
    try:
        addresses = local_addresses()
    except Exception as error:  # pyroute2 raises its own family; without netlink the rest is still worth checking
        yield _AREA.note(f"the addresses of this host could not be read ({error})", "compare `ip addr` by hand")
        addresses = {w.host: "" for w in wanted}
    yield from _addresses(wanted, addresses)
    try:
        holders = port_holders({w.port for w in wanted if w.port})
    except OSError as error:
        yield _AREA.note(f"the kernel does not tell who listens ({error})", "look by hand: `ss -lntup`")
        holders = []
    here = [w for w in wanted if w.port and is_local(w.host, addresses)]
    by_dnsd = [w for w in here if dns_elsewhere and w.key == "dns.listen"]
    here = [w for w in here if w not in by_dnsd]
    yield from _by_dnsd(by_dnsd, holders)
    findings = [f for w in here for f in (_running if pid else _stopped)(w, holders, pid)]
    yield from findings
    if here and pid and not findings:
        yield _AREA.good(f"all {len(here)} sockets are the appliance's (pid {pid})")
    if not wanted_reports(config) and config.agents:
        yield _AREA.bad("agents are configured, but report.listen is empty", "give it an address: agents report there")
    if not wanted_reports(config) and config.nodes:
        yield _AREA.bad(
            "nodes are configured, but report.listen is empty", "give it an address: syncd sends stamps there"
        )


def wanted_reports(config: Config) -> bool:
    """Whether agents can report at all."""
    return bool(config.report.listen)


def _addresses(wanted: Sequence[Wanted], addresses: Mapping[str, str]) -> Iterator[Finding]:
    missing = sorted({(w.host, w.key) for w in wanted if not is_local(w.host, addresses)})
    for host, key in missing:
        have = ", ".join(a for a in addresses if not ipaddress.ip_address(a).is_link_local)
        yield _AREA.bad(
            f"{key}: no interface of this host has {host} (it has {have})",
            f"add it (`ip addr add`), or correct {key}; behind NAT, listen on the inner address",
        )
    wrong = sorted({(w.host, addresses[w.host]) for w in wanted if addresses.get(w.host)})
    for host, what in wrong:
        yield _AREA.bad(f"{host} cannot be used: {what}", "see `ip -6 addr`; give each host an address of its own")
    if not missing and not wrong:
        yield _AREA.good("every listen address is on this host")


def _overlaps(wanted: Wanted, holder: Holder) -> bool:
    if (holder.port, holder.protocol) != (wanted.port, wanted.protocol):
        return False
    ours, theirs = ipaddress.ip_address(wanted.host), ipaddress.ip_address(holder.host)
    if ours.version != theirs.version:
        # A socket on :: takes IPv4 as well, unless it was told not to (ipv6(7), IPV6_V6ONLY).
        return theirs.version == 6 and theirs.is_unspecified
    return ours == theirs or ours.is_unspecified or theirs.is_unspecified


def _running(wanted: Wanted, holders: Sequence[Holder], pid: int) -> Iterator[Finding]:
    there = [h for h in holders if _overlaps(wanted, h)]
    others = [h for h in there if h.pid not in (0, pid)]
    exact = [h for h in others if ipaddress.ip_address(h.host) == ipaddress.ip_address(wanted.host)]
    if not any(h.pid in (pid, 0) for h in there):
        holder = f": {exact[0]} has it" if exact else ""
        yield _AREA.bad(
            f"{wanted.key} {wanted} is not served by the running appliance{holder}",
            "restart it if the configuration was changed since its start: `systemctl restart nearpath`",
        )
    elif others:
        yield _AREA.bad(
            f"{wanted.key} {wanted}: {others[0]} listens on {others[0].host} too and takes part of the traffic",
            _how_to_free(wanted, others[0]),
        )


def _by_dnsd(wanted: Sequence[Wanted], holders: Sequence[Holder]) -> Iterator[Finding]:
    for socket in wanted:
        who = next((h for h in holders if _overlaps(socket, h)), None)
        if who is None:
            yield _AREA.bad(
                f"dns.listen {socket}: nobody answers there, the appliance runs with --no-dns",
                "start dnsd with the same configuration (`systemctl start dnsd`), or the appliance without --no-dns",
            )
        elif who.program not in ("dnsd", ""):
            yield _AREA.bad(f"dns.listen {socket} is taken by {who}, not by dnsd", _how_to_free(socket, None))


def _stopped(wanted: Wanted, holders: Sequence[Holder], _pid: int) -> Iterator[Finding]:
    error = try_bind(wanted.host, wanted.port, wanted.protocol)
    holder = next((h for h in holders if _overlaps(wanted, h)), None)
    if error is None:
        yield _AREA.good(f"{wanted.key} {wanted} is free")
    elif (
        error.errno == errno.EADDRINUSE
        and wanted.key == "dns.listen"
        and holder is not None
        and holder.program == "dnsd"
    ):
        yield _AREA.note(
            f"{wanted.key} {wanted} is served by {holder}, which goes on with the last decisions while no appliance runs",
            "start the appliance, it decides anew: `systemctl start nearpath`",
        )
    elif error.errno == errno.EADDRINUSE:
        who = str(holder) if holder else "another program"
        yield _AREA.bad(f"{wanted.key} {wanted} is taken by {who}", _how_to_free(wanted, holder))
    elif error.errno in (errno.EACCES, errno.EPERM):
        yield _AREA.bad(
            f"{wanted.key} {wanted}: a port below {_first_free_port()} needs CAP_NET_BIND_SERVICE, which this user lacks",
            "start it with the unit of `nearpath install-units`, which grants just that; or run this doctor as root",
        )
    else:
        yield _AREA.bad(f"{wanted.key} {wanted}: {error.strerror}", f"correct {wanted.key}")


def _how_to_free(wanted: Wanted, holder: Holder | None) -> str:
    if holder is not None and holder.program.startswith(_RESOLVED):
        return (
            "that is systemd-resolved's stub: list single addresses in dns.listen instead of the wildcard, or set "
            "DNSStubListener=no in /etc/systemd/resolved.conf and restart it"
        )
    if holder is not None and holder.program in ("nearpath", "dnsd"):
        return (
            "another appliance runs on this host: stop it (`systemctl stop nearpath dnsd`), or give it other addresses"
        )
    return f"stop that program, or give {wanted.key} another address or port (`ss -lnp 'sport = :{wanted.port}'`)"


def _first_free_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    except (OSError, ValueError):
        return 1024


def check_capability(config: Config, pid: int) -> Iterator[Finding]:
    """Whether low ports can be had: by root, by a capability, or by the host's sysctl."""
    low = sorted({w.port for w in wanted_sockets(config) if 0 < w.port < _first_free_port()})
    if not low or pid:
        return
    if os.geteuid() == 0:
        yield _AREA.good(f"port {low[0]}: root may bind it, and so may the unit of `nearpath install-units`")
    elif has_capability(_CAP_NET_BIND_SERVICE):
        yield _AREA.good(f"port {low[0]}: this user has CAP_NET_BIND_SERVICE")


def has_capability(number: int) -> bool:
    """Whether this process has a capability in its effective set (proc(5), CapEff)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return False
    effective = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return bool(effective >> number & 1)


def check_ping() -> Iterator[Finding]:
    """Whether programs without rights may send ICMP echo here (icmp(7), ping_group_range)."""
    if platform.system() != "Linux":
        return
    try:
        low, high = (int(word) for word in Path("/proc/sys/net/ipv4/ping_group_range").read_text().split())
    except (OSError, ValueError):
        return
    area = Area("rights")
    groups = {os.getegid(), *os.getgroups()}
    if low > high or not any(low <= group <= high for group in groups):
        yield area.note(
            f"net.ipv4.ping_group_range is `{low} {high}`: an agent on this host cannot send ICMP echo without rights",
            "`nearpath install-units` places a sysctl.d file for it; by hand: "
            "sysctl -w net.ipv4.ping_group_range='0 2147483647'",
        )
    else:
        yield area.good("agents on this host may send ICMP echo without rights (ping_group_range)")
