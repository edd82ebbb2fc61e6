"""The painting order of docs/design.md, "Regions", rule by rule, by hand."""

from __future__ import annotations

import pytest

from policy.regions import (
    Layer,
    RegionMap,
    RegionSource,
    RegionTableError,
    RegionTreeError,
    Table,
    compile_regions,
    parse_csv,
)


def table(name: str, *rows: str) -> Table:
    return parse_csv(name, "\n".join(["prefix,label", *rows]).encode())


def where(regions: RegionMap, address: str) -> str:
    return regions.tree.names[regions.lookup_text(address)[0]]


def scope(regions: RegionMap, address: str) -> int:
    return regions.lookup_text(address)[1]


def test_without_prefixes_everybody_is_in_the_world_with_scope_0() -> None:
    empty = compile_regions([])
    for address in ("0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"):
        assert (where(empty, address), scope(empty, address)) == ("world", 0)


def test_the_longest_prefix_wins_within_a_layer() -> None:
    rows = table("t", "10.0.0.0/8,a", "10.1.0.0/16,b", "10.1.2.0/24,a")
    regions = compile_regions([RegionSource("a", match=("t:a",)), RegionSource("b", match=("t:b",))], [Layer(rows)])
    assert [where(regions, x) for x in ("10.0.0.1", "10.1.0.1", "10.1.2.1", "11.0.0.1")] == ["a", "b", "a", "world"]


def test_the_same_prefix_goes_to_the_region_listed_first() -> None:
    rows = table("t", "10.0.0.0/8,a", "10.0.0.0/8,b")
    a, b = RegionSource("a", match=("t:a",)), RegionSource("b", match=("t:b",))
    assert where(compile_regions([a, b], [Layer(rows)]), "10.0.0.1") == "a"
    assert where(compile_regions([b, a], [Layer(rows)]), "10.0.0.1") == "b"


def test_the_table_listed_first_wins_even_with_shorter_prefixes() -> None:
    a, b = RegionSource("a", match=("s:a",)), RegionSource("b", match=("t:b",))
    s, t = Layer(table("s", "10.0.0.0/8,a")), Layer(table("t", "10.1.0.0/16,b", "11.0.0.0/8,b"))
    assert where(compile_regions([a, b], [s, t]), "10.1.0.1") == "a"
    assert where(compile_regions([a, b], [t, s]), "10.1.0.1") == "b"
    assert where(compile_regions([a, b], [s, t]), "11.0.0.1") == "b"


def test_inline_prefixes_win_over_every_table() -> None:
    a, b = RegionSource("a", match=("t:a",)), RegionSource("b", prefixes=("10.0.0.0/8",))
    regions = compile_regions([a, b], [Layer(table("t", "10.1.0.0/16,a", "9.0.0.0/8,a"))])
    assert [where(regions, x) for x in ("10.1.0.1", "9.0.0.1")] == ["b", "a"]


def test_precedence_comes_before_layer_and_length() -> None:
    a = RegionSource("a", match=("t:a",), precedence=1)
    b, c = RegionSource("b", prefixes=("10.1.0.0/16",)), RegionSource("c", prefixes=("10.2.0.0/16",), precedence=2)
    regions = compile_regions([a, b, c], [Layer(table("t", "10.0.0.0/8,a"))])
    assert [where(regions, x) for x in ("10.0.0.1", "10.1.0.1", "10.2.0.1")] == ["a", "a", "c"]
    low = RegionSource("a", match=("t:a",), precedence=-1)
    weak = compile_regions([low, RegionSource("d", match=("u:d",))], [Layer(table("t", "10.1.0.0/16,a")), UNDER])
    assert [where(weak, x) for x in ("10.1.0.1", "10.0.0.1")] == ["d", "d"]


UNDER = Layer(table("u", "10.0.0.0/8,d"))


def test_a_region_never_takes_from_its_descendants() -> None:
    cn = RegionSource("cn", match=("geo:CN",), prefixes=("10.1.2.0/24",), precedence=9)
    telecom = RegionSource("cn-telecom", "cn", match=("isp:telecom",))
    sh = RegionSource("cn-telecom-sh", "cn-telecom", prefixes=("10.1.3.0/24",))
    layers = [Layer(table("isp", "10.1.0.0/16,telecom")), Layer(table("geo", "10.0.0.0/8,CN", "10.1.9.0/24,CN"))]
    regions = compile_regions([cn, telecom, sh], layers)
    found = {x: where(regions, x) for x in ("10.0.0.1", "10.1.0.1", "10.1.2.1", "10.1.3.1", "10.1.9.1")}
    assert found == {
        "10.0.0.1": "cn",
        "10.1.0.1": "cn-telecom",
        "10.1.2.1": "cn-telecom",  # though inline, longer and of higher precedence
        "10.1.3.1": "cn-telecom-sh",
        "10.1.9.1": "cn-telecom",
    }


