"""Sends the probes of a trace and takes the time of what comes back, over raw sockets: CAP_NET_RAW.

scapy makes and reads the packets; the times are the kernel's stamps, since scapy's own are taken too early and too late.
"""

from __future__ import annotations

import errno
import ipaddress
import random
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn

from pyroute2 import IPRoute, NetlinkError

from core.messages import Family
from probes.faults import LocalFault, ProbeLost, raise_local
from probes.icmp import Instant, measure_rtt, strip_ipv4
from probes.io_http import SO_TIMESTAMPNS, kernel_stamp_ns
from probes.trace.packets import (
    LEAST_ECHO_BYTES,
    TOKEN_BITS,
    Answer,
    Flow,
    Kind,
    probe_packet,
    read_icmp,
    read_segment,
)
from probes.trace.path import Hop, PathMtu, Trace, ended

WINDOW = 6
"""So many hops are asked at once at first: quick, and a near target gets few probes too many."""
GAP_S = 0.01
"""Between two probes: many routers answer only so many a second."""
SILENT_WINDOWS = 2
"""After so many windows without any answer, nothing more is to be expected from further away."""
MTU_TRIES = 3
MOST_STEPS = 128
"""From 1,500 to 576 bytes in steps of 8 it takes 116; a router that takes away a byte each time would make it thousands."""

_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_ICMP = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
_LEAST_MTU: dict[Family, int] = {4: 576, 6: 1280}
"""What every host takes (RFC 791 3.1), and every link of IPv6 (RFC 8200 5)."""
_LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
_MTU_DISCOVER = {4: 10, 6: 23}
_PROBE = 3
"""linux/in.h, linux/in6.h: send what the link takes, whatever the kernel has heard of the path's MTU."""
_READ_BYTES = 65_536
_MAX_PACKET_BYTES = 65_000
"""Loopback's MTU is 65,536, which no IP packet has."""
_ANCILLARY_BYTES = 256
_MAX_READS = 4_096
"""In one wait: a host that gets a flood of ICMP must not be kept from ending."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What to trace. `target` is an address; `source` one of this host, or None for the one the route has."""

    kind: Kind
    target: str
    port: int = 443
    rounds: int = 5
    max_hops: int = 30
    timeout_s: float = 1.0
    source: str | None = None
    with_mtu: bool = False


def trace(ask: Ask, on_round: Callable[[int], None] = lambda _: None) -> Trace:
    """Trace as asked; `on_round` hears of each round that is done. LocalFault when this host cannot send."""
    with ExitStack() as stack:
        wire = _Wire(ask, stack)
        hops = _first_round(ask, wire)
        on_round(1)
        for number in range(2, ask.rounds + 1):
            wire.ask([(hop.ttl, hop) for hop in hops], ask.timeout_s)
            on_round(number)
        mtu, why_not = _find_mtu(ask, wire) if ask.with_mtu else (None, "")
        return Trace(ask.kind, wire.flow.source, ask.target, ask.port, tuple(ended(hops)), mtu, why_not)


def _first_round(ask: Ask, wire: _Wire) -> list[Hop]:
    hops: list[Hop] = []
    silent = 0
    while len(hops) < ask.max_hops and silent < SILENT_WINDOWS:
        window = [Hop(ttl) for ttl in range(len(hops) + 1, min(len(hops) + WINDOW, ask.max_hops) + 1)]
        wire.ask([(hop.ttl, hop) for hop in window], ask.timeout_s)
        hops += window
        if any(hop.is_end for hop in window):
            break
        silent = 0 if any(hop.rtts_s for hop in window) else silent + 1
    return ended(hops)


