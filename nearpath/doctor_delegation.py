"""The delegation: what the parent says, held against our zones and against the servers it sends the world to.

The levels follow what resolvers do with each fault (RFC 1912 2.8, RFC 2181 6.1, RFC 4035 5.2): `bad` is what makes clients
fail or wait, `note` what is untidy or could not be seen from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import dns.name
import dns.rcode

from nearpath.doctor_ask import Server, at_once
from nearpath.doctor_finding import Area, Finding, some
from nearpath.doctor_host import is_local
from nearpath.doctor_parent import (
    Referral,
    Seen,
    World,
    ask_parents,
    ask_servers,
    parent_of,
    private,
    resolve,
    resolver_fault,
    through_resolver,
)
from nearpath.doctor_zone import OwnZone

_AREA = Area("delegation")
_MAX_ZONES = 20
_SHORT_TTL_S = 300
_LONG_TTL_S = 2 * 86_400
_RESERVED = [
    dns.name.from_text(n) for n in ("test", "example", "invalid", "localhost", "local", "internal", "home.arpa")
]
"""Names that nobody is ever delegated (RFC 6761, RFC 8375)."""


def check_delegations(world: World, zones: Sequence[OwnZone], local: Mapping[str, str]) -> Iterator[Finding]:
    """Findings on the delegation of each zone; `local` are the addresses of this host."""
    todo = []
    for zone in zones[:_MAX_ZONES]:
        if zone.origin == dns.name.root:
            yield _AREA.note("the root zone has no parent: nothing to compare")
        elif world.parent is None and any(zone.origin.is_subdomain(name) for name in _RESERVED):
            yield _AREA.note(
                f"{zone.name} lies in a reserved domain: nobody delegates it", "for a lab: --parent ADDR:PORT"
            )
        else:
            todo.append(zone)
    if not todo:
        return
    fault = resolver_fault(world) if world.parent is None else ""
    if fault:
        yield _AREA.note(
            f"the parent could not be asked: the resolver does not answer ({fault})",
            f"name another with --resolver ADDR, or ask by hand where there is a network: {_by_hand(todo[0].origin)}",
        )
        return
    for findings in at_once(lambda zone: list(_check_zone(world, zone, local)), todo):
        yield from findings


def _by_hand(origin: dns.name.Name) -> str:
    return f"`dig +trace +additional NS {origin}`"


def _check_zone(world: World, zone: OwnZone, local: Mapping[str, str]) -> Iterator[Finding]:
    parent, servers = ("the parent", [world.parent]) if world.parent else parent_of(world, zone.origin)
    if not servers:
        yield _AREA.note(
            f"{zone.name}: the servers of its parent zone could not be found", f"ask by hand: {_by_hand(zone.origin)}"
        )
        return
    referrals = ask_parents(servers, zone.origin)
    good = [referral for referral in referrals if not referral.fault]
    if not good:
        yield from _no_referral(zone, parent, referrals)
        return
    if len({(r.ns, tuple(sorted(r.glue.items()))) for r in good}) > 1:
        yield _AREA.note(
            f"{zone.name}: the parent's servers do not say the same; a change is on its way, or one of them is stuck",
            "wait for the parent's refresh time, then run doctor again",
        )
    yield from judge_referral(zone, good[0])
    addresses = _server_addresses(world, zone, good[0])
    seen = ask_servers(world, zone.origin, addresses)
    yield from judge_servers(zone, addresses, seen, local)
    if world.parent is None:
        yield from _judge_resolver(world, zone)


def _no_referral(zone: OwnZone, parent: str, referrals: Sequence[Referral]) -> Iterator[Finding]:
    refuted = next((r for r in referrals if r.refuted), None)
    if refuted is not None:
        servers = ", ".join(n.to_text() for n in sorted(zone.ns))
        yield _AREA.bad(
            f"{zone.name} is not delegated: asked {refuted.server} for its NS records, {refuted.fault}",
            f"add NS records for {zone.name} ({servers}) and the glue to {parent}, see docs/delegation.md",
        )
        return
    first = referrals[0]
    yield _AREA.note(
        f"{zone.name}: the parent could not be asked: {first.server}: {first.fault}",
        f"ask by hand where port 53 is open: `dig {first.server.dig()} +norecurse NS {zone.name}`",
    )


def judge_referral(zone: OwnZone, referral: Referral) -> Iterator[Finding]:
    """NS names, glue, TTL and DS at the parent against the zone's own records."""
    faults = [*_judge_names(zone, referral), *_judge_glue(zone, referral)]
    if referral.ds:
        faults.append(
            _AREA.bad(
                f"{zone.name}: the parent has a DS record: validating resolvers will refuse our answers, "
                "which are not signed",
                "have the DS record removed at the parent (registrar: `DNSSEC off`), and wait for its TTL",
            )
        )
    yield from faults
    if not faults:
        yield _AREA.good(
            f"{zone.name}: the parent ({referral.server}) names {some([n.to_text() for n in sorted(referral.ns)])}, "
            "as the zone does, with the right glue and no DS"
        )
    for whose, ttl_s in (("the parent's", referral.ttl_s), ("the zone's", zone.ns_ttl_s)):
        if ttl_s < _SHORT_TTL_S:
            yield _AREA.note(
                f"{zone.name}: {whose} NS records live only {ttl_s} s: resolvers ask for them all the time",
                "an hour to a day is usual; it has nothing to do with how fast steering acts",
            )
        elif ttl_s > _LONG_TTL_S:
            yield _AREA.note(
                f"{zone.name}: {whose} NS records live {ttl_s // 86_400} days: a server that moves is asked at its old "
                "address that long",
                "lower it before you move a server",
            )


