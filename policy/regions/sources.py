"""What regions are made of: the configuration's region entries and tables, joined into paint layers.

The painting order is in docs/design.md, "Regions"; `Sources.paints` gives each row its place in that order as one number,
its strength, so that compile, provenance and lint all paint alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.errors import Problem
from policy.regions.errors import RegionTableError, quote
from policy.regions.prefixes import parse_prefix
from policy.regions.tables import Table, TableBuilder
from policy.regions.tree import MAX_REGIONS, ROOT, ROOT_ID, RegionTree

INLINE = "inline"
"""What the layer of inline prefixes is called; a table of this name is no conflict, nothing is looked up by it."""

_UNSAFE = re.compile(r"[^a-z0-9]+")
_NAME_LEN = 63  # as for every name of the configuration

_LEVEL_BITS, _LENGTH_BITS, _REGION_BITS = 24, 8, 16


@dataclass(frozen=True, slots=True)
class RegionSource:
    """One entry of the configuration's `regions`: `match` holds TABLE:LABEL texts, `prefixes` inline prefixes."""

    name: str
    parent: str | None = None
    precedence: int = 0
    match: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Layer:
    """One entry of the configuration's `region_tables`, its table read; the first layer listed is the strongest.

    `labels_as_regions`: every label that no region matches becomes a region named after it, below `parent`.
    """

    table: Table
    labels_as_regions: bool = False
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """A table with the regions its labels stand for: `regions[label]` are ids, `tails[label]` their paint order."""

    table: Table
    regions: tuple[tuple[int, ...], ...]
    tails: tuple[tuple[int, ...], ...]

    def paints(self, family: int) -> Iterator[int]:
        """One number for each (row, region): key, then level and region; they sort by prefix, then by strength."""
        rows, tails = self.table.rows(family), self.tails
        for key, label in zip(rows.keys, rows.labels, strict=True):
            for tail in tails[label]:
                yield key << _LEVEL_BITS + _REGION_BITS | tail


@dataclass(frozen=True, slots=True)
class Sources:
    """The tree, and the layers in the order they were listed (strongest first, the inline prefixes before all)."""

    tree: RegionTree
    layers: tuple[Claims, ...]
    joined: tuple[tuple[str, str, str], ...]
    """(table, label, region): labels whose automatic region was there already under that name"""

    def paints(self, family: int) -> list[int]:
        """All paints of a family, sorted by prefix and then by strength."""
        found: list[int] = []
        for layer in reversed(self.layers):
            found += layer.paints(family)
        found.sort()
        return found


def split_paint(paint: int) -> tuple[int, int]:
    """(key, strength) of a paint."""
    key = paint >> _LEVEL_BITS + _REGION_BITS
    return key, strength_of(key, paint & (1 << _LEVEL_BITS + _REGION_BITS) - 1)


def strength_of(key: int, tail: int) -> int:
    """Place in the painting order, a number: level, then prefix length, then the first listed region last."""
    return (tail >> _REGION_BITS << _LENGTH_BITS | key & 0xFF) << _REGION_BITS | tail & 0xFFFF


def region_of(strength: int) -> int:
    """The region id within a strength."""
    return MAX_REGIONS - (strength & 0xFFFF)


def length_of(strength: int) -> int:
    """The prefix length within a strength."""
    return strength >> _REGION_BITS & 0xFF


def repaint(strengths: Iterable[int], above: Sequence[frozenset[int]]) -> int:
    """The region that stands after painting in this order, from `world`: the rule of docs/design.md, word by word."""
    standing = ROOT_ID
    for strength in strengths:
        region = region_of(strength)
        if region not in above[standing]:  # what stands is no descendant of it
            standing = region
    return standing


def join_sources(regions: Sequence[RegionSource], layers: Sequence[Layer]) -> Sources:
    """Regions, tables and inline prefixes as one; labels that no table has are left to the linter.

    RegionTableError lists bad inline prefixes and unknown tables, RegionTreeError what is wrong with parents.
    """
    problems = _problems(regions, layers)
    automatic, joined = _automatic(regions, layers, problems)
    everything = [*regions, *automatic]
    problems += _unknown_parents({region.name for region in everything}, layers)
    if problems:
        raise RegionTableError("the regions cannot be used", problems)
    tree = RegionTree({region.name: region.parent for region in everything})
    inline = _inline(regions)
    tables = [inline, *(layer.table for layer in layers)]
    matched = [_matched_inline(inline, tree), *(_matched(layer, everything, tree) for layer in layers)]
    precedence = [0] * len(tree.names)
    for region in everything:
        precedence[tree.id_of(region.name)] = region.precedence
    return Sources(tree, _claims(tables, matched, precedence), tuple(joined))


