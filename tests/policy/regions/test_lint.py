"""The linter: each code has a case that raises it, and a near one that does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import policy.regions.lint
from policy.regions import Finding, Layer, RegionSource, Table, compile_regions, lint_regions, parse_csv


def table(name: str, *rows: str) -> Table:
    return parse_csv(name, "\n".join(["prefix,label", *rows]).encode())


A, B = RegionSource("a", match=("t:a",)), RegionSource("b", match=("t:b",))


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.code for finding in findings]


def test_nothing_to_say_about_clean_sources() -> None:
    assert lint_regions([A, B], [Layer(table("t", "1.0.0.0/8,a", "2.0.0.0/8,b", "2a00::/16,b"))]) == ()
    assert lint_regions([]) == ()


def test_overlap_is_weighed_and_aggregated() -> None:
    rows = table("t", "1.0.0.0/8,a", *(f"1.{i}.0.0/16,b" for i in range(64)), "2a00::/16,a", "2a00:1::/32,b")
    (finding,) = lint_regions([A, B], [Layer(rows)])
    assert (finding.severity, finding.code) == ("warning", "overlap")
    assert finding.text == (
        "table t: b takes 64 IPv4 prefixes (25% of the IPv4 addresses of a) and 1 IPv6 prefix (less than 0.1% of the "
        "IPv6 addresses of a) with longer prefixes, such as 1.0.0.0/16 inside 1.0.0.0/8"
    )


def test_overlap_within_a_family_of_regions_is_meant() -> None:
    child = RegionSource("b", "a", match=("t:b",))
    assert (
        lint_regions([A, child], [Layer(table("t", "1.0.0.0/8,a", "1.2.0.0/16,b", "3.0.0.0/8,a", "3.0.0.0/8,b"))]) == ()
    )


def test_overlap_of_two_tables_is_what_the_order_of_tables_is_for() -> None:
    other = RegionSource("b", match=("s:b",))
    assert lint_regions([A, other], [Layer(table("s", "1.2.0.0/16,b")), Layer(table("t", "1.0.0.0/8,a"))]) == ()


def test_a_shorter_prefix_that_wins_by_precedence_is_meant() -> None:
    strong = RegionSource("a", match=("t:a",), precedence=1)
    rows = table("t", "1.0.0.0/8,a", "1.2.0.0/16,b", "2.0.0.0/8,b")
    assert lint_regions([strong, B], [Layer(rows)]) == ()


def test_same_prefix_of_two_regions() -> None:
    rows = table("t", "1.0.0.0/8,a", "1.0.0.0/8,b", "2.0.0.0/8,b")
    (finding,) = lint_regions([A, B], [Layer(rows)])
    assert (finding.severity, finding.code) == ("warning", "same-prefix")
    assert "a and b both claim 1 IPv4 prefix (50% of the IPv4 addresses of b), such as 1.0.0.0/8" in finding.text
    assert "a has them" in finding.text


def test_same_inline_prefix() -> None:
    a, b = RegionSource("a", prefixes=("1.0.0.0/8",)), RegionSource("b", prefixes=("1.0.0.0/8", "2.0.0.0/8"))
    (finding,) = lint_regions([a, b])
    assert finding.code == "same-prefix"
    assert finding.text.startswith("the inline prefixes: a and b both claim")


def test_a_missing_label_is_an_error_with_a_suggestion() -> None:
    region = RegionSource("a", match=("isp:chinanett", "isp:UNICOM", "isp:x"))
    rows = table("isp", "1.0.0.0/8,chinanet", "2.0.0.0/8,unicom")
    findings = [f for f in lint_regions([region], [Layer(rows)]) if f.code == "no-such-label"]
    assert [f.severity for f in findings] == ["error"] * 3
    assert "did you mean chinanet?" in findings[0].text
    assert "did you mean unicom?" in findings[1].text
    assert "it has chinanet, unicom" in findings[2].text


def test_unusable_sources_are_reported_not_raised() -> None:
    findings = lint_regions([RegionSource("a", "nowhere"), RegionSource("b", "b")])
    assert [(f.severity, f.code) for f in findings] == [("error", "unusable")] * 2
    assert "nowhere" in findings[0].text
    assert codes(lint_regions([RegionSource("a", match=("nope:x",))])) == ["unusable"]


def test_empty_regions_but_not_parents_of_filled_ones() -> None:
    regions = [RegionSource("europe"), RegionSource("de", "europe", prefixes=("1.0.0.0/8",)), RegionSource("mars")]
    (finding,) = lint_regions(regions)
    assert (finding.severity, finding.code) == ("warning", "empty-region")
    assert "region mars" in finding.text


def test_a_region_painted_over_everywhere_is_shadowed() -> None:
    a, b = RegionSource("a", prefixes=("1.0.0.0/8",)), RegionSource("b", match=("t:b",))
    (finding,) = lint_regions([a, b], [Layer(table("t", "1.2.0.0/16,b"))])
    assert (finding.severity, finding.code) == ("warning", "shadowed")
    assert "region b" in finding.text


def test_labels_without_a_region_are_one_line_per_table() -> None:
    rows = table("t", "1.0.0.0/8,a", *(f"{i}.0.0.0/8,x{i}" for i in range(20, 29)), "2a00::/16,x20")
    (finding,) = lint_regions([A], [Layer(rows)])
    assert (finding.severity, finding.code) == ("info", "unmatched-label")
    assert "9 of 10 labels are matched by no region (10 prefixes): x20, x21, x22, x23, x24 and 4 more" in finding.text
    assert lint_regions([A], [Layer(rows, labels_as_regions=True)]) == ()


def test_labels_that_joined_a_region_by_name() -> None:
    (finding,) = lint_regions(
        [RegionSource("cn", prefixes=("1.0.0.0/8",))], [Layer(table("geo", "2.0.0.0/8,CN"), True)]
    )
    assert (finding.severity, finding.code) == ("info", "label-joined")
    assert "'CN' joined region cn" in finding.text


@pytest.mark.parametrize(
    ("prefix", "bogus"),
    [
        ("10.0.0.0/8", True),
        ("10.255.0.0/16", True),
        ("192.168.7.0/24", True),
        ("224.0.0.0/4", True),
        ("255.255.255.255", True),
        ("fc00::/7", True),
        ("2001:db8::/48", True),
        ("::/0", False),
        ("0.0.0.0/0", False),
        ("8.0.0.0/7", False),
        ("11.0.0.0/8", False),
        ("2a00::/16", False),
        ("2001:200::/23", False),
    ],
)
def test_bogons_in_tables(prefix: str, bogus: bool) -> None:
    findings = lint_regions([A], [Layer(table("t", f"{prefix},a"))])
    assert codes(findings) == (["bogon"] if bogus else [])
    assert all(f.severity == "info" and prefix in f.text for f in findings)


def test_private_prefixes_written_by_hand_are_meant() -> None:
    assert lint_regions([RegionSource("lan", prefixes=("10.0.0.0/8", "fc00::/7"))]) == ()


def test_the_gravest_come_first_and_a_compiled_map_may_be_given() -> None:
    regions = [RegionSource("a", match=("t:a", "t:gone")), RegionSource("empty")]
    layers = [Layer(table("t", "10.0.0.0/8,a"))]
    findings = lint_regions(regions, layers)
    assert [f.severity for f in findings] == ["error", "warning", "info"]
    assert lint_regions(regions, layers, compile_regions(regions, layers)) == findings


def test_every_code_is_in_the_table_of_the_module() -> None:
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", policy.regions.lint.__doc__ or "", re.M))
    source = Path(policy.regions.lint.__file__).read_text("utf-8")
    used = set(re.findall(r'Finding\("(?:error|warning|info)", "([a-z-]+)"', source))
    assert used == documented
