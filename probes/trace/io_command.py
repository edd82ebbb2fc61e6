"""`probe-agent trace`: from what the operator typed to an address, and from the trace to the terminal."""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
from dataclasses import dataclass

from core.config import AgentConfig, HttpCheck, TcpCheck
from core.errors import NearpathError
from core.messages import Family, Target
from probes.io_report import read_kept_targets
from probes.io_tcp import source_for
from probes.trace.io_trace import Ask, trace
from probes.trace.path import as_json, lines

_PORT = 443


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """What was typed beside the target. `port` None: that of the mirror's check; `ipv6`: the family a name has first."""

    port: int | None
    icmp: bool
    ipv6: bool | None
    mtu: bool
    rounds: int
    max_hops: int
    timeout_s: float
    json: bool


def run_trace(target: str, agent: AgentConfig | None, options: TraceOptions) -> None:
    """Trace and print. NearpathError when the target is not known, LocalFault when this host cannot send."""
    address, port, icmp = _find(target, agent, options)
    family: Family = 4 if ipaddress.ip_address(address).version == 4 else 6
    ask = Ask(
        "icmp" if icmp else "tcp",
        address,
        port,
        options.rounds,
        options.max_hops,
        options.timeout_s,
        source_for(agent.source, family) if agent else None,
        options.mtu,
    )
    shows_rounds = sys.stderr.isatty()

    def on_round(number: int) -> None:
        if shows_rounds:
            print(f"\r{number} of {options.rounds} rounds", end="", file=sys.stderr, flush=True)

    done = trace(ask, on_round)
    if shows_rounds:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps(as_json(done)))
    else:
        print("\n".join(lines(done)))


def _find(target: str, agent: AgentConfig | None, options: TraceOptions) -> tuple[str, int, bool]:
    """(address, port, whether by ICMP) of what was typed: an address, a mirror of the agent's, or a name."""
    port = options.port or _PORT
    if "%" not in target:
        try:
            return _one_host(ipaddress.ip_address(target)), port, options.icmp
        except ValueError:
            pass
    probed = [one for one in _targets(agent) if one.mirror == target] if agent else []
    if options.ipv6 is not None:
        probed = [one for one in probed if one.family == (6 if options.ipv6 else 4)]
    # The first check over TCP tells the port that clients use; where only pings are sent, so does the trace.
    for one in probed:
        if isinstance(one.how, TcpCheck | HttpCheck):
            return one.address, options.port or one.how.port, options.icmp
    if probed:
        return probed[0].address, port, options.icmp or options.port is None
    return _resolve(target, options.ipv6), port, options.icmp


def _targets(agent: AgentConfig) -> list[Target]:
    try:
        kept = read_kept_targets(agent)
    except OSError as error:
        raise NearpathError(f"the agent's targets: {error}", "run this as the agent's user, or as root") from None
    return kept.targets if kept else []


def _resolve(name: str, ipv6: bool | None) -> str:
    family = socket.AF_UNSPEC if ipv6 is None else socket.AF_INET6 if ipv6 else socket.AF_INET
    try:
        found = socket.getaddrinfo(name, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no such name can be"
        raise NearpathError(
            f"{name}: {why}", "give an address, a name that resolves here, or with -c a mirror that the agent probes"
        ) from None
    return _one_host(ipaddress.ip_address(str(found[0][4][0])))


def _one_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The address, as it is on the wire; NearpathError when it is none of one host."""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    if address.is_unspecified or address.is_multicast:
        raise NearpathError(f"{address} is no address of one host", "give the address of the mirror itself")
    return str(mapped or address)
