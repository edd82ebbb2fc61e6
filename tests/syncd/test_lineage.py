"""Which parent a copy follows, in scripted time."""

from __future__ import annotations

import random

import pytest

from syncd.transfer.lineage import DWELL_S, FIRST_REST_S, GAIN_S, MAX_REST_S, STALE_S, Choice, Standing

NAMES = ["near", "far", "third"]


def standings(**rtts_s: float | None) -> dict[str, Standing]:
    """Parents that answered at 0 after these round trips; None: never measured."""
    found = {}
    for name, rtt_s in rtts_s.items():
        found[name] = Standing()
        found[name].worked(rtt_s, 0.0)
    return found


def test_the_nearest_is_taken_first() -> None:
    assert Choice(NAMES).choose(standings(near=0.010, far=0.080), 0.0) == "near"
    assert Choice(["far", "near"]).choose(standings(near=0.010, far=0.080), 0.0) == "near"


def test_the_operators_order_decides_between_equals() -> None:
    assert Choice(["far", "near"]).choose(standings(near=None, far=None), 0.0) == "far"
    assert Choice(["far", "near"]).choose(standings(near=0.02, far=0.02), 0.0) == "far"


def test_one_that_is_not_measured_is_behind_one_that_is() -> None:
    assert Choice(NAMES).choose(standings(near=None, far=0.3), 0.0) == "far"


def test_bad_news_acts_at_once() -> None:
    choice, known = Choice(NAMES), standings(near=0.010, far=0.080)
    assert choice.choose(known, 0.0) == "near"
    known["near"].failed(1.0, "reset")
    assert choice.choose(known, 1.0) == "far"
    assert known["near"].why == "reset"


def test_one_that_came_back_is_waited_for() -> None:
    choice, known = Choice(NAMES), standings(near=0.010, far=0.080)
    choice.choose(known, 0.0)
    known["near"].failed(1.0, "reset")
    assert choice.choose(known, 1.0) == "far"
    known["near"].worked(0.010)
    assert choice.choose(known, 5.0) == "far"
    assert choice.choose(known, 5.0 + DWELL_S - 0.1) == "far"
    assert choice.choose(known, 5.0 + DWELL_S) == "near"


def test_nobody_is_chosen_while_all_rest() -> None:
    choice, known = Choice(NAMES), standings(near=0.010)
    assert choice.choose(known, 0.0) == "near"
    known["near"].failed(0.0, "down")
    assert choice.choose(known, FIRST_REST_S / 2) == ""
    assert choice.choose(known, FIRST_REST_S) == "near"


def test_rests_grow_and_end_with_an_answer() -> None:
    standing = Standing()
    rests = []
    for _ in range(10):
        standing.failed(100.0, "down")
        rests.append(standing.rest_until - 100.0)
    assert rests[:4] == [1.0, 2.0, 4.0, 8.0]
    assert rests[-1] == MAX_REST_S
    standing.worked()
    assert (standing.failures, standing.rest_until, standing.why) == (0, 0.0, "")
    standing.failed(300.0, "down")
    assert standing.rest_until == 301.0


def test_a_stale_parent_is_passed_over() -> None:
    choice, known = Choice(NAMES), standings(near=0.010, far=0.080)
    known["near"].worked(lag_s=STALE_S + 1)
    assert choice.choose(known, 0.0) == "far"


def test_the_incumbent_is_left_at_once_when_it_goes_stale() -> None:
    choice, known = Choice(NAMES), standings(near=0.010, far=0.080)
    assert choice.choose(known, 0.0) == "near"
    known["near"].worked(lag_s=STALE_S)
    assert choice.choose(known, 1.0) == "near"
    known["near"].worked(lag_s=STALE_S + 0.1)
    assert choice.choose(known, 2.0) == "far"


def test_all_stale_alike_are_no_reason_to_change() -> None:
    choice, known = Choice(NAMES), standings(near=0.010, far=0.080)
    for standing in known.values():
        standing.worked(lag_s=86400.0)
    assert choice.choose(known, 1.0) == "near"


@pytest.mark.parametrize(
    ("incumbent_s", "challenger_s", "takes_over"),
    [(0.100, 0.079, True), (0.100, 0.081, False), (0.010, 0.0051, False), (0.010, 0.0049, True)],
)
def test_gain_that_is_worth_a_change(incumbent_s: float, challenger_s: float, takes_over: bool) -> None:
    choice = Choice(["old", "new"])
    assert choice.choose(standings(old=incumbent_s), 0.0) == "old"
    known = standings(old=incumbent_s, new=challenger_s)
    choice.choose(known, 1.0)
    assert choice.choose(known, 1.0 + DWELL_S) == ("new" if takes_over else "old")
    assert GAIN_S == 0.005


def test_dwell_begins_anew_after_a_setback() -> None:
    choice = Choice(["old", "new"])
    choice.choose(standings(old=0.1), 0.0)
    nearer, alike = standings(old=0.1, new=0.01), standings(old=0.1, new=0.1)
    choice.choose(nearer, 1.0)
    assert choice.choose(alike, 50.0) == "old"
    assert choice.choose(nearer, 51.0) == "old"
    assert choice.choose(nearer, 51.0 + DWELL_S - 1) == "old"
    assert choice.choose(nearer, 51.0 + DWELL_S) == "new"


def test_round_trips_are_smoothed() -> None:
    standing = Standing()
    standing.worked(0.080)
    standing.worked(0.160)
    assert standing.srtt_s == pytest.approx(0.090)  # 7/8 of 80 ms and 1/8 of 160 ms (RFC 6298 2.3)
    standing.worked()
    assert standing.srtt_s == pytest.approx(0.090)


def test_noise_does_not_make_parents_take_turns() -> None:
    rng, changes, before = random.Random(7), 0, ""
    choice, known = Choice(["a", "b"]), standings(a=0.040, b=0.041)
    for second in range(0, 86400, 10):
        for standing in known.values():
            standing.worked(max(0.001, rng.gauss(0.040, 0.008)))
        now = choice.choose(known, float(second))
        changes += now != before
        before = now
    assert changes == 1, "the first choice, and no other in a day"


def test_a_first_choice_made_before_anything_was_measured_is_not_held_on_to() -> None:
    choice, known = Choice(["far", "near"]), standings(near=None, far=None)
    assert choice.choose(known, 0.0) == "far"
    known["near"].worked(0.010)
    assert choice.choose(known, 0.1) == "far", "it may be nearer still"
    known["far"].worked(0.080)
    assert choice.choose(known, 0.2) == "near"
    known["far"].worked(0.001)
    assert choice.choose(known, 0.3) == "near", "from now on, good news must last"
