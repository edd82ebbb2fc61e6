"""What is odd about region sources: conflicts, gaps and doubtful prefixes, a few lines each however large the tables are.

| code | severity | meaning |
|---|---|---|
| `unusable` | error | the sources cannot be compiled at all; nothing else is looked at |
| `no-such-label` | error | a region matches TABLE:LABEL, and the table has no such label |
| `same-prefix` | warning | two unrelated regions claim the same prefixes within one layer; the first listed has them |
| `overlap` | warning | within one layer, longer prefixes of a region take addresses from an unrelated one |
| `empty-region` | warning | neither the region nor any below it has a prefix |
| `shadowed` | warning | the region has prefixes and not one address: others paint over all of it |
| `label-joined` | info | a label became part of a region that was there already under its name |
| `unmatched-label` | info | labels of a table that no region matches |
| `bogon` | info | prefixes in a table that are private, reserved or otherwise never a client on the Internet |

A layer is a table or all inline prefixes together. Regions are related when one lies below the other.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from policy.regions.compile import compile_sources
from policy.regions.errors import RegionError, quote
from policy.regions.prefixes import BITS, FAMILIES, format_key, parse_prefix
from policy.regions.region_map import RegionMap
from policy.regions.sources import (
    INLINE,
    Claims,
    Layer,
    RegionSource,
    Sources,
    join_sources,
    length_of,
    region_of,
    repaint,
    split_paint,
)
from policy.regions.sweep import sweep

Severity = Literal["error", "warning", "info"]
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}

_SHOWN = 5
"""Names or examples in one finding."""

# Never a client's address on the Internet: the special-purpose registries of RFC 6890 (as updated), multicast and what
# lies outside of IPv6 global unicast (2000::/3, RFC 4291 2.4).
_BOGON_TEXTS = """
    0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
    192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3
    ::/3 4000::/2 8000::/1 2001::/23 2001:db8::/32 2002::/16 3fff::/20
"""
_BOGONS = tuple(parse_prefix(text) for text in _BOGON_TEXTS.split())


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know; the codes are in the table at the head of this module."""

    severity: Severity
    code: str
    text: str


def lint_regions(
    regions: Sequence[RegionSource], layers: Sequence[Layer] = (), compiled: RegionMap | None = None
) -> tuple[Finding, ...]:
    """All findings, the gravest first. `compiled`: the map of the same sources, when it is at hand."""
    try:
        compiled = compiled or compile_sources(join_sources(regions, layers))
    except RegionError as error:
        return tuple(Finding("error", "unusable", str(problem)) for problem in error.problems)
    sources = compiled.sources
    findings = [
        *_missing_labels(regions, layers),
        *(finding for layer in sources.layers for finding in _conflicts(layer, sources)),
        *_without_addresses(compiled),
        *_joined(sources),
        *_unmatched(sources),
        *_bogons(sources),
    ]
    return tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity]))


def _missing_labels(regions: Sequence[RegionSource], layers: Sequence[Layer]) -> Iterator[Finding]:
    labels = {layer.table.name: layer.table.labels for layer in layers}
    known = {name: frozenset(have) for name, have in labels.items()}
    for region in regions:
        for entry in region.match:
            table, _colon, label = entry.partition(":")
            if label in known[table]:
                continue
            by_fold = {have.lower(): have for have in labels[table]}
            close = [by_fold[text] for text in difflib.get_close_matches(label.lower(), by_fold, n=3)]
            hint = f"did you mean {' or '.join(close)}?" if close else f"it has {_list(labels[table])}"
            what = f"region {region.name} matches {entry}, but table {table} has no label {quote(label)}: {hint}"
            yield Finding("error", "no-such-label", what)


@dataclass(slots=True)
class _Pair:
    """What one region takes from another within a layer."""

    prefixes: int = 0
    addresses: int = 0
    example: str = ""


@dataclass(slots=True)
class _Tally:
    """Of one layer and family: what each region claims, and what each (taker, loser, same prefix?) pair is about."""

    claimed: Counter[int] = field(default_factory=Counter)
    pairs: dict[tuple[int, int, bool], _Pair] = field(default_factory=dict)


def _conflicts(layer: Claims, sources: Sources) -> Iterator[Finding]:
    tallies = {family: _tally(layer, family, sources) for family in FAMILIES}
    name = "the inline prefixes" if layer is sources.layers[0] else f"table {layer.table.name}"
    for taker, loser, same in sorted({pair for tally in tallies.values() for pair in tally.pairs}):
        takes, loses = sources.tree.names[taker], sources.tree.names[loser]
        parts, example = [], ""
        for family, tally in tallies.items():
            pair = tally.pairs.get((taker, loser, same))
            if pair is None:
                continue
            share = pair.addresses / tally.claimed[loser]
            prefixes = f"{pair.prefixes} IPv{family} prefix{'es' if pair.prefixes != 1 else ''}"
            parts.append(f"{prefixes} ({_percent(share)} of the IPv{family} addresses of {loses})")
            example = example or pair.example
        what = " and ".join(parts)
        if same:
            text = f"{name}: {takes} and {loses} both claim {what}, such as {example}: {takes} has them, being listed first"
            yield Finding("warning", "same-prefix", text)
        else:
            text = f"{name}: {takes} takes {what} with longer prefixes, such as {example}"
            yield Finding("warning", "overlap", text)


