"""The slots for generation: a process each, started when needed, replaced when it crashed, ended when memory is short.

A slot is handed out to one at a time, through the priority queue. What becomes of a job is read by a task of the slot, not
by the client's: a client that reads slowly keeps no slot, and one that leaves only has its job cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_log import get_logger
from local_infer.fault import Busy
from local_infer.generation.child_wire import Cancel, Done, Generate, Piece, Refused, WireError
from local_infer.generation.io_generator_process import About, Crashed, GeneratorProcess
from local_infer.generation.io_memory import rss_bytes
from local_infer.generation.io_model_queue import LocalQueue
from local_infer.generation.model_metrics import GenerationMetrics
from local_infer.generation.work_queue import Held, WorkQueue
from local_infer.model import Clock, Priority

CANCEL_S = 0.7
"""A cancelled generation that goes on for so long is ended with its process: nothing may run on for a client that left."""

GRACE_S = 5.0
"""A process that is so much later than the time it was given hangs."""

_BACK_OFF_MOST_S = 60.0
_PART = "generation"
_log = get_logger("generation")


class Job:
    """A generation under way: `next` gives its messages until Done or Refused."""

    def __init__(self, id: int) -> None:
        self.id = id
        self._come: asyncio.Queue[Piece | Done | Refused | None] = asyncio.Queue()
        self._limit: asyncio.Timeout | None = None
        self.over = False
        self.cancelled = False

    async def next(self) -> Piece | Done | Refused:
        """The next message; Crashed when the process ended, or was ended."""
        message = await self._come.get()
        if message is None:
            raise Crashed("the generator process ended before its answer")
        return message

    def has_next(self) -> bool:
        """Whether `next` would not wait."""
        return not self._come.empty()


@dataclass(slots=True, eq=False)
class _Slot:
    """`process` None: nothing is loaded. `starting`: a process is being loaded."""

    name: str
    process: GeneratorProcess | None = None
    job: Job | None = None
    taken: bool = False
    starting: bool = False
    used_s: float = 0.0
    size_bytes: int = 0
    crashes: int = 0
    not_before_s: float = 0.0


class GeneratorSlots:
    """`config.generation` must be there. All methods are for one event loop."""

    def __init__(self, config: InferConfig, queue: LocalQueue, clock: Clock, metrics: GenerationMetrics) -> None:
        assert config.generation is not None
        self._config, self._generation = config, config.generation
        self._models, self._clock, self._metrics = queue, clock, metrics
        self._slots = [_Slot(f"{_PART}-{i}") for i in range(config.generation.slots)]
        self._queue: WorkQueue[int] = WorkQueue(config.generation.queue)
        self._waiting: dict[int, asyncio.Future[_Slot]] = {}
        self._count = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.about: About | None = None
        self.failure: NearpathError | None = None
        metrics.waiting.set_function(lambda: len(self._queue))
        metrics.busy.set_function(lambda: sum(slot.taken for slot in self._slots))
        queue.watch(self)

    async def start(self) -> None:
        """Load all slots if they are to be preloaded; NearpathError when the model folder cannot be used."""
        self._spawn(self._unload_idle())
        if not self._generation.preload:
            return
        for slot in self._slots:
            slot.starting = True
        await asyncio.gather(*(self._load(slot) for slot in self._slots))
        if self.failure is not None and not isinstance(self.failure, (Busy, Crashed)):
            raise self.failure

    async def close(self) -> None:
        """End all processes; who waits gets Busy."""
        self._closed = True
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(Busy("the generator is stopping"))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(slot) for slot in self._slots))

    @property
    def loaded(self) -> int:
        """Slots with a model in memory."""
        return sum(slot.process is not None for slot in self._slots)

    @property
    def pids(self) -> list[int]:
        """Of the processes, for who watches them."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    # -- jobs

    async def begin(self, request: Generate, priority: Priority, deadline_s: float, lost: Callable[[str], None]) -> Job:
        """Give `request` (its id is set here) to a slot, waiting for one until `deadline_s`; Busy when there is none.

        `lost` hears when that cost the slot its process: `cancel`, `late` or `crashed`.
        """
        began_s = self._clock()
        slot = await self._acquire(priority, deadline_s)
        self._metrics.wait_s.observe(max(0.0, self._clock() - began_s))
        self._count += 1
        job = slot.job = Job(self._count)
        fields = {name: getattr(request, name) for name in Generate.__slots__}
        self._spawn(self._pump(slot, job, Generate(**{**fields, "id": job.id}), lost))
        return job

    def cancel(self, job: Job) -> None:
        """Nobody wants the rest; harmless when it is over."""
        slot = next((slot for slot in self._slots if slot.job is job), None)
        if job.over or slot is None or slot.process is None:
            return
        job.cancelled = True
        slot.process.send(Cancel(job.id))
        if job._limit is not None:
            now = asyncio.get_running_loop().time()
            job._limit.reschedule(min(job._limit.when() or now, now + CANCEL_S))

    async def _acquire(self, priority: Priority, deadline_s: float) -> _Slot:
        now = self._clock()
        if self._closed:
            raise Busy("the generator is stopping")
        if not self._queue:
            for slot in self._slots:
                if slot.process is not None and not slot.taken:
                    slot.taken = True
                    return slot
        self._start_processes(len(self._queue) + 1, now)
        if all(slot.process is None and not slot.starting for slot in self._slots):
            raise self._cannot()
        self._count += 1
        key = self._count
        future: asyncio.Future[_Slot] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        # Who only waits for a slot that is being loaded does not stand in the queue behind anybody.
        self._queue.most = self._generation.queue + sum(not slot.taken for slot in self._slots)
        for left in self._queue.put(key, _PART, priority, deadline_s, now):
            other = self._waiting.get(left)
            if other is not None and not other.done():
                other.set_exception(Busy("too many wait for the generator"))
        try:
            async with asyncio.timeout(max(0.0, deadline_s - now)):
                return await future
        except TimeoutError:
            self._give_back(future)
            raise Busy("no slot of the generator was free in time") from None
        except asyncio.CancelledError:
            self._give_back(future)
            raise
        finally:
            self._queue.remove(key)
            del self._waiting[key]

    def _give_back(self, future: asyncio.Future[_Slot]) -> None:
        if future.done() and not future.cancelled() and future.exception() is None:
            self._release(future.result())

    def _release(self, slot: _Slot) -> None:
        slot.taken, slot.job, slot.used_s = False, None, self._clock()
        self._hand_out()

    def _hand_out(self) -> None:
        """Free slots to who is next."""
        now = self._clock()
        for slot in self._slots:
            while slot.process is not None and not slot.taken and self._queue:
                for late in self._queue.expire(now):
                    self._fail(late, Busy("no slot of the generator was free in time"))
                keys = self._queue.take(_PART, 1)
                future = self._waiting.get(keys[0]) if keys else None
                if future is not None and not future.done():
                    slot.taken = True
                    future.set_result(slot)
        if self._queue:
            self._start_processes(len(self._queue), now)

    def _cannot(self) -> NearpathError:
        """Why no slot can be had, as a new exception: one raised again and again would keep every caller's frames."""
        error = self.failure
        return Busy("no generator process can be started now") if error is None else type(error)(error.what, error.fix)

    def _fail(self, key: int, error: NearpathError) -> None:
        future = self._waiting.get(key)
        if future is not None and not future.done():
            future.set_exception(error)

    async def _pump(self, slot: _Slot, job: Job, request: Generate, lost: Callable[[str], None]) -> None:
        """Hand on what the process says, until the job is over; then the slot is free."""
        process = slot.process
        try:
            if process is None:
                return
            process.send(request)
            async with asyncio.timeout(self._generation.time + GRACE_S) as job._limit:
                while not job.over:
                    message = await process.receive()
                    if isinstance(message, (Piece, Done, Refused)) and message.id == job.id:
                        job.over = not isinstance(message, Piece)
                        job._come.put_nowait(message)
            slot.crashes = 0
            if isinstance(message, Done):
                self._metrics.done(message)
            else:
                self._metrics.over("refused")
        except TimeoutError:
            assert process is not None
            why = "cancel" if job.cancelled else "late"
            self._metrics.kills.labels(why).inc()
            self._metrics.over("killed")
            _log.warning("generator_killed", pid=process.pid, why=why)
            self._drop(slot, process)
            lost(why)
        except WireError as error:
            job._come.put_nowait(Refused(job.id, "too long", str(error)))
        except Crashed as error:
            assert process is not None
            self._metrics.over("crashed")
            _log.error("generator_crashed", pid=process.pid, why=str(error))
            self._drop(slot, process)
            if not process.retired:
                lost("crashed")
        finally:
            job.over = True
            job._come.put_nowait(None)
            self._release(slot)

    def _drop(self, slot: _Slot, process: GeneratorProcess) -> None:
        """A process that is of no more use; the watcher of its end will see to a new one."""
        process.kill()
        if slot.process is process:
            slot.process = None

    # -- processes

    def _start_processes(self, needed: int, now: float) -> None:
        """See that `needed` slots are being loaded, as far as there are any left."""
        for slot in self._slots:
            if self._closed or sum(one.starting for one in self._slots) >= needed:
                return
            if slot.process is None and not slot.starting and not slot.taken and now >= slot.not_before_s:
                slot.starting = True
                self._spawn(self._load(slot))

    async def _load(self, slot: _Slot) -> None:
        """Load a slot's process; failures are kept in `failure`, and who waits is told when no slot is left."""
        began_s = self._clock()
        try:
            size_bytes = slot.size_bytes or await asyncio.to_thread(folder_bytes, Path(self._generation.model))
            slot.size_bytes = size_bytes
            if not await self._models.room_for(size_bytes):
                raise Busy("there is not enough free memory to load the generator", "see models.memory_floor")
            process = await GeneratorProcess.start(self._config)
        except NearpathError as error:
            self.failure = error
            outcome = "memory" if isinstance(error, Busy) else "crashed" if isinstance(error, Crashed) else "refused"
            self._metrics.starts.labels(outcome).inc()
            slot.crashes += 1
            slot.not_before_s = self._clock() + min(_BACK_OFF_MOST_S, 2.0**slot.crashes)
            _log.error("generator_not_loaded", slot=slot.name, why=str(error), again_at_s=slot.not_before_s)
        else:
            self.failure, self.about = None, process.about
            slot.process, slot.used_s = process, self._clock()
            slot.size_bytes = max(size_bytes, rss_bytes(process.pid))
            self._metrics.starts.labels("ready").inc()
            self._spawn(self._watch_end(slot, process))
            _log.info(
                "generator_ready", slot=slot.name, pid=process.pid, model=self._generation.model,
                provider=process.about.provider, wanted=list(self._config.models.providers),
                context=process.about.context, guidance=process.about.guidance,
                took_s=round(self._clock() - began_s, 3),
            )  # fmt: skip
        finally:
            slot.starting = False
        if all(one.process is None and not one.starting for one in self._slots):
            for key in self._queue.take_all(_PART):
                self._fail(key, self._cannot())
        self._hand_out()

    async def _watch_end(self, slot: _Slot, process: GeneratorProcess) -> None:
        """Replace a process that was not ended on purpose, at once the first time, later when it goes on."""
        status = await process.ended()
        if slot.process is process:
            slot.process = None
        if self._closed or process.retired:
            return
        slot.crashes += 1
        wait_s = 0.0 if slot.crashes == 1 else min(_BACK_OFF_MOST_S, 2.0 ** (slot.crashes - 1))
        slot.not_before_s = self._clock() + wait_s
        _log.error("generator_ended", slot=slot.name, status=status, replaced_in_s=wait_s)
        await asyncio.sleep(wait_s)
        if slot.process is None and not slot.starting:
            slot.starting = True
            await self._load(slot)

    async def _end(self, slot: _Slot) -> None:
        process, slot.process = slot.process, None
        if process is not None:
            await process.close()

    # -- memory

    def held(self) -> Sequence[Held]:
        """What is loaded, for who counts memory."""
        return [Held(s.name, s.used_s, s.size_bytes, s.taken) for s in self._slots if s.process is not None]

    async def unload(self, name: str, why: str) -> None:
        """End a slot's process if it does nothing; it is started again when it is asked for."""
        for slot in self._slots:
            if slot.name == name and slot.process is not None and not slot.taken:
                process, slot.process = slot.process, None
                _log.warning("generator_unloaded", slot=name, why=why)
                await process.close()

    async def _unload_idle(self) -> None:
        after_s = self._generation.unload_after
        while True:
            await asyncio.sleep(min(after_s, 10.0))
            for held in self.held():
                if not held.busy and self._clock() - held.used_s >= after_s:
                    await self.unload(held.name, "idle")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def folder_bytes(folder: Path) -> int:
    """The size of a model folder, which is about what the model takes in memory; 0 when it cannot be read."""
    try:
        return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    except OSError:
        return 0
