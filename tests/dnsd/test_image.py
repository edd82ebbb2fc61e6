"""Joining zones with the steering table: what is refused, what is merged, what a new table costs and changes."""

from __future__ import annotations

from dataclasses import replace

import dns.message
import pytest

from dnsd.answer import ClientAddress, Transport, answer
from dnsd.image import AnswerOptions, Image, ImageError, compile_image, with_table
from dnsd.resolve import MAX_CHAIN
from dnsd.template import MAX_MEMO, Shape, make_template, template_for
from dnsd.zone import Zone, parse_zone
from policy.regions import compile_regions
from policy.table import Quality, Row, SteeredService, SteeringTable

HEAD = "$TTL 300\n@ SOA ns1 host 1 1h 15m 30d 5m\n@ NS ns1\nns1 A 192.0.2.1\n"
REGIONS = compile_regions([])


def zone(tail: str = "", origin: str = "example.org.") -> Zone:
    return parse_zone(HEAD + tail, origin)


def table(
    *owners: str, address: str = "203.0.113.1", addresses: tuple[str, ...] | None = None, generation: int = 1
) -> SteeringTable:
    row = Row(("m",), (address,) if addresses is None else addresses, 30, Quality.LIVE)
    return SteeringTable(generation, 0.0, REGIONS, {owner: SteeredService(owner, (row,), ()) for owner in owners})


def ask(image: Image, name: str, rtype: str = "A") -> dns.message.Message:
    wire = answer(image, dns.message.make_query(name, rtype).to_wire(), ClientAddress(4, 1), Transport.UDP)
    assert wire is not None
    return dns.message.from_wire(wire)


def rdata(image: Image, name: str, rtype: str = "A") -> list[str]:
    return [record.to_text() for rrset in ask(image, name, rtype).answer for record in rrset]


@pytest.mark.parametrize(
    ("tail", "owner", "what"),
    [
        ("", "dl.example.net.", "service dl.example.net. is in none of the zones"),
        ("dl CNAME ns1\n", "dl.example.org.", "CNAME in the zone file"),
        ("dl DNAME ns1\n", "dl.example.org.", "dl.example.org. has a DNAME"),
        ("old DNAME new\n", "dl.old.example.org.", "old.example.org. has a DNAME"),
        ("dl NS ns1\n", "dl.example.org.", "dl.example.org. is delegated"),
        ("sub NS ns1\n", "dl.sub.example.org.", "sub.example.org. is delegated"),
        ("", "dl..example.org.", "not a domain name"),
    ],
)
def test_contradictions_are_refused_by_name(tail: str, owner: str, what: str) -> None:
    with pytest.raises(ImageError, match=what) as caught:
        compile_image([zone(tail)], table(owner))
    assert caught.value.fix


def test_a_zone_or_a_service_given_twice_is_refused() -> None:
    with pytest.raises(ImageError, match=r"zone example.org. is given twice"):
        compile_image([zone(), zone()], None)
    with pytest.raises(ImageError, match="the same name"):
        compile_image([zone()], table("dl.example.org.", "DL.example.org."))


def test_steered_names_at_the_apex_at_new_names_and_as_wildcards() -> None:
    image = compile_image([zone("@ A 192.0.2.9\n")], table("example.org.", "a.b.example.org.", "*.w.example.org."))
    for name in ("example.org.", "a.b.example.org.", "x.w.example.org.", "x.y.w.example.org."):
        assert rdata(image, name) == ["203.0.113.1"], name
    assert rdata(image, "example.org.", "SOA")
    assert ask(image, "b.example.org.").rcode() == 0  # now an empty non-terminal
    assert ask(compile_image([zone()], None), "b.example.org.").rcode() == 3


def test_the_child_zone_wins_over_the_parent() -> None:
    parent, child = zone("sub NS ns1\n"), zone("dl A 192.0.2.3\n", "sub.example.org.")
    image = compile_image([parent, child], table("dl.sub.example.org."))
    assert rdata(image, "dl.sub.example.org.") == ["203.0.113.1"]


