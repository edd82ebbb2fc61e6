"""Regions: sets of client prefixes in a tree, compiled from tables and inline prefixes (docs/design.md, "Regions")."""

from policy.regions.compile import compile_regions, compile_sources
from policy.regions.errors import RegionError, RegionTableError, RegionTreeError
from policy.regions.lint import Finding, lint_regions
from policy.regions.mmdb import parse_mmdb
from policy.regions.prefixes import format_prefix, parse_address, parse_prefix
from policy.regions.region_map import Cut, Evidence, RegionMap
from policy.regions.sources import Layer, RegionSource, Sources, join_sources, region_name
from policy.regions.tables import Table, parse_csv
from policy.regions.tree import RegionTree

__all__ = [
    "Cut",
    "Evidence",
    "Finding",
    "Layer",
    "RegionError",
    "RegionMap",
    "RegionSource",
    "RegionTableError",
    "RegionTree",
    "RegionTreeError",
    "Sources",
    "Table",
    "compile_regions",
    "compile_sources",
    "format_prefix",
    "join_sources",
    "lint_regions",
    "parse_address",
    "parse_csv",
    "parse_mmdb",
    "parse_prefix",
    "region_name",
]
