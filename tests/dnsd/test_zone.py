"""Master files: what is refused and where, what is made of what is taken, and the warnings."""

from __future__ import annotations

import random

import pytest

from dnsd import names, records
from dnsd.zone import Zone, ZoneError, parse_zone
from dnsd.zone_checks import MAX_WARNINGS, check_zone

HEAD = "$TTL 300\n@ SOA ns1 host 1 1h 15m 30d 5m\n@ NS ns1\nns1 A 192.0.2.1\n"


def zone(tail: str) -> Zone:
    return parse_zone(HEAD + tail, "example.org.")


@pytest.mark.parametrize(
    ("tail", "line", "what"),
    [
        ("www A 192.0.2.300\n", 5, "192.0.2.300"),
        ("www A 192.0.2.3 extra\n", 5, "expected EOL"),
        ("a A 192.0.2.1\nb A bad\nc A 192.0.2.1\n", 6, "bad"),
        ("a A 192.0.2.1\nb A bad", 6, "bad"),
        ("www TXT (\n  unclosed\n", 5, "unbalanced parentheses"),
        ("www MX ( 10\n mail\n bad )\n", 5, "expected EOL"),
        ("www NOTYPE x\n", 5, "unknown rdatatype"),
        ("www.example.net. A 192.0.2.1\n", 5, "is not in the zone"),
        ("$ORIGIN net.\nwww A 192.0.2.1\n", 6, "is not in the zone"),
        ("www A 192.0.2.1\nwww CNAME ns1\n", 6, "CNAME"),
        ("www CNAME ns1\nwww A 192.0.2.1\n", 6, "CNAME"),
        ("$INCLUDE /etc/passwd\n", 5, r"\$INCLUDE is not allowed"),
        ("$include other.zone\n", 5, r"\$INCLUDE is not allowed"),
        ("$GENERATE 1-70000 host-$ A 192.0.2.1\n", 5, "makes 70000 records"),
        ("$NONSENSE 1\n", 5, "NONSENSE"),
        ("@ SOA ns1 host 2 1h 15m 30d 5m\n", 5, "second SOA"),
        ("www CNAME a\nwww CNAME b\n", 6, "a second CNAME record of www.example.org."),
        ("www DNAME a\nwww DNAME b\n", 6, "a second DNAME record"),
        ("sub SOA ns1 host 1 1h 15m 30d 5m\n", 5, "SOA"),
        ("a" * 64 + " A 192.0.2.1\n", 5, "label"),
    ],
)
def test_faults_name_their_line(tail: str, line: int, what: str) -> None:
    with pytest.raises(ZoneError, match=what) as caught:
        zone(tail)
    if line:
        assert caught.value.line == line
    assert "zone example.org." in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no SOA"),
        ("$TTL 1\n@ SOA a b 1 1 1 1 1\n", "no NS"),
        (HEAD + "old DNAME new\na.old A 192.0.2.1\n", "a.old.example.org. is below a DNAME"),
        (HEAD + "*.w NS ns1\n", "wildcard with NS"),
        (HEAD + "*.w DNAME ns1\n", "wildcard with NS or DNAME"),
        (HEAD + "www TYPE128 \\# 0\n", "meta type 128"),
    ],
)
def test_faults_of_the_whole(text: str, what: str) -> None:
    with pytest.raises(ZoneError, match=what) as caught:
        parse_zone(text, "example.org.")
    assert caught.value.fix


def test_random_text_raises_nothing_else() -> None:
    rng = random.Random(3)
    pieces = [
        "@",
        "www",
        " ",
        "\n",
        "A",
        "SOA",
        "(",
        ")",
        '"',
        ";",
        "\\",
        "$TTL",
        "$ORIGIN",
        "TXT",
        "192.0.2.1",
        "\\#",
        "é",
        "1",
        "\0",
        "{",
        "$GENERATE",
        "1-3",
        "${",
        "CNAME",
        "RRSIG",
        "LOC",
        "APL",
    ]
    refused = 0
    for _ in range(3000):
        try:
            zone("".join(rng.choices(pieces, k=rng.randrange(1, 15))))
        except ZoneError:
            refused += 1
    assert 1000 < refused < 3000


