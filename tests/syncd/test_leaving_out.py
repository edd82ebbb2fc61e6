"""Copies of a syncd that leave out what patterns say, beside an origin that changes at random: as rsync would have it."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console

from core.exclude import Exclude
from syncd.io_cli_show import status_view
from syncd.publish.left_out import Border
from syncd.publish.steps import stays_inside
from tests.syncd.churn import Churn, scan
from tests.syncd.fleet import KEY, SEED
from tests.syncd.nodes import Node, running

PATTERNS = ["-dash", "/a/b", "s1/", "Packages.gz", "own.*"]
NO_GUARD = {"files": 1_000_000, "share": "100%", "floor": 1_000_000}


def wrong(origin: Path, copy: Path, patterns: Sequence[str]) -> list[str]:
    """What rsync would do, but for symlinks that lead out, and directories that are kept for what is left alone in them."""
    left_out = [f"--exclude={pattern}" for pattern in patterns]
    command = ["rsync", "-anic", "--no-D", "--delete", *left_out, f"{origin}/", f"{copy}/"]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    # Where a symlink comes that leads out, it cannot "make way"; we do not publish it, so there is no need to.
    said = [
        line for line in done.stderr.splitlines() if b"make way for new symlink" not in line and b"code 23" not in line
    ]
    assert not said
    lines = done.stdout.decode("utf-8", "surrogateescape").splitlines()
    return [
        line for line in lines if not line.startswith("skipping non-regular") and not is_meant(line, copy, patterns)
    ]


def is_meant(line: str, copy: Path, patterns: Sequence[str]) -> bool:
    if line.startswith("cL"):
        path, _, target = line[12:].rpartition(" -> ")
        return not stays_inside(named(path), named(target))
    if line.startswith("*deleting") and line.endswith("/"):
        return holds_only_own(os.fsencode(copy), named(line[12:].rstrip("/")), Exclude(patterns))
    return line.startswith("cannot delete non-empty directory")


def named(told: str) -> bytes:
    """A path as rsync tells it: other bytes than printable ones as \\#ooo."""
    return re.sub(rb"\\#(\d{3})", lambda code: bytes([int(code[1], 8)]), os.fsencode(told))


