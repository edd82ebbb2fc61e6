"""`local-infer check`, the cache's part: Redis, the warm file and the neighbours, tried as the gateway will use them."""

from __future__ import annotations

import asyncio

import aiohttp

from core.config_infer import InferConfig
from core.errors import NearpathError
from local_infer.cache.io_cache_redis import RedisCache
from local_infer.cache.io_warmup import MAX_LINES, ask_neighbour, parse_lines, read_warm_file, tenants_of

Finding = tuple[bool, str, str]
"""(good, what was looked at, what was found)."""

_LIFETIME_S = 1.0
"""Nothing is written."""


async def check_cache(config: InferConfig) -> list[Finding]:
    """What would not work; none of it keeps the gateway from starting, and so nobody would notice."""
    return [*await _redis(config), *await _warm_file(config), *await _neighbours(config)]


async def _redis(config: InferConfig) -> list[Finding]:
    cache = config.cache
    if cache.redis is None:
        return []
    try:
        store = await RedisCache.open(cache.redis, cache.redis_password_file, _LIFETIME_S)
    except NearpathError as error:
        return [(False, "cache.redis", str(error))]
    trouble = store.trouble()
    await store.close()
    what = f"{cache.redis} cannot be asked ({trouble}): answers would be kept in memory only"
    return [(not trouble, "cache.redis", what if trouble else f"{cache.redis} answers")]


async def _warm_file(config: InferConfig) -> list[Finding]:
    file = config.cache.warm_file
    if file is None:
        return []
    try:
        data = await asyncio.to_thread(read_warm_file, file)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return [(False, "cache.warm_file", f"{file} cannot be read: {why}")]
    found, bad, seen = parse_lines(data, tenants_of(config))
    text = f"{len(found)} requests in {file}"
    if bad:
        text += f"; {len(bad)} lines are none, {bad[0]}"
    if seen > MAX_LINES:
        text += f"; only the first {MAX_LINES} lines are taken"
    return [(not bad and seen <= MAX_LINES, "cache.warm_file", text)]


async def _neighbours(config: InferConfig) -> list[Finding]:
    return list(await asyncio.gather(*(_neighbour(url, config) for url in config.cache.neighbours)))


async def _neighbour(url: str, config: InferConfig) -> Finding:
    name = f"neighbour {url}"
    try:
        await ask_neighbour(url, config, 1)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        why = str(error) or type(error).__name__
        if why in ("status 401", "status 403"):
            why += ": it does not take the key in neighbour_key_file"
        return False, name, f"does not tell its hot keys ({why})"
    return True, name, "tells its hot keys"
