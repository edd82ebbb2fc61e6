"""Existing fleets: a plain rsync server as the parent (rsyncd, ssh), and plain mirrors that a tree is pushed to."""

from __future__ import annotations

import getpass
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncd.model import UNTOLD, Change, Entry, Kind, Op, PathError
from syncd.transfer.plain import is_of_root, look_arguments, parse_look, parse_unread, transport_of
from syncd.transfer.rsync import Rsyncd, Ssh
from tests.syncd.nodes import Node, differences, running
from tests.syncd.plain_server import rsync_daemon, ssh_daemon

# --- what a dry run says ------------------------------------------------------------------------------------------------


AT_NS = 1_795_465_201_000_000_000
"""2026-11-23 20:20:01 UTC"""


def upsert(path: bytes, kind: Kind, mode: int, size: int = 0, target: bytes = b"") -> Change:
    """Files come with their times when they are fetched."""
    return Change(0, Op.UPSERT, path, Entry(path, kind, mode, size, UNTOLD if kind is Kind.FILE else AT_NS, target))


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (b"np:>f+++++++++ 12 rw-r--r-- 2026/11/23-20:20:01 <a/b>", upsert(b"a/b", Kind.FILE, 0o644, 12)),
        (b"np:.f...p..... 5 rw------- 2026/11/23-20:20:01 <s>", upsert(b"s", Kind.FILE, 0o600, 5)),
        (b"np:>f.st...... 0 rwsr-sr-T 2026/11/23-20:20:01 <x -> y>", upsert(b"x -> y", Kind.FILE, 0o7754)),
        (b"np:cd+++++++++ 4096 rwxr-x--t 2026/11/23-20:20:01 <d/>", upsert(b"d", Kind.DIRECTORY, 0o1751)),
        (
            b"np:cL+++++++++ 1 rwxrwxrwx 2026/11/23-20:20:01 <l> -> ../t o",
            upsert(b"l", Kind.SYMLINK, 0o777, target=b"../t o"),
        ),
        (
            b"np:>f+++++++++ 3 rw-r--r-- 2026/11/23-20:20:01 <nl\\#012\\#377x>",
            upsert(b"nl\n\xffx", Kind.FILE, 0o644, 3),
        ),
        (b"np:*deleting   0 --------- 2026/11/23-20:20:01 <gone/z>", Change(0, Op.DELETE, b"gone/z")),
        (b"np:.d..t...... 4096 rwxr-x--- 2026/11/23-20:20:01 <./>", upsert(b"", Kind.DIRECTORY, 0o750)),
        (b"np:cS+++++++++ 0 rw-r--r-- 2026/11/23-20:20:01 <fifo>", None),
        (b"np:cD+++++++++ 0 rw-r--r-- 2026/11/23-20:20:01 <device>", None),
        (b'skipping non-regular file "x"', None),
        (b"", None),
    ],
)
def test_each_line_of_a_dry_run(line: bytes, change: Change | None) -> None:
    assert parse_look([line], with_deletes=True) == ([change] if change else [])


def test_a_run_that_did_not_end_well_deletes_nothing() -> None:
    lines = [
        b"np:*deleting   0 --------- 2026/11/23-20:20:01 <a>",
        b"np:>f+++++++++ 1 rw-r--r-- 2026/11/23-20:20:01 <b>",
    ]
    assert [change.path for change in parse_look(lines, with_deletes=False)] == [b"b"]


@pytest.mark.parametrize(
    ("wrong", "path", "why"),
    [
        (
            b'rsync: [sender] opendir "pool" (in m) failed: Permission denied (13)\nrsync error: some (code 23) at x',
            b"pool",
            "opendir",
        ),
        (b'rsync: [sender] change_dir "/srv/x" failed: No such file or directory (2)\n', b"/srv/x", "change_dir"),
        (b'rsync: [sender] link_stat "/srv/x/." failed: No such file or directory (2)\n', b"/srv/x/.", "link_stat"),
        (b'file has vanished: "/m/a"\nrsync: [sender] read_dir("b"): Input/output error (5)\n', b"b", "read_dir"),
        (b"rsync error: some files/attrs were not transferred (code 23)\n", b"", "not transferred"),
        (b"whatever an old one says\n", b"", "an old one"),
        (b"", b"", "does not say"),
    ],
)
def test_what_could_not_be_listed_is_named(wrong: bytes, path: bytes, why: str) -> None:
    (fault,) = parse_unread(wrong)
    assert fault.path == path
    assert why in fault.why
    assert is_of_root(fault) == path.startswith(b"/srv")


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../x", b"a/../../x", b"a//b"])
def test_names_that_lead_out_are_refused(name: bytes) -> None:
    with pytest.raises(PathError):
        parse_look([b"np:>f+++++++++ 1 rw-r--r-- 2026/11/23-20:20:01 <" + name + b">"], with_deletes=True)


