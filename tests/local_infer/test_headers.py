"""Headers say where an answer comes from, and tell nothing of upstreams and their accounts."""

from __future__ import annotations

from typing import Any

import pytest

from core.config_infer import InferConfig
from local_infer.api.headers import answer_headers, error_headers, visible_headers
from local_infer.fault import RATE_LIMIT, ApiError
from local_infer.model import Answer, Origin, Step


def config(**cache: Any) -> InferConfig:
    return InferConfig.model_validate(
        {
            "version": 1, "node": "node-1", "state_dir": "x", "listen": ["127.0.0.1:0"], "anonymous": True,
            "upstreams": {"a": {"url": "http://127.0.0.1/v1"}}, "cache": {"fresh_for": "1h", **cache},
        }
    )  # fmt: skip


def headers(origin: Origin, *, status: int = 200, given: dict[str, str] | None = None, **cache: Any) -> dict[str, str]:
    return answer_headers(Answer(status, given or {}, b"{}", origin), config(**cache))


def test_of_an_upstream_only_listed_headers_pass() -> None:
    seen = visible_headers(
        {
            "Content-Type": "application/json", "X-Request-ID": "theirs", "OpenAI-Organization": "acme",
            "x-ratelimit-remaining-requests": "3", "Set-Cookie": "a=b", "CF-Ray": "1", "Server": "x",
            "openai-processing-ms": "12", "Retry-After": "3",
        }
    )  # fmt: skip
    assert seen == {"content-type": "application/json", "openai-processing-ms": "12", "retry-after": "3"}
    # Once more at the door, whatever a part hands in; Retry-After only with an error.
    out = headers(Origin(Step.UPSTREAM, "east"), given={**seen, "set-cookie": "a=b", "openai-organization": "acme"})
    assert out == {
        "content-type": "application/json", "openai-processing-ms": "12", "Cache-Control": "no-store",
        "Server": "nearpath",
    }  # fmt: skip
    assert headers(Origin(Step.UPSTREAM, "east"), status=429, given=seen)["Retry-After"] == "3"


STEPS = {
    "upstream": (Origin(Step.UPSTREAM, "east", cache_status="fwd=miss"), "no-store", None, "fwd=miss", None),
    "upstream, kept": (
        Origin(Step.UPSTREAM, "east", cache_status="fwd=miss; stored"),
        "private, max-age=3600", None, "fwd=miss; stored", None,
    ),
    "fresh": (
        Origin(Step.CACHE, "east", age_s=600.9, cache_status="hit; ttl=2999"),
        "private, max-age=3600", "600", "hit; ttl=2999", None,
    ),
    "revalidate": (
        Origin(Step.CACHE, "east", age_s=3700, cache_status="hit; ttl=-100"), "no-cache", "3700", "hit; ttl=-100", None,
    ),
    "fresh, degraded": (
        Origin(Step.CACHE, "east", "timeout", 600, "hit; ttl=3000"),
        "no-store", "600", "hit; ttl=3000", "cache; timeout; 600",
    ),
    "stale": (
        Origin(Step.STALE, "east", "connect", 9000, "hit; ttl=-5400"),
        "no-store", "9000", "hit; ttl=-5400", "stale; connect; 9000",
    ),
    "retrieval": (
        Origin(Step.RETRIEVAL, "faq", "status 503", 86400.5), "no-store", "86400", None, "retrieval; status 503; 86400",
    ),
    "generation": (Origin(Step.GENERATION, "m", "connect"), "no-store", "0", None, "generation; connect; 0"),
    "generation by name": (Origin(Step.GENERATION, "m"), "no-store", None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS)
def test_each_step(case: str) -> None:
    origin, control, age, status, degraded = STEPS[case]
    out = headers(origin)
    assert out["Cache-Control"] == control
    assert out.get("Age") == age
    assert out.get("Cache-Status") == (f"node-1; {status}" if status else None)
    assert out.get("X-Degraded") == degraded


def test_shared_caches_get_their_share() -> None:
    fresh = Origin(Step.CACHE, "east", age_s=1)
    assert headers(fresh, shared="50%")["Cache-Control"] == "public, max-age=1800"
    assert headers(fresh, status=400, shared="50%")["Cache-Control"] == "no-store"


async def test_stream() -> None:
    async def events() -> Any:
        yield b""

    stream = events()
    out = answer_headers(Answer(200, {"content-type": "text/plain"}, stream, Origin(Step.UPSTREAM, "e")), config())
    assert out["content-type"] == "text/event-stream; charset=utf-8"
    assert out["X-Accel-Buffering"] == "no"
    await stream.aclose()


@pytest.mark.parametrize(("after_s", "told"), [(0.2, "1"), (2.0, "2"), (2.01, "3"), (None, None)])
def test_errors(after_s: float | None, told: str | None) -> None:
    out = error_headers(ApiError(429, RATE_LIMIT, "x", retry_after_s=after_s, headers={"x-more": "1"}))
    assert out.get("Retry-After") == told
    assert (out["Cache-Control"], out["x-more"]) == ("no-store", "1")
