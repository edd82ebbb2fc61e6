"""The steering table: what policy has decided, frozen, as dnsd serves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from core.errors import MessageError
from policy.regions import RegionMap

TABLE_KEY = "table"
"""Bus key of the last table, as `dump_services` writes it."""

ALIVE_KEY = "table-alive"
"""Bus key of the deciding appliance's sign of life: its time, as text."""

ALIVE_EVERY_S = 2.0
"""How often that sign comes at the least."""


class Quality(IntEnum):
    """The degradation ladder: on what an answer rests, best first."""

    LIVE = 0
    """measured from this region within the window"""
    STALE = 1
    """measured, but from further up the region tree or longer ago"""
    PREDICTED = 2
    """from the on-box model"""
    TABLE = 3
    """from the distance between regions only"""
    STATIC = 4
    """the order of the configuration"""

    @property
    def label(self) -> str:
        """The word used in metrics, `explain` and EDE texts."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Row:
    """The answer of one service for one region and address family.

    `addresses` are in order, best first, at most as many as the service answers; `mirrors` is the full order, for status.
    `note` is what an answer says about itself in an EDE option (RFC 8914); empty for a live, healthy answer.
    """

    mirrors: tuple[str, ...]
    addresses: tuple[str, ...]
    ttl_s: int
    quality: Quality
    fail_open: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class SteeredService:
    """All rows of one steered owner name, indexed by region id; a family without addresses has no rows (NODATA)."""

    owner: str
    ipv4: tuple[Row, ...]
    ipv6: tuple[Row, ...]

    def row(self, family: int, region_id: int) -> Row | None:
        """The row for a region, or None when the service has no address of this family."""
        rows = self.ipv4 if family == 4 else self.ipv6
        return rows[region_id] if rows else None


@dataclass(frozen=True, slots=True)
class SteeringTable:
    """Everything decided at one moment (`decided_s` on the appliance's timeline); each new one has the next generation."""

    generation: int
    decided_s: float
    regions: RegionMap
    services: Mapping[str, SteeredService]


def dump_services(table: SteeringTable) -> bytes:
    """The services of a table as JSON, regions by name, equal rows once; `load_services` reads it."""
    names = table.regions.tree.names
    body = {
        "generation": table.generation,
        "decided_s": table.decided_s,
        "services": {
            owner: {"4": _dump_rows(service.ipv4, names), "6": _dump_rows(service.ipv6, names)}
            for owner, service in table.services.items()
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


def load_services(dumped: bytes, regions: RegionMap) -> SteeringTable:
    """The inverse of `dump_services`, for a region map that may have changed since; MessageError when it is damaged.

    A region that the dump does not know gets the row of the nearest region above it.
    """
    try:
        body = json.loads(dumped)
        services = {
            str(owner): SteeredService(owner, _load_rows(families["4"], regions), _load_rows(families["6"], regions))
            for owner, families in body["services"].items()
        }
        return SteeringTable(int(body["generation"]), float(body["decided_s"]), regions, services)
    # RuntimeError is what the StopIteration of a region without a row becomes inside a generator (PEP 479).
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RuntimeError) as error:
        raise MessageError(
            "the kept steering table is damaged", f"{error!r}; it comes anew with the appliance"
        ) from None


def mark_stale(table: SteeringTable) -> SteeringTable:
    """The table as it is to be served when nobody decides any more: nothing in it is live, resolvers ask again sooner."""

    def marked(row: Row) -> Row:
        note = "nearpath stale: nobody decides now, this is the last decision"
        return replace(
            row, ttl_s=max(min(5, row.ttl_s), row.ttl_s // 2), quality=max(row.quality, Quality.STALE), note=note
        )

    services = {
        owner: SteeredService(owner, tuple(map(marked, service.ipv4)), tuple(map(marked, service.ipv6)))
        for owner, service in table.services.items()
    }
    return replace(table, services=services)


def _dump_rows(rows: tuple[Row, ...], names: tuple[str, ...]) -> list[list[Any]]:
    regions: dict[Row, list[str]] = {}
    for name, row in zip(names, rows, strict=False):
        regions.setdefault(row, []).append(name)
    return [
        [members, row.mirrors, row.addresses, row.ttl_s, int(row.quality), row.fail_open, row.note]
        for row, members in regions.items()
    ]


def _load_rows(dumped: list[list[Any]], regions: RegionMap) -> tuple[Row, ...]:
    known: dict[str, Row] = {}
    for members, mirrors, addresses, ttl_s, quality, fail_open, note in dumped:
        row = Row(tuple(mirrors), tuple(addresses), int(ttl_s), Quality(quality), bool(fail_open), str(note))
        known.update(dict.fromkeys(members, row))
    if not known:
        return ()
    tree = regions.tree
    return tuple(next(known[at] for at in (name, *tree.ancestors(name)) if at in known) for name in tree.names)
