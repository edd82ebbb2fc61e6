"""What `bench_sync` does to a tree, and how it sees it come out at the other end: the same for syncd and for its peers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.sync_nodes import wait_until

PER_DIRECTORY = 100
FILE_BYTES = 1024
BURST = """
import os, sys
root, files, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = b"x" * size
for i in range(files):
    if i % 100 == 0:
        above = f"{root}/burst/p{i // 10000:03}/d{i // 100:05}"
        os.makedirs(above)
    fd = os.open(f"{above}/file-{i:07}.pkg", os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(fd, data)
    os.close(fd)
"""
LSYNCD = """
settings {{ nodaemon = true, statusInterval = 3600 }}
sync {{ default.rsync, source = "{source}", target = "{target}", delay = 1, rsync = {{ archive = true }} }}
"""


def latencies_ms(source: Path, target: Path, count: int, pause_s: float) -> list[float]:
    """From a small file written to its being whole at the other end, one after the other, sorted."""
    found = []
    for i in range(count):
        content = b"content of file %d" % i
        started = time.monotonic()
        (source / f"small-{i % 20}").write_bytes(content)
        seen = target / f"small-{i % 20}"
        while not _is(seen, content):
            if time.monotonic() - started > 60:
                raise SystemExit(f"a small file did not come to {target} in a minute")
            time.sleep(0.001)
        found.append((time.monotonic() - started) * 1e3)
        time.sleep(pause_s)
    return sorted(found)


def _is(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except FileNotFoundError:
        return False


def burst_s(source: Path, target: Path, files: int) -> tuple[float, float]:
    """(seconds that writing so many small files took, seconds from then until the last of them is at the other end)."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", BURST, str(source), str(files), str(FILE_BYTES)], check=True)
    ended = time.monotonic()
    left = sorted(path for path in (source / "burst").glob("*/*"))
    todo = [target / path.relative_to(source) for path in reversed(left)]

    def is_there() -> bool:
        while todo and _count(todo[-1]) >= min(PER_DIRECTORY, files):
            todo.pop()
        return not todo

    wait_until(is_there, 600, f"{files} files to come to {target}")
    return ended - started, time.monotonic() - ended


def _count(directory: Path) -> int:
    try:
        return len(os.listdir(directory))
    except FileNotFoundError:
        return 0


def delete_s(source: Path, target: Path) -> tuple[float, float]:
    """(seconds that deleting the burst took, seconds from then until nothing of it is left at the other end)."""
    started = time.monotonic()
    subprocess.run(["rm", "-rf", str(source / "burst")], check=True)
    ended = time.monotonic()
    wait_until(lambda: not (target / "burst").exists(), 600, f"the burst to be gone from {target}")
    return ended - started, time.monotonic() - ended


def rsync_s(source: Path, target: Path) -> float:
    """Seconds that a plain `rsync -a` of a tree to an empty directory takes; the better of two."""
    found = []
    for _ in range(2):
        shutil.rmtree(target, ignore_errors=True)
        os.sync()  # what was written before is not to be paid for by this
        started = time.monotonic()
        subprocess.run(["rsync", "-a", f"{source}/", f"{target}/"], check=True)
        found.append(time.monotonic() - started)
    shutil.rmtree(target)
    return min(found)


def lsyncd_missing() -> str:
    """Why lsyncd cannot be measured; empty when it can."""
    return "" if shutil.which("lsyncd") else "lsyncd is not installed (Debian: apt install lsyncd)"


@contextmanager
def lsyncd(top: Path, source: Path, target: Path) -> Iterator[None]:
    """lsyncd with delay 1 between two local directories, from when its first sync is through."""
    top.mkdir()
    for path in (source, target):
        path.mkdir()
    (top / "lsyncd.conf").write_text(LSYNCD.format(source=source, target=target))
    with (top / "log").open("wb") as log:
        process = subprocess.Popen(["lsyncd", "-log", "all", str(top / "lsyncd.conf")], stdout=log, stderr=log)
    try:
        (source / "first").write_text("x")
        wait_until((target / "first").exists, 60, "lsyncd to start")
        time.sleep(2.0)
        yield
    finally:
        process.terminate()
        process.wait()


def quantile(sorted_values: list[float], share: float) -> float:
    """The value below which `share` of them are."""
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * share))]