def test_places() -> None:
    assert transport_of("me@host:/srv/x") == Ssh("me@host", "/srv/x")
    assert transport_of("rsync://host/m", "pw") == Rsyncd("host", "m", 873, "pw")
    assert transport_of("rsync://host:8730/m/sub/dir") == Rsyncd("host", "m/sub/dir", 8730)
    assert transport_of("rsync://me@host/m", "pw") == Rsyncd("host", "m", 873, "pw", "me")
    assert look_arguments(Rsyncd("h", "m", user="me"), "/t")[-2:] == ["rsync://me@h:873/m/", "/t/"]
    assert look_arguments(Rsyncd("h", "m/s"), "/t")[-2:] == ["rsync://h:873/m/s/", "/t/"]
    assert look_arguments(Ssh("me@h", "/s/"), "/t/")[-2:] == ["me@h:/s/", "/t/"]


# --- real servers -------------------------------------------------------------------------------------------------------


def write_source(folder: Path) -> None:
    (folder / "d").mkdir(parents=True)
    (folder / "d" / "f").write_text("first")
    (folder / "d" / "odd\nname").write_text("odd")
    (folder / "link").symlink_to("d/f")
    (folder / "index").write_text("f")


def change_source(folder: Path) -> None:
    (folder / "d" / "g").write_text("new")
    (folder / "d" / "f").write_text("second")
    (folder / "d" / "odd\nname").unlink()
    (folder / "d" / "g").chmod(0o600)
    (folder / "link").unlink()
    (folder / "link").symlink_to("d/g")


def same(left: Path, right: Path) -> bool:
    """Equal, with the times of directories and symlinks to the second."""
    return differences(left, right) == []


@pytest.fixture
def rsyncd(tmp_path: Path) -> Iterator[str]:
    """See `rsync_daemon`."""
    with rsync_daemon(tmp_path) as url:
        yield url


def follow_plainly(node: Node, parent: dict[str, str], **tree: Any) -> None:
    """Configure a node whose parent is a plain server."""
    node.configure(indexes=["index"], **tree)
    file = node.home / "syncd.yaml"
    config = yaml.safe_load(file.read_text())
    config["parents"] = {"old": {"every": "1s", **parent}}
    config["trees"]["t"]["parents"] = ["old"]
    file.write_text(yaml.safe_dump(config))


def test_a_copy_of_an_rsyncd_serves_children_and_pushes_on(tmp_path: Path, rsyncd: str) -> None:
    source, pushed = tmp_path / "source", tmp_path / "pushed"
    write_source(source)
    (pushed / "stale").write_text("of before")
    copy, edge = Node("copy", tmp_path / "copy"), Node("edge", tmp_path / "edge")
    place = {"transport": "rsyncd", "place": f"{rsyncd}/source"}
    copy.configure(children=["edge"])
    served = {key: yaml.safe_load((copy.home / "syncd.yaml").read_text())[key] for key in ("listen", "children")}
    follow_plainly(copy, place, push={"plain": {"to": f"{rsyncd}/pushed"}})
    with open(copy.home / "syncd.yaml", "a") as file:
        file.write(yaml.safe_dump(served))
    edge.configure(parents=[copy], key=copy.key())
    with running(copy, edge):
        for place_of_it in (copy.tree, edge.tree, pushed):
            copy.until(lambda place_of_it=place_of_it: same(source, place_of_it), f"first content at {place_of_it}")
        change_source(source)
        for place_of_it in (copy.tree, edge.tree, pushed):
            copy.until(lambda place_of_it=place_of_it: same(source, place_of_it), f"changes at {place_of_it}")
        # The node signs what nobody above signs, and its child holds it against that.
        edge.until(lambda: edge.status()["root_hash"] == copy.status()["root_hash"] != "", "the signed root")
        assert copy.status()["state"] == edge.status()["state"] == "current"