def holds_only_own(root: bytes, path: bytes, exclude: Exclude) -> bool:
    with os.scandir(os.path.join(root, path)) as entries:
        found = [(path + b"/" + entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    others = [(below, is_dir) for below, is_dir in found if not exclude.leaves_out(below, is_dir)]
    return bool(found) and all(is_dir and holds_only_own(root, below, exclude) for below, is_dir in others)


class Mirror:
    """A copy with patterns, and files of its own in it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.own: dict[str, bytes] = {}
        self.moved_away = 0

    def put_own(self, rng: random.Random, count: int) -> None:
        """Files of its own in directories that are there."""
        homes = [Path(above) for above, _, _ in os.walk(self.node.tree.resolve())]
        for home in rng.sample(sorted(homes), min(count, len(homes))):
            name = str((home / f"own.{len(self.own)}").relative_to(self.node.tree.resolve()))
            content = rng.randbytes(20)
            (self.node.tree / name).write_bytes(content)
            self.own[name] = content

    def make_way(self) -> None:
        """Move a file away that is in the way of what the parent has, as its operator is told to do."""
        why = self.node.status().get("why") or ""
        if "is left alone by `exclude`" not in why:
            return
        for name in list(self.own):
            if f"{name!r} is left alone" in why:
                assert (self.node.tree / name).read_bytes() == self.own.pop(name)
                (self.node.tree / name).unlink()
                self.moved_away += 1
                self.node.ask("POST", "/v1/pull", {"tree": "t"})

    def until_same(self, origin: Node) -> None:
        def same() -> bool:
            time.sleep(0.1)  # each look is work for the node, too
            self.make_way()
            root_hash = origin.status().get("root_hash")
            return (
                bool(root_hash)
                and self.node.status().get("root_hash") == root_hash
                and self.node.status()["state"] == "current"
            )

        self.node.until(same, "the origin's root")

    def is_like(self, origin: Node) -> bool:
        time.sleep(0.2)
        if not wrong(origin.tree, self.node.tree, PATTERNS):
            return True
        # The times of directories that own files were put into; what changes meanwhile, a verify says nothing of.
        self.node.ask("POST", "/v1/verify", {"tree": "t", "repair": True})
        return False

    def check(self, origin: Node) -> None:
        self.until_same(origin)
        self.node.until(lambda: self.is_like(origin), "rsync finds nothing to do")
        self.until_same(origin)
        assert wrong(origin.tree, self.node.tree, PATTERNS) == []
        assert {name: (self.node.tree / name).read_bytes() for name in self.own} == self.own
        border = Border(Exclude(PATTERNS))
        count = sum(
            border.covers(path, stat.S_ISDIR(int(str(seen[0]))))
            for path, seen in scan(os.fsencode(origin.tree)).items()
        )
        self.node.until(lambda: self.node.status()["left_out_entries"] == count, f"{count} entries are left out")
        status = self.node.status()
        assert bool(status["not_served"]) == bool(count)
        assert not status["troubles"]


def test_copies_with_patterns_follow_an_origin_that_changes_at_random(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", "1"))
    rng = random.Random(seed)
    origin, live, atomic = (Node(name, tmp_path / name) for name in ("origin", "live", "atomic"))
    origin.configure(children=["live", "atomic"], key_file="key", contents="signed" if seed % 2 else "unsigned")
    origin.tree.mkdir()
    (origin.home / "key").write_text(SEED.hex())
    live.configure(parents=[origin], key=KEY, deletes=NO_GUARD, exclude=PATTERNS)
    atomic.configure(parents=[origin], key=KEY, deletes=NO_GUARD, exclude=PATTERNS, mode="atomic", grace="1s")
    churn = Churn(os.fsencode(origin.tree), seed)
    mirrors = [Mirror(live), Mirror(atomic)]
    with running(origin, live, atomic):
        for part in range(int(os.environ.get("PARTS", "2"))):
            for step in range(150):
                churn.step()
                if step % 10 == 0:
                    time.sleep(rng.random() * 0.05)
                if step == 100 and part:
                    node = rng.choice([live, atomic])
                    node.stop(signal.SIGKILL)
                    node.start(wait=False)
            for mirror in mirrors:
                mirror.check(origin)
                mirror.put_own(rng, 4)


def test_a_mirror_with_a_file_of_its_own_serves_children_until_it_leaves_something_out(tmp_path: Path) -> None:
    """Debian's mirrors keep a trace file of their own in the tree; a partial mirror cannot serve the whole."""
    origin, mirror, edge = (Node(name, tmp_path / name) for name in ("origin", "mirror", "edge"))
    origin.configure(children=["mirror", "edge"], key_file="key")
    (origin.home / "key").write_text(SEED.hex())
    trace = origin.tree / "project" / "trace"
    trace.mkdir(parents=True)
    (trace / "master").write_text("master")
    (origin.tree / "f").write_text("1")
    patterns = ["/project/trace/mirror.example.org", "*_arm64.deb"]
    mirror.configure(parents=[origin], children=["edge"], key=KEY, exclude=patterns)
    edge.configure(parents=[mirror], key=KEY)
    own = mirror.tree / "project" / "trace" / "mirror.example.org"
    with running(origin, mirror):
        mirror.until_current(origin_root(origin))
        own.write_text("of this mirror")
        assert verified(mirror) == ["project/trace"], "its time"
        with running(edge):
            edge.until_current(origin_root(origin))
            assert not (edge.tree / own.relative_to(mirror.tree)).exists(), (
                "what is a mirror's own is not told to others"
            )
            mirror.until(lambda: verified(mirror) == [], "nothing is different")
            (trace / "master").write_text("master anew")
            for number in range(5):
                (origin.tree / f"p{number}_arm64.deb").write_text("x" * 100)
            (origin.tree / "p_amd64.deb").write_text("y")
            root_hash = until_other(origin, edge.status()["root_hash"])
            mirror.until_current(root_hash)
            edge.until(lambda: "is not whole here" in edge.status()["why"], "it is told why")
            edge.configure(parents=[mirror, origin], key=KEY)
            edge.ask("POST", "/v1/reload", {})
            edge.until_current(root_hash)
            assert edge.status()["parent"] == "origin"
            assert len(list(edge.tree.glob("*_arm64.deb"))) == 5
        assert sorted(path.name for path in mirror.tree.glob("p*_*")) == ["p_amd64.deb"]
        mirror.until(lambda: mirror.status()["left_out_entries"] == 5, "five are left out")
        assert own.read_text() == "of this mirror"
        shown = StringIO()
        Console(file=shown, width=150).print(status_view(mirror.ask(), time.time()))
        assert "5 entries, 500 B: no child is served of this tree" in shown.getvalue()
        # What goes around a file of its own goes, but for the directory; and that is nothing to be mended.
        shutil.rmtree(trace)
        (origin.tree / "f").rename(origin.tree / "g_arm64.deb")
        mirror.until_current(until_other(origin, root_hash))
        assert (sorted(os.listdir(own.parent)), own.read_text()) == (["mirror.example.org"], "of this mirror")
        assert not (mirror.tree / "f").exists()
        assert verified(mirror) == []
        # Other patterns: what is no longer left out comes, what is left out from now on stays, and children are served.
        mirror.configure(parents=[origin], children=["edge"], key=KEY, exclude=["/project/", "g_*"])
        mirror.ask("POST", "/v1/reload", {})
        mirror.until(lambda: len(list(mirror.tree.glob("p*_arm64.deb"))) == 5, "what is no longer left out")
        mirror.until(lambda: mirror.status()["left_out_entries"] == 2, "a directory and a file are left out")
        (origin.tree / "g_arm64.deb").unlink()
        (origin.tree / "project").rmdir()
        mirror.until(lambda: not mirror.status()["not_served"], "it is whole again")
        assert own.read_text() == "of this mirror"


def verified(node: Node) -> list[str]:
    """What `syncd verify` finds different, and mends."""
    answer = node.ask("POST", "/v1/verify", {"tree": "t", "repair": True})
    return [found["path"] for found in answer["differences"]]


def origin_root(origin: Node) -> str:
    origin.until(lambda: origin.status().get("root_hash"), "a root")
    return str(origin.status()["root_hash"])


def until_other(origin: Node, root_hash: str) -> str:
    """The root that the origin signs when it has come to rest after changes."""
    origin.until(lambda: origin.status()["root_hash"] != root_hash, "another root")
    while (last := origin_root(origin)) != root_hash:
        root_hash = last
        time.sleep(0.5)
    return root_hash