def test_a_descendant_painted_over_by_a_stranger_no_longer_keeps_its_parent_off() -> None:
    """Order: cn-telecom (lowest layer), then us over it, then cn over us: nothing of cn stands there any more."""
    cn, telecom = RegionSource("cn", match=("c:x",)), RegionSource("cn-telecom", "cn", match=("a:x",))
    us = RegionSource("us", match=("b:x",))
    layers = [Layer(table(name, "10.0.0.0/8,x")) for name in ("c", "b", "a")]
    assert where(compile_regions([cn, telecom, us], layers), "10.0.0.1") == "cn"


def test_siblings_take_from_each_other_by_length() -> None:
    """What chinanet does to cernet since December 2025."""
    rows = table("isp", "1.51.0.0/16,cernet", "1.51.3.0/24,chinanet", "1.48.0.0/12,china")
    regions = compile_regions(
        [
            RegionSource("cn", match=("isp:china",)),
            RegionSource("cn-cernet", "cn", match=("isp:cernet",)),
            RegionSource("cn-chinanet", "cn", match=("isp:chinanet",)),
        ],
        [Layer(rows)],
    )
    assert [where(regions, x) for x in ("1.51.3.1", "1.51.4.1", "1.50.0.1")] == ["cn-chinanet", "cn-cernet", "cn"]


def test_one_label_may_stand_for_several_regions() -> None:
    rows = Layer(table("t", "10.0.0.0/8,x"))
    parent, child = RegionSource("p", match=("t:x",)), RegionSource("c", "p", match=("t:x",))
    assert where(compile_regions([parent, child], [rows]), "10.0.0.1") == "c"
    assert where(compile_regions([child, parent], [rows]), "10.0.0.1") == "c"


def test_labels_become_regions_unless_one_matches_them() -> None:
    rows = table("geo", "10.0.0.0/8,CN", "11.0.0.0/8,US", "12.0.0.0/8,Côte d'Ivoire")
    regions = compile_regions([RegionSource("china", match=("geo:CN",))], [Layer(rows, labels_as_regions=True)])
    assert regions.tree.names == ("world", "china", "us", "c-te-d-ivoire")
    assert [where(regions, f"{n}.0.0.1") for n in (10, 11, 12)] == ["china", "us", "c-te-d-ivoire"]


def test_automatic_regions_have_the_parent_of_their_table() -> None:
    isp, geo = table("isp", "10.1.0.0/16,telecom"), table("geo", "10.0.0.0/8,CN")
    regions = compile_regions([], [Layer(isp, True, "cn"), Layer(geo, True)])
    assert regions.tree.ancestors("telecom") == ("cn", "world")
    assert [where(regions, x) for x in ("10.1.0.1", "10.2.0.1")] == ["telecom", "cn"]


def test_a_label_joins_the_region_of_its_name() -> None:
    regions = compile_regions(
        [RegionSource("cn", prefixes=("9.0.0.0/8",)), RegionSource("cn-x", "cn")],
        [Layer(table("geo", "10.0.0.0/8,CN", "11.0.0.0/8,cn"), True)],
    )
    assert regions.tree.names == ("world", "cn", "cn-x")
    assert [where(regions, f"{n}.0.0.1") for n in (9, 10, 11)] == ["cn"] * 3
    assert [joined[1] for joined in regions.sources.joined] == ["CN", "cn"]


@pytest.mark.parametrize("label", ["电信", "---", "World", "x" * 64])
def test_a_label_that_makes_no_name_is_an_error(label: str) -> None:
    with pytest.raises(RegionTableError, match="match it in a region of your own"):
        compile_regions([], [Layer(table("geo", f"10.0.0.0/8,{label}"), True)])


def test_everything_wrong_is_reported_at_once() -> None:
    regions = [
        RegionSource("a", match=("nope:x", "t", "t:")),
        RegionSource("a", prefixes=("10.0.0.1/8", "fine", "10.0.0.0/8")),
    ]
    layers = [Layer(table("t", "10.0.0.0/8,x"), True, "atlantis"), Layer(table("t", "10.0.0.0/8,x"))]
    with pytest.raises(RegionTableError) as caught:
        compile_regions(regions, layers)
    text = str(caught.value)
    for part in ("no table 'nope'", "'t' is not TABLE:LABEL", "'t:' is not", "10.0.0.0/8?", "'fine' is not a prefix"):
        assert part in text
    for part in ("two tables have this name", "defined twice", "the parent 'atlantis' of its regions is not defined"):
        assert part in text
    assert caught.value.count == 8


def test_parents_are_checked() -> None:
    with pytest.raises(RegionTreeError, match="own ancestor"):
        compile_regions([RegionSource("a", "b"), RegionSource("b", "a")])


def test_a_label_the_table_lacks_keeps_nothing_from_starting() -> None:
    regions = compile_regions([RegionSource("a", match=("t:gone", "t:x"))], [Layer(table("t", "10.0.0.0/8,x"))])
    assert where(regions, "10.0.0.1") == "a"


def test_repeated_rows_are_harmless() -> None:
    rows = table("t", *["10.0.0.0/8,a"] * 20_000)
    assert where(compile_regions([RegionSource("a", match=("t:a",))], [Layer(rows)]), "10.0.0.1") == "a"


