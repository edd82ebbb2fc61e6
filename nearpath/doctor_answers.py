"""Real questions to our own addresses: what resolvers will ask, over UDP and TCP, with and without EDNS and ECS."""

from __future__ import annotations

import ipaddress
import statistics
from collections.abc import Iterator, Sequence
from itertools import islice, product

import dns.edns
import dns.flags
import dns.name
import dns.rcode

from core.config import Config, Service, split_listen
from nearpath.doctor_ask import Heard, Server, ask, at_once
from nearpath.doctor_finding import Area, Finding, some
from nearpath.doctor_host import local_addresses
from nearpath.doctor_zone import OwnZone

_AREA = Area("answers")
PAYLOADS_BYTES = (512, 1232, 4096)
"""The least that is allowed, what flag day 2020 made the default, and the old default that fragments."""
_MAX_ZONES = 50
_MAX_SERVICES = 100
_MAX_SERVERS = 16
_SLOW_S = 0.05
_CLIENT = dns.edns.ECSOption("198.51.100.0", 24)
"""A documentation prefix (RFC 5737): in nobody's region table, and any client subnet has to be echoed."""
_NOT_OURS = dns.name.from_text("nearpath-doctor.invalid.")


def own_servers(listens: Sequence[str]) -> list[Server]:
    """Where to ask ourselves: each listen address; for a wildcard every address of this host, since an answer that
    leaves from another address than was asked is thrown away by resolvers. Port 0 cannot be asked and is left out."""
    found: list[Server] = []
    for listen in listens:
        host, port = split_listen(listen)
        address = ipaddress.ip_address(host)
        if not address.is_unspecified:
            found.append(Server(host, port))
            continue
        there = [ipaddress.ip_address(a) for a in _addresses_or_loopback()]
        found += [Server(str(a), port) for a in there if a.version == address.version and not a.is_link_local]
    return [server for server in dict.fromkeys(found) if server.port][:_MAX_SERVERS]


def _addresses_or_loopback() -> list[str]:
    try:
        return list(local_addresses())
    except Exception:  # pyroute2's own family of errors; `doctor_ports` has said so already
        return ["127.0.0.1", "::1"]


def check_answers(config: Config, zones: Sequence[OwnZone], servers: Sequence[Server]) -> Iterator[Finding]:
    """Ask every server for every zone and every steered name."""
    alive = []
    for server, findings in zip(servers, at_once(lambda s: _check_server(config, zones, s), servers), strict=True):
        yield from findings
        if not any(f.level == "bad" and "no answer" in f.what for f in findings):
            alive.append(server)
    if not alive:
        return
    names = list(islice(config.services.items(), _MAX_SERVICES))
    work = list(product(alive, names))
    checked = at_once(lambda item: _check_service(config, item[0], *item[1]), work)
    faults = [finding for findings in checked for finding in findings]
    yield from faults
    if names and not any(f.level == "bad" for f in faults):
        yield _AREA.good(f"steered names answered with their mirrors' addresses (A, AAAA, ECS echoed): {len(names)}")


def _check_server(config: Config, zones: Sequence[OwnZone], server: Server) -> list[Finding]:
    probe = ask(server, zones[0].origin if zones else dns.name.root, "SOA")
    if probe.message is None:
        fix = "a firewall on this host (`nft list ruleset`), or the server hangs: see its log, `journalctl -u nearpath`"
        return [_AREA.bad(f"{server}: no answer over UDP ({probe.fault})", fix)]
    findings = [f for zone in zones[:_MAX_ZONES] for f in _check_zone(server, zone)]
    findings += _check_strangers(server, zones)
    findings += _check_edns(config, server, zones)
    return findings


