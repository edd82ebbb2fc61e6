"""What stamps do to answers: who leaves, who goes behind, and that nobody left means fail open."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import Node, Steering
from core.messages import MirrorAdmin, SyncStamp
from dnsd.template import MAX_EDE_TEXT_BYTES
from policy.decide import Decision, Memory, Trace, decide
from policy.engine import _FAIL_OPEN_NOTES, SteeringEngine, _note
from policy.evidence import Candidate, Watched, _set_fresh
from policy.explain import explain
from policy.freshness import BUSY_FOR_S, STATES, Freshness, judge
from policy.plan import MirrorPlan, ServicePlan, make_plan
from policy.table import Quality
from tests.policy.conftest import make_config, make_regions

MakeWorld = Callable[..., Any]
NOW = 1000.0


def service(max_lag_s: float | None = None, min_version: int | None = None, tree: str | None = None) -> ServicePlan:
    return ServicePlan("dl.example.org.", ("m",), ("http",), "http", 1, 30.0, max_lag_s, min_version, tree)


def stamp(
    tree: str = "t", lag_s: float = 0.0, state: Any = "fresh", version: int = 7, age_s: float = 0.0, **more: Any
) -> SyncStamp:
    return SyncStamp(more.pop("mirror", "m"), tree, version, "00", lag_s, state, NOW - age_s, **more)


LAG, VERSION, TREE = service(max_lag_s=600), service(min_version=7), service(tree="t")
PLAIN, LAG_OF_TREE = service(), service(max_lag_s=600, tree="t")


@pytest.mark.parametrize(
    ("asked", "stamps", "fresh", "empty", "why"),
    [
        (PLAIN, [], True, False, ""),
        (LAG, [], False, False, "no sync stamp"),
        (VERSION, [], False, False, "no sync stamp"),
        (LAG_OF_TREE, [stamp("other")], False, False, "no sync stamp of tree t"),
        (TREE, [stamp("other", state="empty")], True, False, ""),
        (LAG, [stamp(lag_s=600)], True, False, ""),
        (LAG, [stamp(lag_s=601)], False, False, "content lags 601 s, more than max_lag 600 s"),
        (LAG, [stamp(lag_s=100, age_s=500)], True, False, ""),
        (LAG, [stamp(lag_s=100, age_s=501)], False, False, "content lags 601 s, more than max_lag 600 s"),
        (LAG, [stamp(lag_s=600, age_s=-1e6)], True, False, ""),
        (LAG, [stamp(state="stalled", lag_s=5)], True, False, ""),
        (LAG, [stamp(state="syncing", lag_s=700)], False, False, "content lags 700 s, more than max_lag 600 s"),
        (LAG, [stamp(), stamp("u", lag_s=601)], False, False, "content lags 601 s, more than max_lag 600 s"),
        (LAG_OF_TREE, [stamp(), stamp("u", lag_s=601)], True, False, ""),
        (VERSION, [stamp(lag_s=1e9)], True, False, ""),
        (VERSION, [stamp(), stamp("u", version=6)], False, False,
         "content is of version 6, older than min_version 7"),
        (PLAIN, [stamp(lag_s=1e9, version=0, state="stalled")], True, False, ""),
        (PLAIN, [stamp(state="empty")], False, True, "its node says that it holds no content"),
        (PLAIN, [stamp(state="empty"), stamp("u")], True, False, ""),
        (PLAIN, [stamp(state="empty"), stamp("u", state="empty")], False, True,
         "its node says that it holds no content"),
        (TREE, [stamp(state="empty"), stamp("u")], False, True, "its node says that it holds no content of tree t"),
        (TREE, [stamp(), stamp("u", state="empty")], True, False, ""),
        (LAG, [stamp(state="empty")], False, True, "its node says that it holds no content"),
        (LAG, [stamp(), stamp("u", state="empty")], False, False, "its node says that it holds no content of tree u"),
        (VERSION, [stamp(), stamp("u", state="empty")], False, False,
         "its node says that it holds no content of tree u"),
    ],
)  # fmt: skip
def test_what_stamps_say(asked: ServicePlan, stamps: list[SyncStamp], fresh: bool, empty: bool, why: str) -> None:
    for order in itertools.permutations(stamps):
        word = judge(order, asked, NOW)
        assert (word.fresh, word.empty, word.why) == (fresh, empty, why)
        assert (word.busy, word.lately_busy) == (False, False)


def test_the_worst_is_what_is_shown() -> None:
    word = judge([stamp(lag_s=3, age_s=1), stamp("u", lag_s=1, state="stalled", version=5, age_s=9)], PLAIN, NOW)
    assert (word.lag_s, word.version, word.state, word.age_s) == (10, 5, "stalled", 9)
    assert judge([], LAG, NOW) == Freshness(fresh=False, why="no sync stamp")


@pytest.mark.parametrize(("age_s", "busy"), [(0.0, True), (BUSY_FOR_S, True), (BUSY_FOR_S + 0.1, False)])
def test_busy_of_any_tree_counts_while_it_is_news(age_s: float, busy: bool) -> None:
    assert judge([stamp(), stamp("u", busy=True, age_s=age_s)], TREE, NOW).busy is busy


# -- the decision: empty leaves, and nobody left stays

STATE_CHOICES = st.lists(
    st.tuples(st.sampled_from([None, *STATES]), st.booleans(), st.booleans(), st.integers(1, 300)),
    min_size=1,
    max_size=6,
)


def built(facts: Any, asked: ServicePlan) -> list[Candidate]:
    made = []
    for i, (state, up, busy, rtt_ms) in enumerate(facts):
        one = Candidate(Watched(MirrorPlan(f"m{i}", {4: ()}, None, 0, 0.9, False), i, 100, None, ()))
        one.up, one.score_s, one.rtt_s = up, rtt_ms / 1000, rtt_ms / 1000
        stamps = [] if state is None else [stamp(state=state, busy=busy, lag_s=1.0 if state == "fresh" else 1e4)]
        _set_fresh(one, judge(stamps, asked, NOW))
        made.append(one)
    return made


@settings(max_examples=300, deadline=None)
@given(STATE_CHOICES, st.sampled_from([PLAIN, LAG, TREE, LAG_OF_TREE]))
def test_an_empty_mirror_is_answered_only_when_all_that_are_left_are_empty(facts: Any, asked: ServicePlan) -> None:
    trace = Trace()
    candidates = built(facts, asked)
    made = decide(candidates, Memory(), Steering(), NOW, trace)
    assert sorted(made.order) == sorted(c.name for c in candidates)
    by_name = {c.name: c for c in candidates}
    left = [c for c in candidates if c.up] or candidates
    answered = [by_name[name] for name in made.order[: made.eligible]]
    assert answered, "there is always an answer"
    if all(c.empty for c in left):
        assert made.fail_open in (("content",) if any(c.up for c in candidates) else ("up",))
        assert {c.name for c in answered} == {c.name for c in left}
        return
    assert not any(c.empty for c in answered)
    fresh = [c for c in left if not c.empty and c.fresh]
    assert {c.name for c in answered} == {c.name for c in (fresh or [c for c in left if not c.empty])}
    if not fresh and left is not candidates:
        assert made.fail_open in ("fresh", "up")
    full = [c.full for c in answered]
    assert full == sorted(full), "busy ones go behind"


def three_mirrors(make_world: MakeWorld, **more: Any) -> Any:
    world = make_world(mirrors={"a": {"region": "eu"}, "b": {"region": "us"}, "c": {"region": "us"}}, **more)
    world.run(60, {"de1": {"a": 10, "b": 50, "c": 90}})
    return world


def say(world: Any, mirror: str, **more: Any) -> bool:
    more = {"tree": "t", "version": 7, "root_hash": "", "lag_s": 0.0, "state": "fresh", "taken_s": world.now, **more}
    return bool(world.engine.set_stamp(SyncStamp(mirror, **more)))


@pytest.mark.parametrize("fail_open", ["", *_FAIL_OPEN_NOTES])
@pytest.mark.parametrize("quality", Quality)
def test_what_an_answer_says_of_itself_is_sent_whole(quality: Quality, fail_open: str) -> None:
    made = Decision(("a",), 1, quality, "rtt", fail_open, None, "", Memory())
    assert len(_note(made).encode()) <= MAX_EDE_TEXT_BYTES
    assert (_note(made) == "") == (quality is Quality.LIVE and not fail_open)


def test_an_empty_mirror_leaves_without_being_asked_for_and_all_empty_fails_open(make_world: MakeWorld) -> None:
    world = three_mirrors(make_world)
    say(world, "a", state="empty")
    made = world.decision("de")
    assert (made.order[0], made.eligible, made.fail_open) == ("b", 2, "")
    say(world, "b", state="empty")
    assert world.decision("de").order[0] == "c", "c says nothing, which is not asked for"
    say(world, "c", state="empty")
    world.engine.decide(world.now)
    row = world.row("de")
    assert world.answers("de") == ["a"]
    assert row.fail_open
    assert row.note == "nearpath live: all say that they are empty, answered anyway"
    assert row.ttl_s == 10
    say(world, "c", state="syncing", lag_s=1e6)
    assert world.decision("de").order[0] == "c"


def test_when_none_is_fresh_the_empty_ones_still_go(make_world: MakeWorld) -> None:
    world = three_mirrors(make_world, service={"max_lag": "10m"})
    say(world, "a", state="empty")
    say(world, "b", lag_s=1e5)
    made = world.decision("de")
    assert (made.order, made.eligible, made.fail_open) == (("b", "c", "a"), 2, "fresh")


def test_a_drained_mirror_with_content_does_not_make_the_empty_one_leave(make_world: MakeWorld) -> None:
    world = three_mirrors(make_world)
    for name in ("a", "b"):
        say(world, name, state="empty")
    world.engine.set_admin(MirrorAdmin("c", True, "me", world.now), "c")
    made = world.decision("de")
    assert (made.order[0], made.fail_open) == ("a", "content")


# -- busy


def test_a_busy_mirror_goes_behind_at_once_and_comes_back_after_dwell(make_world: MakeWorld) -> None:
    world = three_mirrors(make_world)
    assert world.order("de") == ("a", "b", "c")
    say(world, "a", busy=True)
    world.engine.decide(world.now)
    assert world.order("de") == ("b", "c", "a")
    story = explain(world.engine, world.owner, 4, "10.1.0.1", 0x0A010001, 4, world.now)
    assert story is not None
    assert {c.mirror: c.reason for c in story.candidates}["a"] == "rank: busy taking in new content"
    assert [c.busy for c in story.candidates] == [False, False, True]
    say(world, "a")
    world.run(19, {"de1": {"a": 10, "b": 50, "c": 90}})
    assert world.decision("de").held == "a"
    world.run(3, {"de1": {"a": 10, "b": 50, "c": 90}})
    assert world.order("de") == ("a", "b", "c")


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("period_s", [2, 5, 15])
def test_a_mirror_that_is_busy_on_and_off_does_not_flap(make_world: MakeWorld, measured: bool, period_s: int) -> None:
    world = make_world()
    paths = {"de1": {"a": 10.0, "b": 50.0}} if measured else {}
    world.run(60, paths)
    firsts = [world.answers("de")[0]]
    for second in range(600):
        say(world, "a", busy=second // period_s % 2 == 0)
        world.run(1, paths, interval_s=1)
        firsts += world.answers("de")
    assert firsts[0] == "a"
    assert sum(x != y for x, y in pairwise(firsts)) == 1, "it goes once, and stays behind"


def test_all_busy_changes_nothing(make_world: MakeWorld) -> None:
    world = three_mirrors(make_world)
    for name in "abc":
        say(world, name, busy=True)
    assert world.order("de") == ("a", "b", "c")


def test_a_node_that_died_while_busy_is_busy_no_more(make_world: MakeWorld) -> None:
    world = three_mirrors(make_world)
    say(world, "a", busy=True)
    world.run(BUSY_FOR_S + 25, {"de1": {"a": 10, "b": 50, "c": 90}})
    assert world.order("de") == ("a", "b", "c")


# -- whose stamps count


def node_world(nodes: dict[str, list[str]], mirrors: str = "ab") -> SteeringEngine:
    config = make_config({name: {} for name in mirrors}, {}, {}, {"max_lag": "10m"})
    named = {name: Node(mirrors=served, token_sha256="0" * 64) for name, served in nodes.items()}
    config = config.model_copy(update={"nodes": named})
    return SteeringEngine(make_plan(config, make_regions(config)))


def test_only_stamps_of_configured_mirrors_from_their_own_node_count() -> None:
    engine = node_world({"n1": ["a"], "n2": ["b"]})
    assert engine.set_stamp(stamp(mirror="a", node="n1"))
    assert not engine.set_stamp(stamp(mirror="b", node="n1"))
    assert not engine.set_stamp(stamp(mirror="gone", node="n1"))
    assert not engine.set_stamp(stamp(mirror="gone"))
    engine.set_stamp(stamp(mirror="b", tree="old"))
    assert [(s.mirror, s.tree, s.node) for s in engine.stamps()] == [("a", "t", "n1"), ("b", "old", "")]


def test_a_reload_keeps_only_what_still_counts() -> None:
    older = node_world({"n1": ["a"], "n2": ["b"]})
    older.set_stamp(stamp(mirror="a", node="n1"))
    older.set_stamp(stamp(mirror="b", node="n2", busy=True))
    for nodes, mirrors, left in (
        ({"n1": ["a"], "n2": ["b"]}, "ab", ["a", "b"]),
        ({"n1": ["a"]}, "ab", ["a"]),
        ({"n1": ["b"], "n2": ["a"]}, "ab", []),
        ({"n2": ["b"]}, "b", ["b"]),
    ):
        engine = node_world(nodes, mirrors)
        engine.adopt(older)
        assert [s.mirror for s in engine.stamps()] == left


def test_a_stamp_is_news_when_state_version_or_busy_change() -> None:
    engine = node_world({})
    assert engine.set_stamp(stamp(mirror="a"))
    assert not engine.set_stamp(stamp(mirror="a", lag_s=5.0, age_s=1.0))
    assert engine.set_stamp(stamp(mirror="a", version=8))
    assert engine.set_stamp(stamp(mirror="a", version=8, busy=True))
    assert engine.set_stamp(stamp(mirror="a", version=8, state="stalled"))
    engine.drop_stamp("a", "t")
    engine.drop_stamp("a", "never")
    assert engine.stamps() == []


def test_explain_tells_what_the_stamp_says(make_world: MakeWorld) -> None:
    world = three_mirrors(make_world, service={"max_lag": "10m", "min_version": 7})
    say(world, "a", lag_s=12.0, taken_s=world.now - 3)
    say(world, "b", version=6)
    story = explain(world.engine, world.owner, 4, "10.1.0.1", 0x0A010001, 4, world.now)
    assert story is not None
    shown = {c.mirror: (c.lag_s, c.version, c.sync_state, c.stamp_age_s, c.reason) for c in story.candidates}
    assert shown == {
        "a": (15.0, 7, "fresh", 3.0, "chosen"),
        "b": (0.0, 6, "fresh", 0.0, "fresh: content is of version 6, older than min_version 7"),
        "c": (None, None, "", None, "fresh: no sync stamp"),
    }


@pytest.mark.parametrize("seed", range(4))
def test_random_stamps_never_leave_a_client_without_an_answer(make_world: MakeWorld, seed: int) -> None:
    rng = random.Random(seed)
    world = three_mirrors(make_world, service=rng.choice([{}, {"max_lag": "1m"}, {"min_version": 3}, {"tree": "t"}]))
    for _ in range(200):
        say(world, rng.choice("abc"), tree=rng.choice("tu"), state=rng.choice(STATES), version=rng.randrange(6),
            lag_s=rng.choice([0.0, 50.0, 1e6]), busy=rng.random() < 0.3)  # fmt: skip
        world.run(rng.randrange(1, 4), {"de1": {"a": 10, "b": 50, "c": rng.choice([None, 90])}}, interval_s=1)
        row = world.row("de")
        assert row.addresses
        assert row.quality is Quality.LIVE
        chosen = world.decision("de").order[0]
        by_tree = {s.tree: s.state for s in world.engine.stamps_of(chosen)}
        if by_tree and set(by_tree.values()) == {"empty"} and not row.fail_open:
            raise AssertionError(f"{chosen} holds nothing and is answered, and nothing says so")
