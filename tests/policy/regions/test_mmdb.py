"""Region tables from mmdb files: IPv4 inside IPv6 trees, aliases, label paths, and broken or hostile files."""

from __future__ import annotations

import gzip
import ipaddress
import random
from collections.abc import Callable
from typing import Any

import maxminddb
import pytest

from policy.regions import RegionTableError, Table, parse_mmdb
from policy.regions.prefixes import format_key

Write = Callable[..., bytes]

COUNTRY = {code: {"country": {"iso_code": code, "names": {"en": code}}} for code in ("CN", "US", "DE")}
NETWORKS = {
    "1.0.0.0/8": COUNTRY["CN"],
    "8.8.8.0/24": COUNTRY["US"],
    "240.0.0.0/4": COUNTRY["US"],
    "2001:db8::/32": COUNTRY["DE"],
    "2400::/12": COUNTRY["CN"],
}
ROWS = {
    "1.0.0.0/8": "CN",
    "8.8.8.0/24": "US",
    "240.0.0.0/4": "US",
    "2001:db8::/32": "DE",
    "2400::/12": "CN",
}
ALIASES = ("::ffff:0:0/96", "2001::/32", "2002::/16")


def rows(table: Table) -> dict[str, str]:
    found = [
        (format_key(family, key), table.labels[label])
        for family in (4, 6)
        for key, label in zip(table.rows(family).keys, table.rows(family).labels, strict=True)
    ]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("record_size", [24, 28, 32])
def test_both_families_from_an_ipv6_tree(mmdb: Write, record_size: int) -> None:
    table = parse_mmdb("geo", mmdb(NETWORKS, record_size=record_size), "country.iso_code")
    assert rows(table) == ROWS


@pytest.mark.parametrize("record_size", [24, 28, 32])
def test_aliases_of_ipv4_are_not_doubled(mmdb: Write, record_size: int) -> None:
    data = mmdb(NETWORKS, record_size=record_size, aliases=ALIASES)
    table = parse_mmdb("geo", data, "country.iso_code")
    assert rows(table) == ROWS


def test_aliases_are_known_also_when_one_record_covers_all_of_ipv4(mmdb: Write) -> None:
    data = mmdb({"0.0.0.0/0": COUNTRY["US"], "2400::/12": COUNTRY["US"]}, aliases=ALIASES)
    assert rows(parse_mmdb("geo", data, "country.iso_code")) == {"0.0.0.0/0": "US", "2400::/12": "US"}


def test_a_record_above_the_ipv4_tree_covers_ipv4_too(mmdb: Write) -> None:
    data = mmdb({"::/8": COUNTRY["US"], "2400::/12": COUNTRY["CN"]})
    assert rows(parse_mmdb("geo", data, "country.iso_code")) == {"0.0.0.0/0": "US", "::/8": "US", "2400::/12": "CN"}


@pytest.mark.parametrize("record_size", [24, 28, 32])
def test_an_ipv4_tree(mmdb: Write, record_size: int) -> None:
    data = mmdb({"1.0.0.0/8": COUNTRY["CN"], "9.9.9.9/32": COUNTRY["DE"]}, ip_version=4, record_size=record_size)
    assert rows(parse_mmdb("geo", data, "country.iso_code")) == {"1.0.0.0/8": "CN", "9.9.9.9/32": "DE"}


def test_neighbours_with_the_same_label_are_joined(mmdb: Write) -> None:
    cities = {f"10.{i}.0.0/16": {"country": {"iso_code": "CN"}, "city": i} for i in range(256)}
    del cities["10.7.0.0/16"]
    table = parse_mmdb("geo", mmdb(cities), "country.iso_code")
    assert set(rows(table)) == {str(n) for n in _without("10.0.0.0/8", "10.7.0.0/16")}


def _without(whole: str, part: str) -> list[Any]:
    return list(ipaddress.ip_network(whole).address_exclude(ipaddress.ip_network(part)))


def test_the_walk_agrees_with_the_lookup_of_maxminddb(mmdb: Write, tmp_path: Any) -> None:
    rng = random.Random(7)
    networks: dict[str, Any] = {}
    for _ in range(300):
        length = rng.randint(4, 28)
        network = ipaddress.ip_network((rng.getrandbits(32) >> (32 - length) << (32 - length), length))
        networks[str(network)] = {"asn": rng.randint(1, 9)}
    for _ in range(300):
        length = rng.randint(8, 64)
        start = (rng.getrandbits(125) | 1 << 125) >> (128 - length) << (128 - length)
        networks[str(ipaddress.ip_network((start, length)))] = {"asn": rng.randint(1, 9)}
    # Long prefixes last, so that none is written over.
    networks = dict(sorted(networks.items(), key=lambda item: ipaddress.ip_network(item[0]).prefixlen))
    data = mmdb(networks, record_size=28)
    file = tmp_path / "t.mmdb"
    file.write_bytes(data)
    table = rows(parse_mmdb("asn", data, "asn"))
    covers = {ipaddress.ip_network(prefix): label for prefix, label in table.items()}
    with maxminddb.open_database(str(file)) as reader:
        for network in covers:
            for address in (network[0], network[-1]):
                assert str(reader.get(address)["asn"]) == covers[network]  # type: ignore[index,call-overload]
        for text in networks:
            address = ipaddress.ip_network(text)[0]
            assert any(address in network for network in covers if network.version == address.version)


