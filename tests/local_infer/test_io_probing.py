"""Upstreams that go away while nobody asks: known within seconds, whatever `probe_every` is."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.io_clock import AnchoredClock
from local_infer.upstreams import io_sockets
from local_infer.upstreams.io_attempt import AiohttpTransport
from local_infer.upstreams.io_upstreams import IoUpstreams
from tests.local_infer.mock_upstream import MockUpstream

CLOCK = AnchoredClock()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n%s\r\n{}"


def config(url: str, **upstream: object) -> InferConfig:
    return InferConfig.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "listen": ["127.0.0.1:0"],
            "anonymous": True,
            "upstreams": {"a": {"url": url, **upstream}},
            "routing": {"probe_every": "1h"},
        }
    )


@asynccontextmanager
async def running(url: str, **upstream: object) -> AsyncIterator[IoUpstreams]:
    upstreams = await IoUpstreams.start(config(url, **upstream), CLOCK.now, Random(7), CollectorRegistry())
    try:
        yield upstreams
    finally:
        await upstreams.close()


async def until_down(upstreams: IoUpstreams) -> str:
    async with asyncio.timeout(20):
        while True:
            reason = upstreams.down_reason("gpt-test")
            if reason:
                return reason
            await asyncio.sleep(0.02)


async def test_an_idle_upstream_that_goes_away_is_down_without_a_request() -> None:
    async with MockUpstream() as upstream, running(upstream.url) as upstreams:
        assert upstreams.down_reason("gpt-test") == ""
        await upstream.down()
        assert await until_down(upstreams) == "connect"


async def test_a_lost_connection_alone_is_asked_about_and_no_failure() -> None:
    async with MockUpstream() as upstream, running(upstream.url) as upstreams:
        (before,) = upstream.requests
        # A reset of the kept connection; the port stays open.
        assert upstream._runner is not None
        for connection in list(upstream._runner.server.connections if upstream._runner.server else ()):
            transport = connection.transport
            assert transport is not None
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        async with asyncio.timeout(20):
            while True:
                if len(upstream.requests) > 1:
                    break
                await asyncio.sleep(0.02)
        assert before.done.is_set()
        assert upstreams.down_reason("gpt-test") == ""
        assert upstreams._ranking.members["a"].health.run_lost == 0


@pytest.mark.parametrize(("more", "lost"), [(b"", True), (b"Connection: close\r\n", False)])
async def test_only_connections_that_were_to_be_kept_are_lost(more: bytes, lost: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER % more)
        await asyncio.sleep(0.05)
        writer.close()
        over.set()

    over = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    upstream = config(url).upstreams["a"]
    transport = AiohttpTransport(upstream, config(url).routing, "", None)
    try:
        reply = await transport.send("GET", "/models", b"", "application/json", "r", 1.0, 1.0)
        assert await reply.read() == b"{}"
        await reply.close()
        await over.wait()
        await asyncio.sleep(0.05)
        assert transport.has_lost() is lost
        assert not transport.has_lost()  # told once
    finally:
        await transport.close()
        server.close()


async def test_a_kept_connection_that_is_silent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with MockUpstream() as upstream:
        checked = config(upstream.url)
        transport = AiohttpTransport(checked.upstreams["a"], checked.routing, "", None)
        reply = await transport.send("GET", "/models", b"", "application/json", "r", 1.0, 1.0)
        while await reply.read():
            pass
        await reply.close()
        assert not transport.has_lost()
        # As if so much time had passed: any silence is too long.
        monkeypatch.setattr(io_sockets, "_silence_s", lambda _give_up_s: (-9.0, -9))
        async with asyncio.timeout(10):
            while True:
                if transport.has_lost():
                    break
                await asyncio.sleep(0.02)
        again = await transport.send("GET", "/models", b"", "application/json", "r", 1.0, 1.0)
        assert not again.reused
        await again.close()
        await transport.close()
