"""Runs tests/vectors/dns/answers.txt: each question whole, with random case, and from the memo; dnspython decodes."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest

from dnsd.answer import ClientAddress, Transport, answer
from dnsd.image import Image

FILE = Path(__file__).parent.parent / "vectors" / "dns" / "answers.txt"
SECTIONS = ("an", "ns", "ar")


@dataclass
class Case:
    line: int
    name: str
    rtype: str
    asked: dict[str, str]
    expected: dict[str, str] = field(default_factory=dict)
    rcode: str = ""
    sections: dict[str, list[str]] = field(default_factory=lambda: {s: [] for s in SECTIONS})


def read_cases() -> list[Case]:
    cases: list[Case] = []
    for number, line in enumerate(FILE.read_text().splitlines(), 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        options = dict(word.partition("=")[::2] for word in words[3 if words[0] == "?" else 2 :])
        if words[0] == "?":
            cases.append(Case(number, words[1], words[2], options))
        elif words[0] == "=":
            cases[-1].rcode, cases[-1].expected = words[1], options
        else:
            cases[-1].sections[words[0]].append(normal(line[3:]))
    return cases


def normal(record: str) -> str:
    owner, ttl, rtype, rdata = record.split(None, 3)
    parsed = dns.rdata.from_text("IN", rtype, rdata)
    return f"{owner} {ttl} {rtype} {parsed.to_text()}".lower()  # names compare without case


CASES = read_cases()


def make_query(case: Case) -> dns.message.Message:
    asked = case.asked
    rdclass = dns.rdataclass.from_text(asked.get("class", "IN"))
    message = dns.message.make_query(case.name, case.rtype, rdclass)
    if "edns" in asked:
        options: list[dns.edns.Option] = []
        if "ecs" in asked:
            address, length = asked["ecs"].split("/")
            options.append(dns.edns.ECSOption(address, int(length)))
        if "nsid" in asked:
            options.append(dns.edns.NSIDOption(b""))
        flags = dns.flags.DO if "do" in asked else 0
        message.use_edns(0, flags, int(asked["edns"] or 1232), options=options)
    return message


def client_of(case: Case) -> ClientAddress:
    address = ipaddress.ip_address(case.asked.get("from", "198.18.0.1"))
    return ClientAddress(address.version, int(address))


def transport_of(case: Case) -> Transport:
    return Transport.TCP if "tcp" in case.asked else Transport.UDP


def records_of(section: list[dns.rrset.RRset]) -> list[str]:
    return sorted(
        f"{rrset.name.to_text()} {rrset.ttl} {dns.rdatatype.to_text(rrset.rdtype)} {rdata.to_text()}".lower()
        for rrset in section
        for rdata in rrset
    )


def shown_flags(reply: dns.message.Message) -> dict[str, str]:
    found = {name: "" for name, bit in (("aa", dns.flags.AA), ("tc", dns.flags.TC)) if reply.flags & bit}
    if reply.edns >= 0:
        found["edns"] = ""
        if reply.ednsflags & dns.flags.DO:
            found["do"] = ""
    for option in reply.options:
        match option:
            case dns.edns.ECSOption():
                found["scope"] = str(option.scopelen)
            case dns.edns.EDEOption():
                found["ede"] = str(int(option.code))
            case dns.edns.NSIDOption():
                found["nsid"] = ""
    return found


def check(case: Case, query: dns.message.Message, wire: bytes | None) -> None:
    assert wire is not None
    reply = dns.message.from_wire(wire)
    assert reply.id == query.id
    assert reply.flags & dns.flags.QR
    assert bool(reply.flags & dns.flags.RD) == bool(query.flags & dns.flags.RD)
    assert not reply.flags & (dns.flags.RA | dns.flags.AD | dns.flags.CD)
    assert reply.question[0].name.labels == query.question[0].name.labels, "the case of the QNAME is kept (0x20)"
    assert dns.rcode.to_text(reply.rcode()) == case.rcode
    assert shown_flags(reply) == case.expected
    assert {
        s: records_of(r) for s, r in zip(SECTIONS, (reply.answer, reply.authority, reply.additional), strict=True)
    } == {s: sorted(r) for s, r in case.sections.items()}
    for sent in query.options:
        if isinstance(sent, dns.edns.ECSOption):
            echoed = next(o for o in reply.options if isinstance(o, dns.edns.ECSOption))
            assert (echoed.family, echoed.addrdata, echoed.srclen) == (sent.family, sent.addrdata, sent.srclen)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.line}:{c.name}:{c.rtype}")
def test_vector(image: Image, case: Case) -> None:
    query = make_query(case)
    check(case, query, answer(image, query.to_wire(), client_of(case), transport_of(case)))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.line}:{c.name}:{c.rtype}")
def test_vector_in_mixed_case_without_rd_again_from_the_memo(image: Image, case: Case) -> None:
    query = make_query(case)
    query.flags &= ~dns.flags.RD
    labels = [
        re.sub(rb"[a-z]", lambda m: m[0].upper() if m.start() % 2 else m[0], label)
        for label in query.question[0].name.labels
    ]
    query.question[0].name = dns.name.Name(labels)
    for _ in range(2):
        check(case, query, answer(image, query.to_wire(), client_of(case), transport_of(case)))


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.line}:{c.name}:{c.rtype}")
def test_every_truncation_of_a_query_is_a_format_error_or_silence(image: Image, case: Case) -> None:
    wire = make_query(case).to_wire()
    for cut in range(len(wire)):
        reply = answer(image, wire[:cut], client_of(case), transport_of(case))
        if cut < 12:
            assert reply is None
        else:
            assert reply is not None
            assert reply[:2] == wire[:2]
            assert dns.message.from_wire(reply).rcode() == dns.rcode.FORMERR


@pytest.mark.parametrize("case", CASES[:5], ids=lambda c: f"{c.line}:{c.name}")
def test_a_tail_behind_the_message_is_a_format_error(image: Image, case: Case) -> None:
    reply = answer(image, make_query(case).to_wire() + b"\0", client_of(case), transport_of(case))
    assert reply is not None
    assert dns.message.from_wire(reply).rcode() == dns.rcode.FORMERR
