"""Response headers: what of an upstream's a client sees, and what is said about where an answer comes from.

Of an upstream's headers only listed ones pass: others name accounts, limits of our credentials, CDNs and cookies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from core.config_infer import InferConfig
from local_infer.fault import ApiError
from local_infer.model import Answer, Step

VISIBLE = frozenset({"content-type", "content-language", "openai-processing-ms", "openai-version", "x-should-retry"})
"""Upstream headers that a client gets; `retry-after` too, with an error."""

SERVER = "nearpath"
"""Not aiohttp's name and version: they help nobody but who looks for a hole."""

_LONGEST_VALUE = 1024

_JSON = "application/json"
_SSE = "text/event-stream; charset=utf-8"


def visible_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Of an upstream's headers (any case) those a client may see, names in lower case."""
    lower = {name.lower(): value for name, value in headers.items()}
    seen = {name: value for name, value in lower.items() if name in VISIBLE or name == "retry-after"}
    return {name: value for name, value in seen.items() if _fit_to_send(value)}


def _fit_to_send(value: str) -> bool:
    # A control character would break the whole answer when it is written, and a kept one each time it is asked for.
    return value.isascii() and value.isprintable() and len(value) <= _LONGEST_VALUE


def answer_headers(answer: Answer, config: InferConfig) -> dict[str, str]:
    """All headers of an answer but those of the connection, the key's limits and X-Request-Id.

    Cache-Status after RFC 9211, Age and Cache-Control after RFC 9111: `max-age` counts from the birth of the answer and Age
    is told, so what is left for a client is their difference (4.2).
    """
    origin = answer.origin
    # Looked at again: a kept answer's come from a disk or from Redis.
    headers = {name: value for name, value in answer.headers.items() if name in VISIBLE and _fit_to_send(value)}
    if answer.status >= 400 and "retry-after" in answer.headers:
        headers["Retry-After"] = answer.headers["retry-after"]
    if not isinstance(answer.body, bytes):
        headers["content-type"] = _SSE
        # nginx would collect the events of a stream otherwise.
        headers["X-Accel-Buffering"] = "no"
    elif "content-type" not in headers:
        headers["content-type"] = _JSON
    headers["Cache-Control"] = _cache_control(answer, config)
    headers["Server"] = SERVER
    if origin.cache_status:
        headers["Cache-Status"] = f"{config.node}; {origin.cache_status}"
    if origin.degraded:
        headers["X-Degraded"] = f"{origin.step.label}; {origin.reason}; {_seconds(origin.age_s)}"
        headers["Age"] = str(_seconds(origin.age_s))
    elif origin.step is Step.CACHE:
        headers["Age"] = str(_seconds(origin.age_s))
    return headers


def _cache_control(answer: Answer, config: InferConfig) -> str:
    origin = answer.origin
    if origin.degraded or answer.status != 200:
        return "no-store"
    if origin.step is Step.CACHE:
        return _fresh(config) if origin.age_s <= config.cache.fresh_for else "no-cache"
    # RFC 9211 2.5: `stored` says that this answer was kept just now.
    return _fresh(config) if "stored" in origin.cache_status else "no-store"


def _fresh(config: InferConfig) -> str:
    cache = config.cache
    if cache.shared is None:
        return f"private, max-age={int(cache.fresh_for)}"
    return f"public, max-age={int(cache.fresh_for * cache.shared)}"


def error_headers(error: ApiError) -> dict[str, str]:
    """Headers of an error of our own."""
    headers = {"content-type": _JSON, "Cache-Control": "no-store", "Server": SERVER, **error.headers}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return headers


def _seconds(age_s: float) -> int:
    return max(0, int(age_s))
