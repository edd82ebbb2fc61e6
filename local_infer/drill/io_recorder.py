"""Recent requests kept with their content for `local-infer drill`: only where `ladder.record` asks for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from local_infer.drill.io_recent import RecentRequest
from local_infer.drill.outcomes import wish_headers
from local_infer.model import Answer, Ask, Step, Stream

MOST_BYTES = 1 << 20
"""Of an answer; a longer one is kept without it."""


def recording(
    answer: Callable[[Ask], Awaitable[Answer]], record: Callable[[RecentRequest], None]
) -> Callable[[Ask], Awaitable[Answer]]:
    """The same answers; each request is recorded when its answer is through, upstreams' answers with it."""

    def keep(ask: Ask, body: bytes | None) -> None:
        client, headers = ask.client, wish_headers(ask)
        record(RecentRequest(ask.arrived_s, client.name, client.tenant, ask.endpoint.value, ask.body, body, headers))

    async def answered(ask: Ask) -> Answer:
        try:
            got = await answer(ask)
        except Exception:
            keep(ask, None)  # a request that nobody answered is what a drill is about
            raise
        judged = got.status == 200 and got.origin.step is Step.UPSTREAM
        if got.status != 200:
            return got
        if isinstance(got.body, bytes):
            keep(ask, got.body if judged and len(got.body) <= MOST_BYTES else None)
            return got
        watched = _watch(got.body, lambda body: keep(ask, body if judged else None))
        await anext(watched)  # begun, so that closing it always reaches its `finally`
        return replace(got, body=watched)

    return answered


async def _watch(stream: Stream, through: Callable[[bytes | None], None]) -> AsyncGenerator[bytes, None]:
    seen: list[bytes] = []
    left = MOST_BYTES
    try:
        yield b""
        async for events in stream:
            left -= len(events)
            if left >= 0:
                seen.append(events)
            yield events
        through(b"".join(seen) if left >= 0 else None)
    finally:
        await stream.aclose()
