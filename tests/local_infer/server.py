"""The gateway's server on a real socket, with a script for the ladder behind it, and a client of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import aiohttp
from prometheus_client import CollectorRegistry

from core.config import split_listen
from core.config_infer import InferConfig
from core.io_clock import AnchoredClock
from local_infer.gateway.io_server import Gateway
from local_infer.model import Answer, Ask, ModelCard, Origin, Step, Stream

CHAT = {"model": "m", "messages": [{"role": "user", "content": "你好"}]}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n"
"""A request but for the blank line after its head, and its body of 100 bytes."""
UPSTREAM = Origin(Step.UPSTREAM, "east", cache_status="fwd=miss")
AnswerFn = Callable[[Ask], Awaitable[Answer]]


def make_config(**more: Any) -> InferConfig:
    digest = hashlib.sha256(b"secret").hexdigest()
    return InferConfig.model_validate(
        {
            "version": 1, "node": "node-1", "state_dir": "x", "listen": ["127.0.0.1:0"],
            "keys": {"web": {"token_sha256": digest}}, "upstreams": {"a": {"url": "http://127.0.0.1/v1"}},
            **more,
        }
    )  # fmt: skip


async def echo(ask: Ask) -> Answer:
    """The request as the answer."""
    return Answer(200, {"content-type": "application/json"}, ask.body, UPSTREAM)


def streams(make: Callable[[], Stream]) -> AnswerFn:
    """An answer that is this stream."""

    async def answer(_ask: Ask) -> Answer:
        return Answer(200, {}, make(), UPSTREAM)

    return answer


class Front:
    """A gateway, and a client of it."""

    def __init__(self, gateway: Gateway, registry: CollectorRegistry, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.registry = registry
        self.session = session

    @property
    def url(self) -> str:
        return f"http://{self.gateway.addresses[0]}"

    @property
    def address(self) -> tuple[str, int]:
        """For a connection of one's own."""
        return split_listen(self.gateway.addresses[0])

    def post(
        self, body: Any = CHAT, path: str = "/v1/chat/completions", key: str | None = "secret", **more: Any
    ) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = body if isinstance(body, bytes) or not isinstance(body, dict) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers, **more.pop("headers", {})}
        return self.session.post(self.url + path, data=data, headers=headers, **more)

    def counted(self, **labels: str) -> float:
        given = {"endpoint": "/chat/completions", "step": "upstream", "status": "200", **labels}
        return self.registry.get_sample_value("local_infer_requests_total", given) or 0.0

    async def wait_counted(self, **labels: str) -> None:
        async with asyncio.timeout(5):
            while not self.counted(**labels):  # noqa: ASYNC110 (the registry has no event)
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(
    answer: AnswerFn = echo,
    cards: tuple[ModelCard, ...] = (),
    parts: Mapping[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[Front]:
    """`parts` are those of the gateway beside the ladder: `hottest`, `not_ready`."""
    registry = CollectorRegistry()
    clock = AnchoredClock().now
    gateway = Gateway(make_config(**config), answer, lambda: cards, registry, clock, **(parts or {}))
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Front(gateway, registry, session)
    finally:
        await gateway.close(0.0)


async def error_of(response: aiohttp.ClientResponse) -> Any:
    body = await response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


async def send_raw(front: Front, data: bytes, wait_s: float = 5.0) -> bytes:
    """What the gateway sends on a connection of its own until it closes."""
    reader, writer = await asyncio.open_connection(*front.address)
    try:
        async with asyncio.timeout(wait_s):
            writer.write(data)
            got = b""
            with suppress(ConnectionError):
                while piece := await reader.read(1 << 16):
                    got += piece
            return got
    finally:
        writer.transport.abort()
