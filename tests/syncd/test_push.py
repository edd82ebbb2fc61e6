"""Plain mirrors that a tree is pushed to: what is held before they lose it, and how fast they are pushed to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.transfer.loss import Loss, old_paths
from tests.syncd.nodes import Node, differences, running
from tests.syncd.plain_server import rsync_daemon


def test_what_a_dry_run_says_that_a_mirror_would_lose() -> None:
    loss = Loss()
    for line in (
        b"np:*deleting   0 --------- 1970/01/01-00:00:00 <old/x/>",
        b"np:*deleting   0 --------- 1970/01/01-00:00:00 <odd\\#012> -> name>",
        b"np:<f.st...... 0 rw-r--r-- 2026/11/23-20:20:01 <emptied>",
        b"np:<f+++++++++ 0 rw-r--r-- 2026/11/23-20:20:01 <new and empty>",
        b"np:<f.st...... 9 rw-r--r-- 2026/11/23-20:20:01 <changed>",
        b"np:.f..t...... 0 rw-r--r-- 2026/11/23-20:20:01 <touched>",
        b"np:cL+++++++++ 3 rwxrwxrwx 2026/11/23-20:20:01 <link> -> d/f",
        b"            2  40%    1.95kB/s    0:00:00 (xfr#1, to-chk=0/5)",
    ):
        loss.take(line)
    assert loss == Loss([b"old/x", b"odd\n> -> name"], [b"emptied"])


def test_what_has_another_name_is_known_by_its_old_one() -> None:
    renames = [(b"a", b"b"), (b"b/x", b"c"), (b"b", b"d"), (b"e/f", b"g")]
    now = [b"d", b"d/y", b"c", b"c/z", b"g", b"new"]
    assert old_paths(now, renames) == {b"a", b"a/y", b"a/x", b"a/x/z", b"e/f", b"new"}


@pytest.fixture
def rsyncd(tmp_path: Path) -> Iterator[str]:
    """See `rsync_daemon`."""
    with rsync_daemon(tmp_path) as url:
        yield url


def pushed(node: Node, name: str = "one") -> dict[str, Any]:
    told: dict[str, Any] = node.status()["pushes"][name]
    return told


def fill(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"{folder.name} {name}")


def test_a_mirror_loses_much_only_when_that_is_approved(tmp_path: Path, rsyncd: str) -> None:
    node, mirror = Node("origin", tmp_path / "origin"), tmp_path / "pushed"
    numbers = [str(number) for number in range(100)]
    fill(node.tree / "a", *numbers)
    fill(node.tree / "b", *numbers)
    fill(mirror / "of others", *numbers)
    node.configure(push={"one": {"to": f"{rsyncd}/pushed"}})

    def is_same() -> bool:
        return not pushed(node)["behind"] and differences(node.tree, mirror) == []

    def is_approved() -> bool:
        if (told := pushed(node)["held"]) is not None:
            node.ask("POST", "/v1/approve", {"tree": "t", "token": told["token"]})
        return is_same()

    def approve(what: str) -> None:
        node.until(lambda: pushed(node)["held"], f"held: {what}")
        told = pushed(node)["held"]
        assert f"would be deleted or emptied at {rsyncd}/pushed" in told["what"]
        node.until(is_approved, f"approved: {what}")
        node.until(lambda: pushed(node)["held"] is None, "nothing is held any more")

    with running(node):
        node.until(lambda: pushed(node)["held"], "what another wrote there is not deleted unasked")
        assert sorted(os.listdir(mirror)) == ["of others"]
        assert "  syncd approve t " in node.run("status").stdout
        wrong = node.run("approve", "t", "0" * 8)
        assert wrong.returncode == 1
        assert "nothing is held" in wrong.stderr
        approve("the first comparison")
        for number in numbers[:60]:
            (node.tree / "a" / number).unlink()
        subprocess.run(["rm", "-r", str(node.tree / "b")], check=True)
        node.until(lambda: pushed(node)["held"], "a mass delete is held")
        left = len(list(mirror.rglob("*")))
        assert left >= 202 - 40, f"{left} are left: what comes before the limit is reached may go"
        approve("deleted files and a directory")
        for number in numbers[60:]:
            (node.tree / "a" / number).write_text("")
        approve("files that lose their content")
        fill(node.tree / "c" / "d", *numbers)
        node.until(is_same, "new ones need nobody's word")
        (node.tree / "c").rename(node.tree / "e")
        node.until(is_same, "nor does a rename")
        (node.tree / "e" / "d").rename(node.tree / "f")
        node.until(is_same, "nor do renames")
        (node.tree / "f" / "1").unlink()
        (node.tree / "f" / "1").mkdir()
        fill(node.tree / "f" / "1", "x", "y")
        node.until(is_same, "a file becomes a directory")
        subprocess.run(["rm", "-r", str(node.tree / "f" / "1")], check=True)
        (node.tree / "f" / "1").symlink_to("2")
        node.until(is_same, "a directory becomes a symlink")


def test_a_push_keeps_the_limit_and_says_who_refuses_it(tmp_path: Path, rsyncd: str) -> None:
    node = Node("origin", tmp_path / "origin")
    fill(node.tree, "f")
    place = rsyncd.replace("//", "//mirror@") + "/secret"
    pushes = {"one": {"to": place, "password_file": str(tmp_path / "password")}, "two": {"to": place}}
    node.configure(push=pushes, bandwidth=[{"per_second": "128KiB"}])

    def limits() -> set[str]:
        lines = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        mine = [line.split() for line in lines.splitlines() if place in line and "--password-file" in line]
        return {word for words in mine for word in words if word.startswith("--bwlimit")}

    with running(node):
        node.until(lambda: differences(node.tree, tmp_path / "guarded") == [], "with user and password")
        node.until(lambda: pushed(node, "two")["error"], "without a password")
        assert place in pushed(node, "two")["error"]
        assert "at the other end lets nobody in" in pushed(node, "two")["error"]
        (node.tree / "large").write_bytes(os.urandom(200_000))
        node.until(lambda: limits() == {"--bwlimit=64"}, "each of two mirrors gets half of the limit")
        node.until(lambda: differences(node.tree, tmp_path / "guarded") == [], "it comes")
