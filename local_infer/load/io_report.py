"""The result of a load run: a table for people, one object for JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from local_infer.load.fault_turns import ROUND_S
from local_infer.load.io_filling import Filled
from local_infer.load.io_load import Run
from local_infer.load.slope import Slope, fit_slope
from local_infer.load.tally import Tally, percentiles_ms
from local_infer.load.verdict import OUTCOMES

_ROWS = ("p50", "p95", "p99")
_LATE_MS = 20.0
_WARM_SHARE = 0.25
"""The first part of a run (a round of faults at most) is not in the slope: pools open, allocators find their size."""


def slope_of(run: Run, *, faults: bool) -> Slope | None:
    """The slope of the gateway's memory after the warm-up; None of a run that is too short, or was not watched."""
    warm_s = _WARM_SHARE * run.elapsed_s
    if faults:
        return fit_slope(run.samples, min(warm_s, ROUND_S), ROUND_S)
    return fit_slope(run.samples, warm_s)


def as_json(
    run: Run, facts: dict[str, Any], slope: Slope | None = None, filled: Filled | None = None
) -> dict[str, Any]:
    """One object: `facts`, then the sums of all requests and of each kind, then what the gateway took."""
    return {
        **facts,
        "filling": None if filled is None else asdict(filled),
        "elapsed_s": round(run.elapsed_s, 2),
        **run.all.summary(run.elapsed_s),
        "lost": run.all.outcomes["lost"],
        "crossed": run.all.outcomes["crossed"],
        "unsent": run.unsent,
        "late_ms": percentiles_ms(run.late_s),
        "kinds": {kind: tally.summary(run.elapsed_s) for kind, tally in sorted(run.kinds.items())},
        "gateway": _cost(run, slope),
        "own_cpu_cores": round(run.own_cpu_s / run.elapsed_s, 3),
    }


def _cost(run: Run, slope: Slope | None) -> dict[str, float | None]:
    """CPU (cores, microseconds a request) and memory of the gateway; None where it was not watched."""
    memory = [mb for _at_s, mb in run.samples]
    cpu_s = run.cpu_s
    return {
        "cpu_cores": None if cpu_s is None else round(cpu_s / run.elapsed_s, 4),
        "cpu_us_per_request": None if cpu_s is None else round(cpu_s / max(1, run.all.count) * 1e6, 1),
        "rss_first_mb": round(memory[0], 1) if memory else None,
        "rss_last_mb": round(memory[-1], 1) if memory else None,
        "rss_most_mb": round(max(memory), 1) if memory else None,
        "rss_slope_mb_per_hour": None if slope is None else round(slope.mb_per_hour, 2),
        "rss_slope_error_mb_per_hour": None if slope is None else round(slope.error_mb_per_hour, 2),
        "rss_slope_chance_mb_per_hour": None if slope is None else round(slope.chance_mb_per_hour, 2),
    }


def print_report(run: Run, facts: dict[str, Any], slope: Slope | None = None, filled: Filled | None = None) -> None:
    """Tables: outcomes, times, steps and caches; then the gateway's cost."""
    console = Console()
    rate = f"{facts['rate']:g} requests/s" if facts["rate"] else "as fast as it goes"
    console.print(
        f"{facts['profile']}, {run.elapsed_s:.0f} s, {rate}, at most {facts['concurrency']} at once", highlight=False
    )
    rows = sorted(run.kinds.items())
    rows += [("all", run.all)] if len(rows) > 1 else []
    console.print(_outcomes(rows), _times(run, rows), _sources(rows))
    for line in [*_filling_words(filled), *_words(run, slope)]:
        console.print(line, highlight=False, soft_wrap=True)


def slope_words(slope: Slope) -> str:
    """The slope, its error, and what it means."""
    verdict = "IT GROWS" if slope.grows else "within noise"
    return (
        f"slope of memory: {slope.mb_per_hour:+.1f} MB/hour +- {slope.error_mb_per_hour:.1f} (standard error): {verdict} "
        f"(beyond noise is more than {slope.chance_mb_per_hour:.1f})"
    )


def _outcomes(rows: list[tuple[str, Tally]]) -> Table:
    table = Table("requests")
    for name in ("all", *OUTCOMES):
        table.add_column(name, justify="right")
    for kind, tally in rows:
        table.add_row(kind, str(tally.count), *(str(tally.outcomes[name]) for name in OUTCOMES))
    return table


def _times(run: Run, rows: list[tuple[str, Tally]]) -> Table:
    table = Table("ms", "rate/s")
    for what in ("first", "whole"):
        for percentile in _ROWS:
            table.add_column(f"{what} {percentile}" if percentile == _ROWS[0] else percentile, justify="right")
    for kind, tally in rows:
        sums = tally.summary(run.elapsed_s)
        times = [sums[what][p] for what in ("first_ms", "whole_ms") for p in _ROWS]
        table.add_row(kind, f"{sums['rps']:.1f}", *("-" if value is None else f"{value:.1f}" for value in times))
    return table


def _sources(rows: list[tuple[str, Tally]]) -> Table:
    table = Table("kind", "answered by step", "cache")
    for kind, tally in rows:
        sums = tally.summary(1.0)
        table.add_row(kind, *(", ".join(f"{n} {s:.1%}" for n, s in sums[what].items()) for what in ("steps", "caches")))
    return table


def _filling_words(filled: Filled | None) -> list[str]:
    if filled is None:
        return []
    stores = ", ".join(f"{name} {ratio:.0%}" for name, ratio in sorted(filled.ratios.items()))
    line = (
        f"filled before, without faults, as fast as it went: {filled.seconds:.0f} s, {filled.requests} requests, "
        f"{filled.first_mb:.0f} to {filled.last_mb:.0f} MB"
    )
    short = f"not full: {', '.join(filled.left)}; they may still grow" if filled.left else ""
    return [line, f"stores, which are kept small for this: {stores}", *filter(None, [short])]


def _words(run: Run, slope: Slope | None) -> list[str]:
    cost = _cost(run, slope)
    lines = []
    if run.all.codes:
        codes = ", ".join(f"{count} {code}" for code, count in run.all.codes.most_common())
        lines.append(f"refused: {codes}")
    late_ms = percentiles_ms(run.late_s)["p99"]
    if late_ms is not None and late_ms > _LATE_MS:
        lines.append(
            f"this machine was too busy: 1% of the requests started over {late_ms:.0f} ms late; times are too long"
        )
    if run.unsent:
        lines.append(
            f"{run.unsent} requests were not made: too many waited already (the rate is above what is answered)"
        )
    if cost["cpu_cores"] is not None:
        lines.append(f"gateway: {cost['cpu_cores']:.2f} cores, {cost['cpu_us_per_request']:.0f} us a request")
    if cost["rss_last_mb"] is not None:
        lines.append(
            f"memory: {cost['rss_first_mb']:.0f} MB at first, {cost['rss_last_mb']:.0f} at last, "
            f"{cost['rss_most_mb']:.0f} at most"
        )
    if slope is not None:
        lines.append(slope_words(slope))
    lines.append(f"lost {run.all.outcomes['lost']}, crossed {run.all.outcomes['crossed']}")
    return lines
