"""A request that is over is gone: no ring of references holds it until the cycle collector comes by, which is late.

Under load with upstreams down megabytes of bodies were held so: an exception holds its traceback, that the frames, and one
of those the exception.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local_infer.model import Ask
from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import MockUpstream, Reply

TRIES = 5
BREAKER = {"least": 1000}


def alive() -> int:
    return sum(isinstance(one, Ask) for one in gc.get_objects())


@pytest.mark.parametrize("temperature", [0, 1], ids=["shared flight", "bypass"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_requests_that_are_over(tmp_path: Path, temperature: int, stream: bool) -> None:
    routing = {"give_up": "1s", "connect": "500ms", "breaker": BREAKER, "retry_budget": "100%"}
    async with (
        MockUpstream() as upstream,
        running_gateway(tmp_path, {"east": upstream}, routing=routing) as daemon,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
    ):

        async def ask(text: str, **more: Any) -> int:
            chat = {"model": "gpt-test", "temperature": temperature, "stream": stream, **more}
            chat["messages"] = [{"role": "user", "content": text}]
            async with session.post(f"{url_of(daemon)}/chat/completions", json=chat) as response:
                await response.read()
                return response.status

        await ask("the first one")
        seen = {}
        gc.collect()
        before = alive()  # other tests' modules keep some
        gc.disable()
        try:
            for reply in (Reply(), Reply.error(400), Reply.cut(2), Reply.error(500)):
                upstream.always = reply
                statuses = {await ask(f"{reply.status} {reply.end_after} {number}") for number in range(TRIES)}
                # The handler's task ends after its answer has been read.
                async with asyncio.timeout(5):
                    while not daemon.status().endswith("0 requests under way"):  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                await asyncio.sleep(0.02)
                seen[reply.status, reply.end_after] = (statuses, alive() - before)
            upstream.always = Reply.stall(1) if stream else Reply.slow(30)
            for number in range(TRIES):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await ask(f"left {number}")
            await asyncio.sleep(0.2)
            seen[499, None] = (set(), alive() - before)
        finally:
            gc.enable()
    assert seen[500, None][0] == {503}
    assert {outcome: count for outcome, (_, count) in seen.items() if count} == {}
