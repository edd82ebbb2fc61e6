"""SourceTree while a tree is churned, killed and started again: nothing is lost, nothing is taken back."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.syncd.churn import Churn, scan
from tests.syncd.watched import Child, Start, indexed, needs_fanotify, settle, told, with_both, write

HERE = Path(__file__).parent
CHURN_STEPS = int(os.environ.get("SYNCD_CHURN_STEPS", "6000"))
"""More for a longer run by hand."""

# --- churn --------------------------------------------------------------------------------------------------------------


@contextmanager
def running(*command: str, cwd: bytes | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone at the end, however the test ends."""
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("watch", "seed"),
    [*(("inotify", seed) for seed in range(4)), pytest.param("fanotify", 10, marks=needs_fanotify)],
)
def test_churn_beside_it_ends_at_the_same_tree(root: bytes, start: Start, seed: int) -> None:
    churn = Churn(root, seed)
    for _ in range(100):
        churn.step()
    source = start()
    child = Child(indexed(source), source.status.sequence)
    rng = random.Random(seed)
    pause_us = rng.choice([0, 300, 2000])
    steps = CHURN_STEPS
    command = [sys.executable, str(HERE / "churn.py"), os.fsdecode(root), str(seed), str(steps), str(pause_us)]
    with running(*command) as process:
        while process.poll() is None:
            source.step(0.02)
            if rng.random() < 0.1:
                child.pull(source, rng.randrange(1, 500))
        assert process.returncode == 0
    settle(source)
    seen = scan(root)
    assert indexed(source) == seen
    child.pull(source, 10_000)
    assert child.tree == {path: Child.reduce(row) for path, row in seen.items()}
    assert source.status.unwatched == 0
    assert source.status.watches >= sum(stat.S_ISDIR(int(str(row[0]))) for row in seen.values())


@with_both
def test_many_new_subtrees_at_once_lose_no_file(root: bytes, start: Start) -> None:
    source = start()
    script = (
        "i=0; while [ $i -lt 60 ]; do mkdir -p t$1-$i/a/b/c; echo 1 >t$1-$i/a/b/c/f; echo 2 >t$1-$i/g; "
        "mv t$1-$i/a t$1-$i/z; mkdir t$1-$i/a; echo 3 >t$1-$i/a/h; mv t$1-$i done$1-$i; i=$((i+1)); done"
    )
    with ExitStack() as stack:
        writers = [stack.enter_context(running("sh", "-c", script, "sh", str(n), cwd=root)) for n in range(3)]
        while any(writer.poll() is None for writer in writers):
            source.step(0.01)
        assert [writer.returncode for writer in writers] == [0, 0, 0]
    settle(source)
    assert indexed(source) == scan(root)
    assert len(indexed(source)) == 1 + 3 * 60 * 8
    at = source.status.sequence
    write(root, b"done1-7/z/b/c/last")
    assert told(source, at) == ["u done1-7/z/b/c", "u done1-7/z/b/c/last"]


def test_killed_at_any_moment_and_started_again(root: bytes, start: Start, tmp_path: Path) -> None:
    """The journal never takes back what a child read, and in the end the child has the tree."""
    churn = Churn(root, 99)
    for _ in range(60):
        churn.step()
    source = start()
    child = Child(indexed(source), source.status.sequence)
    start.stop()
    rng = random.Random(5)
    for round_no in range(12):
        # Killed (with -9, on leaving) anywhere between being started and being busy for a while.
        with running(sys.executable, str(HERE / "source_daemon.py"), os.fsdecode(root), str(tmp_path / "store.db")):
            until = time.monotonic() + rng.uniform(0.2, 0.9)
            while time.monotonic() < until:
                churn.step()
                time.sleep(0.0005)
        for _ in range(rng.randrange(20)):
            churn.step()  # while nobody watches
        if round_no % 4 == 3:
            source = start()
            child.pull(source, 300)
            start.stop()
    source = start()
    settle(source)
    seen = scan(root)
    assert indexed(source) == seen
    child.pull(source, 1000)
    assert child.tree == {path: Child.reduce(row) for path, row in seen.items()}


def test_runs_in_a_thread_and_stops_at_once(root: bytes, start: Start) -> None:
    source = start()
    stop = threading.Event()
    thread = threading.Thread(target=source.run, args=(stop,))
    thread.start()
    write(root, b"f")
    while source.status.sequence < 2:
        time.sleep(0.01)
    stop.set()
    source.wake()
    thread.join()
    assert set(indexed(source)) == {b"", b"f"}
