"""The gateway's parts put together: upstreams, cache, local steps, ladder, front; start, reload, readiness, stop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.io_clock import AnchoredClock
from core.io_config_infer import read_infer_config
from core.io_http import bind_tcp, bound_address, make_health_app
from core.io_log import get_logger
from core.io_state import hold_state_dir
from local_infer.cache.io_cache import Cache
from local_infer.drill.io_recent import Recent
from local_infer.drill.io_recorder import recording
from local_infer.gateway.io_server import Gateway
from local_infer.generation.io_generation import Generation
from local_infer.generation.io_model_queue import LocalQueue
from local_infer.ladder.steps import Ladder
from local_infer.model import Answer, Ask, LocalStep, Prover
from local_infer.reloading import take_over
from local_infer.retrieval.io_retrieval import Retrieval
from local_infer.room import Room
from local_infer.telemetry.io_otlp import Telemetry
from local_infer.upstreams.io_upstreams import IoUpstreams

DRAIN_S = 20.0
"""Requests under way may take so long to end when the gateway stops; the unit's TimeoutStopSec must be longer."""

_IDLE_REQUESTS = 2
_log = get_logger("daemon")


def _tell_step_failed(step: str, error: Exception) -> None:
    _log.error("step_failed", step=step, error=type(error).__name__, why=str(error)[:200])


