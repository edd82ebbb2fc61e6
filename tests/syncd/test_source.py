"""SourceTree on a real directory: the index is what a full walk sees, and the journal leads a child to the same."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from syncd.model import Change, Op
from syncd.source import io_scan, io_source, io_watch
from syncd.source.io_source import SourceError, SourceTree, State
from syncd.source.row import RACY_NS
from syncd.store.io_journal import Page
from syncd.store.io_store import StoreBusy
from tests.syncd.churn import Churn, Seen, scan

HERE = Path(__file__).parent
SETTLE_STEPS = 3
CHURN_STEPS = int(os.environ.get("SYNCD_CHURN_STEPS", "6000"))
"""More for a longer run by hand."""


class Start(Protocol):
    """See the fixture `start`."""

    def __call__(self, *, accept_root: bool = False, cross_mounts: bool = False) -> SourceTree: ...

    def stop(self) -> None:
        """Close the one that runs."""


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    (tmp_path / "tree").mkdir()
    return os.fsencode(tmp_path / "tree")


@pytest.fixture
def start(root: bytes, tmp_path: Path) -> Iterator[Start]:
    """Starts a source on the tree; the one before is closed first, so a second call is a restart."""
    open_now: list[SourceTree] = []

    def stop() -> None:
        while open_now:
            open_now.pop().close()

    def start(**options: bool) -> SourceTree:
        stop()
        source = SourceTree(root, tmp_path / "store.db", **options)
        open_now.append(source)
        source.start()
        return source

    start.stop = stop  # type: ignore[attr-defined]
    yield start  # type: ignore[misc]
    stop()


def settle(source: SourceTree) -> None:
    """Step until nothing waits and nothing is walked, some times in a row."""
    quiet = 0
    while quiet < SETTLE_STEPS:
        written = source.step(0.06)
        status = source.status
        quiet = quiet + 1 if not written and not status.waiting and not status.walking else 0


def indexed(source: SourceTree) -> Seen:
    """The index in the form of `scan`."""
    top = source.index.get(b"")
    assert top is not None
    seen: Seen = {b"": (top.row.mode, top.row.size, top.row.mtime_ns, top.row.inode, top.row.target)}
    stack = [(b"", top.directory)]
    while stack:
        above, number = stack.pop()
        assert number is not None
        for name, child in source.index.children(number).items():
            path = above + b"/" + name if above else name
            row = child.row
            seen[path] = (row.mode, row.size, row.mtime_ns, row.inode, row.target)
            if child.directory is not None:
                stack.append((path, child.directory))
    return seen


def read(source: SourceTree, after: int, limit: int = 10_000) -> tuple[list[Change], int]:
    page = source.journal.read(source.journal.journal_id, after, limit)
    assert isinstance(page, Page), page
    return list(page.changes), page.cursor


def write(root: bytes, path: bytes, data: bytes = b"x") -> bytes:
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(data)
    return full


def told(source: SourceTree, after: int) -> list[str]:
    """The journal after `after`: u PATH, x PATH, r SOURCE>PATH; the root's PATH is a dot."""
    settle(source)
    changes, _ = read(source, after)
    return [f"{c.op.value} " + os.fsdecode((c.source + b">" if c.source else b"") + (c.path or b".")) for c in changes]


class Child:
    """Applies pages to a dict, as the head of coalesce.py says; what it holds is (mode, size, mtime_ns, target)."""

    def __init__(self, seen: Seen, cursor: int) -> None:
        self.cursor = cursor
        self.tree = {path: self.reduce(row) for path, row in seen.items()}

    @staticmethod
    def reduce(row: tuple[object, ...]) -> tuple[object, ...]:
        return row[0], row[1], row[2], row[4]

    def pull(self, source: SourceTree, limit: int) -> None:
        while True:
            changes, cursor = read(source, self.cursor, limit)
            for change in changes:
                self.apply(change)
            if cursor == self.cursor:
                return
            self.cursor = cursor

    def below(self, path: bytes) -> list[bytes]:
        return [p for p in self.tree if p == path or p.startswith(path + b"/")]

    def apply(self, change: Change) -> None:
        if change.op is Op.DELETE:
            for path in self.below(change.path):
                del self.tree[path]
            return
        entry = change.entry
        assert entry is not None
        if change.op is Op.RENAME:
            moved = {p: self.tree.pop(p) for p in self.below(change.source)}
            for path, row in moved.items():
                self.tree[change.path + path[len(change.source) :]] = row
            if not moved:
                return
        else:
            form = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}[entry.kind.value]
            self.tree[entry.path] = (form | entry.mode, entry.size, entry.mtime_ns, entry.target)


# --- single changes -----------------------------------------------------------------------------------------------------


