"""Upstreams of a gateway, asked without the gateway: what tests of `IoUpstreams` share."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.io_clock import AnchoredClock
from local_infer.api.sse import data_of, split_events
from local_infer.model import Answer, Ask, Client, Endpoint
from local_infer.upstreams.io_upstreams import IoUpstreams
from tests.local_infer.mock_upstream import MockUpstream

CLOCK = AnchoredClock()


def config(
    upstreams: dict[str, MockUpstream | str], *, each: dict[str, Any] | None = None, **routing: Any
) -> InferConfig:
    given = {name: {"url": one if isinstance(one, str) else one.url, **(each or {})} for name, one in upstreams.items()}
    return InferConfig.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "listen": ["127.0.0.1:0"],
            "anonymous": True,
            "upstreams": given,
            "routing": {"probe_every": "1h", **routing},
        }
    )


@asynccontextmanager
async def running(checked: InferConfig) -> AsyncIterator[IoUpstreams]:
    upstreams = await IoUpstreams.start(checked, CLOCK.now, Random(7), CollectorRegistry())
    try:
        yield upstreams
    finally:
        await upstreams.close()


def make_ask(*, stream: bool = False, endpoint: Endpoint = Endpoint.CHAT, resume: bool = False, **more: Any) -> Ask:
    fields: dict[str, Any] = {"model": "gpt-test", "messages": [{"role": "user", "content": "你好"}], **more}
    if endpoint is Endpoint.EMBEDDINGS:
        fields = {"model": "gpt-test", "input": ["a", "b"], **more}
    if stream:
        fields["stream"] = True
    body = json.dumps(fields).encode()
    return Ask("req-1", endpoint, body, fields, "gpt-test", stream, Client("c", "t"), CLOCK.now(), resume=resume)


async def asked(upstreams: IoUpstreams, ask: Ask) -> Answer:
    return await upstreams.ask(ask, CLOCK.now() + 30)


async def whole(answer: Answer) -> bytes:
    assert not isinstance(answer.body, bytes)
    return b"".join([events async for events in answer.body])


def text_of(events: bytes) -> str:
    text = ""
    for event in split_events(events):
        data = data_of(event)
        if data and data != b"[DONE]":
            text += "".join(c["delta"].get("content") or "" for c in json.loads(data).get("choices", ()))
    return text


def error_of(events: bytes) -> dict[str, Any]:
    """The error object in the last event."""
    error = json.loads(data_of(split_events(events)[-1]))["error"]
    assert isinstance(error, dict)
    return error


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 (what it waits for has no event)
            await asyncio.sleep(0.005)
