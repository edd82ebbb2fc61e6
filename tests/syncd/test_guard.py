"""Guards: what is held or stopped, what is not, and that the words name the thing and the way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syncd.model import Entry, Kind
from syncd.publish.guard import (
    DeleteLimits,
    Objection,
    RecentDeletes,
    Reserve,
    SourceView,
    Space,
    Weight,
    below_failed,
    change_token,
    check_clock,
    check_deletes,
    check_source,
    check_space,
    is_changed,
    is_settled,
    size_text,
)

LIMITS = DeleteLimits(files=1000, ratio=0.25, floor=10)


@pytest.mark.parametrize(
    ("deleted", "total", "held"),
    [
        (0, 0, False),
        (10, 10, False),  # floor: the whole of a tiny tree
        (11, 20, True),
        (250, 1000, False),
        (251, 1000, True),
        (1000, 1_000_000, False),
        (1001, 1_000_000, True),
        (50, 0, False),
    ],
)
def test_mass_deletes(deleted: int, total: int, held: bool) -> None:
    assert (check_deletes("debian", [b"pool"], deleted, total, LIMITS) is not None) == held


def test_approval_covers_just_what_was_held() -> None:
    held = check_deletes("debian", [b"pool/a", b"pool/b", b"c", b"d"], 5000, 10_000, LIMITS)
    assert held is not None
    assert held.weight is Weight.HOLD
    assert "5,000 of 10,000 entries" in held.what
    assert "50% of the tree" in held.what
    assert "'pool/a', 'pool/b', 'c' and 1 more" in held.what
    assert f"syncd approve debian {held.token}" in held.fix
    again = [b"d", b"c", b"pool/b", b"pool/a"]
    assert check_deletes("debian", again, 5000, 10_000, LIMITS, approved=held.token.upper() + "\n") is None
    assert check_deletes("debian", [*again, b"e"], 5001, 10_000, LIMITS, approved=held.token) is not None
    assert check_deletes("debian", again, 5001, 10_000, LIMITS, approved=held.token) is not None
    assert check_deletes("ubuntu", again, 5000, 10_000, LIMITS, approved=held.token) is not None
    assert check_deletes("debian", again, 5000, 10_000, LIMITS, approved="") is not None


def test_many_small_deletes_are_held_together() -> None:
    limits, recent = DeleteLimits(files=10, ratio=1.0, floor=0), RecentDeletes(window_s=60.0)
    for second in range(2):
        assert check_deletes("t", [b"a"], 4, 1000, limits, "", recent.count(second)) is None
        recent.add(second, 4)
    held = check_deletes("t", [b"a"], 4, 1000, limits, "", recent.count(2.0))
    assert held is not None
    assert "after 8 in the last minutes" in held.what
    # The token stays good while the same is held, and what a person has looked at does not count again.
    assert check_deletes("t", [b"a"], 4, 1000, limits, held.token, recent.count(3.0)) is None
    recent.approve()
    assert check_deletes("t", [b"b"], 4, 1000, limits, "", recent.count(4.0)) is None
    recent.add(4.0, 4)
    # And time passes.
    assert recent.count(63.9) == 4
    assert recent.count(64.0) == 0
    # Without a delete there is nothing to hold.
    recent.add(64.0, 1000)
    assert check_deletes("t", [], 0, 10, limits, "", recent.count(64.0)) is None


def test_tokens_do_not_run_into_each_other() -> None:
    assert change_token("t", [b"ab", b"c"], 2) != change_token("t", [b"a", b"bc"], 2)


GOOD = SourceView("/srv/debian", True, 0x801, 0x801, 5000, 5000, ".tree", True)


def stops(view: SourceView) -> list[str]:
    found = check_source(view)
    assert all(objection.weight is Weight.STOP and objection.fix for objection in found)
    return [objection.what for objection in found]


def test_a_good_source() -> None:
    assert stops(GOOD) == []
    assert stops(replace(GOOD, known_device=None, entries=0, known_entries=0, marker="")) == []


@pytest.mark.parametrize(
    ("view", "word"),
    [
        (replace(GOOD, exists=False), "is not there"),
        (replace(GOOD, device=0x10), "another file system than before (device 0x801, now 0x10)"),
        (replace(GOOD, marker_found=False), "has no .tree"),
        (replace(GOOD, entries=0), "is empty, and held 5,000 entries"),
        (replace(GOOD, failed=((b"pool/x", "Input/output error"),)), "such as b'pool/x' (Input/output error)"),
    ],
)
def test_a_source_that_may_not_be_the_tree(view: SourceView, word: str) -> None:
    (what,) = stops(view)
    assert word in what


def test_an_unmounted_source_is_told_in_all_its_ways() -> None:
    assert len(stops(replace(GOOD, device=1, entries=0, marker_found=False))) == 3


def test_what_lies_below_a_failed_listing_is_not_known_to_be_gone() -> None:
    assert below_failed(b"a/b", [b"a"])
    assert below_failed(b"a", [b"a"])
    assert below_failed(b"anything", [b""])
    assert not below_failed(b"ab", [b"a"])
    assert not below_failed(b"a", [b"a/b"])


ROOM = Space(free_bytes=10 << 30, total_bytes=100 << 30, free_inodes=1000, total_inodes=10_000)


def test_space() -> None:
    reserve = Reserve(bytes_=1 << 30, ratio=0.02)  # 2 GiB of the 100
    assert check_space("/srv", 8 << 30, 10, ROOM, reserve) is None
    full = check_space("/srv", (8 << 30) + 1, 10, ROOM, reserve)
    assert isinstance(full, Objection)
    assert str(full) == (
        "/srv: 8.0 GiB are to be fetched, 10.0 GiB are free, of which 2.0 GiB are kept in reserve: "
        "make 1 B of space; syncd goes on by itself"
    )
    assert check_space("/srv", 0, 0, replace(ROOM, free_bytes=0), reserve) is None, "deletes must go on on a full disk"
    assert check_space("/srv", 1, 800, ROOM, reserve) is None
    few = check_space("/srv", 1, 801, ROOM, reserve)
    assert few is not None
    assert "801 inodes are needed, 1,000 are free" in few.what
    assert check_space("/srv", 1, 801, replace(ROOM, free_inodes=0, total_inodes=0), reserve) is None  # btrfs


def test_sizes() -> None:
    assert [size_text(n) for n in (0, 1023, 1536, 1 << 40)] == ["0 B", "1023 B", "1.5 KiB", "1.0 TiB"]


OLD = Entry(b"f", Kind.FILE, 0o644, 5, 1_000_000_000, ctime_ns=1_000_000_000, inode=(1, 2))


def test_a_change_is_any_difference_also_to_an_older_time() -> None:
    assert not is_changed(OLD, replace(OLD, digest=b"x" * 32))
    for new in (
        replace(OLD, mtime_ns=1),
        replace(OLD, mtime_ns=OLD.mtime_ns + 1),
        replace(OLD, ctime_ns=1),
        replace(OLD, inode=(1, 3)),
        replace(OLD, mode=0o600),
        replace(OLD, size=6),
    ):
        assert is_changed(OLD, new)


@pytest.mark.parametrize(
    ("mtime_s", "ctime_s", "settled"),
    [(90, 90, True), (97.9, 97.9, True), (98.1, 90, False), (90, 98.1, False), (100, 100, False), (5000, 90, False)],
)
def test_a_time_near_or_after_the_look_proves_nothing(mtime_s: float, ctime_s: float, settled: bool) -> None:
    entry = replace(OLD, mtime_ns=int(mtime_s * 1e9), ctime_ns=int(ctime_s * 1e9))
    assert is_settled(entry, 100.0) == settled


def test_files_from_the_future_are_told() -> None:
    assert check_clock("t", [OLD], 100.0) == ""
    late = replace(OLD, path=b"late", mtime_ns=int(3700e9))
    assert check_clock("t", [OLD, late], 100.0).startswith(
        "tree t: 1 files have an mtime in the future, b'late' by 3,600 s"
    )
