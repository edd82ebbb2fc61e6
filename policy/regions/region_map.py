"""The compiled map: address -> region and scope, and where that comes from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from policy.regions.prefixes import BITS, format_key, format_prefix, parse_address
from policy.regions.sources import Sources, region_of, strength_of
from policy.regions.tree import ROOT_ID, RegionTree


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs of addresses of one region: run i is starts[i] up to starts[i + 1], and `starts` ends with the family's end.

    Sequences of numbers, never changed once made.
    """

    starts: Sequence[int]
    regions: Sequence[int]


@dataclass(frozen=True, slots=True)
class Cut:
    """A maximal CIDR block of one region: no larger block around it belongs to that region alone."""

    family: int
    start: int
    length: int
    region: int

    def __str__(self) -> str:
        return format_prefix(self.family, self.start, self.length)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One row that covers an address: from which table (or `inline`), line (0: none), prefix and label, for which region.

    `fate` is what painting did with it: `stands`, `painted over`, or `kept off` by a descendant that stood there.
    """

    table: str
    line: int
    prefix: str
    label: str
    region: str
    fate: str

    def __str__(self) -> str:
        place = f"{self.table} line {self.line}" if self.line else self.table
        label = f" {self.label}" if self.label != self.region else ""
        return f"{place}: {self.prefix}{label} -> {self.region}"


@dataclass(frozen=True, slots=True)
class RegionMap:
    """Frozen map from addresses to regions. Only the borders between regions are kept; cuts follow from them."""

    tree: RegionTree
    ipv4: Runs
    ipv6: Runs
    sources: Sources

    def lookup(self, family: int, address: int) -> tuple[int, int]:
        """(region id, scope_len) of an address given as a number; ValueError when it is beyond the family's range.

        scope_len is the length of the cut the address is in (RFC 7871 7.2.1: the scope for the answer).
        """
        if family == 4:
            starts, regions, bits = self.ipv4.starts, self.ipv4.regions, 32
        else:
            starts, regions, bits = self.ipv6.starts, self.ipv6.regions, 128
        i = bisect_right(starts, address)
        if not 0 < i < len(starts):
            raise ValueError(f"{address} is no IPv{family} address")
        # The cut is the largest block around the address that holds neither the address before the run nor the one
        # after it: one bit longer than the longer of the two common prefixes. Before the first address of all, -1 has
        # (within one bit more) no common prefix with anything; nor has the first number after the last address.
        before = (address ^ ((starts[i - 1] - 1) & ((2 << bits) - 1))).bit_length()
        after = (address ^ starts[i]).bit_length()
        return regions[i - 1], bits + 1 - (before if before < after else after)

    def lookup_text(self, address: str) -> tuple[int, int]:
        """`lookup` for an address as text; IPv4 written as IPv6 is IPv4. ValueError when it is no address."""
        return self.lookup(*parse_address(address))

    def lookup_prefix(self, family: int, address: int) -> Cut:
        """The whole cut that an address is in."""
        region, length = self.lookup(family, address)
        spare = BITS[family] - length
        return Cut(family, address >> spare << spare, length, region)

    def cuts(self, family: int) -> Iterator[Cut]:
        """All cuts in order of address: disjoint, maximal, together all addresses."""
        runs, bits = self.ipv4 if family == 4 else self.ipv6, BITS[family]
        for i, region in enumerate(runs.regions):
            at, end = runs.starts[i], runs.starts[i + 1]
            while at < end:
                aligned = (at & -at).bit_length() - 1 if at else bits
                spare = min(aligned, (end - at).bit_length() - 1)
                yield Cut(family, at, bits - spare, region)
                at += 1 << spare

    def evidence(self, family: int, address: int) -> tuple[Evidence, ...]:
        """Every row that covers an address, the one that stands first, then the others, the last painted first."""
        found = []
        for layer in self.sources.layers:
            rows = layer.table.rows(family)
            for i in _covering(rows.keys, address, BITS[family]):
                label = rows.labels[i]
                for region, tail in zip(layer.regions[label], layer.tails[label], strict=True):
                    line = rows.lines[i] if rows.lines else 0
                    found.append((strength_of(rows.keys[i], tail), rows.keys[i], layer.table, label, line, region))
        found.sort(key=lambda row: row[0])
        standing, winner, kept = ROOT_ID, -1, set()
        for i, row in enumerate(found):
            if region_of(row[0]) in self.tree.above[standing]:
                kept.add(i)
            else:
                standing, winner = region_of(row[0]), i
        result = []
        for i in sorted(range(len(found)), key=lambda i: (i != winner, -i)):
            _strength, key, table, label, line, region = found[i]
            fate = "stands" if i == winner else "kept off" if i in kept else "painted over"
            prefix = format_key(family, key)
            result.append(Evidence(table.name, line, prefix, table.labels[label], self.tree.names[region], fate))
        return tuple(result)

    def provenance(self, family: int, address: int) -> str:
        """One line for people: which row decides the region of an address, and which others cover it."""
        rows = self.evidence(family, address)
        if not rows:
            return "no prefix of any region covers it"
        others = [f"{row.fate}: {row}" for row in rows[1:]]
        return "; ".join([str(rows[0]), *others])


def _covering(keys: Sequence[int], address: int, bits: int) -> Iterator[int]:
    """Positions of the rows whose prefix covers the address: one search per prefix length."""
    for length in range(bits + 1):
        spare = bits - length
        key = address >> spare << spare << 8 | length
        i = bisect_left(keys, key)
        while i < len(keys) and keys[i] == key:
            yield i
            i += 1