def test_labels_may_be_numbers_and_list_items(mmdb: Write) -> None:
    record = {"autonomous_system_number": 4134, "subdivisions": [{"iso_code": "SH"}], "big": 1 << 40}
    data = mmdb({"1.0.0.0/8": record})
    assert parse_mmdb("asn", data, "autonomous_system_number").labels == ("4134",)
    assert parse_mmdb("asn", data, "subdivisions.0.iso_code").labels == ("SH",)
    assert parse_mmdb("asn", data, "big").labels == (str(1 << 40),)


def test_records_without_the_label_are_left_out(mmdb: Write) -> None:
    data = mmdb({**NETWORKS, "1.1.1.0/24": {"traits": {"anycast": True}}, "2.0.0.0/8": {"country": {"iso_code": ""}}})
    found = rows(parse_mmdb("geo", data, "country.iso_code"))
    assert not any(ipaddress.ip_address("1.1.1.1") in ipaddress.ip_network(prefix) for prefix in found)
    assert "2.0.0.0/8" not in found
    assert "1.0.0.0/16" in found


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("country.isocode", "no record has a label at 'country.isocode'; its records have: country, flag, share, list"),
        ("city", "no record has a label"),
        ("", "no record has a label"),
        ("country", "ends at a dict, .*go on with one of: iso_code, names"),
        ("list", "ends at a list"),
        ("flag", "ends at True"),
        ("share", "ends at 0.5"),
        ("list.7", "no record has a label"),
        ("country.iso_code.deeper", "no record has a label"),
    ],
)
def test_a_wrong_label_path_says_what_there_is(mmdb: Write, path: str, what: str) -> None:
    record = {**COUNTRY["CN"], "flag": True, "share": 0.5, "list": ["x"]}
    with pytest.raises(RegionTableError, match="(?s)" + what):
        parse_mmdb("geo", mmdb({"1.0.0.0/8": record}), path, file="geo.mmdb")


@pytest.mark.parametrize(
    "data",
    [b"", b"\x00", b"prefix,label\n1.0.0.0/8,a\n", bytes(100_000), b"\xab\xcd\xefMaxMind.com", b"\xff" * 1000],
    ids=["empty", "one-byte", "csv", "zeros", "marker-only", "ones"],
)
def test_not_an_mmdb(data: bytes) -> None:
    with pytest.raises(RegionTableError, match=r"x\.mmdb: it is not a usable mmdb file"):
        parse_mmdb("x", data, "country.iso_code", file="x.mmdb")


def test_a_loop_in_the_tree_ends(mmdb: Write) -> None:
    with pytest.raises(RegionTableError, match="loop"):
        parse_mmdb("x", mmdb(NETWORKS, loop=True), "country.iso_code")


def test_a_tree_of_shared_nodes_ends(monkeypatch: pytest.MonkeyPatch, mmdb: Write) -> None:
    """127 nodes whose two sides are the same next node would be 2**127 networks."""
    monkeypatch.setattr("policy.regions.mmdb.MAX_NODES_VISITED", 10_000)
    count = 127
    tree = b"".join((i + 1).to_bytes(3) * 2 for i in range(count))
    whole = mmdb({"1.0.0.0/8": COUNTRY["CN"]}, metadata={"node_count": count})
    data = tree + bytes(16) + whole[whole.index(b"\xab\xcd\xefMaxMind.com") :]
    with pytest.raises(RegionTableError, match="used many times"):
        parse_mmdb("x", data, "country.iso_code")


@pytest.mark.parametrize(
    "metadata",
    [
        {"ip_version": 5},
        {"ip_version": "six"},
        {"record_size": 20},
        {"record_size": "24"},
        {"node_count": 1 << 30},
        {"node_count": "x"},
        {"unknown": 1},
    ],
)
def test_damaged_metadata(mmdb: Write, metadata: dict[str, Any]) -> None:
    with pytest.raises(RegionTableError, match="not a usable mmdb"):
        parse_mmdb("x", mmdb(NETWORKS, metadata=metadata), "country.iso_code")


def test_every_truncation_and_many_flips_raise_only_our_error(mmdb: Write) -> None:
    data = mmdb(NETWORKS)
    rng = random.Random(3)
    broken = [data[:n] for n in range(0, len(data), 11)]
    for _ in range(300):
        copy = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
        broken.append(bytes(copy))
    refused = 0
    for one in broken:
        try:
            parse_mmdb("x", one, "country.iso_code")
        except RegionTableError:
            refused += 1
    assert refused > len(data) // 11 // 2


def test_a_compressed_mmdb_is_unpacked(mmdb: Write) -> None:
    assert rows(parse_mmdb("geo", gzip.compress(mmdb(NETWORKS)), "country.iso_code")) == ROWS
    with pytest.raises(RegionTableError, match="ends too early"):
        parse_mmdb("geo", gzip.compress(mmdb(NETWORKS))[:-4], "country.iso_code")


def test_a_hostile_label_is_refused(mmdb: Write) -> None:
    for label in ("x" * 300, "a\x1b[2Jb", "a\nb"):
        with pytest.raises(RegionTableError, match="too long or cannot be printed"):
            parse_mmdb("x", mmdb({"1.0.0.0/8": {"country": label}}), "country")
