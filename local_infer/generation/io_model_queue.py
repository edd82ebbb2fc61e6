"""The queue in front of the models that run in this process: loads what is asked for, batches, unloads.

One thread runs models, another loads them: onnxruntime lets go of the interpreter's lock in both, and a load of seconds
must not stop the parts that are there. Order and sizes are decided in `work_queue.py`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_log import get_logger
from local_infer.fault import Busy
from local_infer.generation.io_memory import available_bytes, rss_bytes
from local_infer.generation.model_metrics import QueueMetrics
from local_infer.generation.work_queue import Held, WorkQueue, batch_size, may_load, to_unload
from local_infer.model import I2, O2, Clock, ModelPart, Priority

MOST_WAITING = 256
"""One look-up takes about a millisecond, an embedding ten: who is behind so many is better off with the next step."""

RETRY_LOAD_S = 30.0
"""A part that could not be loaded is not tried again for so long."""

UNUSED_S = 60.0
"""A model makes room for another only when it was not used for so long, or two would push each other out in turn."""

ITEM_BYTES = 8 << 20
"""What one item of a batch may take while it runs: the activations of a small embedder over 512 tokens."""

LOOK_EVERY_S = 1.0
_log = get_logger("models")


class Holder(Protocol):
    """Somebody else who holds models that can be unloaded (the generator's processes)."""

    def held(self) -> Sequence[Held]:
        """What is loaded now."""
        ...

    async def unload(self, name: str, why: str) -> None:
        """Give back the memory of one of them."""
        ...


@dataclass(slots=True)
class _Job:
    item: Any
    future: asyncio.Future[Any]
    since_s: float


@dataclass(slots=True)
class _State:
    """A part as the queue sees it. `moving`: it is being loaded or unloaded, and may not run."""

    part: ModelPart[Any, Any]
    used_s: float = 0.0
    size_bytes: int = 0
    running: bool = False
    moving: bool = False
    failed_until_s: float = 0.0
    failure: NearpathError | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def usable(self) -> bool:
        return not self.moving and self.part.loaded


class LocalQueue:
    """The ModelQueue of the gateway. Make it with `await LocalQueue.start(...)`; all methods are for one event loop."""

    def __init__(
        self,
        config: InferConfig,
        clock: Clock,
        registry: CollectorRegistry,
        available: Callable[[], int] = available_bytes,
    ) -> None:
        self._config, self._clock, self._available_bytes = config.models, clock, available
        self._queue: WorkQueue[int] = WorkQueue(MOST_WAITING)
        self._jobs: dict[int, _Job] = {}
        self._states: dict[str, _State] = {}
        self._holders: list[Holder] = []
        self._count = 0
        self._running = False
        self._closed = False
        self._spare_bytes = 0
        self._runner = ThreadPoolExecutor(1, "model-run")
        self._loader = ThreadPoolExecutor(1, "model-load")
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics = QueueMetrics(registry)
        self._metrics.watch(self._queue.waiting)

    @classmethod
    async def start(
        cls,
        config: InferConfig,
        clock: Clock,
        registry: CollectorRegistry,
        available: Callable[[], int] = available_bytes,
        look_every_s: float = LOOK_EVERY_S,
    ) -> LocalQueue:
        """An empty queue that watches the memory. `available` tells bytes that can be had."""
        queue = cls(config, clock, registry, available)
        queue._look()
        queue._spawn(queue._watch_memory(look_every_s))
        return queue

    async def close(self) -> None:
        """Unload everything; who waits gets Busy."""
        self._closed = True
        for key in list(self._jobs):
            self._leave(key, "stopping")
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        loop = asyncio.get_running_loop()
        for state in self._states.values():
            await loop.run_in_executor(self._runner, state.part.unload)
        self._runner.shutdown(wait=False)
        self._loader.shutdown(wait=False)

    def watch(self, holder: Holder) -> None:
        """Count in what `holder` holds when memory is short."""
        self._holders.append(holder)

    # -- ModelQueue

    async def run(self, part: ModelPart[I2, O2], item: I2, priority: Priority, deadline_s: float) -> O2:
        """The result for one item, batched with others; Busy when it cannot be had before `deadline_s`. Raises what the
        part raises.
        """
        now = self._clock()
        state = self._state(part)
        if self._closed:
            raise Busy(f"{part.name} is stopping")
        if state.failure is not None and now < state.failed_until_s:
            self._metrics.left.labels(part.name, "load").inc()
            raise _again(state.failure)
        self._count += 1
        key = self._count
        future: asyncio.Future[O2] = asyncio.get_running_loop().create_future()
        self._jobs[key] = _Job(item, future, now)
        for left in self._queue.put(key, part.name, priority, deadline_s, now):
            self._leave(left, "late" if deadline_s <= now else "full")
        self._advance()
        try:
            async with asyncio.timeout(max(0.0, deadline_s - now)):
                return await future
        except TimeoutError:
            self._metrics.left.labels(part.name, "late").inc()
            raise Busy(f"{part.name} has no time for one more before the deadline") from None
        finally:
            self._queue.remove(key)
            self._jobs.pop(key, None)

    async def load(self, part: ModelPart[Any, Any]) -> None:
        """Load a part before it is asked for; NearpathError when that fails, Busy when there is no memory for it."""
        state = self._state(part)
        while state.moving:
            await asyncio.gather(*state.tasks, return_exceptions=True)
        if not part.loaded:
            self._begin_load(state)
            await asyncio.gather(*state.tasks)
        if not part.loaded:
            raise _again(state.failure) if state.failure else Busy(f"{part.name} is not loaded")

    async def room_for(self, size_bytes: int) -> bool:
        """Whether a model of that size may be loaded; others are unloaded for it when they are not in use."""
        before_s = self._clock() - UNUSED_S
        unused = [held for held in self._held() if held.used_s <= before_s]
        await self._unload(to_unload(unused, self._look(), self._config.memory_floor + size_bytes))
        return may_load(size_bytes, self._look(), self._config.memory_floor)

    # -- inside

    def _state(self, part: ModelPart[Any, Any]) -> _State:
        state = self._states.get(part.name)
        if state is None or state.part is not part:
            state = self._states[part.name] = _State(part, self._clock())
        return state

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _leave(self, key: int, why: str) -> None:
        job = self._jobs.get(key)
        self._queue.remove(key)
        if job is not None and not job.future.done():
            self._metrics.left.labels("", why).inc()
            job.future.set_exception(Busy(f"the local models have no room for one more ({why})"))

    def _advance(self) -> None:
        """Start what can be started: one run, and loads of the parts that somebody waits for."""
        if self._closed:
            return
        for name in self._queue.parts():
            state = self._states[name]
            if not state.moving and not state.part.loaded:
                self._begin_load(state)
        if self._running:
            return
        name_now = self._queue.next_part(name for name, state in self._states.items() if state.usable)
        if name_now is None:
            return
        size = batch_size(len(self._queue), self._config.batch, self._spare_bytes, ITEM_BYTES)
        keys = self._queue.take(name_now, size)
        self._running = True
        self._spawn(self._run_batch(self._states[name_now], [self._jobs[key] for key in keys]))

    async def _run_batch(self, state: _State, jobs: Sequence[_Job]) -> None:
        now = self._clock()
        name = state.part.name
        for job in jobs:
            self._metrics.wait_s.labels(name).observe(max(0.0, now - job.since_s))
        state.running = True
        try:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(self._runner, _run, state.part, [job.item for job in jobs])
            results, took_s = await work
            self._metrics.batch.labels(name).observe(len(jobs))
            self._metrics.run_s.labels(name).observe(took_s)
            for job, result in zip(jobs, results, strict=True):
                if job.future.done():
                    continue
                if isinstance(result, Exception):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)
        finally:
            self._running = state.running = False
            state.used_s = self._clock()
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(Busy(f"{name} was stopped"))
            self._advance()

    # -- loading and unloading

    def _begin_load(self, state: _State) -> None:
        state.moving = True
        task = self._spawn(self._load(state))
        state.tasks.add(task)
        task.add_done_callback(state.tasks.discard)

    async def _load(self, state: _State) -> None:
        name, began_s = state.part.name, self._clock()
        failure: NearpathError | None = None
        try:
            if not await self.room_for(state.size_bytes):
                failure = Busy(f"there is not enough free memory to load {name}", "see models.memory_floor")
                self._metrics.loads.labels(name, "memory").inc()
            else:
                before = rss_bytes(os.getpid())
                await asyncio.get_running_loop().run_in_executor(self._loader, state.part.load)
                state.size_bytes = max(rss_bytes(os.getpid()) - before, 1 << 20)
                took_s = self._clock() - began_s
                self._metrics.loads.labels(name, "loaded").inc()
                self._metrics.load_s.labels(name).observe(took_s)
                self._metrics.loaded.labels(name).set(1)
                _log.info("model_loaded", model=name, took_s=round(took_s, 3), size_mib=state.size_bytes >> 20)
        except NearpathError as error:
            failure = error
        except Exception as error:
            failure = NearpathError(f"{name} cannot be loaded", f"{type(error).__name__}: {error}")
        finally:
            state.moving = False
            state.used_s = self._clock()
        state.failure = failure
        if failure is not None:
            if not isinstance(failure, Busy):
                self._metrics.loads.labels(name, "failed").inc()
            _log.error("model_not_loaded", model=name, why=str(failure), again_in_s=RETRY_LOAD_S)
            state.failed_until_s = self._clock() + RETRY_LOAD_S
            for key in self._queue.take_all(name):
                job = self._jobs.get(key)
                if job is not None and not job.future.done():
                    job.future.set_exception(_again(failure))
        self._advance()

    def _held(self) -> list[Held]:
        mine = [
            Held(name, state.used_s, state.size_bytes, state.running or state.moving)
            for name, state in self._states.items()
            if state.part.loaded
        ]
        return mine + [held for holder in self._holders for held in holder.held()]

    async def _unload(self, names: Sequence[str]) -> None:
        for name in names:
            state = self._states.get(name)
            if state is None:
                for holder in self._holders:
                    if any(held.name == name for held in holder.held()):
                        await holder.unload(name, "memory")
                continue
            if not state.usable or state.running:
                continue
            state.moving = True
            try:
                await asyncio.get_running_loop().run_in_executor(self._runner, _unload, state.part)
            finally:
                state.moving = False
            self._metrics.unloads.labels(name, "memory").inc()
            self._metrics.loaded.labels(name).set(0)
            _log.warning("model_unloaded", model=name, why="memory is short")
            # Who came while it was being unloaded could not begin its load, and nobody else would.
            self._advance()

    def _look(self) -> int:
        available = self._available_bytes()
        self._metrics.available.set(available)
        self._spare_bytes = max(0, available - self._config.memory_floor)
        return available

    async def _watch_memory(self, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await self._unload(to_unload(self._held(), self._look(), self._config.memory_floor))


def _run(part: ModelPart[Any, Any], items: Sequence[Any]) -> tuple[Sequence[Any], float]:
    """In the runner's thread: a result or an exception for each item, and the time it took.

    When a batch fails its items are run one by one: one bad item must not be the fault of the others.
    """
    began_s = time.perf_counter()
    try:
        results = part.run(items)
        if len(results) != len(items):
            raise NearpathError(f"{part.name} gave {len(results)} results for {len(items)} items")
    except Exception as error:
        if len(items) == 1:
            return [error], time.perf_counter() - began_s
        results = [result for item in items for result in _run(part, [item])[0]]
    return results, time.perf_counter() - began_s


def _again(error: NearpathError) -> NearpathError:
    """The same error as a new exception: one raised again and again would keep every caller's frames."""
    return type(error)(error.what, error.fix)


def _unload(part: ModelPart[Any, Any]) -> None:
    part.unload()
    with suppress(OSError, AttributeError):
        # glibc keeps freed memory for itself otherwise, and then nothing was won.
        ctypes.CDLL(None).malloc_trim(0)
