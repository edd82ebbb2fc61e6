"""The steering table: what policy has decided, frozen, as dnsd serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from policy.regions import RegionMap


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
