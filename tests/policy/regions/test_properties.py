"""Compiled maps against a literal reading of the painting order, over small random sources."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.regions import Layer, RegionMap, RegionSource, compile_regions, parse_csv

# Prefixes differ in a few bits only, so that they meet often: the first DEPTH bits of IPv4, the last DEPTH of IPv6.
DEPTH = 5
NAMES = ("a", "a1", "a2", "a11", "b", "b1")
PARENTS = {"a1": "a", "a2": "a", "a11": "a1", "b1": "b"}


@dataclass(frozen=True)
class Row:
    """A prefix of `length` bits (0..DEPTH) and what it is for."""

    bits: int
    length: int
    name: str

    def text(self, family: int) -> str:
        value = self.bits >> (DEPTH - self.length) << (DEPTH - self.length)
        if family == 4:
            return str(ipaddress.ip_network((value << (32 - DEPTH), self.length)))
        return str(ipaddress.ip_network((value | 0x20010DB8 << 96, 128 - DEPTH + self.length)))

    def covers(self, block: int) -> bool:
        return (block ^ self.bits) >> (DEPTH - self.length) == 0


rows = st.builds(Row, st.integers(0, 2**DEPTH - 1), st.integers(0, DEPTH), st.sampled_from(NAMES))


@dataclass(frozen=True)
class Case:
    """Sources as drawn: the order of regions, their precedence, tables from strong to weak, inline prefixes."""

    order: tuple[str, ...]
    precedence: dict[str, int]
    tables: tuple[tuple[Row, ...], ...]
    inline: tuple[Row, ...]

    def compile(self, family: int) -> RegionMap:
        layers = [
            Layer(parse_csv(f"t{i}", "\n".join(["prefix,label", *(f"{r.text(family)},{r.name}" for r in t)]).encode()))
            for i, t in enumerate(self.tables)
        ]
        return compile_regions(
            [
                RegionSource(
                    name,
                    PARENTS.get(name),
                    self.precedence.get(name, 0),
                    tuple(f"t{i}:{name}" for i in range(len(self.tables))),
                    tuple(r.text(family) for r in self.inline if r.name == name),
                )
                for name in self.order
            ],
            layers,
        )

    def owner(self, block: int) -> str:
        """The region of one smallest block, by the words of the specification."""
        paints = []
        for layer, table in enumerate([*reversed(self.tables), self.inline]):
            for row in table:
                if row.covers(block):
                    listed = self.order.index(row.name)
                    paints.append((self.precedence.get(row.name, 0), layer, row.length, -listed, row.name))
        standing = "world"
        for *_order, name in sorted(paints):
            if not below(standing, name):
                standing = name
        return standing


def below(name: str, ancestor: str) -> bool:
    at = PARENTS.get(name)
    while at is not None:
        if at == ancestor:
            return True
        at = PARENTS.get(at)
    return False


cases = st.builds(
    Case,
    st.permutations(NAMES).map(tuple),
    st.dictionaries(st.sampled_from(NAMES), st.integers(-1, 1), max_size=3),
    st.lists(st.lists(rows, min_size=1, max_size=8).map(tuple), max_size=3).map(tuple),
    st.lists(rows, max_size=5).map(tuple),
)


def blocks(family: int) -> list[int]:
    """The first address of each smallest block."""
    if family == 4:
        return [i << (32 - DEPTH) for i in range(2**DEPTH)]
    return [i | 0x20010DB8 << 96 for i in range(2**DEPTH)]


def largest_length(owners: list[str], block: int) -> int:
    """Length (in block bits) of the largest aligned group of blocks around `block` that has one owner."""
    for length in range(DEPTH + 1):
        size = 1 << (DEPTH - length)
        first = block // size * size
        if len(set(owners[first : first + size])) == 1:
            return length
    raise AssertionError


@settings(max_examples=400, deadline=None)
@given(cases)
def test_every_block_has_the_owner_and_scope_of_the_specification(case: Case) -> None:
    owners = [case.owner(block) for block in range(2**DEPTH)]
    for family in (4, 6):
        regions = case.compile(family)
        for block, address in enumerate(blocks(family)):
            region, scope_len = regions.lookup(family, address)
            assert regions.tree.names[region] == owners[block], case
            expected = largest_length(owners, block)
            if family == 4:
                assert scope_len == expected
                last = address | (1 << (32 - DEPTH)) - 1
                assert regions.lookup(4, last) == (region, scope_len)
            elif len(set(owners)) > 1:
                assert scope_len == 128 - DEPTH + expected
            evidence = regions.evidence(family, address)
            standing = [row.region for row in evidence if row.fate == "stands"]
            assert standing == ([] if owners[block] == "world" else [owners[block]])


@settings(max_examples=200, deadline=None)
@given(cases)
def test_cuts_are_disjoint_complete_and_maximal(case: Case) -> None:
    for family, bits in ((4, 32), (6, 128)):
        regions = case.compile(family)
        cuts = list(regions.cuts(family))
        at = 0
        for cut in cuts:
            assert cut.start == at
            assert cut.start % (1 << (bits - cut.length)) == 0
            at = cut.start + (1 << (bits - cut.length))
            for address in (cut.start, at - 1):
                assert regions.lookup_prefix(family, address) == cut
        assert at == 1 << bits
        whole = {(cut.start, cut.length): cut.region for cut in cuts}
        for cut in cuts:
            if cut.length:
                sibling = whole.get((cut.start ^ 1 << (bits - cut.length), cut.length))
                assert sibling != cut.region, f"{cut} and its sibling are one block of one region"


@settings(max_examples=100, deadline=None)
@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_lines_does_not_matter(case: Case, rng: object) -> None:
    shuffled = Case(
        case.order,
        case.precedence,
        tuple(tuple(sorted(table, key=lambda _row: rng.random())) for table in case.tables),  # type: ignore[attr-defined]
        tuple(reversed(case.inline)),
    )
    one, other = case.compile(4), shuffled.compile(4)
    assert (one.ipv4, one.ipv6) == (other.ipv4, other.ipv6)
