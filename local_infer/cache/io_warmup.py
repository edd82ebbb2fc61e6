"""Fetching ahead: at the start from a file and from neighbours' hottest requests, later in idle time.

A line is a JSON object: `body` (the request), and if needed `endpoint` (`/chat/completions` if left out), `tenant` (if left
out: for every tenant of the configuration) and `keep` (true: keep it although temperature is above 0).
"""

from __future__ import annotations

import asyncio
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from core.config_infer import InferConfig
from core.io_log import get_logger
from local_infer.cache.cache_entry import MAX_REQUEST_BYTES, Entry
from local_infer.cache.follow import Recipe
from local_infer.model import Endpoint, Fetch

if TYPE_CHECKING:
    from local_infer.cache.io_cache import Cache

ANONYMOUS_TENANT = "_anonymous"
"""As in `keys.py`."""

WARM_S = 60.0
"""A gateway is ready after this time, with whatever it has by then."""

MAX_LINES = 10_000
MAX_SENT_BYTES = 8 << 20
"""Of hot requests told a neighbour: 500 of 16 KiB."""

NEIGHBOUR_KEYS = 500
"""Asked of each neighbour: each costs a request to an upstream."""

_AT_ONCE = 4
_TICK_S = 0.25
_NEIGHBOUR_S = 10.0
_MAX_BYTES = 64 << 20
_LINES_READ = 4
"""Times as many lines are looked at as may be taken: the rest are empty, or the file is none."""

_NO_LINE_ENDS = bytes.maketrans(b"\r\n", b"  ")
_log = get_logger("cache")


@dataclass(frozen=True, slots=True)
class Line:
    """A request to fetch, for these tenants."""

    tenants: Sequence[str]
    recipe: Recipe


def write_lines(entries: Iterable[Entry]) -> bytes:
    """The requests of entries, a line each, up to MAX_SENT_BYTES."""
    lines, left = [], MAX_SENT_BYTES
    for entry in entries:
        fields: dict[str, Any] = {"endpoint": entry.endpoint.value, "tenant": entry.tenant}
        if entry.opted_in:
            fields["keep"] = True
        head = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        # Not parsed: that would stop everybody for a second. Line ends stand between the parts of JSON only, never within.
        line = head[:-1] + b',"body":' + entry.request.translate(_NO_LINE_ENDS) + b"}\n"
        left -= len(line)
        if left < 0:
            break
        lines.append(line)
    return b"".join(lines)


def read_lines(
    data: bytes, source: str, tenants: Sequence[str], most: int = MAX_LINES, *, named: bool = False
) -> list[Line]:
    """The requests in JSON lines, `most` at most; lines that are none are left out and told of once.

    `named`: a line must name its tenant. Others are for all tenants, which costs a request each.
    """
    found, bad, seen = parse_lines(data, tenants, most, named=named)
    if bad:
        _log.warning(
            "cache_warm_lines_left_out", source=source, lines=len(bad), first=bad[0], fix="correct these lines"
        )
    if seen > most:
        _log.warning("cache_warm_lines_too_many", source=source, lines=data.count(b"\n"), taken=most)
    return found


def parse_lines(
    data: bytes, tenants: Sequence[str], most: int = MAX_LINES, *, named: bool = False
) -> tuple[list[Line], list[str], int]:
    """As `read_lines`: (the requests, what is wrong with lines that are none, how many lines were looked at)."""
    found: list[Line] = []
    bad: list[str] = []
    seen = 0
    # One line at a time: millions of empty ones must not become a list.
    for number, line in enumerate(islice(io.BytesIO(data), _LINES_READ * most), 1):
        if not line.strip():
            continue
        seen += 1
        if seen > most:
            break
        try:
            one = _read_line(line.rstrip(b"\r\n"), tenants)
            if named and len(one.tenants) != 1:
                raise ValueError("names no tenant")
            found.append(one)
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    return found, bad, seen


