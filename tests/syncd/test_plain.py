"""Existing fleets: a plain rsync server as the parent (rsyncd, ssh), and plain mirrors that a tree is pushed to."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from syncd.model import UNTOLD, Change, Entry, Kind, Op, PathError
from syncd.transfer.plain import look_arguments, parse_look, transport_of
from syncd.transfer.rsync import Rsyncd, Ssh
from tests.syncd.nodes import Node, differences, free_port, running

# --- what a dry run says ------------------------------------------------------------------------------------------------


def upsert(path: bytes, kind: Kind, mode: int, size: int = 0, target: bytes = b"") -> Change:
    return Change(0, Op.UPSERT, path, Entry(path, kind, mode, size, UNTOLD, target))


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (b"np:>f+++++++++ 12 rw-r--r-- <a/b>", upsert(b"a/b", Kind.FILE, 0o644, 12)),
        (b"np:.f...p..... 5 rw------- <s>", upsert(b"s", Kind.FILE, 0o600, 5)),
        (b"np:>f.st...... 0 rwsr-sr-T <x -> y>", upsert(b"x -> y", Kind.FILE, 0o7754)),
        (b"np:cd+++++++++ 4096 rwxr-x--t <d/>", upsert(b"d", Kind.DIRECTORY, 0o1751)),
        (b"np:cL+++++++++ 1 rwxrwxrwx <l> -> ../t o", upsert(b"l", Kind.SYMLINK, 0o777, target=b"../t o")),
        (b"np:>f+++++++++ 3 rw-r--r-- <nl\\#012\\#377x>", upsert(b"nl\n\xffx", Kind.FILE, 0o644, 3)),
        (b"np:*deleting   0 --------- <gone/z>", Change(0, Op.DELETE, b"gone/z")),
        (b"np:.d..t...... 4096 rwxr-xr-x <./>", None),
        (b"np:cS+++++++++ 0 rw-r--r-- <fifo>", None),
        (b"np:cD+++++++++ 0 rw-r--r-- <device>", None),
        (b'skipping non-regular file "x"', None),
        (b"", None),
    ],
)
def test_each_line_of_a_dry_run(line: bytes, change: Change | None) -> None:
    assert parse_look([line], with_deletes=True) == ([change] if change else [])


def test_a_run_that_did_not_end_well_deletes_nothing() -> None:
    lines = [b"np:*deleting   0 --------- <a>", b"np:>f+++++++++ 1 rw-r--r-- <b>"]
    assert [change.path for change in parse_look(lines, with_deletes=False)] == [b"b"]


@pytest.mark.parametrize("name", [b"/etc/passwd", b"../x", b"a/../../x", b"a//b"])
def test_names_that_lead_out_are_refused(name: bytes) -> None:
    with pytest.raises(PathError):
        parse_look([b"np:>f+++++++++ 1 rw-r--r-- <" + name + b">"], with_deletes=True)


def test_places() -> None:
    assert transport_of("me@host:/srv/x") == Ssh("me@host", "/srv/x")
    assert transport_of("rsync://host/m", "pw") == Rsyncd("host", "m", 873, "pw")
    assert transport_of("rsync://host:8730/m/sub/dir") == Rsyncd("host", "m/sub/dir", 8730)
    assert look_arguments(Rsyncd("h", "m/s"), "/t")[-2:] == ["rsync://h:873/m/s/", "/t/"]
    assert look_arguments(Ssh("me@h", "/s/"), "/t/")[-2:] == ["me@h:/s/", "/t/"]


# --- real servers -------------------------------------------------------------------------------------------------------


@contextmanager
def ended(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def until(holds: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.1)


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
    """Equal but for the times of directories and symlinks, which a dry run of rsync does not tell to the second."""
    found = differences(left, right)
    return [line for line in found if not line.startswith((".d..t...... ", ".L..t...... "))] == []


@pytest.fixture
def rsyncd(tmp_path: Path) -> Iterator[str]:
    """`rsync://...` of a daemon with the modules `source` (read-only) and `pushed`."""
    port = free_port()
    ids = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.geteuid() == 0 else ""
    modules = "".join(
        f"[{name}]\npath = {tmp_path / name}\nread only = {read_only}\nmunge symlinks = no\n{ids}"
        for name, read_only in (("source", "yes"), ("pushed", "no"))
    )
    (tmp_path / "rsyncd.conf").write_text(f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\n{modules}")
    (tmp_path / "pushed").mkdir()
    url = f"rsync://127.0.0.1:{port}"
    with ended(["rsync", "--daemon", "--no-detach", f"--config={tmp_path}/rsyncd.conf"]):
        until(lambda: subprocess.run(["rsync", url + "/"], capture_output=True).returncode == 0, "rsyncd answers")
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
    follow_plainly(copy, {"transport": "rsyncd", "place": f"{rsyncd}/source"}, deletes={"floor": 0, "share": "50%"})
    with running(copy):
        copy.until(lambda: same(source, copy.tree), "first content")
        source.rename(tmp_path / "away")
        copy.until(lambda: copy.status()["state"] == "no-parent", "it says that the server fails")
        source.mkdir()  # the disk of the server is not mounted
        copy.until(lambda: copy.status()["state"] == "held", "the mass delete is held")
        assert same(tmp_path / "away", copy.tree)
        source.rmdir()
        (tmp_path / "away").rename(source)
        copy.until(lambda: copy.status()["state"] == "current", "it goes on by itself", 90)


@pytest.mark.skipif(shutil.which("sshd") is None, reason="sshd is not installed")
@pytest.mark.skipif(os.geteuid() != 0, reason="sshd needs root here")
def test_a_copy_of_a_server_reached_by_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, source = free_port(), tmp_path / "source"
    write_source(source)
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    (tmp_path / "authorized").write_text((tmp_path / "client.pub").read_text())
    (tmp_path / "sshd.conf").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        f"StrictModes no\nPidFile none\nUsePAM no\nPermitRootLogin prohibit-password\n"
    )
    (tmp_path / "ssh.conf").write_text(
        f"Host *\n  Port {port}\n  IdentityFile {tmp_path}/client\n  UserKnownHostsFile {tmp_path}/known\n"
        "  StrictHostKeyChecking accept-new\n"
    )
    # An operator would write this into ~/.ssh/config, which is not the test's to write.
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh.conf "$@"\n')
    (bin_folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = [str(shutil.which("sshd")), "-D", "-e", "-f", str(tmp_path / "sshd.conf")]
    copy = Node("copy", tmp_path / "copy")
    follow_plainly(copy, {"transport": "ssh", "place": f"{getpass.getuser()}@127.0.0.1:{source}"})
    with open(tmp_path / "sshd.log", "wb") as log, ended(sshd, stderr=log), running(copy):
        copy.until(lambda: same(source, copy.tree), "first content")
        change_source(source)
        copy.until(lambda: same(source, copy.tree), "changes")
