"""The image that the vectors in tests/vectors/dns are about."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnsd.image import AnswerOptions, Image, compile_image
from dnsd.zone import parse_zone
from policy.regions import RegionSource, compile_regions
from policy.table import Quality, Row, SteeredService, SteeringTable

VECTORS = Path(__file__).parent.parent / "vectors" / "dns"
ORIGINS = ("example.org.", "example.com.", "secure.example.org.")


def make_table(generation: int = 1, last_octet: int = 9) -> SteeringTable:
    """dl.example.org. and *.sdl.example.org., answered 203.0.113.1 to .4 by region and then 203.0.113.`last_octet`."""
    regions = compile_regions(
        [
            RegionSource("east", prefixes=("10.0.0.0/8",)),
            RegionSource("near", parent="east", prefixes=("10.1.0.0/16",)),
            RegionSource("six", prefixes=("2001:db8:6::/48",)),
        ]
    )
    kinds = (
        (10, Quality.STATIC, "nothing measured"),
        (30, Quality.LIVE, ""),
        (15, Quality.STALE, "42 min old"),
        (30, Quality.LIVE, ""),
    )
    rows = tuple(
        Row((f"m{i}", "m9"), (f"203.0.113.{i}", f"203.0.113.{last_octet}"), ttl_s, quality, note=note)
        for i, (ttl_s, quality, note) in enumerate(kinds, 1)
    )
    services = {owner: SteeredService(owner, rows, ()) for owner in ("dl.example.org.", "*.sdl.example.org.")}
    return SteeringTable(generation, 0.0, regions, services)


def make_image() -> Image:
    """A fresh image of the vectors' zones and table."""
    zones = [parse_zone((VECTORS / f"{origin}zone").read_text(), origin) for origin in ORIGINS]
    return compile_image(zones, make_table(), AnswerOptions(b"test-server", 1232))


@pytest.fixture(scope="session")
def image() -> Image:
    """The vectors' image, shared: nothing but its memo ever changes."""
    return make_image()
