"""The decision step by step: each step decides somewhere, nobody left fails open, and the incumbent is kept fairly."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from core.config import Steering
from policy.decide import Decision, Memory, Trace, decide, margin
from policy.evidence import Candidate, Watched
from policy.plan import MirrorPlan
from policy.table import Quality

RULES = Steering.model_validate({"min_gain": "2ms", "min_gain_share": "5%", "confidence": 2.0, "dwell": "20s"})


def mirror(name: str, rtt_ms: float | None = None, position: int = 0, **more: Any) -> Candidate:
    """A candidate that is up and fresh; `more` are slots of Candidate, or `cost`."""
    plan = MirrorPlan(name, {4: (name,)}, None, more.pop("cost", 0), 0.9, False)
    one = Candidate(Watched(plan, position, more.pop("preference", 100), more.pop("distance", None), ()))
    one.up = True
    if rtt_ms is not None:
        one.rtt_s = one.score_s = rtt_ms / 1000
        one.se_s = more.pop("se_ms", 0.1) / 1000
        one.quality = Quality.LIVE
    for slot, value in more.items():
        setattr(one, slot, value)
    return one


def once(*candidates: Candidate, memory: Memory | None = None, now: float = 0.0) -> Decision:
    return decide(candidates, memory or Memory(), RULES, now)


# -- each step decides


def test_a_drained_mirror_leaves() -> None:
    made = once(mirror("a", 10, drained=True), mirror("b", 90), mirror("c", 95))
    assert made.order == ("b", "c", "a")
    assert made.eligible == 2
    assert once(mirror("a", 10, drained=True), mirror("b", 90)).decided_by == "admin"


def test_a_mirror_that_is_down_from_here_leaves() -> None:
    made = once(mirror("a", 10, up=False), mirror("b", 90))
    assert (made.order, made.eligible, made.decided_by) == (("b", "a"), 1, "up")


def test_a_mirror_not_yet_known_counts_as_up() -> None:
    assert once(mirror("a", up=None), mirror("b", up=False)).order == ("a", "b")


def test_a_mirror_that_is_not_fresh_leaves() -> None:
    made = once(mirror("a", 10, fresh=False), mirror("b", 90))
    assert (made.order, made.eligible, made.decided_by) == (("b", "a"), 1, "fresh")


def test_higher_preference_goes_first_however_slow() -> None:
    made = once(mirror("a", 10), mirror("b", 90, preference=101))
    assert (made.order, made.decided_by) == (("b", "a"), "preference")


def test_a_full_mirror_goes_behind_but_stays() -> None:
    made = once(mirror("a", 10, full=True), mirror("b", 90))
    assert (made.order, made.eligible, made.decided_by) == (("b", "a"), 2, "capacity")


def test_lower_rtt_goes_first() -> None:
    made = once(mirror("a", 30), mirror("b", 10), mirror("c", 20))
    assert (made.order, made.decided_by) == (("b", "c", "a"), "rtt")


def test_what_loss_costs_counts_as_rtt() -> None:
    lossy = mirror("a", 10, score_s=0.160)
    assert once(lossy, mirror("b", 90)).order == ("b", "a")


def test_measured_goes_before_unmeasured() -> None:
    made = once(mirror("a", distance=0), mirror("b", 300))
    assert (made.order, made.decided_by) == (("b", "a"), "rtt")


def test_the_nearer_in_the_tree_goes_first_when_neither_is_measured() -> None:
    made = once(mirror("a", distance=2), mirror("b", distance=1, position=1), mirror("c", position=2))
    assert (made.order, made.decided_by) == (("b", "a", "c"), "distance")


def test_lower_cost_goes_first_between_equals() -> None:
    made = once(mirror("a", 10, cost=5), mirror("b", 10.5, cost=1))
    assert (made.order, made.decided_by) == (("b", "a"), "cost")
    made = once(mirror("a", distance=1, cost=5), mirror("b", distance=1, cost=1, position=1))
    assert (made.order, made.decided_by) == (("b", "a"), "cost")


def test_cost_never_outweighs_rtt() -> None:
    assert once(mirror("a", 10, cost=5), mirror("b", 13, cost=0)).order == ("a", "b")


def test_the_configured_order_decides_between_unmeasured_equals() -> None:
    made = once(mirror("z", position=0), mirror("a", position=1))
    assert (made.order, made.decided_by) == (("z", "a"), "order")


def test_the_name_decides_an_exact_tie() -> None:
    made = once(mirror("b", 10), mirror("a", 10))
    assert (made.order, made.decided_by) == (("a", "b"), "name")


def test_one_alone() -> None:
    assert once(mirror("a")).decided_by == "only"


# -- nobody left


@pytest.mark.parametrize("fault", [{"drained": True}, {"up": False}, {"fresh": False}])
def test_when_nobody_would_be_left_all_stay(fault: dict[str, Any]) -> None:
    made = once(mirror("a", 30, **fault), mirror("b", 10, **fault))
    assert made.fail_open == {"drained": "admin", "up": "up", "fresh": "fresh"}[next(iter(fault))]
    assert (made.order, made.eligible) == (("b", "a"), 2)


def test_the_steps_after_a_failed_open_one_still_work() -> None:
    made = once(mirror("a", 10, drained=True, up=False), mirror("b", 90, drained=True))
    assert (made.order, made.eligible, made.fail_open) == (("b", "a"), 1, "admin")


def test_those_left_out_last_come_first_behind() -> None:
    made = once(mirror("a", 1, drained=True), mirror("b", 2, up=False), mirror("c", 3, fresh=False), mirror("d", 4))
    assert made.order == ("d", "c", "b", "a")


# -- the margin


@pytest.mark.parametrize(
    ("a", "b", "margin_ms"),
    [
        (mirror("a", 10), mirror("b", 12), 2.0),  # min_gain
        (mirror("a", 100), mirror("b", 200), 10.0),  # 5% of the slower
        (mirror("a", 10, se_ms=3), mirror("b", 12, se_ms=4), 10.0),  # 2 * sqrt(9 + 16)
    ],
)
def test_margin_by_hand(a: Candidate, b: Candidate, margin_ms: float) -> None:
    assert margin(a, b, RULES) * 1000 == pytest.approx(margin_ms)


def settled(*order: str, since_s: float = 0.0, score_ms: float = 10.0, beaten_since_s: float | None = None) -> Memory:
    return Memory(order, since_s, score_ms / 1000, beaten_since_s, compared=dict.fromkeys(order, Quality.LIVE))


def test_a_mirror_measured_for_the_first_time_takes_its_place_at_once() -> None:
    memory = settled("b", "a", since_s=999.0)
    late = Memory(("b", "a"), 999.0, 0.010, None, compared={"b": Quality.LIVE})
    assert once(mirror("a", 5), mirror("b", 10), memory=memory, now=1000).order == ("b", "a"), "b has won against a"
    made = once(mirror("a", 5), mirror("b", 10), memory=late, now=1000)
    assert made.order == ("a", "b"), "a cold start is no contest: a had not been measured"
    assert made.memory.compared == {"a": Quality.LIVE, "b": Quality.LIVE}
    long_ago = Memory(("b", "a"), 0.0, 0.010, None, compared={"b": Quality.LIVE})
    made = once(mirror("a", 5), mirror("b", 10), memory=long_ago, now=1000)
    assert (made.order[0], made.held) == ("b", "a"), "a mirror that is new to an old order has to last"


def test_a_mirror_known_better_than_before_does_not_wait() -> None:
    """An agent was away, the region above had put b first; its own vantage is back and has always known a to be faster."""
    memory = Memory(("b", "a"), 0.0, 0.010, None, compared={"a": Quality.STALE, "b": Quality.LIVE})
    assert once(mirror("a", 5), mirror("b", 10), memory=memory, now=1000).order == ("a", "b")


def test_within_the_margin_the_incumbent_stays() -> None:
    made = once(mirror("a", 10), mirror("b", 8.1), memory=settled("a", "b"), now=1000)
    assert (made.order, made.held) == (("a", "b"), "")
    assert made.memory.beaten_since_s is None


def test_a_chain_of_near_equals_does_not_hide_the_best() -> None:
    # b is within 2 ms of a and c within 2 ms of b, but c is 3 ms faster than a.
    three = (mirror("a", 20), mirror("b", 18.5), mirror("c", 17))
    made = once(*three, memory=settled("a", "b", "c", score_ms=20, beaten_since_s=0.0), now=100)
    assert made.order == ("c", "a", "b")


def test_an_order_that_nobody_measured_holds_nobody_back() -> None:
    static = once(mirror("a", position=0), mirror("b", position=1))
    assert static.order == ("a", "b")
    made = once(mirror("a", 10), mirror("b", 9.5), memory=static.memory, now=1)
    assert (made.order, made.held) == (("b", "a"), "")


# -- dwell


def test_a_challenger_must_stay_ahead_for_dwell() -> None:
    memory = settled("a", "b")
    a, b = mirror("a", 10), mirror("b", 5)
    for now, first in ((100, "a"), (110, "a"), (119.9, "a"), (120, "b"), (121, "b")):
        made = once(a, b, memory=memory, now=now)
        assert made.order[0] == first
        assert (made.held, made.decided_by) == (("b", "dwell") if first == "a" else ("", "rtt"))
        memory = made.memory
    assert (memory.since_s, memory.settled_s, memory.switches) == (120, 0.005, 1)


def test_a_challenger_that_falls_back_starts_its_dwell_anew() -> None:
    memory = settled("a", "b")
    for now, b_ms in ((100, 5), (115, 9), (116, 5), (130, 5)):
        made = once(mirror("a", 10), mirror("b", b_ms), memory=memory, now=now)
        assert made.order[0] == "a"
        memory = made.memory
    assert memory.beaten_since_s == 116


def test_bad_news_acts_at_once() -> None:
    memory = settled("a", "b")
    assert once(mirror("a", 10, up=False), mirror("b", 50), memory=memory).order[0] == "b"
    assert once(mirror("a", 10, drained=True), mirror("b", 50), memory=memory).order[0] == "b"
    assert once(mirror("a", 10, fresh=False), mirror("b", 50), memory=memory).order[0] == "b"
    assert once(mirror("a", 10, full=True), mirror("b", 50), memory=memory).order[0] == "b"


def test_an_incumbent_that_got_worse_is_left_at_once() -> None:
    made = once(mirror("a", 80), mirror("b", 50), memory=settled("a", "b", score_ms=10), now=100)
    assert (made.order, made.held) == (("b", "a"), "")


def test_an_incumbent_that_is_as_it_was_is_given_the_dwell() -> None:
    made = once(mirror("a", 80), mirror("b", 50), memory=settled("a", "b", score_ms=79), now=100)
    assert (made.order, made.held) == (("a", "b"), "b")


def test_a_mirror_that_comes_back_waits_for_dwell() -> None:
    memory = once(mirror("a", 10), mirror("b", 50)).memory
    memory = once(mirror("a", 10, up=False), mirror("b", 50), memory=memory, now=100).memory
    made = once(mirror("a", 10), mirror("b", 50), memory=memory, now=200)
    assert (made.order, made.held) == (("b", "a"), "a")
    made = once(mirror("a", 10), mirror("b", 50), memory=made.memory, now=220)
    assert made.order == ("a", "b")
    assert made.memory.switches == 2


def test_a_full_mirror_that_is_no_more_waits_for_dwell() -> None:
    memory = once(mirror("a", 10, full=True), mirror("b", 50)).memory
    assert memory.order == ("b", "a")
    assert once(mirror("a", 10), mirror("b", 50), memory=memory, now=1).held == "a"


def test_places_behind_the_first_need_no_dwell() -> None:
    made = once(mirror("a", 10), mirror("b", 50), mirror("c", 20), memory=settled("a", "b", "c"), now=1)
    assert made.order == ("a", "c", "b")


def test_cost_does_not_flutter_at_the_edge_of_its_margin() -> None:
    # 20 ms +- 1 ms: half the margin of 2 ms. The cheap mirror swings around it for an hour.
    memory, firsts = Memory(), []
    for second in range(3600):
        b_ms = 21 + 0.4 * math.sin(second)
        made = once(mirror("a", 20, cost=9), mirror("b", b_ms, cost=1), memory=memory, now=second)
        memory = made.memory
        firsts.append(made.order[0])
    assert sum(x != y for x, y in pairwise(firsts)) <= 1


def test_a_cheap_mirror_is_kept_until_it_is_slower_by_the_whole_margin() -> None:
    memory = settled("b", "a", score_ms=10)
    assert once(mirror("a", 10, cost=9), mirror("b", 11.9, cost=1), memory=memory, now=1e4).order[0] == "b"
    made = once(mirror("a", 10, cost=9), mirror("b", 12.1, cost=1), memory=settled("b", "a", score_ms=12), now=1e4)
    assert made.held == "a"


# -- purity


def test_deciding_changes_nothing_it_was_given() -> None:
    candidates: Sequence[Candidate] = [mirror("a", 30), mirror("b", 10, full=True), mirror("c", up=False)]
    memory = settled("a", "b", "c")
    before = copy.deepcopy([[getattr(c, slot) for slot in Candidate.__slots__] for c in candidates])
    first, again = decide(candidates, memory, RULES, 5.0), decide(candidates, memory, RULES, 5.0)
    assert first == again
    assert [[getattr(c, slot) for slot in Candidate.__slots__] for c in candidates] == before


def test_the_trace_names_every_step_and_every_mirror_behind() -> None:
    trace = Trace()
    candidates = [mirror("a", 10), mirror("b", 30), mirror("c", 10, up=False), mirror("d", 11), mirror("e", distance=1)]
    made = decide(candidates, Memory(), RULES, 0.0, trace)
    steps = {step: reasons for step, _remark, reasons in trace.steps}
    assert list(steps) == ["admin", "up", "content", "fresh", "rank"]
    assert steps["up"] == {"c": "up for 0 of 0 vantages"}
    assert steps["rank"]["b"] == "slower by 20.0 ms"
    assert steps["rank"]["d"] == "within the margin of 2.0 ms (+1.0 ms): the order stays"
    assert steps["rank"]["e"] == "not measured from here"
    assert made == decide(candidates, Memory(), RULES, 0.0)


def test_the_trace_of_a_held_challenger_says_how_far_ahead_it_is_and_what_it_waits_for() -> None:
    trace = Trace()
    decide([mirror("a", 21), mirror("b", 16)], settled("a", "b", score_ms=21), RULES, 50.0, trace)
    steps = {step: (remark, reasons) for step, remark, reasons in trace.steps}
    assert steps["rank"][1] == {"b": "ahead by 5.0 ms, but not for long enough"}
    assert steps["dwell"][0] == "b is ahead, clearly, but not for 20 s yet: a stays first"


def test_a_lead_that_jitter_could_make_must_last_ten_times_as_long() -> None:
    # 4 * sqrt(3 * 3 + 4 * 4) = 20 ms is what jitter could do; b leads by 10 ms.
    a, b = mirror("a", 50, jitter_se_s=0.003), mirror("b", 40, jitter_se_s=0.004)
    memory = settled("a", "b", score_ms=50, beaten_since_s=0.0)
    made = once(a, b, memory=memory, now=199.9)
    assert (made.order[0], made.held) == ("a", "b")
    assert once(a, b, memory=memory, now=200.0).order[0] == "b"
    b = mirror("b", 29, jitter_se_s=0.004)
    assert once(a, b, memory=memory, now=20.0).order[0] == "b", "21 ms are clear"


def test_an_incumbent_that_seems_worse_within_its_jitter_is_not_left_at_once() -> None:
    memory = settled("a", "b", score_ms=30)
    made = once(mirror("a", 80, jitter_se_s=0.02), mirror("b", 35), memory=memory, now=100)
    assert made.held == "b"
