"""The steerer: its state over restarts and damage, what operators say, and that one fault does not end steering."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.bus import Record
from core.errors import BusUnavailable
from core.io_bus import EmbeddedBus
from core.messages import MirrorAdmin, PathSample, SyncStamp, encode
from nearpath.steerer import SAMPLES, Steerer
from policy.table import SteeringTable
from tests.nearpath.reporting import (
    INCARNATION,
    START_S,
    Box,
    ScriptedClock,
    estimates,
    held_store,
    hurry,
    kill,
    make_config,
    open_box,
    plan_of,
    sample,
    until,
)


def path_sample(sequence: int, incarnation: str = INCARNATION) -> PathSample:
    return PathSample("a1", "eu", "m1", "ping", 4, sequence, 0.01, START_S, incarnation=incarnation)


def first(box: Box, region: int = 1) -> str:
    row = box.steerer.engine.table
    assert row is not None
    found = row.services["dl.example.org."].row(4, region)
    assert found is not None
    return found.addresses[0]


async def test_it_decides_at_once_and_hands_out_each_generation_once(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        assert len(box.tables) == 1
        for n in range(1, 6):
            box.clock.at += 1
            await box.report([sample(2 * n, None), sample(2 * n + 1, 20.0, mirror="m2")])
        await until(lambda: first(box) == "198.51.100.2")
        generations = [table.generation for table in box.tables]
        assert generations == sorted(set(generations))


async def test_generations_go_on_over_a_restart(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await box.report([sample(n) for n in range(1, 6)])
        await until(lambda: len(box.tables) > 1)
        last = box.tables[-1].generation
    async with open_box(tmp_path, box.clock) as again:
        assert again.tables[0].generation > last


async def test_what_operators_said_holds_over_a_restart(tmp_path: Path) -> None:
    async with open_box(tmp_path, killed=True) as box:
        await box.report([sample(1), sample(2, mirror="m2")])
        await box.bus.put("admin/m1", encode(MirrorAdmin("m1", True, "op", START_S)))
        assert box.steerer.engine.drained("m1")
        await until(lambda: first(box) == "198.51.100.2")
    async with open_box(tmp_path, box.clock) as box:
        assert box.steerer.engine.drained("m1")
        assert first(box) == "198.51.100.2"
        await box.bus.delete("admin/m1")
        assert not box.steerer.engine.drained("m1")


async def test_what_operators_say_while_it_starts_is_not_lost(tmp_path: Path) -> None:
    """Whatever moment of the start the change falls into."""
    for moment in range(8):
        clock = ScriptedClock()
        bus = await EmbeddedBus.open(tmp_path / f"bus{moment}.sqlite", clock)
        await bus.put("admin/m1", encode(MirrorAdmin("m1", False, "op", START_S)))
        steerer = Steerer(plan_of(make_config()), bus, clock, lambda _table: None, 600.0)
        starting = asyncio.create_task(steerer.start())
        await asyncio.sleep(0)
        # Each read of the bus takes the steerer one step further.
        for _ in range(moment):
            await bus.get("nothing")
        await bus.put("admin/m1", encode(MirrorAdmin("m1", True, "op", START_S)))
        await starting
        assert steerer.engine.drained("m1"), moment
        await steerer.stop()
        await bus.close()


async def test_a_start_that_failed_leaves_the_kept_state_alone(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await box.report([sample(n) for n in range(1, 6)])
    kept_estimates = box.estimates()
    bus = await EmbeddedBus.open(tmp_path / "bus.sqlite", box.clock)
    await Steerer(
        plan_of(make_config()), bus, box.clock, lambda _table: None, 600.0
    ).stop()  # as the appliance does when it was told to stop before the start had come this far
    await bus.close()
    async with open_box(tmp_path, box.clock) as again:
        assert again.estimates() == kept_estimates
        assert again.steerer.repeated == 0  # nothing had to be replayed


async def spoil(folder: Path, clock: ScriptedClock, change: Callable[[bytes], bytes]) -> None:
    bus = await EmbeddedBus.open(folder / "bus.sqlite", clock)
    value = await bus.get("engine")
    assert value is not None
    await bus.put("engine", change(value.body))
    await bus.close()


def with_head(head: Any) -> Callable[[bytes], bytes]:
    return lambda body: json.dumps(head).encode() + b"\n" + body.partition(b"\n")[2]


@pytest.mark.parametrize(
    "change",
    [
        lambda _body: b"",
        lambda _body: b"\xff\x00garbage\n\xff",
        lambda _body: b"[" * 100_000,
        lambda body: body[: len(body) // 2],
        lambda body: body.replace(b'"version"', b'"versiom"'),
        lambda body: body.partition(b"\n")[0] + b"\n{}",
        lambda body: body.partition(b"\n")[0] + b"\n[]",
        lambda body: body.partition(b"\n")[0] + b"\n" + b"[" * 100_000,
        with_head([]), with_head({}), with_head({"cursors": []}), with_head({"cursors": None}),
        with_head({"cursors": {"a1/x": "many"}}), with_head({"cursors": {"a1/x": None}}), with_head(None),
    ],
    ids=range(15),
)  # fmt: skip
async def test_damaged_state_is_rebuilt_from_the_stream(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    """All of it or nothing: half of it taken over with the whole stream after it would count samples twice."""
    async with open_box(tmp_path) as box:
        await box.report([sample(n, 10.0 + n) for n in range(1, 8)])
        before = box.estimates()
    await spoil(tmp_path, box.clock, change)
    async with open_box(tmp_path, box.clock) as again:
        assert again.estimates() == before
        assert again.count() == 7
        assert await again.report([sample(n) for n in range(1, 9)]) == (200, 8)
        assert again.count() == 8


async def test_a_damaged_sample_in_the_stream_is_passed_over(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        bodies = [encode(path_sample(1)), b"\xff garbage", b"{}", encode(path_sample(4))]
        await box.bus.publish(SAMPLES, f"a1/{INCARNATION}", [Record(n, body) for n, body in enumerate(bodies, 1)])
        assert box.count() == 2
        await kill(box.steerer)
    async with open_box(tmp_path, box.clock) as again:
        assert again.count() == 2


async def test_damaged_words_of_operators_are_passed_over(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await box.bus.put("admin/m1", b"garbage")
        await box.bus.put("stamp/m1/main", b"garbage")
        await box.bus.put("admin/m2", encode(MirrorAdmin("m2", True, "op", START_S)))
        assert box.steerer.engine.drained("m2")
        assert not box.steerer.engine.drained("m1")
    async with open_box(tmp_path, box.clock) as again:
        assert again.steerer.engine.drained("m2")


async def test_a_fault_in_one_pass_does_not_end_steering(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        decide = box.steerer.engine.decide
        calls: list[float] = []

        def fails_twice(now: float) -> SteeringTable:
            calls.append(now)
            if len(calls) <= 2:
                raise ZeroDivisionError("a fault of ours")
            return decide(now)

        box.steerer.engine.decide = fails_twice  # type: ignore[method-assign]
        box.clock.at += 5
        await until(lambda: len(calls) > 2)
        assert box.steerer.failures == 2
        await until(lambda: box.steerer.decided_s == box.clock.at)


async def test_a_fault_while_keeping_does_not_end_steering(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        box.steerer.engine.dump = lambda _position: 1 / 0  # type: ignore[assignment,method-assign,return-value]
        box.clock.at += 100  # time to keep and to trim
        await until(lambda: box.steerer.failures > 0)
        del box.steerer.engine.dump
        box.clock.at += 100
        await until(lambda: box.steerer.decided_s == box.clock.at)


async def test_state_that_cannot_be_kept_is_told_until_it_can(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await hurry(box.bus)
        await box.report([sample(1)])
        with held_store(tmp_path):
            box.clock.at += 11
            await until(lambda: "another process holds it" in box.steerer.bus_error)
            box.clock.at += 60
            await until(lambda: box.steerer.decided_s == box.clock.at)  # deciding goes on
        box.clock.at += 11
        await until(lambda: box.steerer.bus_error == "")


async def test_old_samples_are_trimmed_once_they_are_in_the_kept_state(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await box.report([sample(n) for n in range(1, 11)])
        box.clock.at += 700  # history is 600 s
        await box.report([sample(11)])
        await until(lambda: box.steerer.decided_s == box.clock.at)
        async with asyncio.timeout(20):
            while len(await box.stored()) > 1:  # noqa: ASYNC110 (nobody sets an event for it)
                await asyncio.sleep(0.05)
        assert [s["sequence"] for s in await box.stored()] == [11]
        before = box.estimates()
        await kill(box.steerer)
        await box.steerer._keep()
    async with open_box(tmp_path, box.clock) as again:
        assert again.estimates() == before
        assert await again.report([sample(n) for n in range(1, 13)]) == (200, 12)
        assert again.count() == 12


async def test_unstored_samples_count_once_whenever_they_come_again(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        box.steerer.take_unstored([path_sample(n) for n in range(1, 4)])
        box.steerer.take_unstored([path_sample(n) for n in range(1, 5)])
        assert (box.count(), box.steerer.repeated) == (4, 3)
        await box.report([sample(n) for n in range(1, 6)])
        assert (box.count(), box.steerer.repeated) == (5, 7)
        box.steerer.take_unstored([path_sample(1, "f" * 16)])  # another incarnation is another count
        assert box.count() == 6


async def test_stopping_twice_and_after_the_bus_is_harmless(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await box.report([sample(1)])
        await box.steerer.stop()
        await box.steerer.stop()
        await box.bus.close()
        with pytest.raises(BusUnavailable):
            await box.bus.get("engine")
        await box.steerer.stop()
    assert estimates(box.steerer) == box.estimates()


async def test_stopping_at_the_moment_of_an_urgent_change(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await asyncio.sleep(0.05)  # its loop waits for something urgent
        box.steerer._urgent.set()
        async with asyncio.timeout(10):
            await box.steerer.stop()


@pytest.mark.parametrize("killed", [True, False], ids=["replayed", "kept"])
async def test_a_wall_clock_set_back_before_a_restart_leaves_nothing_live_for_ever(
    tmp_path: Path, killed: bool
) -> None:
    async with open_box(tmp_path, killed=killed) as box:
        await box.report([sample(n) for n in range(1, 6)])
        await box.bus.put("stamp/m1/main", encode(SyncStamp("m1", "main", 1, "", 0.0, "fresh", START_S)))
    clock = ScriptedClock()
    clock.at = START_S - 86_400
    async with open_box(tmp_path, clock) as again:
        path = again.steerer.engine.paths["a1", "m1", "ping", 4]
        assert (path.count, path.taken_s) == (5, clock.at)
        assert [stamp.taken_s for stamp in again.steerer.engine.stamps()] == [clock.at]
        clock.at += 5
        await again.report([sample(6, None)])
        assert path.taken_s == clock.at - 0.25, "new samples count as new"


async def test_cursors_of_an_agents_old_incarnations_are_forgotten(tmp_path: Path) -> None:
    """An agent without a disk draws a new one at each start: they must not be kept, and stored every 10 s, for ever."""
    async with open_box(tmp_path) as box:
        for n in range(500):
            box.steerer.take_unstored([path_sample(1, f"{n:016x}")])
        assert box.count() == 500
        assert len(box.steerer._cursors) <= 64
        box.steerer.take_unstored([path_sample(1, f"{499:016x}")])
        assert box.steerer.repeated == 1, "the newest are remembered"


async def test_a_table_that_could_not_be_served_is_offered_again(tmp_path: Path) -> None:
    clock = ScriptedClock()
    bus = await EmbeddedBus.open(tmp_path / "bus.sqlite", clock)
    offered: list[int] = []

    def fails_once(table: SteeringTable) -> None:
        offered.append(table.generation)
        if len(offered) == 2:
            raise ZeroDivisionError("a fault of ours")

    steerer = Steerer(plan_of(make_config()), bus, clock, fails_once, 600.0)
    await steerer.start()
    steerer.engine.set_admin(MirrorAdmin("m1", True, "op", START_S), "m1")
    clock.at += 1
    await until(lambda: len(offered) > 2)
    assert offered[1] == offered[2]
    await steerer.stop()
    await bus.close()
