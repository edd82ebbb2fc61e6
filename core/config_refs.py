"""Checks across the sections of a configuration: every name that is used must be defined.

They work on the raw mapping, so that they are reported together with the faults of single fields.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]
Finding = tuple[Path, str]

_LONGEST_NAME = 63
"""Of a name; what is longer is compared up to here only, as comparing takes the square of the length."""

_MOST_COMPARED = 1000


def find_dangling(raw: Mapping[str, Any]) -> list[Finding]:
    """(path, what) of every reference in `raw` that leads nowhere or contradicts another section."""
    return [
        *_regions(raw),
        *_services(raw),
        *_nodes(raw),
        *_others(raw),
        *_listens(raw),
    ]


def _mapping(raw: Any, key: str) -> dict[str, Any]:
    value = raw.get(key) if isinstance(raw, Mapping) else None
    return {k: v for k, v in value.items() if isinstance(k, str)} if isinstance(value, Mapping) else {}


def _list(raw: Any, key: str) -> list[Any]:
    value = raw.get(key) if isinstance(raw, Mapping) else None
    return value if isinstance(value, list) else []


def _known(kind: str, name: Any, defined: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    if isinstance(name, str) and name not in defined:
        have = ", ".join(sorted(defined)[:8]) or "none"
        more = ", ..." if len(defined) > 8 else ""
        close = difflib.get_close_matches(name[:_LONGEST_NAME], defined, n=1) if len(defined) <= _MOST_COMPARED else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        yield path, f"{kind} {name!r} is not defined (defined: {have}{more}){hint}"


def _listens(raw: Mapping[str, Any]) -> Iterator[Finding]:
    """Addresses that two parts would listen on: the second could not start, and would blame another program."""
    taken: dict[str, str] = {}
    for section in ("dns", "report", "metrics"):
        for i, listen in enumerate(_list(raw.get(section), "listen")):
            if not isinstance(listen, str) or listen.endswith(":0"):
                continue
            if listen in taken:
                yield (section, "listen", i), f"{listen} is in {taken[listen]} already: choose another port"
            taken.setdefault(listen, f"{section}.listen")


def _makes_regions(raw: Mapping[str, Any]) -> bool:
    return any(isinstance(t, Mapping) and t.get("labels_as_regions") is True for t in _list(raw, "region_tables"))


def _regions(raw: Mapping[str, Any]) -> Iterator[Finding]:
    regions = _mapping(raw, "regions")
    tables: dict[str, Any] = {}
    for i, table in enumerate(_list(raw, "region_tables")):
        name = table.get("name") if isinstance(table, Mapping) else None
        if not isinstance(name, str):
            continue
        if name in tables:
            yield ("region_tables", i, "name"), f"table {name!r} is defined twice"
        tables[name] = table
        if table.get("format") == "mmdb" and not table.get("label"):
            yield ("region_tables", i, "label"), "an mmdb table needs the path of its label, such as country.iso_code"
        if table.get("parent") != "world" and not _makes_regions(raw):
            yield from _known("region", table.get("parent"), regions, ("region_tables", i, "parent"))
    for name, region in regions.items():
        if name == "world":
            yield ("regions", name), "`world` is the built-in root of all regions: give this one another name"
        parent = region.get("parent") if isinstance(region, Mapping) else None
        if parent != "world" and not _makes_regions(raw):
            yield from _known("region", parent, regions, ("regions", name, "parent"))
        for i, entry in enumerate(_list(region, "match")):
            if not isinstance(entry, str):
                continue  # the field check has said so
            table_name, colon, label = entry.partition(":")
            if not colon or not label:
                yield ("regions", name, "match", i), f"{entry!r} is not TABLE:LABEL"
            else:
                yield from _known("table", table_name, tables, ("regions", name, "match", i))
        for i, text in enumerate(_list(region, "prefixes")):
            yield from _prefix(text, ("regions", name, "prefixes", i))
    yield from _cycles(regions)


def _prefix(text: Any, path: Path) -> Iterator[Finding]:
    if not isinstance(text, str):
        return  # the field check has said so; ip_network would take 1 for 0.0.0.1/32
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        yield path, f"{text!r} is not a prefix: {error}"


def _cycles(regions: Mapping[str, Any]) -> Iterator[Finding]:
    for name in regions:
        seen, at = {name}, regions[name]
        while isinstance(at, Mapping) and isinstance(parent := at.get("parent"), str):
            if parent == name:
                yield ("regions", name, "parent"), f"region {name!r} is its own ancestor"
            if parent in seen:
                break
            seen.add(parent)
            at = regions.get(parent)


def _services(raw: Mapping[str, Any]) -> Iterator[Finding]:
    mirrors, checks, regions = _mapping(raw, "mirrors"), _mapping(raw, "checks"), _mapping(raw, "regions")
    origins = [str(z.get("origin", "")).lower() for z in _list(raw, "zones") if isinstance(z, Mapping)]
    owners: dict[str, str] = {}
    for name, service in _mapping(raw, "services").items():
        here: Path = ("services", name)
        owner = name.lower()
        if owners.setdefault(owner, name) != name:
            yield here, f"service {owner!r} is defined twice: names differ in upper and lower case only"
        if not any(owner == origin or owner.endswith("." + origin) or origin == "." for origin in origins):
            yield here, f"no zone holds {name!r}: add its zone under zones"
        members = [m if isinstance(m, str) else "" for m in _list(service, "mirrors")]
        seen: set[str] = set()
        for i, mirror in enumerate(members):
            if not mirror:
                continue
            yield from _known("mirror", mirror, mirrors, (*here, "mirrors", i))
            if mirror in seen:
                yield (*here, "mirrors", i), f"mirror {mirror!r} is listed twice"
            seen.add(mirror)
        for i, check in enumerate(_list(service, "checks")):
            yield from _known("check", check, checks, (*here, "checks", i))
        if isinstance(service, Mapping):
            yield from _known("check", service.get("rtt_check"), checks, (*here, "rtt_check"))
        for region, preferences in _mapping(service, "prefer").items():
            if region != "world" and not _makes_regions(raw):
                yield from _known("region", region, regions, (*here, "prefer", region))
            for mirror in preferences if isinstance(preferences, Mapping) else ():
                yield from _known("mirror", mirror, dict.fromkeys(members), (*here, "prefer", region, mirror))


def _nodes(raw: Mapping[str, Any]) -> Iterator[Finding]:
    mirrors, owners = _mapping(raw, "mirrors"), dict[str, str]()
    for name, node in _mapping(raw, "nodes").items():
        for i, mirror in enumerate(_list(node, "mirrors")):
            if not isinstance(mirror, str):
                continue  # the field check has said so
            here: Path = ("nodes", name, "mirrors", i)
            yield from _known("mirror", mirror, mirrors, here)
            owner = owners.setdefault(mirror, name)
            if owner != name:
                yield (
                    here,
                    f"mirror {mirror!r} is served by node {owner!r} already: its stamps can come from one node only",
                )
            elif mirror in _list(node, "mirrors")[:i]:
                yield here, f"mirror {mirror!r} is listed twice"


def _others(raw: Mapping[str, Any]) -> Iterator[Finding]:
    regions = _mapping(raw, "regions")
    known = {**regions, "world": None}
    seen: set[str] = set()
    for i, zone in enumerate(_list(raw, "zones")):
        origin = str(zone.get("origin", "")).lower() if isinstance(zone, Mapping) else ""
        if origin and origin in seen:
            yield ("zones", i, "origin"), f"zone {origin!r} is defined twice"
        seen.add(origin)
    if _makes_regions(raw):
        return
    for kind in ("mirrors", "agents"):
        for name, entry in _mapping(raw, kind).items():
            if isinstance(entry, Mapping):
                yield from _known("region", entry.get("region"), known, (kind, name, "region"))
