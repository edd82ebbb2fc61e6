"""Kept answers in Redis instead of SQLite, by configuration: gateways that share one share their answers.

Redis bounds itself: entries expire with the lifetime of an answer, and `maxmemory` with an LRU policy is the operator's to
set, so `cache.disk` means nothing here. Whoever can write to it can put answers into clients' mouths: it must be as
protected as this gateway. When it fails, the gateway goes on without it and tries again after a while. What is no Redis
makes its client raise anything at all (AttributeError, ValueError), so every exception counts as a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from core.errors import NearpathError
from core.io_log import get_logger
from local_infer.cache.cache_entry import MAX_REQUEST_BYTES, Entry, pack, unpack

try:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError:  # the `infer` extra is not installed
    _installed = False
else:
    _installed = True

PREFIX = b"nearpath:cache:1:"

_ANSWER_S = 0.5
"""A look-up that takes longer is given up: an upstream is asked instead."""

_RETRY_S = 5.0
_QUEUED_BYTES = 16 << 20
_GROUP = 64
_CONNECTIONS = 64
_HEAD_BYTES = 1 << 16
_LRU = ("allkeys-lru", "allkeys-lfu", "volatile-lru", "volatile-lfu", "volatile-ttl", "allkeys-lrm", "volatile-lrm")


class RedisCache:
    """A Store in Redis. Open it with `await RedisCache.open(...)`; all methods are for one event loop."""

    def __init__(self, url: str, password: str | None, lifetime_s: float, max_entry_bytes: int = 1 << 20) -> None:
        self._url = url
        self._most_bytes = max_entry_bytes + MAX_REQUEST_BYTES + _HEAD_BYTES
        self._lifetime_s = max(1, math.ceil(lifetime_s))
        self._trouble = ""
        self._retry_s = 0.0
        self._waiting: dict[bytes, Entry] = {}
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        self._log = get_logger("cache")
        self.dropped = 0
        """Entries that were not written, because Redis was too slow or failed."""
        # One that waits: to be out of connections in a burst is no failure of Redis.
        pool = BlockingConnectionPool.from_url(
            url,
            password=password,
            timeout=_ANSWER_S,
            socket_timeout=_ANSWER_S,
            socket_connect_timeout=_ANSWER_S,
            retry=Retry(NoBackoff(), 0),
            max_connections=_CONNECTIONS,
            decode_responses=False,
        )
        self._redis: Redis = Redis.from_pool(pool)

    @classmethod
    async def open(
        cls, url: str, password_file: str | None, lifetime_s: float, max_entry_bytes: int = 1 << 20
    ) -> RedisCache:
        """Connect; NearpathError when the client or the password is missing, but not when Redis is away."""
        if not _installed:
            raise NearpathError(
                "cache.redis is set, but the Redis client is not installed", "install the `infer` extra"
            )
        password = None
        if password_file is not None:
            try:
                password = (await asyncio.to_thread(Path(password_file).read_text, "utf-8")).strip()
            except (OSError, ValueError) as error:
                raise NearpathError(f"cannot read {password_file}: {error}", "see cache.redis_password_file") from None
        store = cls(url, password, lifetime_s, max_entry_bytes)
        await store._look()
        return store

    async def _look(self) -> None:
        """Tell when nothing bounds the memory of Redis."""
        try:
            memory = await self._redis.info("memory")
        except Exception as error:
            self._fail(error)
            return
        if not memory.get("maxmemory") or memory.get("maxmemory_policy") not in _LRU:
            self._log.warning(
                "cache_redis_unbounded",
                redis=self._url,
                policy=memory.get("maxmemory_policy"),
                fix="set maxmemory and maxmemory-policy allkeys-lru in its configuration",
            )

    def may_have(self, key: bytes) -> bool:
        """Whether to ask: other gateways write too, so the key tells nothing."""
        return key in self._waiting or not self._resting()

    def trouble(self) -> str:
        """Why Redis cannot be used now."""
        return self._trouble

    async def get(self, key: bytes) -> Entry | None:
        """The entry of `key`; None also when Redis fails or is slow."""
        entry = self._waiting.get(key)
        if entry is not None or self._closed or self._resting():
            return entry
        try:
            # The socket's time-outs do not hold while all connections are in use.
            async with asyncio.timeout(_ANSWER_S):
                # Not `get`: somebody else's value under our name may be of 512 MB.
                record = await self._redis.getrange(PREFIX + key, 0, self._most_bytes)
        except Exception as error:
            self._fail(error)
            return None
        self._works()
        if not isinstance(record, bytes) or not record:
            return None
        entry = unpack(key, record)
        if entry is None:
            self._log.warning("cache_entry_damaged", redis=self._url)
        return entry

    def put(self, entry: Entry) -> None:
        """Keep an entry: written by the next group."""
        if self._closed or self._resting() or self._waiting_bytes + entry.size_bytes > _QUEUED_BYTES:
            self.dropped += 1
            return
        old = self._waiting.pop(entry.key, None)
        self._waiting[entry.key] = entry
        self._waiting_bytes += entry.size_bytes - (0 if old is None else old.size_bytes)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="cache-redis")

    def touch(self, key: bytes) -> None:
        """Nothing: Redis counts its reads itself."""

    async def recent(self, bytes_at_most: int) -> Sequence[Entry]:
        """None: memory fills as requests come."""
        return ()

    async def settle(self) -> None:
        """Wait until all that was put is written, or given up."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def close(self) -> None:
        """Write what waits, and close."""
        self._closed = True
        await self.settle()
        with contextlib.suppress(Exception):
            await self._redis.aclose()

    async def _write(self) -> None:
        while self._waiting:
            group = list(self._waiting.values())[:_GROUP]
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for entry in group:
                        pipeline.set(PREFIX + entry.key, pack(entry), ex=self._lifetime_s)
                    await pipeline.execute()
            except Exception as error:
                self._fail(error)
                self.dropped += len(self._waiting)
                self._waiting.clear()
                self._waiting_bytes = 0
                return
            self._works()
            for entry in group:
                if self._waiting.get(entry.key) is entry:
                    self._waiting_bytes -= self._waiting.pop(entry.key).size_bytes

    def _resting(self) -> bool:
        return bool(self._trouble) and time.monotonic() < self._retry_s

    def _fail(self, error: Exception) -> None:
        why = str(error) or type(error).__name__
        if not self._trouble:
            self._log.error("cache_redis_failed", redis=self._url, why=why, fix="the gateway goes on without it")
        self._trouble, self._retry_s = why, time.monotonic() + _RETRY_S

    def _works(self) -> None:
        if self._trouble:
            self._log.info("cache_redis_works_again", redis=self._url)
        self._trouble = ""
