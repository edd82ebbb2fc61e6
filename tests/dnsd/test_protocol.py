"""Messages that are not plain queries: headers, counts, names, OPT and client subnet as bytes."""

from __future__ import annotations

import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest
from scapy.layers.dns import DNS

from dnsd.answer import ClientAddress, Transport, answer, failure, respond
from dnsd.image import AnswerOptions, Image, ImageError, compile_image
from dnsd.template import Shape, make_template

CLIENT = ClientAddress(4, 0x0A020304)
WWW = b"\x03www\x07example\x03org\0"
DL = b"\x02dl\x07example\x03org\0"


def message(
    question: bytes = WWW + b"\0\x1c\0\1",
    extra: bytes = b"",
    counts: tuple[int, ...] = (1, 0, 0, 0),
    bits: int = 0x0100,
) -> bytes:
    return struct.pack("!6H", 0xBEEF, bits, *counts) + question + extra


def opt(options: bytes = b"", size: int = 1232, ttl: int = 0, owner: bytes = b"\0") -> bytes:
    return owner + struct.pack("!HHIH", 41, size, ttl, len(options)) + options


def ecs(family: int, source: int, scope: int, octets: bytes) -> bytes:
    body = struct.pack("!HBB", family, source, scope) + octets
    return struct.pack("!HH", 8, len(body)) + body


def ask(image: Image, data: bytes) -> dns.message.Message:
    wire = answer(image, data, CLIENT, Transport.UDP)
    assert wire is not None
    assert wire[:2] == data[:2]
    return dns.message.from_wire(wire)


def rcode(image: Image, data: bytes) -> str:
    return dns.rcode.to_text(ask(image, data).rcode())


def test_what_is_no_query_gets_silence(image: Image) -> None:
    assert answer(image, b"", CLIENT, Transport.UDP) is None
    assert answer(image, message()[:11], CLIENT, Transport.UDP) is None
    assert answer(image, message(bits=0x8100), CLIENT, Transport.UDP) is None
    assert failure(image, message(bits=0x8100)) is None


@pytest.mark.parametrize("opcode", [1, 2, 4, 5, 6, 15])
def test_other_opcodes_are_not_implemented(image: Image, opcode: int) -> None:
    reply = ask(image, message(bits=opcode << 11 | 0x0100))
    assert dns.rcode.to_text(reply.rcode()) == "NOTIMP"
    assert reply.opcode() == opcode
    assert reply.flags & dns.flags.RD


