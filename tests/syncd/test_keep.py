"""What `keep` asks for: hard links, sparse files, extended attributes, access control lists, owners."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.syncd.nodes import Node, differences, running

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may set owners"),
    pytest.mark.skipif(shutil.which("setfacl") is None, reason="acl is not installed"),
    pytest.mark.skipif(shutil.which("setfattr") is None, reason="attr is not installed"),
]


def run(*command: str | Path) -> str:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def whole_differences(origin: Path, copy: Path) -> list[str]:
    """Like `differences`, with links, attributes, lists and owners."""
    command = ["rsync", "-anicHAX", "--numeric-ids", "--delete", f"{origin}/", f"{copy}/"]
    done = subprocess.run(command, capture_output=True, text=True)
    # 23, 24: something changed while rsync looked.
    return done.stdout.splitlines() if done.returncode == 0 else [f"rsync ended with {done.returncode}"]


@pytest.mark.parametrize("mode", ["live", "atomic"])
def test_everything_that_is_asked_for_is_kept(tmp_path: Path, mode: str) -> None:
    origin, copy = Node("origin", tmp_path / "origin"), Node("copy", tmp_path / "copy")
    origin.configure(children=["copy"], keep=["hard-links"])
    tree = origin.tree
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "one").write_text("linked")
    os.link(tree / "d" / "one", tree / "two")
    (tree / "owned").write_text("owned")
    os.chown(tree / "owned", 1234, 2345)
    run("setfattr", "-n", "user.note", "-v", "kept", tree / "owned")
    run("setfacl", "-m", "u:4321:r", tree / "owned")
    with open(tree / "sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    keep = ["hard-links", "sparse", "xattrs", "acls", "owners"]
    copy.configure(parents=[origin], key=origin.key(), keep=keep, mode=mode)
    with running(origin, copy):
        copy.until(lambda: whole_differences(tree, copy.tree) == [], "the first content, whole")
        assert os.stat(copy.tree / "sparse").st_blocks * 512 < 1 << 20
        assert os.stat(copy.tree / "two").st_ino == os.stat(copy.tree / "d" / "one").st_ino
        # Each of them changed, and nothing else.
        os.link(tree / "two", tree / "d" / "three")
        (tree / "new").write_text("n")
        os.link(tree / "new", tree / "new2")
        os.chown(tree / "owned", 4444, 5555)
        run("setfattr", "-n", "user.note", "-v", "other", tree / "owned")
        run("setfacl", "-m", "u:4322:rw", tree / "owned")
        copy.until(lambda: whole_differences(tree, copy.tree) == [], "the changes, whole", 30)
        with open(tree / "d" / "three", "a") as file:  # a write through one name is one through all
            file.write(", written")
        copy.until(lambda: whole_differences(tree, copy.tree) == [], "the write through one of three names", 30)
        assert os.stat(copy.tree / "two").st_ino == os.stat(copy.tree / "d" / "three").st_ino
        assert (copy.tree / "two").read_text() == "linked, written"
        assert differences(tree, copy.tree) == []