def test_what_happens_is_told(root: bytes, start: Start) -> None:
    source = start()
    at = source.status.sequence
    write(root, b"d/e/f", b"12345")
    os.symlink(b"/etc", os.path.join(root, b"d/link"))
    assert told(source, at) == ["u .", "u d", "u d/e", "u d/e/f", "u d/link"]
    changes, at = read(source, at)
    assert [(c.entry.size, c.entry.target) for c in changes[3:] if c.entry] == [(5, b""), (0, b"/etc")]
    os.chmod(os.path.join(root, b"d/e/f"), 0o600)
    assert told(source, at) == ["u d/e/f"]
    at = source.status.sequence
    os.rename(os.path.join(root, b"d"), os.path.join(root, b"moved"))
    assert told(source, at) == ["r d>moved", "u ."]
    at = source.status.sequence
    write(root, b"moved/e/g")
    assert told(source, at) == ["u moved/e", "u moved/e/g"]
    at = source.status.sequence
    shutil.rmtree(os.path.join(root, b"moved"))
    assert told(source, at) == ["x moved", "u ."]
    assert indexed(source) == scan(root)
    assert indexed(source).keys() == {b""}


@pytest.mark.parametrize(
    "name", [b"new\nline", "\u8fd1\u8def".encode(), b"\xff\xfe", b"-rf", b"L" * 255, b" ", b"\x01"]
)
def test_any_name_is_told_as_it_is(root: bytes, start: Start, name: bytes) -> None:
    source = start()
    at = source.status.sequence
    write(root, name + b"/" + name)
    settle(source)
    assert [c.path for c in read(source, at)[0]] == [b"", name, name + b"/" + name]


def test_the_first_reading_is_a_baseline(root: bytes, start: Start) -> None:
    write(root, b"d/f")
    source = start()
    assert indexed(source) == scan(root)
    assert read(source, source.status.sequence) == ([], 1)
    assert source.journal.floor() == 1


def test_a_rewrite_in_the_same_second_of_the_same_size_with_its_mtime_put_back(root: bytes, start: Start) -> None:
    full = write(root, b"f", b"one")
    source = start()
    for content in (b"two", b"six"):
        at = source.status.sequence
        st = os.stat(full)
        with open(full, "r+b") as file:
            file.write(content)
        os.utime(full, ns=(st.st_atime_ns, st.st_mtime_ns))
        assert told(source, at) == ["u f"]
        # ... and while nobody watched.
        start.stop()
        with open(full, "r+b") as file:
            file.write(content[::-1])
        os.utime(full, ns=(st.st_atime_ns, st.st_mtime_ns))
        source = start()
        assert told(source, at)[-1] == "u f"


def test_a_file_that_is_written_all_the_time_comes_out(root: bytes, start: Start) -> None:
    source = start()
    at = source.status.sequence
    with open(os.path.join(root, b"log"), "wb") as log:
        while not (changes := read(source, at)[0]):
            log.write(b"line\n")
            log.flush()
            source.step(0.01)
    assert [change.path for change in changes] == [b"", b"log"]


def test_a_directory_replaced_by_a_symlink_and_back(root: bytes, start: Start) -> None:
    write(root, b"d/f")
    source = start()
    at = source.status.sequence
    full = os.path.join(root, b"d")
    shutil.rmtree(full)
    os.symlink(b"elsewhere", full)
    assert told(source, at) == ["x d", "u .", "u d"]
    at = source.status.sequence
    os.unlink(full)
    write(root, b"d/g")
    assert told(source, at) == ["x d", "u .", "u d", "u d/g"]


def test_a_hard_link_shares_the_inode(root: bytes, start: Start) -> None:
    write(root, b"a", b"same")
    source = start()
    at = source.status.sequence
    os.link(os.path.join(root, b"a"), os.path.join(root, b"b"))
    assert told(source, at) == ["u .", "u b"]
    _, change = read(source, at)[0]
    assert change.entry is not None
    assert [e.path for e in source.index.entries() if e.inode == change.entry.inode] == [b"a", b"b"]


def test_a_big_directory_is_renamed_as_one_also_while_nobody_watched(root: bytes, start: Start) -> None:
    for i in range(300):
        write(root, b"big/%d/f" % i)
    time.sleep(2 * RACY_NS / 1e9)  # what was written just now is told once more, to be sure
    source = start()
    at = source.status.sequence
    os.rename(os.path.join(root, b"big"), os.path.join(root, b"large"))
    assert told(source, at) == ["r big>large", "u ."]
    start.stop()
    os.rename(os.path.join(root, b"large"), os.path.join(root, b"huge"))
    write(root, b"huge/7/f", b"changed meanwhile")
    source = start()
    assert told(source, at) == ["r big>large", "r large>huge", "u .", "u huge/7/f"]
    assert indexed(source) == scan(root)