def test_structure() -> None:
    made = zone(
        "a.b.c TXT x\nsub NS ns.sub\nsub NS ns.deep.sub\nsub DS 1 13 200 00\nsub TXT hidden\nns.sub A 192.0.2.2\n"
        "ns.deep.sub AAAA ::1\nother.sub TXT hidden\n*.w A 192.0.2.3\n"
    )
    node = {names.to_text(name): value for name, value in made.nodes.items()}
    assert sorted(node) == sorted(
        f"{name}example.org." for name in ("", "ns1.", "a.b.c.", "b.c.", "c.", "sub.", "*.w.", "w.")
    )
    assert node["b.c.example.org."].rrsets == {}
    assert node["sub.example.org."].cut
    assert set(node["sub.example.org."].rrsets) == {records.NS, records.DS}
    assert {names.to_text(name) for name in made.glue} == {"ns.sub.example.org.", "ns.deep.sub.example.org."}


@pytest.mark.parametrize(("soa_ttl", "minimum", "negative"), [(3600, 60, 60), (30, 60, 30), (60, 60, 60)])
def test_negative_ttl_is_the_lesser(soa_ttl: int, minimum: int, negative: int) -> None:
    made = parse_zone(f"@ {soa_ttl} SOA a b 42 1 1 1 {minimum}\n@ 5 NS a.net.\n", "example.org.")
    assert (made.negative.ttl_s, made.serial) == (negative, 42)
    assert made.nodes[made.origin].rrsets[records.SOA].ttl_s == soa_ttl


def test_names_are_folded_and_rdata_keeps_its_case() -> None:
    made = zone("WWW CNAME NS1\n")
    www = made.nodes[names.from_text("www.example.org.")].rrsets[records.CNAME]
    assert www.rdatas == ((b"", b"\x03NS1\x07example\x03org\0"),)
    assert www.targets == (b"\x03ns1\x07example\x03org\0",)


def test_signatures_over_several_types_are_one_rrset() -> None:
    signature = "RRSIG {} 8 2 300 20300101000000 20200101000000 1 example.org. AAAA"
    made = zone("".join(f"@ {signature.format(t)}\n" for t in ("SOA", "NS")))
    assert len(made.nodes[made.origin].rrsets[records.RRSIG].rdatas) == 2


def test_the_root_and_escaped_names() -> None:
    root = parse_zone("$TTL 5\n. SOA a. b. 1 1 1 1 1\n. NS a.\norg NS a.\n", ".")
    assert root.origin == names.ROOT
    made = zone("a\\.b TXT x\n\\200\\000 TXT y\n")
    assert b"\x03a.b\x07example\x03org\0" in made.nodes
    assert b"\x02\xc8\0\x07example\x03org\0" in made.nodes


@pytest.mark.parametrize(
    ("tail", "warning"),
    [
        ("", "only one NS record"),
        ("@ NS ns9\n", "ns9.example.org. as its server, which is in this zone but has no address"),
        ("@ NS alias\nalias CNAME ns1\n", "alias.example.org. as its server, which is an alias"),
        ("sub NS ns.sub\n", "has no glue address"),
        ("sub NS nowhere\n", "sub.example.org. names nowhere.example.org."),
        ("@ MX 10 nowhere\n", "example.org. points to nowhere.example.org., which has no records"),
        ("@ MX 10 alias\nalias CNAME ns1\n", "points to alias.example.org., an alias"),
        ("s SRV 1 1 1 a.w\n*.w CNAME ns1\n", "points to a.w.example.org., an alias"),
        ("@ DNSKEY 256 3 13 AAAA\n", "the zone is signed"),
    ],
)
def test_warnings(tail: str, warning: str) -> None:
    assert any(warning in text for text in check_zone(zone(tail))), check_zone(zone(tail))


def test_no_warnings_where_all_is_well() -> None:
    assert (
        check_zone(
            zone(
                "@ NS ns.example.net.\n@ MX 1 mail\nmail A 192.0.2.2\nsub NS ns.sub\n"
                "ns.sub A 192.0.2.3\n@ MX 2 x.w\n*.w A 192.0.2.4\n@ MX 3 y.sub\n"
            )
        )
        == ()
    )


def test_warnings_are_bounded() -> None:
    tail = "".join(f"m{i} MX 1 nowhere{i}\n" for i in range(MAX_WARNINGS + 50))
    assert len(check_zone(zone(tail))) == MAX_WARNINGS + 1


@pytest.mark.parametrize("text", ["example..org.", "a" * 64 + ".org.", ".".join(["a" * 60] * 5) + "."])
def test_bad_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"domain name|octets long"):
        names.from_text(text)


def test_is_under() -> None:
    org, example, badexample = (names.from_text(t) for t in ("org.", "example.org.", "badexample.org."))
    assert names.is_under(example, org)
    assert names.is_under(example, example)
    assert names.is_under(example, names.ROOT)
    assert not names.is_under(org, example)
    assert not names.is_under(badexample, example)
