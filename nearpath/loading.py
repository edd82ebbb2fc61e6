"""Everything the appliance reads from files besides its configuration: region tables, zones, certificates."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from core.config import Config, RegionTable, Tls
from core.errors import ConfigError, NearpathError, Problem
from dnsd.zone import Zone, ZoneError, parse_zone
from dnsd.zone_checks import check_zone
from policy.plan import SteeringPlan, make_plan
from policy.regions import (
    Finding,
    Layer,
    RegionError,
    RegionMap,
    RegionSource,
    Table,
    compile_regions,
    lint_regions,
    parse_csv,
    parse_mmdb,
)

MAX_FILE_BYTES = 1 << 30

_Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with all it names read, checked and compiled; `stamps` tell whether region files changed since."""

    config: Config
    zones: tuple[Zone, ...]
    plan: SteeringPlan
    warnings: tuple[str, ...]
    stamps: dict[str, _Stamp]


def load(config: Config, older: Loaded | None = None) -> Loaded:
    """Read and compile all files of `config`; the region map of `older` is kept when nothing of it changed.

    Raises ConfigError with every fault of every file.
    """
    problems: list[Problem] = []
    zones: list[Zone] = []
    warnings: list[str] = []
    for entry in config.zones:
        try:
            zone = parse_zone(_read_text(entry.file), entry.origin)
            zones.append(zone)
            warnings += [f"zone {entry.origin}: {warning}" for warning in check_zone(zone)]
        except ZoneError as error:
            problems.append(Problem(entry.file, error.line, "", str(error)))
        except NearpathError as error:
            problems.append(Problem(entry.file, 0, "", str(error)))
    stamps = {table.file: _stamp(table.file) for table in config.region_tables}
    regions: RegionMap | None = None
    if older and stamps == older.stamps and _region_part(config) == _region_part(older.config):
        regions = older.plan.regions
    else:
        try:
            regions = load_regions(config)
        except (ConfigError, RegionError) as error:
            problems += error.problems
    if problems or regions is None:
        raise ConfigError(problems)
    _check_region_names(config, regions)
    if config.report.tls:
        make_tls_context(config.report.tls)
    return Loaded(config, tuple(zones), make_plan(config, regions), tuple(warnings), stamps)


def load_regions(config: Config) -> RegionMap:
    """The region map of a configuration; ConfigError with the faults of every table, RegionError for the whole."""
    return compile_regions(_regions(config), _layers(config))


def lint_config_regions(config: Config) -> tuple[Finding, ...]:
    """What the linter has to say about the region tables of a configuration; raises as `load_regions`."""
    return lint_regions(_regions(config), _layers(config))


def make_tls_context(tls: Tls) -> ssl.SSLContext:
    """The server side TLS context of the report interface; NearpathError that names the bad file."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.cert, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise NearpathError(
            f"cannot use certificate {tls.cert} with key {tls.key}: {error}",
            "both must be PEM files that belong together and that the daemon's user can read",
        ) from None
    return context


def _regions(config: Config) -> list[RegionSource]:
    return [
        RegionSource(name, region.parent, region.precedence, tuple(region.match), tuple(region.prefixes))
        for name, region in config.regions.items()
    ]


def _layers(config: Config) -> list[Layer]:
    problems: list[Problem] = []
    layers: list[Layer] = []
    for entry in config.region_tables:
        try:
            layers.append(Layer(_table(entry), entry.labels_as_regions, entry.parent))
        except RegionError as error:
            problems += error.problems or [Problem(entry.file, 0, "", error.what)]
        except NearpathError as error:
            problems.append(Problem(entry.file, 0, "", str(error)))
    if problems:
        raise ConfigError(problems)
    return layers


def _table(entry: RegionTable) -> Table:
    data = read_file(entry.file)
    if entry.format == "mmdb":
        return parse_mmdb(entry.name, data, entry.label, file=entry.file)
    return parse_csv(entry.name, data, file=entry.file)


def _region_part(config: Config) -> object:
    return config.regions, config.region_tables


def _check_region_names(config: Config, regions: RegionMap) -> None:
    """Names that may come from a table's labels can be checked only now."""
    known = set(regions.tree.names)
    used = [(f"agents.{name}.region", agent.region) for name, agent in config.agents.items()]
    used += [(f"mirrors.{name}.region", mirror.region) for name, mirror in config.mirrors.items() if mirror.region]
    used += [(f"services.{owner}.prefer", region) for owner, s in config.services.items() for region in s.prefer]
    problems = [
        Problem("configuration", 0, path, f"region {name!r} is not known") for path, name in used if name not in known
    ]
    if problems:
        raise ConfigError(problems)


def _read_text(file: str) -> str:
    data = read_file(file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NearpathError(f"{file} is not UTF-8 text (octet {error.start})", "is it the right file?") from None


def read_file(file: str) -> bytes:
    """The content of a file, 1 GiB at most; NearpathError that names it."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise NearpathError(f"{file} cannot be read: {error.strerror}", "check its name and its permissions") from None
    if len(data) > MAX_FILE_BYTES:
        raise NearpathError(f"{file} is over 1 GiB", "is it the right file?")
    return data


def _stamp(file: str) -> _Stamp:
    try:
        status = Path(file).stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_size, status.st_mtime_ns)
