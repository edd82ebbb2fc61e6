"""Scenarios of an operator's life, with real nodes: an origin and a copy that share many trees, each its own scenario."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.syncd.fleet import KEY, Fleet, edit, place, replace_file, seen, tree_of
from tests.syncd.nodes import Node

OPTIONS: dict[str, dict[str, Any]] = {
    "other": {},
    "hold": {"deletes": {"files": 10, "share": "30%", "floor": 5}},
    "gone": {},
    "replaced": {},
    "drift": {},
    "rot": {},
    "slow": {"bandwidth": [{"per_second": "400kB"}]},
    "hooks": {},
    "unread": {"indexes": ["index"]},
    "whole": {"mode": "atomic"},
    "clock": {},
    "links": {"keep": ["hard-links"]},
    "live": {"indexes": ["index"]},
    "atomic": {"indexes": ["index"], "mode": "atomic", "grace": "60s"},
}


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
    (top / "d").rename(top.with_name("deleted"))
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
    fleet.copy.ask("POST", "/v1/pull", {"tree": "hold"})
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
    top.rename(aside)
    shutil.copytree(aside, top, symlinks=True)  # moved to another disk on purpose
    fleet.origin.until(lambda: tree_of(fleet.origin, "gone")["state"] == "root-lost", "it notices again")
    (top / "moved").write_text("x")
    fleet.origin.ask("POST", "/v1/accept", {"tree": "gone"})
    fleet.until_current("gone")
    assert (copy / "moved").exists()
    assert "nothing to accept" in fleet.origin.ask("POST", "/v1/accept", {"tree": "gone"})["error"]


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
    while (stamp := fleet.status("replaced")["stamp"]) != "fresh" or not (copy / "new").exists():
        assert stamp != "fresh" or (copy / "new").exists(), "clients are sent to an empty disk"
    fleet.until_current("replaced")


def test_two_daemons_on_one_tree_are_refused(fleet: Fleet, tmp_path: Path) -> None:
    again = fleet.copy.run("run")
    assert again.returncode != 0
    assert "another syncd runs" in again.stderr
    seconds: dict[Path, Node] = {}
    for node, tree in ((fleet.copy, "other"), (fleet.copy, "atomic"), (fleet.origin, "other")):
        second = Node("second", tmp_path / f"{node.name}-{tree}")
        second.configure(parents=[fleet.origin], key=KEY)
        config = yaml.safe_load((node.home / "syncd.yaml").read_text())
        edit(second, trees={tree: config["trees"][tree] | ({"key_file": ""} if node is fleet.origin else {})})
        second.start(wait=False)
        seconds[fleet.at(node, tree)] = second
    for path, second in seconds.items():
        assert second.process is not None
        assert second.process.wait(30) != 0
        assert f"another syncd has the tree {path}" in second.log
    shared = Node("second", tmp_path / "shared")
    path = fleet.at(fleet.copy, "other")
    work = path.with_name(f".{path.name}.syncd")
    shared.configure(parents=[fleet.origin], key=KEY, work=str(work))
    shared.start(wait=False)
    assert shared.process is not None
    assert shared.process.wait(30) != 0
    assert f"another syncd has the work directory {work}" in shared.log


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
    # 1.5 s at 400 kB/s; rsync's own limit is kept over a second or so.
    assert time.monotonic() - started_s > 0.7


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
    fleet.copy.until(lambda: fleet.status("unread")["state"] == "retrying", "it says so")
    status = fleet.status("unread")
    assert {trouble["path"] for trouble in status["troubles"]} == {"small", "large"}
    assert all(trouble["why"] for trouble in status["troubles"])
    assert (copy / "index").read_bytes() == b"names f0", "an index is held back while what it may name is missing"
    fleet.copy.until(lambda: fleet.status("unread")["troubles"][0]["tries"] > 1, "it is tried again")
    for name in ("small", "large"):
        (top / name).chmod(0o644)
    fleet.until_current("unread")
    assert fleet.status("unread")["troubles"] == []
    assert fleet.status("unread")["waiting"] == 0


def test_a_version_that_is_not_whole_is_not_shown_and_the_state_says_why(fleet: Fleet) -> None:
    top, copy = fleet.at(fleet.origin, "whole"), fleet.at(fleet.copy, "whole")
    (top / "unread").write_bytes(b"s" * 100)
    (top / "unread").chmod(0)
    (top / "good").write_text("x")
    fleet.copy.until(lambda: "1 files did not come" in fleet.status("whole")["why"], "it says what is missing")
    assert fleet.status("whole")["state"] in ("retrying", "fetching", "comparing")
    assert not (copy / "good").exists(), "a version is whole or not"
    (top / "unread").chmod(0o644)
    fleet.until_same("whole")


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
    fleet.copy.until(lambda: fleet.status("other")["refused_paths"] == 2, "the others are told")
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


# --- the scrub ------------------------------------------------------------------------------------------------------------


def scrubbed(node: Node, tree: str) -> dict[str, Any]:
    """Read all of a tree anew, and what came of it."""
    before = tree_of(node, tree)["scrub"]["passes"]
    node.ask("POST", "/v1/scrub", {"tree": tree})
    node.until(lambda: tree_of(node, tree)["scrub"]["passes"] > before, "it is read")
    found: dict[str, Any] = tree_of(node, tree)["scrub"]
    return found


def is_all_known(node: Node, tree: str) -> bool:
    """Read all of a tree anew; whether the content of each file was read since it came."""
    scrubbed(node, tree)
    with closing(sqlite3.connect(node.home / "state" / "trees" / f"{tree}.db")) as db:
        sql = "SELECT count(*) FROM entries WHERE mode & 61440 = 32768 AND digest IS NULL"
        return db.execute(sql).fetchone() == (0,)


def rot(file: Path) -> bytes:
    """Other bytes in a file, with size and mtime as they were; what it held."""
    st, content = file.stat(), file.read_bytes()
    with open(file, "r+b") as stream:
        stream.write(bytes(255 - byte for byte in content))
    os.utime(file, ns=(st.st_atime_ns, st.st_mtime_ns))
    return content


@pytest.mark.parametrize("tree", ["drift", "atomic"])
def test_content_that_changed_without_a_trace_is_fetched_anew(fleet: Fleet, tree: str) -> None:
    top, copy = fleet.at(fleet.origin, tree), fleet.at(fleet.copy, tree)
    (top / "d" / "large").write_bytes(random.Random(3).randbytes(200_000))
    fleet.until_current(tree)
    # What is recorded anew while it is read is not known by that: what rots then was never known better.
    fleet.copy.until(lambda: is_all_known(fleet.copy, tree), "every content is known")
    first = tree_of(fleet.copy, tree)["scrub"]
    assert first["wrong"] == []
    assert first["files"] >= 20
    before = fleet.status(tree)
    for name in ("f7", "large"):
        rot(copy / "d" / name)
    fleet.copy.until(lambda: scrubbed(fleet.copy, tree)["found"] - first["found"] >= 2, "both are found")
    fleet.until_same(tree)
    after = fleet.status(tree)
    assert {entry["path"] for entry in after["scrub"]["wrong"]} == {"d/f7", "d/large"}
    assert after["fetched_files"] - before["fetched_files"] == 2
    assert scrubbed(fleet.copy, tree)["found"] == after["scrub"]["found"], "it is well again"


def test_wrong_content_at_the_origin_is_only_told(fleet: Fleet) -> None:
    top = fleet.at(fleet.origin, "rot")
    fleet.until_current("rot")
    time.sleep(0.1)  # what changed just now is not read yet: it could change again within a tick of the clock
    assert scrubbed(fleet.origin, "rot")["wrong"] == []
    before, fetched = seen(top), fleet.status("rot")["fetched_files"]
    # A write leaves a trace in the ctime, decay of a disk does not: here the record decays instead.
    with sqlite3.connect(fleet.origin.home / "state" / "trees" / "rot.db") as db:
        assert db.execute("UPDATE entries SET digest=? WHERE name=?", (bytes(32), b"f5")).rowcount == 1
    found = scrubbed(fleet.origin, "rot")
    assert [entry["path"] for entry in found["wrong"]] == ["d/f5"]
    assert scrubbed(fleet.origin, "rot")["found"] == found["found"] + 1, "it is told as long as it is so"
    assert seen(top) == before
    assert fleet.status("rot")["fetched_files"] == fetched
    replace_file(top / "d" / "f5", b"mended by somebody")
    fleet.until_current("rot")
    time.sleep(0.1)
    assert scrubbed(fleet.origin, "rot")["found"] == found["found"] + 1


# --- configuration, starts, lost states -----------------------------------------------------------------------------------


def test_trees_come_and_go_and_children_are_revoked_by_a_reload(fleet: Fleet) -> None:
    config = yaml.safe_load((fleet.origin.home / "syncd.yaml").read_text())
    more = {"added": place(fleet.at(fleet.origin, "added")) | {"key_file": "key"}}
    fleet.at(fleet.origin, "added").mkdir()
    (fleet.at(fleet.origin, "added") / "f").write_text("x")
    edit(fleet.origin, trees=config["trees"] | more)
    copies = yaml.safe_load((fleet.copy.home / "syncd.yaml").read_text())["trees"]
    added = copies["other"] | place(fleet.at(fleet.copy, "added"))
    edit(fleet.copy, trees={name: tree for name, tree in copies.items() if name != "slow"} | {"added": added})
    reload(fleet.origin)
    reload(fleet.copy)
    fleet.until_current("added")
    fleet.copy.until(lambda: not tree_of(fleet.copy, "slow"), "the tree that is left out is gone")
    assert (fleet.at(fleet.copy, "slow") / "large").exists(), "its files are not touched"
    edit(fleet.origin, children={"copy": config["children"]["copy"] | {"trees": ["other", "hooks"]}})
    reload(fleet.origin)
    fleet.copy.until(lambda: fleet.status("added")["state"] == "no-parent", "it is refused this tree")
    assert "refuses tree 'added' to copy" in fleet.status("added")["why"]
    (fleet.at(fleet.origin, "other") / "allowed").write_text("x")
    fleet.until_same("other")
    edit(fleet.origin, children={"copy": {"token_sha256": "0" * 64}})
    reload(fleet.origin)
    fleet.copy.until(lambda: fleet.status("other")["state"] == "no-parent", "its token is not known any more")
    assert "wrong token" in fleet.status("other")["why"]
    edit(fleet.origin, children=config["children"])
    reload(fleet.origin)
    fleet.copy.ask("POST", "/v1/pull", {"tree": "other"})
    (fleet.at(fleet.origin, "other") / "again").write_text("x")
    fleet.until_same("other")


def reload(node: Node) -> None:
    assert node.process is not None
    before = node.log.count("reloaded")
    node.process.send_signal(signal.SIGHUP)
    node.until(lambda: node.log.count("reloaded") > before, "it is reloaded")


def test_a_start_without_its_state_adopts_what_lies_there_and_transfers_nothing(fleet: Fleet) -> None:
    for name, target in (("out", "/etc/passwd"), ("up", "../../secret")):
        if not os.path.lexists(link := fleet.at(fleet.origin, "other") / name):
            link.symlink_to(target)
    fleet.copy.until(lambda: fleet.status("other")["refused_paths"] == 2, "what leads out is refused")
    for lost in (fleet.copy, fleet.origin):
        lost.stop(signal.SIGKILL)
        shutil.rmtree(lost.home / "state" / "trees")
        fetched = {tree: fleet.status(tree).get("fetched_files", 0) for tree in OPTIONS}
        lost.start()
        for tree in ("other", "drift", "atomic", "links"):
            fleet.copy.ask("POST", "/v1/pull", {"tree": tree})
            fleet.until_current(tree)
            assert fleet.status(tree)["fetched_files"] == fetched[tree], tree
            (fleet.at(fleet.origin, tree) / f"after-{lost.name}").write_text("x")
            fleet.until_current(tree)
    assert {entry["path"] for entry in fleet.status("other")["refused"]} == {"out", "up"}
    fleet.copy.stop()
    fleet.copy.start()
    assert {entry["path"] for entry in fleet.status("other")["refused"]} == {"out", "up"}
