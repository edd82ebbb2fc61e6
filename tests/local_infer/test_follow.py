"""Learned transitions and the budget for fetching ahead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_infer.cache.follow import MAX_BYTES, MAX_NEXT, MAX_PLACES, Budget, Follow, Recipe
from local_infer.model import Endpoint


def recipe(name: str, size: int = 10) -> Recipe:
    return Recipe(name.encode(), "t", Endpoint.CHAT, "m", b"x" * size)


def names(recipes: list[Recipe]) -> list[str]:
    return [each.key.decode() for each in recipes]


def test_a_continuation_is_likely_when_it_was_seen_often_enough() -> None:
    follow = Follow()
    assert follow.visit(b"a") == []
    follow.learn(b"a", recipe("b"))
    assert follow.visit(b"a") == []  # once is chance
    follow.learn(b"a", recipe("b"))
    assert names(follow.visit(b"a")) == ["b"]
    for _ in range(3):
        follow.visit(b"a")
        follow.learn(b"a", recipe("c"))
    assert names(follow.visit(b"a")) == ["c", "b"]
    assert follow.visit(b"b") == []


def test_what_follows_too_rarely_is_not_fetched() -> None:
    follow = Follow()
    follow.learn(b"a", recipe("b"))
    follow.learn(b"a", recipe("b"))
    last = [names(follow.visit(b"a")) for _ in range(20)]
    assert last[0] == ["b"]
    assert last[-1] == []  # 2 in 21 visits is less than a fifth


def test_new_continuations_push_out_those_seen_once() -> None:
    follow = Follow()
    for n in range(MAX_NEXT):
        follow.learn(b"a", recipe(f"old{n}"))
    for _ in range(3):
        follow.learn(b"a", recipe("new"))
    assert names(follow.visit(b"a")) == ["new"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.integers(0, MAX_BYTES // 6)), max_size=60))
def test_memory_is_bounded_and_counted(script: list[tuple[int, int, int]]) -> None:
    follow = Follow()
    for place, name, size in script:
        follow.learn(b"%d" % place, Recipe(b"%d-%d" % (name, size), "t", Endpoint.CHAT, "m", bytes(size)))
        assert 0 <= follow.used_bytes <= MAX_BYTES
    if not len(follow):
        assert follow.used_bytes == 0


def test_places_are_bounded() -> None:
    follow = Follow()
    for n in range(MAX_PLACES + 10):
        follow.learn(b"%d" % n, recipe("x"))
    assert len(follow) == MAX_PLACES


def test_budget_is_a_share_of_requests_and_saves_up_little() -> None:
    budget = Budget(0.25)
    assert not budget.take()
    for _ in range(8):
        budget.earn()
    assert [budget.take(), budget.take(), budget.take()] == [True, True, False]
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.take() for _ in range(100)) == pytest.approx(Budget.MOST)
    nothing = Budget(0.0)
    nothing.earn()
    assert not nothing.has()
