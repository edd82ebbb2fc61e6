"""What our own zones say about themselves, in dnspython's terms: the side of a delegation that we hold."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import dns.name
import dns.rdatatype

from core.config import Config
from core.errors import NearpathError
from dnsd import records
from dnsd.records import Node
from dnsd.zone import Zone, parse_zone


@dataclass(frozen=True, slots=True)
class OwnZone:
    """A zone from its file: its servers, and their addresses as far as they are in it.

    `largest` is the name and type of the RRset that makes the longest answer.
    """

    origin: dns.name.Name
    serial: int
    ns: frozenset[dns.name.Name]
    ns_ttl_s: int
    addresses: Mapping[dns.name.Name, frozenset[str]]
    largest: tuple[dns.name.Name, str]

    @property
    def name(self) -> str:
        """The origin as text, with its final dot."""
        return self.origin.to_text()


def read_own_zones(config: Config) -> list[OwnZone]:
    """The zones of `config` that can be read; faults of the others are reported by loading the configuration."""
    zones = []
    for entry in config.zones:
        try:
            zones.append(
                own_zone(parse_zone(Path(entry.file).read_text("utf-8"), entry.origin), frozenset(config.services))
            )
        except (NearpathError, OSError, UnicodeDecodeError):
            continue
    return zones


def own_zone(zone: Zone, steered: frozenset[str] = frozenset()) -> OwnZone:
    """The doctor's view of a parsed zone; `steered` names are answered with other addresses than it has."""
    servers = zone.nodes[zone.origin].rrsets[records.NS]
    addresses = {}
    for target in servers.targets:
        node = zone.nodes.get(target)
        if (target in zone.glue) or (node is not None):
            addresses[_name(target)] = _addresses(zone.glue.get(target) or zone.nodes[target])
    _size, owner, rtype = max(
        (sum(len(part) for rdata in rrset.rdatas for part in rdata) + 12 * len(rrset.rdatas), owner, rtype)
        for owner, node in zone.nodes.items()
        if not node.cut and not owner.startswith(b"\x01*")
        for rtype, rrset in node.rrsets.items()
        if rtype not in (records.CNAME, records.DNAME, records.RRSIG)
        and not (rtype in (records.A, records.AAAA) and _name(owner).to_text() in steered)
    )
    return OwnZone(
        _name(zone.origin),
        zone.serial,
        frozenset(_name(target) for target in servers.targets),
        servers.ttl_s,
        addresses,
        (_name(owner), dns.rdatatype.to_text(dns.rdatatype.RdataType.make(rtype))),
    )


def _name(wire: bytes) -> dns.name.Name:
    return dns.name.from_wire(wire, 0)[0]


def _addresses(node: Node) -> frozenset[str]:
    return frozenset(
        str(ipaddress.ip_address(rdata[0]))
        for rtype in (records.A, records.AAAA)
        for rdata in (node.rrsets[rtype].rdatas if rtype in node.rrsets else ())
    )
