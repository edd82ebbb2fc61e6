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
