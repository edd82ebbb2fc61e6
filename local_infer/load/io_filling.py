"""The run before a run: no faults, as fast as it goes, until all that the gateway keeps within bounds is full.

What is bounded fills for hours at an everyday rate, and would look like a leak until then. The gateway's own metrics say
how full each store is (`..._full_ratio`).
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from local_infer.load.io_load import Load
from local_infer.load.io_processes import Watched

FULL_RATIO = 0.9
"""Of the fullest that it has been: a store that trims itself is never quite full."""
_LOOK_EVERY_S = 2.0
_FULL_RE = re.compile(r"local_infer_(\w+)_full_ratio")


@dataclass(frozen=True, slots=True)
class Filled:
    """How the stores were filled. `ratios`: how full each was at most, by its part and name."""

    seconds: float
    requests: int
    first_mb: float
    last_mb: float
    ratios: Mapping[str, float]
    broken_off: bool
    """By Ctrl-C."""
    bad: int = 0
    """Answers that were lost, or another's; `whys` tells of the first."""
    whys: Sequence[str] = ()

    @property
    def left(self) -> list[str]:
        """The stores that did not get full in time."""
        return sorted(name for name, ratio in self.ratios.items() if ratio < FULL_RATIO)


def fill(load: Load, metrics_url: str, watched: Watched) -> Filled:
    """Run `load` until all is full, or to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_fill(load, metrics_url, watched))


async def _fill(load: Load, metrics_url: str, watched: Watched) -> Filled:
    ratios: dict[str, float] = {}
    started, first_mb = time.monotonic(), watched.rss_mb()
    task = asyncio.create_task(load.run())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        while not task.done():
            await asyncio.wait([task], timeout=_LOOK_EVERY_S)
            try:
                async with session.get(metrics_url) as response:
                    now = full_ratios(await response.text())
            except (aiohttp.ClientError, OSError):
                if not watched.alive():
                    load.stop()
                    break
                continue  # too busy to say; it is asked again
            ratios = {name: max(ratio, ratios.get(name, 0.0)) for name, ratio in now.items()}
            if ratios and min(ratios.values()) >= FULL_RATIO:
                load.stop()
                break
    run = await task
    elapsed_s = time.monotonic() - started
    last_mb = watched.rss_mb()
    return Filled(elapsed_s, run.all.count, first_mb, last_mb, ratios, load.interrupted, run.all.bad, run.whys)


def full_ratios(text: str) -> dict[str, float]:
    """How full each store is, from the text of `/metrics`: `cache memory`, `retrieval verified`, ..."""
    found = {}
    for family in text_string_to_metric_families(text):
        match = _FULL_RE.fullmatch(family.name)
        for sample in family.samples if match else ():
            found[f"{match[1]} {sample.labels['store']}" if match else ""] = sample.value
    return found
