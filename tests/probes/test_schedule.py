"""The schedule, on scripted time: phases, jitter, fast confirmation, concurrency, changed lists."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import IcmpCheck
from core.messages import Target
from probes.schedule import FALL_PROBES, RISE_PROBES, Schedule, worst_case_down_s


def target(name: str = "m", interval: str = "5s", timeout: str = "1s") -> Target:
    return Target(name, "c", 4, "192.0.2.1", "h", IcmpCheck(kind="icmp", interval=interval, timeout=timeout))


def play(
    schedule: Schedule, until_s: float, outcome: Callable[[Target, float], tuple[bool, float]], now: float = 0.0
) -> list[tuple[float, float, str, bool]]:
    """(start, end, mirror, lost) of all probes until `until_s`; `outcome` says (lost, how long it takes)."""
    log: list[tuple[float, float, str, bool]] = []
    running: list[tuple[float, Target, bool]] = []
    while True:
        due_s = schedule.due()
        ends_s = min((end for end, _, _ in running), default=None)
        moments = [at for at in (due_s, ends_s) if at is not None]
        if not moments or (now := max(now, min(moments))) > until_s:
            return log
        for item in [item for item in running if item[0] <= now]:
            running.remove(item)
            schedule.finish(item[1], item[2], now)
        for begun, _late in schedule.start(now):
            lost, takes_s = outcome(begun, now)
            running.append((now + takes_s, begun, lost))
            log.append((now, now + takes_s, begun.mirror, lost))


def test_steady_gaps_are_the_interval_give_or_take_a_tenth() -> None:
    schedule = Schedule(10, random.Random(1))
    schedule.replace([target()], 0.0)
    starts = [start for start, *_ in play(schedule, 5000.0, lambda _t, _n: (False, 0.05))]
    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert starts[0] <= 1.0
    assert 2.5 <= gaps[0] <= 5.0
    assert all(4.5 <= gap <= 5.5 for gap in gaps[1:])
    assert max(gaps[1:]) - min(gaps[1:]) > 0.9
    assert sum(gaps[1:]) / len(gaps[1:]) == pytest.approx(5.0, abs=0.05)


def test_targets_do_not_fire_together() -> None:
    schedule = Schedule(1000, random.Random(2))
    schedule.replace([target(f"m{i}") for i in range(100)], 0.0)
    log = play(schedule, 300.0, lambda _t, _n: (False, 0.001))
    first_round = sorted(start for start, *_ in log)[:100]
    assert first_round[-1] <= 1.0
    per_10ms = [sum(1 for s in first_round if i / 100 <= s < (i + 1) / 100) for i in range(100)]
    assert max(per_10ms) <= 3
    # In later rounds 100 targets over 5 s come out at 2 in 100 ms on average.
    late = [start for start, *_ in log if start > 100]
    per_100ms = [sum(1 for s in late if 100 + i / 10 <= s < 100 + (i + 1) / 10) for i in range(2000)]
    assert max(per_100ms) <= 10


def test_a_large_list_starts_at_a_bounded_rate() -> None:
    schedule = Schedule(10_000, random.Random(2))
    schedule.replace([target(f"m{i}", "30s") for i in range(2000)], 0.0)
    log = play(schedule, 9.99, lambda _t, _n: (False, 0.001))
    starts = sorted(start for start, *_ in log)[:2000]
    assert 9.0 < starts[-1] <= 10.0


@given(
    seed=st.integers(0, 10_000),
    interval_ms=st.integers(100, 10_000),
    timeout_share=st.floats(0.01, 1.0),
    fall=st.integers(1, 8),
    healthy=st.integers(1, 12),
)
@settings(max_examples=300, deadline=None)
def test_a_dead_mirror_is_known_within_the_bound(
    seed: int, interval_ms: int, timeout_share: float, fall: int, healthy: int
) -> None:
    """The worst phase: the mirror dies right after its last good answer, which came at once."""
    timeout_ms = max(10, round(interval_ms * timeout_share))
    schedule = Schedule(10, random.Random(seed))
    schedule.replace([target("m", f"{interval_ms}ms", f"{timeout_ms}ms")], 0.0)
    count = 0

    def outcome(_target: Target, _now: float) -> tuple[bool, float]:
        nonlocal count
        count += 1
        return (False, 0.0) if count <= healthy else (True, timeout_ms / 1000)

    log = play(schedule, interval_ms / 1000 * 60, outcome)
    died_s = [start for start, _, _, lost in log if not lost][-1]
    known_s = [end for _, end, _, lost in log if lost][fall - 1]
    interval_s, timeout_s = interval_ms / 1000, timeout_ms / 1000
    assert known_s - died_s <= worst_case_down_s(interval_s, timeout_s, fall) + 1e-9
    if fall == 3 and timeout_s <= interval_s / 2:
        assert known_s - died_s <= 3 * interval_s + 0.5


def test_the_bound_in_numbers() -> None:
    assert worst_case_down_s(5.0, 1.0) == pytest.approx(11.5)
    assert worst_case_down_s(5.0, 2.5) == pytest.approx(13.0)
    assert worst_case_down_s(5.0, 5.0) == pytest.approx(
        20.5
    )  # 4.1 intervals: a timeout as long as the interval is slow
    assert worst_case_down_s(5.0, 0.633 * 5.0) <= 15.0


def gaps_after(losses: list[bool]) -> list[float]:
    schedule = Schedule(1, random.Random(3))
    schedule.replace([target("m", "10s", "1s")], 0.0)
    outcomes = iter(losses)
    log = play(schedule, 10_000.0, lambda _t, _n: (next(outcomes, False), 0.0))[: len(losses) + 1]
    return [b[0] - a[0] for a, b in itertools.pairwise(log)]


def test_losses_and_returns_are_confirmed_fast_then_the_pace_is_steady_again() -> None:
    gaps = gaps_after([False, False, True, True, False, *[False] * 8])
    assert gaps[2:4] == pytest.approx([5.0, 5.0])  # after each loss
    assert gaps[4 : 4 + RISE_PROBES - 1] == pytest.approx([5.0] * (RISE_PROBES - 1))  # until it is up for sure
    assert all(9 <= gap <= 11 for gap in gaps[4 + RISE_PROBES - 1 :])


def test_a_mirror_that_is_down_is_not_hammered() -> None:
    gaps = gaps_after([False, *[True] * 20, False, False])
    assert gaps[1:FALL_PROBES] == pytest.approx([5.0] * (FALL_PROBES - 1))
    assert all(9 <= gap <= 11 for gap in gaps[1 + FALL_PROBES : 20])
    assert gaps[21] == pytest.approx(5.0)  # the first answer is followed up fast


def test_a_target_is_never_probed_twice_at_once_and_a_slow_probe_delays_the_next() -> None:
    schedule = Schedule(10, random.Random(4))
    schedule.replace([target("m", "1s", "1s")], 0.0)
    log = play(schedule, 100.0, lambda _t, _n: (True, 1.0))
    assert all(b[0] >= a[1] for a, b in itertools.pairwise(log))
    assert len(log) > 80


def test_concurrency_is_bounded_and_nobody_starves() -> None:
    schedule = Schedule(3, random.Random(5))
    schedule.replace([target(f"m{i}", "1s") for i in range(30)], 0.0)
    log = play(schedule, 60.0, lambda _t, _n: (False, 0.5))
    for at in range(600):
        assert sum(1 for start, end, *_ in log if start <= at / 10 < end) <= 3
    counts = [sum(1 for *_, name, _ in log if name == f"m{i}") for i in range(30)]
    assert max(counts) - min(counts) <= 2
    assert sum(counts) >= 3 * 60 / 0.5 - 40


def test_lateness_is_told() -> None:
    schedule = Schedule(1, random.Random(5))
    schedule.replace([target("a"), target("b")], 0.0)
    ((first, late_s),) = schedule.start(2.0)
    assert 1.0 <= late_s <= 2.0
    assert schedule.due() is None
    assert schedule.start(3.0) == []
    schedule.finish(first, False, 3.0)
    ((second, _),) = schedule.start(3.0)
    assert {first.mirror, second.mirror} == {"a", "b"}


def test_a_target_that_stays_keeps_its_phase() -> None:
    schedule = Schedule(10, random.Random(6))
    schedule.replace([target("a")], 0.0)
    play(schedule, 20.0, lambda _t, _n: (False, 0.0))
    due_s = schedule.due()
    assert due_s is not None
    for now in (20.1, 20.2, 20.3):
        schedule.replace([target("a")], now)
        assert schedule.due() == due_s
    schedule.replace([target("a", "100ms", "50ms")], 20.3)
    assert schedule.due() == pytest.approx(min(due_s, 20.4))


def test_a_target_taken_away_while_under_way_is_not_wanted() -> None:
    schedule = Schedule(1, random.Random(7))
    schedule.replace([target("a"), target("b")], 0.0)
    ((begun, _),) = schedule.start(1.5)
    other = "b" if begun.mirror == "a" else "a"
    schedule.replace([target(other)], 1.6)
    assert schedule.due() is None  # the slot is still taken
    assert schedule.finish(begun, False, 1.7) is False
    assert [t.mirror for t, _ in schedule.start(3.0)] == [other]


def test_a_target_that_comes_back_while_under_way_is_not_probed_twice() -> None:
    schedule = Schedule(10, random.Random(8))
    schedule.replace([target("a")], 0.0)
    ((begun, _),) = schedule.start(1.5)
    schedule.replace([], 1.6)
    schedule.replace([target("a")], 1.7)
    assert schedule.start(4.0) == []
    assert schedule.finish(begun, False, 4.1) is True
    assert [t.mirror for t, _ in schedule.start(4.1)] == ["a"]


def test_a_probe_that_could_not_be_made_changes_no_state() -> None:
    schedule = Schedule(10, random.Random(9))
    schedule.replace([target("a", "10s")], 0.0)
    gaps: list[float] = []
    last_s = None
    for _ in range(20):
        due_s = schedule.due()
        assert due_s is not None
        ((begun, _),) = schedule.start(due_s)
        schedule.finish(begun, None, due_s)
        if last_s is not None:
            gaps.append(due_s - last_s)
        last_s = due_s
    assert all(9 <= gap <= 11 for gap in gaps[1:])


def test_finish_of_what_was_not_started_is_refused() -> None:
    schedule = Schedule(10, random.Random(9))
    schedule.replace([target("a")], 0.0)
    with pytest.raises(ValueError, match="no probe of"):
        schedule.finish(target("a"), False, 1.0)


def test_same_target_twice_in_a_list_counts_once() -> None:
    schedule = Schedule(10, random.Random(9))
    schedule.replace([target("a"), target("a")], 0.0)
    assert schedule.size == 1
    assert len(schedule.start(10.0)) == 1