class Daemon:
    """See the module. `open` raises NearpathError when it cannot start; afterwards trouble shows in `not_ready`."""

    def __init__(self, file: Path, config: InferConfig) -> None:
        self.file = file
        self.config = config
        self.registry = CollectorRegistry()
        self.clock = AnchoredClock()
        self.metrics_addresses: list[str] = []
        self.restart_needed: list[str] = []
        """Keys of the file that the last reload could not take."""
        self._rng = Random(os.urandom(16))
        self._upstreams: IoUpstreams | None = None
        self._ladder: Ladder | None = None
        self._generation: Generation | None = None
        self._gateway: Gateway | None = None
        self._stack = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._starting = True
        self._stopping = False
        self._lock = -1

    @classmethod
    async def open(cls, file: Path) -> Daemon:
        """Start everything that the configuration in `file` asks for; it serves when this returns."""
        daemon = cls(file, await asyncio.to_thread(read_infer_config, file))
        daemon._lock = hold_state_dir(Path(daemon.config.state_dir), "local-infer")
        try:
            # Health first: who looks while models are loaded is told so.
            await daemon._serve_health()
            await daemon._start_parts()
        except BaseException:
            await daemon.close(0.0)
            raise
        daemon._starting = False
        return daemon

    @property
    def addresses(self) -> list[str]:
        """Where clients are served, with the real ports."""
        return self._gateway.addresses if self._gateway else []

    def not_ready(self) -> Sequence[str]:
        """Why this gateway should not be asked now; nothing: it should. For /readyz, and so for who steers to it."""
        if self._starting or self._stopping:
            return ["starting" if self._starting else "stopping"]
        reason = self._down_reason()
        return [f"degraded: no upstream can be asked ({reason})"] if reason else []

    def _down_reason(self) -> str:
        """Why no upstream can be asked for anything; empty: one can, or there are none and none are missed."""
        if self._upstreams is None or not self.config.upstreams:
            return ""
        models = dict.fromkeys(next(iter(one.models), "") for one in self.config.upstreams.values())
        reasons = [self._upstreams.down_reasons(model) for model in models]
        # Without the names of upstreams: whoever reaches the gateway may ask for this.
        return ", ".join(sorted({why for each in reasons for why in each.values()})) if all(reasons) else ""

    def status(self) -> str:
        """One line for `systemctl status`."""
        under_way = self._gateway.under_way if self._gateway else 0
        waiting = [f"restart needed for {', '.join(self.restart_needed)}"] if self.restart_needed else []
        return "; ".join([*self.not_ready(), *waiting, f"{under_way} requests under way"])

    async def reload(self) -> None:
        """Take up the file anew, but for what `restart_needed` then names; after NearpathError all is as before."""
        config = await asyncio.to_thread(read_infer_config, self.file)
        config, waiting = take_over(self.config, config)
        assert self._gateway is not None
        assert self._upstreams is not None
        assert self._ladder is not None
        await self._upstreams.reconfigure(config)
        try:
            await self._gateway.reconfigure(config)
        except BaseException:
            await self._upstreams.reconfigure(self.config)
            raise
        self._ladder.reconfigure(config)
        if self._generation is not None:
            self._generation.reconfigure(config)
        self.config, self.restart_needed = config, waiting
        if waiting:
            _log.warning("restart_needed", keys=waiting, why="these take effect at a restart only")

    async def close(self, drain_s: float = DRAIN_S) -> None:
        """Stop: no new requests, those under way may end for `drain_s`, then everything is closed."""
        self._stopping = True
        if self._gateway is not None:
            await self._gateway.close(drain_s)
        await self._stack.aclose()
        if self._runner is not None:
            await self._runner.cleanup()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # -- parts

    async def _start_parts(self) -> None:
        """Start each part, and note how to close it: parts are closed against the order of their start."""
        config, now, registry, stack = self.config, self.clock.now, self.registry, self._stack
        room = Room(config.limits)
        telemetry: Telemetry | None = None
        if config.otlp is not None:
            telemetry = await Telemetry.start(config, now, self._rng, registry)
            stack.push_async_callback(telemetry.close)
        self._upstreams = upstreams = await IoUpstreams.start(config, now, self._rng, registry, room)
        stack.push_async_callback(upstreams.close)
        cache = await Cache.start(config, now, registry)
        stack.push_async_callback(cache.close)
        steps, prover = await self._start_local_steps()
        self._ladder = ladder = Ladder(
            config, upstreams, cache, steps, prover, now, self._rng, registry,
            spawn=self._spawn, tell=_tell_step_failed,
        )  # fmt: skip
        answer: Callable[[Ask], Awaitable[Answer]] = ladder.answer
        if config.ladder.record:
            recent = await asyncio.to_thread(Recent, Path(config.state_dir), config.ladder.record)
            stack.push_async_callback(asyncio.to_thread, recent.close)
            answer = recording(answer, recent.record)
        stack.push_async_callback(self._end_tasks)
        self._gateway = gateway = Gateway(
            config, answer, ladder.cards, registry, now,
            hottest=cache.hottest, not_ready=self.not_ready, telemetry=telemetry, room=room,
        )  # fmt: skip
        await cache.warm(ladder.fetch)
        await gateway.start()
        cache.idle(ladder.fetch, self._has_time)

    async def _start_local_steps(self) -> tuple[list[LocalStep], Prover | None]:
        """Retrieval and generation as configured, loaded; the queue in front of their models."""
        config, now, registry, stack = self.config, self.clock.now, self.registry, self._stack
        steps: list[LocalStep] = []
        retrieval: Retrieval | None = None
        if config.retrieval is None and config.generation is None:
            return steps, retrieval
        queue = await LocalQueue.start(config, now, registry)
        stack.push_async_callback(queue.close)
        if config.retrieval is not None:
            retrieval = await asyncio.to_thread(Retrieval, config, queue, now, registry)
            stack.push_async_callback(asyncio.to_thread, retrieval.close)
            for part in retrieval.parts():
                await queue.load(part)
            steps.append(retrieval)
        if config.generation is not None:
            self._generation = generation = Generation(config, queue, now, registry)
            stack.push_async_callback(generation.close)
            await generation.start()
            steps.append(generation)
        return steps, retrieval

    async def _end_tasks(self) -> None:
        for task in [*self._tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it in the background, held until it is over."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _has_time(self) -> bool:
        """Whether refreshing ahead takes nothing from anybody: few requests, and upstreams that are well."""
        return self._gateway is not None and self._gateway.under_way <= _IDLE_REQUESTS and not self._down_reason()

    async def _serve_health(self) -> None:
        self._runner = web.AppRunner(make_health_app(self.registry, self.not_ready), access_log=None)
        await self._runner.setup()
        for listen in self.config.metrics.listen:
            sock = bind_tcp(listen)
            self.metrics_addresses.append(bound_address(sock))
            await web.SockSite(self._runner, sock).start()
