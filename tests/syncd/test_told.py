"""What operators are told: what does not reach the copies and why, what is wrong, and what to type."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from core.errors import NearpathError
from syncd.io_cli_set_up import make_room_for_key
from tests.syncd.fleet import Fleet, edit, tree_of
from tests.syncd.nodes import Node, running


def test_what_copies_do_not_get_is_named_at_the_origin_and_at_the_copy(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    fleet.configure({"t": {}})
    tree = fleet.at(fleet.origin, "t")
    (tree / "misc").mkdir()
    (tree / "misc" / "out").symlink_to("/etc/passwd")
    (tree / "small").write_bytes(b"small")
    (tree / "large").write_bytes(b"large" * 200_000)
    (tree / "good").write_bytes(b"good")
    os.mkfifo(tree / "misc" / "fifo")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(tree / "sock"))
    for name in ("small", "large"):
        (tree / name).chmod(0)
    with running(fleet.origin, fleet.copy):
        fleet.copy.until(lambda: len(fleet.status("t").get("troubles", [])) == 2, "both files are named at the copy")
        told = {trouble["path"]: trouble["why"] for trouble in fleet.status("t")["troubles"]}
        assert {path: why[:31] for path, why in told.items()} == dict.fromkeys(
            ("small", "large"), "it cannot be read at the parent"
        )
        above = tree_of(fleet.origin, "t")
        assert (above["unreadable"], above["skipped"]) == (2, 2)
        shown = fleet.origin.run("status").stdout
        assert "2 files that no copy gets: let syncd's user read them" in shown
        assert "large: user 0 may not read it: mode 0000, owner 0, group 0" in shown
        assert "2 names that are not replicated" in shown
        assert "misc/fifo: a device, socket or fifo" in shown
        assert "unreadable" in fleet.origin.log
        # What is mended, or gone, is named no more; the copy gets it by itself.
        (tree / "small").chmod(0o644)
        (tree / "large").chmod(0o600)
        shutil.move(tree / "misc" / "fifo", tmp_path / "fifo")
        fleet.copy.until(lambda: (fleet.at(fleet.copy, "t") / "large").exists(), "the large file")
        fleet.origin.until(lambda: tree_of(fleet.origin, "t")["skipped"] == 1, "the fifo is gone")
        assert tree_of(fleet.origin, "t")["unreadable"] == 0
        # A symlink that is not published on purpose is no difference.
        fleet.copy.until(lambda: fleet.status("t")["state"] == "current", "all is there")
        done = fleet.copy.run("verify", "t")
        assert "misc/out: refused: symlink to '/etc/passwd', which leads out of the tree" in done.stdout
        assert "0 different, 1 refused" in done.stdout
        assert (done.returncode, "repaired" in done.stdout) == (0, False), done.stdout + done.stderr
        # The directory of the origin goes while it runs.
        tree.rename(tmp_path / "away")
        fleet.origin.until(lambda: tree_of(fleet.origin, "t")["state"] == "root-lost", "it is gone")
        why = tree_of(fleet.origin, "t")["why"]
        assert why.startswith(f"{tree}: No such file or directory: ")
        assert "`syncd accept t`" in why
        tree.mkdir()
        fleet.origin.until(lambda: "another directory" in tree_of(fleet.origin, "t")["why"], "another one is there")
        assert "if it is meant to be this one: `syncd accept t`" in tree_of(fleet.origin, "t")["why"]


def test_a_token_where_its_hash_belongs_names_the_command_that_makes_both(tmp_path: Path) -> None:
    node = Node("n", tmp_path)
    node.configure(children=["c"])
    edit(node, children={"c": {"token_sha256": "a token itself"}})
    done = node.run("check-config")
    assert "`syncd token`" in done.stderr
    assert "agent-token" not in done.stderr
    assert "a token itself" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_makes_a_key_for_the_user_whose_state_it_is(tmp_path: Path) -> None:
    node = Node("n", tmp_path)
    node.configure()
    state = tmp_path / "state"
    key = node.key()
    assert (state.stat().st_mode & 0o7777, state.stat().st_uid) == (0o750, 0)
    assert "is open to everybody" not in node.run("check-config").stdout
    shutil.rmtree(state)
    state.mkdir(0o750)
    os.chown(state, 4321, 4322)
    assert node.key() != key
    made = [state / "keys", state / "keys" / "t.key"]
    assert [(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o7777) for path in made] == [
        (4321, 4322, 0o700),
        (4321, 4322, 0o600),
    ]


def test_who_cannot_make_the_folder_of_a_key_is_told_what_root_has_to_type() -> None:
    state = Path("/proc/nearpath-sync")
    with pytest.raises(NearpathError) as error:
        make_room_for_key(state / "keys" / "t.key", state)
    assert "install -d -o nearpath-sync -g nearpath-sync -m 0750 /proc/nearpath-sync" in str(error.value)


FEW_WATCHES = ("unshare", "-Ur", "sh", "-c", 'echo 3 > /proc/sys/user/max_inotify_watches && exec "$@"', "sh")
"""A user namespace in which three directories can be watched."""


@pytest.mark.skipif(subprocess.run([*FEW_WATCHES, "true"]).returncode != 0, reason="no user namespace can be had here")
def test_directories_that_are_not_watched_are_named_with_the_reason(tmp_path: Path) -> None:
    origin = Node("origin", tmp_path, wrap=FEW_WATCHES)
    for name in "abcdefgh":
        (origin.tree / name).mkdir(parents=True)
    origin.configure(watch="inotify")
    with running(origin):
        origin.until(lambda: origin.status().get("unwatched") == 6, "watches are used up")
        shown = origin.run("status").stdout
        assert "6 directories; they are read from time to time" in shown
        assert "... and 3 more (--json names 6)" in shown
        first = origin.status()["unwatched_paths"][0]
        assert f"{first['path']}: {first['why']}" in shown
        assert f"first={first['path']}" in origin.log
