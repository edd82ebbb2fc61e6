"""Rivals whose times are not known: found out with few requests, at once when the first gets slow; and no flapping."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from local_infer.upstreams.exploring import MOST_CREDIT, START_CREDIT, Best, Exploration, is_much_slower
from local_infer.upstreams.io_upstreams import IoUpstreams
from tests.local_infer.asking_upstreams import asked, config, make_ask, running
from tests.local_infer.mock_upstream import MockUpstream, Reply
from tests.local_infer.scripted_ranking import LANE, Script

USUAL_S = {"a": 0.5, "b": 0.5, "c": 0.6}


class Played(Script):
    """Requests one after another to upstreams that take as long as `times_s` says."""

    def __init__(self, times_s: dict[str, float], each: dict[str, Any] | None = None, **routing: Any) -> None:
        super().__init__({name: (each or {}).get(name, {}) for name in times_s}, **routing)
        self.times_s = times_s
        self.explored: Counter[str] = Counter()

    def request(self) -> str:
        choice = self.choose()
        assert choice.member is not None, choice.why
        assert choice.ticket is not None
        name, started_s = choice.member.name, self.now
        self.now += self.times_s[name]
        self.ranking.began(choice.member, LANE, self.times_s[name], choice.ticket, self.now, whole=True)
        if choice.explores:
            self.explored[name] += 1
            self.ranking.explored(choice.member, LANE, "ok", started_s, self.now)
        return name

    def requests(self, count: int, pause_s: float = 0.1) -> Counter[str]:
        asked_ones: Counter[str] = Counter()
        for _ in range(count):
            self.now += pause_s
            asked_ones[self.request()] += 1
        return asked_ones

    def probes(self) -> None:
        for name in self.times_s:
            self.probe(name, 0.001, times=3)


def test_one_that_was_never_asked_is_tried_when_the_first_gets_slow_though_nothing_is_explored() -> None:
    play = Played({"a": 0.05, "b": 0.05}, explore="0%")
    play.probes()
    assert play.requests(5) == {"a": 5}
    play.times_s["a"] = 5.0
    asked_ones = play.requests(40)
    assert asked_ones["b"] >= 36, asked_ones


def test_one_that_no_probe_measured_is_tried_at_once_when_the_first_gets_slow() -> None:
    play = Played({"a": 0.05, "b": 0.05})
    play.ranking._rival = lambda *_: None  # type: ignore[method-assign] # so that b stays unknown
    play.requests(50)
    del play.ranking._rival
    play.ranking._ranked[LANE].exploration.credit = 0.0
    play.times_s["a"] = 5.0
    asked_ones = play.requests(40)
    assert asked_ones["b"] >= 30, asked_ones


def test_a_first_that_is_slow_from_the_start_is_found_out() -> None:
    play = Played({"a": 0.4, "b": 0.01})
    play.probes()
    asked_ones = play.requests(50)
    assert asked_ones["b"] >= 40, asked_ones


def test_exploring_is_a_small_share_and_does_not_flap() -> None:
    play = Played({"a": 0.1, "b": 0.102, "c": 0.3})
    play.probes()
    before = play.ranking.order(LANE, play.now)
    assert before is not None
    asked_ones = play.requests(5_000, pause_s=0.2)
    after = play.ranking.order(LANE, play.now)
    assert after is not None
    assert sum(play.explored.values()) <= START_CREDIT + 0.01 * 5_000
    assert play.explored["b"] >= 20, "each half minute"
    assert play.explored["c"] >= 20
    assert asked_ones["a"] >= 4_900
    assert after.memory.switches == before.memory.switches


@pytest.mark.parametrize("noise", [0.3, 0.8])
def test_equal_upstreams_whose_times_jump_are_not_swapped_for_being_explored(noise: float) -> None:
    rng = Random(0)
    play = Played({"a": 0.5, "b": 0.5, "c": 0.6})
    play.probes()
    for _ in range(4_000):
        play.times_s = {name: usual_s * rng.lognormvariate(0, noise) for name, usual_s in USUAL_S.items()}
        play.requests(1)
    decision = play.ranking.order(LANE, play.now)
    assert decision is not None
    assert decision.memory.switches <= 6, "in 40 minutes; without exploring it is 3"
    assert sum(play.explored.values()) <= 0.025 * 4_000, "1%, and some more when it looks as if the first got slow"


def test_nobody_is_explored_who_may_not_be() -> None:
    for routing in ({"explore": "0%"}, {"attempts": 1}, {"retry_budget": "0%"}):
        play = Played({"a": 0.4, "b": 0.01}, **routing)
        assert play.requests(50) == {"a": 50}, routing
    assert Played({"a": 0.4, "b": 0.01}, {"a": {"preference": 200}}).requests(50) == {"a": 50}, "the operator's word"
    down = Played({"a": 0.4, "b": 0.01})
    down.bad("b", times=3)
    assert down.requests(50) == {"a": 50}
    full = Played({"a": 0.4, "b": 0.01})
    full.bad("b", "rate limited", status=429, retry_after_s=300.0, full=True)
    assert full.requests(50) == {"a": 50}


def test_one_rival_at_a_time_never_as_a_second_try_and_a_pause_after_one_in_vain() -> None:
    script = Script({"a": {}, "b": {}})
    script.good("a", 0.4, 9)
    assert not script.choose("a").explores
    first = script.choose()
    assert first.explores
    assert first.member is script.member("b")
    assert not script.choose().explores, "the first one is still under way"
    script.ranking.explored(first.member, LANE, "failed", script.now, script.now + 1)
    script.now += 30.0
    script.good("a", 0.4)
    assert not script.choose().explores
    script.now += 31.0
    script.good("a", 0.4)
    assert script.choose().explores


def test_what_was_overtaken_is_known_to_take_longer() -> None:
    script = Script({"a": {}, "b": {}})
    script.good("a", 0.4, 9)
    choice = script.choose()
    assert choice.member is script.member("b")
    assert choice.beside_s == 1.6, "twice the p95, or what stands for it"
    script.ranking.explored(choice.member, LANE, "overtaken", script.now, script.now + 1.2)
    ttfb_s = script.member("b").lanes[LANE].ttfb.rtt_s
    assert ttfb_s is not None
    assert abs(ttfb_s - 1.2) < 1e-9


def test_the_best_is_of_the_last_minutes() -> None:
    best = Best()
    assert best.or_else(3.0) == 3.0
    best.take(1.0, 0.0)
    best.take(2.0, 100.0)
    assert best.or_else(5.0) == 1.0
    best.take(2.0, 700.0)
    assert best.or_else(5.0) == 1.0, "of the window before"
    best.take(2.0, 1400.0)
    assert best.or_else(5.0) == 2.0, "too long ago"
    assert is_much_slower(0.3, 0.1, 0.0)
    assert not is_much_slower(0.19, 0.1, 0.0)
    assert not is_much_slower(0.004, 0.001, 0.0), "of no account"
    assert not is_much_slower(0.3, 0.1, 0.06), "its times jump as far as that anyway"


def test_credit_has_an_end() -> None:
    exploration = Exploration()
    for _ in range(1000):
        exploration.earn(0.5)
    assert exploration.credit == MOST_CREDIT
    assert exploration.may(0.0, urgent=False)
    for at_s in range(3):
        exploration.begin("b", float(at_s), 10.0)
        exploration.end("b", float(at_s), 1.0)
    assert not exploration.may(5.0, urgent=False)
    assert exploration.may(5.0, urgent=True)


async def explore_beside_a_good_one(reply: Reply, times: int) -> tuple[int, IoUpstreams]:
    """How often a rival that answers so was asked among so many requests, each of which got a good answer."""
    async with (
        MockUpstream(Reply.slow(0.025)) as good,
        MockUpstream(reply) as rival,
        running(config({"a": good, "b": rival}, each={"warm": 0})) as upstreams,
    ):
        for _ in range(times):
            upstreams._ranking.members["b"].probe.reset()  # so that a is first, measured or not
            assert (await asked(upstreams, make_ask())).status == 200
        return len(rival.asked), upstreams


async def test_an_error_of_an_explored_upstream_is_not_the_clients() -> None:
    count, upstreams = await explore_beside_a_good_one(Reply.error(404), 12)
    assert count <= 1, "asked once, in vain, and left alone"
    assert upstreams._metrics._explored.labels("b", "error")._value.get() == 1


async def test_an_explored_upstream_that_hangs_is_overtaken_by_the_best() -> None:
    count, upstreams = await explore_beside_a_good_one(Reply.slow(60), 6)
    assert count >= 1
    assert upstreams._metrics._explored.labels("b", "overtaken")._value.get() >= 1
