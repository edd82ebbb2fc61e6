"""What the retrieval tests share: a configuration with an FAQ, requests, and the step itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from local_infer.api.request import read_ask
from local_infer.drill.io_drill import PlainQueue
from local_infer.model import Abstained, Answer, Ask, Client, Endpoint, Origin, Priority, Question, Step
from local_infer.retrieval.faq import read_faq
from local_infer.retrieval.io_build import build_index
from local_infer.retrieval.io_retrieval import Retrieval
from local_infer.retrieval.question import question_of

NOW = 1_800_000_000.0
KIND = {"Content-Type": "application/json"}


class Clock:
    """A scripted clock."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def make_config(folder: Path, faq: Sequence[dict[str, object]], **more: Any) -> InferConfig:
    """The configuration of a gateway with this FAQ, built; `embedder` among `more` is used for building, too."""
    entries = read_faq("\n".join(map(json.dumps, faq)).encode(), "faq.jsonl")
    embedder = more.get("embedder")
    build_index(entries, folder / "index", embedder=Path(embedder) if embedder else None, now=NOW - 60)
    retrieval = {"index": str(folder / "index"), "threshold": "35%", "proofs": 2, **more}
    raw = {"version": 1, "state_dir": str(folder / "state"), "listen": ["127.0.0.1:0"], "anonymous": True}
    return InferConfig.model_validate({**raw, "retrieval": retrieval})


def make_step(config: InferConfig) -> tuple[Retrieval, Clock, CollectorRegistry]:
    """The step on a plain queue."""
    clock, registry = Clock(), CollectorRegistry()
    return Retrieval(config, PlainQueue(), clock, registry), clock, registry


def body_of(text: str, *before: dict[str, str], **more: object) -> bytes:
    """A chat request's body."""
    return json.dumps({"model": "m", "messages": [*before, {"role": "user", "content": text}], **more}).encode()


def ask_for(body: bytes, tenant: str = "shop", endpoint: Endpoint = Endpoint.CHAT) -> tuple[Ask, Question]:
    """A request as the gateway reads it, with its question."""
    ask = read_ask(endpoint, KIND, body, Client("c", tenant), "req_1", NOW)
    question = question_of(ask)
    assert isinstance(question, Question)
    return ask, question


def reply(text: str, finish: str = "stop") -> Answer:
    """An upstream's whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    fields = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Answer(200, {}, json.dumps(fields).encode(), Origin(Step.UPSTREAM, "east"))


async def tell(step: Retrieval, text: str, said: str, tenant: str = "shop", *before: dict[str, str]) -> None:
    """An upstream answered `said` to `text`."""
    await step.observe(*ask_for(body_of(text, *before), tenant), reply(said))


async def answer_to(step: Retrieval, text: str, tenant: str = "shop", *before: dict[str, str]) -> str:
    """What the step says; or `-- why` it says nothing."""
    answer = await step.answer(*ask_for(body_of(text, *before), tenant), Priority.INTERACTIVE, NOW + 60)
    if isinstance(answer, Abstained):
        return f"-- {answer.why}"
    assert isinstance(answer.body, bytes)
    return str(json.loads(answer.body)["choices"][0]["message"]["content"])