def test_a_pile_of_regions_on_one_prefix_is_refused() -> None:
    rows = table("t", *(f"10.0.0.0/8,x{i}" for i in range(1001)))
    with pytest.raises(RegionTableError, match=r"more than 1000 rows cover 10\.0\.0\.0/8"):
        compile_regions([], [Layer(rows, labels_as_regions=True)])


# --- scope and cuts ------------------------------------------------------------------------------------------------


def test_scope_is_the_length_of_the_largest_block_of_one_region() -> None:
    regions = compile_regions([RegionSource("a", prefixes=("10.1.0.0/16",))])
    assert scope(regions, "10.1.2.3") == 16
    assert scope(regions, "10.0.2.3") == 16  # 10.0.0.0/16 is what is left of 10.0.0.0/15
    assert scope(regions, "10.2.0.1") == 15
    assert scope(regions, "11.0.0.1") == 8
    assert scope(regions, "128.0.0.1") == 1
    assert str(regions.lookup_prefix(4, 10 << 24 | 2 << 16 | 77)) == "10.2.0.0/15"


def test_neighbours_of_one_region_are_one_cut() -> None:
    halves = compile_regions([RegionSource("a", prefixes=("10.0.0.0/9", "10.128.0.0/9", "10.3.0.0/16"))])
    assert scope(halves, "10.3.0.1") == 8
    odd = compile_regions([RegionSource("a", prefixes=("10.128.0.0/9", "11.0.0.0/9"))])
    assert scope(odd, "10.128.0.1") == 9  # neighbours, but no CIDR block


def test_the_borders_of_the_address_space() -> None:
    everything = compile_regions([RegionSource("a", prefixes=("0.0.0.0/0", "::/0"))])
    one = compile_regions([RegionSource("a", prefixes=("255.255.255.255", "0.0.0.0", "::", f"{'ffff:' * 7}ffff"))])
    for address in ("0.0.0.0", "255.255.255.255", "::", f"{'ffff:' * 7}ffff"):
        assert (where(everything, address), scope(everything, address)) == ("a", 0)
        assert (where(one, address), scope(one, address)) == ("a", 128 if ":" in address else 32)
    assert scope(one, "0.0.0.1") == 32
    assert scope(one, "127.0.0.1") == 2
    assert [str(c) for c in everything.cuts(4)] == ["0.0.0.0/0"]
    assert sum(1 for _ in one.cuts(6)) == 2 * 128


@pytest.mark.parametrize(("family", "address"), [(4, -1), (4, 1 << 32), (6, -1), (6, 1 << 128)])
def test_numbers_that_are_no_address(family: int, address: int) -> None:
    regions = compile_regions([RegionSource("a", prefixes=("10.0.0.0/8", "2001:db8::/32"))])
    with pytest.raises(ValueError, match="is no IPv"):
        regions.lookup(family, address)


def test_families_do_not_mix() -> None:
    regions = compile_regions([RegionSource("a", prefixes=("0.0.0.0/0",)), RegionSource("b", prefixes=("::/1",))])
    assert [where(regions, x) for x in ("1.2.3.4", "::1", "8000::1")] == ["a", "b", "world"]


# --- where it comes from -------------------------------------------------------------------------------------------


def test_provenance_names_table_line_and_prefix_of_all_that_cover_an_address() -> None:
    cn = RegionSource("cn", match=("isp:china", "geo:CN"))
    telecom = RegionSource("cn-telecom", "cn", match=("isp:telecom",))
    lab = RegionSource("lab", prefixes=("10.1.2.0/24",))
    layers = [
        Layer(table("isp", "10.0.0.0/9,china", "10.1.0.0/16,telecom", "10.1.0.0/16,china")),
        Layer(table("geo", "10.0.0.0/8,CN")),
    ]
    regions = compile_regions([cn, telecom, lab], layers)

    def rows(address: int) -> list[tuple[str, str]]:
        return [(str(row), row.fate) for row in regions.evidence(4, address)]

    assert rows(0x0A010203) == [
        ("inline: 10.1.2.0/24 -> lab", "stands"),
        ("isp line 4: 10.1.0.0/16 china -> cn", "kept off"),
        ("isp line 3: 10.1.0.0/16 telecom -> cn-telecom", "painted over"),
        ("isp line 2: 10.0.0.0/9 china -> cn", "painted over"),
        ("geo line 2: 10.0.0.0/8 CN -> cn", "painted over"),
    ]
    assert rows(0x0AFF0000) == [("geo line 2: 10.0.0.0/8 CN -> cn", "stands")]
    assert regions.provenance(4, 0x0AFF0000) == "geo line 2: 10.0.0.0/8 CN -> cn"
    assert regions.provenance(4, 0x0B000000) == "no prefix of any region covers it"
    assert regions.provenance(4, 0x0A000000) == (
        "isp line 2: 10.0.0.0/9 china -> cn; painted over: geo line 2: 10.0.0.0/8 CN -> cn"
    )
