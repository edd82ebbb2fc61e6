"""Real rsync: the parent's daemon on a pipe, odd names, and what fails told path by path."""

# ruff: noqa: ASYNC221, ASYNC240 (a test has its loop to itself)

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from syncd.model import Entry, Kind
from syncd.publish.plan import Fetch
from syncd.transfer.io_rsync import own_ids, pull, pull_all, push
from syncd.transfer.io_rsync_check import check_binary
from syncd.transfer.rsync import (
    Arrived,
    Connector,
    Options,
    Progress,
    RsyncError,
    Verdict,
    daemon_command,
    daemon_config,
    rsh_argument,
)
from syncd.transfer.streams import split

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: to serve as another user, or to mount")

NAMES = [b"new\nline", b"cr\rlf", b"-dash", b"--help", b"\xff\xfe", b"x" * 255, b"a b", b" lead", b"trail ", b"[a]*?"]
NAMES += ["路/近".encode(), b"#hash", b";semi", b"\\#012", b'q"u\'o"te', b"%n", b"a/b/c/d", b"\x01\x7f\t", b"a:b", b"~"]


class Parent:
    """A tree served as a parent serves it: `rsync --server --daemon` on the stream of a connector."""

    def __init__(self, home: Path, owner: tuple[int, int] | None = None) -> None:
        self.root = home / "parent tree"
        self.root.mkdir()
        self.stage = home / "stage"
        self.stage.mkdir()
        config = home / "rsyncd.conf"
        config.write_text(daemon_config("tree", str(self.root), owner=owner or own_ids()))
        self.transport = Connector(("sh", "-c", "exec " + rsh_argument(daemon_command(str(config)))), "tree")

    def file(self, path: bytes, content: bytes = b"", mode: int = 0o640) -> Fetch:
        place = os.path.join(os.fsencode(self.root), path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content or path * 3)
        os.chmod(place, mode)
        os.utime(place, ns=(0, 1_700_000_000_123_456_789))
        found = os.lstat(place)
        return Fetch(Entry(path, Kind.FILE, stat.S_IMODE(found.st_mode), found.st_size, found.st_mtime_ns))

    def staged(self, path: bytes) -> bytes:
        with open(os.path.join(os.fsencode(self.stage), path), "rb") as file:
            return file.read()


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    return Parent(tmp_path)


async def test_every_name_arrives_as_it_is(parent: Parent) -> None:
    fetches = [parent.file(name) for name in NAMES]
    heard: list[Arrived | Progress] = []
    result = await pull(parent.transport, Options(), str(parent.stage), fetches, heard.append)
    assert result.verdict is Verdict.DONE, result
    assert result.arrived == set(NAMES)
    for fetch in fetches:
        found = os.lstat(os.path.join(os.fsencode(parent.stage), fetch.entry.path))
        assert parent.staged(fetch.entry.path) == fetch.entry.path * 3
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o640, 1_700_000_000_123_456_789)
    named = {what.path: what.size for what in heard if isinstance(what, Arrived)}
    assert {name: len(name) * 3 for name in NAMES}.items() <= named.items()
    done = [what.done_bytes for what in heard if isinstance(what, Progress)]
    assert done[-1] == sum(len(name) * 3 for name in NAMES)


async def test_vanished_and_changed_kinds_are_told_path_by_path(parent: Parent) -> None:
    good, gone, deep = parent.file(b"good"), parent.file(b"go\nne"), parent.file(b"d/e/f")
    link, directory = parent.file(b"li nk"), parent.file(b"dir")
    for path in ("go\nne", "li nk", "dir"):
        (parent.root / path).unlink()
    shutil.rmtree(parent.root / "d")
    (parent.root / "li nk").symlink_to("/etc/passwd")
    (parent.root / "dir").mkdir()
    result = await pull(parent.transport, Options(), str(parent.stage), [good, gone, deep, link, directory])
    assert result.verdict is Verdict.PARTIAL
    assert result.arrived - {b"dir"} == {b"good"}  # a directory comes as an empty one; `check_staged` finds that
    assert result.vanished == {b"go\nne", b"d/e/f"}
    assert result.failed == {b"li nk": "it is a special file or symlink at the parent now"}
    assert not os.path.lexists(parent.stage / "li nk")


