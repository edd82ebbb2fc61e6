"""What is allowed in a zone and still goes wrong in practice: warnings for `nearpath doctor` and the log."""

from __future__ import annotations

from collections.abc import Iterator

from dnsd import names, records
from dnsd.records import Node, RRset
from dnsd.zone import Zone

MAX_WARNINGS = 100
"""A zone with more of them needs one look, not a hundred thousand lines."""

_DAY_S = 86_400


def check_zone(zone: Zone) -> tuple[str, ...]:
    """The warnings about `zone`, one sentence each, at most MAX_WARNINGS of them."""
    found: list[str] = []
    for warning in _all(zone):
        if len(found) == MAX_WARNINGS:
            found.append(f"more than {MAX_WARNINGS} warnings; the rest is left out")
            break
        found.append(warning)
    return tuple(found)


def _all(zone: Zone) -> Iterator[str]:
    apex = zone.nodes[zone.origin]
    servers = apex.rrsets[records.NS]
    if len(servers.rdatas) < 2:
        yield "only one NS record: when that server is away, so is the zone (RFC 2182 asks for two)"
    if zone.negative.ttl_s > _DAY_S:
        yield f"negative answers live {zone.negative.ttl_s} s: a name added later stays unknown that long (RFC 2308 5)"
    if any(t in apex.rrsets for t in (records.DNSKEY, records.RRSIG)):
        yield "the zone is signed: DNSSEC is not served yet, remove its DS record from the parent"
    for name, node in zone.nodes.items():
        yield from _servers(zone, name, node)
        for rtype in (records.MX, records.SRV):
            if rtype in node.rrsets:
                yield from _targets(zone, name, node.rrsets[rtype])


def _servers(zone: Zone, name: bytes, node: Node) -> Iterator[str]:
    rrset = node.rrsets.get(records.NS)
    if rrset is None:
        return
    for target in rrset.targets:
        if not names.is_under(target, zone.origin) or target in zone.glue:
            continue
        who = f"{names.to_text(name)} names {names.to_text(target)} as its server"
        there = zone.nodes.get(target)
        if node.cut and names.is_under(target, name):
            yield f"{who}, which lies below the delegation and has no glue address here: it cannot be found"
        elif there is None or not (records.A in there.rrsets or records.AAAA in there.rrsets):
            alias = there is not None and records.CNAME in there.rrsets
            yield f"{who}, which is {'an alias (RFC 2181 10.3)' if alias else 'in this zone but has no address'}"


def _targets(zone: Zone, name: bytes, rrset: RRset) -> Iterator[str]:
    for target in rrset.targets:
        if not names.is_under(target, zone.origin) or target in zone.glue:
            continue
        there = _node_for(zone, target)
        if records.CNAME in there.rrsets:
            yield f"{names.to_text(name)} points to {names.to_text(target)}, an alias (RFC 2181 10.3)"
        elif not there.rrsets:
            yield f"{names.to_text(name)} points to {names.to_text(target)}, which has no records"


def _node_for(zone: Zone, name: bytes) -> Node:
    """The node that answers `name`: itself, the cut above it, the wildcard beside it, or an empty one."""
    if name in zone.nodes:
        return zone.nodes[name]
    encloser = name
    while encloser not in zone.nodes:
        encloser = names.parent(encloser)
    above = zone.nodes[encloser]
    if above.cut or records.DNAME in above.rrsets:
        return above
    return zone.nodes.get(b"\x01*" + encloser, Node())
