"""Settle with scripted time."""

from __future__ import annotations

import random

import pytest

from syncd.source.settle import Settle


def test_a_path_comes_out_once_it_is_quiet() -> None:
    settle = Settle()
    settle.hint(b"a", False, 100.0)
    assert settle.take(100.049) == []
    assert settle.due(100.0) == pytest.approx(100.05)
    assert settle.take(100.05) == [(b"a", False)]
    assert settle.due(101.0) is None
    assert len(settle) == 0


def test_each_hint_puts_it_off_but_not_for_ever() -> None:
    settle = Settle()
    out = []
    for tick in range(300):
        now = 100.0 + tick * 0.02
        settle.hint(b"log", False, now)
        out += [now] * len(settle.take(now))
    # Two seconds after the first hint, then again two seconds after the first hint since.
    assert out == [pytest.approx(102.0), pytest.approx(104.02)]


def test_what_is_due_does_not_wait_for_others() -> None:
    settle = Settle()
    settle.hint(b"busy", False, 100.0)
    settle.hint(b"done", False, 100.0)
    settle.hint(b"busy", False, 100.04)
    assert settle.take(100.06) == [(b"done", False)]
    assert settle.take(100.09) == [(b"busy", False)]


def test_a_subtree_absorbs_and_is_due_by_the_first_hint_below_it() -> None:
    settle = Settle()
    settle.hint(b"d/x", False, 100.0)
    for tick in range(1, 200):
        settle.hint(b"d", True, 100.0 + tick * 0.01)
    assert len(settle) == 1
    assert settle.take(101.995) == []
    assert settle.take(102.0) == [(b"d", True)]


def test_hints_below_a_dirty_subtree_keep_it_waiting() -> None:
    settle = Settle()
    settle.hint(b"d", True, 100.0)
    settle.hint(b"d/e/f", False, 100.04)
    assert settle.take(100.06) == []
    assert settle.take(100.09) == [(b"d", True)]


def test_repeated_subtree_hints_need_no_more_memory() -> None:
    settle = Settle()
    for i in range(10_000):
        settle.hint(b"d", True, 100.0 + i * 1e-6)
    assert len(settle._heap) == 1


def test_what_was_put_off_is_looked_at_when_something_happens() -> None:
    settle = Settle()
    settle.later(b"secret", True, 110.0)
    assert settle.take(109.0) == []
    settle.hint(b"secret", False, 109.0)
    assert settle.take(109.05) == [(b"secret", True)]
    settle.later(b"secret", True, 120.0)
    assert settle.take(120.05) == [(b"secret", True)]


def test_too_many_paths_become_their_directories() -> None:
    settle = Settle(max_marks=100)
    for i in range(1000):
        settle.hint(b"d/%d" % i, False, 100.0)
    assert settle.take(101.0) == [(b"d", True)]


def test_nothing_is_lost_and_nothing_comes_too_early() -> None:
    rng = random.Random(7)
    settle = Settle()
    last: dict[bytes, float] = {}
    now = 100.0
    taken = 0
    for _ in range(20_000):
        now += rng.random() * 0.002
        path = b"%d/%d" % (rng.randrange(30), rng.randrange(30))
        settle.hint(path, False, now)
        last[path] = now
        for out, _ in settle.take(now):
            taken += 1
            assert now - last.pop(out) >= 0.05
    assert taken > 1000
    assert {path for path, _ in settle.take(now + 5)} == set(last)


def test_taking_is_bounded() -> None:
    settle = Settle()
    for i in range(50):
        settle.hint(b"%d" % i, False, 100.0)
    assert len(settle.take(101.0, limit=20)) == 20
    assert len(settle.take(101.0, limit=100)) == 30
