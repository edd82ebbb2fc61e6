"""A file that is written to, gets its old size and mtime back, and is renamed at once: only events tell of the write."""

from __future__ import annotations

import os
import shutil

import pytest

from syncd.source.touched import KEPT_S, Touched
from tests.syncd.watched import Start, settle, told, with_both, write


def rewrite(path: str) -> None:
    """Another content of the same size, with the mtime put back."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(os.urandom(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture
def here(root: bytes) -> str:
    return os.fsdecode(root)


@with_both
def test_a_rename_hides_no_write(root: bytes, here: str, start: Start) -> None:
    """Seen in half an hour of churn: all three copies had the old content under the new name, and said fresh."""
    write(root, b"a", b"1234567890")
    write(root, b"d/c")
    source = start()
    settle(source)
    at = source.status.sequence
    rewrite(here + "/a")
    os.rename(here + "/a", here + "/d/b")
    assert [one for one in told(source, at) if one[2:] not in ("d", ".")] == ["r a>d/b", "u d/b"]


@with_both
def test_a_write_after_the_rename_that_is_told_of_late_counts(root: bytes, here: str, start: Start) -> None:
    write(root, b"a", b"1234567890")
    source = start()
    settle(source)
    at = source.status.sequence
    os.rename(here + "/a", here + "/b")
    rewrite(here + "/b")
    os.rename(here + "/b", here + "/c")
    assert [one for one in told(source, at) if one != "u ."] == ["r a>c", "u c"]


@with_both
def test_a_rename_alone_is_a_rename(root: bytes, here: str, start: Start) -> None:
    write(root, b"a", b"1234567890")
    os.utime(here + "/a", (1, 1))
    source = start()
    settle(source)
    at = source.status.sequence
    os.rename(here + "/a", here + "/b")
    assert [one for one in told(source, at) if one != "u ."] == ["r a>b"]
    at = source.status.sequence
    rewrite(here + "/b")
    assert told(source, at) == ["u b"]
    at = source.status.sequence
    os.rename(here + "/b", here + "/c")
    assert [one for one in told(source, at) if one != "u ."] == ["r b>c"], "that write was told before"


@with_both
def test_a_write_in_a_directory_that_is_renamed_and_then_the_file(root: bytes, here: str, start: Start) -> None:
    write(root, b"d/a", b"1234567890")
    source = start()
    settle(source)
    at = source.status.sequence
    rewrite(here + "/d/a")
    os.rename(here + "/d", here + "/e")
    os.rename(here + "/e/a", here + "/e/b")
    assert "u e/b" in told(source, at)


@with_both
def test_what_was_renamed_while_nobody_watched_may_have_been_written(root: bytes, here: str, start: Start) -> None:
    write(root, b"a", b"1234567890")
    source = start()
    settle(source)
    at = source.status.sequence
    start.stop()
    rewrite(here + "/a")
    os.rename(here + "/a", here + "/b")
    source = start()
    assert [one for one in told(source, at) if one != "u ."] == ["r a>b", "u b"]


@with_both
def test_a_write_through_a_name_that_went_is_told_of_the_others(root: bytes, here: str, start: Start) -> None:
    write(root, b"a", b"1234567890")
    os.mkdir(here + "/d")
    os.link(here + "/a", here + "/d/b")
    source = start()
    settle(source)
    for lose in (os.unlink, lambda path: shutil.rmtree(os.path.dirname(path))):
        at = source.status.sequence
        rewrite(here + "/d/b")
        lose(here + "/d/b")
        assert "u a" in told(source, at)
        os.makedirs(here + "/d", exist_ok=True)
        os.link(here + "/a", here + "/d/b")
        settle(source)


# --- the engine --------------------------------------------------------------------------------------------------------


def test_a_write_is_known_until_it_is_looked_at() -> None:
    touched = Touched()
    touched.note([b"a"], [], 1.0)
    assert touched.is_doubtful(b"a", b"b")
    touched.looked_at([b"a"])
    assert not touched.is_doubtful(b"a", b"b")


def test_a_write_goes_along_with_renames() -> None:
    touched = Touched()
    touched.note([b"d/a"], [(b"d", b"e", True), (b"e/a", b"x", False)], 1.0)
    assert touched.is_doubtful(b"d/a", b"x")
    assert touched.is_doubtful(b"e/a", b"y")
    assert touched.is_any_doubtful(b"d")
    assert not touched.is_any_doubtful(b"dd")


def test_a_write_that_is_heard_of_after_the_rename_was_found() -> None:
    touched = Touched()
    touched.note([], [(b"a", b"b", False)], 1.0)
    assert not touched.is_doubtful(b"a", b"b")
    touched.note([], [(b"b", b"c", False)], 1.1)
    touched.note([b"c"], [], 1.2)
    assert touched.take_again(b"c")
    assert not touched.take_again(b"c")
    touched.note([b"z"], [], 1.3)
    assert not touched.take_again(b"z"), "it was not renamed"


def test_what_is_old_is_forgotten_and_lost_events_are_doubted_for_as_long() -> None:
    touched = Touched()
    touched.note([b"a"], [], 1.0)
    assert not touched.is_doubtful(b"x", b"y")
    touched.note([], [], 1.1 + KEPT_S)
    assert not touched.is_any_doubtful(b"a")
    touched.note([b"y"], [], 1.2 + KEPT_S)
    assert not touched.take_again(b"y")
    touched.doubt_all(50.0)
    assert touched.is_doubtful(b"x", b"y")
    touched.note([], [], 50.0 + KEPT_S)
    assert not touched.is_doubtful(b"x", b"y")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncd.source.touched.MAX_PATHS", 500)
    touched = Touched()
    for i in range(2_000):
        touched.note([b"%d" % i], [(b"%d" % i, b"x%d" % i, i % 100 == 0)], i / 1000)
        assert touched.is_doubtful(b"%d" % i, b"y%d" % i)
        touched.is_doubtful(b"s%d" % i, b"t%d" % i)
    assert len(touched._written) <= 501
    assert len(touched._renamed) <= 500
