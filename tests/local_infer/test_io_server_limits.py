"""What the server takes of a client: bytes, time, requests at once; and how it says no."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
from collections.abc import AsyncIterator

import pytest
import uvloop

from local_infer.model import Answer, Ask
from tests.local_infer.server import CHAT, HEAD, UPSTREAM, AnswerFn, echo, error_of, running, send_raw


async def test_body_limit_declared_sent_and_decompressed() -> None:
    async with running(limits={"body": "1KiB"}) as front:
        big = b'{"model":"' + b"m" * 2000 + b'"}'

        async def pieces() -> AsyncIterator[bytes]:
            yield big[:500]
            yield big[500:]

        for body, headers in ((big, {}), (pieces(), {}), (gzip.compress(big), {"Content-Encoding": "gzip"})):
            async with front.post(body, headers=headers) as response:
                assert response.status == 413
                assert (await error_of(response))["code"] == "body_too_large"
        async with front.post(
            gzip.compress(json.dumps(CHAT).encode()), headers={"Content-Encoding": "gzip"}
        ) as response:
            assert await response.json() == CHAT


async def test_garbage_instead_of_what_the_headers_say() -> None:
    async with running() as front, front.post(b"no gzip", headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 400


async def test_expect_continue_is_answered_when_the_key_is_good() -> None:
    async with running() as front:
        async with front.post(expect100=True) as response:
            assert await response.json() == CHAT
        async with front.post(expect100=True, key="wrong") as response:
            assert response.status == 401


@pytest.mark.parametrize("data", [b"POST /v1/cha", HEAD, HEAD + b"\r\n{"], ids=["line", "headers", "body"])
async def test_slow_requests_end(data: bytes) -> None:
    async with running(limits={"header_time": "100ms"}) as front:
        answer = await send_raw(front, data)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nX-Request-Id: req_" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_head_that_begins_with_the_connection_must_end_in_time_too() -> None:
    """On the daemon's loop, and sent before the gateway has taken the connection: nobody waits for those bytes yet."""

    async def slow() -> None:
        async with running(limits={"header_time": "100ms"}) as front:
            with socket.create_connection(front.address) as client:
                client.sendall(HEAD)
                client.setblocking(False)
                async with asyncio.timeout(10):
                    answer = await asyncio.get_running_loop().sock_recv(client, 100)
            assert answer.startswith(b"HTTP/1.1 408 ")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(slow())


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["line", "header", "smuggling"],
)
async def test_broken_http_is_told_in_the_form_of_the_api(data: bytes) -> None:
    async with running() as front:
        answer = await send_raw(front, data)
        assert b" 400 Bad Request\r\n" in answer
        assert b"aiohttp" not in answer
        assert b"\r\nX-Request-Id: req_" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


async def test_idle_connections_are_closed() -> None:
    async with running(limits={"idle": "100ms"}) as front:
        assert await send_raw(front, b"") == b""


def held(client: str = "") -> tuple[AnswerFn, asyncio.Event, asyncio.Event]:
    """An echo for which its client (any, or that one) waits; the event that it was asked, and the one that lets it go."""
    entered, hold = asyncio.Event(), asyncio.Event()

    async def answer(ask: Ask) -> Answer:
        if client in ("", ask.client.name):
            entered.set()
            await hold.wait()
        return await echo(ask)

    return answer, entered, hold


async def test_rate_and_concurrency() -> None:
    wait, entered, hold = held()
    digest = hashlib.sha256(b"secret").hexdigest()
    async with running(wait, keys={"web": {"token_sha256": digest, "rate": 2, "concurrency": 1}}) as front:
        first = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        async with front.post() as response:
            assert response.status == 429
            assert (await error_of(response))["code"] == "concurrency_limit_exceeded"
        hold.set()
        response = await first
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
        response.release()
        async with front.post() as response:
            assert response.status == 200
        async with front.post() as response:
            assert response.status == 429
            assert (await error_of(response))["code"] == "rate_limit_exceeded"
            assert 1 <= int(response.headers["Retry-After"]) <= 30


async def test_one_key_leaves_room_for_another_that_asks() -> None:
    wait, entered, hold = held("secret")
    keys = {name: {"token_sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("secret", "other")}
    async with running(wait, keys=keys, limits={"requests": 2}) as front:
        async with front.post(key="other") as response:
            assert response.status == 200
        first = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        async with front.post() as response:  # there is room, but it is for the other one
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            assert (await error_of(response))["code"] == "concurrency_limit_exceeded"
        async with front.post(key="other") as response:
            assert response.status == 200
        hold.set()
        (await first).release()


async def test_all_slots_taken() -> None:
    wait, entered, hold = held()
    async with running(wait, limits={"requests": 1}) as front:
        first = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        async with front.post() as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            assert (await error_of(response))["code"] == "overloaded"
        hold.set()
        (await first).release()
        async with front.post() as response:
            assert response.status == 200


async def test_longest_answer() -> None:
    cancelled = asyncio.Event()

    async def never(_ask: Ask) -> Answer:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()
        raise AssertionError

    async with running(never, limits={"total": "100ms"}) as front, front.post() as response:
        assert response.status == 503
        assert (await error_of(response))["code"] == "timeout"
        assert cancelled.is_set()


async def test_large_answer() -> None:
    body = b'"' + b"x" * 3_000_000 + b'"'

    async def large(_ask: Ask) -> Answer:
        return Answer(200, {}, body, UPSTREAM)

    async with running(large) as front, front.post() as response:
        assert await response.read() == body


async def test_large_answers_under_way_share_a_bounded_memory() -> None:
    async def large(_ask: Ask) -> Answer:
        return Answer(200, {}, bytes(30_000_000), UPSTREAM)

    async with running(large, limits={"requests": 2, "body": "1KiB"}) as front:
        unread = await front.post().__aenter__()  # its headers; the rest waits in the gateway
        async with front.post() as response:
            assert response.status == 429
            assert (await error_of(response))["code"] == "overloaded"
        unread.close()
        await front.wait_counted(status="499")
        assert front.gateway._room.held_bytes == 0
        async with front.post() as response:
            assert len(await response.read()) == 30_000_000


async def test_client_that_does_not_read_a_large_answer_is_left_in_time() -> None:
    async def large(_ask: Ask) -> Answer:
        return Answer(200, {}, b"x" * 30_000_000, UPSTREAM)

    async with running(large, limits={"total": "200ms"}) as front:
        _reader, writer = await asyncio.open_connection(*front.address, limit=1024)
        body = json.dumps(CHAT).encode()
        writer.write(HEAD.replace(b"100", b"%d" % len(body)) + b"\r\n" + body)
        await front.wait_counted(status="503")
        assert front.gateway.under_way == 0
        writer.close()