def test_what_was_moved_out_and_comes_back_is_watched_again(root: bytes, start: Start, tmp_path: Path) -> None:
    write(root, b"d/sub/f")
    source = start()
    aside = os.fsencode(tmp_path / "aside")
    os.rename(os.path.join(root, b"d"), aside)
    at = source.status.sequence
    assert told(source, at) == ["x d", "u ."]
    assert source.status.watches > 1  # nobody knows yet that it will not come back
    os.rename(aside, os.path.join(root, b"e"))
    settle(source)
    at = source.status.sequence
    write(root, b"e/sub/g")
    assert told(source, at) == ["u e/sub", "u e/sub/g"]


def test_watches_of_what_was_moved_out_are_given_back(
    root: bytes, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_watch, "LOOSE_S", 0.0)
    write(root, b"d/sub/f")
    source = start()
    os.rename(os.path.join(root, b"d"), tmp_path / "aside")
    settle(source)
    while source.status.watches > 1:
        source.step(0.05)
    at = source.status.sequence
    write(os.fsencode(tmp_path), b"aside/sub/g")
    assert told(source, at) == []


def test_devices_and_sockets_are_left_out(root: bytes, start: Start) -> None:
    write(root, b"f")
    source = start()
    at = source.status.sequence
    os.unlink(os.path.join(root, b"f"))
    os.mkfifo(os.path.join(root, b"f"))
    os.mkfifo(os.path.join(root, b"g"))
    assert told(source, at) == ["x f", "u ."]


# --- attributes of directories ------------------------------------------------------------------------------------------


def test_a_touch_is_told_of_a_directory_of_a_symlink_and_of_the_root(root: bytes, start: Start) -> None:
    write(root, b"d/e/f")
    os.symlink(b"d", os.path.join(root, b"l"))
    source = start()
    for path, mtime_ns in ((b"d/e", 5), (b"l", 0), (b"", 1_000_000_007)):
        at = source.status.sequence
        os.utime(os.path.join(root, path), ns=(0, mtime_ns), follow_symlinks=False)
        settle(source)
        (change,) = read(source, at)[0]
        assert change.entry is not None
        assert (change.op, change.path, change.entry.mtime_ns) == (Op.UPSERT, path, mtime_ns)
    at = source.status.sequence
    os.chmod(root, 0o711)
    assert told(source, at) == ["u ."]
    assert indexed(source) == scan(root)


def test_what_is_written_in_place_tells_no_directory(root: bytes, start: Start) -> None:
    write(root, b"d/f")
    source = start()
    at = source.status.sequence
    with open(os.path.join(root, b"d/f"), "ab") as file:
        file.write(b"more")
    os.chmod(os.path.join(root, b"d/f"), 0o600)
    assert told(source, at) == ["u d/f"]


def test_a_directory_is_told_once_a_settling_however_much_came_to_it(root: bytes, start: Start) -> None:
    write(root, b"d/f")
    source = start()
    at = source.status.sequence
    for i in range(500):
        write(root, b"d/%d" % i)
    settle(source)
    every = source.journal.since(at, 10_000)
    assert every is not None
    # Events may come in more than one batch; one change of the directory for each.
    assert 1 <= sum(change.path == b"d" for change in every) < 20
    assert sum(change.path.startswith(b"d/") for change in every) >= 500
    assert not any(change.path == b"" for change in every)
    assert indexed(source) == scan(root)


def test_times_of_directories_are_found_that_changed_while_nobody_watched(root: bytes, start: Start) -> None:
    for path in (b"a/b/f", b"c/f", b"e/f"):
        write(root, path)
    time.sleep(2 * RACY_NS / 1e9)  # what was written just now is told once more, to be sure
    source = start()
    start.stop()
    at = source.status.sequence
    os.utime(os.path.join(root, b"a/b"), ns=(0, 77))
    os.utime(root, ns=(0, 78))
    os.unlink(write(root, b"c/gone"))  # nothing is left of it but the time
    source = start()
    assert told(source, at) == ["u .", "u a/b", "u c"]
    assert indexed(source) == scan(root)


