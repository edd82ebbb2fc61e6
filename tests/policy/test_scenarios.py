"""Whole stories with scripted time: every path probed each 5 s, decided each 1 s; noise, death, come-back, flaps, loss."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

MakeWorld = Callable[..., Any]
Rtts = Mapping[str, float | None]

HOUR_S = 3600.0
ONE_REGION: dict[str, Any] = {"here": {"prefixes": ["10.1.0.0/16"]}}


def one_region(make_world: MakeWorld, *mirrors: str, **more: Any) -> Any:
    return make_world(
        mirrors={name: {} for name in mirrors}, regions=ONE_REGION, agents={"x": "here"}, **more
    )  # fmt: skip


def gaussian(rng: random.Random, base_ms: float) -> float:
    return max(0.1, rng.gauss(base_ms, 0.1 * base_ms))


def heavy(rng: random.Random, base_ms: float) -> float:
    """A floor with an exponential queue on it, and one probe in twenty that waits up to a second."""
    return base_ms + rng.expovariate(1 / (0.1 * base_ms)) + (rng.uniform(0, 1000) if rng.random() < 0.05 else 0)


def bimodal(rng: random.Random, base_ms: float) -> float:
    """Two equal-cost paths, 4 ms apart, drawn for each probe."""
    return base_ms + rng.choice((0, 4)) + rng.gauss(0, 0.3)


@pytest.mark.parametrize(("noise", "switches"), [(gaussian, 1), (bimodal, 1), (heavy, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_equal_mirrors_with_noise_do_not_flap(make_world: MakeWorld, noise: Any, switches: int, seed: int) -> None:
    """4 hours, 2880 probes of each of three mirrors.

    The heavy tail may move: when two of three probes in a row are held up for half a second, leaving is right.
    """
    rng = random.Random(seed)
    world = one_region(make_world, "a", "b", "c")
    world.run(4 * HOUR_S, {"x": lambda _now: {m: noise(rng, 30) for m in "abc"}})
    # two catchments: here and world
    assert world.engine.switches() <= 2 * switches


@pytest.mark.parametrize("noise", [gaussian, heavy])
def test_the_better_mirror_is_found_and_kept_in_noise(make_world: MakeWorld, noise: Any) -> None:
    rng = random.Random(5)
    world = one_region(make_world, "a", "b")
    base = {"a": 40.0, "b": 30.0}
    world.run(300, {"x": lambda _now: {m: noise(rng, ms) for m, ms in base.items()}})
    assert world.answers("here") == ["b"]
    switches = world.engine.switches()
    world.run(2 * HOUR_S, {"x": lambda _now: {m: noise(rng, ms) for m, ms in base.items()}})
    assert world.answers("here") == ["b"]
    assert world.engine.switches() - switches <= 4


def test_a_dead_mirror_is_out_at_the_fallth_loss_and_back_after_rise_hold_down_and_dwell(make_world: MakeWorld) -> None:
    world = one_region(make_world, "a", "b")
    alive: Rtts = {"a": 10, "b": 50}
    world.run(60, {"x": alive})
    assert world.answers("here") == ["a"]
    dead: Rtts = {"a": None, "b": 50}
    for loss in (1, 2, 3):
        world.run(5, {"x": dead})
        assert world.answers("here") == (["a"] if loss < 3 else ["b"])
    world.run(100, {"x": dead})
    assert world.answers("here") == ["b"]
    back_s = world.now
    while world.answers("here") == ["b"]:
        world.run(1, {"x": alive} if (world.now - back_s) % 5 == 0 else {})
    # 5 successes 5 s apart: up 20 s after the first; then 20 s of dwell.
    assert 40 <= world.now - back_s <= 42


def test_one_bad_path_moves_only_its_own_region(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}})
    good: Rtts = {"a": 10, "b": 50}
    world.run(60, dict.fromkeys(("de1", "fr1", "us1"), good))
    assert [world.answers(r) for r in ("de", "fr", "us", "eu")] == [["a"]] * 4
    bad: Rtts = {"a": None, "b": 50}
    world.run(60, {"de1": bad, "fr1": good, "us1": good})
    assert world.answers("de") == ["b"]
    assert [world.answers(r) for r in ("fr", "us")] == [["a"]] * 2


def test_a_slow_path_moves_only_its_own_region_and_only_while_it_is_slow(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {}, "b": {}})
    good: Rtts = {"a": 10, "b": 50}
    world.run(60, dict.fromkeys(("de1", "fr1", "us1"), good))
    world.run(30, {"de1": {"a": 200, "b": 50}, "fr1": good, "us1": good})
    assert [world.answers(r) for r in ("de", "fr", "us")] == [["b"], ["a"], ["a"]]
    world.run(300, dict.fromkeys(("de1", "fr1", "us1"), good))
    assert [world.answers(r) for r in ("de", "fr", "us")] == [["a"]] * 3


def test_a_path_that_flaps_every_few_seconds_is_damped(make_world: MakeWorld) -> None:
    world = one_region(make_world, "a", "b", checks={"http": {"kind": "http", "interval": "1s", "timeout": "500ms"}})

    def flapping(now: float) -> Rtts:
        return {"a": 10 if now % 24 < 18 else None, "b": 50}

    world.run(300, {"x": flapping}, interval_s=1.0)
    switches = world.engine.switches()
    answers = []
    for _ in range(60):
        world.run(30, {"x": flapping}, interval_s=1.0)
        answers.append(world.answers("here"))
    assert answers == [["b"]] * 60, "for half an hour it never came back"
    assert world.engine.switches() == switches
    # It stands still for the longest time a flap history may count, and is believed again.
    world.run(1830, {"x": {"a": 10, "b": 50}}, interval_s=1.0)
    assert world.answers("here") == ["a"]


def losing(rng: random.Random, share: float) -> Callable[[float], Rtts]:
    return lambda _now: {"a": None if rng.random() < share else 10, "b": 30}


def test_a_third_lost_on_the_best_path_moves_away(make_world: MakeWorld) -> None:
    rng = random.Random(3)
    # fall is out of reach, so that loss alone must do it
    world = one_region(make_world, "a", "b", steering={"fall": 20})
    world.run(300, {"x": {"a": 10, "b": 30}})
    assert world.answers("here") == ["a"]
    world.run(300, {"x": losing(rng, 0.3)})
    assert world.answers("here") == ["b"]


@pytest.mark.parametrize("gap_ms", [1.0, 3.0, 20.0])
def test_one_probe_lost_in_thirty_does_not_move(make_world: MakeWorld, gap_ms: float) -> None:
    world = one_region(make_world, "a", "b")
    good: Rtts = {"a": 10, "b": 10 + gap_ms}
    world.run(300, {"x": good})
    for _ in range(20):
        world.run(5, {"x": {"a": None, "b": 10 + gap_ms}})
        world.run(145, {"x": good})
        assert world.answers("here") == ["a"]
    assert world.engine.switches() == 0


def test_all_down_is_answered_and_marked(make_world: MakeWorld) -> None:
    world = one_region(make_world, "a", "b")
    world.run(60, {"x": {"a": 10, "b": 50}})
    world.run(60, {"x": {"a": None, "b": None}})
    row = world.row("here")
    assert row.fail_open
    assert len(row.addresses) == 1
    assert "all are down from here" in row.note
    assert row.ttl_s < 30


def test_a_silent_agent_steps_its_region_down_the_ladder(make_world: MakeWorld) -> None:
    world = make_world(mirrors={"a": {"region": "eu"}, "b": {"region": "us"}})
    good: Rtts = {"a": 10, "b": 90}
    world.run(60, dict.fromkeys(("de1", "fr1", "us1"), good))
    assert world.row("de").quality.label == "live"
    assert world.row("de").note == ""
    full_ttl_s = world.row("de").ttl_s
    world.run(60, {"fr1": good, "us1": good})
    assert world.row("de").quality.label == "stale"
    assert world.row("de").ttl_s < full_ttl_s
    assert world.row("fr").quality.label == "live"
    # An hour later its own values count no more; its parent's, live, still do.
    world.now += HOUR_S
    world.run(60, {"fr1": good, "us1": good})
    assert world.row("de").quality.label == "stale"
    world.now += HOUR_S + 60
    world.run(2, {})
    assert world.row("de").quality.label == "table"
    assert world.answers("de") == ["a"]
    assert world.answers("us") == ["b"]


def test_a_cold_start_takes_the_best_as_soon_as_it_is_measured(make_world: MakeWorld) -> None:
    world = one_region(make_world, "a", "b", "c")
    world.run(2, {"x": {"a": 90, "b": 10, "c": 50}})
    assert world.answers("here") == ["b"]
