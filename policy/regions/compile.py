"""Compile region sources into the frozen map that answers are made from."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from policy.regions.prefixes import BITS
from policy.regions.region_map import RegionMap, Runs
from policy.regions.sources import Layer, RegionSource, Sources, join_sources
from policy.regions.sweep import find_borders


def compile_regions(regions: Sequence[RegionSource], layers: Sequence[Layer] = ()) -> RegionMap:
    """The map of `regions` over the tables in `layers` (strongest first), after docs/design.md, "Regions".

    RegionTableError and RegionTreeError list everything that is wrong. A TABLE:LABEL whose label the table lacks is no
    error here, since a table that lost a label must not keep a server from starting; the linter reports it.
    """
    return compile_sources(join_sources(regions, layers))


def compile_sources(sources: Sources) -> RegionMap:
    """The map of joined sources."""
    return RegionMap(sources.tree, _runs(4, sources), _runs(6, sources), sources)


def _runs(family: int, sources: Sources) -> Runs:
    starts, owners = find_borders(sources.paints(family), family, sources.tree.above)
    starts.append(1 << BITS[family])
    return Runs(array("Q", starts) if family == 4 else tuple(starts), array("H", owners))
