"""Streams through the server, as they come, and clients that leave in the middle of an answer."""

from __future__ import annotations

import asyncio
import json

from local_infer.api.sse import DONE
from local_infer.model import Answer, Ask, Stream
from tests.local_infer.server import CHAT, HEAD, running, streams


async def test_stream_is_passed_run_by_run_as_it_comes() -> None:
    more = asyncio.Event()
    runs = ["data: 你".encode() + b"\n\n", b"data: 2\n\ndata: 3\n\n", DONE]

    async def events() -> Stream:
        for run in runs:
            yield run
            await more.wait()

    async with running(streams(events)) as front, front.post({**CHAT, "stream": True}) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert await response.content.readany() == runs[0]
        more.set()
        assert await response.content.read() == runs[1] + runs[2]
    assert front.counted() == 1


async def test_client_that_leaves_cancels_the_stream() -> None:
    closed = asyncio.Event()

    async def events() -> Stream:
        try:
            yield b"data: 1\n\n"
            await asyncio.sleep(3600)
        finally:
            closed.set()

    async with running(streams(events)) as front:
        response = await front.post({**CHAT, "stream": True})
        await response.content.readany()
        response.close()
        async with asyncio.timeout(1):
            await closed.wait()
        await front.wait_counted(status="499")


async def test_client_that_leaves_cancels_a_whole_answer() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def never(_ask: Ask) -> Answer:
        entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()
        raise AssertionError

    async with running(never) as front:
        asked = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        asked.cancel()
        async with asyncio.timeout(1):
            await cancelled.wait()
        await front.wait_counted(status="499", step="none")


async def test_client_that_leaves_a_stream_it_does_not_read() -> None:
    closed, flowing = asyncio.Event(), asyncio.Event()

    async def events() -> Stream:
        try:
            while True:
                yield b"data: " + b"x" * 100_000 + b"\n\n"
                flowing.set()
        finally:
            closed.set()

    async with running(streams(events)) as front:
        _reader, writer = await asyncio.open_connection(*front.address, limit=1024)
        body = json.dumps({**CHAT, "stream": True}).encode()
        writer.write(HEAD.replace(b"100", b"%d" % len(body)) + b"\r\n" + body)
        await flowing.wait()
        writer.transport.abort()
        async with asyncio.timeout(1):
            await closed.wait()


async def test_stream_that_fails_or_lasts_too_long_ends_with_an_error_event() -> None:
    async def failing() -> Stream:
        yield b"data: 1\n\n"
        raise RuntimeError("of ours")

    async def endless() -> Stream:
        yield b"data: 1\n\n"
        await asyncio.sleep(3600)

    for events, code in ((failing, "internal"), (endless, "timeout")):
        async with (
            running(streams(events), limits={"total": "200ms"}) as front,
            front.post({**CHAT, "stream": True}) as response,
        ):
            first, last = (await response.content.read()).split(b"\n\n", 1)
            assert first == b"data: 1"
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
            assert b"[DONE]" not in last