def _check_zone(server: Server, zone: OwnZone) -> Iterator[Finding]:
    took_s = []
    for tcp in (False, True):
        how = "TCP" if tcp else "UDP"
        heard = ask(server, zone.origin, "SOA", tcp=tcp)
        soa = heard.answer(zone.origin, "SOA")
        if heard.message is None:
            fix = "TCP must work (RFC 7766): look for a firewall rule; dns.tcp_connections may be used up, see /metrics"
            yield _AREA.bad(f"{server} {how}: {zone.name} SOA: {heard.fault}", fix)
        elif soa is None or not heard.authoritative:
            yield _AREA.bad(
                f"{server} {how}: {zone.name} SOA: {heard.rcode}, "
                f"{'not ' if not heard.authoritative else ''}authoritative, {'no ' if soa is None else ''}SOA",
                "is another name server on this address, or was the zone added without `nearpath reload`?",
            )
        else:
            took_s.append(heard.took_s)
            if soa[0].serial != zone.serial:
                yield _AREA.bad(
                    f"{server} {how}: {zone.name} has serial {soa[0].serial}, its file has {zone.serial}",
                    "`nearpath reload`; if it fails it says why",
                )
    heard = ask(server, zone.origin, "NS")
    ns = heard.answer(zone.origin, "NS")
    served = frozenset(rdata.target for rdata in ns) if ns is not None else frozenset()
    if served != zone.ns:
        yield _AREA.bad(
            f"{server}: {zone.name} NS: {heard.rcode} {some(sorted(n.to_text() for n in served)) or 'nothing'}, "
            f"the file has {some(sorted(n.to_text() for n in zone.ns))}",
            "`nearpath reload`",
        )
    elif len(took_s) == 2:
        took = statistics.fmean(took_s)
        text = f"{server}: {zone.name} SOA and NS, UDP {took_s[0] * 1000:.1f} ms, TCP {took_s[1] * 1000:.1f} ms"
        fix = "the host is overloaded, or the zone's answers come from another host: `top`, `nearpath status`"
        yield _AREA.note(text, fix) if took > _SLOW_S else _AREA.good(text)


def _check_strangers(server: Server, zones: Sequence[OwnZone]) -> Iterator[Finding]:
    """A name of nobody's: an authoritative server refuses it and offers no recursion (else it can be abused)."""
    if any(_NOT_OURS.is_subdomain(zone.origin) for zone in zones):
        return
    heard = ask(server, _NOT_OURS, "A", recurse=True)
    if heard.message is None:
        return
    if heard.message.flags & dns.flags.RA or heard.message.rcode() != dns.rcode.REFUSED:
        yield _AREA.bad(
            f"{server}: a foreign name is answered with {heard.rcode}, not REFUSED",
            "this is a resolver, not nearpath: find it with `ss -lnup`, and close it to the world",
        )


def _check_edns(config: Config, server: Server, zones: Sequence[OwnZone]) -> Iterator[Finding]:
    if not zones:
        return
    findings = [*_payloads(config, server, zones), *_options(config, server, zones[0])]
    yield from findings
    if not findings:
        sizes = "/".join(map(str, PAYLOADS_BYTES))
        nsid = f", NSID {config.dns.nsid!r}" if config.dns.nsid else ""
        yield _AREA.good(f"{server}: EDNS payload sizes {sizes} are kept, unknown versions refused, ECS echoed{nsid}")


def _payloads(config: Config, server: Server, zones: Sequence[OwnZone]) -> Iterator[Finding]:
    """The longest answer of all zones with each payload size: whole and short enough, or truncated and whole by TCP."""
    for zone in zones[:_MAX_ZONES]:
        name, rtype = zone.largest
        whole = ask(server, name, rtype, tcp=True, payload_bytes=4096)
        if whole.message is None:
            continue  # reported by the SOA question already
        if whole.truncated:
            yield _AREA.bad(
                f"{server} TCP: {name} {rtype} is truncated", "TCP answers must be whole (RFC 7766): report this"
            )
        for payload in (None, *PAYLOADS_BYTES):
            heard = ask(server, name, rtype, edns=None if payload is None else 0, payload_bytes=payload or 512)
            limit = max(512, min(payload or 512, config.dns.max_udp_size))
            asked = f"{name} {rtype} with {'no EDNS' if payload is None else f'payload size {payload}'}"
            if heard.message is None:
                yield _AREA.bad(
                    f"{server} UDP: {asked}: {heard.fault}",
                    "long UDP answers are lost: a firewall drops fragments or EDNS; lower dns.max_udp_size to 1232B",
                )
            elif heard.size_bytes > limit:
                yield _AREA.bad(f"{server} UDP: {asked}: {heard.size_bytes} octets, {limit} are allowed", "report this")
            elif not heard.truncated and heard.answer(name, rtype) != whole.answer(name, rtype):
                yield _AREA.bad(f"{server} UDP: {asked}: not what TCP says, and not marked as truncated", "report this")
            elif payload is None and heard.message.edns >= 0:
                yield _AREA.bad(f"{server} UDP: {asked}: the answer has EDNS (RFC 6891 6.1.1)", "report this")


