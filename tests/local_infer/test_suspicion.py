"""A lost connection is asked about at once; who closes idle ones as a habit, no more often than any idle upstream."""

from __future__ import annotations

import itertools

from local_infer.upstreams.suspicion import Suspicion


def probes_of(closed_every_s: float, longest_s: float, until_s: float) -> list[float]:
    """When an upstream is probed that is well, and closes each connection so long after its last answer."""
    suspicion, heard_s, closes_s, now = Suspicion(longest_s), 0.0, closed_every_s, 0.0
    times = []
    while now < until_s:
        now += 0.5
        if now >= closes_s:
            suspicion.lost(now)
            closes_s = float("inf")
        due = suspicion.is_due(heard_s, now)
        if due or now >= heard_s + longest_s:
            suspicion.heard()
            if due:
                suspicion.answered(True, now)
            times.append(now)
            heard_s, closes_s = now, now + closed_every_s
    return times


def test_a_habit_is_asked_about_less_and_less() -> None:
    times = probes_of(closed_every_s=0.5, longest_s=10.0, until_s=100.0)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[:4] == [2.0, 4.0, 8.0, 10.0]
    assert set(gaps[3:]) == {10.0}
    # Without it, each of them would be a probe.
    assert len(times) < 100 / 5


def test_the_first_and_one_after_a_long_quiet_are_news() -> None:
    suspicion = Suspicion(10.0)
    for now in (50.0, 60.0, 80.0):
        suspicion.lost(now)
        assert suspicion.is_due(0.0, now)
        suspicion.answered(True, now)
        suspicion.heard()
    suspicion.lost(85.0)
    assert not suspicion.is_due(0.0, 85.0)
    assert suspicion.is_due(0.0, 88.0)
    suspicion.heard()
    suspicion.lost(200.0)
    assert suspicion.is_due(199.0, 200.0)


def test_one_that_did_go_away_is_news_the_next_time() -> None:
    suspicion = Suspicion(10.0)
    for now in (50.0, 60.0, 80.0):
        suspicion.answered(True, now)
    suspicion.lost(81.0)
    suspicion.answered(False, 90.0)
    suspicion.lost(91.0)
    assert suspicion.is_due(90.0, 91.0)


def test_requests_tell_by_themselves() -> None:
    suspicion = Suspicion(10.0)
    assert not suspicion.is_due(0.0, 100.0)
    suspicion.lost(100.0)
    assert not suspicion.is_due(99.5, 100.0)
    assert suspicion.is_due(99.0, 100.0)


def test_where_idle_upstreams_are_probed_more_often_than_that() -> None:
    suspicion = Suspicion(0.1)
    for now in (1.0, 2.0, 3.0):
        suspicion.lost(now)
        assert suspicion.is_due(now - 1.0, now)
        suspicion.answered(True, now)
