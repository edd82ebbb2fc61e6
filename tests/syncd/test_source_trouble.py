"""What goes wrong beside a SourceTree: nothing that follows from it deletes anything, and limits are told."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from syncd.model import Op
from syncd.source import io_source, io_watch
from syncd.source.io_source import SourceError, SourceTree, State
from syncd.source.row import RACY_NS
from syncd.store.io_store import StoreBusy
from tests.syncd.churn import scan
from tests.syncd.watched import Start, indexed, read, settle, told, with_both, write

# --- what must not be taken for a delete --------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every directory")
def test_a_directory_that_may_not_be_read_is_not_gone(root: bytes, start: Start) -> None:
    write(root, b"secret/f")
    source = start()
    at = source.status.sequence
    os.chmod(os.path.join(root, b"secret"), 0)
    assert told(source, at) == ["u secret"]
    os.chmod(os.path.join(root, b"secret"), 0o700)


def test_trouble_in_looking_deletes_nothing(root: bytes, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, b"d/sub/f")
    write(root, b"d/g")
    start()
    real = os.open

    def fail(path: object, flags: int, *args: int, dir_fd: int | None = None, **more: int) -> int:
        if path == b"d":
            raise OSError(5, "Input/output error")
        return real(path, flags, *args, dir_fd=dir_fd, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("syncd.source.io_scan.os.open", fail)
    source = start()
    at = source.status.sequence
    write(root, b"d/new")
    source.step(0.06)
    source.step(0.06)
    assert read(source, at)[0] == []
    assert {b"d", b"d/sub", b"d/sub/f", b"d/g"} <= set(indexed(source))
    assert source.status.troubles == ("d: Input/output error",)


def test_an_empty_root_is_refused_at_start(root: bytes, start: Start) -> None:
    full = write(root, b"f")
    start()
    start.stop()
    os.unlink(full)
    with pytest.raises(SourceError, match="is empty, and was not"):
        start()
    source = start(accept_root=True)
    assert told(source, 1) == ["x f", "u ."]


@with_both
def test_a_root_that_is_another_directory_is_refused(root: bytes, start: Start, tmp_path: Path) -> None:
    write(root, b"f")
    source = start()
    os.rename(root, tmp_path / "old")
    os.mkdir(root)
    while source.status.state is not State.ROOT_LOST:
        source.step(0.2)
    assert indexed(source).keys() == {b"", b"f"}
    os.rmdir(root)
    os.rename(tmp_path / "old", root)
    source._root_check_at_s = 0.0
    while source.status.state is not State.READY:
        source.step(0.2)
    at = source.status.sequence
    write(root, b"g")
    assert told(source, at) == ["u .", "u g"]
    os.rename(root, tmp_path / "old")
    os.mkdir(root)
    with pytest.raises(SourceError, match="another directory"):
        start()
    assert indexed(start(accept_root=True)).keys() == {b""}


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_an_unmounted_root_deletes_nothing(root: bytes, start: Start) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "nearpath-test", root], check=True)
    try:
        write(root, b"f")
        source = start()
        at = source.status.sequence
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
    while source.status.state is not State.ROOT_LOST:
        source.step(0.2)
    assert read(source, at)[0] == []
    with pytest.raises(SourceError, match="another directory than"):
        start()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_an_unmounted_part_of_a_tree_deletes_nothing(root: bytes, start: Start) -> None:
    place = os.path.join(root, b"d/mount")
    os.makedirs(place)
    subprocess.run(["mount", "-t", "tmpfs", "nearpath-test", place], check=True)
    try:
        write(root, b"d/mount/f")
        source = start(cross_mounts=True)
        at, before = source.status.sequence, set(indexed(source))
        assert b"d/mount/f" in before
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)
    source.sweep()
    while not source.status.troubles:
        source.step(0.1)
    settle_walks(source)
    assert source.status.troubles == ("d/mount: the file system that was mounted here is not; nothing is deleted",)
    assert set(indexed(source)) == before
    assert [change for change in read(source, at)[0] if change.op is Op.DELETE] == []


def settle_walks(source: SourceTree) -> None:
    """Step until nothing is walked; what could not be looked at may go on waiting."""
    while source.status.walking:
        source.step(0.06)


def test_a_second_daemon_is_refused(root: bytes, start: Start, tmp_path: Path) -> None:
    start()
    with pytest.raises(StoreBusy, match="in use"):
        SourceTree(root, tmp_path / "store.db")


def test_a_full_disk_stops_and_goes_on(root: bytes, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_source, "RETRY_S", 0.2)
    source = start()
    pages = source._db.execute("PRAGMA page_count").fetchone()[0]
    at = source.status.sequence
    source._db.execute(f"PRAGMA max_page_count={pages + 20}")
    for i in range(500):
        write(root, b"%d/f" % i)
    while source.status.state is not State.STORE_FAILED:
        source.step(0.1)
    assert "full" in source.status.why
    source._db.execute("PRAGMA max_page_count=1000000")
    while source.status.state is not State.READY:
        source.step(0.1)
    settle(source)
    assert indexed(source) == scan(root)
    assert {c.path for c in read(source, at)[0]} == scan(root).keys()


# --- limits -------------------------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_watched_is_scanned(
    root: bytes, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, b"d/f")
    write(root, b"w/f")
    real = io_watch.INotify.add_watch
    blind = os.stat(os.path.join(root, b"d")).st_ino

    def add_watch(self: object, path: str, mask: int) -> int:
        if blind and os.stat(path).st_ino == blind:
            raise OSError(28, "No space left on device")
        return int(real(self, path, mask))

    monkeypatch.setattr(io_watch.INotify, "add_watch", add_watch)
    time.sleep(2 * RACY_NS / 1e9)  # what was written just before the start would be told once more
    source = start()
    assert source.status.unwatched == 1
    assert source.status.unwatched_paths == ((b"d", "fs.inotify.max_user_watches is used up"),)
    at = source.status.sequence
    write(root, b"d/g")
    write(root, b"d/new/h")
    source._poll_at_s = 0.0
    assert told(source, at) == ["u d", "u d/g", "u d/new", "u d/new/h"]
    # The limit was raised: the next round finds that out.
    blind = 0
    source._poll_at_s = 0.0
    settle(source)
    assert source.status.unwatched == 0
    at = source.status.sequence
    write(root, b"d/new/i")
    assert told(source, at) == ["u d/new", "u d/new/i"]


def test_the_watch_limit_is_told_with_what_to_set() -> None:
    assert io_watch.limit_problem(100, 8192) == ""
    assert "set fs.inotify.max_user_watches=121024 in /etc/sysctl.d/" in io_watch.limit_problem(100_000, 8192)
    assert io_watch.watch_limit() > 0


@with_both
def test_lost_events_are_made_up_for_without_a_loop(root: bytes, start: Start) -> None:
    write(root, b"old/f")
    for i in range(50):
        write(root, b"d%d/f" % i)
    time.sleep(2 * RACY_NS / 1e9)
    source = start()
    at = source.status.sequence
    source._watcher._max_waiting_bytes = 0
    write(root, b"new/deep/f")
    write(root, b"d7/f", b"written in place")
    os.rename(os.path.join(root, b"old"), os.path.join(root, b"d1/moved"))
    shutil.rmtree(os.path.join(root, b"d3"))
    while not source.status.overflows:
        source.step(0.1)
    source._watcher._max_waiting_bytes = io_watch.MAX_WAITING_BYTES
    steps = 0
    while source._rescan_at_s is not None or source.status.walking or source.status.waiting:
        source.step(1.0)
        steps += 1
    assert indexed(source) == scan(root)
    assert sorted(told(source, at)) == [
        *["r old>d1/moved", "u .", "u d1", "u d7/f", "u new", "u new/deep", "u new/deep/f", "x d3"]
    ]
    assert source.status.overflows == 1
    assert steps < 200
    at = source.status.sequence
    write(root, b"d1/moved/g")
    assert told(source, at) == ["u d1/moved", "u d1/moved/g"]


def test_overflow_after_overflow_is_rescanned_less_and_less_often(root: bytes, start: Start) -> None:
    source = start()
    pauses = []
    for i in range(4):
        source._watcher._spilled = True
        source._take_news(now := 1000.0 + i * 0.1)
        assert source._rescan_at_s is not None
        pauses.append(source._rescan_at_s - now)
        source._plan_slow_work(source._rescan_at_s)
    assert pauses == pytest.approx([0.5, 1.0, 2.0, 4.0])
