"""The doctor against real delegations on loopback: a parent, name servers, and each fault that is made in practice."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.name
import dns.rdatatype
import pytest

from nearpath.doctor import Finding, examine
from tests.nearpath.name_server import Net, Respond, child, loopback_net, parent, records, refuse, reply

ORIGIN = "dl.nearpath-lab.org."
NS1, NS2 = f"ns1.{ORIGIN}", f"ns2.{ORIGIN}"
GLUE = {NS1: ("127.0.53.1",), NS2: ("127.0.53.2",)}
ZONE = """\
$TTL 3600
@   IN SOA ns1 hostmaster 7 3600 600 86400 60
    IN NS  ns1
    IN NS  ns2
ns1 IN A   127.0.53.1
ns2 IN A   127.0.53.2
"""
PARENT = "127.0.53.9"


@pytest.fixture
def net() -> Iterator[Net]:
    with loopback_net() as made:
        yield made


class Site:
    """An installation's files, and what the doctor says of its delegation."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "nearpath.yaml"
        self.zone = folder / "zone"
        self.zone.write_text(ZONE)
        self.file.write_text(
            "version: 1\nstate_dir: state\ndns: {listen: ['127.0.0.1:0']}\n"
            f"zones: [{{origin: {ORIGIN}, file: zone}}]\n"
        )

    def look(self, net: Net, **options: str) -> list[Finding]:
        options = options or {"parent": f"{PARENT}:{net.port}"}
        findings = examine(self.file, ns_port=net.port, **options)  # type: ignore[arg-type]
        return [finding for finding in findings if finding.area == "delegation"]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def bad(findings: list[Finding]) -> list[str]:
    assert all(finding.fix for finding in findings if finding.level == "bad"), "each bad finding says what to do"
    return [finding.what for finding in findings if finding.level == "bad"]


def notes(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.level == "note"]


GOOD = child(ORIGIN)


def two_servers(net: Net, first: Respond = GOOD, second: Respond = GOOD, tcp: bool = True) -> None:
    net.serve("127.0.53.1", first)
    net.serve("127.0.53.2", second, tcp)


def test_a_right_delegation_is_good(net: Net, site: Site) -> None:
    two_servers(net)
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), GLUE))
    findings = site.look(net)
    assert bad(findings) == []
    assert notes(findings) == []
    good = [finding.what for finding in findings]
    assert len(good) == 3
    assert "as the zone does, with the right glue and no DS" in good[0]
    assert "127.0.53.1" in good[1]
    assert "127.0.53.2" in good[2]


def test_a_name_that_only_the_parent_has(net: Net, site: Site) -> None:
    two_servers(net)
    old = f"old.{ORIGIN}"
    net.serve("127.0.53.3", child(ORIGIN))
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2, old), {**GLUE, old: ("127.0.53.3",)}))
    found = bad(site.look(net))
    assert any(f"the parent names {old}, which the zone does not" in what for what in found)


def test_a_name_that_only_the_zone_has_is_a_note(net: Net, site: Site) -> None:
    two_servers(net)
    net.serve(PARENT, parent(ORIGIN, (NS1,), {NS1: GLUE[NS1]}))
    findings = site.look(net)
    assert bad(findings) == []
    assert any(f"the zone names {NS2}, which the parent does not" in what for what in notes(findings))


def test_no_name_in_common(net: Net, site: Site) -> None:
    two_servers(net)
    other = f"a.{ORIGIN}"
    net.serve(PARENT, parent(ORIGIN, (other,), {other: ("127.0.53.1",)}))
    assert any("not one in common" in what for what in bad(site.look(net)))


def test_wrong_glue_and_missing_glue(net: Net, site: Site) -> None:
    two_servers(net)
    net.serve("127.0.53.4", child(ORIGIN))
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), {NS1: ("127.0.53.4",)}))
    found = bad(site.look(net))
    assert f"{ORIGIN}: the parent's glue for {NS1} is 127.0.53.4, the zone has 127.0.53.1" in found
    assert f"{ORIGIN}: the parent has no glue for {NS2}, which lies in the zone: nobody can find it" in found
    assert len(found) == 2


def test_a_lame_server(net: Net, site: Site) -> None:
    two_servers(net, second=refuse)
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), GLUE))
    found = bad(site.look(net))
    assert found == [f"{ORIGIN}: its server {NS2} at 127.0.53.2:{net.port} is lame: REFUSED, not authoritative"]


def test_a_server_whose_tcp_port_is_closed(net: Net, site: Site) -> None:
    two_servers(net, tcp=False)
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), GLUE))
    found = bad(site.look(net))
    assert len(found) == 1
    assert f"{NS2} at 127.0.53.2:{net.port} does not answer over TCP" in found[0]


def test_a_server_that_is_not_there(net: Net, site: Site) -> None:
    net.serve("127.0.53.1", child(ORIGIN))
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), GLUE))
    found = bad(site.look(net))
    assert len(found) == 1
    assert f"{NS2} at 127.0.53.2:{net.port} does not answer" in found[0]


def test_a_ds_record_at_the_parent(net: Net, site: Site) -> None:
    two_servers(net)
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), GLUE, ds=True))
    findings = site.look(net)
    assert len(bad(findings)) == 1
    assert "the parent has a DS record: validating resolvers will refuse our answers" in bad(findings)[0]


