"""Freshness: what the sync stamps of one mirror say of it for one service.

| the stamps say                                  | then, for a service                                                   |
|-------------------------------------------------|-----------------------------------------------------------------------|
| `empty`, of its `tree` (without: of all trees)  | the mirror has nothing to serve: it leaves, whatever is asked         |
| nothing (no stamp, or none of its `tree`)       | not fresh, if it asks by `max_lag` or `min_version`                   |
| a lag, with the stamp's age above `max_lag`     | not fresh; a node that stopped reporting lags by the time since then  |
| a version below `min_version`                   | not fresh                                                             |
| `busy`, of any tree, not long ago               | goes behind the others, as one with a load above its limit does       |

Without `tree` the worst of all trees counts, and one empty tree is enough for not fresh. `syncing` and `stalled` are for
people: what counts is the lag.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from core.messages import SyncStamp
from policy.plan import ServicePlan

BUSY_FOR_S = 30.0
"""A word of `busy` counts this long: a node says so every few seconds, and one that died while busy is busy no more."""

STATES = ("fresh", "syncing", "stalled", "empty")
"""From good to bad; metrics show the place in this row."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """The word on one mirror for one service; `why` tells what is wrong when it is not `fresh`.

    `lag_s` (with the age of its stamp), `version`, `state` and `age_s` are the worst of the stamps that count, None and ""
    without any. `lately_busy` stays for the dwell time after `busy` ends.
    """

    fresh: bool = True
    empty: bool = False
    busy: bool = False
    lately_busy: bool = False
    lag_s: float | None = None
    version: int | None = None
    state: str = ""
    age_s: float | None = None
    why: str = ""


def lag_at(stamp: SyncStamp, now: float) -> float:
    """The lag as of `now`: a stamp ages, since what came after it may be missing."""
    return stamp.lag_s + max(0.0, now - stamp.taken_s)


def judge(
    stamps: Collection[SyncStamp], service: ServicePlan, now: float, busy_s: float = -math.inf, dwell_s: float = 0.0
) -> Freshness:
    """The word of all `stamps` of a mirror for `service` as of `now`; `busy_s` is when one of them last said `busy`."""
    busy = any(stamp.busy and now - stamp.taken_s <= BUSY_FOR_S for stamp in stamps)
    lately_busy = busy or now - busy_s < dwell_s
    mine = [stamp for stamp in stamps if service.tree is None or stamp.tree == service.tree]
    if not mine:
        why = f"no sync stamp{_of_tree(service)}" if service.asks_freshness else ""
        return Freshness(fresh=not why, busy=busy, lately_busy=lately_busy, why=why)
    lag_s = max(lag_at(stamp, now) for stamp in mine)
    version = min(stamp.version for stamp in mine)
    why = _fault(mine, service, lag_s, version)
    return Freshness(
        fresh=not why,
        empty=all(stamp.state == "empty" for stamp in mine),
        busy=busy,
        lately_busy=lately_busy,
        lag_s=lag_s,
        version=version,
        state=max((stamp.state for stamp in mine), key=STATES.index),
        age_s=max(0.0, now - min(stamp.taken_s for stamp in mine)),
        why=why,
    )


def _fault(mine: Collection[SyncStamp], service: ServicePlan, lag_s: float, version: int) -> str:
    empty = [stamp.tree for stamp in mine if stamp.state == "empty"]
    if len(empty) == len(mine):
        return f"its node says that it holds no content{_of_tree(service)}"
    if not service.asks_freshness:
        return ""
    if empty:
        return f"its node says that it holds no content of tree {min(empty)}"
    if service.max_lag_s is not None and lag_s > service.max_lag_s:
        return f"content lags {lag_s:.0f} s, more than max_lag {service.max_lag_s:g} s"
    if service.min_version is not None and version < service.min_version:
        return f"content is of version {version}, older than min_version {service.min_version}"
    return ""


def _of_tree(service: ServicePlan) -> str:
    return f" of tree {service.tree}" if service.tree else ""