def test_what_is_made_in_a_directory_before_it_is_watched_moves_its_time(
    root: bytes, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = start()
    at = source.status.sequence
    real, late = source._disk.watch, []

    def watch(fd: int, above: int | None, name: bytes, path: bytes) -> tuple[int | None, bool]:
        if path == b"d" and not late:
            late.append(write(root, b"d/f"))
            os.utime(os.path.join(root, b"d"), ns=(0, 99))
        return real(fd, above, name, path)

    monkeypatch.setattr(source._disk, "watch", watch)
    os.mkdir(os.path.join(root, b"d"))
    assert told(source, at) == ["u .", "u d", "u d/f"]
    assert late
    assert indexed(source) == scan(root)


def test_the_first_reading_lists_each_directory_once(
    root: bytes, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        write(root, b"%d/sub/f" % i)
    listed: list[bytes] = []
    real = io_scan.Disk.list

    def counted(self: io_scan.Disk, path: bytes) -> io_scan.Listing:
        listed.append(path)
        return real(self, path)

    monkeypatch.setattr(io_scan.Disk, "list", counted)
    source = start()
    assert indexed(source) == scan(root)
    assert len(listed) == len(set(listed)) == 41


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
    source = start()
    assert source.status.unwatched == 1
    assert source._watcher.unwatched == {b"d": "fs.inotify.max_user_watches is used up"}
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


# --- churn --------------------------------------------------------------------------------------------------------------


@contextmanager
def running(*command: str, cwd: bytes | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone at the end, however the test ends."""
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("seed", range(4))
def test_churn_beside_it_ends_at_the_same_tree(root: bytes, start: Start, seed: int) -> None:
    churn = Churn(root, seed)
    for _ in range(100):
        churn.step()
    source = start()
    child = Child(indexed(source), source.status.sequence)
    rng = random.Random(seed)
    pause_us = rng.choice([0, 300, 2000])
    steps = CHURN_STEPS
    command = [sys.executable, str(HERE / "churn.py"), os.fsdecode(root), str(seed), str(steps), str(pause_us)]
    with running(*command) as process:
        while process.poll() is None:
            source.step(0.02)
            if rng.random() < 0.1:
                child.pull(source, rng.randrange(1, 500))
        assert process.returncode == 0
    settle(source)
    seen = scan(root)
    assert indexed(source) == seen
    child.pull(source, 10_000)
    assert child.tree == {path: Child.reduce(row) for path, row in seen.items()}
    assert source.status.unwatched == 0
    assert source.status.watches >= sum(stat.S_ISDIR(int(str(row[0]))) for row in seen.values())


def test_many_new_subtrees_at_once_lose_no_file(root: bytes, start: Start) -> None:
    source = start()
    script = (
        "i=0; while [ $i -lt 60 ]; do mkdir -p t$1-$i/a/b/c; echo 1 >t$1-$i/a/b/c/f; echo 2 >t$1-$i/g; "
        "mv t$1-$i/a t$1-$i/z; mkdir t$1-$i/a; echo 3 >t$1-$i/a/h; mv t$1-$i done$1-$i; i=$((i+1)); done"
    )
    with ExitStack() as stack:
        writers = [stack.enter_context(running("sh", "-c", script, "sh", str(n), cwd=root)) for n in range(3)]
        while any(writer.poll() is None for writer in writers):
            source.step(0.01)
        assert [writer.returncode for writer in writers] == [0, 0, 0]
    settle(source)
    assert indexed(source) == scan(root)
    assert len(indexed(source)) == 1 + 3 * 60 * 8
    at = source.status.sequence
    write(root, b"done1-7/z/b/c/last")
    assert told(source, at) == ["u done1-7/z/b/c", "u done1-7/z/b/c/last"]


def test_killed_at_any_moment_and_started_again(root: bytes, start: Start, tmp_path: Path) -> None:
    """The journal never takes back what a child read, and in the end the child has the tree."""
    churn = Churn(root, 99)
    for _ in range(60):
        churn.step()
    source = start()
    child = Child(indexed(source), source.status.sequence)
    start.stop()
    rng = random.Random(5)
    for round_no in range(12):
        # Killed (with -9, on leaving) anywhere between being started and being busy for a while.
        with running(sys.executable, str(HERE / "source_daemon.py"), os.fsdecode(root), str(tmp_path / "store.db")):
            until = time.monotonic() + rng.uniform(0.2, 0.9)
            while time.monotonic() < until:
                churn.step()
                time.sleep(0.0005)
        for _ in range(rng.randrange(20)):
            churn.step()  # while nobody watches
        if round_no % 4 == 3:
            source = start()
            child.pull(source, 300)
            start.stop()
    source = start()
    settle(source)
    seen = scan(root)
    assert indexed(source) == seen
    child.pull(source, 1000)
    assert child.tree == {path: Child.reduce(row) for path, row in seen.items()}


def test_runs_in_a_thread_and_stops_at_once(root: bytes, start: Start) -> None:
    source = start()
    stop = threading.Event()
    thread = threading.Thread(target=source.run, args=(stop,))
    thread.start()
    write(root, b"f")
    while source.status.sequence < 2:
        time.sleep(0.01)
    stop.set()
    source.wake()
    thread.join()
    assert set(indexed(source)) == {b"", b"f"}
