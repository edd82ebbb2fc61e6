"""Warm-up from a file and from a neighbour's hottest requests, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from local_infer.cache import io_warmup
from local_infer.cache.io_cache import Cache
from local_infer.cache.io_warmup import ANONYMOUS_TENANT, read_lines, tenants_of
from local_infer.fault import Unreachable
from local_infer.gateway.keys import Keys
from local_infer.model import Answer, Ask, Endpoint
from tests.local_infer.cache_asks import ScriptedClock, Source, chat, infer_config, make_ask

KEY = "np-neighbour-key"


@asynccontextmanager
async def opened(folder: Path, **fields: Any) -> AsyncIterator[Cache]:
    cache = await Cache.start(infer_config(str(folder), **fields), ScriptedClock(), CollectorRegistry())
    try:
        yield cache
    finally:
        await cache.close()


@asynccontextmanager
async def serving(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.get("/v1/hot-keys", handle)])
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert runner.addresses
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def lines(*rows: Any) -> bytes:
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"


async def test_a_file_of_requests_is_fetched_once_for_each_tenant(tmp_path: Path) -> None:
    file = tmp_path / "warm.jsonl"
    file.write_bytes(
        lines(
            {"body": chat("for all")},
            b"",
            {"tenant": "u", "body": chat("for u", stream=True)},
            {"tenant": "t", "body": chat("warm", temperature=1), "keep": True},
            {"tenant": "t", "body": chat("never kept", temperature=1)},
            {"tenant": "u", "endpoint": "/embeddings", "body": {"model": "e", "input": "x"}},
        )
    )
    source = Source()
    async with opened(tmp_path, warm_file=str(file)) as cache:
        assert await cache.warm(source.fetch) == 5
        assert sorted((ask.client.tenant, ask.endpoint.name, ask.stream) for ask in source.asks) == [
            ("t", "CHAT", False), ("t", "CHAT", False), ("u", "CHAT", False), ("u", "CHAT", True),
            ("u", "EMBEDDINGS", False),
        ]  # fmt: skip
        for tenant in ("t", "u"):
            kept = await cache.find(make_ask(chat("for all"), tenant=tenant), 1_000_000.0)
            assert kept is not None
            assert kept.age == "fresh"
        assert await cache.find(make_ask(chat("for u"), tenant="t"), 1_000_000.0) is None
        kept = await cache.find(make_ask(chat("warm", temperature=1), headers={"X-Cache": "keep"}), 1_000_000.0)
        assert kept is not None
    async with opened(tmp_path, warm_file=str(file)) as cache:
        assert await cache.warm(source.fetch) == 0  # all of it is on disk
    assert len(source.asks) == 5


BAD = {
    "no JSON": b"{",
    "no request": {"tenant": "t"},
    "request is text": {"body": "hello"},
    "no such tenant": {"tenant": "x", "body": chat()},
    "no such endpoint": {"endpoint": "/files", "body": chat()},
    "too long": {"body": chat("x" * 70_000)},
}


@pytest.mark.parametrize("row", BAD.values(), ids=BAD.keys())
def test_bad_lines_are_left_out_and_told_of(row: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = read_lines(lines(row, {"body": chat()}), "warm.jsonl", ["t"])
    assert len(found) == 1
    assert (found[0].tenants, found[0].recipe.endpoint) == (["t"], Endpoint.CHAT)
    told = capsys.readouterr().out
    assert "warm.jsonl" in told
    assert "line 1" in told


async def test_requests_that_are_none_and_upstreams_that_fail_stop_nothing(tmp_path: Path) -> None:
    file = tmp_path / "warm.jsonl"
    file.write_bytes(lines({"tenant": "t", "body": {"model": 5}}, *({"body": chat(f"{n}")} for n in range(20))))
    source = Source(fail=Unreachable("connect", {}))
    async with opened(tmp_path, warm_file=str(file)) as cache:
        assert await cache.warm(source.fetch) == 0
    assert len(source.asks) == 40
    async with opened(tmp_path, warm_file=str(tmp_path / "missing")) as cache:
        assert await cache.warm(source.fetch) == 0


async def test_a_slow_upstream_does_not_keep_the_gateway_from_being_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_warmup, "WARM_S", 0.2)
    file = tmp_path / "warm.jsonl"
    file.write_bytes(lines(*({"tenant": "t", "body": chat(f"{n}")} for n in range(20))))
    begun: list[Ask] = []

    async def never(ask: Ask) -> Answer:
        begun.append(ask)
        await asyncio.sleep(3600)
        raise AssertionError

    async with opened(tmp_path, warm_file=str(file)) as cache:
        assert await cache.warm(never) == 0
        assert len(begun) == 4


async def test_from_a_neighbour_come_its_hottest_requests_of_that_key(tmp_path: Path) -> None:
    asked: list[web.Request] = []
    async with opened(tmp_path / "a") as neighbour:
        source = Source()
        for n in range(4):
            for tenant in ("t", "u"):
                ask = make_ask(chat(f"{tenant} {n}"), tenant=tenant)
                await neighbour.fetch(ask, source.fetch)
                for _ in range(n):
                    await neighbour.find(ask, 1_000_000.0)

        async def hot_keys(request: web.Request) -> web.Response:
            asked.append(request)
            if request.headers.get("Authorization") != f"Bearer {KEY}":
                return web.Response(status=401)
            return web.Response(body=neighbour.hottest("t", 2))

        key_file = tmp_path / "key"
        key_file.write_text(KEY + "\n")
        key_file.chmod(0o600)
        source = Source()
        async with serving(hot_keys) as url:
            fields = {"neighbours": [url, "http://127.0.0.1:1"], "neighbour_key_file": str(key_file)}
            async with opened(tmp_path / "b", **fields) as cache:
                assert await cache.warm(source.fetch) == 2
                kept = await cache.find(make_ask(chat("t 3")), 1_000_000.0)
                assert kept is not None
    assert sorted(ask.fields["messages"][0]["content"] for ask in source.asks) == ["t 2", "t 3"]
    assert {ask.client.tenant for ask in source.asks} == {"t"}
    assert [request.query["count"] for request in asked] == [str(io_warmup.NEIGHBOUR_KEYS)]


@pytest.mark.parametrize("answer", ["401", "redirect", "long", "nonsense"])
async def test_a_neighbour_that_misbehaves_is_left(
    tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(io_warmup, "MAX_SENT_BYTES", 1 << 20)
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    elsewhere: list[str] = []

    async def other(request: web.Request) -> web.Response:
        elsewhere.append(request.headers.get("Authorization", ""))
        return web.Response()

    async with serving(other) as target:

        async def misbehave(_request: web.Request) -> web.StreamResponse:
            if answer == "401":
                return web.Response(status=401)
            if answer == "redirect":
                raise web.HTTPFound(f"{target}/v1/hot-keys")
            return web.Response(body=b"x" * (2 << 20) if answer == "long" else b"\xff\x00{}\n")

        source = Source()
        async with serving(misbehave) as url:
            fields = {"neighbours": [url + "/v1"], "neighbour_key_file": str(key_file)}
            async with opened(tmp_path / "b", **fields) as cache:
                assert await cache.warm(source.fetch) == 0
    assert source.asks == []
    assert elsewhere == []  # the key is not carried to where a redirect points
    told = capsys.readouterr().out
    assert ("cache_warm_lines_left_out" if answer == "nonsense" else "cache_neighbour_failed") in told
    assert KEY not in told


async def test_nobody_without_a_key_reads_what_others_without_one_ask(tmp_path: Path) -> None:
    config = infer_config(str(tmp_path)).model_copy(update={"anonymous": True})
    assert Keys(config).find(None).client.tenant == ANONYMOUS_TENANT
    assert tenants_of(config) == [ANONYMOUS_TENANT, "t", "u"]
    async with opened(tmp_path) as cache:
        for tenant in (ANONYMOUS_TENANT, "t"):
            ask = make_ask(tenant=tenant)
            await cache.fetch(ask, Source().fetch)
        assert cache.hottest(ANONYMOUS_TENANT, 10) == b""
        assert cache.hottest("t", 10).count(b"\n") == 1
