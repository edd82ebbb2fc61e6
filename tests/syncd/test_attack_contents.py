"""Modes, messages and proofs of a hostile parent, mirror or uploader, and what a copy and an origin make of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core.config_sync import Push, Tree
from syncd.copy.io_bring import _has_room
from syncd.copy.io_copy import Copy
from syncd.copy.io_prove import prove_staged
from syncd.copy.unsigned import REPAIRS, UNSIGNED_S, Unsigned
from syncd.io_cli import console
from syncd.model import Entry, Kind
from syncd.publish.io_publish import Layout, begin, check_staged, prepare, run
from syncd.publish.io_steps import is_as_announced
from syncd.publish.plan import Fetch
from syncd.publish.steps import Do, Intent, Step
from syncd.source.io_contents import Contents, Later
from syncd.source.io_digest import digest_of
from syncd.source.io_scan import Disk
from syncd.store.io_offer import Freshness, Offer
from syncd.transfer import io_push, io_rsync
from syncd.transfer.io_push import Pusher
from syncd.transfer.io_small import read_files
from syncd.transfer.plain import parse_look
from syncd.transfer.rsync import (
    REFUSES,
    Arrived,
    Fault,
    Options,
    Progress,
    Rsyncd,
    RsyncError,
    Verdict,
    judge,
    parse_line,
)
from syncd.transfer.wire import Content, decode_files
from tests.syncd.disk_tree import killed_at
from tests.syncd.serving import until
from tests.syncd.test_rsync_run import Parent
from tests.syncd.watched import Start, settle, write

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root: becomes another user")
MIRROR = Rsyncd("h", "m")


def staged(home: Path, path: bytes, content: bytes, mode: int, said: int) -> tuple[Layout, Step]:
    """A file in a stage, and the step that publishes it; it was announced with the mode `said`."""
    (home / "tree").mkdir(exist_ok=True)
    layout = Layout(os.fsencode(home / "tree"), os.fsencode(home / "work"))
    prepare(layout)
    place = Path(os.fsdecode(layout.stage)) / os.fsdecode(path)
    place.write_bytes(content)
    place.chmod(mode)
    found = place.stat()
    entry = Entry(path, Kind.FILE, said, found.st_size, found.st_mtime_ns, digest=digest_of(content))
    return layout, Step(Do.PUT, path, entry=entry)


# --- modes --------------------------------------------------------------------------------------------------------------


def test_a_file_is_published_with_the_mode_that_was_announced(tmp_path: Path) -> None:
    """rsync gives it the one that it has on the parent's disk: set-user-ID, say; no comparison would ever be equal."""
    layout, step = staged(tmp_path, b"f", b"content", 0o4755, said=0o644)
    assert check_staged(layout, [step]) == {}
    place = tmp_path / "work" / "stage" / "f"
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    place.chmod(0o4755)
    os.link(place, tmp_path / "tree" / "seen")  # as --link-dest does it: this one is of clients too
    assert check_staged(layout, [step]).keys() == {b"f"}
    assert stat.S_IMODE((tmp_path / "tree" / "seen").stat().st_mode) == 0o4755


@needs_root
def test_a_file_that_its_owner_may_not_read_stops_no_other(tmp_path: Path) -> None:
    """Who uploads it says `chmod 044`: the origin reads it like anybody else, and a copy owns it."""
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)

    def as_nobody(_trip: Callable[[str], None]) -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        layout, step = staged(home, b"f", b"content", 0o044, said=0o044)
        _, wrong = staged(home, b"wrong", b"content", 0o044, said=0o044)
        assert step.entry is not None
        assert wrong.entry is not None
        entries = [step.entry, wrong.entry._replace(digest=digest_of(b"signed"))]
        assert prove_staged(layout.stage, entries).keys() == {b"wrong"}
        assert check_staged(layout, [step]) == {}
        _, other = staged(home, b"g", b"content", 0o644, said=0o644)
        begin(layout, Intent(1, (step, other)))
        run(layout)
        assert sorted(os.listdir(home / "tree")) == ["f", "g"]
        assert stat.S_IMODE((home / "tree" / "f").stat().st_mode) == 0o044

    assert not killed_at(as_nobody, 1_000_000)


# --- what an uploader makes ---------------------------------------------------------------------------------------------


