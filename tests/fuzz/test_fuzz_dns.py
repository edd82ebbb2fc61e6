"""Mutated queries and plain noise: no exception, bounded and decodable answers, no answer to an answer."""

from __future__ import annotations

import random
from pathlib import Path

import dns.message
import pytest
from scapy.layers.dns import DNS, DNSQR, DNSRR, DNSRROPT, EDNS0ClientSubnet

from dnsd.answer import ClientAddress, Transport, answer, failure
from dnsd.image import AnswerOptions, Image, compile_image
from dnsd.zone import parse_zone
from policy.regions import RegionSource, compile_regions
from policy.table import Quality, Row, SteeredService, SteeringTable

VECTORS = Path(__file__).parent.parent / "vectors" / "dns"
CLIENT = ClientAddress(4, 0x0A010203)
ROUNDS = 20_000

MAX_BARE_GROWTH = 11
"""An answer to a message that is no good is at most an OPT record longer than it."""


@pytest.fixture(scope="module")
def image() -> Image:
    row = Row(("m",), ("203.0.113.1",), 30, Quality.LIVE)
    regions = compile_regions([RegionSource("east", prefixes=("10.0.0.0/8",))])
    service = SteeredService("dl.example.org.", (row, row), ())
    zone = parse_zone((VECTORS / "example.org.zone").read_text(), "example.org.")
    return compile_image([zone], SteeringTable(1, 0.0, regions, {service.owner: service}), AnswerOptions(b"id"))


def seeds() -> list[bytes]:
    subnet = DNSRROPT(
        rclass=1232, rdata=[EDNS0ClientSubnet(family=1, source_plen=24, scope_plen=0, address="10.1.2.0")]
    )
    made = [
        DNS(id=1, rd=1, qd=DNSQR(qname=name, qtype=qtype), ar=extra)
        for name in (
            "dl.example.org",
            "alias2.example.org",
            "x.old.example.org",
            "a.sub.example.org",
            "big.example.org",
        )
        for qtype in ("A", "TXT")
        for extra in ([], DNSRROPT(rclass=4096), subnet)
    ]
    made.append(
        DNS(id=2, qd=DNSQR(qname="example.org", qtype="SOA"), an=DNSRR(rrname="a.example.org", rdata="1.2.3.4"))
    )
    return [bytes(message) for message in made]


def mutate(rng: random.Random, data: bytes) -> bytes:
    octets = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        at = rng.randrange(len(octets)) if octets else 0
        match rng.randrange(6):
            case 0 if octets:
                octets[at] = rng.randrange(256)
            case 1 if octets:
                octets[at] ^= 1 << rng.randrange(8)
            case 2:
                del octets[at : at + rng.randrange(1, 5)]
            case 3:
                octets[at:at] = rng.randbytes(rng.randrange(1, 5))
            case 4 if octets:
                octets[at] = rng.choice((0, 1, 0x3F, 0x40, 0xC0, 0xFF))
            case _:
                octets += octets[at : at + rng.randrange(1, 40)]
    return bytes(octets)


def check(image: Image, data: bytes, transport: Transport) -> int:
    """The RCODE of the answer, -1 for silence."""
    wire = answer(image, data, CLIENT, transport)
    broken = failure(image, data)
    if len(data) < 12 or data[2] & 0x80:
        assert wire is None
        assert broken is None
        return -1
    assert wire is not None
    assert broken is not None
    assert wire[:2] == data[:2]
    assert wire[2] & 0x80, "an answer must never look like a query, or two servers could talk for ever"
    assert len(wire) <= (1232 if transport is Transport.UDP else 65535)
    rcode = dns.message.from_wire(wire).rcode()
    if rcode not in (0, 3, 6):
        # No records, so nothing to gain for who forges a source address: an OPT and, if refused, an EDE and the subnet.
        assert len(wire) <= len(data) + MAX_BARE_GROWTH + 6
    return rcode


def test_mutated_queries(image: Image) -> None:
    rng = random.Random(20240101)
    basis = seeds()
    seen: dict[int, int] = {}
    for i in range(ROUNDS):
        rcode = check(image, mutate(rng, rng.choice(basis)), Transport(i % 2))
        seen[rcode] = seen.get(rcode, 0) + 1
    # The corpus reaches every kind of answer, or it proves nothing.
    assert {-1, 0, 1, 3, 4, 5, 16} <= set(seen), seen


def test_noise(image: Image) -> None:
    rng = random.Random(7)
    for i in range(ROUNDS):
        check(image, rng.randbytes(rng.randrange(0, 80)), Transport(i % 2))


def test_the_largest_messages(image: Image) -> None:
    rng = random.Random(9)
    head = bytes.fromhex("000101000001000000000001")
    for body in (
        b"\0" * 65000,
        b"\xc0" * 65000,
        b"\x3f" * 65000,
        rng.randbytes(65000),
        b"\0\0\1\0\1" + b"\0\0\x29" * 20000,
    ):
        check(image, head + body, Transport.TCP)
        check(image, head[:6] + b"\xff\xff" * 3 + body, Transport.TCP)


def test_udp_answers_do_not_amplify_much(image: Image) -> None:
    # Without EDNS 512 octets are the limit; with it dns.max_udp_size is.
    for data in seeds():
        wire = answer(image, data, CLIENT, Transport.UDP)
        assert wire is not None
        assert len(wire) <= (1232 if data[11] else 512)
