"""An upstream that tells of our key in the middle of a stream, or goes on after the end of one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local_infer.api.sse import up_to_done
from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import DONE, MockUpstream, Reply

SECRET = "sk-very-secret-word"
FIRST = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'


@dataclass
class World:
    """A gateway with one upstream, and a client of it."""

    upstream: MockUpstream
    url: str
    session: aiohttp.ClientSession
    asked: int = 0

    async def stream(self, events: Sequence[bytes]) -> tuple[bytes, bytes]:
        """What a client gets of a stream with these events, a packet each; and of the kept answer (b"": there is none)."""
        self.asked += 1
        body = {"model": "m", "stream": True, "temperature": 0, "messages": [{"content": f"{self.asked}"}]}
        self.upstream.next(Reply(events=events, between_s=0.01))
        _status, got = await self._post(body)
        status, kept = await self._post(body, **{"Cache-Control": "only-if-cached"})
        return got, kept if status == 200 else b""

    async def _post(self, body: Any, **headers: str) -> tuple[int, bytes]:
        headers["Authorization"] = f"Bearer {KEY}"
        async with self.session.post(self.url + "/chat/completions", json=body, headers=headers) as response:
            return response.status, await response.read()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    routing = {"give_up": "2s", "attempts": 1, "between_chunks": "1s", "breaker": {"least": 1000}}
    async with (
        MockUpstream(key=SECRET) as upstream,
        running_gateway(folder, {"east": upstream}, routing=routing) as daemon,
        aiohttp.ClientSession() as session,
    ):
        yield World(upstream, url_of(daemon), session)


async def test_an_error_in_the_middle_of_a_stream_does_not_tell_our_key(tmp_path: Path) -> None:
    told = f"incorrect API key provided: {SECRET}."
    object_ = f'data: {{"error":{{"message":"{told}","code":401}}}}\n\n'.encode()
    async with world(tmp_path) as one:
        for events in ([FIRST, object_], [FIRST + object_], [FIRST, f"event: error\ndata: {told}\n\n".encode()]):
            got, _kept = await one.stream(events)
            assert got == b"".join(events).replace(SECRET.encode(), b"[hidden]")


async def test_what_comes_after_the_end_of_an_answer_is_no_part_of_it(tmp_path: Path) -> None:
    good = FIRST + LAST + DONE
    async with world(tmp_path) as one:
        for after in (FIRST, b": ping\n\n", DONE + FIRST + DONE, b'data: {"error":{"message":"late"}}\n\n'):
            assert await one.stream([FIRST, LAST, DONE + after]) == (good, good), after
            assert await one.stream([FIRST + LAST + DONE + after]) == (good, good), after


@pytest.mark.parametrize(
    ("events", "until"),
    [
        (FIRST, FIRST),
        (DONE, DONE),
        (FIRST.replace(b'"a"', b'"[DONE]"') + LAST, FIRST.replace(b'"a"', b'"[DONE]"') + LAST),
        (FIRST + b"data:[DONE]\r\n\r\n" + LAST, FIRST + b"data:[DONE]\r\n\r\n"),
        (b": [DONE]\n\n" + LAST + DONE, b": [DONE]\n\n" + LAST + DONE),
    ],
)
def test_where_a_run_of_events_ends(events: bytes, until: bytes) -> None:
    assert up_to_done(events) == until