def test_times_that_no_index_holds_stop_nothing(root: bytes, start: Start) -> None:
    """`touch -d 2303-01-01`: the origin went on to say that it is ready, and told nothing of anything any more."""
    source = start()
    for name, mtime_ns in ((b"f", 2**63 + 1), (b"d/f", -1), (b"g", -5)):
        write(root, name)
        above = os.path.dirname(os.path.join(root, name))
        for place in (os.path.join(root, name), above):
            os.utime(place, ns=(0, mtime_ns))
    settle(source)
    found = {entry.path: entry for entry in source.index.entries()}
    assert found.keys() == {b"", b"f", b"d", b"d/f", b"g"}
    assert (found[b"f"].mtime_ns, found[b"d"].mtime_ns, found[b"d/f"].mtime_ns) == (2**63 - 1, 0, 0)
    for path in (b"f", b"d/f", b"g"):  # as rsync brings it to a copy
        assert is_as_announced(os.stat(os.path.join(root, path)), found[path])
        answer = decode_files(1, read_files(root, [path]))[0]
        assert isinstance(answer, Content)
        assert answer.mtime_ns == found[path].mtime_ns


def test_a_file_that_somebody_has_a_lease_on_is_read_when_he_has_not(root: bytes, start: Start) -> None:
    source = start(signed_contents=True)
    full = write(root, b"../f", b"leased")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    fd = os.open(full, os.O_WRONLY)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            pytest.skip(f"no leases here: {error}")
        os.rename(full, os.path.join(root, b"f"))
        for _ in range(10):
            source.step(0.01)
        assert source.index.get(b"f") is None
    finally:
        os.close(fd)
        signal.signal(signal.SIGIO, before)
    while (found := source.index.get(b"f")) is None:
        source.step(0.05)
    assert found.digest == digest_of(b"leased")


def test_a_sparse_file_of_terabytes_keeps_no_other_waiting(root: bytes) -> None:
    contents, disk = Contents(root, lambda: None), Disk(root)
    try:
        for name, size in ((b"huge", 1 << 40), (b"large", 1 << 20)):
            with open(write(root, name), "wb") as file:
                file.truncate(size)
            row = disk.look(name)
            assert row is not None
            with pytest.raises(Later):
                contents.of(disk, name, row)
            while name == b"huge" and not contents._asked.empty():
                time.sleep(0.001)
        while (again := contents.take_again()) == []:
            time.sleep(0.001)
        assert again == [(b"large", 0.0)]
    finally:
        contents.close()
        disk.close()


# --- messages -----------------------------------------------------------------------------------------------------------


def rsync_that(home: Path, script: str) -> Options:
    """An rsync that prints what a hostile other end has it print: its messages come out among ours."""
    binary = home / "rsync"
    binary.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit\n{script}\n")
    binary.chmod(0o755)
    return Options(binary=str(binary))


async def test_what_nobody_asked_for_did_not_arrive(tmp_path: Path) -> None:
    """A parent could else fill the memory of a copy with names."""
    options = rsync_that(tmp_path, "seq -f 'np:>f+++++++++ 1 1 n%.0f' 3000; echo 'np:>f+++++++++ 3 3 a'")
    told: list[Arrived | Progress] = []
    fetch = Fetch(Entry(b"a", Kind.FILE, 0o644, 3, 1))
    result = await io_rsync.pull(MIRROR, options, str(tmp_path), [fetch], told.append)
    assert told == [Arrived(b"a", 3, 3)]
    assert (result.verdict, result.arrived) == (Verdict.DONE, frozenset((b"a",)))


async def test_a_mirror_that_loses_without_end_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_rsync, "MAX_LOSS_BYTES", 300_000)
    options = rsync_that(tmp_path, "yes 'np:*deleting 0 rw-r--r-- 2026/11/23-20:20:01 <a>' | head -c 310000")
    with pytest.raises(RsyncError, match="right place"):
        await io_rsync.find_loss(MIRROR, options, str(tmp_path), None, True)


@pytest.mark.parametrize("line", ["np:>f+++++++++ %s 1 a", "np:>f+++++++++ 1 %s a", "  %s  5%% "])
def test_a_number_that_is_none_is_no_fault_of_ours(line: str) -> None:
    assert parse_line((line % ("9" * 5000)).encode()) is None