@needs_root
async def test_unreadable_files_are_told_path_by_path(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(0o755)
    parent = Parent(tmp_path, owner=(65534, 65534))
    fetches = [parent.file(b"good", mode=0o644), parent.file(b"se cret\n", mode=0o600)]
    result = await pull(parent.transport, Options(), str(parent.stage), fetches)
    assert result.verdict is Verdict.PARTIAL
    assert result.arrived == {b"good"}
    assert result.failed == {b"se cret\n": "it cannot be read at the parent: Permission denied (13)"}


async def test_a_parent_that_cannot_be_reached(parent: Parent, tmp_path: Path) -> None:
    fetches = [parent.file(b"a"), parent.file(b"b")]
    dead = await pull(Connector(("false",), "tree"), Options(), str(parent.stage), fetches)
    assert dead.verdict is Verdict.AGAIN
    assert set(dead.failed) == {b"a", b"b"}
    other = await pull(Connector(parent.transport.command, "nope"), Options(), str(parent.stage), fetches)
    assert "Unknown module 'nope'" in other.failed[b"a"]
    with pytest.raises(RsyncError, match="install rsync"):
        await pull(parent.transport, Options(binary=str(tmp_path / "none")), str(parent.stage), fetches)


CUTTING_CONNECTOR = """
import os, select, subprocess, sys
left = int(sys.argv[1])
daemon = subprocess.Popen(sys.argv[2:-1], stdout=subprocess.PIPE)
while left > 0 and (data := os.read(daemon.stdout.fileno(), min(left, 65536))):
    left -= len(data)
    while data:
        select.select([], [1], [])
        data = data[os.write(1, data):]
daemon.kill()
"""


async def test_a_connection_cut_in_the_middle_goes_on_from_the_partial_file(parent: Parent, tmp_path: Path) -> None:
    content = os.urandom(6_000_000)
    big = parent.file(b"big", content)
    script = tmp_path / "cut.py"
    script.write_text(CUTTING_CONNECTOR)
    daemon = daemon_command(str(tmp_path / "rsyncd.conf"))
    # rsync adds the host and the command it would run there, which the last words of sh -c swallow.
    command = rsh_argument([sys.executable, str(script), "4000000", *daemon, "end"])
    cut = Connector(("sh", "-c", "exec " + command), "tree")
    result = await pull(cut, Options(), str(parent.stage), [big])
    assert result.verdict is Verdict.AGAIN
    assert set(result.failed) == {b"big"}
    assert not (parent.stage / "big").exists(), "a partial file under the final name"
    sent: list[Arrived | Progress] = []
    result = await pull(parent.transport, Options(), str(parent.stage), [big], sent.append)
    assert result.verdict is Verdict.DONE
    assert parent.staged(b"big") == content
    (arrived,) = [what for what in sent if isinstance(what, Arrived)]
    assert arrived.sent_bytes < 3_000_000, "what had come was sent again"


async def test_cancelling_ends_rsync_and_its_connector(parent: Parent) -> None:
    big = parent.file(b"big", b"\0" * 5_000_000)
    started = asyncio.Event()
    task = asyncio.create_task(
        pull(parent.transport, Options(limit_bytes_s=100_000), str(parent.stage), [big], lambda _: started.set())
    )
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):  # its connector notices the closed pipe
        running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        if str(parent.stage.parent) not in running:
            return
        await asyncio.sleep(0.05)
    pytest.fail(running)


async def test_hard_links_sparse_files_and_what_is_here_already(parent: Parent, tmp_path: Path) -> None:
    one = parent.file(b"one", b"x" * 100_000)
    os.link(parent.root / "one", parent.root / "two")
    two = Fetch(Entry(b"two", Kind.FILE, 0o640, 100_000, one.entry.mtime_ns))
    hole = parent.file(b"hole", b"\0" * 4_000_000 + b"end")
    basis = tmp_path / "published"
    basis.mkdir()
    shutil.copy2(parent.root / "one", basis / "one")
    heard: list[Arrived | Progress] = []
    options = Options(sparse=True, basis=str(basis))
    result = await pull(parent.transport, options, str(parent.stage), [one, two, hole], heard.append)
    assert result.verdict is Verdict.DONE
    assert os.path.samefile(parent.stage / "one", parent.stage / "two")
    assert os.path.samefile(parent.stage / "one", basis / "one")
    assert sum(what.sent_bytes for what in heard if isinstance(what, Arrived) and what.path != b"hole") < 1000
    assert os.stat(parent.stage / "hole").st_blocks * 512 < 1_000_000


