"""The queue before the models of this process: order, batches, loading, memory. The parts here are small classes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_clock import AnchoredClock
from local_infer.fault import Busy
from local_infer.generation import io_model_queue
from local_infer.generation.io_model_queue import LocalQueue
from local_infer.generation.work_queue import Held
from local_infer.model import Priority

P = Priority
FLOOR = 256 << 20
MUCH = 64 << 30
SOON_S = 20.0


@dataclass
class Part:
    """Doubles numbers; `gate` holds a run back, `batches` says what ran together; `leaving` is called at its unloading."""

    name: str = "part"
    loaded: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    broken: str = ""
    threads: set[str] = field(default_factory=set)
    leaving: Callable[[], object] = bool

    def __post_init__(self) -> None:
        self.gate.set()

    def load(self) -> None:
        self.calls.append("load")
        if self.broken:
            raise NearpathError(self.broken, "mend it")
        self.loaded = True

    def unload(self) -> None:
        self.calls.append("unload")
        self.leaving()
        self.loaded = False

    def run(self, items: Sequence[int]) -> Sequence[int]:
        assert self.loaded
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(SOON_S)
        self.batches.append(list(items))
        if -1 in items:
            raise ValueError("a bad item")
        return [2 * item for item in items]


class Memory:
    """What is available."""

    def __init__(self) -> None:
        self.bytes = MUCH

    def give_back(self) -> None:
        """There is enough again."""
        self.bytes = MUCH

    def __call__(self) -> int:
        return self.bytes


@dataclass
class World:
    queue: LocalQueue
    memory: Memory
    registry: CollectorRegistry
    now: Callable[[], float]

    async def run(self, part: Part, item: int, priority: Priority = P.INTERACTIVE, within_s: float = SOON_S) -> int:
        return await self.queue.run(part, item, priority, self.now() + within_s)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"local_infer_{name}", labels) or 0.0


@asynccontextmanager
async def world(**models: str | int) -> AsyncIterator[World]:
    config = InferConfig.model_validate(
        {"version": 1, "state_dir": "s", "listen": ["127.0.0.1:0"], "anonymous": True, "models": models}
    )
    clock, registry, memory = AnchoredClock(), CollectorRegistry(), Memory()
    queue = await LocalQueue.start(config, clock.now, registry, memory, 0.02)
    try:
        yield World(queue, memory, registry, clock.now)
    finally:
        await queue.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 (what is waited for happens in threads and processes)
            await asyncio.sleep(0.005)


async def test_loads_what_is_asked_for_once_and_unloads_at_the_end() -> None:
    part = Part()
    async with world() as w:
        assert await asyncio.gather(*(w.run(part, i) for i in range(5))) == [0, 2, 4, 6, 8]
        assert part.calls == ["load"]
        assert part.threads == {"model-run_0"}
        assert w.count("model_loads_total", part="part", outcome="loaded") == 1
    assert part.calls == ["load", "unload"]


async def test_batches_what_waits_in_order_of_priority() -> None:
    part = Part()
    async with world(batch=4) as w:
        await w.queue.load(part)
        part.gate.clear()
        first = asyncio.create_task(w.run(part, 0))
        await until(lambda: bool(part.threads))
        kinds = [P.SHADOW, P.INTERACTIVE, P.PREFETCH, P.INTERACTIVE, P.BACKGROUND, P.SHADOW]
        waiting = [asyncio.create_task(w.run(part, i, priority)) for i, priority in enumerate(kinds, 1)]
        await asyncio.sleep(0)
        assert w.count("queue_waiting", priority="shadow") == 2
        part.gate.set()
        assert await asyncio.gather(first, *waiting) == [2 * i for i in range(7)]
        assert part.batches == [[0], [2, 4], [5], [1, 6], [3]]


async def test_batches_are_small_when_memory_is_short() -> None:
    part = Part()
    async with world(memory_floor="256MiB") as w:
        await w.queue.load(part)
        w.memory.bytes = FLOOR + 4 * io_model_queue.ITEM_BYTES
        w.queue._look()
        part.gate.clear()
        tasks = [asyncio.create_task(w.run(part, i)) for i in range(5)]
        await until(lambda: bool(part.threads))
        part.gate.set()
        await asyncio.gather(*tasks)
        assert part.batches == [[0], [1, 2], [3, 4]]


async def test_one_bad_item_is_not_the_fault_of_the_others() -> None:
    part = Part()
    async with world() as w:
        results = await asyncio.gather(*(w.run(part, i) for i in (3, -1, 4)), return_exceptions=True)
        assert (results[0], results[2]) == (6, 8)
        assert isinstance(results[1], ValueError)
        assert await w.run(part, 5) == 10


async def test_too_late_too_many_and_gone() -> None:
    part = Part()
    async with world() as w:
        await w.queue.load(part)
        with pytest.raises(Busy):
            await w.run(part, 1, within_s=0)
        part.gate.clear()
        running = asyncio.create_task(w.run(part, 1))
        await until(lambda: bool(part.threads))
        with pytest.raises(Busy, match="no time"):
            await w.run(part, 2, within_s=0.01)
        gone = asyncio.create_task(w.run(part, 3))
        await asyncio.sleep(0)
        gone.cancel()
        shadows = [asyncio.create_task(w.run(part, 100 + i, P.SHADOW)) for i in range(io_model_queue.MOST_WAITING + 1)]
        await asyncio.sleep(0.01)
        urgent = asyncio.create_task(w.run(part, 4))
        await asyncio.sleep(0.01)
        assert [i for i, task in enumerate(shadows) if task.done()] == [len(shadows) - 2, len(shadows) - 1]
        part.gate.set()
        assert (await running, await urgent) == (2, 8)
        results = await asyncio.gather(*shadows, return_exceptions=True)
        assert sum(isinstance(result, Busy) for result in results) == 2
        assert 3 not in [item for batch in part.batches for item in batch]


async def test_what_cannot_be_loaded_is_told_at_once_and_not_tried_again_soon() -> None:
    part, other = Part(broken="no model there"), Part("other")
    async with world() as w:
        for _ in range(3):
            with pytest.raises(NearpathError, match="no model there: mend it"):
                await w.run(part, 1)
        assert part.calls == ["load"]
        assert await w.run(other, 1) == 2
        with pytest.raises(NearpathError, match="no model there"):
            await w.queue.load(part)


async def test_memory_short_unloads_the_longest_unused_and_later_loads_again() -> None:
    old, new = Part("old"), Part("new")
    async with world(memory_floor="256MiB") as w:
        await w.run(old, 1)
        await w.run(new, 1)
        # Given back by the unloading itself: the next look, 20 ms later, would make `new` go too.
        old.leaving = w.memory.give_back
        w.memory.bytes = FLOOR - 1
        await until(lambda: not old.loaded)
        assert "unload" not in new.calls
        assert await w.run(old, 2) == 4
        assert old.calls == ["load", "unload", "load"]
        assert w.count("model_unloads_total", part="old", why="memory") == 1


async def test_who_asks_for_a_part_while_it_is_unloaded_gets_it_loaded_again() -> None:
    part, slow = Part(), threading.Event()
    async with world(memory_floor="256MiB") as w:
        await w.queue.load(part)
        part.leaving = lambda: (slow.wait(SOON_S), w.memory.give_back())
        w.memory.bytes = FLOOR - 1
        await until(lambda: "unload" in part.calls)
        asked = asyncio.create_task(w.run(part, 2))
        await asyncio.sleep(0.01)
        assert not asked.done()
        slow.set()
        assert await asked == 4
        assert part.calls == ["load", "unload", "load"]


async def test_a_part_in_use_is_not_unloaded() -> None:
    part = Part()
    async with world(memory_floor="256MiB") as w:
        await w.queue.load(part)
        part.gate.clear()
        running = asyncio.create_task(w.run(part, 1))
        await until(lambda: bool(part.threads))
        w.memory.bytes = 0
        await w.queue._unload([held.name for held in w.queue._held()])
        assert part.loaded
        part.gate.set()
        assert await running == 2


async def test_nothing_is_loaded_without_memory_for_it() -> None:
    part = Part()
    async with world(memory_floor="256MiB") as w:
        w.memory.bytes = FLOOR - 1
        with pytest.raises(Busy, match="memory"):
            await w.run(part, 1)
        assert part.calls == []
        assert not await w.queue.room_for(1)
        w.memory.bytes = FLOOR + 10
        assert await w.queue.room_for(10)
        assert not await w.queue.room_for(11)


async def test_other_holders_are_counted_in() -> None:
    class Holder:
        def __init__(self) -> None:
            self.names = ["generation-0"]

        def held(self) -> Sequence[Held]:
            return [Held(name, 0.0, 1 << 30, False) for name in self.names]

        async def unload(self, name: str, why: str) -> None:
            assert why == "memory"
            self.names.remove(name)

    holder, part = Holder(), Part()
    async with world(memory_floor="256MiB") as w:
        w.queue.watch(holder)
        await w.run(part, 1)
        w.memory.bytes = FLOOR - 1
        await until(lambda: not holder.names)
        assert part.loaded  # the larger and longer unused one was enough


async def test_closing_lets_nobody_wait() -> None:
    part = Part()
    async with world() as w:
        await w.queue.load(part)
        part.gate.clear()
        tasks = [asyncio.create_task(w.run(part, i)) for i in range(2)]
        await until(lambda: bool(part.threads))
        part.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, (Busy, int)) for result in results)
    with pytest.raises(Busy):
        await w.run(part, 1)
