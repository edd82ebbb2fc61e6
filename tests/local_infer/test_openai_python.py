"""The API's own Python client works unchanged, whatever the upstreams do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from local_infer.io_daemon import Daemon
from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import TEXT, MockUpstream, Reply

MESSAGES: Any = [{"role": "user", "content": "你好"}]


@asynccontextmanager
async def client_of(daemon: Daemon, key: str = KEY) -> AsyncIterator[AsyncOpenAI]:
    """A client that does not try again by itself: what the gateway answers is what is seen."""
    async with AsyncOpenAI(api_key=key, base_url=url_of(daemon), max_retries=0, timeout=20) as client:
        yield client


@asynccontextmanager
async def playing(folder: Path, count: int = 1, **config: Any) -> AsyncIterator[tuple[AsyncOpenAI, list[MockUpstream]]]:
    """`count` upstreams, a gateway in front of them, and a client of it."""
    upstreams = [MockUpstream(key=f"upstream-key-{i}") for i in range(count)]
    for upstream in upstreams:
        await upstream.up()
    try:
        named = {f"up{i}": upstream for i, upstream in enumerate(upstreams)}
        async with running_gateway(folder, named, **config) as daemon, client_of(daemon) as client:
            yield client, upstreams
    finally:
        for upstream in upstreams:
            await upstream.down()


async def text_of(client: AsyncOpenAI, **more: Any) -> str:
    stream = await client.chat.completions.create(model="gpt-test", messages=MESSAGES, stream=True, **more)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])


async def test_chat(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, [upstream]):
        response = await client.chat.completions.with_raw_response.create(
            model="gpt-test", messages=MESSAGES, temperature=0.5, extra_body={"a_new_field": [1]}
        )
        answer = response.parse()
        assert answer.choices[0].message.content == TEXT
        assert (answer.model, answer.system_fingerprint) == ("gpt-test", "fp_mock")
        assert answer._request_id is not None
        assert answer._request_id.startswith("req_")
        assert "openai-organization" not in response.headers
        seen = upstream.asked[0]
        assert (seen.json["a_new_field"], seen.json["temperature"]) == ([1], 0.5)
        assert seen.headers["Authorization"] == "Bearer upstream-key-0"
        assert KEY not in str(seen.headers)


async def test_stream_with_usage(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, _upstreams):
        stream = await client.chat.completions.create(
            model="gpt-test", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 12


async def test_completions_embeddings_models(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, _upstreams):
        whole = await client.completions.create(model="gpt-test", prompt="x")
        assert whole.choices[0].text == TEXT
        stream = await client.completions.create(model="gpt-test", prompt="x", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT
        vectors = await client.embeddings.create(model="embed-test", input=["a", "b"], encoding_format="float")
        assert [one.embedding for one in vectors.data] == [[0.25, -0.5, 0.0], [0.25, -0.5, 1.0]]
        assert [model.id async for model in client.models.list()] == ["gpt-test", "embed-test"]
        assert (await client.models.retrieve("gpt-test")).id == "gpt-test"


async def test_errors_have_the_classes_of_the_client(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, [upstream]):
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(model="gpt-test", messages=[])
        assert (bad.value.param, bad.value.type) == ("messages", "invalid_request_error")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("none")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError) as unknown:
            await client.with_options(api_key="wrong").models.list()
        assert unknown.value.code == "invalid_api_key"
        # The upstream's own words where the client is at fault.
        upstream.next(Reply.error(400, message="too many tokens"))
        with pytest.raises(openai.BadRequestError, match="too many tokens"):
            await client.chat.completions.create(model="gpt-test", messages=MESSAGES)


async def test_limits_have_the_classes_of_the_client(tmp_path: Path) -> None:
    import hashlib

    digest = hashlib.sha256(KEY.encode()).hexdigest()
    async with playing(tmp_path, keys={"web": {"token_sha256": digest, "rate": 1, "models": ["gpt-test"]}}) as (
        client,
        _,
    ):
        await client.chat.completions.create(model="gpt-test", messages=MESSAGES)
        with pytest.raises(openai.RateLimitError) as limited:
            await client.chat.completions.create(model="gpt-test", messages=MESSAGES)
        assert limited.value.code == "rate_limit_exceeded"
        assert 1 <= int(limited.value.response.headers["Retry-After"]) <= 60


async def test_nobody_answers(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, [upstream]):
        await upstream.down()
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(model="gpt-test", messages=MESSAGES)
        assert error.value.status_code == 503
        assert int(error.value.response.headers["Retry-After"]) >= 1
        assert "127.0.0.1" not in str(error.value)
        await upstream.up()


async def test_rate_limits_of_all_upstreams_reach_the_client(tmp_path: Path) -> None:
    in_ms = {"retry-after-ms": "20500", "Retry-After": "21"}
    async with playing(tmp_path, count=2) as (client, [one, other]):
        one.always, other.always = Reply.error(429, retry_after="40"), Reply.error(429)
        other.always = replace(other.always, headers=in_ms)
        # Asked for the first time, and known to be full: the same.
        for _ in range(2):
            with pytest.raises(openai.RateLimitError) as limited:
                await client.chat.completions.create(model="gpt-test", messages=MESSAGES)
            headers = limited.value.response.headers
            assert headers["X-Degraded"] == "none; rate limited; 0"
            assert 20 <= int(headers["Retry-After"]) <= 21
            assert 15_000 < int(headers["retry-after-ms"]) <= 20_500
            assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "rate_limit_error")
            assert "it went wrong" not in str(limited.value)  # an upstream's words name its account
        assert [len(one.asked), len(other.asked)] == [1, 1]


async def test_a_rate_limit_of_one_upstream_only_is_no_429(tmp_path: Path) -> None:
    async with playing(tmp_path, count=2) as (client, [one, other]):
        one.always, other.always = Reply.error(429, retry_after="40"), Reply.error(500)
        with pytest.raises(openai.InternalServerError) as error:
            await client.chat.completions.create(model="gpt-test", messages=MESSAGES)
        assert error.value.status_code == 503
        await other.down()
        with pytest.raises(openai.RateLimitError):  # the other one could not be asked
            await client.chat.completions.create(model="gpt-test", messages=MESSAGES)


async def test_the_client_waits_as_long_as_the_upstream_said(tmp_path: Path) -> None:
    async with playing(tmp_path, routing={"give_up": "2s", "longest_retry_after": "0s"}) as (client, [upstream]):
        upstream.next(replace(Reply.error(429), headers={"retry-after-ms": "200"}))
        answer = await client.with_options(max_retries=1).chat.completions.create(model="gpt-test", messages=MESSAGES)
        assert answer.choices[0].message.content == TEXT
        first, second = upstream.asked
        assert second.at_s - first.at_s >= 0.2


BAD_STARTS = {
    "500": Reply.error(500),
    "503": Reply.error(503),
    "429 for long": Reply.error(429, retry_after="60"),
    "429 for a moment": Reply.error(429, retry_after="0"),
    "our key is refused": Reply.error(401),
    "reset": Reply.reset(),
    "reset after the headers": Reply.reset(0),
    "error frame": Reply.error_frame(),
    "garbage": Reply(raw=b"garbage\r\n\r\n"),
}


@pytest.mark.parametrize("case", BAD_STARTS)
async def test_another_upstream_answers_when_a_stream_begins_badly(tmp_path: Path, case: str) -> None:
    async with playing(tmp_path, 2) as (client, upstreams):
        bad = BAD_STARTS[case]
        # Whoever is asked first fails, once.
        failed = []

        def first_fails(_seen: Any) -> Reply:
            failed.append(1)
            return bad if len(failed) == 1 else Reply()

        for upstream in upstreams:
            upstream.always = first_fails
        assert await text_of(client) == TEXT
        assert len(failed) == 2


async def test_characters_cut_anywhere_arrive_whole(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, [upstream]):
        upstream.always = Reply.split_characters()
        assert await text_of(client) == "如何关闭自动续费？😀 完"


async def test_slow_first_byte_is_no_failure(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, [upstream]):
        upstream.always = Reply.slow(0.3, between_s=0.001)
        assert await text_of(client) == TEXT
        assert len(upstream.asked) == 1


@pytest.mark.parametrize("bad", [Reply.reset(3), Reply.cut(3)], ids=["reset", "cut"])
async def test_stream_cut_in_the_middle_raises_in_the_client(tmp_path: Path, bad: Reply) -> None:
    async with playing(tmp_path) as (client, [upstream]):
        upstream.always = bad
        with pytest.raises(openai.APIError, match="cut"):
            await text_of(client)


async def test_stalled_stream_ends_with_an_error(tmp_path: Path) -> None:
    routing = {"between_chunks": "200ms", "first_byte": "2s", "give_up": "1s", "connect": "1s"}
    async with playing(tmp_path, routing=routing) as (client, [upstream]):
        upstream.always = Reply.stall(2)
        with pytest.raises(openai.APIError):
            await text_of(client)
        await asyncio.wait_for(upstream.asked[0].gone.wait(), 5)


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_cancels_the_upstream_within_a_second(tmp_path: Path, stream: bool) -> None:
    async with playing(tmp_path) as (client, [upstream]):
        upstream.always = Reply.stall(2) if stream else Reply.slow(60)
        asked = asyncio.ensure_future(
            text_of(client) if stream else client.chat.completions.create(model="gpt-test", messages=MESSAGES)
        )
        seen = await upstream.wait_for(1)
        asked.cancel()
        async with asyncio.timeout(1):
            await seen.gone.wait()
