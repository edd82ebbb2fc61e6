"""What a client may try, with a key and without: smuggled requests, bombs, other people's answers, too many of anything."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import re
import zlib
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import generate_latest

from core.config import Metrics
from local_infer.api.request import MAX_CONTAINERS, MAX_VALUES, parse_body, read_ask
from local_infer.cache.cache_key import keys_of
from local_infer.fault import ApiError
from local_infer.gateway import io_connection
from local_infer.gateway.keys import LISTS_AT_ONCE
from local_infer.model import Answer, Ask, Client, Endpoint, ModelCard
from tests.local_infer.gateway import running_gateway
from tests.local_infer.mock_upstream import MockUpstream
from tests.local_infer.server import CHAT, Front, echo, running, send_raw

AUTH = b"Authorization: Bearer secret\r\n"
BODY = json.dumps({**CHAT, "model": "one"}).encode()
SECOND = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + AUTH
    + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY.replace(b"one", b"two"))
)  # fmt: skip
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
LENGTH = b"Content-Length: %d" % len(BODY)


@asynccontextmanager
async def noting() -> Any:
    """A gateway, and the models that its ladder was asked for."""
    asked: list[str] = []

    async def answer(ask: Ask) -> Answer:
        asked.append(ask.model)
        return await echo(ask)

    async with running(answer) as front:
        yield front, asked


# -- HTTP itself


async def test_what_could_hide_a_second_request_is_refused_and_nothing_of_it_served() -> None:
    heads = {
        "length and chunks": LENGTH + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n" + CHUNKED,
        "two lengths": LENGTH + b"\r\nContent-Length: 0\r\n\r\n" + BODY,
        "a list of lengths": LENGTH + b", %d\r\n\r\n" % len(BODY) + BODY,
        "a signed length": LENGTH.replace(b": ", b": +") + b"\r\n\r\n" + BODY,
        "a length with _": b"Content-Length: 1_0\r\n\r\n" + BODY,
        "a space before the colon": LENGTH.replace(b":", b" :") + b"\r\n\r\n" + BODY,
        "another coding": b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
        "chunked not last": b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
        "a control character": b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED,
        "a bare line feed": b"Foo: bar\n" + LENGTH + b"\r\n\r\n" + BODY,
        "a folded line": b"Foo: bar\r\n Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n\r\n" + BODY,
        "a chunk beyond 64 bits": b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + BODY,
        "a chunk with 0x": b"Transfer-Encoding: chunked\r\n\r\n0x" + CHUNKED,
        "a line feed in a chunk's extension": b"Transfer-Encoding: chunked\r\n\r\n"
        + CHUNKED.replace(b"\r\n", b";a\nb\r\n", 1),
        "a chunk longer than it says": b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + BODY + b"\r\n0\r\n\r\n",
        "a zero byte": b"Foo: a\0b\r\n" + LENGTH + b"\r\n\r\n" + BODY,
    }
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + AUTH + b"Content-Type: application/json\r\n"
    async with noting() as (front, asked):
        for name, rest in heads.items():
            got = await send_raw(front, start + rest + SECOND)
            assert re.match(rb"HTTP/1\.\d 400 ", got), name
            assert got.count(b"HTTP/1.") == 1, name
            assert asked == [], name


async def test_the_body_of_a_refused_request_is_no_request() -> None:
    async with noting() as (front, asked):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        got = await send_raw(front, head % len(SECOND) + SECOND)
        assert got.startswith(b"HTTP/1.1 401 ")
        assert got.count(b"HTTP/1.1 ") == 1
        assert asked == []


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: 1\r\n" % i for i in range(20_000)),
        b"X: " + b"a" * 1_000_000,
        b"Authorization: " + b"a" * 99_999,
    ],
    ids=["many headers", "a long header", "a long key"],
)
async def test_header_bombs_are_refused(head: bytes) -> None:
    async with running() as front:
        got = await send_raw(front, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.\d 400 ", got)
        assert len(got) < 2000


async def test_requests_that_are_not_waited_for_do_not_pile_up() -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running() as front:
        _reader, writer = await asyncio.open_connection(*front.address, limit=1024)
        sent = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                while sent < 64 << 20:  # answers are not read, so at some time nothing is taken any more
                    writer.write(one * 2000)
                    sent += 2000 * len(one)
                    async with asyncio.timeout(0.2):
                        await writer.drain()
        assert sent < 64 << 20
        assert front.gateway._server is not None
        (connection,) = front.gateway._server.connections
        assert len(connection._messages) < 5000
        writer.transport.abort()


async def test_strangers_cannot_take_the_connections_of_those_who_have_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_connection, "_LEAST_CONNECTIONS", 3)
    monkeypatch.setattr(io_connection, "_descriptors", lambda: 0)
    async with running() as front:
        async with front.post() as response:
            assert response.status == 200
        strangers = [await asyncio.open_connection(*front.address) for _ in range(6)]
        ends = await asyncio.gather(*(reader.read() for reader, _writer in strangers[:4]), return_exceptions=True)
        assert all(end == b"" or isinstance(end, ConnectionError) for end in ends)  # those who came first
        assert front.gateway._server is not None
        assert front.gateway._server.count == 3
        # The client goes on over its old connection, and a new one finds room too.
        async with front.post() as response:
            assert response.status == 200
        async with aiohttp.ClientSession() as session:
            headers = {"Authorization": "Bearer secret"}
            async with session.post(front.url + "/v1/chat/completions", json=CHAT, headers=headers) as response:
                assert response.status == 200
        for _reader, writer in strangers:
            writer.close()


# -- bodies


SPACES = b" " * (4 << 20)
RAW = zlib.compressobj(9, zlib.DEFLATED, -15)


@pytest.mark.parametrize(
    ("data", "coding"),
    [
        (gzip.compress(SPACES), "gzip"),
        (zlib.compress(SPACES), "deflate"),
        (RAW.compress(SPACES) + RAW.flush(), "deflate"),
    ],
    ids=["gzip", "deflate", "raw deflate"],
)
async def test_compressed_bombs_are_refused_without_being_unpacked(data: bytes, coding: str) -> None:
    assert len(data) < 8192
    async with (
        running(limits={"body": "8KiB"}) as front,
        front.post(data, headers={"Content-Encoding": coding}) as response,
    ):
        assert response.status == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","messages":[' + b"{}," * MAX_CONTAINERS + b"{}]}",
        b'{"model":"m","messages":[{}],"x":' + b"[" * (MAX_CONTAINERS + 1),
        b'{"model":"m","messages":[{}],"x":[' + b"1," * MAX_VALUES + b"1]}",
        b'{"model":"m","messages":[{}],"x":"' + b'\\"' * 500_000 + b"{" * (MAX_CONTAINERS + 1),
    ],
    ids=["objects", "lists", "numbers", "no end"],
)
def test_a_body_of_too_many_parts_is_refused_before_it_is_parsed(body: bytes) -> None:
    if body.endswith(b"{"):
        with pytest.raises(ApiError):  # all of it is within one string, so it is parsed, and is no JSON
            parse_body(body)
        return
    with pytest.raises(ApiError, match="more than 100000 objects and lists, or 1000000 values"):
        parse_body(body)


def test_a_long_text_of_brackets_is_no_body_of_many_parts() -> None:
    text = '{"a":[1,2]}\\"' * 60_000
    assert parse_body(json.dumps({"model": "m", "x": text}).encode())["x"] == text
    inputs = [[1] * 1000] * 300  # the largest request of the API: 300,000 tokens to embed
    assert len(parse_body(json.dumps({"model": "m", "input": inputs}).encode())["input"]) == 300


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1" * 400 + ".0", "1" * 5000, "NaN", "-Infinity"])
def test_numbers_that_others_read_differently_are_refused(number: str) -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":%s}' % number.encode()
    with pytest.raises(ApiError) as caught:
        parse_body(body)
    assert caught.value.status == 400
    assert b"1" * 100 not in caught.value.body()


@pytest.mark.parametrize("model", ["m" * 129, "m\r\nX-Evil: 1", "m\0", "ｍ", "", " m"])
async def test_a_model_that_is_no_word_reaches_neither_log_nor_ladder(model: str) -> None:
    async with noting() as (front, asked), front.post({**CHAT, "model": model}) as response:
        assert response.status == 400
        assert asked == []


def test_forms_of_one_request_share_a_key_and_others_never_do() -> None:
    def key(extra: str, content: str = '"x"') -> bytes | None:
        body = f'{{"model":"m","temperature":0,"messages":[{{"role":"user","content":{content}}}]{extra}}}'
        keys = keys_of(read_ask(Endpoint.CHAT, {}, body.encode(), Client("k", "t"), "r", 0.0))
        return None if keys is None else keys.key

    plain = key("")
    assert plain is not None
    for same in (',"stream":true', ',"stream":false', ',"user":null', ',"stream_options":{"include_usage":true}'):
        assert key(same) == plain, same
    assert key("", '"\\u0078"') == plain
    others = [
        ',"user":"a"', ',"user":"b"', ',"seed":1', ',"seed":1.0', ',"seed":true', ',"n":2', ',"unknown":1', ',"n":1',
        ',"max_tokens":1e2', ',"max_tokens":100', ',"top_p":0.5', ',"metadata":{"a":1}', ',"service_tier":"flex"',
        ',"seed":9007199254740993', ',"seed":9007199254740992', ',"top_p":9007199254740993',
        ',"top_p":9007199254740992',
    ]  # fmt: skip
    keys = [key(other) for other in others]
    assert key(',"max_tokens":1e2') == key(',"max_tokens":100.0')
    assert None not in keys
    assert len({plain, *keys}) == 1 + len(others)
    # "é" in two forms of Unicode is two texts; of two names only one could be looked at.
    assert key("", '"\\u00e9"') != key("", '"e\\u0301"')
    assert key(',"seed":1,"seed":2') is None


# -- keys, costs, what is told


async def test_lists_are_not_to_be_had_any_number_of_times() -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    async with running(cards=(ModelCard("m1", "a"),), keys={"web": {"token_sha256": digest, "rate": 1}}) as front:
        statuses = []
        for path in ("/v1/models", "/v1/hot-keys", "/v1/models/m1") * 12:
            async with front.session.get(front.url + path, headers={"Authorization": "Bearer secret"}) as response:
                statuses.append(response.status)
        assert statuses[:LISTS_AT_ONCE] == [200] * LISTS_AT_ONCE
        assert statuses[-1] == 429
        async with front.post() as response:  # they cost no rate
            assert response.status == 200


async def test_a_key_that_stands_where_it_should_not_is_told_to_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    async with running(access_log={"enabled": True}) as front:
        for path in ("/v1/chat/completions?api_key=np-in-the-url", "/v1/models?key=np-in-the-url"):
            async with front.session.post(front.url + path, json=CHAT) as response:
                assert response.status in (401, 405)
                assert "np-in-the-url" not in await response.text() + str(response.headers)
        async with front.post(key="np-a-wrong-key") as response:
            assert response.status == 401
            assert "np-a-wrong-key" not in await response.text() + str(response.headers)
        assert b"np-" not in generate_latest(front.registry)
    out, errors = capfd.readouterr()
    assert '"status":401' in errors
    assert "np-in-the-url" not in out + errors
    assert "np-a-wrong-key" not in out + errors


async def test_strangers_learn_whether_it_is_ready_and_no_more(tmp_path: Path) -> None:
    async with (
        MockUpstream() as upstream,
        running_gateway(
            tmp_path,
            {"secret-name": upstream},
            routing={"probe_every": "100ms", "give_up": "500ms", "connect": "300ms"},
        ) as daemon,
    ):
        await upstream.down()
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            while True:
                async with session.get(f"http://{daemon.addresses[0]}/readyz") as response:
                    told = await response.text() + str(response.headers)
                    if response.status == 503:
                        break
                await asyncio.sleep(0.05)
            assert "degraded" in told
            assert "secret-name" not in told
            assert str(upstream.port) not in told
            for path in ("/metrics", "/v1/models", "/v1/hot-keys", "/debug", "/.env"):
                async with session.get(f"http://{daemon.addresses[0]}{path}") as response:
                    assert response.status in (401, 404)
                    assert "secret-name" not in await response.text()
    assert all(address.startswith("127.0.0.1:") for address in Metrics().listen)


async def test_made_up_names_make_no_metrics() -> None:
    async with running() as front:

        async def count() -> int:
            return sum(len(family.samples) for family in front.registry.collect())

        async def round_of(number: int) -> None:
            async with front.post({**CHAT, "model": f"made-up-{number}"}) as response:
                assert response.status == 200
            for path in (f"/v1/made-up-{number}", f"/v1/models/made-up-{number}"):
                async with front.session.get(front.url + path, headers={"Authorization": "Bearer secret"}) as response:
                    assert response.status == 404

        await round_of(0)
        before = await count()
        for number in range(1, 10):
            await round_of(number)
        assert await count() == before


async def test_headers_an_answer_brings_cannot_break_it() -> None:
    async def answer(_ask: Ask) -> Answer:
        bad = {"content-type": "application/json", "content-language": "a\r\nX-Evil: 1", "openai-version": "\udcff"}
        return Answer(200, bad, b"{}", (await echo(_ask)).origin)

    async with running(answer) as front, front.post() as response:
        assert response.status == 200
        assert await response.read() == b"{}"
        assert "X-Evil" not in response.headers
        assert "content-language" not in response.headers


async def test_bodies_under_way_share_a_bounded_memory() -> None:
    gate = asyncio.Event()

    async def wait(ask: Ask) -> Answer:
        await gate.wait()
        return await echo(ask)

    # 3 bytes each on the way, and 70 here.
    heavy = b'{"model":"m","messages":[' + b"{}," * 8000 + b"{}]}"
    async with running(wait, limits={"requests": 3, "body": "128KiB"}) as front:
        tasks = [asyncio.create_task(answer_of(front, heavy)) for _ in range(2)]
        done, _ = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [429]
        assert await answer_of(front, b'{"model":"m","messages":[]}') == 400  # a small one finds room
        gate.set()
        assert sorted(await asyncio.gather(*tasks)) == [200, 429]
        assert await answer_of(front, heavy) == 200
        assert front.gateway._room.held_bytes == 0


async def answer_of(front: Front, body: bytes) -> int:
    """The status of the answer to a body."""
    async with front.post(body) as response:
        await response.read()
        return int(response.status)
