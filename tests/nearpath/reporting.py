"""A report path to test with: a small plan, a scripted clock, the real bus, steerer and HTTP interface."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from core.config import Config
from core.io_bus import EmbeddedBus
from core.io_clock import AnchoredClock
from core.tokens import token_sha256
from nearpath.api import ReportInterface, make_report_app, make_targets
from nearpath.ingest import AgentState
from nearpath.steerer import Steerer
from policy.plan import SteeringPlan, make_plan
from policy.regions import RegionSource, compile_regions
from policy.table import SteeringTable

INCARNATION = "0123456789abcdef"
START_S = 1_800_000_000.0


class ScriptedClock(AnchoredClock):
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.at = START_S

    def now(self) -> float:
        return self.at


def make_config(**changes: Any) -> Config:
    """Two agents, two mirrors, one service; `changes` replace whole sections."""
    return Config.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "dns": {"listen": ["127.0.0.1:0"]},
            "zones": [{"origin": "example.org.", "file": "z"}],
            "regions": {"eu": {"prefixes": ["192.0.2.0/25"]}, "us": {"prefixes": ["192.0.2.128/25"]}},
            "checks": {"ping": {"kind": "icmp", "interval": "1s", "timeout": "500ms"}},
            "mirrors": {
                "m1": {"addresses": ["198.51.100.1", "2001:db8::1"]},
                "m2": {"addresses": ["198.51.100.2"]},
            },
            "services": {"dl.example.org.": {"mirrors": ["m1", "m2"], "checks": ["ping"]}},
            "agents": {
                name: {"region": region, "token_sha256": token_sha256(f"token of {name}")}
                for name, region in (("a1", "eu"), ("a2", "us"))
            },
            "report": {"max_body": "64KiB"},
            **changes,
        }
    )


def plan_of(config: Config) -> SteeringPlan:
    regions = [RegionSource(n, r.parent, r.precedence, (), tuple(r.prefixes)) for n, r in config.regions.items()]
    return make_plan(config, compile_regions(regions))


def sample(sequence: int, rtt_ms: float | None = 10.0, **changes: Any) -> dict[str, Any]:
    lost = {} if rtt_ms is not None else {"loss": "timeout"}
    rtt_s = None if rtt_ms is None else rtt_ms / 1000
    return {"sequence": sequence, "mirror": "m1", "check": "ping", "family": 4, "rtt_s": rtt_s, "age_s": 0.25,
            **lost, **changes}  # fmt: skip


def headers(agent: str, token: str | None = None) -> dict[str, str]:
    return {"X-Nearpath-Agent": agent, "Authorization": f"Bearer {token or f'token of {agent}'}"}


@dataclass
class Box:
    """A running appliance less its DNS side."""

    bus: EmbeddedBus
    steerer: Steerer
    api: ReportInterface
    client: TestClient[web.Request, web.Application]
    clock: ScriptedClock
    tables: list[SteeringTable] = field(default_factory=list)

    async def report(
        self, samples: list[dict[str, Any]], agent: str = "a1", incarnation: str = INCARNATION, skew_s: float = 0.0
    ) -> tuple[int, Any]:
        """(status, acknowledged sequence or error text) of one report."""
        body = {"incarnation": incarnation, "wall_s": self.clock.at + skew_s, "samples": samples}
        async with self.client.post("/v1/samples", headers=headers(agent), json=body) as answer:
            text = await answer.text()
            return answer.status, json.loads(text)["acked"] if answer.status == 200 else text

    def count(self, agent: str = "a1", mirror: str = "m1") -> int:
        """How many samples the estimate of one path has taken."""
        return self.steerer.engine.paths[agent, mirror, "ping", 4].count

    def state(self, agent: str = "a1") -> AgentState:
        return self.api.agents[agent]

    def estimates(self) -> Any:
        return estimates(self.steerer)

    async def stored(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        (await self.bus.subscribe("samples", lambda _at, body: found.append(json.loads(body)), after=0))()
        return found


def estimates(steerer: Steerer) -> Any:
    """All that the engine knows of its paths."""
    return json.loads(steerer.engine.dump(0))["paths"]


async def kill(steerer: Steerer) -> None:
    """End a steerer as kill -9 would: nothing more is kept."""
    for unsubscribe in steerer._unsubscribe:
        unsubscribe()
    if steerer._task is not None:
        steerer._task.cancel()
        await asyncio.gather(steerer._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def open_box(
    folder: Path, clock: ScriptedClock | None = None, config: Config | None = None, *, killed: bool = False
) -> AsyncIterator[Box]:
    """The report path on the store in `folder`; ended properly, or with `killed` as kill -9 would."""
    clock, config = clock or ScriptedClock(), config or make_config()
    bus = await EmbeddedBus.open(folder / "bus.sqlite", clock)
    tables: list[SteeringTable] = []
    steerer = Steerer(plan_of(config), bus, clock, tables.append, config.history)
    await steerer.start()
    agents = {name: AgentState(name) for name in config.agents}
    api = ReportInterface(config, make_targets(config), bus, steerer, clock, agents, {})
    try:
        async with TestClient(TestServer(make_report_app(api))) as client:
            yield Box(bus, steerer, api, client, clock, tables)
        await (kill(steerer) if killed else steerer.stop())
    finally:
        await kill(steerer)
        await bus.close()


@contextlib.contextmanager
def held_store(folder: Path) -> Iterator[None]:
    """Keep the store from being written, as a second appliance would; see `hurry`."""
    with contextlib.closing(sqlite3.connect(folder / "bus.sqlite", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("COMMIT")


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the steerer's own loop or another task is about to do."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (nobody sets an event for it)
            await asyncio.sleep(0.01)


async def hurry(bus: EmbeddedBus) -> None:
    """Let the bus wait 20 ms for a lock, not 5 s, so that a test need not."""
    await bus._write(lambda db: (db.execute("PRAGMA busy_timeout=20").fetchone(), None))
