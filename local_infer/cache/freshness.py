"""What a kept answer is good for at its age, and what Cache-Status (RFC 9211) says of it.

Times are on the anchored clock, which begins anew at each start: an entry may seem to be from the future after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.config_infer import Cache
from local_infer.model import Age, CacheWish

CLOCK_SLACK_S = 60.0
"""An entry from further in the future was written by a wrong clock: its age is not known, so it is only for emergencies."""

Forward = Literal["miss", "stale", "request", "bypass"]
"""Why a request was forwarded (RFC 9211 2.2)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ttl_s` is what is left of freshness, below 0 when it is over."""

    age: Age
    age_s: float
    ttl_s: float


def judge(born_s: float, now: float, config: Cache, wish: CacheWish) -> Verdict | None:
    """What an answer born at `born_s` is good for; None: for nothing, or the client wants none that was kept."""
    if not wish.read:
        return (
            None  # RFC 9111 5.2.1.4: no-cache, "MUST NOT be used without successful validation", and we cannot validate
        )
    age_s = max(0.0, now - born_s)
    ttl_s = config.fresh_for - age_s
    if born_s - now > CLOCK_SLACK_S:
        return Verdict("stale", 0.0, min(0.0, ttl_s))
    if age_s > lifetime_s(config):
        return None
    if wish.max_age_s is not None and age_s > wish.max_age_s:
        # RFC 9111 5.2.1.1: the client prefers none older. When upstreams fail it may still get it, marked.
        return Verdict("stale", age_s, min(ttl_s, wish.max_age_s - age_s))
    if ttl_s >= 0:
        return Verdict("fresh", age_s, ttl_s)
    age: Age = "revalidate" if age_s <= config.fresh_for + config.revalidate_for else "stale"
    return Verdict(age, age_s, ttl_s)


def lifetime_s(config: Cache) -> float:
    """The age after which an answer is of no use at all."""
    return config.fresh_for + config.revalidate_for + config.stale_for


def refresh_due(born_s: float, now: float, config: Cache) -> bool:
    """Whether an entry is in the last tenth of its freshness, and is better fetched again before somebody waits for it."""
    left_s = config.fresh_for - (now - born_s)
    return 0 <= left_s <= config.fresh_for / 10


def hit_status(verdict: Verdict) -> str:
    """Cache-Status of a kept answer. `hit` and `fwd` exclude each other (RFC 9211 2.2): staleness only shows in `ttl`."""
    return f"hit; ttl={int(verdict.ttl_s // 1)}"


def forward_status(why: Forward, *, stored: bool = False, collapsed: bool = False) -> str:
    """Cache-Status of an answer that came from an upstream; `stored` and `collapsed` are RFC 9211 2.5 and 2.6."""
    return f"fwd={why}{'; stored' if stored else ''}{'; collapsed' if collapsed else ''}"


def cache_word(status: str) -> str:
    """What a Cache-Status of ours says in a word: `hit`, or why it was forwarded, with `+shared` when another asked."""
    words = [word.strip() for word in status.split(";")]
    if "hit" in words:
        return "hit"
    forwarded = next((word.removeprefix("fwd=") for word in words if word.startswith("fwd=")), "none")
    return f"{forwarded}+shared" if "collapsed" in words else forwarded
