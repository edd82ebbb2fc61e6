"""What could be put into the cache, or be done through it: garbage beside it, neighbours that lie, money, memory."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from local_infer.cache import io_cache_redis
from local_infer.cache.cache_entry import Entry, _check, pack, unpack
from local_infer.cache.io_cache import MOST_BEHIND, Cache
from local_infer.cache.io_cache_disk import DiskCache
from local_infer.cache.io_cache_redis import PREFIX, RedisCache
from local_infer.cache.io_warmup import MAX_SENT_BYTES, NEIGHBOUR_KEYS, read_lines
from local_infer.ladder.steps import Ladder
from local_infer.model import Answer, Ask, Endpoint
from tests.local_infer.cache_asks import ScriptedClock, Source, answered, chat, infer_config, make_ask, whole
from tests.local_infer.scripted_ladder import Prover, Upstreams
from tests.local_infer.test_io_cache_redis import password_file, url_of
from tests.local_infer.test_io_cache_redis import serving as redis_serving
from tests.local_infer.test_io_warmup import serving as neighbour_serving

KEY = bytes(range(32))
ENTRY = Entry(KEY, "t", Endpoint.CHAT, "m", "east", "whole", 5.0, (("content-type", "text/plain"),), b"body", b"{}")
needs_redis = pytest.mark.skipif(
    not io_cache_redis._installed, reason="the Redis client (extra `infer`) is not installed"
)


@asynccontextmanager
async def opened(folder: Path, **fields: Any) -> AsyncIterator[tuple[Cache, ScriptedClock, CollectorRegistry]]:
    clock, registry = ScriptedClock(), CollectorRegistry()
    cache = await Cache.start(infer_config(str(folder), **fields), clock, registry)
    try:
        yield cache, clock, registry
    finally:
        await cache.close()


# -- money


async def test_who_gets_kept_answers_cannot_have_any_number_of_requests_made_behind(tmp_path: Path) -> None:
    async with opened(tmp_path, disk="0B") as (cache, clock, registry):
        asks = [make_ask(chat(f"q{i}")) for i in range(3 * MOST_BEHIND)]
        for ask in asks:
            await cache.fetch(ask, Source().fetch)
        clock.now += 120  # all are to be revalidated
        open_now = most = 0
        gate = asyncio.Event()

        async def slow(ask: Ask) -> Answer:
            nonlocal open_now, most
            open_now += 1
            most = max(most, open_now)
            await gate.wait()
            open_now -= 1
            return answered(whole("new"))

        for ask in asks:
            kept = await cache.find(ask, clock.now)
            assert kept is not None
            assert kept.age == "revalidate"
            cache.refresh(ask, slow)
        await asyncio.sleep(0.01)
        assert most == MOST_BEHIND
        skipped = {"kind": "behind", "outcome": "skipped"}
        assert registry.get_sample_value("local_infer_cache_ahead_total", skipped) == 2 * MOST_BEHIND
        gate.set()
        await asyncio.sleep(0.01)
        cache.refresh(asks[-1], slow)  # there is room again
        await asyncio.sleep(0.01)
        kept = await cache.find(asks[-1], clock.now)
        assert kept is not None
        assert kept.age == "fresh"


# -- what is learned


@pytest.mark.parametrize(
    ("body", "learned"),
    [
        (b'{"model":"gpt","messages":[{"role":"user","content":"refund?"}]}', 1),
        (
            b'{"model":"gpt","messages":[{"role":"user","content":"x"}],"messages":[{"role":"user","content":"refund?"}]}',
            0,
        ),
        (b'{"model":"gpt","messages":[{"role":"user","content":"x","content":"refund?"}]}', 0),
        (b'{"model":"gpt","messages":[{"role":"user","content":"refund?"}],"n":2,"n":1}', 0),
    ],
)
async def test_a_request_that_can_be_read_in_two_ways_teaches_nothing(
    body: bytes, learned: int, tmp_path: Path
) -> None:
    config = InferConfig.model_validate(
        {
            "version": 1, "state_dir": str(tmp_path), "listen": ["127.0.0.1:0"], "anonymous": True,
            "upstreams": {"a": {"url": "http://127.0.0.1:1/v1"}}, "ladder": {"shadow": "100%"},
        }
    )  # fmt: skip
    prover, clock = Prover(), ScriptedClock()
    async with opened(tmp_path) as (cache, _clock, registry):
        spawned: list[Any] = []
        ladder = Ladder(config, Upstreams(), cache, [], prover, clock, Random(1), registry, spawn=spawned.append)
        await ladder.answer(make_ask(body))
        for work in spawned:
            await work
    assert len(prover.seen) == learned


# -- neighbours


async def test_a_neighbour_can_make_us_ask_only_so_much(tmp_path: Path) -> None:
    def line(number: int, **more: Any) -> bytes:
        return json.dumps({"body": chat(f"q{number}"), **more}).encode() + b"\n"

    answer = b""

    async def hot_keys(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=answer, headers={"Content-Encoding": "gzip"} if answer[:2] == b"\x1f\x8b" else {})

    async with neighbour_serving(hot_keys) as url:
        for name, given, expected in (
            ("empty lines", b"\n" * (MAX_SENT_BYTES - 1), 0),
            ("too long", b"\n" * (MAX_SENT_BYTES + 1), 0),
            ("a bomb", gzip.compress(line(1, tenant="t")), 0),
            ("for every tenant", line(1) + line(2, tenant="t"), 1),
            ("too many", b"".join(line(i, tenant="t") for i in range(NEIGHBOUR_KEYS + 5)), NEIGHBOUR_KEYS),
        ):
            answer, source = given, Source()
            async with opened(tmp_path / name.replace(" ", "-"), neighbours=[url], disk="0B") as (
                cache,
                _clock,
                _registry,
            ):
                assert await cache.warm(source.fetch) == expected, name
            assert len(source.asks) == expected, name


async def test_hot_requests_are_told_a_line_each_and_within_a_size(tmp_path: Path) -> None:
    async with opened(tmp_path, memory="64MiB", disk="0B") as (cache, _clock, _registry):
        pretty = json.dumps(chat("two\nlines\r\n"), indent=2).replace("\n", "\r\n").encode()
        await cache.fetch(make_ask(pretty), Source().fetch)
        told = cache.hottest("t", 10)
        assert told.count(b"\n") == 1
        (one,) = read_lines(told, "here", ["t", "u"], named=True)
        assert (one.tenants, json.loads(one.recipe.request)) == (["t"], chat("two\nlines\r\n"))
        for number in range(200):
            await cache.fetch(make_ask(chat(f"{number} {'x' * 60_000}")), Source().fetch)
        assert MAX_SENT_BYTES // 2 < len(cache.hottest("t", 10_000)) <= MAX_SENT_BYTES


# -- what lies beside: records, Redis, a locked disk


@pytest.mark.parametrize(
    "change",
    [
        {"born_s": "soon"}, {"born_s": float("inf")}, {"born_s": 10**400}, {"born_s": None}, {"tenant": 5}, {"model": []},
        {"name": None}, {"form": "odd"}, {"form": ["whole"]}, {"headers": [["a"]]}, {"headers": 5}, {"endpoint": "/x"},
        {"request_bytes": -1}, {"request_bytes": 1.5}, {"request_bytes": "2"},
    ],
)  # fmt: skip
def test_a_record_that_somebody_made_up_is_none(change: dict[str, Any]) -> None:
    record = pack(ENTRY)
    assert unpack(KEY, record) == ENTRY
    length = int.from_bytes(record[16:20], "big")
    head = json.dumps({**json.loads(record[20 : 20 + length]), **change}).encode()
    rest = len(head).to_bytes(4, "big") + head + ENTRY.request + ENTRY.body
    assert unpack(KEY, _check(KEY, rest) + rest) is None


@needs_redis
@pytest.mark.parametrize(
    "reply",
    [
        b"\x00\xff\xfe" * 100 + b"\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b":xx\r\n", b"$xx\r\n", b"$-5\r\n",
        b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*1\r\n" * 5000 + b":1\r\n", b"+" + b"a" * 200_000, b"%1\r\n+a\r\n+b\r\n",
        b":5\r\n", b",zz\r\n", b"=3\r\nabc\r\n", b"-WRONGTYPE no\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_redis_costs_the_cache_and_nothing_else(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            writer.write(reply)
        writer.close()

    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        server = await asyncio.start_unix_server(answer, f"{folder}/redis.sock")
        async with server:
            store = await RedisCache.open(f"unix://{folder}/redis.sock", None, 100.0)
            for _ in range(2):
                store._retry_s = 0.0  # as after its pause
                assert await store.get(KEY) is None
                store.put(ENTRY)
                await store.settle()
            assert store._writer is None or store._writer.exception() is None
            await store.close()


@needs_redis
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
async def test_a_burst_is_no_failure_of_redis_and_others_values_are_not_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with redis_serving(tmp_path):
        store = await RedisCache.open(url_of(tmp_path), password_file(tmp_path), 100.0, 4096)
        keys = [bytes([number]) * 32 for number in range(250)]
        assert await asyncio.gather(*(store.get(key) for key in keys)) == [None] * len(keys)
        assert store.trouble() == ""
        store.put(ENTRY)
        await store.settle()
        assert await store.get(KEY) == ENTRY
        await store._redis.set(PREFIX + KEY, b"x" * (32 << 20))
        read: list[int] = []

        def noting(key: bytes, record: bytes) -> Entry | None:
            read.append(len(record))
            return unpack(key, record)

        monkeypatch.setattr(io_cache_redis, "unpack", noting)
        assert await store.get(KEY) is None
        assert read[0] < 1 << 20
        await store.close()


async def test_a_locked_file_makes_nobody_wait_for_it(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite"
    store = await DiskCache.open(file, 1 << 20, 1e9, ScriptedClock())
    keys: Sequence[bytes] = [bytes([number]) * 32 for number in range(20)]
    for key in keys:
        store.put(replace(ENTRY, key=key))
    await store.settle()
    assert await store.get(keys[0]) is not None
    hang = asyncio.get_running_loop().create_future()

    async def never(*_args: object, **_kwargs: object) -> None:
        await hang  # as a disk that hangs, or a file that somebody has locked

    reader_call, store._reader.call = store._reader.call, never  # type: ignore[method-assign]
    async with asyncio.timeout(60):  # it hangs for ever
        assert await asyncio.gather(*(store.get(key) for key in keys)) == [None] * len(keys)
    assert "longer than" in store.trouble()
    store._reader.call = never  # type: ignore[method-assign]
    assert await store.get(keys[0]) is None  # at once, and nothing piles up
    store._reader.call = reader_call  # type: ignore[method-assign]
    store._read_again_s = 0.0
    assert await store.get(keys[0]) is not None
    assert store.trouble() == ""
    await store.close()
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("SELECT count(*) FROM entries").fetchone() == (20,)
    assert file.stat().st_mode & 0o777 == 0o600