def test_a_server_that_goes_away_empties_nothing(tmp_path: Path, rsyncd: str) -> None:
    source = tmp_path / "source"
    write_source(source)
    copy = Node("copy", tmp_path / "copy")
    follow_plainly(copy, {"transport": "rsyncd", "place": f"{rsyncd}/source"})
    with running(copy):
        copy.until(lambda: same(source, copy.tree), "first content")
        copy.until(lambda: copy.status()["state"] == "current", "it is through")
        size = sum(len(path.read_bytes()) for path in source.rglob("*") if path.is_file() and not path.is_symlink())
        assert (copy.status()["entries"], copy.status()["bytes"]) == (6, size)
        copy.until(lambda: copy.status()["differences"] == 0, "another look finds nothing more to do")
        source.rename(tmp_path / "away")
        copy.until(lambda: copy.status()["state"] == "no-parent", "it says that the server fails")
        source.mkdir()  # the disk of the server is not mounted
        copy.until(lambda: copy.status()["state"] == "held", "the mass delete is held")
        assert same(tmp_path / "away", copy.tree)
        source.rmdir()
        (tmp_path / "away").rename(source)
        copy.until(lambda: copy.status()["state"] == "current", "it goes on by itself", 90)
        shutil.rmtree(source)
        source.mkdir()
        copy.until(lambda: copy.status()["held"], "held again")
        assert copy.ask("POST", "/v1/approve", {"tree": "t", "token": copy.status()["held"]["token"]}) is not None
        copy.until(lambda: os.listdir(copy.tree) == [], "it was meant")


def test_what_cannot_be_listed_there_stays_here_and_is_told(tmp_path: Path, rsyncd: str) -> None:
    source = tmp_path / "source"
    write_source(source)
    (source / "pool").mkdir()
    (source / "pool" / "p").write_text("payload")
    copy = Node("copy", tmp_path / "copy")
    follow_plainly(copy, {"transport": "rsyncd", "place": f"{rsyncd}/source"})
    with running(copy):
        copy.until(lambda: copy.status()["state"] == "current", "first content")
        asked_s = copy.status()["current_asked_s"]
        (source / "pool").chmod(0)
        (source / "new").write_text("new")
        (source / "index").unlink()
        copy.until(lambda: copy.status()["state"] == "retrying", "it says that it does not have all")
        copy.until((copy.tree / "new").exists, "what can be listed comes")
        assert (copy.tree / "pool" / "p").read_text() == "payload"
        assert (copy.tree / "index").exists(), "something was deleted after a listing that failed"
        found = copy.status()
        assert "'pool': opendir: Permission denied" in found["why"]
        assert "opendir" in found["parents"][0]["why"]
        asked_s = max(asked_s, found["current_asked_s"])
        compared_s = found["compared_wall_s"]
        copy.until(lambda: copy.status()["compared_wall_s"] > compared_s, "it looks again")
        assert copy.status()["stamp"] != "fresh"
        assert copy.status()["current_asked_s"] == asked_s, "a listing that failed made the copy fresh"
        (source / "pool").chmod(0o755)
        copy.until(lambda: copy.status()["state"] == "current" and same(source, copy.tree), "it mends itself")


def test_a_password_needs_a_user(tmp_path: Path, rsyncd: str) -> None:
    (tmp_path / "guarded" / "f").write_text("payload")
    copy = Node("copy", tmp_path / "copy")
    place = rsyncd.replace("//", "//mirror@") + "/secret"
    follow_plainly(copy, {"transport": "rsyncd", "place": place, "password_file": str(tmp_path / "password")})
    with running(copy):
        copy.until(lambda: same(tmp_path / "guarded", copy.tree), "what only this user may have")


@pytest.mark.skipif(shutil.which("sshd") is None, reason="sshd is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="sshd needs root here")
def test_a_copy_of_a_server_reached_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    write_source(source)
    copy = Node("copy", tmp_path / "copy")
    there = f"{getpass.getuser()}@127.0.0.1"
    mirror = tmp_path / "mirror"
    push = {"two": {"to": f"{there}:{mirror}"}}
    follow_plainly(copy, {"transport": "ssh", "place": f"{there}:{source}"}, push=push)
    with ssh_daemon(tmp_path) as path:
        monkeypatch.setenv("PATH", path)
        with running(copy):
            copy.until(lambda: same(source, copy.tree), "first content")
            change_source(source)
            copy.until(lambda: same(source, copy.tree), "changes")
            copy.until(lambda: copy.status()["state"] == "current", "it is current")
            copy.until(lambda: same(source, mirror), "changes, pushed on")
            source.rename(tmp_path / "away")
            copy.until(lambda: copy.status()["state"] == "no-parent", "a path that is gone is an error")
            assert f"{source}' cannot be listed: change_dir: No such file" in copy.status()["why"]
            assert copy.status()["stamp"] == "stalled"
            assert same(tmp_path / "away", copy.tree), "a missing source took something away"
