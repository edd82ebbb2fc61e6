"""An upstream that means harm, or is broken in ways that look like it: what it sends must stay its own."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local_infer.api.sse import MAX_EVENT_BYTES, Overlong, Splitter
from local_infer.upstreams.attempt import first_event
from local_infer.upstreams.io_probing import read_list
from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import MockUpstream, Reply, error_body

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
GOOD = json.dumps({"id": "x", "object": "chat.completion", "choices": [CHOICE]}).encode()
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
EVENTS = [
    b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]


def raw(headers: bytes, body: bytes = GOOD) -> Reply:
    return Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + headers + b"\r\n" + body)


@dataclass
class Pair:
    """An upstream, a gateway that has no other one, and a client of it."""

    upstream: MockUpstream
    url: str
    session: aiohttp.ClientSession
    asked: int = 0

    async def ask(self, reply: Reply, **fields: Any) -> tuple[int, bytes, Any, int]:
        """(status, body, headers) of an answer, and the status of the same request when only a kept one will do."""
        self.asked += 1
        body = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": f"{self.asked}"}], **fields}
        self.upstream.next(reply)
        status, got, headers = await self._post(body)
        again, _got, _headers = await self._post(body, **{"Cache-Control": "only-if-cached"})
        return status, got, headers, again

    async def _post(self, body: Any, **headers: str) -> tuple[int, bytes, Any]:
        headers["Authorization"] = f"Bearer {KEY}"
        async with self.session.post(self.url + "/chat/completions", json=body, headers=headers) as response:
            return response.status, await response.read(), response.headers


@asynccontextmanager
async def pair(folder: Path, **more: Any) -> AsyncIterator[Pair]:
    routing = {"give_up": "2s", "connect": "1s", "attempts": 1, "breaker": {"least": 1000}}
    async with (
        MockUpstream(**more) as upstream,
        running_gateway(folder, {"east": upstream}, routing=routing) as daemon,
        aiohttp.ClientSession() as session,
    ):
        yield Pair(upstream, url_of(daemon), session)


async def test_headers_that_cannot_be_sent_on_are_left_out_and_poison_no_kept_answer(tmp_path: Path) -> None:
    async with pair(tmp_path) as world:
        for header in (
            b"Content-Language: a\x01b", b"Content-Language: \xff\xfe", b"OpenAI-Version: \x7f",
            b"OpenAI-Version: \xc2\x85", b"OpenAI-Processing-Ms: " + b"7" * 5000,
        ):  # fmt: skip
            status, body, headers, again = await world.ask(raw(LENGTH + header + b"\r\n"))
            assert (status, body, again) == (200, GOOD, 200), header
            assert not {"Content-Language", "OpenAI-Version", "OpenAI-Processing-Ms"} & set(headers), header
        # Nor one that the answer cannot do without.
        mad = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Type: application/json\x01\r\n" + LENGTH + b"\r\n" + GOOD)
        status, body, headers, again = await world.ask(mad)
        assert (status, body, again) == (200, GOOD, 200)
        assert headers["Content-Type"] == "application/json"


async def test_what_belongs_to_its_connection_or_to_cookies_stays_there(tmp_path: Path) -> None:
    async with pair(tmp_path) as world:
        mine = (
            b"Connection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\nSet-Cookie: a=b\r\n"
            b"Trailer: X\r\nX-Degraded: none\r\nCache-Status: x; hit\r\nAge: 5\r\nLocation: http://127.0.0.1:1/\r\n"
        )
        status, body, headers, _again = await world.ask(raw(LENGTH + mine))
        assert (status, body) == (200, GOOD)
        assert not {"X-Mine", "Keep-Alive", "Upgrade", "Set-Cookie", "Trailer", "X-Degraded", "Age", "Location"} & set(
            headers
        )
        assert headers["Cache-Status"] == "node-1; fwd=miss; stored"
        await world.ask(Reply())
        assert "Cookie" not in world.upstream.asked[-1].headers


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (raw(LENGTH + b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)), "broken answer"),
        (raw(LENGTH + b"Content-Length: 5\r\n"), "broken answer"),
        (raw(LENGTH + b"X: a\rX-Evil: 1\r\n"), "broken answer"),
        (raw(b"Content-Length: %d\r\n" % (len(GOOD) + 5)), "cut"),
        (raw(b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\n" % (len(GOOD), GOOD)), "cut"),
        (raw(b"", GOOD[:-20]), "cut"),
        (raw(LENGTH + b"".join(b"X-%d: 1\r\n" % i for i in range(5000))), "broken answer"),
        (Reply(body=b"<p>no"), "not the API"),
        (Reply(body=b""), "not the API"),
        (Reply(body=b'"a text"'), "not the API"),
        (Reply(status=204, body=b""), "not the API"),
        (Reply(body=gzip.compress(b" " * (4 << 20)), headers={"Content-Encoding": "gzip"}), "encoded"),
        (Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}, body=b""), "redirect"),
        (Reply(body=error_body("dead", "server_error")), "error in stream"),
    ],
    ids=[
        "length and chunks", "two lengths", "a bare CR", "shorter than said", "no last chunk", "cut, no length",
        "many headers", "no JSON", "nothing", "no object", "204", "a bomb", "a redirect", "an error as 200",
    ],
)  # fmt: skip
async def test_what_is_no_whole_answer_is_neither_passed_on_nor_kept(tmp_path: Path, reply: Reply, reason: str) -> None:
    async with pair(tmp_path) as world:
        status, _body, headers, again = await world.ask(reply)
        assert (status, headers["X-Degraded"], again) == (503, f"none; {reason}; 0", 504)


async def test_what_follows_an_answer_is_not_the_answer_to_the_next_request(tmp_path: Path) -> None:
    async with pair(tmp_path) as world:
        second = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + LENGTH + b"\r\n" + GOOD.replace(b"hi", b"no")
        )
        status, body, _headers, _again = await world.ask(raw(LENGTH, GOOD + second))
        assert (status, body) == (200, GOOD)
        status, body, _headers, _again = await world.ask(Reply(text="mine"))
        assert json.loads(body)["choices"][0]["message"]["content"] == "mine"


@pytest.mark.parametrize("first", [b"data:\n\n", b"data: \n\n", b"id: 1\n\n", b"retry: 1\n\n", b"event: x\ndata\n\n"])
async def test_events_without_data_come_before_an_answer_and_are_none(tmp_path: Path, first: bytes) -> None:
    async with pair(tmp_path) as world:
        # In a packet of its own: what is in one with the answer was never looked at alone.
        status, body, _headers, again = await world.ask(Reply(events=[first, *EVENTS], between_s=0.02), stream=True)
        assert (status, body, again) == (200, first + b"".join(EVENTS), 200)
    assert not first_event(first)
    assert first_event(first + EVENTS[0])


def test_a_long_event_that_dribbles_costs_no_more_than_a_short_one() -> None:
    def cost_s(length: int) -> float:
        splitter = Splitter()
        splitter.feed(b"data: " + b"x" * length)
        began_s = time.process_time()
        for _ in range(500):
            splitter.feed(b"y")
        return time.process_time() - began_s

    # Before, each byte cost a copy of all: 3,000 times as much.
    assert min(cost_s(3 << 20) for _ in range(3)) < 100 * min(cost_s(1 << 10) for _ in range(3))
    splitter = Splitter()
    splitter.feed(b"data: " + b"x" * (MAX_EVENT_BYTES - 10))
    for _ in range(4):
        assert splitter.feed(b"y") == b""
    with pytest.raises(Overlong):
        splitter.feed(b"y")


async def test_a_stream_of_one_endless_line_ends_with_an_error(tmp_path: Path) -> None:
    async with pair(tmp_path) as world:
        endless = [b"data: " + b"x" * (1 << 20), *[b"x" * (1 << 20)] * 4]
        status, _body, headers, again = await world.ask(Reply(events=endless), stream=True)
        assert (status, headers["X-Degraded"], again) == (503, "none; too long; 0", 504)
        status, body, _headers, again = await world.ask(
            Reply(events=[EVENTS[0][:-40] + b"}]}\n\n", *endless]), stream=True
        )
        assert (status, again) == (200, 504)
        assert b"stream_cut" in body
        assert b"[DONE]" not in body
        assert len(body) < 2000


async def test_a_proxy_of_the_environment_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1000))
        writer.close()

    proxy = await asyncio.start_server(note, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, address)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with proxy, MockUpstream(key="sk-upstream") as upstream, MockUpstream() as neighbour:
        cache = {"neighbours": [neighbour.url]}
        async with (
            running_gateway(tmp_path, {"east": upstream}, cache=cache) as daemon,
            aiohttp.ClientSession() as session,
        ):
            world = Pair(upstream, url_of(daemon), session)
            assert (await world.ask(Reply(text="direct")))[0] == 200
        assert neighbour.requests
    assert seen == []


def test_a_list_of_models_names_none_of_ours_and_nothing_that_is_no_word() -> None:
    names = ["gpt", "local/model", "cache/gpt", "a b", "a\r\nb", "m" * 129, "", "é"]
    cards = read_list(json.dumps({"data": [{"id": name} for name in names]}).encode())
    assert cards is not None
    assert [card.id for card in cards] == ["gpt"]
    assert read_list(b'{"data":' + b"[" * 100_000) is None