def _options(config: Config, server: Server, zone: OwnZone) -> Iterator[Finding]:
    heard = ask(server, zone.origin, "SOA", options=[dns.edns.NSIDOption(b""), _CLIENT])
    if heard.message is None:
        yield _AREA.bad(
            f"{server} UDP: no answer with NSID and ECS options ({heard.fault})", "look for a firewall that minds EDNS"
        )
        return
    nsid = heard.option(dns.edns.NSIDOption)
    got = nsid.nsid if nsid is not None else b""
    if got != config.dns.nsid.encode():
        yield _AREA.bad(
            f"{server}: NSID is {got.decode(errors='replace')!r}, dns.nsid is {config.dns.nsid!r}",
            "another server answers here, or dns.nsid was changed without a restart: `systemctl restart nearpath`",
        )
    if (fault := _ecs_fault(heard)) or (echo := heard.option(dns.edns.ECSOption)) is None or echo.scopelen != 0:
        yield _AREA.bad(
            f"{server}: {zone.name} SOA with a client subnet: {fault or 'its scope is not 0, though all get this answer'}",
            "resolvers would drop or fragment what they cache (RFC 7871 7.2): report this",
        )
    newer = ask(server, zone.origin, "SOA", edns=1)
    if newer.message is None or newer.message.rcode() != dns.rcode.BADVERS:
        yield _AREA.bad(
            f"{server}: EDNS version 1 is answered with {newer.rcode}, not BADVERS (RFC 6891 6.1.3)",
            "another server or a middle box answers here: find it with `ss -lnup`",
        )


def _ecs_fault(heard: Heard) -> str:
    """What is wrong with the echo of our client subnet (RFC 7871 7.2.1); empty: nothing."""
    echo = heard.option(dns.edns.ECSOption)
    if echo is None:
        return "the client subnet is not echoed"
    if (echo.family, echo.srclen, echo.address) != (_CLIENT.family, _CLIENT.srclen, _CLIENT.address):
        return f"another client subnet comes back ({echo.to_text()})"
    return ""


def _check_service(config: Config, server: Server, owner: str, service: Service) -> list[Finding]:
    findings: list[Finding] = []
    name = dns.name.from_text(owner)
    if name.is_wild():
        return findings
    for rtype, version in (("A", 4), ("AAAA", 6)):
        have = {
            a
            for m in service.mirrors
            for a in config.mirrors[m].addresses
            if ipaddress.ip_address(a).version == version
        }
        for tcp, options in ((False, [_CLIENT]), (False, []), (True, [])):
            heard = ask(server, name, rtype, tcp=tcp, options=options)
            how = f"{server} {'TCP' if tcp else 'UDP'}: {owner} {rtype}{' with ECS' if options else ''}"
            if fault := _service_fault(heard, name, rtype, have, service, bool(options)):
                fix = f"see `nearpath explain {owner} --client 198.51.100.0/24`; `nearpath reload` if the file is newer"
                findings.append(_AREA.bad(f"{how}: {fault}", fix))
    return findings


def _service_fault(heard: Heard, name: dns.name.Name, rtype: str, have: set[str], service: Service, ecs: bool) -> str:
    if heard.message is None:
        return heard.fault
    if heard.message.rcode() != dns.rcode.NOERROR or not heard.authoritative:
        return f"{heard.rcode}{'' if heard.authoritative else ', not authoritative'}"
    rrset = heard.answer(name, rtype)
    if rrset is None and have:
        return "no address is answered"
    given = {rdata.address for rdata in rrset} if rrset is not None else set()
    strange = {a for a in given if a not in have}
    if strange:
        return f"{some(sorted(strange))} is answered, which is no mirror of it"
    if rrset is not None and rrset.ttl > service.ttl:
        return f"TTL {rrset.ttl} s is above the configured {service.ttl:g} s"
    return _ecs_fault(heard) if ecs else ""
