"""What the vantages know together: votes, levels, live and stale, freshness, load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from core.messages import MirrorAdmin, SyncStamp
from policy.engine import SteeringEngine
from policy.evidence import Candidate
from policy.table import Quality

MakeWorld = Callable[..., Any]

THREE = {"de1": "de", "de2": "de", "de3": "de", "fr1": "fr", "us1": "us"}
FALL = 3


def candidate(world: Any, region: str, mirror: str) -> Candidate:
    examined = world.engine.examine(world.owner, 4, world.region_id(region), world.now)
    return next(c for c in examined.candidates if c.name == mirror)


def lose(world: Any, agent: str, mirror: str, check: str = "http") -> None:
    for _ in range(FALL):
        world.probe(agent, {mirror: None}, check)


# -- up or down


def test_nothing_known_is_neither_up_nor_down(make_world: MakeWorld) -> None:
    one = candidate(make_world(), "de", "a")
    assert one.up is None
    assert one.votes == 0
    assert one.score_s is None


@pytest.mark.parametrize(("downs", "up"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_majority_of_the_vantages_decides(make_world: MakeWorld, downs: int, up: bool) -> None:
    world = make_world(agents=THREE)
    for i, agent in enumerate(("de1", "de2", "de3")):
        lose(world, agent, "a") if i < downs else world.probe(agent, {"a": 20})
    one = candidate(world, "de", "a")
    assert one.up is up
    assert (one.up_votes, one.votes) == (3 - downs, 3)


def test_a_tie_counts_as_up(make_world: MakeWorld) -> None:
    world = make_world(agents=THREE)
    world.probe("de1", {"a": 20})
    lose(world, "de2", "a")
    one = candidate(world, "de", "a")
    assert (one.up, one.up_votes, one.votes) == (True, 1, 2)


def test_a_vantage_that_knows_nothing_yet_does_not_vote(make_world: MakeWorld) -> None:
    world = make_world(agents=THREE)
    world.probe("de1", {"a": None})
    lose(world, "de2", "a")
    assert candidate(world, "de", "a").votes == 1
    assert candidate(world, "de", "a").up is False


def test_other_regions_have_no_say_while_the_own_one_is_live(make_world: MakeWorld) -> None:
    world = make_world(agents=THREE)
    world.probe("de1", {"a": 20})
    lose(world, "fr1", "a")
    lose(world, "us1", "a")
    assert candidate(world, "de", "a").up is True
    assert candidate(world, "fr", "a").up is False


def test_all_checks_must_pass(make_world: MakeWorld) -> None:
    checks = {"icmp": {"kind": "icmp", "interval": "5s"}, "http": {"kind": "http", "interval": "5s"}}
    world = make_world(checks=checks)
    world.probe("de1", {"a": 20}, "icmp")
    assert candidate(world, "de", "a").up is None, "half of it is not known"
    world.probe("de1", {"a": 30}, "http")
    assert candidate(world, "de", "a").up is True
    lose(world, "de1", "a", "http")
    assert candidate(world, "de", "a").up is False
    assert candidate(world, "de", "a").rtt_s == pytest.approx(0.020), "the first check ranks"


def test_one_check_that_fails_is_proof_though_the_other_is_silent(make_world: MakeWorld) -> None:
    checks = {"icmp": {"kind": "icmp", "interval": "5s"}, "http": {"kind": "http", "interval": "5s"}}
    world = make_world(checks=checks)
    lose(world, "de1", "a", "http")
    assert candidate(world, "de", "a").up is False


def test_up_falls_back_from_own_live_to_the_parents_live_to_own_stale(make_world: MakeWorld) -> None:
    world = make_world()
    lose(world, "de1", "a")
    world.now += 20
    world.probe("fr1", {"a": 20})
    one = candidate(world, "de", "a")
    assert (one.up, one.up_level) == (False, 0), "own and live"
    world.now += 15
    one = candidate(world, "de", "a")
    assert (one.up, one.up_level) == (True, 1), "own is old, the parent's is live"
    world.now += 60
    one = candidate(world, "de", "a")
    assert (one.up, one.up_level) == (False, 0), "all are old: the own old word"
    world.now += 3600
    assert candidate(world, "de", "a").up is None, "too old for any word"


# -- RTT by level


def test_rtt_falls_back_level_by_level(make_world: MakeWorld) -> None:
    world = make_world()
    world.probe("fr1", {"a": 30})
    one = candidate(world, "de", "a")
    assert (one.rtt_s, one.rtt_level, one.quality) == (pytest.approx(0.030), 1, Quality.STALE)
    world.probe("de1", {"a": 20})
    one = candidate(world, "de", "a")
    assert (one.rtt_s, one.rtt_level, one.quality) == (pytest.approx(0.020), 0, Quality.LIVE)
    world.now += 31
    world.probe("fr1", {"a": 30})
    one = candidate(world, "de", "a")
    assert (one.rtt_s, one.rtt_level, one.quality) == (pytest.approx(0.020), 0, Quality.STALE), "own and old"
    world.now += 3601
    one = candidate(world, "de", "a")
    assert (one.rtt_s, one.quality) == (None, Quality.TABLE), "all too old: where the mirrors stand"


def test_rtt_from_across_the_world_does_not_rank_mirrors_whose_place_is_known(make_world: MakeWorld) -> None:
    world = make_world()
    world.probe("us1", {"a": 30, "b": 20})
    assert candidate(world, "de", "a").quality is Quality.TABLE
    assert candidate(world, "world", "a").quality is Quality.LIVE, "for the world itself it does"


def test_rtt_from_across_the_world_ranks_when_no_place_is_known(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}})
    world.probe("us1", {"a": 30, "b": 20})
    one = candidate(world, "de", "a")
    assert (one.quality, one.rtt_s) == (Quality.STALE, pytest.approx(0.030))
    assert world.order("de") == ("b", "a")


def test_nothing_known_at_all_is_static(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}})
    assert candidate(world, "de", "a").quality is Quality.STATIC
    assert world.order("de") == ("a", "b")


def test_a_region_without_agents_is_never_live(make_world: MakeWorld) -> None:
    world = make_world(agents={"fr1": "fr"})
    world.probe("fr1", {"a": 30})
    assert candidate(world, "fr", "a").quality is Quality.LIVE
    assert candidate(world, "de", "a").quality is Quality.STALE, "measured, but from further up the tree"


def test_live_lasts_exactly_live_for(make_world: MakeWorld) -> None:
    world = make_world(steering={"live_for": "40s"})
    world.probe("de1", {"a": 20})
    world.now += 40
    assert candidate(world, "de", "a").quality is Quality.LIVE
    world.now += 0.001
    assert candidate(world, "de", "a").quality is Quality.STALE


def test_live_lasts_at_least_three_intervals_and_a_timeout(make_world: MakeWorld) -> None:
    world = make_world(checks={"http": {"kind": "http", "interval": "60s", "timeout": "2s"}})
    world.probe("de1", {"a": 20})
    world.now += 182
    assert candidate(world, "de", "a").quality is Quality.LIVE
    world.now += 1
    assert candidate(world, "de", "a").quality is Quality.STALE


@pytest.mark.parametrize(
    ("rtts_ms", "median_ms"),
    [((10,), 10), ((10, 20), 20), ((30, 10, 20), 20), ((10, 500, 20), 20)],
)
def test_rtt_is_the_median_over_vantages_the_slower_of_two(
    make_world: MakeWorld, rtts_ms: tuple[float, ...], median_ms: float
) -> None:
    world = make_world(agents=THREE)
    for agent, rtt_ms in zip(("de1", "de2", "de3"), rtts_ms, strict=False):
        world.probe(agent, {"a": rtt_ms})
    assert candidate(world, "de", "a").rtt_s == pytest.approx(median_ms / 1000)


# -- load, admin, freshness


def test_a_mirror_is_full_when_a_vantage_reports_more_load_than_its_limit(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {"max_load": "80%"}, "b": {}}, agents=THREE)
    world.probe("de1", {"a": 20}, load_ratio=0.80)
    assert not candidate(world, "de", "a").full
    world.probe("de2", {"a": 20}, load_ratio=0.81)
    assert candidate(world, "de", "a").full


def test_an_operators_word_is_stronger_than_the_configuration(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {"drained": True}, "b": {}})
    assert candidate(world, "de", "a").drained
    world.engine.set_admin(MirrorAdmin("a", False, "me", world.now), "a")
    assert not candidate(world, "de", "a").drained
    world.engine.set_admin(None, "a")
    assert candidate(world, "de", "a").drained


def stamp(engine: SteeringEngine, mirror: str, lag_s: float, taken_s: float, version: int = 7, tree: str = "t") -> None:
    engine.set_stamp(SyncStamp(mirror, tree, version, "00", lag_s, "fresh", taken_s))


def test_stamps_are_not_asked_for_unless_the_service_does(make_world: MakeWorld) -> None:
    world = make_world()
    stamp(world.engine, "a", 1e9, world.now)
    assert candidate(world, "de", "a").fresh
    assert candidate(world, "de", "b").fresh


def test_no_stamp_is_not_fresh(make_world: MakeWorld) -> None:
    one = candidate(make_world(service={"max_lag": "10m"}), "de", "a")
    assert (one.fresh, one.sync.lag_s) == (False, None)


def test_lag_ages_with_its_stamp(make_world: MakeWorld) -> None:
    world = make_world(service={"max_lag": "10m"})
    stamp(world.engine, "a", 100.0, world.now)
    assert candidate(world, "de", "a").fresh
    world.now += 500
    one = candidate(world, "de", "a")
    assert (one.fresh, one.sync.lag_s) == (True, pytest.approx(600))
    world.now += 1
    assert not candidate(world, "de", "a").fresh


def test_a_stamp_from_the_future_does_not_make_lag_negative(make_world: MakeWorld) -> None:
    world = make_world(service={"max_lag": "10m"})
    stamp(world.engine, "a", 100.0, world.now + 1e6)
    assert candidate(world, "de", "a").sync.lag_s == pytest.approx(100)


def test_the_worst_tree_counts_or_only_the_services_own(make_world: MakeWorld) -> None:
    for tree, fresh in ((None, False), ("t", True)):
        world = make_world(service={"max_lag": "10m"} | ({"tree": tree} if tree else {}))
        stamp(world.engine, "a", 1.0, world.now)
        stamp(world.engine, "a", 10_000.0, world.now, tree="other")
        assert candidate(world, "de", "a").fresh is fresh


def test_an_old_version_is_not_fresh(make_world: MakeWorld) -> None:
    world = make_world(service={"min_version": 7})
    stamp(world.engine, "a", 1e9, world.now, version=7)
    stamp(world.engine, "b", 0.0, world.now, version=6)
    assert candidate(world, "de", "a").fresh
    assert not candidate(world, "de", "b").fresh


# -- the predictor


class Model:
    """A predictor that knows one pair."""

    def predict(self, region: str, mirror: str, family: int) -> float | None:
        return 0.015 if (region, mirror, family) == ("de", "b", 4) else None


def test_a_prediction_stands_in_where_nothing_is_measured(make_world: MakeWorld) -> None:
    world = make_world()
    world.engine = SteeringEngine(world.engine.plan, Model())
    one = candidate(world, "de", "b")
    assert (one.rtt_s, one.quality) == (0.015, Quality.PREDICTED)
    assert candidate(world, "de", "a").quality is Quality.TABLE
    world.probe("de1", {"b": 80})
    assert candidate(world, "de", "b").quality is Quality.LIVE
