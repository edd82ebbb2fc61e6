"""A scripted world for policy: a configuration in a few words, samples by the second, and the choice of each region."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from core.config import Config
from core.messages import PathSample
from policy.decide import Decision
from policy.engine import SteeringEngine
from policy.plan import make_plan
from policy.regions import RegionMap, RegionSource, compile_regions

OWNER = "dl.example.org."


_ADDRESSES: dict[str, str] = {}


def address_of(mirror: str) -> str:
    """The same address for the same mirror in every world: another one would mean that it moved."""
    return _ADDRESSES.setdefault(mirror, f"198.18.{len(_ADDRESSES) // 250}.{len(_ADDRESSES) % 250 + 1}")


def make_config(
    mirrors: Mapping[str, Mapping[str, Any]],
    regions: Mapping[str, Mapping[str, Any]],
    agents: Mapping[str, str],
    service: Mapping[str, Any] | None = None,
    steering: Mapping[str, Any] | None = None,
    checks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """A whole configuration; each mirror without addresses gets one IPv4 address of its own."""
    checks = checks or {"http": {"kind": "http", "interval": "5s"}}
    return Config.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "dns": {"listen": ["127.0.0.1:0"]},
            "zones": [{"origin": "example.org.", "file": "example.org.zone"}],
            "regions": regions,
            "checks": checks,
            "mirrors": {name: {"addresses": [address_of(name)], **mirror} for name, mirror in mirrors.items()},
            "services": {OWNER: {"mirrors": list(mirrors), "checks": list(checks), **(service or {})}},
            "agents": {name: {"region": region, "token_sha256": "0" * 64} for name, region in agents.items()},
            "steering": steering or {},
        }
    )


def make_regions(config: Config) -> RegionMap:
    """The region map of a configuration without tables."""
    return compile_regions(
        [RegionSource(name, r.parent, r.precedence, (), tuple(r.prefixes)) for name, r in config.regions.items()]
    )


class World:
    """An engine with a scripted clock. Times in seconds, RTTs in ms, None is a lost probe."""

    owner = OWNER

    def __init__(self, config: Config, start_s: float = 1000.0) -> None:
        self.config = config
        self.regions: RegionMap = make_regions(config)
        self.engine = SteeringEngine(make_plan(config, self.regions))
        self.now = start_s
        self.sequence = 0

    def region_id(self, region: str) -> int:
        return self.engine.plan.tree.id_of(region)

    def sample(
        self, agent: str, mirror: str, rtt_ms: float | None, check: str = "http", family: int = 4, **more: Any
    ) -> PathSample:
        self.sequence += 1
        return PathSample(
            agent, self.config.agents[agent].region, mirror, check, family, self.sequence,  # type: ignore[arg-type]
            None if rtt_ms is None else rtt_ms / 1000, more.pop("taken_s", self.now),
            loss="timeout" if rtt_ms is None else "", **more,
        )  # fmt: skip

    def probe(self, agent: str, rtts_ms: Mapping[str, float | None], check: str = "http", **more: Any) -> None:
        """One probe of each mirror named."""
        for mirror, rtt_ms in rtts_ms.items():
            self.engine.take(self.sample(agent, mirror, rtt_ms, check, **more))

    def run(
        self,
        seconds: float,
        paths: Mapping[str, Mapping[str, float | None] | Callable[[float], Mapping[str, float | None]]],
        interval_s: float = 5.0,
    ) -> None:
        """Let time pass second by second; every `interval_s` each agent probes, after that all is decided."""
        end = self.now + seconds
        next_probe = self.now
        while self.now < end:
            if self.now >= next_probe:
                next_probe += interval_s
                for agent, rtts in paths.items():
                    self.probe(agent, rtts(self.now) if callable(rtts) else rtts)
            self.engine.decide(self.now)
            self.now += 1.0

    def decision(self, region: str, family: int = 4) -> Decision:
        examined = self.engine.examine(OWNER, family, self.region_id(region), self.now)
        assert examined is not None
        return examined.decision

    def order(self, region: str, family: int = 4) -> tuple[str, ...]:
        return self.decision(region, family).order

    def row(self, region: str, family: int = 4) -> Any:
        """The served row."""
        assert self.engine.table is not None
        return self.engine.table.services[OWNER].row(family, self.region_id(region))

    def addresses(self, mirror: str, family: int = 4) -> list[str]:
        return [a for a in self.config.mirrors[mirror].addresses if (":" in a) == (family == 6)]

    def answers(self, region: str) -> list[str]:
        """The mirrors whose addresses are served, in order."""
        by_address = {a: name for name, m in self.config.mirrors.items() for a in m.addresses}
        return [by_address[a] for a in self.row(region).addresses]


EUROPE: dict[str, dict[str, Any]] = {
    "eu": {},
    "de": {"parent": "eu", "prefixes": ["10.1.0.0/16"]},
    "fr": {"parent": "eu", "prefixes": ["10.2.0.0/16"]},
    "us": {"prefixes": ["10.3.0.0/16"]},
}


@pytest.fixture
def make_world() -> Callable[..., World]:
    """World(mirrors a and b in eu and us, agents in de, fr and us) unless told otherwise."""

    def make(
        mirrors: Mapping[str, Mapping[str, Any]] | None = None,
        agents: Mapping[str, str] | None = None,
        regions: Mapping[str, Mapping[str, Any]] | None = None,
        **more: Any,
    ) -> World:
        return World(
            make_config(
                mirrors if mirrors is not None else {"a": {"region": "eu"}, "b": {"region": "us"}},
                regions if regions is not None else EUROPE,
                agents if agents is not None else {"de1": "de", "fr1": "fr", "us1": "us"},
                **more,
            )
        )

    return make