def _judge_names(zone: OwnZone, referral: Referral) -> Iterator[Finding]:
    theirs, ours = referral.ns, zone.ns
    if not theirs & ours:
        yield _AREA.bad(
            f"{zone.name}: the parent names {_names(theirs)}, the zone {_names(ours)}: not one in common",
            "make both the same: at the parent, or the NS records at the zone's apex",
        )
        return
    if theirs - ours:
        yield _AREA.bad(
            f"{zone.name}: the parent names {_names(theirs - ours)}, which the zone does not (its NS: {_names(ours)})",
            "have it removed at the parent, or add it to the NS records at the zone's apex",
        )
    if ours - theirs:
        yield _AREA.note(
            f"{zone.name}: the zone names {_names(ours - theirs)}, which the parent does not",
            "add it at the parent, or remove it from the zone: resolvers mostly go by the parent",
        )


def _names(names: frozenset[dns.name.Name]) -> str:
    return some([name.to_text() for name in sorted(names)])


def _judge_glue(zone: OwnZone, referral: Referral) -> Iterator[Finding]:
    for name in sorted(referral.ns):
        if not name.is_subdomain(zone.origin):
            continue
        glue = referral.glue.get(name, frozenset())
        ours = zone.addresses.get(name, frozenset())
        if not glue:
            yield _AREA.bad(
                f"{zone.name}: the parent has no glue for {name}, which lies in the zone: nobody can find it",
                f"add its addresses at the parent ({some(sorted(ours)) or 'and in the zone'})",
            )
        elif glue - ours:
            yield _AREA.bad(
                f"{zone.name}: the parent's glue for {name} is {some(sorted(glue))}, "
                f"the zone has {some(sorted(ours)) or 'none'}",
                "make both the same; until then part of the world asks the wrong address",
            )
        elif ours - glue:
            yield _AREA.note(
                f"{zone.name}: the parent's glue for {name} lacks {some(sorted(ours - glue))}", "add it at the parent"
            )


def _server_addresses(world: World, zone: OwnZone, referral: Referral) -> dict[dns.name.Name, frozenset[str]]:
    """Where resolvers will go: by the parent's glue, by our zone, and by the resolver for names elsewhere."""
    names = sorted(referral.ns | zone.ns)

    def find(name: dns.name.Name) -> frozenset[str]:
        known = referral.glue.get(name, frozenset()) | zone.addresses.get(name, frozenset())
        return known or (frozenset() if name.is_subdomain(zone.origin) else resolve(world, name))

    return dict(zip(names, at_once(find, names), strict=True))


