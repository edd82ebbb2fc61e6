"""Which records answer a question: RFC 1034 4.3.2 with wildcards (RFC 4592), DNAME (RFC 6672) and steered names."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

from dnsd import query, records
from dnsd.image import Image
from dnsd.names import MAX_NAME_BYTES, is_under
from dnsd.records import Node, RRset
from dnsd.zone import Zone
from policy.table import Row

MAX_CHAIN = 16
"""Aliases followed in one answer. A resolver asks on from the last one; real chains have two or three."""

MAX_ADDITIONAL = 32
"""Names whose addresses are added to one answer."""

ANY_TTL_S = 3600
"""RFC 8482 4.2 asks for a TTL long enough to keep the question away."""

Owned = tuple[bytes, RRset]
"""An RRset at the owner name it is answered with (a wildcard's is the name asked for)."""


class Resolution(NamedTuple):
    """The sections of an answer before they are written.

    `glue` must go with a referral, `additional` may be left out. `row` is the steered row answered, if any (only then
    does the answer depend on the client). `at_node`: the question's name stands in the zone itself.
    """

    rcode: int
    authoritative: bool
    answers: tuple[Owned, ...]
    authority: tuple[Owned, ...] = ()
    glue: tuple[Owned, ...] = ()
    additional: tuple[Owned, ...] = ()
    row: Row | None = None
    at_node: bool = False


class _Step(NamedTuple):
    """What one name of the chain yields: records, then either the next name or the end of it."""

    answers: tuple[Owned, ...] = ()
    follow: bytes = b""
    rcode: int = query.NOERROR
    authority: tuple[Owned, ...] = ()
    cut: bytes = b""
    row: Row | None = None


def resolve(image: Image, name: bytes, qtype: int, region_id: int) -> Resolution | None:
    """The answer to (`name` in lower case, `qtype`) for a client of a region; None when no zone of ours holds the name."""
    zone = _zone_for(image, name, qtype)
    if zone is None:
        return None
    at_node = name in zone.nodes
    answers: list[Owned] = []
    seen = {name}
    while True:
        step = _step(image, zone, name, qtype, region_id)
        answers += [owned for owned in step.answers if owned not in answers]  # a DNAME may be met twice
        name = step.follow
        if not name or name in seen or len(seen) > MAX_CHAIN:
            break
        seen.add(name)
        onward = _zone_for(image, name, qtype)
        if onward is None:  # the alias leaves our zones: the resolver goes on from here
            break
        zone = onward
    # RFC 1035 4.1.1: AA is about the first owner name of the answer section, so a referral at a chain's end keeps it.
    authoritative = not step.cut or bool(answers)
    in_section = {(owner, rrset.rtype) for owner, rrset in answers}
    glue, additional = _addresses(image, zone, (*answers, *step.authority), step.cut, in_section)
    return Resolution(step.rcode, authoritative, tuple(answers), step.authority, glue, additional, step.row, at_node)


def _zone_for(image: Image, name: bytes, qtype: int) -> Zone | None:
    if qtype == records.DS:
        # RFC 4035 3.1.4.1: DS is the parent's, so where we serve both sides of a cut the upper zone answers.
        upper = image.find_zone(name, above=True)
        if upper is not None:
            return upper
    return image.find_zone(name)


def _step(image: Image, zone: Zone, name: bytes, qtype: int, region_id: int) -> _Step:
    nodes = zone.nodes
    at = name
    node = nodes.get(at)
    while node is None:
        at = at[1 + at[0] :]
        node = nodes.get(at)
    exact = at == name
    if node.cut and not (exact and qtype == records.DS):
        return _referral(at, node)
    if exact:
        return _at_node(image, zone, node, name, qtype, region_id)
    dname = node.rrsets.get(records.DNAME)
    if dname is not None:
        return _rename(at, dname, name, qtype)
    wildcard = nodes.get(b"\x01*" + at)
    if wildcard is not None:
        return _at_node(image, zone, wildcard, name, qtype, region_id)
    return _Step(rcode=query.NXDOMAIN, authority=((zone.origin, zone.negative),))


def _at_node(image: Image, zone: Zone, node: Node, owner: bytes, qtype: int, region_id: int) -> _Step:
    rrsets = node.rrsets
    cname = rrsets.get(records.CNAME)
    if cname is not None and qtype != records.CNAME:
        # RFC 8482 4.2: an alias answers ANY as well, but is not followed (RFC 1034 4.3.2 3a).
        return _Step(((owner, cname),), b"" if qtype == records.ANY else cname.targets[0])
    if qtype == records.ANY:
        if rrsets or node.steered:
            return _Step(((owner, rrsets.get(records.HINFO, _ANY_ANSWER)),))
    elif node.steered and qtype in _FAMILY:
        service = image.service(node.steered)
        row = service.row(_FAMILY[qtype], region_id) if service else None
        if row is not None and row.addresses:
            return _Step(((owner, _steered_rrset(qtype, row.ttl_s, row.addresses)),), row=row)
    elif qtype in rrsets:
        return _Step(((owner, rrsets[qtype]),))
    return _Step(authority=((zone.origin, zone.negative),))


def _referral(owner: bytes, node: Node) -> _Step:
    return _Step(authority=((owner, node.rrsets[records.NS]),), cut=owner)


def _rename(owner: bytes, dname: RRset, name: bytes, qtype: int) -> _Step:
    """The DNAME and the CNAME made from it (RFC 6672 3.1: with the DNAME's TTL)."""
    renamed = name[: -len(owner)] + dname.targets[0]
    if len(renamed) > MAX_NAME_BYTES:
        return _Step(((owner, dname),), rcode=query.YXDOMAIN)
    alias = RRset(records.CNAME, dname.ttl_s, ((b"", renamed),), (renamed,))
    asked_for = qtype in (records.CNAME, records.ANY)  # then the alias is the answer and is not followed
    return _Step(((owner, dname), (name, alias)), b"" if asked_for else renamed)


_FAMILY = {records.A: 4, records.AAAA: 6}

# RFC 8482 4.2: CPU is "RFC8482", OS is empty.
_ANY_ANSWER = RRset(records.HINFO, ANY_TTL_S, ((b"\x07RFC8482\x00",),))


@lru_cache(maxsize=4096)
def _steered_rrset(rtype: int, ttl_s: int, addresses: tuple[str, ...]) -> RRset:
    return RRset(rtype, ttl_s, tuple((ipaddress.ip_address(text).packed,) for text in addresses))


def _addresses(
    image: Image, last: Zone, owned: tuple[Owned, ...], cut: bytes, present: set[tuple[bytes, int]]
) -> tuple[tuple[Owned, ...], tuple[Owned, ...]]:
    """(required glue, other addresses) of the servers and hosts that `owned` names.

    Steered addresses are never added: additional data would be kept under a scope that is not theirs (RFC 7871 7.2.1).
    """
    glue: list[Owned] = []
    other: list[Owned] = []
    targets = dict.fromkeys(t for _, rrset in owned if rrset.rtype in _ADDRESSED for t in rrset.targets)
    for target in list(targets)[:MAX_ADDITIONAL]:
        # RFC 9471: the addresses of servers named inside the delegated zone are part of the referral.
        required = bool(cut) and is_under(target, cut)
        zone = last if required else image.find_zone(target)
        if zone is None:
            continue
        there = zone.glue.get(target) or zone.nodes.get(target)
        if there is None:
            continue
        for rtype in (records.A, records.AAAA):
            rrset = there.rrsets.get(rtype)
            if rrset is not None and (target, rtype) not in present:
                (glue if required else other).append((target, rrset))
    return tuple(glue), tuple(other)


_ADDRESSED = frozenset({records.NS, records.MX, records.SRV})