@pytest.mark.parametrize(
    "data",
    [
        message(b"", counts=(0, 0, 0, 0)),
        message(WWW + b"\0\1\0\1" + WWW + b"\0\1\0\1", counts=(2, 0, 0, 0)),
        message(counts=(1, 0, 0, 1)),
        message(b"\xc0\x0c\0\1\0\1"),
        message(b"\x03www\xc0\x0c\0\1\0\1"),
        message(b"\x40" + b"a" * 64 + b"\0\0\1\0\1"),
        message(b"\x80" + b"a" * 128 + b"\0\0\1\0\1"),
        message((b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1"),
        message(b"\x01a" * 127 + b"\x01a\0\0\1\0\1"),
        message(extra=b"\0" * 17 * 11, counts=(1, 17, 0, 0)),
    ],
    ids=["none", "two", "count", "pointer", "label+pointer", "label64", "label128", "long", "many", "records"],
)
def test_format_errors_echo_nothing_unparsed(image: Image, data: bytes) -> None:
    reply = ask(image, data)
    assert dns.rcode.to_text(reply.rcode()) == "FORMERR"
    assert [*reply.answer, *reply.authority, *reply.additional] == []


def test_a_name_of_255_octets_and_binary_labels_are_names(image: Image) -> None:
    longest = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\0"
    assert len(longest) == 255
    assert rcode(image, message(longest + b"\0\1\0\1")) == "REFUSED"
    assert rcode(image, message(b"\x03\xff\0.\x07example\x03org\0\0\1\0\1")) == "NXDOMAIN"  # RFC 2181 11


@pytest.mark.parametrize(
    ("extra", "counts", "expected"),
    [
        (opt(), (1, 0, 0, 1), "NOERROR"),
        (opt(size=0), (1, 0, 0, 1), "NOERROR"),
        (opt() + opt(), (1, 0, 0, 2), "FORMERR"),
        (opt(owner=b"\x01a\0"), (1, 0, 0, 1), "FORMERR"),
        (opt(owner=b"\xc0\x0c"), (1, 0, 0, 1), "FORMERR"),
        (opt(), (1, 1, 0, 0), "FORMERR"),
        (opt(b"\0\3\0"), (1, 0, 0, 1), "FORMERR"),
        (opt(b"\0\3\0\5abc"), (1, 0, 0, 1), "FORMERR"),
        (opt(b"\xff\xee\0\2ab"), (1, 0, 0, 1), "NOERROR"),
        (opt(ttl=0x0000_7FFF), (1, 0, 0, 1), "NOERROR"),
        (opt(ttl=0x0001_0000), (1, 0, 0, 1), "BADVERS"),
        (opt(b"\0\3\0\5abc", ttl=0x0001_0000), (1, 0, 0, 1), "BADVERS"),
        (opt() + b"\0" + struct.pack("!HHIH", 250, 255, 0, 0), (1, 0, 0, 2), "NOTAUTH"),
        (b"\xc0\x0c\0\1\0\1\0\0\0\0\0\0", (1, 0, 0, 1), "NOERROR"),
        (b"\xc0", (1, 0, 0, 1), "FORMERR"),
        (b"\x41\0" + b"\0" * 10, (1, 0, 0, 1), "FORMERR"),
    ],
)
def test_edns(image: Image, extra: bytes, counts: tuple[int, ...], expected: str) -> None:
    reply = ask(image, message(extra=extra, counts=counts))
    assert dns.rcode.to_text(reply.rcode()) == expected
    assert reply.question


def test_badvers_tells_our_version_and_carries_no_records(image: Image) -> None:
    reply = ask(image, message(extra=opt(ttl=0x0005_8000), counts=(1, 0, 0, 1)))
    assert (reply.edns, reply.rcode(), reply.payload) == (0, dns.rcode.BADVERS, 1232)
    assert reply.ednsflags & dns.flags.DO
    assert not reply.answer


def test_a_malformed_option_is_answered_with_edns(image: Image) -> None:
    # RFC 6891 7: without an OPT the client would take us for a server that does not know EDNS.
    assert ask(image, message(extra=opt(b"\0\3\0"), counts=(1, 0, 0, 1))).edns == 0
    assert ask(image, message()).edns == -1


@pytest.mark.parametrize(
    "option",
    [
        ecs(1, 24, 0, b"\x0a\1\2"),
        ecs(1, 32, 0, b"\x0a\1\2\3"),
        ecs(1, 0, 0, b""),
        ecs(2, 0, 0, b""),
        ecs(0, 0, 0, b""),
        ecs(1, 9, 0, b"\x0a\x80"),
        ecs(2, 56, 0, b"\x20\1\x0d\xb8\0\6\0"),
        ecs(2, 128, 0, b"\x20" * 16),
    ],
)
def test_good_client_subnets_are_echoed(image: Image, option: bytes) -> None:
    for name in (WWW, DL):
        data = message(name + b"\0\1\0\1", opt(option), (1, 0, 0, 1))
        wire = answer(image, data, CLIENT, Transport.UDP)
        assert wire is not None
        assert dns.rcode.to_text(dns.message.from_wire(wire).rcode() if option[5] else wire[3] & 15) == "NOERROR"
        echoed = wire[-len(option) :]
        assert (echoed[:7], echoed[8:]) == (option[:7], option[8:])
        if name == WWW or option[6] == 0:
            assert echoed[7] == 0


@pytest.mark.parametrize(
    "option",
    [
        ecs(1, 24, 0, b"\x0a\1"),
        ecs(1, 24, 0, b"\x0a\1\2\3"),
        ecs(1, 33, 0, b"\x0a\1\2\3\4"),
        ecs(2, 129, 0, b"\x20" * 17),
        ecs(1, 24, 24, b"\x0a\1\2"),
        ecs(1, 0, 1, b""),
        ecs(1, 23, 0, b"\x0a\1\1"),
        ecs(1, 1, 0, b"\xc0"),
        ecs(3, 8, 0, b"\x0a"),
        ecs(3, 0, 0, b""),
        ecs(0, 8, 0, b"\x0a"),
        ecs(0, 0, 0, b"\0"),
        b"\0\x08\0\0",
        b"\0\x08\0\3\0\1\0",
        ecs(1, 8, 0, b"\x0a") * 2,
    ],
)
def test_bad_client_subnets_are_format_errors(image: Image, option: bytes) -> None:
    reply = ask(image, message(extra=opt(option), counts=(1, 0, 0, 1)))
    assert dns.rcode.to_text(reply.rcode()) == "FORMERR"
    assert (reply.edns, reply.options) == (0, ())


def test_glue_of_the_delegated_zone_must_fit(image: Image) -> None:
    # RFC 9471: in-domain glue that does not fit sets TC; the other addresses are left out silently.
    name = b"\x03sub\x07example\x03org\0"
    full = make_template(image, Shape(name, 1, 65535, False, False, False, -1, 0))
    required = len(b"\xc0\x0c" + b"\0" * 10) + 4 + len(b"\xc0\x0c" + b"\0" * 10) + 16
    size = 12 + len(name) + 4 + len(full.body)
    optional = 3 * 12 + 4 + 16 + 4  # ns1 A, AAAA; ns.other A
    for limit, truncated in ((size, False), (size - 1, False), (size - optional, False), (size - optional - 1, True)):
        template = make_template(image, Shape(name, 1, limit, False, False, False, -1, 0))
        assert bool(template.bits & 0x0200) == truncated, limit
        assert 12 + len(name) + 4 + len(template.body) <= limit
    assert required < optional + required < len(full.body)


def test_scapy_reads_it_too(image: Image) -> None:
    wire = answer(
        image, message(DL + b"\0\1\0\1", opt(ecs(1, 24, 0, b"\x0a\1\2")), (1, 0, 0, 1)), CLIENT, Transport.UDP
    )
    decoded = DNS(wire)
    assert (decoded.id, decoded.qr, decoded.aa, decoded.ancount, decoded.arcount) == (0xBEEF, 1, 1, 2, 1)
    assert [record.rdata for record in decoded.an] == ["203.0.113.3", "203.0.113.9"]


def test_names_past_the_reach_of_a_pointer() -> None:
    from dnsd.zone import parse_zone

    hosts = "\n".join(f"@ MX {i} host-{'x' * 40}-{i}.{'y' * 50}.example.net." for i in range(400))
    zone = parse_zone(f"$TTL 5\n@ SOA a b 1 1 1 1 1\n@ NS a.example.net.\n{hosts}\n", "example.org.")
    image = compile_image([zone], None)
    wire = answer(image, message(b"\x07example\x03org\0\0\x0f\0\1"), CLIENT, Transport.TCP)
    assert wire is not None
    assert len(wire) > 0x4000
    targets = {rdata.exchange.to_text() for rdata in dns.message.from_wire(wire).answer[0]}
    assert targets == {f"host-{'x' * 40}-{i}.{'y' * 50}.example.net." for i in range(400)}


def test_a_failure_is_answered_servfail_with_the_question(image: Image) -> None:
    wire = failure(image, message())
    assert wire is not None
    reply = dns.message.from_wire(wire)
    assert dns.rcode.to_text(reply.rcode()) == "SERVFAIL"
    assert reply.question[0].name.to_text() == "www.example.org."
    assert failure(image, b"\0" * 11) is None


def test_replies_tell_what_is_counted(image: Image) -> None:
    tailored = respond(
        image, message(DL + b"\0\1\0\1", opt(ecs(1, 24, 0, b"\x0a\1\2")), (1, 0, 0, 1)), CLIENT, Transport.UDP
    )
    plain = respond(image, message(), CLIENT, Transport.UDP)
    assert tailored is not None
    assert plain is not None
    assert (tailored.quality, tailored.ecs, tailored.rcode) == (1, True, 0)
    assert (plain.quality, plain.ecs, plain.rcode) == (-1, False, 0)


def test_a_server_identifier_that_is_too_long_is_refused() -> None:
    with pytest.raises(ImageError, match="nsid is 65 octets"):
        AnswerOptions(b"x" * 65)
