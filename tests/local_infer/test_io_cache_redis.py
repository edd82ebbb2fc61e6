"""Answers in Redis: a real redis-server on a Unix socket in the test's folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from core.errors import NearpathError
from local_infer.cache import io_cache_redis
from local_infer.cache.cache_entry import Entry, pack
from local_infer.cache.io_cache import Cache
from local_infer.cache.io_cache_redis import PREFIX, RedisCache
from local_infer.model import Endpoint
from tests.local_infer.cache_asks import ScriptedClock, Source, infer_config, make_ask

SERVER = shutil.which("redis-server")
pytestmark = [
    pytest.mark.skipif(SERVER is None, reason="redis-server is not installed"),
    pytest.mark.skipif(not io_cache_redis._installed, reason="the Redis client (extra `infer`) is not installed"),
]

PASSWORD = "sesame-open"
KEY = bytes(range(32))
ENTRY = Entry(
    KEY, "t", Endpoint.CHAT, "m", "east", "whole", 5.0, (("content-type", "application/json"),), b"body", b"{}"
)


def url_of(folder: Path) -> str:
    return f"unix://{folder}/redis.sock"


def launch(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    assert SERVER is not None
    command = [SERVER, "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--dir", str(folder), "--save", ""]
    return subprocess.Popen([*command, "--requirepass", PASSWORD, *options], stdout=subprocess.DEVNULL)


@asynccontextmanager
async def serving(folder: Path, *options: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    server = launch(folder, *options)
    try:
        async with asyncio.timeout(20):
            while True:  # until it answers
                try:
                    _, writer = await asyncio.open_unix_connection(f"{folder}/redis.sock")
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield server
    finally:
        server.send_signal(signal.SIGCONT)
        server.kill()
        server.wait()


def password_file(folder: Path) -> str:
    file = folder / "password"
    file.write_text(PASSWORD + "\n")
    return str(file)


async def test_kept_for_all_gateways_and_over_restarts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = password_file(tmp_path)
    async with serving(tmp_path, "--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"):
        one = await RedisCache.open(url_of(tmp_path), file, 100.4)
        two = await RedisCache.open(url_of(tmp_path), file, 100.4)
        assert one.may_have(KEY)
        assert await two.get(KEY) is None
        one.put(ENTRY)
        assert await one.get(KEY) == ENTRY
        await one.settle()
        assert await two.get(KEY) == ENTRY
        assert 0 < await one._redis.ttl(PREFIX + KEY) <= 101
        await one._redis.set(PREFIX + KEY, pack(replace(ENTRY, tenant="u"))[:-1])
        assert await two.get(KEY) is None  # damaged
        await one._redis.set(PREFIX + KEY[::-1], pack(ENTRY))
        assert await two.get(KEY[::-1]) is None  # of another key
        assert one.trouble() == two.trouble() == ""
        await one.close()
        await two.close()
    told = capsys.readouterr().out
    assert "unbounded" not in told
    assert PASSWORD not in told


async def test_the_gateway_goes_on_while_it_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(io_cache_redis, "_RETRY_S", 0.0)
    file = password_file(tmp_path)
    store = await RedisCache.open(url_of(tmp_path), file, 100.0)
    assert store.trouble() != ""
    store.put(ENTRY)
    await store.settle()
    assert (await store.get(KEY), store.dropped) == (None, 1)
    async with serving(tmp_path) as server:
        store.put(ENTRY)
        await store.settle()
        assert await store.get(KEY) == ENTRY
        assert store.trouble() == ""
        server.send_signal(signal.SIGSTOP)  # it hangs: connected, and no answer
        assert await store.get(KEY) is None
        assert store.trouble() != ""
        server.send_signal(signal.SIGCONT)
        assert await store.get(KEY) == ENTRY
        assert store.trouble() == ""
        another = await RedisCache.open(url_of(tmp_path), file, 100.0)
        assert "unbounded" in capsys.readouterr().out
        await another.close()
    await store.close()


async def test_a_wrong_or_missing_password_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NearpathError, match="redis_password_file"):
        await RedisCache.open(url_of(tmp_path), str(tmp_path / "missing"), 100.0)
    async with serving(tmp_path):
        store = await RedisCache.open(url_of(tmp_path), None, 100.0)
        assert "authenticate" in store.trouble()
        assert not store.may_have(KEY)  # not asked again for a while
        assert "cache_redis_failed" in capsys.readouterr().out
        await store.close()


async def test_the_cache_with_redis(tmp_path: Path) -> None:
    file = password_file(tmp_path)
    source = Source()
    async with serving(tmp_path):
        statuses = []
        for name in ("a", "b"):
            config = infer_config(str(tmp_path / name), redis=url_of(tmp_path), redis_password_file=file)
            cache = await Cache.start(config, ScriptedClock(), CollectorRegistry())
            for tenant in ("t", "u"):
                ask = make_ask(tenant=tenant)
                kept = await cache.find(ask, 1_000_000.0)
                answer = kept.answer if kept is not None else await cache.fetch(ask, source.fetch)
                statuses.append(answer.origin.cache_status)
            await cache.close()
        assert sorted(os.listdir(tmp_path)) == ["password", "redis.sock"]
        assert statuses == ["fwd=miss; stored"] * 2 + ["hit; ttl=100"] * 2
    assert len(source.asks) == 2
