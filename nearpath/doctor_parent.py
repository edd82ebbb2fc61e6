"""What the world outside says about a zone: its parent's delegation and the servers it names. Only asks, judges nothing."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import dns.exception
import dns.flags
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from nearpath.doctor_ask import Heard, Server, ask, at_once, find

_LIFETIME_S = 3.0
_MAX_PARENT_SERVERS = 4
"""Four of the parent's servers are enough to see whether a change has arrived everywhere."""
_MAX_NS_ADDRESSES = 26
_ADDRESS_TYPES = ("A", "AAAA")


@dataclass(frozen=True, slots=True)
class World:
    """How the outside is asked: through `resolver`, at one given server of the parent or all of them; `ns_port` is
    where name servers listen (53, but in labs)."""

    resolver: dns.resolver.Resolver
    parent: Server | None = None
    ns_port: int = 53


@dataclass(frozen=True, slots=True)
class Referral:
    """What one server of the parent says about a zone; `fault` when it said nothing of use, `refuted` when it says that
    there is no such delegation."""

    server: Server
    fault: str = ""
    refuted: bool = False
    ns: frozenset[dns.name.Name] = frozenset()
    ttl_s: int = 0
    glue: Mapping[dns.name.Name, frozenset[str]] = field(default_factory=dict)
    ds: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One address of one name server, asked for the zone's SOA over UDP and TCP."""

    ns: dns.name.Name
    server: Server
    udp: Heard
    tcp: Heard


def make_resolver(server: Server | None) -> dns.resolver.Resolver:
    """A resolver with short patience: `server`, or those of /etc/resolv.conf. NoResolverConfiguration: there is none."""
    resolver = dns.resolver.Resolver(configure=server is None)
    if server is not None:
        resolver.nameservers = [server.host]
        resolver.port = server.port
    resolver.timeout = _LIFETIME_S / 2
    resolver.lifetime = _LIFETIME_S
    return resolver


def resolver_fault(world: World) -> str:
    """Why the resolver cannot be used; empty when it answers."""
    try:
        world.resolver.resolve(dns.name.root, "NS", raise_on_no_answer=False)
    except dns.resolver.NXDOMAIN:
        return ""
    except dns.exception.DNSException as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return ""


def parent_of(world: World, origin: dns.name.Name) -> tuple[str, list[Server]]:
    """(name of the parent zone, some of its servers); empty when they cannot be found out."""
    try:
        parent = dns.resolver.zone_for_name(origin.parent(), resolver=world.resolver, lifetime=2 * _LIFETIME_S)
        names = [rdata.target for rdata in world.resolver.resolve(parent, "NS")]
    except (dns.exception.DNSException, dns.name.NoParent):
        return "", []
    addresses = [
        a for name in at_once(lambda n: sorted(resolve(world, n)), names[:_MAX_PARENT_SERVERS]) for a in name[:1]
    ]
    return parent.to_text(), [Server(address, world.ns_port) for address in addresses]


def resolve(world: World, name: dns.name.Name) -> frozenset[str]:
    """Addresses of `name` as the resolver sees them; empty when there are none or it does not answer."""
    found: set[str] = set()
    deadline_s = time.monotonic() + _LIFETIME_S
    for rtype in _ADDRESS_TYPES:
        if time.monotonic() >= deadline_s:
            break
        try:
            found |= {rdata.address for rdata in world.resolver.resolve(name, rtype)}
        except dns.exception.DNSException:
            continue
    return frozenset(found)


def ask_parents(servers: Sequence[Server], origin: dns.name.Name) -> list[Referral]:
    """The delegation of `origin` as each of the parent's servers has it."""
    return at_once(lambda server: _ask_parent(server, origin), servers)


def _ask_parent(server: Server, origin: dns.name.Name) -> Referral:
    heard = ask(server, origin, "NS", payload_bytes=4096)
    if heard.truncated:
        heard = ask(server, origin, "NS", tcp=True)
    message = heard.message
    if message is None:
        return Referral(server, heard.fault)
    if message.rcode() == dns.rcode.NXDOMAIN:
        return Referral(server, "it says that there is no such name (NXDOMAIN)", refuted=True)
    if message.rcode() != dns.rcode.NOERROR:
        return Referral(server, f"it answers {heard.rcode}: it is no server of the parent zone")
    # A server that holds parent and child answers from the child, all others refer (RFC 1034 4.3.2).
    rrset = find(message.authority, origin, "NS") or find(message.answer, origin, "NS")
    if rrset is None:
        return Referral(server, "it has no NS records for the zone: nothing is delegated", refuted=heard.authoritative)
    ns = frozenset(rdata.target for rdata in rrset)
    glue: dict[dns.name.Name, frozenset[str]] = {}
    for extra in message.additional:
        if extra.name in ns and extra.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            glue[extra.name] = glue.get(extra.name, frozenset()) | {rdata.address for rdata in extra}
    signed = ask(server, origin, "DS")
    return Referral(server, "", False, ns, rrset.ttl, glue, signed.answer(origin, "DS") is not None)


def ask_servers(world: World, origin: dns.name.Name, addresses: Mapping[dns.name.Name, frozenset[str]]) -> list[Seen]:
    """Ask every address of every name server of the zone for its SOA, over UDP and TCP."""
    work = [
        (name, Server(address, world.ns_port))
        for name in sorted(addresses)
        for address in sorted(addresses[name], key=lambda a: (":" in a, a))
    ][:_MAX_NS_ADDRESSES]

    def look(item: tuple[dns.name.Name, Server]) -> Seen:
        name, server = item
        return Seen(name, server, ask(server, origin, "SOA"), ask(server, origin, "SOA", tcp=True))

    return at_once(look, work)


def through_resolver(world: World, origin: dns.name.Name) -> Heard:
    """The zone's SOA as the first of the resolver's servers sees it, with all that can go wrong on the way."""
    server = Server(str(world.resolver.nameservers[0]), world.resolver.port)
    return ask(server, origin, "SOA", recurse=True, tries=1, timeout_s=_LIFETIME_S)


def private(address: str) -> bool:
    """Whether an address cannot be reached from the Internet (RFC 1918, RFC 4193, loopback, documentation, ...)."""
    return not ipaddress.ip_address(address).is_global
