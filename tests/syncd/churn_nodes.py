"""Churn through three tiers of real nodes that are killed, cut off and run full: at the end all must be as the origin.

origin -> regional -> live edge and atomic edge. In rounds: for some seconds random operations at the origin while faults
come at random; then no more faults, and every copy must become what the origin is, by content, mode and times.

With `--exclude yes` the live edge leaves out what some patterns say, and has files of its own; by default in half the runs.

    python -m tests.syncd.churn_nodes [--minutes 60] [--seed 1] [--sealed yes]   (`make churn ARGS="--minutes 10 --seed 7"`)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from syncd.publish.steps import stays_inside
from tests.syncd.churn import Churn
from tests.syncd.cutter import Cutter
from tests.syncd.nodes import ROOT, Node, differences, running

DISK_MB = 48
LARGE_BYTES = 600_000
"""Beyond what comes by one request, so that rsync has its part."""
MAX_LARGE = 12
FAULT_EVERY_S = 0.8
ROUND_S = 30.0
CUT_RATIO = 0.4
SETTLE_S = 60.0
NO_GUARD = {"files": 1_000_000, "share": "100%", "floor": 1_000_000}
PATTERNS = ["-dash", "/a/b", "s1/", "Packages.gz", "/own/", "own.*"]
"""What the live edge may leave out, of the names that the churn has."""
OWN = ["own/deep/file", "own.top"]
BROKEN = ("Traceback", "attempt_crashed", "watch_failed", "an internal fault")


def namespaced(command: Sequence[str]) -> list[str]:
    """`command` such that its mounts and all its processes go with it, however it ends. As root only."""
    return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", *command]


def why_no_disk() -> str:
    """Why there can be no small disk here; empty when there can."""
    if os.geteuid():
        return "a small disk needs root"
    missing = [name for name in ("unshare", "mkfs.ext4", "mount") if shutil.which(name) is None]
    if missing:
        return f"a small disk needs {', '.join(missing)}"
    done = subprocess.run(["losetup", "-f"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "a small disk needs a free loop device"


def mount_small_disk(at: Path) -> None:
    """A file system of DISK_MB of its own; within `namespaced`, which takes it away again."""
    at.mkdir(parents=True)
    image = at.with_name(at.name + ".img")
    with open(image, "wb") as file:
        file.truncate(DISK_MB << 20)
    # Few inodes would be another way to be full, but not the one that is meant here.
    subprocess.run(["mkfs.ext4", "-q", "-F", "-N", "20000", "-m", "0", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(at)], check=True)


class Story:
    """One run: the nodes, what is done to them, and what came of it."""

    def __init__(self, home: Path, seed: int, with_disk: bool, sealed: bool = False, exclude: bool = False) -> None:
        self.sealed = sealed
        self.patterns = PATTERNS if exclude else []
        self.rng = random.Random(seed)
        self.home = home
        self.counts: Counter[str] = Counter()
        self.origin, self.regional, self.edge, self.atomic = self.nodes = [
            Node(name, home / name) for name in ("origin", "regional", "edge", "atomic")
        ]
        self.copies = [self.regional, self.edge, self.atomic]
        self.ballast = home / "edge" / "ballast" if with_disk else None
        if with_disk:
            mount_small_disk(self.edge.home)
        self.origin.tree.mkdir(parents=True)
        self.churn = Churn(os.fsencode(self.origin.tree), seed)
        self.cutters = [Cutter(self.origin, seed), Cutter(self.regional, seed + 1)]

    def configure(self) -> None:
        """Write the configurations; children reach their parents through the cutters."""
        above, below = self.cutters
        self.origin.configure(children=["regional"], contents="signed" if self.sealed else "unsigned")
        key = self.origin.key()
        self.regional.configure(parents=[above], children=["edge", "atomic"], key=key, deletes=NO_GUARD)
        self.edge.configure(parents=[below], key=key, deletes=NO_GUARD, streams=2, exclude=self.patterns)
        for name in OWN if self.patterns else []:
            (self.edge.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.edge.tree / name).write_text(name)
        self.atomic.configure(parents=[below], key=key, deletes=NO_GUARD, mode="atomic", grace="2s")
        for node in self.nodes:
            # Where there is always room, as for the journal of systemd.
            (self.home / f"{node.name}.log").touch()
            (node.home / "log").symlink_to(self.home / f"{node.name}.log")

    # -- what is done

    def one_step(self) -> None:
        """A random operation at the origin, now and then on a large file."""
        self.counts["steps"] += 1
        if self.rng.random() < 0.01:
            with suppress(OSError):
                self._touch_large()
        else:
            self.churn.step()
        if self.rng.random() < 0.3:
            time.sleep(self.rng.random() * 0.01)

    def _touch_large(self) -> None:
        """Write a large file, change some bytes of one, or append; replaced by a rename half of the time."""
        place = Path(os.fsdecode(self.churn.path()))
        name = place.parent / f"large{self.rng.randrange(3)}"
        large = [path for path in self.origin.tree.rglob("large?") if not path.is_symlink()]
        if len(large) >= MAX_LARGE:
            self.rng.choice(large).unlink()
        if not name.exists() or self.rng.random() < 0.5:
            fresh = self.home / "fresh"
            fresh.write_bytes(self.rng.randbytes(self.rng.randrange(LARGE_BYTES)))
            if self.rng.random() < 0.5:
                fresh.rename(name)
            else:
                shutil.copyfile(fresh, name)
            return
        with open(name, "r+b") as file:
            file.seek(self.rng.randrange(max(1, name.stat().st_size)))
            file.write(self.rng.randbytes(1000))

    def one_fault(self) -> None:
        """Kill, cut, fill or free the disk; rarely lose the state of a node."""
        draw = self.rng.random()
        if draw < 0.45:
            self._kill(self.rng.choice(self.nodes))
        elif draw < 0.48:
            self._lose_state(self.rng.choice(self.nodes))
        elif draw < 0.75 or self.ballast is None:
            cutter = self.rng.choice(self.cutters)
            cutter.cut_all()
        elif self.ballast.exists():
            self.counts["told_full"] += self.edge.status().get("state") == "disk-full"
            self.free_disk()
        else:
            self._fill_disk()

    def _kill(self, node: Node) -> None:
        self.counts["kills"] += 1
        node.stop(signal.SIGKILL)
        node.start(wait=False)

    def _lose_state(self, node: Node) -> None:
        """Index, journal and cursor are gone, as after a restore without them; the origin's key is kept elsewhere."""
        self.counts["states_lost"] += 1
        node.stop(signal.SIGKILL)
        shutil.rmtree(node.home / "state" / "trees", ignore_errors=True)
        node.start(wait=False)

    def _fill_disk(self) -> None:
        assert self.ballast is not None
        self.counts["fills"] += 1
        left = self.rng.choice([0, 0, 10_000, 300_000])
        with suppress(OSError), open(self.ballast, "wb", buffering=0) as file:
            while file.write(b"\1" * 65536) == 65536:
                pass
        if left:
            with suppress(OSError):
                os.truncate(self.ballast, max(0, self.ballast.stat().st_size - left))

    def free_disk(self) -> None:
        """Make room again."""
        if self.ballast is not None:
            self.ballast.unlink(missing_ok=True)

    # -- rounds

    def round(self, seconds: float) -> list[str]:
        """Churn with faults, then rest; what is still wrong after that, empty when all is well."""
        for cutter in self.cutters:
            cutter.cut_ratio = CUT_RATIO
        started_s = time.monotonic()
        fault_s = started_s + self.rng.random() * FAULT_EVERY_S
        while (now := time.monotonic()) - started_s < seconds:
            self.one_step()
            if now > fault_s:
                self.one_fault()
                fault_s = time.monotonic() + self.rng.expovariate(1 / FAULT_EVERY_S)
        self.free_disk()
        for cutter in self.cutters:
            cutter.cut_ratio = 0.0
        return self.settle()

    def settle(self) -> list[str]:
        """Wait until every copy is as the origin; what is not after SETTLE_S."""
        until_s = time.monotonic() + SETTLE_S
        while wrong := self._wrong():
            if time.monotonic() > until_s:
                return wrong
            time.sleep(0.2)
        for node in self.nodes:
            wrong += [f"{node.name}: {line}" for line in node.log.splitlines() if any(word in line for word in BROKEN)]
        return wrong

    def _wrong(self) -> list[str]:
        """What is not as it should be now; nodes that a full disk ended are started again."""
        for node in self.nodes:
            if node.process is not None and node.process.poll() is not None:
                self.counts["ended"] += 1
                node.process = None
                node.start(wait=False)
        told = self.origin.status()
        root_hash = told.get("root_hash")
        wrong = [] if root_hash else ["origin: no root hash"]
        if self.sealed and not told.get("sealed"):
            wrong.append(f"origin: not sealed: {told.get('sealing')}")
        for node in self.copies:
            if wrong:
                return wrong
            status = node.status()
            if not status or status["state"] != "current" or status["root_hash"] != root_hash or status["troubles"]:
                wrong += [f"{node.name}: {status.get('state')} {status.get('why')} {status.get('root_hash')}"]
        for node in self.copies:
            if wrong:
                return wrong
            patterns = self.patterns if node is self.edge else ()
            found = differences(self.origin.tree, node.tree, patterns)
            wrong += [f"{node.name}: {line}" for line in found if not refused(line)]
        for name in OWN if self.patterns else []:
            if (self.edge.tree / name).read_text() != name:
                wrong.append(f"edge: its own {name} is another")
        return wrong

    def whereabouts(self, node: Node, path: str) -> str:
        """What lies at a path, at the origin and at a node, published and staged."""
        places = {"origin": self.origin.tree, "tree": node.tree, "stage": node.home / ".tree.syncd" / "stage"}
        found = {name: os.popen(f"stat -c '%F %a %s %Y %i %h' {shlex.quote(str(at / path))} 2>&1").read().strip()
                 for name, at in places.items()}  # fmt: skip
        return f"{path!r}: {found}"

    def report(self) -> dict[str, int]:
        """What was done, in numbers."""
        cuts = sum(cutter.cuts for cutter in self.cutters)
        return {"kills": 0, "fills": 0, **self.counts, "cuts": cuts}


