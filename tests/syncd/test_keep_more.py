"""What `keep` asks for of directories and symlinks, of which no entry tells: owners, extended attributes, lists."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.syncd.fleet import Fleet
from tests.syncd.nodes import running
from tests.syncd.test_keep import run, whole_differences

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may set owners"),
    pytest.mark.skipif(shutil.which("setfacl") is None, reason="acl is not installed"),
    pytest.mark.skipif(shutil.which("setfattr") is None, reason="attr is not installed"),
]

KEEP = ["xattrs", "acls", "owners"]


def test_directories_and_symlinks_keep_what_files_keep(tmp_path: Path) -> None:
    """The same in both modes: each change moves nothing but the ctime of a directory or symlink."""
    fleet = Fleet(tmp_path)
    fleet.configure({"live": {"keep": KEEP}, "atomic": {"keep": KEEP, "mode": "atomic"}})
    pairs = [(fleet.at(fleet.origin, mode), fleet.at(fleet.copy, mode)) for mode in ("live", "atomic")]
    trees = [tree for tree, _ in pairs]

    def until_same(what: str) -> None:
        def are_same() -> bool:
            time.sleep(0.2)  # it starts rsyncs
            return all(whole_differences(tree, copy) == [] for tree, copy in pairs)

        fleet.copy.until(are_same, what, 30)

    for tree in trees:
        (tree / "od" / "deep").mkdir(parents=True)
        (tree / "od" / "f").write_text("f")
        (tree / "od" / "l").symlink_to("f")
        (tree / "still").mkdir()
        os.chown(tree / "od", 1234, 2345)
        os.chown(tree / "od" / "l", 77, 78, follow_symlinks=False)
        run("setfattr", "-n", "user.note", "-v", "first", tree / "still")
        run("setfacl", "-d", "-m", "u:4321:rx", tree / "od" / "deep")
    with running(fleet.origin, fleet.copy):
        until_same("the first content, whole")
        for tree in trees:
            os.chown(tree / "od", 4444, 5555)
        until_same("the owner of a directory")
        for tree in trees:
            os.chown(tree / "od" / "l", 79, 80, follow_symlinks=False)
        until_same("the owner of a symlink")
        for tree in trees:
            run("setfattr", "-n", "user.note", "-v", "other", tree / "still")
            run("setfattr", "-n", "user.of-the-root", "-v", "1", tree)
        until_same("attributes of a directory and of the root")
        for tree in trees:
            run("setfattr", "-x", "user.note", tree / "still")
            run("setfacl", "-m", "u:4322:rwx", tree / "od")
            run("setfacl", "-k", tree / "od" / "deep")
        until_same("what was taken away")
        for tree in trees:
            (tree / "od" / "deep" / "new").write_text("new")  # in mode atomic, all is published anew with it
            (tree / "od").rename(tree / "moved")
        until_same("a new file, a directory renamed")
        # While the origin is down nothing tells of it: it is found at start.
        fleet.origin.stop()
        for tree in trees:
            os.chown(tree / "moved" / "deep", 6, 7)
        fleet.origin.start()
        until_same("an owner that changed while it was down")
        # What somebody did to the copy is found and mended by a verification.
        tree, copy = pairs[0]
        os.chown(copy / "moved", 1, 1)
        run("setfattr", "-n", "user.mine", "-v", "1", copy / "moved" / "f")
        run("setfattr", "-n", "user.mine", "-v", "1", copy)
        fleet.copy.until(lambda: fleet.status("live")["state"] == "current", "it is at rest")
        done = fleet.copy.run("verify", "live")
        assert done.returncode == 1, done.stdout + done.stderr
        assert "moved: has another owner, another group" in done.stdout
        assert "moved/f: has other extended attributes" in done.stdout
        assert ".: has other extended attributes" in done.stdout
        until_same("what was mended")
        assert "0 different" in fleet.copy.run("verify", "live").stdout
