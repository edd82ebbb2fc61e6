"""docs/dns.md names every metric there is and no other, and its limits are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from core.config import Dns
from dnsd import image, query, resolve, zone
from dnsd.image import Image
from dnsd.metrics import make_metrics
from dnsd.tally import SAMPLE_EVERY, Tally

TEXT = (Path(__file__).parent.parent.parent / "docs" / "dns.md").read_text()


def test_metrics(image: Image) -> None:
    registry = CollectorRegistry()
    make_metrics(registry, lambda: [Tally("udp"), Tally("tcp")], lambda: image)
    made = set(re.findall(r"^# TYPE (\S+) ", generate_latest(registry).decode(), re.MULTILINE))
    assert set(re.findall(r"`(dnsd_[a-z_]+)`", TEXT)) == made


def test_limits() -> None:
    assert f"{zone.MAX_GENERATED} records at most" in TEXT
    assert f"At most {zone.MAX_ZONE_BYTES >> 20} MiB" in TEXT
    assert f"{image.MAX_NSID_BYTES} octets at most" in TEXT
    assert f"more than {query.MAX_RECORDS} other records" in TEXT
    assert f"{resolve.MAX_CHAIN} aliases at most" in TEXT
    assert f"one query in {SAMPLE_EVERY}" in TEXT
    defaults = Dns.model_validate({"listen": ["127.0.0.1:53"]})
    assert f"max_udp_size: {defaults.max_udp_size}B" in TEXT
    assert f"tcp_idle: {defaults.tcp_idle:g}s" in TEXT
    assert f"tcp_connections: {defaults.tcp_connections} " in TEXT
