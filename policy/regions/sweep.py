"""The one sweep: sorted paints in, borders between regions out.

CIDR blocks nest or are apart, so the prefixes that cover an address form a chain; a stack holds the chain of the place
where the sweep stands. Each chain is kept in painting order, with the region that stands once it is painted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from policy.regions.errors import table_error
from policy.regions.prefixes import BITS, format_key
from policy.regions.sources import region_of, repaint, split_paint
from policy.regions.tree import ROOT_ID

MAX_CHAIN = 1000
"""Rows that may cover one address: honest tables have a handful, and the sweep copies the chain at each row."""

Open = tuple[int, tuple[int, ...], int]
"""An open prefix: first address after it, strengths of its chain in painting order, region that stands."""


def sweep(paints: Iterable[int], family: int, above: Sequence[frozenset[int]]) -> Iterator[tuple[int, Open]]:
    """(address, what is open from there on) at each beginning and end of a prefix, in order of address.

    Starts with address 0 and stops short of the end of the family's addresses. Of several at one address the last counts.
    `paints` must be sorted (`Sources.paints`); `above` is the tree's. RegionTableError when more than MAX_CHAIN rows cover
    one address.
    """
    end_of_all = 1 << BITS[family]
    bits = BITS[family]
    top: Open = (end_of_all, (), ROOT_ID)
    yield 0, top
    stack = [top]
    before = -1
    for paint in paints:
        if paint == before:
            continue
        before = paint
        key, strength = split_paint(paint)
        start = key >> 8
        while start >= stack[-1][0]:
            end = stack.pop()[0]
            yield end, stack[-1]
        _end, chain, standing = stack[-1]
        if not chain or strength > chain[-1]:
            chain = (*chain, strength)
            region = region_of(strength)
            if region not in above[standing]:
                standing = region
        else:
            chain = tuple(sorted((*chain, strength)))
            standing = repaint(chain, above)
        if len(chain) > MAX_CHAIN:
            what = f"more than {MAX_CHAIN} rows cover {format_key(family, key)}"
            raise table_error("sources", what, fix="match fewer labels, or remove rows")
        top = (start + (1 << bits - (key & 0xFF)), chain, standing)
        stack.append(top)
        yield start, top
    while len(stack) > 1:
        end = stack.pop()[0]
        if end < end_of_all:
            yield end, stack[-1]


def find_borders(paints: Iterable[int], family: int, above: Sequence[frozenset[int]]) -> tuple[list[int], list[int]]:
    """(first addresses, regions) of the runs of one region, covering all addresses, no two neighbours the same."""
    starts: list[int] = [0]
    owners: list[int] = [ROOT_ID]
    for at, (_end, _chain, standing) in sweep(paints, family, above):
        if starts[-1] == at:
            starts.pop()
            owners.pop()
        if not owners or owners[-1] != standing:
            starts.append(at)
            owners.append(standing)
    return starts, owners
