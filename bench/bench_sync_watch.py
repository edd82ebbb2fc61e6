"""Benchmark of syncd's source side: from a write to its journal entry, bursts, and the start with an unchanged tree.

Run with `python -m bench.bench_sync_watch [DIRECTORIES]` (100,000 directories with 10 files each by default; it takes some
minutes, about 5 GB and 1.1 million inodes in the temporary directory). The last line is one JSON object: {"bench":
"sync_watch", "journal_p50_ms", "journal_p99_ms", "create_100k_s", "delete_100k_s", "first_read_s", "million_ready_s",
"million_rss_mb", "idle_cpu_ratio"}.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from syncd.source.io_source import SourceTree

LATENCIES = 200
BURST = 100_000
FILES = 10


def make_tree(root: Path, directories: int) -> None:
    """`directories` directories in groups of 300, with FILES small files each."""
    for i in range(directories):
        below = root / f"p{i // 300:04}" / f"dir-{i % 300:03}"
        below.mkdir(parents=True)
        for k in range(FILES):
            fd = os.open(below / f"file-{k:02}.pkg", os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, b"content of a small file\n")
            os.close(fd)


def wait_for(source: SourceTree, sequence: int) -> None:
    """Step until the journal has come to `sequence`."""
    while source.status.sequence < sequence:
        source.step(1.0)


def drain(source: SourceTree) -> None:
    """Step until nothing is left to do."""
    quiet = 0
    while quiet < 3:
        written = source.step(0.06)
        quiet = 0 if written or source.status.waiting or source.status.walking else quiet + 1


def latencies_ms(source: SourceTree, root: Path) -> list[float]:
    """Of single small files, one after the other, each written in another directory."""
    found = []
    for i in range(LATENCIES):
        target = root / f"l{i % 10}"
        target.mkdir(exist_ok=True)
        drain(source)
        sequence = source.status.sequence
        started = time.monotonic()
        (target / "f").write_bytes(b"%d" % i)
        wait_for(source, sequence + 1)
        found.append((time.monotonic() - started) * 1e3)
    return sorted(found)


def burst_s(source: SourceTree, script: str, root: Path) -> tuple[float, float]:
    """(seconds the script took, seconds from its end until all of it was in the journal)."""
    with subprocess.Popen([sys.executable, "-c", script, str(root)]) as process:
        started = time.monotonic()
        while process.poll() is None:
            source.step(0.05)
        ended = time.monotonic()
        drain(source)
        return ended - started, time.monotonic() - ended


CREATE = f"""
import os, sys
for d in range(100):
    os.makedirs(f"{{sys.argv[1]}}/burst/{{d}}")
    for i in range({BURST // 100}):
        fd = os.open(f"{{sys.argv[1]}}/burst/{{d}}/{{i}}", os.O_CREAT | os.O_WRONLY); os.write(fd, b"x"); os.close(fd)
"""
DELETE = "import shutil, sys; shutil.rmtree(sys.argv[1] + '/burst')"


def start_once(root: str, store: str, idle_s: float, out: Any) -> None:
    """In a process of its own, for its own peak memory."""
    started = time.monotonic()
    source = SourceTree(os.fsencode(root), Path(store))
    source.start()
    ready_s = time.monotonic() - started
    cpu_s, until = time.process_time(), time.monotonic() + idle_s
    while time.monotonic() < until:
        source.step(max(0.0, until - time.monotonic()))
    idle = (time.process_time() - cpu_s) / idle_s if idle_s else 0.0
    out.put((ready_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, idle))
    source.close()


def measure_start(root: Path, store: Path, idle_s: float) -> tuple[float, float, float]:
    """(seconds until ready, peak MB, share of a processor when idle)."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    process = context.Process(target=start_once, args=(str(root), str(store), idle_s, out))
    process.start()
    result: tuple[float, float, float] = out.get()
    process.join()
    return result


def main() -> None:
    directories = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    top = Path(tempfile.mkdtemp(prefix="nearpath-bench-"))
    try:
        small = top / "small"
        small.mkdir()
        source = SourceTree(os.fsencode(small), top / "small.db")
        source.start()
        times = latencies_ms(source, small)
        create = burst_s(source, CREATE, small)
        indexed = source.index.size().entries
        if indexed < BURST:
            raise SystemExit(f"only {indexed} entries are indexed after a burst of {BURST} files: nothing was measured")
        delete = burst_s(source, DELETE, small)
        if (left := source.index.size().entries) > 2 * LATENCIES:
            raise SystemExit(f"{left} entries are left in the index after the tree was deleted: nothing was measured")
        overflows = source.status.overflows
        source.close()
        big = top / "big"
        make_tree(big, directories)
        first = measure_start(big, top / "big.db", 0.0)
        again = measure_start(big, top / "big.db", 5.0)
    finally:
        shutil.rmtree(top)
    numbers = {
        "journal_p50_ms": round(times[len(times) // 2], 1),
        "journal_p99_ms": round(times[int(len(times) * 0.99)], 1),
        "create_100k_s": round(create[1], 2),
        "delete_100k_s": round(delete[1], 2),
        "first_read_s": round(first[0], 1),
        "million_ready_s": round(again[0], 1),
        "million_rss_mb": round(again[1]),
        "idle_cpu_ratio": round(again[2], 4),
    }
    print(f"the bursts themselves took {create[0]:.1f} and {delete[0]:.1f} s; {overflows} overflows")
    for name, value in numbers.items():
        print(f"{name:18} {value}")
    print(json.dumps({"bench": "sync_watch", "directories": directories, **numbers}))


if __name__ == "__main__":
    main()
