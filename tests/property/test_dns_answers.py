"""Whatever is asked, an answer is well-formed, fits, belongs to its question, and does not depend on the memo."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
from hypothesis import given, settings
from hypothesis import strategies as st

from dnsd.answer import ClientAddress, Transport, answer
from dnsd.image import AnswerOptions, compile_image
from dnsd.template import make_template, template_for
from dnsd.zone import parse_zone
from policy.regions import RegionSource, compile_regions
from policy.table import Quality, Row, SteeredService, SteeringTable

VECTORS = Path(__file__).parent.parent / "vectors" / "dns"
MAX_UDP_BYTES = 1400
REGIONS = compile_regions(
    [
        RegionSource("east", prefixes=("10.0.0.0/8", "2001:db8::/32")),
        RegionSource("near", parent="east", prefixes=("10.1.0.0/16", "10.200.3.0/25", "2001:db8:6::/47")),
    ]
)
ROWS = tuple(
    Row((f"m{i}",), tuple(f"203.0.113.{16 * i + j}" for j in range(1 + 7 * i)), 30 + i, Quality(i), note="n" * (60 * i))
    for i in range(3)
)
IMAGE = compile_image(
    [parse_zone((VECTORS / f"{origin}zone").read_text(), origin) for origin in ("example.org.", "example.com.")],
    SteeringTable(1, 0.0, REGIONS, {"dl.example.org.": SteeredService("dl.example.org.", ROWS, ())}),
    AnswerOptions(b"n" * 64, MAX_UDP_BYTES),
)

known = st.sampled_from([dns.name.from_wire(n, 0)[0] for zone in IMAGE.zones for n in (*zone.nodes, *zone.glue)])
label = st.one_of(st.sampled_from([b"*", b"www", b"dl", b"sub", b"old"]), st.binary(min_size=1, max_size=63))


@st.composite
def names(draw: st.DrawFn) -> dns.name.Name:
    labels = tuple(draw(st.lists(label, max_size=3))) + draw(known).labels
    while sum(len(part) + 1 for part in labels) > 255:
        labels = labels[1:]
    return dns.name.Name(labels)


rtypes = st.one_of(st.sampled_from([1, 2, 5, 6, 15, 16, 28, 33, 39, 43, 255, 252, 41]), st.integers(0, 65535))
v4 = st.one_of(st.integers(0, 2**32 - 1), st.integers(0x0A000000, 0x0AFFFFFF))
v6 = st.one_of(st.integers(0, 2**128 - 1), st.integers(0x20010DB8 << 96, (0x20010DB9 << 96) - 1))
clients = st.one_of(v4.map(lambda a: ClientAddress(4, a)), v6.map(lambda a: ClientAddress(6, a)))


@st.composite
def subnets(draw: st.DrawFn) -> dns.edns.ECSOption:
    client, bits = draw(clients), 0
    bits = 32 if client.family == 4 else 128
    length = draw(st.integers(0, bits))
    network = client.value >> (bits - length) << (bits - length)
    kind = ipaddress.IPv4Address if client.family == 4 else ipaddress.IPv6Address
    return dns.edns.ECSOption(str(kind(network)), length)


@st.composite
def queries(draw: st.DrawFn) -> dns.message.QueryMessage:
    query = dns.message.make_query(draw(names()), draw(rtypes), flags=draw(st.sampled_from([0, 0x100, 0x120, 0x10])))
    if draw(st.booleans()):
        options: list[dns.edns.Option] = []
        if draw(st.booleans()):
            options.append(draw(subnets()))
        if draw(st.booleans()):
            options.append(dns.edns.NSIDOption(b""))
        if draw(st.booleans()):
            options.append(dns.edns.GenericOption(draw(st.sampled_from([10, 12, 65001])), draw(st.binary(max_size=24))))
        query.use_edns(0, draw(st.sampled_from([0, dns.flags.DO])), draw(st.integers(0, 65535)), options=options)
    return query


@settings(max_examples=800, deadline=None)
@given(queries(), clients, st.sampled_from(Transport))
def test_answers_are_well_formed_fit_and_echo(
    query: dns.message.QueryMessage, client: ClientAddress, transport: Transport
) -> None:
    data = query.to_wire()
    wire = answer(IMAGE, data, client, transport)
    assert wire is not None
    reply = dns.message.from_wire(wire)
    assert query.is_response(reply)
    assert reply.question[0].name.labels == query.question[0].name.labels
    assert (reply.edns == 0) == (query.edns == 0)
    if transport is Transport.UDP:
        asked = max(512, query.payload) if query.edns == 0 else 512
        assert len(wire) <= min(asked, MAX_UDP_BYTES)
    else:
        assert not reply.flags & dns.flags.TC
    sent = [o for o in query.options if isinstance(o, dns.edns.ECSOption)]
    echoed = [o for o in reply.options if isinstance(o, dns.edns.ECSOption)]
    rcode = reply.rcode()
    if rcode in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        assert [(o.address, o.srclen) for o in echoed] == [(o.address, o.srclen) for o in sent]
    tailored = rcode == 0 and any(r.rdtype == 1 and r[0].address.startswith("203.0.113.") for r in reply.answer)
    if echoed:
        family = 4 if ":" not in sent[0].address else 6
        looked_up = REGIONS.lookup(family, int(ipaddress.ip_address(sent[0].address)))
        expected = looked_up[1] if tailored and sent[0].srclen else 0
        assert echoed[0].scopelen == expected
    if tailored:
        by = ClientAddress(family, int(ipaddress.ip_address(sent[0].address))) if echoed and sent[0].srclen else client
        row = ROWS[REGIONS.lookup(by.family, by.value)[0]]
        assert [rdata.address for rdata in reply.answer[-1]] == list(row.addresses)
    if rcode == dns.rcode.NXDOMAIN or (rcode == 0 and not reply.answer and reply.flags & dns.flags.AA):
        assert reply.flags & dns.flags.TC or reply.authority[0].rdtype == dns.rdatatype.SOA


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(queries(), clients, st.sampled_from(Transport)), min_size=1, max_size=8))
def test_the_memo_changes_nothing(asked: list[tuple[dns.message.QueryMessage, ClientAddress, Transport]]) -> None:
    for query, client, transport in asked:
        data = query.to_wire()
        remembered = answer(IMAGE, data, client, transport)
        again = answer(IMAGE, data, client, transport)
        direct = answer(replace(IMAGE, memo={}), data, client, transport)
        assert remembered == again == direct


def test_the_memo_was_used_by_these_tests() -> None:
    data = dns.message.make_query("dl.example.org.", "A").to_wire()
    answer(IMAGE, data, ClientAddress(4, 0x0A010000), Transport.UDP)
    assert IMAGE.memo
    assert all(template_for(IMAGE, shape) == make_template(IMAGE, shape) for shape in list(IMAGE.memo))