def test_a_size_or_time_of_a_plain_server_that_no_disk_holds(root: bytes) -> None:
    assert parse_look([b"np:>fcst " + b"9" * 5000 + b" rw-r--r-- 2026/11/23-20:20:01 <a>"], True) == []
    (change,) = parse_look([b"np:.d..t...... 4096 rwxr-xr-x 2303/01/01-00:00:00 <d/>"], True)
    assert change.entry is not None
    assert change.entry.mtime_ns == 2**63 - 1


def test_a_disk_is_full_when_it_is(tmp_path: Path) -> None:
    """And not when a parent says so: what it has rsync print comes out among rsync's own words."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "store").mkdir()
    tree = Tree.model_validate({"path": str(tmp_path / "tree"), "parents": ["up"], "public_key": "0" * 64})
    copy = Copy("t", tree, tmp_path / "store" / "t.db")
    try:
        assert _has_room(copy, 0)
        assert _has_room(copy, 1 << 20)
        assert not _has_room(copy, copy.space().free_bytes + (1 << 30))
    finally:
        copy.close()


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
async def test_deep_files_that_rsync_refuses_together_stop_no_other(tmp_path: Path) -> None:
    """Seen of 3.2.7 and 3.5.0: `rejecting unrequested file-list name`, and nothing at all is transferred."""
    parent = Parent(tmp_path)
    fetches = [parent.file(b"ok"), *(parent.file(b"/".join([b"x" * 200] * deep + [b"f"])) for deep in (10, 11))]
    result = await io_rsync.pull(parent.transport, Options(), str(parent.stage), fetches)
    assert (result.verdict, result.failed) == (Verdict.DONE, {})
    assert result.arrived == {fetch.entry.path for fetch in fetches}


def test_what_rsync_refuses_of_a_batch_is_not_the_fault_of_all() -> None:
    line = parse_line(b"ERROR: rejecting unrequested file-list name: a/b")
    assert isinstance(line, Fault)
    result = judge([b"a/b/c", b"d"], [], [line], 4)
    assert result.verdict is Verdict.PARTIAL
    assert result.failed == dict.fromkeys([b"a/b/c", b"d"], REFUSES)
    assert judge([b"d"], [], [], 4).verdict is Verdict.FATAL


async def test_a_fault_of_ours_does_not_end_the_pushing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_push, "MAX_AGAIN_S", 0.001)
    tries: list[int] = []

    async def step(_pusher: Pusher) -> None:
        tries.append(1)
        raise ValueError("a fault of ours")

    monkeypatch.setattr(Pusher, "_step", step)
    offer = Offer(tmp_path / "t.db", lambda: Freshness(0.0, 0), lambda: None)
    pusher = Pusher("t", Tree(path=str(tmp_path)), "m", Push(to="rsync://h.example/m"), offer)
    pusher.start()
    await until(lambda: len(tries) > 2)
    assert "a fault of ours" in pusher.error
    await pusher.stop()


def test_a_name_is_shown_as_it_is() -> None:
    assert console.render_str(":skull:[bold]").plain == ":skull:[bold]"


# --- proofs -------------------------------------------------------------------------------------------------------------


def test_a_parent_is_not_fresh_by_being_another_at_each_comparison() -> None:
    unsigned = Unsigned()
    for now in range(REPAIRS - 1):
        assert not unsigned.compared(float(now), 5, 0.0)
        assert unsigned.since_s is None  # the copy was another, and is mended
    assert not unsigned.compared(10.0, 5, 0.0)
    assert unsigned.since_s == 10.0
    assert not unsigned.compared(11.0, 0, 0.0)
    assert unsigned.compared(10.0 + UNSIGNED_S, 5, 0.0)
    unsigned.proved()
    assert unsigned.since_s is None
    assert not unsigned.compared(1000.0, 5, 0.0)
    assert unsigned.since_s is None


def test_a_parent_is_not_fresh_by_saying_for_ever_that_it_is_behind() -> None:
    unsigned = Unsigned()
    for now in (0.0, 100.0, 200.0):
        assert not unsigned.compared(now, 0, UNSIGNED_S)
        assert unsigned.since_s == now
    assert not unsigned.compared(210.0, 0, 1.0)
    assert unsigned.compared(200.0 + UNSIGNED_S, 0, 1.0)