def refused(line: str) -> bool:
    """Whether rsync would make a symlink here that may lead out of the tree: none such is published."""
    path, _, target = line[12:].rpartition(" -> ")
    return line.startswith("cL") and not stays_inside(os.fsencode(path), os.fsencode(target))


def writable_again(home: Path) -> None:
    """Directories of the churn may have any mode; whoever is not root could not remove them."""
    for above, _, _ in os.walk(home):
        with suppress(OSError):
            os.chmod(above, stat.S_IMODE(os.stat(above).st_mode) | 0o700)


def run(
    home: Path,
    seconds: float,
    seed: int,
    with_disk: bool,
    round_s: float = ROUND_S,
    sealed: bool = False,
    exclude: bool = False,
) -> int:
    """Rounds for so long; the last line printed is a JSON object. The exit status."""
    story = Story(home, seed, with_disk, sealed, exclude)
    wrong: list[str] = []
    rounds = 0
    with ExitStack() as stack:
        story.configure()
        for cutter in story.cutters:
            stack.enter_context(cutter)
        stack.enter_context(running(*story.nodes))
        started_s = time.monotonic()
        while not wrong and (left_s := seconds - (time.monotonic() - started_s)) > 0:
            churned_s = time.monotonic()
            wrong = story.round(min(round_s, left_s))
            rounds += 1
            said = " ".join(f"{name} {count}" for name, count in sorted(story.report().items()))
            print(f"seed {seed} round {rounds} ({time.monotonic() - churned_s:.1f} s): {said}", flush=True)
        if wrong:
            print("\n".join(wrong[:40]))
            for node in story.nodes:
                status = node.status()
                print(f"--- {node.name}: {json.dumps(status)}\n{node.log[-6000:]}")
                for trouble in status.get("troubles", []) if node in story.copies else []:
                    print(f"trouble: {story.whereabouts(node, trouble['path'])}")
    result = {
        "seed": seed,
        "rounds": rounds,
        **story.report(),
        "disk": with_disk,
        "sealed": sealed,
        "exclude": exclude,
        "wrong": len(wrong),
    }
    print(json.dumps({**result, "equal": not wrong}), flush=True)
    return 1 if wrong else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="churn through real nodes that are killed, cut off and run full")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--sealed", choices=["yes", "no"], help="whether the origin signs contents; default: where the seed is odd"
    )
    parser.add_argument(
        "--exclude",
        choices=["yes", "no"],
        help="whether the live edge leaves something out; default: with half of the seeds",
    )
    parser.add_argument(
        "--home", type=Path, help="an empty folder to work in, in namespaces of its own; default: both are made"
    )
    asked = parser.parse_args()
    sealed = asked.sealed == "yes" if asked.sealed else is_sealed(asked.seed)
    exclude = asked.exclude == "yes" if asked.exclude else leaves_out(asked.seed)
    why = why_no_disk()
    if asked.home is None:
        home = Path(tempfile.mkdtemp(prefix="nearpath-churn-"))
        status = run_in(home, asked.minutes * 60, asked.seed, sealed, exclude).returncode
        if status:
            print(f"kept, to be looked at: {home}")
        else:
            writable_again(home)
            shutil.rmtree(home, ignore_errors=True)
        return status
    if why:
        print(f"no full disk in this run: {why}")
    return run(asked.home, asked.minutes * 60, asked.seed, not why, sealed=sealed, exclude=exclude)


def is_sealed(seed: int) -> bool:
    """Whether the origin signs contents in a run with this seed, unless it is said."""
    return bool(seed % 2)


def leaves_out(seed: int) -> bool:
    """Whether the live edge has patterns in a run with this seed, unless it is said."""
    return seed % 4 in (1, 2)


def run_in(
    home: Path, seconds: float, seed: int, sealed: bool | None = None, exclude: bool | None = None, **more: Any
) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, as root within namespaces of its own."""
    sealed = is_sealed(seed) if sealed is None else sealed
    exclude = leaves_out(seed) if exclude is None else exclude
    command = [sys.executable, "-m", "tests.syncd.churn_nodes", "--home", str(home)]
    command += ["--minutes", str(seconds / 60), "--seed", str(seed), "--sealed", "yes" if sealed else "no"]
    command += ["--exclude", "yes" if exclude else "no"]
    return subprocess.run(command if why_no_disk() else namespaced(command), cwd=ROOT, check=False, text=True, **more)


if __name__ == "__main__":
    sys.exit(main())
