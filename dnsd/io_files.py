"""Everything a server of names reads from files besides its configuration: region tables and zones.

All faults of all files are found before anything is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.config import Config, RegionTable
from core.errors import ConfigError, NearpathError, Problem
from dnsd.zone import MAX_ZONE_BYTES, Zone, ZoneError, parse_zone
from dnsd.zone_checks import check_zone
from policy.regions import (
    Layer,
    RegionError,
    RegionMap,
    RegionSource,
    Table,
    compile_regions,
    parse_csv,
    parse_mmdb,
)

MAX_TABLE_BYTES = 1 << 30
"""A region table on disk; the largest mmdb of the world is a few hundred MB."""


@dataclass(frozen=True, slots=True)
class Names:
    """Zones and region map of a configuration, ready to serve; `warnings` is what is odd about the zones."""

    zones: tuple[Zone, ...]
    regions: RegionMap
    warnings: tuple[str, ...]


def read_names(config: Config, regions: RegionMap | None = None) -> Names:
    """Read and compile zones and (unless given) region tables; ConfigError with every fault of every file."""
    zones, warnings, problems = _zones(config)
    if regions is None:
        try:
            regions = read_regions(config)
        except (ConfigError, RegionError) as error:
            problems += error.problems
    if problems or regions is None:
        raise ConfigError(problems)
    return Names(tuple(zones), regions, tuple(warnings))


def read_regions(config: Config) -> RegionMap:
    """The region map of a configuration; ConfigError with the faults of every table, RegionError for the whole."""
    return compile_regions(*read_region_sources(config))


def read_region_sources(config: Config) -> tuple[list[RegionSource], list[Layer]]:
    """Region entries and tables as `policy.regions` takes them; ConfigError with the faults of every table."""
    entries = [
        RegionSource(name, region.parent, region.precedence, tuple(region.match), tuple(region.prefixes))
        for name, region in config.regions.items()
    ]
    problems: list[Problem] = []
    layers: list[Layer] = []
    for table in config.region_tables:
        try:
            layers.append(Layer(_table(table), table.labels_as_regions, table.parent))
        except RegionError as error:
            problems += error.problems or [Problem(table.file, 0, "", error.what)]
        except NearpathError as error:
            problems.append(Problem(table.file, 0, "", str(error)))
    if problems:
        raise ConfigError(problems)
    return entries, layers


def read_file(file: str, limit_bytes: int = MAX_TABLE_BYTES) -> bytes:
    """The content of a file; NearpathError that names it when it cannot be read or is too large."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(limit_bytes + 1)
    except OSError as error:
        raise NearpathError(f"{file} cannot be read: {error.strerror}", "check its name and its permissions") from None
    if len(data) > limit_bytes:
        raise NearpathError(f"{file} is over {limit_bytes >> 20} MiB", "is it the right file?")
    return data


def _zones(config: Config) -> tuple[list[Zone], list[str], list[Problem]]:
    zones: list[Zone] = []
    warnings: list[str] = []
    problems: list[Problem] = []
    for entry in config.zones:
        try:
            zone = parse_zone(read_file(entry.file, MAX_ZONE_BYTES).decode("utf-8"), entry.origin)
        except ZoneError as error:
            problems.append(Problem(entry.file, error.line, "", str(error)))
        except UnicodeDecodeError as error:
            problems.append(Problem(entry.file, 0, "", f"is not UTF-8 text (octet {error.start})"))
        except NearpathError as error:
            problems.append(Problem(entry.file, 0, "", str(error)))
        else:
            zones.append(zone)
            warnings += [f"zone {entry.origin}: {warning}" for warning in check_zone(zone)]
    return zones, warnings, problems


def _table(entry: RegionTable) -> Table:
    data = read_file(entry.file)
    if entry.format == "mmdb":
        return parse_mmdb(entry.name, data, entry.label, file=entry.file)
    return parse_csv(entry.name, data, file=entry.file)