def judge_servers(
    zone: OwnZone,
    addresses: Mapping[dns.name.Name, frozenset[str]],
    seen: Sequence[Seen],
    local: Mapping[str, str],
) -> Iterator[Finding]:
    """Lame, silent or differing servers, and whether we are among them."""
    for name, found in addresses.items():
        if not found and not name.is_subdomain(zone.origin):
            yield _AREA.bad(
                f"{zone.name}: its name server {name} has no address (as seen from here)",
                "correct the name at the parent and in the zone, or give it an address in its own zone",
            )
    # A host without a way out sees all other servers silent: then silence says nothing about them.
    outside = any(s.udp.message or s.tcp.message for s in seen if not is_local(s.server.host, local))
    for one in seen:
        yield from _judge_server(zone, one, outside or is_local(one.server.host, local))
    serials: dict[int, list[Server]] = {}
    for one in seen:
        soa = one.udp.answer(zone.origin, "SOA")
        if soa is not None and one.udp.authoritative:
            serials.setdefault(soa[0].serial, []).append(one.server)
    if serials and set(serials) != {zone.serial}:
        text = "; ".join(f"{serial} at {some([str(s) for s in servers])}" for serial, servers in serials.items())
        yield _AREA.note(
            f"{zone.name}: not all servers have the serial of our file ({zone.serial}): {text}",
            "copy the zone file to every appliance and `nearpath reload` there",
        )
    everywhere = frozenset().union(*addresses.values()) if addresses else frozenset()
    yield from _judge_places(zone, everywhere, local)


def _judge_places(zone: OwnZone, everywhere: frozenset[str], local: Mapping[str, str]) -> Iterator[Finding]:
    if everywhere and not any(is_local(address, local) for address in everywhere):
        yield _AREA.note(
            f"{zone.name}: none of its servers' addresses ({some(sorted(everywhere))}) is on this host",
            "right behind NAT (forward UDP and TCP port 53); else the delegation leads elsewhere",
        )
    if len(everywhere) == 1 and len(zone.ns) > 1:
        yield _AREA.note(
            f"{zone.name}: all its {len(zone.ns)} server names lead to one address",
            "run a second appliance elsewhere: with one, an outage takes the zone along (docs/delegation.md)",
        )
    inner = sorted(a for a in everywhere if private(a))
    if inner and len(inner) < len(everywhere):
        yield _AREA.note(
            f"{zone.name}: {some(inner)} cannot be reached from the Internet", "give out public addresses only"
        )


def _judge_server(zone: OwnZone, seen: Seen, conclusive: bool) -> Iterator[Finding]:
    who = f"{zone.name}: its server {seen.ns} at {seen.server}"
    again = f"`dig {seen.server.dig()} +norecurse SOA {zone.name}`"
    if seen.udp.message is None and seen.tcp.message is None:
        text = f"{who} does not answer ({seen.udp.fault})"
        if conclusive:
            yield _AREA.bad(
                text, "start it, open UDP and TCP port 53 in its firewall, or take it out of the delegation"
            )
        else:
            yield _AREA.note(f"{text}; but nothing outside answers this host", f"ask from elsewhere: {again}")
        return
    if seen.udp.message is None:
        yield _AREA.bad(f"{who} answers over TCP, not over UDP ({seen.udp.fault})", "open UDP port 53 in its firewall")
    elif seen.udp.answer(zone.origin, "SOA") is None or not seen.udp.authoritative:
        yield _AREA.bad(
            f"{who} is lame: {seen.udp.rcode}, {'' if seen.udp.authoritative else 'not '}authoritative",
            "load the zone there, or take it out of the delegation: resolvers lose time with it",
        )
        return
    if seen.tcp.message is None:
        yield _AREA.bad(
            f"{who} does not answer over TCP ({seen.tcp.fault})",
            "open TCP port 53 in its firewall: truncated answers are asked for again over TCP (RFC 7766)",
        )
    elif seen.udp.message is not None:
        yield _AREA.good(f"{who} answers over UDP and TCP, authoritative")


def _judge_resolver(world: World, zone: OwnZone) -> Iterator[Finding]:
    heard = through_resolver(world, zone.origin)
    if heard.message is None:
        return
    soa = heard.answer(zone.origin, "SOA")
    resolver = world.resolver.nameservers[0]
    if soa is None:
        yield _AREA.bad(
            f"{zone.name}: the resolver {resolver} cannot resolve it ({heard.rcode})",
            "mend the faults above; SERVFAIL with all good mostly is DNSSEC: a DS record at the parent",
        )
    else:
        yield _AREA.good(f"{zone.name}: the resolver {resolver} finds it, serial {soa[0].serial}")