def test_a_new_table_changes_rows_and_nothing_of_the_zones() -> None:
    first = compile_image([zone()], table("dl.example.org."))
    second = with_table(first, table("dl.example.org.", address="203.0.113.2", generation=2))
    assert (rdata(first, "dl.example.org."), rdata(second, "dl.example.org.")) == (["203.0.113.1"], ["203.0.113.2"])
    assert second.generation == first.generation + 1
    assert second.served is first.served
    assert second.memo is not first.memo


def test_a_new_set_of_steered_names() -> None:
    first = compile_image([zone("dl A 192.0.2.7\n")], table("dl.example.org."))
    second = with_table(first, table("other.example.org."))
    assert rdata(second, "dl.example.org.") == ["192.0.2.7"]
    assert rdata(second, "other.example.org.") == ["203.0.113.1"]
    assert rdata(with_table(second, None), "other.example.org.") == []
    with pytest.raises(ImageError):
        with_table(first, table("dl.example.net."))


def test_a_row_without_addresses_is_nodata() -> None:
    reply = ask(compile_image([zone()], table("dl.example.org.", addresses=())), "dl.example.org.")
    assert (reply.rcode(), reply.answer, len(reply.authority)) == (0, [], 1)


def test_chains_and_loops_end() -> None:
    chain = "".join(f"c{i} CNAME c{i + 1}\n" for i in range(MAX_CHAIN + 5))
    image = compile_image([zone(chain + "a DNAME b\nb DNAME a\nup DNAME up.up\n*.w CNAME x.w\n")], None)
    reply = ask(image, "c0.example.org.")
    assert [rrset.name.to_text() for rrset in reply.answer] == [f"c{i}.example.org." for i in range(MAX_CHAIN + 1)]
    assert (reply.rcode(), reply.authority) == (0, [])
    kinds = [(rrset.name.to_text(), rrset.rdtype) for rrset in ask(image, "x.a.example.org.").answer]
    assert kinds == [(f"{n}.example.org.", t) for n, t in (("a", 39), ("x.a", 5), ("b", 39), ("x.b", 5))]
    assert ask(image, "x.up.example.org.").rcode() == 0
    assert len(ask(image, "q.w.example.org.").answer) == 2


def test_steered_addresses_are_never_additional_data() -> None:
    image = compile_image([zone("@ MX 10 dl\ndl A 192.0.2.4\n")], table("dl.example.org."))
    assert ask(image, "example.org.", "MX").additional == []


def test_the_memo_is_bounded_and_keeps_no_random_names() -> None:
    image = compile_image([zone("*.w A 192.0.2.5\n")], table("dl.example.org."))
    for i in range(50):
        ask(image, f"r{i}.example.org.")
        ask(image, f"r{i}.w.example.org.")
    assert image.memo == {}
    shape = Shape(b"\x02dl\x07example\x03org\0", 1, 512, False, False, False, -1, 0)
    template = template_for(image, shape)
    assert template == make_template(image, shape)
    for i in range(MAX_MEMO + 10):
        image.memo[shape._replace(qtype=-1 - i)] = template
    template_for(image, shape._replace(qtype=16))
    assert len(image.memo) == 1


def test_options_belong_to_the_image() -> None:
    image = compile_image(
        [zone("big TXT " + " ".join(["x" * 200] * 5) + "\n")], None, AnswerOptions(max_udp_size_bytes=4096)
    )
    query = dns.message.make_query("big.example.org.", "TXT", use_edns=0, payload=4096)
    for options, truncated in ((image.options, False), (AnswerOptions(max_udp_size_bytes=600), True)):
        wire = answer(replace(image, options=options, memo={}), query.to_wire(), ClientAddress(4, 1), Transport.UDP)
        assert wire is not None
        assert bool(wire[2] & 2) == truncated
