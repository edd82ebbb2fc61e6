"""Benchmark of the decision: re-deciding a large plan, taking a sample, and the region table's numbers.

Run with `python -m bench.bench_decide`. The last line is one JSON object:
{"bench": "decide", "decide_ms": .., "sample_us": .., "load_s": .., "load_mb": .., "lookup_us": ..}
"""

from __future__ import annotations

import importlib
import json
import random
import statistics
import time
from typing import Any

from core.config import Config
from core.messages import PathSample
from policy.engine import SteeringEngine
from policy.plan import make_plan
from policy.regions import RegionMap, RegionSource, compile_regions

REGIONS, MIRRORS, ROUNDS = 200, 50, 15
INTERVAL_S = 5.0


def make_config(regions: int, mirrors: int) -> Config:
    """One service over `mirrors` mirrors, one agent in each of `regions` regions."""
    return Config.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "dns": {"listen": ["127.0.0.1:0"]},
            "zones": [{"origin": "bench.example.", "file": "bench.zone"}],
            "regions": {f"r{i}": {"prefixes": [f"10.{i >> 8}.{i & 255}.0/24"]} for i in range(regions)},
            "checks": {"http": {"kind": "http", "interval": f"{INTERVAL_S:g}s"}},
            "mirrors": {f"m{i}": {"addresses": [f"192.0.2.{i + 1}"], "region": f"r{i}"} for i in range(mirrors)},
            "services": {
                "dl.bench.example.": {"mirrors": [f"m{i}" for i in range(mirrors)], "checks": ["http"], "answers": 3}
            },
            "agents": {f"a{i}": {"region": f"r{i}", "token_sha256": "0" * 64} for i in range(regions)},
        }
    )


def make_regions(config: Config) -> RegionMap:
    """The region map of a configuration without tables."""
    return compile_regions([RegionSource(name, prefixes=tuple(r.prefixes)) for name, r in config.regions.items()])


def samples_at(now: float, base_s: list[list[float]], rng: random.Random) -> list[PathSample]:
    """One probe of every path: its base RTT with 5% of noise, one in a hundred lost."""
    return [
        PathSample(
            f"a{r}", f"r{r}", f"m{m}", "http", 4, 1, None if rng.random() < 0.01 else rtt_s * rng.gauss(1, 0.05), now
        )
        for r, row in enumerate(base_s)
        for m, rtt_s in enumerate(row)
    ]


def run(regions: int = REGIONS, mirrors: int = MIRRORS, rounds: int = ROUNDS) -> dict[str, float]:
    """Medians over rounds, each of which takes a new sample on every path and decides everything again."""
    rng = random.Random(1)
    engine = SteeringEngine(make_plan(config := make_config(regions, mirrors), make_regions(config)))
    base_s = [[rng.uniform(0.005, 0.3) for _ in range(mirrors)] for _ in range(regions)]
    decide_ms, sample_us, generations = [], [], []
    now = 1000.0
    for round_no in range(rounds + 10):
        samples = samples_at(now, base_s, rng)
        started = time.perf_counter()
        for sample in samples:
            engine.take(sample)
        taken = time.perf_counter()
        engine.decide(now)
        decided = time.perf_counter()
        # The first ten rounds fill the windows of the estimators.
        if round_no >= 10:
            sample_us.append((taken - started) / len(samples) * 1e6)
            decide_ms.append((decided - taken) * 1e3)
            generations.append(engine.generation)
        now += INTERVAL_S
    return {
        "decide_ms": round(statistics.median(decide_ms), 1),
        "decide_worst_ms": round(max(decide_ms), 1),
        "sample_us": round(statistics.median(sample_us), 2),
        "catchments": len(engine.units),
        "switches": engine.switches(),
    }


def main() -> None:
    """Print the table and the JSON line."""
    result: dict[str, Any] = run()
    try:
        result |= importlib.import_module("bench.bench_regions").run()
    except ModuleNotFoundError:
        print("bench_regions is missing: no numbers of the region table")
    rows = [
        ("re-decide 200 regions x 50 mirrors, median", "decide_ms", "ms", "< 50"),
        ("same, worst round", "decide_worst_ms", "ms", ""),
        ("take one sample", "sample_us", "us", "< 50"),
        ("load the region tables", "load_s", "s", "< 3"),
        ("memory of the region map", "load_mb", "MB", "< 150"),
        ("look one address up", "lookup_us", "us", "< 2"),
    ]
    print(f"{'what':<46}{'measured':>12} unit  target")
    for what, key, unit, target in rows:
        if key in result:
            print(f"{what:<46}{result[key]:>12} {unit:<5} {target}")
    keys = ("decide_ms", "sample_us", "load_s", "load_mb", "lookup_us")
    print(json.dumps({"bench": "decide", **{key: result[key] for key in keys if key in result}}))


if __name__ == "__main__":
    main()