def test_a_server_with_an_old_zone_and_short_ttls_are_notes(net: Net, site: Site) -> None:
    two_servers(net, second=child(ORIGIN, serial=6))
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), GLUE, ttl=60))
    findings = site.look(net)
    assert bad(findings) == []
    assert any(f"6 at 127.0.53.2:{net.port}" in what for what in notes(findings))
    assert any("the parent's NS records live only 60 s" in what for what in notes(findings))


def test_a_zone_that_nobody_delegates(net: Net, site: Site) -> None:
    def nothing(query: dns.message.Message, _tcp: bool) -> dns.message.Message:
        message = reply(query, rcode=dns.rcode.NXDOMAIN)
        message.authority.append(records("nearpath-lab.org.", 60, "SOA", "a. b. 1 1 1 1 1"))
        return message

    net.serve(PARENT, nothing)
    findings = site.look(net)
    assert len(bad(findings)) == 1
    assert f"{ORIGIN} is not delegated" in bad(findings)[0]
    fix = next(f.fix for f in findings if f.level == "bad")
    assert NS1 in fix
    assert NS2 in fix


def test_a_parent_that_cannot_be_asked_is_a_note_with_a_line_to_run(net: Net, site: Site) -> None:
    net.serve(PARENT, lambda _query, _tcp: None)
    findings = site.look(net)
    assert bad(findings) == []
    (note,) = findings
    assert "the parent could not be asked" in note.what
    assert f"dig @{PARENT} -p {net.port} +norecurse NS {ORIGIN}" in note.fix


def test_a_silent_resolver_ends_in_a_note(net: Net, site: Site) -> None:
    server = net.serve("127.0.53.8", lambda _query, _tcp: None)
    findings = site.look(net, resolver=f"127.0.53.8:{server.port}")
    assert [f.level for f in findings] == ["note"]
    assert "the resolver does not answer" in findings[0].what


def test_the_parent_is_found_through_a_resolver(net: Net, site: Site) -> None:
    two_servers(net)
    net.serve(PARENT, parent(ORIGIN, (NS1, NS2), GLUE))
    up = "nearpath-lab.org."
    known = {
        (".", "NS"): records(".", 60, "NS", "a.root."),
        (up, "SOA"): records(up, 60, "SOA", f"ns.{up} h.{up} 1 1 1 1 1"),
        (up, "NS"): records(up, 60, "NS", f"ns.{up}"),
        (f"ns.{up}", "A"): records(f"ns.{up}", 60, "A", PARENT),
    }

    def resolver(query: dns.message.Message, _tcp: bool) -> dns.message.Message:
        asked = query.question[0]
        rrset = known.get((asked.name.to_text(), dns.rdatatype.to_text(asked.rdtype)))
        servfail = asked.name == dns.name.from_text(ORIGIN)
        message = reply(query, aa=False, rcode=dns.rcode.SERVFAIL if servfail else dns.rcode.NOERROR)
        message.flags |= dns.flags.RA
        if rrset is not None:
            message.answer.append(rrset)
        return message

    net.serve("127.0.53.8", resolver)
    findings = site.look(net, resolver=f"127.0.53.8:{net.port}")
    assert bad(findings) == [f"{ORIGIN}: the resolver 127.0.53.8 cannot resolve it (SERVFAIL)"]
    assert any("with the right glue and no DS" in f.what for f in findings)


def test_reserved_domains_are_not_asked_for(site: Site, net: Net) -> None:
    asked = []
    net.serve("127.0.53.8", lambda query, _tcp: asked.append(query))
    site.file.write_text(site.file.read_text().replace(ORIGIN, "mirror.example."))
    (note,) = site.look(net, resolver=f"127.0.53.8:{net.port}")
    assert note.level == "note"
    assert "reserved" in note.what
    assert asked == []


@pytest.mark.skipif(shutil.which("knotd") is None, reason="needs the program knotd (Debian package knot)")
def test_a_parent_served_by_knot(net: Net, site: Site, tmp_path: Path) -> None:
    two_servers(net)
    up = "nearpath-lab.org."
    (tmp_path / "parent.zone").write_text(
        f"{up} 3600 SOA ns.{up} h.{up} 1 3600 600 86400 60\n{up} 3600 NS ns.{up}\nns.{up} 3600 A {PARENT}\n"
        f"{ORIGIN} 3600 NS {NS1}\n{ORIGIN} 3600 NS {NS2}\n{NS1} 3600 A 127.0.53.1\n{NS2} 3600 A 127.0.53.7\n"
        f"{ORIGIN} 3600 DS 12345 13 2 {'ab' * 32}\n"
    )
    (tmp_path / "knot.conf").write_text(
        f"server:\n  listen: {PARENT}@{net.port}\n  rundir: {tmp_path}\n"
        f"database:\n  storage: {tmp_path}/db\n"
        f"zone:\n  - domain: {up}\n    storage: {tmp_path}\n    file: parent.zone\n"
    )
    log = (tmp_path / "knot.log").open("wb")
    knot = subprocess.Popen(["knotd", "-c", str(tmp_path / "knot.conf")], stdout=log, stderr=log)
    try:
        _until_it_listens(PARENT, net.port, knot, tmp_path / "knot.log")
        found = bad(site.look(net))
    finally:
        knot.terminate()
        knot.wait(20)
        log.close()
    assert len(found) == 3, found
    assert any(f"glue for {NS2} is 127.0.53.7, the zone has 127.0.53.2" in what for what in found)
    assert any("has a DS record" in what for what in found)
    assert any(f"{NS2} at 127.0.53.7:{net.port} does not answer" in what for what in found)


def _until_it_listens(host: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            socket.create_connection((host, port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    pytest.fail(f"knotd does not listen: {log.read_text()}")
