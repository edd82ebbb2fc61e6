"""A ranking of upstreams whose outcomes are a script, on scripted time."""

from __future__ import annotations

from typing import Any

from core.config_infer import InferConfig
from local_infer.upstreams.attempt import Failure
from local_infer.upstreams.member import Member
from local_infer.upstreams.ranking import Choice, Ranking

LANE = ("m", "stream")
T0 = 1000.0


def config(upstreams: dict[str, Any], **routing: Any) -> InferConfig:
    return InferConfig.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "listen": ["127.0.0.1:0"],
            "anonymous": True,
            "upstreams": {name: {"url": f"http://{name}.example/v1", **more} for name, more in upstreams.items()},
            "routing": routing,
        }
    )


class Script:
    """A ranking with a clock: each call is a request that takes a tenth of a second of scripted time."""

    def __init__(self, upstreams: dict[str, Any], **routing: Any) -> None:
        self.ranking = Ranking(config(upstreams, **routing))
        self.now = T0

    def member(self, name: str) -> Member:
        return self.ranking.members[name]

    def choose(self, *tried: str, lane: tuple[str, str] = LANE) -> Choice:
        return self.ranking.choose(lane, tried, self.now)

    def first(self, lane: tuple[str, str] = LANE) -> str:
        decision = self.ranking.order(lane, self.now)
        assert decision is not None
        return decision.order[0]

    def good(self, name: str, ttfb_s: float, times: int = 1, lane: tuple[str, str] = LANE) -> None:
        for _ in range(times):
            self.now += 0.1
            ticket = self.member(name).circuit.admit(self.now)
            assert ticket is not None
            self.ranking.began(self.member(name), lane, ttfb_s, ticket, self.now, whole=True)

    def bad(self, name: str, reason: str = "reset", times: int = 1, **more: Any) -> None:
        for _ in range(times):
            self.now += 0.1
            ticket = self.member(name).circuit.admit(self.now)
            assert ticket is not None
            self.ranking.failed(self.member(name), Failure(reason, **more), ticket, self.now)

    def probe(self, name: str, rtt_s: float | None = 0.01, failure: Failure | None = None, times: int = 1) -> None:
        for _ in range(times):
            self.now += 1.0
            self.ranking.probed(self.member(name), rtt_s, failure, self.now)