def _find_mtu(ask: Ask, wire: _Wire) -> tuple[PathMtu | None, str]:
    """The path MTU by echoes that must not be fragmented (RFC 1191, RFC 8201), or why it cannot be told."""
    family = wire.flow.family
    if not any(wire.echo(LEAST_ECHO_BYTES[family], ask.timeout_s) for _ in range(MTU_TRIES)):
        return None, "the target answers no pings"
    size, said_by, steps = wire.link_mtu, "", 0
    while size >= _LEAST_MTU[family]:
        got = next((got for _ in range(MTU_TRIES) if (got := wire.echo(size, ask.timeout_s))), None)
        if got is None:
            return _narrow_down(ask, wire, size), ""
        sender, answer = got
        if answer.what == "echo":
            return PathMtu(size, said_by), ""
        if answer.what != "too big":
            return None, f"{sender} answers {answer.what}"
        # A router that names no MTU (RFC 1191 before its time), or one that is no smaller, must not hold us up.
        size, said_by, steps = min(answer.mtu or size - 8, size - 1), sender, steps + 1
        if steps > MOST_STEPS:
            return None, f"{said_by} asks for ever smaller packets"
    return None, f"{said_by} asks for less than {_LEAST_MTU[family]:,} bytes"


def _narrow_down(ask: Ask, wire: _Wire, too_large: int) -> PathMtu:
    """Packets of `too_large` vanish: the largest that does not, to 4 bytes."""
    fits, lost = _LEAST_MTU[wire.flow.family], too_large
    while lost - fits > 4:
        middle = (fits + lost) // 2
        got = next((got for _ in range(MTU_TRIES) if (got := wire.echo(middle, ask.timeout_s))), None)
        fits, lost = (middle, lost) if got and got[1].what == "echo" else (fits, middle)
    return PathMtu(fits, silent=True)


@dataclass(slots=True)
class _Sent:
    at: Instant
    hop: Hop


class _Wire:
    """The raw sockets of one trace: one to send whole packets, one for ICMP, for TCP one for the target's segments."""

    def __init__(self, ask: Ask, stack: ExitStack) -> None:
        family: Family = 4 if ipaddress.ip_address(ask.target).version == 4 else 6
        self._family = family
        source, self.link_mtu = _route(ask, family)
        self._random = random.SystemRandom()
        self._out = stack.enter_context(_open(family, socket.IPPROTO_RAW))
        self._out.setsockopt(_LEVEL[family], _MTU_DISCOVER[family], _PROBE)
        self._icmp = stack.enter_context(_open(family, _ICMP[family]))
        self._icmp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._tcp: socket.socket | None = None
        identity = self._random.getrandbits(16)
        if ask.kind == "tcp":
            self._tcp = stack.enter_context(_open(family, socket.IPPROTO_TCP))
            self._tcp.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            self._tcp.connect((ask.target, 0))  # so that it hears nobody else
            # Holds the port. Nothing listens there, so the kernel itself resets what the target opens.
            holder = stack.enter_context(socket.socket(_AF[family], socket.SOCK_STREAM))
            holder.bind((source, 0))
            identity = int(holder.getsockname()[1])
        self.flow = Flow(ask.kind, source, ask.target, identity, ask.port if ask.kind == "tcp" else 0)
        self._pings = Flow("icmp", source, ask.target, identity)
        self._sent: dict[int, _Sent] = {}

    def ask(self, probes: list[tuple[int, Hop]], timeout_s: float) -> None:
        """Send a probe for each (ttl, hop) and note what comes back within `timeout_s` of the last."""
        for ttl, hop in probes:
            token = self._token(self.flow)
            packet = probe_packet(self.flow, ttl, token)
            hop.sent += 1
            self._sent[token] = _Sent(self._send(packet), hop)
            self._listen(self.flow, GAP_S)
        self._listen(self.flow, timeout_s)
        self._sent.clear()

    def echo(self, size_bytes: int, timeout_s: float) -> tuple[str, Answer] | None:
        """Ping the target by a packet of `size_bytes`: (who answered, what), or None."""
        token = self._token(self._pings)
        at = self._send(probe_packet(self._pings, 64, token, size_bytes))
        self._sent[token] = _Sent(at, Hop(64, sent=1))
        got = self._listen(self._pings, timeout_s)
        self._sent.clear()
        return got

    def _token(self, flow: Flow) -> int:
        token = self._random.getrandbits(TOKEN_BITS[flow.kind])
        while token in self._sent:
            token = self._random.getrandbits(TOKEN_BITS[flow.kind])
        return token

    def _send(self, packet: bytes) -> Instant:
        at = _now()
        try:
            self._out.sendto(packet, (self.flow.target, 0))
        except OSError as error:
            # What is too long for the first link is lost on the way, as behind any other.
            if error.errno != errno.EMSGSIZE:
                _fail(error.errno or 0, f"cannot send to {self.flow.target}")
        return at

    def _listen(self, flow: Flow, timeout_s: float) -> tuple[str, Answer] | None:
        """Note answers until all that was sent is answered, or for `timeout_s`; the last one that was taken."""
        poll = select.poll()
        by_number = {sock.fileno(): sock for sock in (self._icmp, self._tcp) if sock is not None}
        for number in by_number:
            poll.register(number, select.POLLIN)
        deadline_s = time.monotonic() + timeout_s
        last = None
        for _ in range(_MAX_READS):
            left_s = deadline_s - time.monotonic()
            if not self._sent or left_s <= 0:
                break
            for number, _events in poll.poll(max(1, left_s * 1000)):
                last = self._read(flow, by_number[number]) or last
        return last

    def _read(self, flow: Flow, sock: socket.socket) -> tuple[str, Answer] | None:
        try:
            data, ancillary, _flags, address = sock.recvmsg(_READ_BYTES, _ANCILLARY_BYTES)
        except OSError:
            return None  # an error of some earlier probe, told by the socket
        read = _now()
        body = strip_ipv4(data) if self._family == 4 else data
        sender = str(ipaddress.ip_address(address[0].partition("%")[0]))
        answer = read_segment(flow, body) if sock is self._tcp else read_icmp(flow, sender, body)
        sent = self._sent.pop(answer.token, None) if answer else None
        if answer is None or sent is None:
            return None
        rtt_s, _stamp = measure_rtt(sent.at, kernel_stamp_ns(ancillary), read)
        sent.hop.add(sender, answer.what, rtt_s, answer.labels)
        return sender, answer


