"""dnsd beside Knot DNS: the same zones, the same questions, the same answers (where the RFCs leave no choice)."""

from __future__ import annotations

import itertools
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from dnsd.answer import ClientAddress, Transport, answer
from dnsd.image import Image, compile_image
from dnsd.zone import parse_zone

VECTORS = Path(__file__).parent.parent / "vectors" / "dns"
ORIGINS = ("example.org.", "example.com.", "secure.example.org.")
KNOTD = shutil.which("knotd") or shutil.which("knotd", path="/usr/sbin")

pytestmark = pytest.mark.skipif(KNOTD is None, reason="knotd is not installed (apt-get install knot)")

TYPES = ("A", "AAAA", "NS", "SOA", "MX", "TXT", "CNAME", "DNAME", "SRV", "DS", "HINFO", "TYPE65280")


@pytest.fixture(scope="module")
def knot_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    assert KNOTD is not None
    folder = tmp_path_factory.mktemp("knot")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    zones = "\n".join(f"  - domain: {origin}\n    file: {VECTORS / (origin + 'zone')}" for origin in ORIGINS)
    (folder / "knot.conf").write_text(
        f"server:\n  rundir: {folder}\n  listen: 127.0.0.1@{port}\ndatabase:\n  storage: {folder}\n"
        f"template:\n  - id: default\n    storage: {folder}\n    zonefile-sync: -1\n    journal-content: none\n"
        f"    semantic-checks: off\nlog:\n  - target: stderr\n    any: error\nzone:\n{zones}\n"
    )
    process = subprocess.Popen([KNOTD, "-c", str(folder / "knot.conf")], stderr=subprocess.PIPE, text=True)
    try:
        wait_for_zones(process, port)
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)


def wait_for_zones(process: subprocess.Popen[str], port: int) -> None:
    deadline_s = time.monotonic() + 20
    waiting = set(ORIGINS)
    while waiting and time.monotonic() < deadline_s:
        if process.poll() is not None:
            pytest.skip(f"knotd does not start here: {process.communicate()[1]}")
        for origin in list(waiting):
            try:
                reply = dns.query.udp(dns.message.make_query(origin, "SOA"), "127.0.0.1", timeout=0.2, port=port)
            except (dns.exception.Timeout, OSError):
                break
            if reply.rcode() == dns.rcode.NOERROR:
                waiting.discard(origin)
        time.sleep(0.05)
    assert not waiting, f"knotd did not load {waiting}"


@pytest.fixture(scope="module")
def plain_image() -> Image:
    return compile_image([parse_zone((VECTORS / f"{o}zone").read_text(), o) for o in ORIGINS], None)


def question_names() -> list[str]:
    """Every name of the zones, its parents, a name below each, and neighbours."""
    image = compile_image([parse_zone((VECTORS / f"{o}zone").read_text(), o) for o in ORIGINS], None)
    stored = {name for zone in image.zones for name in (*zone.nodes, *zone.glue)}
    texts = {dns.name.from_wire(name, 0)[0].to_text() for name in stored}
    below = {f"{label}.{text}" for text in texts for label in ("x", "*", "a.b") if len(text) < 200}
    return sorted(texts | below | {"example.net.", "org.", "."})


def ours(image: Image, query: dns.message.Message) -> dns.message.Message:
    wire = answer(image, query.to_wire(), ClientAddress(4, 0x7F000001), Transport.UDP)
    assert wire is not None
    return dns.message.from_wire(wire)


def section(rrsets: list[dns.rrset.RRset]) -> list[str]:
    return sorted(f"{r.name} {r.ttl} {r.rdtype} {sorted(d.to_text() for d in r)}".lower() for r in rrsets)


def shown(reply: dns.message.Message) -> dict[str, object]:
    return {
        "rcode": dns.rcode.to_text(reply.rcode()),
        "flags": dns.flags.to_text(reply.flags),
        "answer": section(reply.answer),
        "authority": section(reply.authority),
        "additional": section(reply.additional),
        "edns": (reply.edns, bool(reply.ednsflags & dns.flags.DO)),
    }


BY_CHOICE = {("toother.example.org.", rtype) for rtype in TYPES} | {
    ("example.com.", "NS"),
    ("secure.example.org.", "NS"),
}
"""dnsd follows aliases, and adds servers' addresses, across all the zones it serves; Knot stays inside of one."""


def test_same_answers(knot_port: int, plain_image: Image) -> None:
    rng = random.Random(7)
    differences = []
    compared = 0
    asked = set()
    for name, rtype in itertools.product(question_names(), TYPES):
        query = dns.message.make_query(name, rtype)
        if rng.random() < 0.5:
            query.use_edns(0, dns.flags.DO if rng.random() < 0.3 else 0, rng.choice((512, 1232)))
        knot = shown(dns.query.udp(query, "127.0.0.1", timeout=5, port=knot_port))
        mine = shown(ours(plain_image, query))
        compared += 1
        asked.add((name, rtype))
        if knot != mine and (name, rtype) not in BY_CHOICE:
            parts = {key: (knot[key], mine[key]) for key in knot if knot[key] != mine[key]}
            differences.append(f"{name} {rtype}: (knot, dnsd) {parts}")
    assert compared > 1000
    assert asked >= BY_CHOICE
    assert not differences, "\n".join(differences)