async def test_same_size_and_time_but_other_content(parent: Parent, tmp_path: Path) -> None:
    edited = parent.file(b"f", b"new content")
    basis = tmp_path / "published"
    basis.mkdir()
    (basis / "f").write_bytes(b"old content")
    os.utime(basis / "f", ns=(0, edited.entry.mtime_ns))
    options = Options(basis=str(basis))
    await pull(parent.transport, options, str(parent.stage), [edited])
    assert parent.staged(b"f") == b"old content", "rsync looks at contents by itself: `exact` is not needed any more"
    shutil.rmtree(parent.stage)
    parent.stage.mkdir()
    await pull(parent.transport, options, str(parent.stage), [Fetch(edited.entry, exact=True)])
    assert parent.staged(b"f") == b"new content"
    assert (basis / "f").read_bytes() == b"old content", "the published file was written to"


async def test_parallel_streams(parent: Parent) -> None:
    fetches = [parent.file(b"d%d/f%d" % (n % 7, n), os.urandom(400_000)) for n in range(60)]
    batches = split(fetches, 3)
    assert len(batches) == 3
    results = await pull_all(parent.transport, Options(), str(parent.stage), batches, streams=3)
    assert {path for result in results for path in result.arrived} == {fetch.entry.path for fetch in fetches}
    subprocess.run(["diff", "-r", parent.root, parent.stage], check=True)


@needs_root
async def test_a_full_disk_is_told_as_one(parent: Parent) -> None:
    fetches = [parent.file(b"a", b"small"), parent.file(b"big", os.urandom(3_000_000))]
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", parent.stage], check=True)
    try:
        result = await pull(parent.transport, Options(), str(parent.stage), fetches)
        assert (result.verdict, result.text) == (Verdict.LOCAL, "the disk is full")
        assert b"big" in result.failed
        assert not (parent.stage / "big").exists()
    finally:
        subprocess.run(["umount", parent.stage], check=True)


async def test_push_with_deletes(parent: Parent, tmp_path: Path) -> None:
    root = tmp_path / "origin"
    root.mkdir()
    (root / "-n\new").write_bytes(b"1")
    (root / "link").symlink_to("-n\new")
    for old in ("gone", "kept"):
        (parent.root / old).write_bytes(b"old")
    config = tmp_path / "rsyncd.conf"
    config.write_text(config.read_text().replace("read only = yes", "read only = no").replace("refuse", "#"))
    result = await push(parent.transport, Options(), str(root), [b"-n\new", b"link", b"gone"], delete=True)
    assert result.verdict is Verdict.DONE, result
    assert sorted(os.listdir(parent.root)) == ["-n\new", "kept", "link"]
    assert os.readlink(parent.root / "link") == "-n\new"


async def test_a_child_cannot_write_to_its_parent(parent: Parent, tmp_path: Path) -> None:
    (tmp_path / "evil").write_bytes(b"x")
    result = await push(parent.transport, Options(), str(tmp_path), [b"evil"])
    assert result.verdict is not Verdict.DONE
    assert os.listdir(parent.root) == []


async def test_a_child_gets_nothing_outside_the_module(parent: Parent) -> None:
    (parent.root / "etc").symlink_to("/etc")
    fetches = [Fetch(Entry(path, Kind.FILE, 0o644)) for path in (b"etc/passwd", b"../rsyncd.conf")]
    await pull(parent.transport, Options(), str(parent.stage), fetches)
    assert [files for _, _, files in os.walk(parent.stage.parent / "stage") if files] == []


def test_the_rsync_here_is_good() -> None:
    assert check_binary() == []


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        ("""s/--delete-missing-args//""", "--delete-missing-args with --files-from is broken"),
        ("""s/-ptH/-pt/""", "hard links become copies"),
        ("""s/--link-dest=[^ ]*//""", "--link-dest does not link"),
    ],
)
def test_a_broken_rsync_is_found_out(tmp_path: Path, edit: str, word: str) -> None:
    fake = tmp_path / "rsync"
    real = shutil.which("rsync")
    fake.write_text(
        "#!/bin/bash\nargs=()\n"
        f"""for a in "$@"; do b=$(sed '{edit}' <<<"$a"); [ -n "$b" ] && args+=("$b"); done\n"""
        f"""exec {real} "${{args[@]}}"\n"""
    )
    fake.chmod(0o755)
    (wrong,) = check_binary(str(fake))
    assert word in wrong


def test_an_old_or_missing_rsync_is_refused(tmp_path: Path) -> None:
    fake = tmp_path / "rsync"
    fake.write_text("#!/bin/sh\necho 'rsync  version 3.0.9  protocol version 30'\n")
    fake.chmod(0o755)
    with pytest.raises(RsyncError, match=r"version 3\.0\.9: syncd needs 3\.1\.3"):
        check_binary(str(fake))
    with pytest.raises(RsyncError, match="cannot be run"):
        check_binary(str(tmp_path / "none"))
