"""The tables nearpath ships: known addresses, what the linter says of them, and that they are what the notice says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from policy.regions import Layer, RegionMap, RegionSource, compile_regions, lint_regions, parse_csv

FOLDER = Path(__file__).parents[3] / "configs/regions"
OPERATORS = ("chinanet", "unicom", "cmcc", "cernet", "cstnet", "drpeng")
SOURCES = (
    RegionSource("cn", match=("isp:china", "countries:CN")),
    *(RegionSource(f"cn-{name}", "cn", match=(f"isp:{name}",)) for name in OPERATORS),
)


@pytest.fixture(scope="module")
def layers() -> tuple[Layer, ...]:
    isp = parse_csv("isp", (FOLDER / "china-isp.csv.gz").read_bytes())
    countries = parse_csv("countries", (FOLDER / "countries.csv.gz").read_bytes())
    return Layer(isp), Layer(countries, labels_as_regions=True)


@pytest.fixture(scope="module")
def regions(layers: tuple[Layer, ...]) -> RegionMap:
    return compile_regions(SOURCES, layers)


def test_the_notice_counts_right(layers: tuple[Layer, ...]) -> None:
    notice = (FOLDER / "NOTICE.md").read_text("utf-8")
    counts = {
        file: int(count.replace(",", "")) for file, count in re.findall(r"\| `([\w.-]+)` \| ([\d,]+) IPv4", notice)
    }
    assert counts == {"china-isp.csv.gz": len(layers[0].table), "countries.csv.gz": len(layers[1].table)}
    assert sorted(file.name for file in FOLDER.glob("*.gz")) == sorted(counts)


@pytest.mark.parametrize(
    ("address", "region"),
    [
        ("1.12.14.1", "cn-chinanet"),
        ("1.12.0.1", "cn"),
        ("1.51.3.1", "cn-chinanet"),  # inside 1.51.0.0/16 of cernet
        ("1.51.255.1", "cn-cernet"),
        ("159.226.1.1", "cn-cstnet"),
        ("8.8.8.8", "us"),
        ("46.172.224.1", "ad"),
        ("2001:da8::1", "cn-cernet"),
        ("2a01:fb00::1", "ad"),
        ("2001:c68::1", "cn-chinanet"),
        ("10.0.0.1", "world"),
        ("127.0.0.1", "world"),
        ("fe80::1", "world"),
        ("::1", "world"),
    ],
)
def test_known_addresses(regions: RegionMap, address: str, region: str) -> None:
    assert regions.tree.names[regions.lookup_text(address)[0]] == region


def test_every_country_is_a_region_and_the_operators_are_below_china(regions: RegionMap) -> None:
    assert len(regions.tree.names) == 1 + 1 + 6 + 236
    assert all(regions.tree.ancestors(f"cn-{name}") == ("cn", "world") for name in OPERATORS)
    assert regions.tree.ancestors("de") == ("world",)


def test_every_country_row_outside_china_is_served_as_written(regions: RegionMap, layers: tuple[Layer, ...]) -> None:
    """The country lists are disjoint, so wherever no operator's list speaks, the country must."""
    table = layers[1].table
    isp = [set(layers[0].table.rows(family).keys) for family in (4, 6)]
    wrong = 0
    for family, in_isp in zip((4, 6), isp, strict=True):
        rows = table.rows(family)
        for key, label in zip(rows.keys[::7], rows.labels[::7], strict=True):
            found = regions.tree.names[regions.lookup(family, key >> 8)[0]]
            if found != table.labels[label].lower() and not found.startswith("cn"):
                wrong += 1
            assert key not in in_isp or found.startswith("cn")
    assert wrong == 0


def test_the_linter_sees_the_known_trap_in_few_lines(regions: RegionMap, layers: tuple[Layer, ...]) -> None:
    findings = lint_regions(SOURCES, layers, regions)
    assert not [finding for finding in findings if finding.severity == "error"]
    assert len(findings) < 40
    (trap,) = [f.text for f in findings if f.code == "overlap" and "cn-chinanet takes" in f.text and "cernet" in f.text]
    assert "(37% of the IPv4 addresses of cn-cernet)" in trap


def test_provenance_of_a_contested_address(regions: RegionMap) -> None:
    text = regions.provenance(4, 1 << 24 | 51 << 16 | 3 << 8 | 1)
    assert re.match(r"isp line \d+: 1\.51\.3\.0/24 chinanet -> cn-chinanet; ", text)
    assert re.search(r"painted over: isp line \d+: 1\.51\.0\.0/16 cernet -> cn-cernet", text)
    assert re.search(r"countries line \d+: 1\.51\.0\.0/16 CN -> cn|countries line \d+: 1\.\S+ CN -> cn", text)
