"""Scenarios of an operator's life, with real nodes: an origin and a copy that share many trees, each its own scenario."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncd.signed_root import public_key
from tests.syncd.nodes import ROOT, TOKEN, Node, free_port

SEED = bytes(range(32))
NO_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
"""So that root, too, is refused what a mode refuses."""
OPTIONS: dict[str, dict[str, Any]] = {
    "other": {},
    "hold": {"deletes": {"files": 10, "share": "30%", "floor": 5}},
    "gone": {},
    "replaced": {},
    "drift": {},
    "rot": {},
    "slow": {"bandwidth": [{"per_second": "200kB"}]},
    "hooks": {},
    "unread": {"indexes": ["index"]},
    "clock": {},
    "links": {"keep": ["hard-links"]},
    "live": {"indexes": ["index"]},
    "atomic": {"indexes": ["index"], "mode": "atomic", "grace": "60s"},
}


class Fleet:
    """An origin and a copy of all its trees; trees lie in `trees` of each."""

    def __init__(self, home: Path) -> None:
        self.origin = Node("origin", home / "origin", wrap=NO_OVERRIDE if os.geteuid() == 0 else ())
        self.copy = Node("copy", home / "copy")

    def at(self, node: Node, tree: str) -> Path:
        return node.home / "trees" / tree

    def configure(self, trees: dict[str, dict[str, Any]]) -> None:
        """Write both configurations, with these trees."""
        for tree in trees:
            self.at(self.origin, tree).mkdir(parents=True, exist_ok=True)
        self.origin.configure(children=["copy"])
        (self.origin.home / "key").write_text(SEED.hex())
        edit(self.origin, trees={name: place(self.at(self.origin, name)) | {"key_file": "key"} for name in trees})
        self.copy.configure(parents=[self.origin], children=["other"], key=public_key(SEED).hex())
        of_copy = {"parents": ["origin"], "public_key": public_key(SEED).hex(), "poll": "1s"}
        copies = {name: place(self.at(self.copy, name)) | of_copy | more for name, more in trees.items()}
        edit(self.copy, trees=copies)

    def status(self, tree: str) -> dict[str, Any]:
        """What the copy says of a tree."""
        return tree_of(self.copy, tree)

    def until_same(self, tree: str, timeout_s: float = 30.0) -> None:
        """Wait until the copy of a tree is as the origin has it."""
        above, below = self.at(self.origin, tree), self.at(self.copy, tree)
        self.copy.until(lambda: seen(below) == seen(above), f"tree {tree} as at the origin", timeout_s)

    def until_current(self, tree: str) -> None:
        """Wait until the copy found itself equal to what the origin signed last."""
        self.until_same(tree)
        self.copy.until(
            lambda: self.status(tree)["root_hash"] == tree_of(self.origin, tree)["root_hash"] != "", f"{tree} current"
        )


def place(path: Path) -> dict[str, Any]:
    return {"path": str(path), "reserve": {"size": "0B", "share": "0%"}}


def edit(node: Node, **keys: Any) -> None:
    """Change top keys of a configuration."""
    file = node.home / "syncd.yaml"
    file.write_text(json.dumps(yaml.safe_load(file.read_text()) | keys))


def tree_of(node: Node, tree: str) -> dict[str, Any]:
    answer = node.ask()
    return answer["trees"].get(tree, {}) if answer else {}


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    """path -> (mode, mtime, content) of all below `root`, the directories' times included."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        try:
            st = path.lstat() if path != root else path.stat()
            content: object = None
            if stat.S_ISREG(st.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
            found[str(path.relative_to(root))] = (st.st_mode, st.st_mtime_ns, content)
        except OSError:
            continue
    return found


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, as publishers of mirrors do: under another name, then renamed."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.rename(path)


def held(fleet: Fleet, tree: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = fleet.status(tree).get("held")
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    hooks = fleet.copy.home / "hooks"
    hooks.mkdir(parents=True)
    OPTIONS["hooks"]["hooks"] = {
        "before": ["sh", "-c", f"test ! -e {hooks}/closed || {{ echo it is closed; exit 3; }}"],
        "after": ["sh", "-c", f'echo "$NEARPATH_TREE $NEARPATH_STEPS" >> {hooks}/told'],
    }
    fleet.configure(OPTIONS)
    for tree in OPTIONS:
        top = fleet.at(fleet.origin, tree)
        (top / "d").mkdir()
        for i in range(20):
            (top / "d" / f"f{i}").write_bytes(b"%d of %s\n" % (i, tree.encode()) * 10)
    try:
        fleet.origin.start()
        fleet.copy.start()
        for tree in OPTIONS:
            fleet.until_same(tree)
        yield fleet
    finally:
        fleet.origin.stop(signal.SIGKILL)
        fleet.copy.stop(signal.SIGKILL)


# --- guards ---------------------------------------------------------------------------------------------------------------


def test_a_mass_delete_is_held_until_it_is_approved_while_other_trees_go_on(fleet: Fleet) -> None:
    top, copy = fleet.at(fleet.origin, "hold"), fleet.at(fleet.copy, "hold")
    shutil.rmtree(top / "d")
    fleet.copy.until(lambda: held(fleet, "hold"), "it is held")
    found = held(fleet, "hold")
    assert found is not None
    assert "21 of 22 entries" in found["what"]
    assert fleet.status("hold")["state"] == "held"
    assert fleet.status("hold")["stamp"] == "stalled"
    assert len(list((copy / "d").iterdir())) == 20
    (fleet.at(fleet.origin, "other") / "meanwhile").write_text("x")
    fleet.until_same("other")
    wrong = fleet.copy.ask("POST", "/v1/approve", {"tree": "hold", "token": "00000000"})
    assert "nothing is held" in wrong["error"]
    # What comes after the token was given out is not covered by it: it is held again, under another.
    (top / "e").mkdir()
    (top / "e" / "new").write_text("x")
    assert "approved" in fleet.copy.ask("POST", "/v1/approve", {"tree": "hold", "token": found["token"]})
    fleet.until_current("hold")
    assert fleet.status("hold")["held"] is None
    for i in range(20):
        (top / f"g{i}").write_text("x")
    fleet.until_current("hold")
    for i in range(20):
        (top / f"g{i}").unlink()
    fleet.copy.until(lambda: held(fleet, "hold"), "the next one is held again")
    for i in range(20):
        (top / f"g{i}").write_text("back")
    fleet.until_current("hold")


def test_an_origin_whose_tree_is_moved_away_empties_nothing_and_comes_back(fleet: Fleet) -> None:
    top, copy = fleet.at(fleet.origin, "gone"), fleet.at(fleet.copy, "gone")
    before = seen(copy)
    aside = top.with_name("aside")
    top.rename(aside)
    top.mkdir()  # as an unmounted disk leaves its mount point
    fleet.origin.until(lambda: tree_of(fleet.origin, "gone")["state"] == "root-lost", "it notices")
    assert tree_of(fleet.origin, "gone")["why"]
    (top / "on the wrong disk").write_text("x")
    (fleet.at(fleet.origin, "other") / "still").write_text("x")
    fleet.until_same("other")
    assert seen(copy) == before
    (top / "on the wrong disk").unlink()
    top.rmdir()
    aside.rename(top)
    (top / "after").write_text("x")
    fleet.until_current("gone")


def test_a_copy_whose_disk_is_another_is_refused_until_it_is_accepted(fleet: Fleet) -> None:
    copy = fleet.at(fleet.copy, "replaced")
    aside = copy.with_name("aside")
    copy.rename(aside)
    copy.mkdir()
    fleet.copy.until(lambda: fleet.status("replaced")["state"] == "stopped", "it notices by itself")
    assert "another directory" in fleet.status("replaced")["why"]
    (fleet.at(fleet.origin, "replaced") / "new").write_text("x")
    (fleet.at(fleet.origin, "other") / "more").write_text("x")
    fleet.until_same("other")
    assert list(copy.iterdir()) == [], "nothing is written to the wrong disk"
    copy.rmdir()
    aside.rename(copy)
    fleet.copy.ask("POST", "/v1/pull", {"tree": "replaced"})
    fleet.until_current("replaced")
    copy.rename(aside)
    copy.mkdir()
    fleet.copy.until(lambda: fleet.status("replaced")["state"] == "stopped", "it notices again")
    fleet.copy.ask("POST", "/v1/accept", {"tree": "replaced"})
    fleet.until_current("replaced")


def test_two_daemons_on_one_tree_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    again = fleet.copy.run("run")
    assert again.returncode != 0
    assert "another syncd runs" in again.stderr
    for node, tree in ((fleet.copy, "other"), (fleet.copy, "atomic"), (fleet.origin, "other")):
        second = Node("second", tmp_path / f"{node.name}-{tree}")
        second.configure(parents=[fleet.origin], key=public_key(SEED).hex())
        config = yaml.safe_load((node.home / "syncd.yaml").read_text())
        edit(second, trees={tree: config["trees"][tree] | ({"key_file": ""} if node is fleet.origin else {})})
        done = second.run("run")
        assert done.returncode != 0, tree
        assert "another syncd" in done.stderr, done.stderr
        assert str(fleet.at(node, tree)) in done.stderr


# --- drift, adoption, hooks, limits ---------------------------------------------------------------------------------------


def test_what_was_changed_behind_its_back_is_found_and_only_that_is_fetched(fleet: Fleet) -> None:
    copy = fleet.at(fleet.copy, "drift")
    fleet.until_current("drift")
    before = fleet.status("drift")
    (copy / "d" / "f3").write_text("somebody was here, and wrote more than there was before" * 10)
    (copy / "d" / "f4").unlink()
    (copy / "d" / "added").write_text("x")
    (copy / "new").mkdir()
    found = fleet.copy.ask("POST", "/v1/verify", {"tree": "drift", "repair": True})
    names = {difference["path"] for difference in found["differences"]}
    assert {"d/f3", "d/f4", "d/added", "new"} <= names
    assert not any(name.startswith("d/f1") for name in names)
    fleet.until_current("drift")
    after = fleet.status("drift")
    assert after["fetched_files"] - before["fetched_files"] == 2
    sizes = [(fleet.at(fleet.origin, "drift") / "d" / name).stat().st_size for name in ("f3", "f4")]
    assert after["fetched_bytes"] - before["fetched_bytes"] == sum(sizes)


def test_a_failing_hook_before_holds_the_publish_back_and_one_after_is_told(fleet: Fleet) -> None:
    hooks = fleet.copy.home / "hooks"
    (hooks / "closed").touch()
    before = seen(fleet.at(fleet.copy, "hooks"))
    (fleet.at(fleet.origin, "hooks") / "new").write_text("x")
    fleet.copy.until(lambda: fleet.status("hooks")["state"] == "failed", "it is held back")
    assert "the hook before publishing" in fleet.status("hooks")["why"]
    assert "it is closed" in fleet.status("hooks")["why"]
    assert seen(fleet.at(fleet.copy, "hooks")) == before
    (hooks / "closed").unlink()
    fleet.copy.ask("POST", "/v1/pull", {"tree": "hooks"})
    fleet.until_current("hooks")
    fleet.copy.until(lambda: "hooks 2" in (hooks / "told").read_text(), "the hook after is run")


def test_a_bandwidth_limit_is_kept(fleet: Fleet) -> None:
    started_s = time.monotonic()
    (fleet.at(fleet.origin, "slow") / "large").write_bytes(random.Random(1).randbytes(600_000))
    fleet.until_same("slow")
    # 3 s at 200 kB/s; rsync's own limit is kept over a second or so.
    assert time.monotonic() - started_s > 1.5


def test_what_cannot_be_read_is_tried_again_and_shown_while_the_rest_is_published(fleet: Fleet) -> None:
    top, copy = fleet.at(fleet.origin, "unread"), fleet.at(fleet.copy, "unread")
    replace_file(top / "index", b"names f0")
    fleet.until_current("unread")
    for name, size in (("small", 100), ("large", 100_000)):
        (top / name).write_bytes(b"s" * size)
        (top / name).chmod(0)
    (top / "good").write_text("x")
    replace_file(top / "index", b"names small and large too")
    fleet.copy.until(lambda: (copy / "good").exists(), "what can be read is published")
    fleet.copy.until(lambda: len(fleet.status("unread")["troubles"]) == 2, "both are shown")
    status = fleet.status("unread")
    assert status["state"] == "retrying"
    assert {trouble["path"] for trouble in status["troubles"]} == {"small", "large"}
    assert all(trouble["why"] for trouble in status["troubles"])
    assert (copy / "index").read_bytes() == b"names f0", "an index is held back while what it may name is missing"
    fleet.copy.until(lambda: fleet.status("unread")["troubles"][0]["tries"] > 1, "it is tried again")
    for name in ("small", "large"):
        (top / name).chmod(0o644)
    fleet.until_current("unread")
    assert fleet.status("unread")["troubles"] == []
    assert fleet.status("unread")["waiting"] == 0


def test_no_clock_hides_a_change(fleet: Fleet) -> None:
    top = fleet.at(fleet.origin, "clock")
    for i, when_s in enumerate((0, 1, 10**9, 4 * 10**9, 2**33)):
        file = top / "d" / f"f{i}"
        file.write_bytes(b"%d" % i * 10)
        os.utime(file, (when_s, when_s))
    fleet.until_current("clock")
    for i, when_s in enumerate((4 * 10**9, 0, 10**9, 3, 2**33)):  # forwards, backwards, and twice the same
        file = top / "d" / f"f{i}"
        file.write_bytes(b"%d" % (9 - i) * 10)
        os.utime(file, (when_s, when_s))
    fleet.until_current("clock")


def test_symlinks_that_lead_out_are_refused_and_told_and_hashes_match_all_the_same(fleet: Fleet) -> None:
    top, copy = fleet.at(fleet.origin, "other"), fleet.at(fleet.copy, "other")
    (top / "out").symlink_to("/etc/passwd")
    (top / "up").symlink_to("../../secret")
    (top / "in").symlink_to("d/f1")
    fleet.copy.until(lambda: os.path.lexists(copy / "in"), "the good one is there")
    fleet.copy.until(
        lambda: fleet.status("other")["root_hash"] == tree_of(fleet.origin, "other")["root_hash"], "hashes match"
    )
    assert not os.path.lexists(copy / "out")
    assert not os.path.lexists(copy / "up")
    refused = {entry["path"]: entry["why"] for entry in fleet.status("other")["refused"]}
    assert refused.keys() == {"out", "up"}
    assert "/etc/passwd" in refused["out"]
    assert fleet.status("other")["state"] == "current"


def test_a_write_through_one_name_of_a_file_comes_to_its_other_names(fleet: Fleet) -> None:
    for tree in ("links", "clock"):  # where hard links are kept, and where not
        top = fleet.at(fleet.origin, tree)
        (top / "one").write_bytes(b"first")
        (top / "far").mkdir()
        for i in range(5):
            os.link(top / "one", top / "far" / f"name{i}")
    for tree in ("links", "clock"):
        fleet.until_current(tree)
        with open(fleet.at(fleet.origin, tree) / "far" / "name3", "ab") as file:
            file.write(b" and more")
    for tree in ("links", "clock"):
        fleet.until_current(tree)
        os.chmod(fleet.at(fleet.origin, tree) / "one", 0o600)
    for tree in ("links", "clock"):
        fleet.until_current(tree)
    inodes = {path.stat().st_ino for path in (fleet.at(fleet.copy, "links") / "far").iterdir()}
    assert len(inodes) == 1
