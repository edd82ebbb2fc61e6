"""Benchmark of syncd against lsyncd 2.2.3 and plain `rsync -a`, side by side in one run.

Run with `python -m bench.bench_sync [PART...]`: latency, burst, wan, start, fleet (all but `fleet` without arguments; `wan`
needs root). `burst` takes 100,000 files of 1 KB in 1,000 directories, `start` 1,100,000 entries (5 GB of disk), `fleet` 56
daemons. The temporary directory's file system is what is measured: TMPDIR says which. The last line is one JSON object with
the keys of KEYS; null: not measured in this run.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import bench_sync_watch
from bench.sync_load import burst_s, delete_s, latencies_ms, lsyncd, lsyncd_missing, quantile, rsync_s
from bench.sync_nodes import TREE, Fleet, Pair, SyncNode, is_current, start_pair, wait_until
from bench.sync_wan import wan_pair
from syncd.store.signed_root import public_key, verify_root
from syncd.transfer.io_parent import Parent

Numbers = dict[str, float | None]

KEYS = (
    "latency_p50_ms",
    "latency_p99_ms",
    "wan_p50_ms",
    "lsyncd_p50_ms",
    "burst_vs_rsync",
    "burst_vs_lsyncd",
    "delete_100k_s",
    "million_ready_s",
    "million_rss_mb",
    "egress_ratio",
    "idle_cpu_share",
    "no_change_requests",
)
BURST = 100_000
IDLE_S = 10.0
CHILDREN, REGIONALS, FLEET_BYTES = 50, 5, 8 << 20


def latency(top: Path) -> Numbers:
    """One small file after the other; and what a pair with nothing to do costs."""
    pair = start_pair(top)
    try:
        times = latencies_ms(pair.origin_dir, pair.child_dir, 300, 0.05)
        time.sleep(1.0)
        before = pair.origin.processor_s() + pair.child.processor_s()
        time.sleep(IDLE_S)
        idle = (pair.origin.processor_s() + pair.child.processor_s() - before) / IDLE_S / 2
        requests = asyncio.run(no_change_requests(pair))
    finally:
        pair.stop()
    numbers: Numbers = {
        "latency_p50_ms": quantile(times, 0.5),
        "latency_p99_ms": quantile(times, 0.99),
        "idle_cpu_share": idle,
        "no_change_requests": requests,
    }
    if why := lsyncd_missing():
        print(why)
        return numbers | {"lsyncd_p50_ms": None}
    with lsyncd(top / "lsyncd", top / "source", top / "target"):
        numbers["lsyncd_p50_ms"] = quantile(latencies_ms(top / "source", top / "target", 20, 0.1), 0.5)
    return numbers


class CountingParent(Parent):
    """Counts what it asks."""

    requests = 0

    async def _ask(self, *arguments: Any, **named: Any) -> tuple[int, bytes, str]:
        self.requests += 1
        return await super()._ask(*arguments, **named)


async def no_change_requests(pair: Pair) -> int:
    """How many requests it takes the child to see that it has what the origin signed."""
    home, url = pair.child.home, f"https://{pair.origin.status()['addresses'][0]}"
    parent = CountingParent(url, "child", str(home / "token"), str(pair.origin.home / "cert.pem"))
    async with parent:
        root = verify_root(await parent.root(TREE), public_key(pair.fleet.seed), TREE, None)
        if root.root_hash.hex() != pair.child.tree()["root_hash"]:
            raise SystemExit("the child does not know that it is equal: nothing was measured")
        return parent.requests


def burst(top: Path) -> Numbers:
    """100,000 small files at once, then gone at once."""
    pair = start_pair(top)
    try:
        writing_s, ours_s = burst_s(pair.origin_dir, pair.child_dir, BURST)
        print(f"syncd:    written in {writing_s:.2f} s, all there {ours_s:.2f} s later")
        wait_until(lambda: _is_settled(pair), 60, "the pair to be quiet")
        plain_s = rsync_s(pair.origin_dir / "burst", top / "plain")
        print(f"rsync -a: {plain_s:.2f} s")
        removing_s, gone_s = delete_s(pair.origin_dir, pair.child_dir)
        print(f"syncd:    deleted in {removing_s:.2f} s, gone {gone_s:.2f} s later")
    finally:
        pair.stop()
    numbers: Numbers = {"burst_vs_rsync": ours_s / plain_s, "delete_100k_s": gone_s, "burst_vs_lsyncd": None}
    if why := lsyncd_missing():
        print(why)
        return numbers
    with lsyncd(top / "lsyncd", top / "source", top / "target"):
        writing_s, theirs_s = burst_s(top / "source", top / "target", BURST)
        print(f"lsyncd:   written in {writing_s:.2f} s, all there {theirs_s:.2f} s later")
        removing_s, gone_s = delete_s(top / "source", top / "target")
        print(f"lsyncd:   deleted in {removing_s:.2f} s, gone {gone_s:.2f} s later")
    numbers["burst_vs_lsyncd"] = ours_s / theirs_s
    return numbers


def wan(top: Path) -> Numbers:
    """Small files over an emulated WAN of 40 ms round trip."""
    with wan_pair(top, 40.0) as found:
        if isinstance(found, str):
            print(found)
            return {"wan_p50_ms": None}
        times = latencies_ms(found.origin_dir, found.child_dir, 100, 0.05)
    return {"wan_p50_ms": quantile(times, 0.5)}


def start(top: Path) -> Numbers:
    """1,000,000 files in 100,000 directories at an origin: the second start, with nothing changed."""
    tree, store = top / "big", top / "big.db"
    bench_sync_watch.make_tree(tree, 100_000)
    bench_sync_watch.measure_start(tree, store, 0.0)
    ready_s, rss_mb, _ = bench_sync_watch.measure_start(tree, store, 0.0)
    return {"million_ready_s": ready_s, "million_rss_mb": rss_mb}


def fleet(top: Path) -> Numbers:
    """How many times less an origin sends with regionals between it and the edges than to the edges themselves."""
    flat = _egress(top / "flat", [])
    tiered = _egress(top / "tiered", [f"r{i}" for i in range(REGIONALS)])
    return {"egress_ratio": flat / tiered}


def _egress(top: Path, regionals: list[str]) -> float:
    """Bytes the origin sent for FLEET_BYTES of new content, with CHILDREN edges below it or below `regionals`."""
    top.mkdir()
    edges = [f"e{i}" for i in range(CHILDREN)]
    with Fleet(top) as nodes:
        origin = nodes.start("origin", children=regionals or edges)
        middle = [
            nodes.start(name, parents=[origin], children=edges[i :: len(regionals)]) for i, name in enumerate(regionals)
        ]
        leaves = [
            nodes.start(name, parents=[middle[i % len(middle)] if middle else origin]) for i, name in enumerate(edges)
        ]
        wait_until(lambda: all(is_current(node) for node in leaves), 300, "all edges to be current")
        before_bytes, before_s = _sent_bytes(origin), origin.processor_s()
        (origin.path / "large").write_bytes(b"0123456789abcdef" * (FLEET_BYTES // 16))
        wait_until(lambda: all((node.path / "large").exists() for node in leaves), 300, "all edges to have it")
        sent, cpu_s = _sent_bytes(origin) - before_bytes, origin.processor_s() - before_s
    below = len(regionals) or CHILDREN
    print(f"origin with {below} children: {sent / below / 1e6:.1f} MB and {cpu_s / below:.3f} s of processor for each")
    return sent


def _sent_bytes(node: SyncNode) -> float:
    return float(sum(child.get("sent_bytes", 0) for child in node.tree()["children"].values()))


def _is_settled(pair: Pair) -> bool:
    return is_current(pair.child) and pair.origin.tree()["waiting"] == 0


PARTS: dict[str, Callable[[Path], Numbers]] = {
    "latency": latency,
    "burst": burst,
    "wan": wan,
    "start": start,
    "fleet": fleet,
}


def main() -> None:
    wanted = sys.argv[1:] or [name for name in PARTS if name != "fleet"]
    if unknown := sorted(set(wanted) - PARTS.keys()):
        raise SystemExit(f"no part is called {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    numbers: Numbers = dict.fromkeys(KEYS)
    for name in wanted:
        top = Path(tempfile.mkdtemp(prefix=f"nearpath-bench-{name}-"))
        try:
            numbers |= PARTS[name](top)
        finally:
            shutil.rmtree(top, ignore_errors=True)
    for key, value in numbers.items():
        print(f"{key:18} {'not measured' if value is None else f'{value:.4g}'}")
    rounded = {key: None if value is None else round(value, 4) for key, value in numbers.items()}
    print(json.dumps({"bench": "sync", **rounded}))


if __name__ == "__main__":
    main()
