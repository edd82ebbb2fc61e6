"""The engine: catchments, generations, state over restart and reload, and what it serves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from core.errors import MessageError
from core.messages import MirrorAdmin
from policy.engine import SteeringEngine
from policy.estimate import PathState
from policy.explain import explain
from policy.plan import make_plan
from policy.table import Quality

MakeWorld = Callable[..., Any]

GOOD = {"a": 10.0, "b": 50.0}


def names(world: Any, unit: Any) -> set[str]:
    return {world.engine.plan.tree.names[i] for i in unit.catchment.region_ids}


# -- catchments


def test_regions_that_nothing_tells_apart_share_a_catchment(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}}, agents={"us1": "us"})
    assert sorted(sorted(names(world, unit)) for unit in world.engine.units) == [
        ["de", "eu", "fr"], ["us"], ["world"],
    ]  # fmt: skip


def test_250_countries_stay_few(make_world: MakeWorld) -> None:
    countries = {f"c{i}": {} for i in range(250)}
    world = make_world(
        mirrors={"a": {"region": "c1"}, "b": {"region": "c2"}, "c": {"region": "c3"}},
        regions=countries,
        agents={"x": "c1", "y": "c7"},
    )
    # world; c1, c2 and c3 for their mirrors; c7 for its agent; all others
    assert len(world.engine.units) == 6
    assert sum(len(unit.catchment.region_ids) for unit in world.engine.units) == 251


def test_a_preference_makes_a_catchment_and_is_inherited(make_world: MakeWorld) -> None:
    world = make_world(
        mirrors={"a": {}, "b": {}},
        agents={"us1": "us"},
        service={"prefer": {"eu": {"b": 200, "a": 150}, "fr": {"b": 120}}},
    )
    world.probe("us1", GOOD)
    assert world.order("us") == ("a", "b")
    assert world.order("de") == ("b", "a"), "from eu"
    assert world.order("fr") == ("a", "b"), "b from fr itself, a from eu"


def test_a_service_has_rows_only_for_families_it_has_addresses_of(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {"addresses": ["192.0.2.9", "2001:db8::9"]}})
    table = world.engine.decide(world.now)
    service = table.services[world.owner]
    assert service.row(6, 0).addresses == ("2001:db8::9",)
    assert service.row(6, 0).mirrors == ("b",)
    assert {*service.row(4, 0).mirrors} == {"a", "b"}
    only4 = make_world().engine
    assert only4.decide(0.0).services[world.owner].row(6, 0) is None


# -- rows


def test_answers_are_the_first_n_addresses_in_order(make_world: MakeWorld) -> None:
    mirrors = {
        "a": {"addresses": ["192.0.2.1", "192.0.2.2"]},
        "b": {"addresses": ["192.0.2.3", "192.0.2.4"]},
        "c": {"addresses": ["192.0.2.5"]},
    }
    world = make_world(mirrors=mirrors, service={"answers": 3})
    world.run(10, {"de1": {"a": 90, "b": 10, "c": 50}})
    assert world.row("de").addresses == ("192.0.2.3", "192.0.2.4", "192.0.2.5")


def test_an_ineligible_mirror_never_fills_an_answer(make_world: MakeWorld) -> None:
    world = make_world(service={"answers": 2})
    world.run(30, {"de1": {"a": 10, "b": None}})
    assert world.answers("de") == ["a"]


@pytest.mark.parametrize(
    ("quality", "share"),
    [(Quality.LIVE, 1.0), (Quality.STALE, 0.5), (Quality.TABLE, 1 / 3)],
)
def test_the_less_it_rests_on_the_shorter_the_ttl(make_world: MakeWorld, quality: Quality, share: float) -> None:
    world = make_world(service={"ttl": "300s"})
    if quality is Quality.LIVE:
        world.probe("de1", GOOD)
    elif quality is Quality.STALE:
        world.probe("fr1", GOOD)
    world.engine.decide(world.now)
    assert world.row("de").quality is quality
    assert world.row("de").ttl_s == math.floor(300 * share)
    assert (world.row("de").note == "") is (quality is Quality.LIVE)


@pytest.mark.parametrize(("ttl", "stale_s"), [("1s", 1), ("4s", 4), ("8s", 5), ("30s", 15)])
def test_a_ttl_is_cut_to_five_seconds_at_least_and_never_raised(make_world: MakeWorld, ttl: str, stale_s: int) -> None:
    world = make_world(service={"ttl": ttl})
    world.probe("fr1", GOOD)
    world.engine.decide(world.now)
    assert world.row("de").ttl_s == stale_s


# -- generations


def test_a_generation_rises_only_when_an_answer_changes(make_world: MakeWorld) -> None:
    world = make_world()
    first = world.engine.decide(world.now)
    assert first.generation == 1
    world.run(60, {"de1": GOOD})
    settled = world.engine.table
    assert settled.generation > 1
    world.run(60, {"de1": {"a": 11.0, "b": 49.0}})
    assert world.engine.table is settled, "new samples, same answers"
    world.engine.set_admin(MirrorAdmin("a", True, "me", world.now), "a")
    drained = world.engine.decide(world.now)
    assert drained.generation == settled.generation + 1
    assert world.engine.decide(world.now) is drained


def test_places_behind_the_answers_make_no_generation(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}, "c": {}}, agents={"us1": "us"})
    world.run(60, {"us1": {"a": 10, "b": 50, "c": 90}})
    table = world.engine.table
    world.run(60, {"us1": {"a": 10, "b": 90, "c": 50}})
    assert world.order("us") == ("a", "c", "b")
    assert world.engine.table is table


def test_a_published_table_is_not_touched_by_later_decisions(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(10, {"de1": GOOD})
    table = world.engine.table
    before = [table.services[world.owner].row(4, i) for i in range(len(world.engine.plan.tree.names))]
    world.run(60, {"de1": {"a": None, "b": 50}})
    assert world.engine.table is not table
    assert [table.services[world.owner].row(4, i) for i in range(len(before))] == before


# -- what comes in


def test_samples_of_unknown_paths_are_counted_and_change_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    before = world.engine.dump(0)
    sample = world.sample("de1", "a", 10.0, check="removed")
    assert world.engine.take(sample) is False
    assert world.engine.unknown_samples == 1
    assert world.engine.dump(0) == before


def test_take_tells_when_a_mirror_goes_up_or_down(make_world: MakeWorld) -> None:
    world = make_world()
    outcomes = (10.0, 10.0, None, None, None, None)
    told = [world.engine.take(world.sample("de1", "a", rtt_ms)) for rtt_ms in outcomes]
    assert told == [True, False, False, False, True, False]


# -- restart and reload


def restarted(world: Any) -> SteeringEngine:
    engine = SteeringEngine(make_plan(world.config, world.regions))
    engine.restore(world.engine.dump(1))
    return engine


def test_a_restored_engine_answers_at_once_as_before(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(60, {"de1": {"a": 80, "b": 50}, "us1": GOOD})
    engine = restarted(world)
    assert engine.decide(world.now).services == world.engine.decide(world.now).services
    assert engine.generation > world.engine.generation, "a restarted appliance never reuses a number"
    assert engine.switches() == world.engine.switches()


def test_the_stream_position_comes_back(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(10, {"de1": GOOD})
    assert SteeringEngine(world.engine.plan).restore(world.engine.dump(4711)) == 4711


def test_an_empty_engine_can_be_dumped(make_world: MakeWorld) -> None:
    world = make_world()
    assert restarted(world).decide(0.0).services == world.engine.decide(0.0).services


def damage(whole: bytes) -> dict[str, bytes]:
    body = json.loads(whole)

    def changed(**more: Any) -> bytes:
        return json.dumps({**body, **more}).encode()

    path, memory = body["paths"][0], body["memories"][0]
    return {
        "empty": b"",
        "cut": whole[:-20],
        "no JSON": b"\xff\xfe",
        "a list": b"[]",
        "nested": b"[" * 100_000,
        "version": changed(version=99),
        "no position": json.dumps({k: v for k, v in body.items() if k != "position"}).encode(),
        "position": changed(position="x"),
        "generation": changed(generation=None),
        "endless generation": changed(generation=math.inf),
        "short path": changed(paths=[path[:3]]),
        "last path": changed(paths=[*body["paths"][:-1], [*path[:4], "no such state", *path[5:]]]),
        "unhashable path": changed(paths=[[[], *path[1:]]]),
        "short memory": changed(memories=[memory[:4]]),
        "memory order": changed(memories=[[*memory[:3], 5, *memory[4:]]]),
        "memory time": changed(memories=[[*memory[:4], "x", *memory[5:]]]),
        "memory score": changed(memories=[[*memory[:5], "x", *memory[6:]]]),
        "memory endless": changed(memories=[[*memory[:4], math.nan, *memory[5:]]]),
    }


def test_a_damaged_state_is_refused_and_leaves_the_engine_as_new(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(60, {"de1": GOOD, "us1": GOOD})
    fresh = SteeringEngine(world.engine.plan).decide(world.now)
    for what, dumped in damage(world.engine.dump(5)).items():
        engine = SteeringEngine(world.engine.plan)
        with pytest.raises(MessageError, match="damaged"):
            engine.restore(dumped)
        assert engine.decide(world.now).services == fresh.services, what
        assert engine.generation == 1, what


def reloaded(world: Any, make_world: MakeWorld, **more: Any) -> Any:
    """A world with another plan that has taken over the state."""
    new = make_world(**more)
    new.now = world.now
    new.engine.restore(world.engine.dump(1))
    new.engine.adopt(world.engine)
    return new


def test_a_mirror_at_another_address_is_measured_anew(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}})
    world.run(60, {"de1": GOOD})
    moved = reloaded(world, make_world, mirrors={"a": {"addresses": ["198.51.100.77"]}, "b": {}})
    counts = {key[1]: path.count for key, path in moved.engine.paths.items() if key[0] == "de1"}
    assert counts["a"] == 0
    assert counts["b"] > 0


def test_a_reload_that_adds_a_mirror_keeps_the_incumbent_until_dwell(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}})
    world.run(60, {"de1": GOOD})
    new = reloaded(world, make_world, mirrors={"a": {}, "b": {}, "c": {}})
    rtts = {**GOOD, "c": 5.0}
    new.run(10, {"de1": rtts})
    assert new.answers("de") == ["a"]
    new.run(600, {"de1": rtts})
    assert new.answers("de") == ["c"]


def test_a_reload_that_removes_the_incumbent_puts_the_best_of_the_rest_first(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}, "c": {}})
    world.run(60, {"de1": {"a": 10, "b": 90, "c": 50}})
    new = reloaded(world, make_world, mirrors={"b": {}, "c": {}})
    new.engine.decide(new.now)
    assert new.order("de") == ("c", "b")
    new.engine.take(world.sample("de1", "a", 10.0))
    assert new.engine.unknown_samples == 1


def test_a_reload_keeps_what_operators_said(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(10, {"de1": GOOD})
    world.engine.set_admin(MirrorAdmin("a", True, "me", world.now), "a")
    new = reloaded(world, make_world)
    assert new.order("de") == ("b", "a")


# -- a wall clock that was set back before the restart: kept times lie in the future


def test_after_the_clock_was_set_back_nothing_is_live_for_longer_than_live_for(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(60, {"de1": GOOD, "us1": GOOD})
    engine = restarted(world)
    now = world.now - 86_400
    engine.no_later_than(now)
    world.engine = engine
    world.now = now
    assert world.decision("de").quality is Quality.LIVE
    world.now = now + 31
    assert world.decision("de").quality is not Quality.LIVE, "no sample for 31 s"


def test_after_the_clock_was_set_back_a_mirror_that_is_down_comes_back(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(60, {"de1": GOOD, "us1": GOOD})
    world.run(30, {"de1": {"a": None, "b": 80.0}})
    engine = restarted(world)
    assert engine.paths["de1", "a", "http", 4].state is PathState.DOWN
    world.engine, world.now = engine, world.now - 86_400
    engine.no_later_than(world.now)
    world.run(60, {"de1": GOOD})
    assert engine.paths["de1", "a", "http", 4].state is PathState.UP


def test_after_the_clock_was_set_back_a_challenger_needs_dwell_and_no_more(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}})
    world.run(120, {"de1": {"a": 50.0, "b": 80.0}})
    engine = restarted(world)
    world.engine, world.now = engine, world.now - 86_400
    engine.no_later_than(world.now)
    world.run(600, {"de1": {"a": 50.0, "b": 10.0}})
    assert world.answers("de") == ["b"]


# -- explain


def story(world: Any, region_address: int) -> Any:
    return explain(world.engine, world.owner, 4, "", region_address, 4, world.now)


def why(world: Any, mirror: str) -> str:
    told = story(world, 0x0A010001)  # 10.1.0.1, a client in de
    return str(next(c.reason for c in told.candidates if c.mirror == mirror))


def test_explain_names_the_vantage_and_the_check_that_keep_a_mirror_out(make_world: MakeWorld) -> None:
    world = make_world()
    world.run(30, {"de1": GOOD})
    for _ in range(3):
        world.engine.take(replace(world.sample("de1", "a", None), loss="status 503\x1b[2J"))
    assert why(world, "a") == "up: up for 0 of 1 vantages; de1: http down (status 503?[2J)"
    world.probe("de1", {"a": 10.0})
    assert why(world, "a") == "up: up for 0 of 1 vantages; de1: http was down, 1 good in a row so far"


def test_explain_tells_that_a_path_is_damped(make_world: MakeWorld) -> None:
    steering = {"rise": 1, "hold_down": "0s", "damping": {"suppress": 1500, "reuse": 1000}}
    world = make_world(steering=steering)
    world.run(30, {"de1": GOOD})
    for _ in range(2):
        world.run(15, {"de1": {"a": None, "b": 50.0}})
        world.run(5, {"de1": GOOD})
    assert "de1: http answers, but is damped (flap penalty 1" in why(world, "a")
