"""What an answer is good for at its age: every border, and what clients ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_infer.cache.freshness import Verdict, forward_status, hit_status, judge, refresh_due
from local_infer.model import CacheWish
from tests.local_infer.cache_asks import cache_config

CONFIG = cache_config()  # fresh 100 s, revalidate 50 s, stale 1000 s
BORN_S = 5000.0


@pytest.mark.parametrize(
    ("age_s", "age", "ttl_s"),
    [
        (0, "fresh", 100), (100, "fresh", 0), (100.5, "revalidate", -0.5), (150, "revalidate", -50),
        (150.5, "stale", -50.5), (1150, "stale", -1050), (1150.5, None, None), (-10, "fresh", 100), (-61, "stale", 0),
    ],
)  # fmt: skip
def test_ages(age_s: float, age: str | None, ttl_s: float | None) -> None:
    verdict = judge(BORN_S, BORN_S + age_s, CONFIG, CacheWish())
    if age is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert (verdict.age, verdict.ttl_s) == (age, ttl_s)
        assert verdict.age_s == max(0, age_s)


def test_no_cache_takes_nothing_and_no_store_may_read() -> None:
    assert judge(BORN_S, BORN_S, CONFIG, CacheWish(read=False)) is None
    verdict = judge(BORN_S, BORN_S, CONFIG, CacheWish(write=False))
    assert verdict is not None
    assert verdict.age == "fresh"


@pytest.mark.parametrize(("max_age_s", "age"), [(30.0, "fresh"), (29.0, "stale"), (0.0, "stale")])
def test_max_age_of_the_client_makes_older_ones_a_last_resort(max_age_s: float, age: str) -> None:
    verdict = judge(BORN_S, BORN_S + 30, CONFIG, CacheWish(max_age_s=max_age_s))
    assert verdict is not None
    assert verdict.age == age
    assert (verdict.ttl_s < 0) == (age == "stale")


@given(st.floats(0, 1e6), st.floats(0, 1e4), st.none() | st.floats(0, 1e4))
def test_an_older_answer_is_never_better(age_s: float, more_s: float, max_age_s: float | None) -> None:
    order = ["fresh", "revalidate", "stale", None]
    wish = CacheWish(max_age_s=max_age_s)
    now = 1e7
    younger, older = judge(now - age_s, now, CONFIG, wish), judge(now - age_s - more_s, now, CONFIG, wish)
    assert order.index(older and older.age) >= order.index(younger and younger.age)


def test_refresh_is_due_in_the_last_tenth() -> None:
    assert [refresh_due(BORN_S, BORN_S + age_s, CONFIG) for age_s in (0, 89, 90, 100, 101)] == [
        False, False, True, True, False,
    ]  # fmt: skip


def test_cache_status_parameters() -> None:
    assert hit_status(Verdict("fresh", 70.2, 29.8)) == "hit; ttl=29"
    assert hit_status(Verdict("revalidate", 100.5, -0.5)) == "hit; ttl=-1"
    assert forward_status("miss", stored=True) == "fwd=miss; stored"
    assert forward_status("stale", collapsed=True) == "fwd=stale; collapsed"
    assert forward_status("bypass") == "fwd=bypass"
