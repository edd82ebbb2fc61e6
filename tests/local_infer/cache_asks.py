"""Requests, answers and a clock for the tests of the cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.config_infer import Cache, InferConfig
from local_infer.api.request import read_ask
from local_infer.api.sse import DONE, write_event
from local_infer.model import Answer, Ask, Client, Endpoint, Origin, Step, Stream


class ScriptedClock:
    """Time as the test says."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def chat(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """A cacheable chat request."""
    return {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": text}], **fields}


def make_ask(
    body: Mapping[str, Any] | bytes | None = None,
    *,
    tenant: str = "t",
    endpoint: Endpoint = Endpoint.CHAT,
    headers: Mapping[str, str] | None = None,
    now: float = 1_000_000.0,
) -> Ask:
    """An Ask, read by the gateway's own reader."""
    given = body if isinstance(body, bytes) else json.dumps(chat() if body is None else body).encode()
    return read_ask(endpoint, headers or {}, given, Client(f"key-{tenant}", tenant), "req_1", now)


def whole(text: str = "hi", **fields: Any) -> bytes:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage, **fields}
    ).encode()


def chunks(text: str = "hi", usage: bool = False) -> list[bytes]:
    """The events of a stream, one item each."""
    base = {"id": "c", "object": "chat.completion.chunk", "model": "m"}

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return write_event(json.dumps({**base, "choices": [choice]}).encode())

    events = [event({"role": "assistant", "content": ""}), *(event({"content": letter}) for letter in text)]
    events.append(event({}, "stop"))
    if usage:
        events.append(write_event(json.dumps({**base, "choices": [], "usage": {"total_tokens": 2}}).encode()))
    return [*events, DONE]


def text_of(body: bytes) -> str:
    """What an answer says, whole or streamed."""
    if not body.startswith(b"data:"):
        return str(json.loads(body)["choices"][0]["message"]["content"])
    said = ""
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:])["choices"]:
                said += choice["delta"].get("content") or ""
    return said


async def read_all(answer: Answer) -> bytes:
    """The body, to its end."""
    if isinstance(answer.body, bytes):
        return answer.body
    return b"".join([chunk async for chunk in answer.body])


async def play(events: list[bytes], pause_s: float = 0) -> Stream:
    """A stream of these items."""
    for event in events:
        await asyncio.sleep(pause_s)
        yield event


def answered(body: bytes | Stream, status: int = 200, step: Step = Step.UPSTREAM) -> Answer:
    """An upstream's answer."""
    kind = "application/json" if isinstance(body, bytes) else "text/event-stream"
    return Answer(status, {"content-type": kind, "openai-processing-ms": "7"}, body, Origin(step, "east"))


@dataclass
class Source:
    """A `fetch` that answers with what it was asked by whom, and counts."""

    asks: list[Ask] = field(default_factory=list)
    fail: Exception | None = None
    body: bytes | None = None
    events: list[bytes] | None = None
    status: int = 200

    async def fetch(self, ask: Ask) -> Answer:
        """One answer."""
        self.asks.append(ask)
        await asyncio.sleep(0)
        if self.fail is not None:
            raise self.fail
        if ask.stream:
            options = ask.fields.get("stream_options") or {}
            events = chunks(self.text(ask), bool(options.get("include_usage")))
            return answered(play(self.events or events), self.status)
        if ask.endpoint is Endpoint.EMBEDDINGS:
            return answered(b'{"object":"list","data":[{"index":0,"embedding":[0.5]}]}')
        return answered(self.body or whole(self.text(ask)), self.status)

    @staticmethod
    def text(ask: Ask) -> str:
        """What is answered: everything that must not be mixed up."""
        return f"{ask.client.tenant}|{ask.model}|{json.dumps(ask.fields.get('messages'))}"


def cache_config(**fields: Any) -> Cache:
    """The configuration's section, with short times."""
    given = {"fresh_for": "100s", "revalidate_for": "50s", "stale_for": "1000s", **fields}
    return Cache.model_validate(given)


def infer_config(state_dir: str, **fields: Any) -> InferConfig:
    """A whole configuration with this cache section."""
    given = {"fresh_for": "100s", "revalidate_for": "50s", "stale_for": "1000s", **fields}
    return InferConfig.model_validate(
        {
            "version": 1,
            "state_dir": state_dir,
            "listen": ["127.0.0.1:0"],
            "keys": {name: {"token_sha256": digit * 64} for name, digit in {"t": "0", "u": "1"}.items()},
            "upstreams": {"east": {"url": "http://127.0.0.1:1/v1"}},
            "ladder": {"steps": ["upstream", "cache", "stale"]},
            "cache": given,
        }
    )
