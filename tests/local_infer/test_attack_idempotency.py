"""An upstream that keeps answers by Idempotency-Key, as it may: it sees one account for all our clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from local_infer.io_daemon import Daemon
from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import MockUpstream, Reply, Seen

OTHER = "np-other-key"
KEYS = {
    "web": {"token_sha256": hashlib.sha256(KEY.encode()).hexdigest()},
    "shop": {"token_sha256": hashlib.sha256(OTHER.encode()).hexdigest()},
}


class Replaying:
    """Gives the first answer of a key again, whoever asks."""

    def __init__(self) -> None:
        self.kept: dict[str, Reply] = {}
        self.times = 0

    def __call__(self, seen: Seen) -> Reply:
        self.times += 1
        fresh = Reply(text=f"{self.times}: {seen.json['messages'][0]['content']}")
        return self.kept.setdefault(seen.headers.get("Idempotency-Key", f"none {self.times}"), fresh)


@asynccontextmanager
async def world(folder: Path, **more: Any) -> AsyncIterator[tuple[Replaying, Daemon, aiohttp.ClientSession]]:
    replaying = Replaying()
    async with (
        MockUpstream(replaying) as upstream,
        running_gateway(folder, {"east": upstream}, keys=KEYS, **more) as daemon,
        aiohttp.ClientSession() as session,
    ):
        yield replaying, daemon, session


async def ask(
    daemon: Daemon, session: aiohttp.ClientSession, text: str, key: str | None, once: str, **more: Any
) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": text}], **more}
    headers = {"Idempotency-Key": once} | ({"Authorization": f"Bearer {key}"} if key else {})
    async with session.post(url_of(daemon) + "/chat/completions", json=body, headers=headers) as response:
        answer: str = json.loads(await response.read())["choices"][0]["message"]["content"]
        return answer


async def test_a_key_that_two_clients_use_gives_each_its_own_answer(tmp_path: Path) -> None:
    async with world(tmp_path, anonymous=True) as (replaying, daemon, session):
        first = await ask(daemon, session, "my secret", KEY, "order-1")
        assert first == "1: my secret"
        # Another tenant's, even with the same request, and that of somebody without a key for another request.
        assert await ask(daemon, session, "my secret", OTHER, "order-1") == "2: my secret"
        assert await ask(daemon, session, "hello", None, "order-1") == "3: hello"
        assert await ask(daemon, session, "good day", None, "order-1") == "4: good day"
        # What the header is for: the same request of the same client once more.
        assert await ask(daemon, session, "my secret", KEY, "order-1") == first
        assert all(len(key) <= 255 and "order" not in key for key in replaying.kept)


async def test_what_is_refreshed_behind_is_not_the_first_answer_again(tmp_path: Path) -> None:
    cache = {"fresh_for": "0.1s", "revalidate_for": "10s"}
    async with world(tmp_path, cache=cache) as (replaying, daemon, session):
        assert await ask(daemon, session, "news", KEY, "same", temperature=0) == "1: news"
        await asyncio.sleep(0.15)
        assert await ask(daemon, session, "news", KEY, "same", temperature=0) == "1: news"
        for _ in range(100):
            if replaying.times > 1:
                break
            await asyncio.sleep(0.01)
        for _ in range(100):
            if (last := await ask(daemon, session, "news", KEY, "same", temperature=0)) != "1: news":
                break
            await asyncio.sleep(0.01)
        assert last != "1: news"
