"""Region tables: time and memory to load the shipped country and operator tables, and time of one lookup.

Each load runs in a fresh process: memory that is growth over the imports (resident set, and its peak while loading), time
from bytes in memory to the compiled map. Run with `python -m bench.bench_regions`; the last line is JSON.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from policy.regions import Layer, RegionMap, RegionSource, compile_regions, lint_regions, parse_csv

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = ("chinanet", "unicom", "cmcc", "cernet", "cstnet", "drpeng")
SOURCES = (
    RegionSource("cn", match=("isp:china", "countries:CN")),
    *(RegionSource(f"cn-{name}", "cn", match=(f"isp:{name}",)) for name in OPERATORS),
)
LOADS = 5
LOOKUPS = 100_000
ROUNDS = 7

LIMITS = {"load_s": 3.0, "load_mb": 150.0, "lookup_us": 2.0}
"""What issue 2 asks for."""


def read_files() -> tuple[bytes, bytes]:
    folder = ROOT / "configs/regions"
    return (folder / "china-isp.csv.gz").read_bytes(), (folder / "countries.csv.gz").read_bytes()


def load(files: tuple[bytes, bytes]) -> tuple[RegionMap, tuple[Layer, ...]]:
    """Every country a region, the operators children of cn."""
    layers = Layer(parse_csv("isp", files[0])), Layer(parse_csv("countries", files[1]), labels_as_regions=True)
    return compile_regions(SOURCES, layers), layers


def status_mb(field: str) -> float:
    """A size of this process from the kernel, in MB (10**6)."""
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(field)


def measure_load() -> dict[str, float]:
    """One load in this process, which must be fresh."""
    files = read_files()
    gc.collect()
    before_mb = status_mb("VmRSS")
    begun_s = time.perf_counter()
    regions, layers = load(files)
    load_s = time.perf_counter() - begun_s
    peak_mb = status_mb("VmHWM") - before_mb
    gc.collect()
    result = {"load_s": load_s, "load_mb": status_mb("VmRSS") - before_mb, "load_peak_mb": peak_mb}
    begun_s = time.perf_counter()
    lint_regions(SOURCES, layers, regions)
    return {**result, "lint_s": time.perf_counter() - begun_s}


def load_in_fresh_process() -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.bench_regions", "--one-load"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def lookup_us(regions: RegionMap, family: int) -> float:
    """Microseconds of one lookup: median over rounds of the mean over random addresses that tables cover, or not."""
    rng = random.Random(1)
    if family == 4:
        addresses = [rng.getrandbits(32) for _ in range(LOOKUPS)]
    else:  # 2000:: to 2bff::, where the registries' blocks are
        addresses = [1 << 125 | rng.randrange(0xC00 << 112) for _ in range(LOOKUPS)]
    times = []
    for _ in range(ROUNDS):
        begun_s = time.perf_counter()
        for address in addresses:
            regions.lookup(family, address)
        times.append((time.perf_counter() - begun_s) / LOOKUPS * 1e6)
    return statistics.median(times)


def run() -> dict[str, Any]:
    """All measurements: load_s, load_mb, lookup_us (the slower family) and what is behind them."""
    loads = [load_in_fresh_process() for _ in range(LOADS)]
    medians = {key: statistics.median(one[key] for one in loads) for key in loads[0]}
    regions, layers = load(read_files())
    lookups = {family: lookup_us(regions, family) for family in (4, 6)}
    return {
        **{key: round(value, 3) for key, value in medians.items()},
        "lookup_us": round(max(lookups.values()), 3),
        "lookup_ipv4_us": round(lookups[4], 3),
        "lookup_ipv6_us": round(lookups[6], 3),
        "prefixes": sum(len(layer.table) for layer in layers),
        "regions": len(regions.tree.names),
        "runs_ipv4": len(regions.ipv4.regions),
        "runs_ipv6": len(regions.ipv6.regions),
    }


def main() -> None:
    if "--one-load" in sys.argv:
        print(json.dumps(measure_load()))
        return
    result = run()
    print(f"{'regions: shipped country and operator tables':<46}{'measured':>12}{'wanted':>12}")
    for key, value in result.items():
        wanted = f"< {LIMITS[key]:g}" if key in LIMITS else ""
        print(f"  {key:<44}{value:>12,}{wanted:>12}")
    print(json.dumps({"bench": "regions", **result}))


if __name__ == "__main__":
    main()
