"""What a trace sends and reads, built and taken apart by scapy: probes that die on the way, and what routers quote of them.

All probes of one flow look alike to a router that balances load over several links (Augustin et al., "Avoiding traceroute
anomalies with Paris traceroute", IMC 2006): TCP keeps its ports, ICMP keeps identifier and checksum. Only the token tells
them apart, which every router quotes: a SYN's sequence number, an echo's sequence.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from scapy.contrib.mpls import MPLS, ICMPExtension_MPLS
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet, Raw

from core.messages import Family

Kind = Literal["tcp", "icmp"]
What = Literal["hop", "open", "closed", "echo", "unreachable", "prohibited", "too big"]

TOKEN_BITS: dict[Kind, int] = {"tcp": 32, "icmp": 16}
LEAST_ECHO_BYTES: dict[Family, int] = {4: 30, 6: 50}
"""The smallest echo packet: its payload begins with two bytes that keep the checksum as it was."""

_IPV6_HEADER_BYTES = 40
_ICMP_HEADER_BYTES = 8
_FLOW_LABEL = 0x50000
"""Its 16 lower bits are the flow's identity. 0 would say that there is no label (RFC 6437 2)."""
_MSS_BYTES = 1220
"""What any IPv6 link takes (1,280), less two headers: the most harmless offer."""
_PROHIBITED = {4: frozenset({9, 10, 13}), 6: frozenset({1, 5, 6})}
"""Codes of "unreachable" that a firewall sends (RFC 1812 5.2.7.1, RFC 4443 3.1)."""
_ECHO_REPLY = {4: 0, 6: 129}
_FRAGMENTATION_NEEDED = 4
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_MAX_LABELS = 16


@dataclass(frozen=True, slots=True)
class Flow:
    """What a balancer tells flows by. `identity`: the source port (tcp) or the echo's identifier; `port`: of tcp."""

    kind: Kind
    source: str
    target: str
    identity: int
    port: int = 0

    @property
    def family(self) -> Family:
        """4 or 6."""
        return 4 if ipaddress.ip_address(self.target).version == 4 else 6


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for the probe with `token`. `mtu`: of the next link, when that is what was said; else 0.

    `labels`: the MPLS labels that the probe carried at that router (RFC 4950), outermost first.
    """

    token: int
    what: What
    mtu: int = 0
    labels: tuple[int, ...] = ()


def probe_packet(flow: Flow, ttl: int, token: int, size_bytes: int = 0) -> bytes:
    """A whole IP packet that lives for `ttl` hops and must not be fragmented; echoes are filled up to `size_bytes`."""
    body: Packet
    if flow.kind == "tcp":
        body = TCP(sport=flow.identity, dport=flow.port, seq=token, flags="S", options=[("MSS", _MSS_BYTES)])
    else:
        # seq and its complement add up to nothing, so every echo of a flow has the same checksum.
        filling = max(size_bytes, LEAST_ECHO_BYTES[flow.family]) - LEAST_ECHO_BYTES[flow.family]
        payload = (token ^ 0xFFFF).to_bytes(2, "big") + bytes(filling)
        if flow.family == 4:
            body = ICMP(id=flow.identity, seq=token) / Raw(payload)
        else:
            body = ICMPv6EchoRequest(id=flow.identity, seq=token, data=payload)
    if flow.family == 4:
        return bytes(IP(src=flow.source, dst=flow.target, ttl=ttl, id=token & 0xFFFF, flags="DF") / body)
    return bytes(IPv6(src=flow.source, dst=flow.target, hlim=ttl, fl=_FLOW_LABEL | flow.identity) / body)


def read_segment(flow: Flow, segment: bytes) -> Answer | None:
    """The target's answer to a SYN; None when the segment is of another connection or malformed."""
    if len(segment) < 20:
        return None
    # Not by scapy, which fails over options that the target may put there, and that say nothing here.
    source, target, _sequence, acknowledged, _offset, flags = struct.unpack_from("!HHIIBB", segment)
    if (source, target) != (flow.port, flow.identity) or not flags & _ACK:
        return None
    token = (acknowledged - 1) & 0xFFFFFFFF
    if flags & _RST:
        return Answer(token, "closed")
    return Answer(token, "open") if flags & _SYN else None


