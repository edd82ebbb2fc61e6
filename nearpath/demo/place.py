"""Where the demo takes place: its regions, its mirrors, how far they are from each other, and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

REGIONS = {
    "asia": ("127.0.1", "198.51.100.0/24"),
    "europe": ("127.0.2", "192.0.2.0/24"),
    "america": ("127.0.3", "203.0.113.0/24"),
}
"""region -> (head of its loopback addresses, the documentation prefix (RFC 5737) that stands for its clients)"""

DELAY_MS = {
    "tokyo": {"asia": 18.0, "europe": 120.0, "america": 75.0},
    "frankfurt": {"asia": 120.0, "europe": 12.0, "america": 48.0},
    "virginia": {"asia": 84.0, "europe": 44.0, "america": 9.0},
}
MIRROR_ADDRESS = {"tokyo": "127.0.11.1", "frankfurt": "127.0.12.1", "virginia": "127.0.13.1"}
SERVICE = "www.mirror.example."
API_SERVICE = "api.mirror.example."
TREE = "files"
ORIGIN = "origin"
USUAL_PORTS = {"dns": 5300, "report": 8053, "metrics": 9153, "http": 8080, "sync": 8730, "gateway": 8000, "api": 8001}


@dataclass(frozen=True, slots=True)
class Place:
    """The demo's folder, and the port of each purpose."""

    folder: Path
    ports: dict[str, int]

    @property
    def appliance(self) -> Path:
        """The appliance's configuration."""
        return self.folder / "nearpath.yaml"

    def agent(self, region: str) -> Path:
        """An agent's configuration."""
        return self.folder / f"agent-{region}.yaml"

    def node(self, name: str) -> Path:
        """A syncd's configuration: of the origin, or of a mirror."""
        return self.folder / f"sync-{name}" / "syncd.yaml"

    def gateway(self, mirror: str) -> Path:
        """A gateway's configuration."""
        return self.folder / f"gateway-{mirror}" / "local-infer.yaml"

    @property
    def faq(self) -> Path:
        """What the gateways answer from when they cannot ask: the questions, and beside it the index of them."""
        return self.folder / "faq.yaml"

    @property
    def ask(self) -> Path:
        """A request to try the gateways with."""
        return self.folder / "ask.json"

    def content(self, name: str) -> Path:
        """The files that a node has: the origin's are the truth, a mirror's are its copy."""
        return self.folder / ("content" if name == ORIGIN else f"content-{name}")


def nearest() -> dict[str, str]:
    """region -> the mirror with the least delay."""
    return {region: min(DELAY_MS, key=lambda mirror: DELAY_MS[mirror][region]) for region in REGIONS}
