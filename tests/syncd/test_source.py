"""SourceTree on a real directory: the index is what a full walk sees, and the journal leads a child to the same."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from syncd.model import Op
from syncd.source import io_scan, io_watch
from syncd.source.row import RACY_NS
from tests.syncd.churn import scan
from tests.syncd.watched import Start, indexed, read, settle, told, with_both, write

# --- single changes -----------------------------------------------------------------------------------------------------


@with_both
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


@with_both
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


@with_both
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


@with_both
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


@with_both
def test_a_hard_link_shares_the_inode(root: bytes, start: Start) -> None:
    write(root, b"a", b"same")
    source = start()
    at = source.status.sequence
    os.link(os.path.join(root, b"a"), os.path.join(root, b"b"))
    assert told(source, at) == ["u .", "u b"]
    found = source.index.get(b"b")
    assert found is not None
    assert [e.path for e in source.index.entries() if e.inode == (0, found.row.inode)] == [b"a", b"b"]


@with_both
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


@with_both
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


@with_both
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


@with_both
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


def test_a_new_directory_is_told_together_with_what_is_in_it(root: bytes, start: Start) -> None:
    source = start()
    at = source.status.sequence
    for name in (b"new/a/f", b"new/a/g", b"new/b/f", b"new/c/d/f"):
        write(os.path.dirname(root), name)
    os.rename(os.path.join(os.path.dirname(root), b"new"), os.path.join(root, b"new"))
    settle(source)
    changes = source.journal.since(at, 100)
    assert changes is not None
    paths = [change.path for change in changes if change.path]
    assert len(paths) == 9
    for number, path in enumerate(paths):
        if path.endswith((b"f", b"g")):
            above, _, _ = path.rpartition(b"/")
            before = paths[number - 1]
            assert above in (before, before.rpartition(b"/")[0]), paths
