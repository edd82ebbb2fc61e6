"""The ladder over upstreams, a cache and steps that do what a test says; what they do in truth is tested with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from local_infer.api.forms import write_answer
from local_infer.fault import Unreachable
from local_infer.ladder.steps import Ladder
from local_infer.model import (
    Abstained,
    Age,
    Answer,
    Ask,
    Client,
    Endpoint,
    Fetch,
    Kept,
    ModelCard,
    Origin,
    Priority,
    Question,
    Step,
)

NOW = 1000.0
JSON = {"content-type": "application/json"}
CONFIG: dict[str, Any] = {
    "version": 1, "state_dir": "state", "listen": ["127.0.0.1:0"], "anonymous": True,
    "upstreams": {"a": {"url": "http://127.0.0.1:1/v1"}},
    "ladder": {"prefix": {"stale": "[old] "}, "retry_after": "7s", "shadow": "100%"},
}  # fmt: skip


def make_ask(stream: bool = False, endpoint: Endpoint = Endpoint.CHAT, model: str = "gpt", **kwargs: Any) -> Ask:
    fields = {"messages": [{"role": "user", "content": "如何关闭?"}], **kwargs.pop("fields", {})}
    return Ask("req_1", endpoint, b"{}", fields, model, stream, Client("jo", "jo"), NOW, **kwargs)


def body_of(text: str, model: str = "gpt-4") -> bytes:
    body = json.loads(write_answer(make_ask(), text, model, Step.UPSTREAM, 1, {"total_tokens": 3}, "stop"))
    return json.dumps({**body, "system_fingerprint": "fp_1"}).encode()


@dataclass
class Upstreams:
    down: str = ""
    outcome: Answer | Exception = field(
        default_factory=lambda: Answer(200, JSON, body_of("up"), Origin(Step.UPSTREAM, "a"))
    )
    asked: list[Ask] = field(default_factory=list)
    deadlines_s: list[float] = field(default_factory=list)

    def down_reason(self, model: str) -> str:
        return self.down

    async def ask(self, ask: Ask, deadline_s: float) -> Answer:
        self.asked.append(ask)
        self.deadlines_s.append(deadline_s)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def models(self) -> list[ModelCard]:
        return [ModelCard("gpt", "a")]


@dataclass
class Cache:
    kept: Kept | None = None
    refreshed: list[Ask] = field(default_factory=list)
    fetched: list[Ask] = field(default_factory=list)

    async def find(self, ask: Ask, now: float) -> Kept | None:
        return self.kept

    async def fetch(self, ask: Ask, fetch: Fetch) -> Answer:
        self.fetched.append(ask)
        return await fetch(ask)

    def refresh(self, ask: Ask, fetch: Fetch) -> None:
        self.refreshed.append(ask)


@dataclass
class Local:
    step: Step
    outcome: Answer | Abstained | Exception
    asked: list[tuple[Question, Priority, float]] = field(default_factory=list)

    async def answer(self, ask: Ask, question: Question, priority: Priority, deadline_s: float) -> Answer | Abstained:
        self.asked.append((question, priority, deadline_s))
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cards(self) -> list[ModelCard]:
        return [ModelCard(f"local/{'faq' if self.step is Step.RETRIEVAL else 'tiny'}", "local")]


@dataclass
class Prover:
    seen: list[tuple[Question, bytes]] = field(default_factory=list)
    error: Exception | None = None

    async def observe(self, ask: Ask, question: Question, answer: Answer) -> None:
        assert isinstance(answer.body, bytes)
        if self.error:
            raise self.error
        self.seen.append((question, answer.body))


def kept_of(age: Age, body: bytes = b"", age_s: float = 30.0) -> Kept:
    step = Step.STALE if age == "stale" else Step.CACHE
    return Kept(Answer(200, JSON, body or body_of("kept"), Origin(step, "a", "", age_s, "hit; ttl=9")), age)


def local_of(step: Step, name: str, text: str = "local") -> Local:
    body = write_answer(make_ask(), text, f"local/{name}", step, 1, {}, "stop")
    return Local(step, Answer(200, JSON, body, Origin(step, name, "", 5.0)))


class World:
    """A ladder, and all it stands on. Everything is there and answers, until a test says otherwise."""

    def __init__(self, **ladder: Any) -> None:
        config = InferConfig.model_validate({**CONFIG, "ladder": {**CONFIG["ladder"], **ladder}})
        self.upstreams, self.cache, self.prover = Upstreams(), Cache(), Prover()
        self.retrieval, self.generation = local_of(Step.RETRIEVAL, "faq"), local_of(Step.GENERATION, "tiny")
        self.registry = CollectorRegistry()
        self.background: list[Coroutine[Any, Any, None]] = []
        self.told: list[tuple[str, Exception]] = []
        spawn: Callable[[Coroutine[Any, Any, None]], object] = self.background.append
        self.ladder = Ladder(
            config, self.upstreams, self.cache, [self.retrieval, self.generation], self.prover, lambda: NOW, Random(1),
            self.registry, spawn=spawn, tell=lambda step, error: self.told.append((step, error)),
        )  # fmt: skip

    def cut(self, reason: str = "connect", **kwargs: Any) -> None:
        self.upstreams.outcome = Unreachable(reason, {"a": reason}, **kwargs)

    async def settle(self) -> None:
        while self.background:
            await self.background.pop(0)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"local_infer_ladder_{name}_total", labels) or 0.0


def read(answer: Answer) -> dict[str, Any]:
    assert isinstance(answer.body, bytes)
    fields: dict[str, Any] = json.loads(answer.body)
    return fields


def content(answer: Answer) -> str:
    text: str = read(answer)["choices"][0]["message"]["content"]
    return text
