"""Guards: what is held or stopped, what is not, and that the words name the thing and the way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from syncd.publish.guard import (
    DeleteLimits,
    Objection,
    RecentDeletes,
    Reserve,
    Space,
    Weight,
    change_token,
    check_deletes,
    check_space,
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
