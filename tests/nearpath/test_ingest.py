"""Tokens, and how a report becomes samples on the appliance's timeline."""

from __future__ import annotations

import json
from typing import Any

from core.messages import SampleReport, decode
from nearpath.ingest import AgentState, accept_report
from tests.nearpath.reporting import INCARNATION, make_config, sample

AGENTS = make_config().agents
NOW = 1000.0


def report(*samples: dict[str, Any], wall_s: float = NOW, incarnation: str = INCARNATION) -> SampleReport:
    return decode(SampleReport, json.dumps({"incarnation": incarnation, "wall_s": wall_s, "samples": samples}))


def test_an_age_is_a_time_on_our_timeline_whatever_the_agents_clock_says() -> None:
    for wall_s in (NOW, 0.0, 4e9, -4e9):
        (taken,) = accept_report(report(sample(1, age_s=2.5), wall_s=wall_s), AGENTS["a1"], AgentState("a1"), NOW)
        assert taken.taken_s == 997.5
        assert (taken.agent, taken.region, taken.incarnation) == ("a1", "eu", INCARNATION)
        assert not taken.quarantined


def test_samples_are_put_in_order_and_keep_what_they_say() -> None:
    taken = accept_report(
        report(sample(3), sample(1, None), sample(2, load_ratio=0.5, stamp="kernel")),
        AGENTS["a1"],
        AgentState("a1"),
        NOW,
    )
    assert [t.sequence for t in taken] == [1, 2, 3]
    assert (taken[0].rtt_s, taken[0].loss) == (None, "timeout")
    assert (taken[1].load_ratio, taken[1].stamp) == (0.5, "kernel")


def test_a_clock_that_jumped_quarantines_what_was_dated_by_it() -> None:
    state = AgentState("a1")

    def quarantined(wall_s: float, now: float) -> list[bool]:
        given = report(sample(1, age_by="wall"), sample(2, age_by="boot"), wall_s=wall_s)
        return [t.quarantined for t in accept_report(given, AGENTS["a1"], state, now)]

    assert quarantined(NOW + 50, NOW) == [False, False]  # a constant skew is no jump
    assert quarantined(NOW + 60.9, NOW + 10) == [False, False]  # 0.9 s of drift and delay neither
    assert quarantined(NOW + 20, NOW + 20) == [True, False]
    assert state.skew_s == 0.0
    assert quarantined(NOW + 21, NOW + 21) == [False, False]
    assert quarantined(NOW - 3600, NOW + 22) == [True, False]


def test_a_new_incarnation_begins_its_count_anew() -> None:
    state = AgentState("a1", incarnation=INCARNATION, last_sequence=500)
    accept_report(report(sample(1)), AGENTS["a1"], state, NOW)
    assert (state.last_sequence, state.heard_s) == (500, NOW)
    accept_report(report(sample(1), incarnation="f" * 16), AGENTS["a1"], state, NOW + 1)
    assert (state.incarnation, state.last_sequence, state.heard_s) == ("f" * 16, 0, NOW + 1)


def test_after_a_jump_all_that_was_dated_by_the_clock_is_quarantined_however_many_reports_it_takes() -> None:
    """An agent's host was rebooted with a wrong clock; its full spool takes many reports, all equally wrong."""
    state = AgentState("a1")

    def quarantined(wall_s: float, now: float, *ages_by: str) -> list[bool]:
        given = report(*(sample(n, age_by=by) for n, by in enumerate(ages_by, 1)), wall_s=wall_s)
        return [t.quarantined for t in accept_report(given, AGENTS["a1"], state, now)]

    assert quarantined(NOW, NOW, "boot") == [False]
    assert quarantined(NOW - 3600, NOW + 60, "wall", "wall") == [True, True]
    assert quarantined(NOW - 3599, NOW + 61, "wall", "wall") == [True, True]
    assert quarantined(NOW - 3598, NOW + 62, "wall", "boot") == [True, False]
    assert quarantined(NOW - 3597, NOW + 63, "boot") == [False]
    assert quarantined(NOW - 3596, NOW + 64, "wall") == [False], "the next reboot is another story"


def test_incarnations_come_at_a_bounded_rate() -> None:
    state = AgentState("a1")
    admitted = [state.admits(f"{n:016x}", NOW) for n in range(100)]
    assert admitted == [True] * 64 + [False] * 36
    assert state.admits(f"{63:016x}", NOW), "a known one is no new one"
    assert not state.admits("f" * 16, NOW + 5)
    assert state.admits("f" * 16, NOW + 10)
    assert not state.admits("e" * 16, NOW + 10)