def _open(family: Family, protocol: int) -> socket.socket:
    try:
        sock = socket.socket(_AF[family], socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise LocalFault(
                "no permission for raw sockets, by which a trace makes its own packets",
                "run it as root, or with CAP_NET_RAW",
            ) from None
        _fail(error.errno or 0, f"cannot open a raw socket for IPv{family}")
    return sock


def _route(ask: Ask, family: Family) -> tuple[str, int]:
    """(source address, MTU of the link) of the way to the target. LocalFault when there is none."""
    with socket.socket(_AF[family], socket.SOCK_DGRAM) as sock:
        try:
            if ask.source:
                sock.bind((ask.source, 0))
            sock.connect((ask.target, ask.port))
        except OSError as error:
            _fail(error.errno or 0, f"cannot reach {ask.target}")
        source = str(sock.getsockname()[0]).partition("%")[0]
    try:
        with IPRoute() as netlink:
            route = netlink.route("get", family=_AF[family], dst=ask.target, src=source)[0]
            link = netlink.get_links(route.get_attr("RTA_OIF"))[0]
            return source, min(int(link.get_attr("IFLA_MTU")), _MAX_PACKET_BYTES)
    except NetlinkError as error:
        _fail(error.code, f"cannot reach {ask.target}")


def _fail(number: int, what: str) -> NoReturn:
    """Raise LocalFault for an errno; also for one that would be a loss to a probe: here nothing was sent at all."""
    try:
        raise_local(number, what)
    except ProbeLost as lost:
        raise LocalFault(f"{what}: {lost.reason}", "this host itself says so: look at `ip route get`") from None


def _now() -> Instant:
    return Instant(time.time_ns(), time.monotonic_ns())