def read_icmp(flow: Flow, sender: str, message: bytes) -> Answer | None:
    """What an ICMP message from `sender` says of a probe of `flow`; None when it is not about one, or malformed."""
    if len(message) < _ICMP_HEADER_BYTES:
        return None
    if message[0] == _ECHO_REPLY[flow.family]:
        identity, token = int.from_bytes(message[4:6], "big"), int.from_bytes(message[6:8], "big")
        ours = flow.kind == "icmp" and identity == flow.identity and sender == flow.target
        return Answer(token, "echo") if ours else None
    try:
        return _read_error4(flow, message) if flow.family == 4 else _read_error6(flow, message)
    except Exception:  # scapy lets out whatever hostile bytes make of its fields
        return None


def _read_error4(flow: Flow, message: bytes) -> Answer | None:
    error = ICMP(message)
    token = _quoted_token(flow, message[_ICMP_HEADER_BYTES:]) if error.type in (3, 11) else None
    if token is None:
        return None
    labels = tuple(_labels(error))
    if error.type == 11:
        return Answer(token, "hop", labels=labels)
    if error.code == _FRAGMENTATION_NEEDED:
        return Answer(token, "too big", int(error.nexthopmtu), labels)
    return Answer(token, "prohibited" if error.code in _PROHIBITED[4] else "unreachable", labels=labels)


_CLASSES6: dict[int, Any] = {1: ICMPv6DestUnreach, 2: ICMPv6PacketTooBig, 3: ICMPv6TimeExceeded}


def _read_error6(flow: Flow, message: bytes) -> Answer | None:
    form = _CLASSES6.get(message[0])
    token = _quoted_token(flow, message[_ICMP_HEADER_BYTES:]) if form else None
    if form is None or token is None:
        return None
    error = form(message)
    labels = tuple(_labels(error))
    if message[0] == 3:
        return Answer(token, "hop", labels=labels)
    if message[0] == 2:
        return Answer(token, "too big", int(error.mtu))
    return Answer(token, "prohibited" if error.code in _PROHIBITED[6] else "unreachable", labels=labels)


def _quoted_token(flow: Flow, quoted: bytes) -> int | None:
    """The token of the quoted packet when it is ours, by its first 8 bytes: many routers quote no more (RFC 792)."""
    head = IP(quoted) if flow.family == 4 else IPv6(quoted)
    if head.version != flow.family or not _is_same(head.dst, flow.target):
        return None
    start = head.ihl * 4 if flow.family == 4 else _IPV6_HEADER_BYTES
    above = quoted[start : start + 8]
    protocol = head.proto if flow.family == 4 else head.nh
    if len(above) < 8:
        return None
    if flow.kind == "tcp":
        ports = int.from_bytes(above[:2], "big"), int.from_bytes(above[2:4], "big")
        return int.from_bytes(above[4:8], "big") if (protocol, *ports) == (6, flow.identity, flow.port) else None
    identity = int.from_bytes(above[4:6], "big")
    ours = protocol == (1 if flow.family == 4 else 58) and above[0] == (8 if flow.family == 4 else 128)
    return int.from_bytes(above[6:8], "big") if ours and identity == flow.identity else None


def _is_same(one: str, other: str) -> bool:
    return ipaddress.ip_address(one) == ipaddress.ip_address(other)


def _labels(error: Any) -> Iterator[int]:
    """The labels of an MPLS stack object, if there is one (RFC 4884 puts it behind the quoted packet)."""
    extension = getattr(error, "ext", None)
    stack = extension.getlayer(ICMPExtension_MPLS) if extension is not None else None
    for entry in stack.stack if stack is not None else ():
        layer = entry
        # scapy reads what is below the first label as its payload.
        for _ in range(_MAX_LABELS):
            if not isinstance(layer, MPLS):
                break
            yield int(layer.label)
            layer = layer.payload
