"""Connections that ask nothing, from whoever reaches the port of the report interface."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from nearpath.silence import close_silent, heed_silence
from tests.nearpath.reporting import until

WHOLE = b"GET / HTTP/1.1\r\nHost: box\r\n\r\n"


@asynccontextmanager
async def listening(first_request_s: float = 0.2, most: int = 100) -> AsyncIterator[tuple[web.AppRunner, str, int]]:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    heed_silence(app)
    app.add_routes([web.get("/", hello)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, sock).start()
    task = asyncio.create_task(close_silent(runner, first_request_s=first_request_s, most=most))
    try:
        yield runner, *sock.getsockname()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await runner.cleanup()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Waits until the other side has closed."""
    async with asyncio.timeout(10):
        try:
            return await reader.read(1) == b""
        except ConnectionResetError:
            return True


async def test_a_connection_without_a_whole_request_is_closed() -> None:
    async with listening() as (_runner, host, port):
        for said in (b"", b"GET", WHOLE[:-2], b"POST / HTTP/1.1\r\nX-Slow: "):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(said)
            assert await closed(reader), said
            writer.close()


async def test_a_connection_that_has_asked_something_is_kept() -> None:
    async with listening() as (runner, host, port):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(WHOLE)
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        silent, other = await asyncio.open_connection(host, port)
        assert await closed(silent), "several sweeps later"
        writer.write(WHOLE)
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        assert runner.server is not None
        other.close()
        writer.close()


async def test_too_many_connections_lose_the_silent_ones_first() -> None:
    async with listening(first_request_s=60, most=3) as (runner, host, port):
        server = runner.server
        assert server is not None
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(WHOLE)
        await reader.readuntil(b"hello")
        strangers = [await asyncio.open_connection(host, port) for _ in range(10)]
        await until(lambda: len(server.connections) == 3)
        writer.write(WHOLE)
        assert (await reader.readuntil(b"hello")).startswith(b"HTTP/1.1 200")
        for _reader, other in (*strangers, (reader, writer)):
            other.close()