def _claims(
    tables: Sequence[Table], matched: Sequence[tuple[tuple[int, ...], ...]], precedence: Sequence[int]
) -> tuple[Claims, ...]:
    ranks = sorted({(precedence[r], -i) for i, labels in enumerate(matched) for ids in labels for r in ids})
    levels = {rank: level for level, rank in enumerate(ranks)}
    return tuple(
        Claims(
            table,
            labels,
            tuple(tuple(levels[precedence[r], -i] << _REGION_BITS | (MAX_REGIONS - r) for r in ids) for ids in labels),
        )
        for i, (table, labels) in enumerate(zip(tables, matched, strict=True))
    )


def _problems(regions: Sequence[RegionSource], layers: Sequence[Layer]) -> list[Problem]:
    tables = [layer.table.name for layer in layers]
    twice = sorted({name for name in tables if tables.count(name) > 1})
    found = [Problem("region_tables", 0, name, "two tables have this name: rename one of them") for name in twice]
    seen: set[str] = set()
    for region in regions:
        if region.name in seen:
            found.append(Problem("regions", 0, region.name, "it is defined twice: join the two"))
        seen.add(region.name)
        for entry in region.match:
            table, colon, label = entry.partition(":")
            if not colon or not label:
                found.append(Problem("regions", 0, region.name, f"match entry {quote(entry)} is not TABLE:LABEL"))
            elif table not in tables:
                have = ", ".join(tables[:8]) or "none"
                what = f"match entry {quote(entry)}: there is no table {table!r} (tables: {have})"
                found.append(Problem("regions", 0, region.name, what))
        for text in region.prefixes:
            try:
                parse_prefix(text)
            except ValueError as error:
                found.append(Problem("regions", 0, region.name, str(error)))
    return found


def _unknown_parents(names: set[str], layers: Sequence[Layer]) -> Iterator[Problem]:
    for layer in layers:
        parent = layer.parent
        if layer.labels_as_regions and parent is not None and parent != ROOT and parent not in names:
            what = f"the parent {parent!r} of its regions is not defined: define it or correct it"
            yield Problem("region_tables", 0, layer.table.name, what)


def _inline(regions: Sequence[RegionSource]) -> Table:
    builder = TableBuilder(INLINE)
    for region in regions:
        for text in region.prefixes:
            family, start, length = parse_prefix(text)
            builder.add(family, start << 8 | length, region.name)
    return builder.build()


def _matched_inline(table: Table, tree: RegionTree) -> tuple[tuple[int, ...], ...]:
    return tuple((tree.id_of(name),) for name in table.labels)


def _matched(layer: Layer, regions: Sequence[RegionSource], tree: RegionTree) -> tuple[tuple[int, ...], ...]:
    by_label: dict[str, list[int]] = {}
    for region in regions:
        for entry in dict.fromkeys(region.match):
            table, _colon, label = entry.partition(":")
            if table == layer.table.name:
                by_label.setdefault(label, []).append(tree.id_of(region.name))
    if layer.labels_as_regions:
        for label in layer.table.labels:
            if label not in by_label:
                by_label[label] = [tree.id_of(region_name(label))]
    return tuple(tuple(by_label.get(label, ())) for label in layer.table.labels)


def region_name(label: str) -> str:
    """The name of the region a label becomes: lower case, other characters than a-z and 0-9 as single hyphens."""
    return _UNSAFE.sub("-", label.lower()).strip("-")


def _automatic(
    regions: Sequence[RegionSource], layers: Sequence[Layer], problems: list[Problem]
) -> tuple[list[RegionSource], list[tuple[str, str, str]]]:
    """The regions made of labels, and which labels joined a region that was there; adds to `problems`."""
    taken = {region.name for region in regions}
    made: list[RegionSource] = []
    joined: list[tuple[str, str, str]] = []
    for layer in layers:
        if not layer.labels_as_regions:
            continue
        table = layer.table.name
        matched = {entry for region in regions for entry in region.match}
        for label in layer.table.labels:
            if f"{table}:{label}" in matched:
                continue
            name = region_name(label)
            if not name or len(name) > _NAME_LEN or name == ROOT:
                what = f"label {quote(label)} cannot become the name of a region: match it in a region of your own"
                problems.append(Problem("region_tables", 0, table, what))
            elif name in taken:
                joined.append((table, label, name))
            else:
                taken.add(name)
                made.append(RegionSource(name, layer.parent))
    return made, joined