def _read_line(line: bytes, tenants: Sequence[str]) -> Line:
    if len(line) > MAX_REQUEST_BYTES:
        raise ValueError(f"longer than {MAX_REQUEST_BYTES} bytes")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is no JSON") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("body"), dict):
        raise ValueError("has no object `body`, the request")
    tenant = fields.get("tenant")
    if tenant is not None and tenant not in tenants:
        raise ValueError(f"there is no tenant {str(tenant)[:80]!r} in `keys`")
    try:
        endpoint = Endpoint(fields.get("endpoint", Endpoint.CHAT.value))
    except ValueError:
        raise ValueError(f"`endpoint` must be one of {', '.join(each.value for each in Endpoint)}") from None
    body = json.dumps(fields["body"], ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    recipe = Recipe(b"", tenant or "", endpoint, str(fields["body"].get("model")), body, fields.get("keep") is True)
    return Line([tenant] if tenant is not None else tenants, recipe)


def tenants_of(config: InferConfig) -> list[str]:
    """All tenants of a configuration."""
    tenants = {key.tenant or name for name, key in config.keys.items()}
    return sorted(tenants | ({ANONYMOUS_TENANT} if config.anonymous else set()))


async def warm(cache: Cache, config: InferConfig, fetch: Fetch) -> int:
    """Fetch what the file and the neighbours name and is not kept, within WARM_S; how many answers were kept."""
    lines = await _all_lines(config)
    queue = [(tenant, line.recipe) for line in lines for tenant in line.tenants]
    queue.reverse()
    kept = 0

    async def work() -> None:
        nonlocal kept
        while queue:
            tenant, recipe = queue.pop()
            if await _fetch_one(cache, fetch, tenant, recipe):
                kept += 1  # not `kept += await`: that would add to what was before the wait

    workers = [asyncio.create_task(work()) for _ in range(min(_AT_ONCE, len(queue)))]
    try:
        if workers:
            await asyncio.wait(workers, timeout=WARM_S)
    finally:
        for worker in workers:
            worker.cancel()
        for result in await asyncio.gather(*workers, return_exceptions=True):
            if isinstance(result, Exception):
                raise result
    if lines:
        _log.info("cache_warmed", requests=len(lines), kept=kept, not_tried=len(queue))
    return kept


async def _fetch_one(cache: Cache, fetch: Fetch, tenant: str, recipe: Recipe) -> bool:
    ask = cache.ask_again(Recipe(b"", tenant, recipe.endpoint, recipe.model, recipe.request, recipe.opted_in))
    if ask is None or await cache.has_fresh(ask):
        return False
    task = cache.begin_ahead(ask, fetch, "warm")
    if task is None:
        return False
    await asyncio.wait([task])
    return await cache.has_fresh(ask)


async def _all_lines(config: InferConfig) -> list[Line]:
    tenants = tenants_of(config)
    lines: list[Line] = []
    if config.cache.warm_file is not None:
        try:
            data = await asyncio.to_thread(read_warm_file, config.cache.warm_file)
            lines += read_lines(data, config.cache.warm_file, tenants)
        except (OSError, ValueError) as error:
            _log.error("cache_warm_file_failed", file=config.cache.warm_file, why=str(error), fix="see cache.warm_file")
    answers = await asyncio.gather(*(_hottest_of(url, config) for url in config.cache.neighbours))
    for url, data in zip(config.cache.neighbours, answers, strict=True):
        lines += read_lines(data, url, tenants, NEIGHBOUR_KEYS, named=True)
    return lines


def read_warm_file(file: str) -> bytes:
    """What is in it; OSError or ValueError when it cannot be used."""
    with Path(file).open("rb") as handle:
        data = handle.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"is longer than {_MAX_BYTES >> 20} MiB")
    return data


def _read_key(file: str) -> str:
    with Path(file).open("rb") as handle:
        if os.fstat(handle.fileno()).st_mode & 0o077:
            _log.warning("cache_key_file_open", file=file, fix=f"chmod 600 {file}")
        return handle.read(1024).decode("ascii").strip()


async def _hottest_of(url: str, config: InferConfig) -> bytes:
    """The hottest requests of a gateway; nothing when it cannot be asked, which the log tells."""
    try:
        return await ask_neighbour(url, config, NEIGHBOUR_KEYS)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        _log.warning("cache_neighbour_failed", neighbour=url, why=str(error) or type(error).__name__)
        return b""


async def ask_neighbour(url: str, config: InferConfig, count: int) -> bytes:
    """Its `count` hottest requests; ClientError, OSError or ValueError when it does not tell."""
    where = url.rstrip("/")
    where += "/hot-keys" if where.endswith("/v1") else "/v1/hot-keys"
    headers = {"Accept-Encoding": "identity"}
    if config.cache.neighbour_key_file is not None:
        key = await asyncio.to_thread(_read_key, config.cache.neighbour_key_file)
        headers["Authorization"] = f"Bearer {key}"
    timeout = aiohttp.ClientTimeout(total=_NEIGHBOUR_S, connect=_NEIGHBOUR_S / 2)
    async with (
        # Not decompressed: what is small on the way could be anything here.
        aiohttp.ClientSession(timeout=timeout, trust_env=False, auto_decompress=False) as session,
        # A redirect would carry the key elsewhere.
        session.get(where, params={"count": str(count)}, headers=headers, allow_redirects=False) as response,
    ):
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        data = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            data += chunk
            if len(data) > MAX_SENT_BYTES:
                raise ValueError(f"more than {MAX_SENT_BYTES >> 20} MiB")
        return bytes(data)


async def work_idle(cache: Cache, fetch: Fetch, budget: Callable[[], bool]) -> None:
    """For ever: when `budget()` allows it, fetch what the cache wants ahead, one after the other."""
    while True:
        await asyncio.sleep(_TICK_S)
        try:
            while budget() and (wanted := cache.next_ahead()) is not None:
                recipe, kind = wanted
                ask = cache.ask_again(recipe)
                task = None if ask is None else cache.begin_ahead(ask, fetch, kind)
                if task is not None:
                    await asyncio.wait([task])
        except Exception as error:
            # Fetching ahead is never worth a failure; but a silent end would be found by nobody.
            _log.error("cache_idle_failed", why=repr(error))
            await asyncio.sleep(_TICK_S * 40)