def _tally(layer: Claims, family: int, sources: Sources) -> _Tally:
    """Sweep one layer alone, and weigh each chain of prefixes by the addresses it stands over."""
    paints = sorted(layer.paints(family))
    above, tree = sources.tree.above, sources.tree
    sizes: Counter[tuple[int, ...]] = Counter()
    at = 0
    chain: tuple[int, ...] = ()
    for begin, (_end, next_chain, _standing) in sweep(paints, family, above):
        if chain and begin > at:
            sizes[chain] += begin - at
        at, chain = begin, next_chain
    if chain:
        sizes[chain] += (1 << BITS[family]) - at
    tally = _Tally()
    contested: dict[tuple[int, ...], list[tuple[int, int, bool]]] = {}
    for chain, size in sizes.items():
        lengths: dict[int, int] = {}
        for strength in chain:
            region, length = region_of(strength), length_of(strength)
            lengths[region] = max(length, lengths.get(region, 0))
        for region in lengths:
            tally.claimed[region] += size
        winner = repaint(chain, above)
        for region, length in lengths.items():
            # A shorter prefix that wins does so by precedence, which somebody has asked for.
            if not tree.related(region, winner) and lengths[winner] >= length:
                pair = (winner, region, lengths[winner] == length)
                tally.pairs.setdefault(pair, _Pair()).addresses += size
                contested.setdefault(chain, []).append(pair)
    if contested:
        _count_prefixes(paints, family, sources, tally)
    return tally


def _count_prefixes(paints: Sequence[int], family: int, sources: Sources, tally: _Tally) -> None:
    """How many prefixes each pair is about: those of the taker that begin where the loser's stand open, or equal them."""
    tree = sources.tree
    open_prefixes: list[tuple[int, int, int]] = []  # (first address after it, key, region)
    counted: set[tuple[int, tuple[int, int, bool]]] = set()
    for paint in paints:
        key, strength = split_paint(paint)
        region, start = region_of(strength), key >> 8
        while open_prefixes and start >= open_prefixes[-1][0]:
            open_prefixes.pop()
        for _end, other_key, other in open_prefixes:
            if other == region or tree.related(other, region):
                continue
            same = other_key == key
            for taker, loser in ((region, other), (other, region)) if same else ((region, other),):
                pair = tally.pairs.get((taker, loser, same))
                mark = (key, (taker, loser, same))
                if pair is not None and mark not in counted:
                    counted.add(mark)
                    pair.prefixes += 1
                    inside = "" if same else f" inside {format_key(family, other_key)}"
                    pair.example = pair.example or f"{format_key(family, key)}{inside}"
        open_prefixes.append((start + (1 << (BITS[family] - (key & 0xFF))), key, region))


def _without_addresses(compiled: RegionMap) -> Iterator[Finding]:
    tree = compiled.tree
    claimed: set[int] = set()
    for layer in compiled.sources.layers:
        for family in FAMILIES:
            for label in set(layer.table.rows(family).labels):
                claimed.update(layer.regions[label])
    served = {*compiled.ipv4.regions, *compiled.ipv6.regions}
    filled = claimed.union(*(tree.above[region] for region in claimed))
    empty = [name for i, name in enumerate(tree.names) if i and i not in filled]
    for name in empty:
        text = f"region {name} has no prefix, nor has any region below it: no client is ever in it"
        yield Finding("warning", "empty-region", text)
    for i, name in enumerate(tree.names):
        if i in claimed and i not in served:
            text = f"region {name} has prefixes, but others paint over all of them: no client is ever in it"
            yield Finding("warning", "shadowed", text)


def _joined(sources: Sources) -> Iterator[Finding]:
    for table, label, region in sources.joined:
        text = f"table {table}: label {quote(label)} joined region {region}, which was there under that name"
        yield Finding("info", "label-joined", text)


def _unmatched(sources: Sources) -> Iterator[Finding]:
    for layer in sources.layers:
        free = {i for i, regions in enumerate(layer.regions) if not regions}
        if not free:
            continue
        count = sum(label in free for family in FAMILIES for label in layer.table.rows(family).labels)
        names = [layer.table.labels[i] for i in sorted(free)]
        what = f"{len(names)} of {len(layer.regions)} labels are matched by no region ({count} prefixes)"
        yield Finding("info", "unmatched-label", f"table {layer.table.name}: {what}: {_list(names)}")


def _bogons(sources: Sources) -> Iterator[Finding]:
    for layer in sources.layers:
        table = layer.table
        if table.name == INLINE and layer is sources.layers[0]:
            continue  # who writes a private prefix by hand means it
        found: list[tuple[int, int]] = []
        for family, start, length in _BOGONS:
            keys = table.rows(family).keys
            first = bisect_left(keys, start << 8)
            last = bisect_left(keys, start + (1 << (BITS[family] - length)) << 8)
            found += [(family, keys[i]) for i in range(first, last) if keys[i] & 0xFF >= length]
        if found:
            examples = _list([format_key(family, key) for family, key in found])
            what = f"{len(found)} prefix{'es' if len(found) > 1 else ''} never a client on the Internet: {examples}"
            yield Finding("info", "bogon", f"table {table.name}: {what}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "less than 0.1%"
