"""The probe agent put together: schedule, probers, spool and reporter; runs in any event loop, also inside a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from core.config import AgentConfig
from core.errors import NearpathError
from core.io_http import bind_tcp, make_health_app
from core.io_log import get_logger
from core.io_state import hold_state_dir
from core.messages import Target, TargetList
from probes.faults import LocalFault
from probes.io_metrics import AgentMetrics
from probes.io_moment import now_moment
from probes.io_prober import Prober
from probes.io_report import Reporter
from probes.io_spool import Spool
from probes.loglimit import LogLimit
from probes.report import Outcome
from probes.schedule import Schedule

STUCK_S = 20.0
"""The probing loop turns at least every 5 s, whatever the probes do; one that did not for this long is stuck."""

_MAX_SLEEP_S = 5.0


class Agent:
    """One probe agent. `await Agent.start(config)`, later `await agent.stop()`; all on one event loop."""

    def __init__(self, config: AgentConfig, spool: Spool, lock: int) -> None:
        self.config = config
        self._spool = spool
        self._lock = lock
        self._log = get_logger("agent")
        self._limit = LogLimit()
        self.registry = CollectorRegistry()
        self._metrics = AgentMetrics(self.registry)
        self._schedule = Schedule(config.concurrency, random.SystemRandom())
        self._reporter = Reporter(config, spool, self._metrics, self._take_targets)
        self._prober = Prober(config.source)
        self._changed = asyncio.Event()
        self._probes: set[asyncio.Task[None]] = set()
        self._loops: list[asyncio.Task[None]] = []
        self._health: list[web.AppRunner] = []
        self._turn_s = time.monotonic()
        self.health_addresses: list[str] = []
        """Where /metrics, /healthz and /readyz are served."""

    @classmethod
    async def start(cls, config: AgentConfig) -> Agent:
        """Open the spool, take up the last targets and run; NearpathError says why it cannot."""
        folder = Path(config.state_dir)
        lock = await asyncio.to_thread(hold_state_dir, folder, "agent")
        async with contextlib.AsyncExitStack() as undo:
            undo.callback(os.close, lock)
            spool = await Spool.open(folder, config.spool.max_samples)
            undo.push_async_callback(spool.close)
            agent = cls(config, spool, lock)
            undo.pop_all()
        try:
            await agent._serve_health()
        except BaseException:
            await agent.stop()
            raise
        agent._watch_metrics()
        agent._reporter.load_kept_targets()
        agent._loops = [
            asyncio.create_task(agent._probe_forever(), name="probe"),
            asyncio.create_task(agent._reporter.deliver_forever(), name="deliver"),
            asyncio.create_task(agent._reporter.fetch_forever(), name="fetch"),
        ]
        return agent

    async def stop(self) -> None:
        """Stop probing, bring what was measured to disk and, when the appliance answers, to it."""
        tasks = [*self._loops, *self._probes]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loops = []
        self._prober.close()
        await self._reporter.close()
        await self._spool.close()
        for runner in self._health:
            await runner.cleanup()
        os.close(self._lock)

    async def reconfigure(self, config: AgentConfig) -> None:
        """Run on with another configuration; NearpathError refuses it and leaves everything as it was."""
        for key in ("state_dir", "spool", "metrics"):
            if getattr(config, key) != getattr(self.config, key):
                raise NearpathError(f"`{key}` cannot be changed while the agent runs", "restart the agent to change it")
        await self._reporter.reconfigure(config)
        if config.source != self.config.source:
            old, self._prober = self._prober, Prober(config.source)
            old.close()
        self._schedule.concurrency = config.concurrency
        self.config = config
        self._changed.set()

    async def wait_failed(self) -> None:
        """Return only when a part of the agent has ended, which it never should; raises what ended it."""
        done, _ = await asyncio.wait(self._loops, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def is_alive(self) -> bool:
        """Whether the agent does its work: what the watchdog is told."""
        turning = time.monotonic() - self._turn_s < STUCK_S
        return turning and self._spool.alive() and not any(task.done() for task in self._loops)

    def not_ready(self) -> Sequence[str]:
        """Reasons why this vantage is of no use to the appliance right now; empty when it is."""
        reasons = [f"{call}: {why}" for call, why in self._reporter.failing.items()]
        if not self._reporter.etag:
            reasons.append("no targets known yet")
        if self._spool.trouble:
            reasons.append(f"spool: {self._spool.trouble}")
        return reasons

    def status(self) -> str:
        """One line for `systemctl status`."""
        reasons = self.not_ready()
        parts = [f"{self._schedule.size} targets", f"{len(self._spool)} samples to deliver", *reasons[:1]]
        return ", ".join(parts)

    # -- probing

    def _take_targets(self, targets: TargetList) -> None:
        self._schedule.replace(targets.targets, time.monotonic())
        self._changed.set()

    async def _probe_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            now = self._turn_s = time.monotonic()
            for target, late_s in self._schedule.start(now):
                self._metrics.start_lag_s.observe(late_s)
                task = asyncio.create_task(self._probe_one(target))
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)
            due_s = self._schedule.due()
            wake_s = now + _MAX_SLEEP_S if due_s is None else min(now + _MAX_SLEEP_S, due_s)
            # The loop's clock is time.monotonic (asyncio.BaseEventLoop.time).
            timer = loop.call_at(wake_s, self._changed.set)
            await self._changed.wait()
            timer.cancel()

    async def _probe_one(self, target: Target) -> None:
        outcome: Outcome | None = None
        try:
            outcome = await self._prober.probe(target)
        except LocalFault as fault:
            self._complain(target, fault.what, fault.fix)
        except Exception as error:
            # A fault of ours in one kind of probe must not end the others, nor look like a dead mirror.
            self._complain(target, f"{type(error).__name__}: {error}", "this is a bug of the agent: please report it")
        taken = now_moment()
        kind = target.how.kind
        result = "local" if outcome is None else "ok" if outcome.rtt_s is not None else "lost"
        self._metrics.probes.labels(kind, result).inc()
        wanted = self._schedule.finish(target, None if outcome is None else result == "lost", time.monotonic())
        self._changed.set()
        if outcome is None or not wanted:
            return
        if outcome.rtt_s is not None:
            self._metrics.rtt_s.labels(kind).observe(outcome.rtt_s)
        self._spool.add(target.mirror, target.check, target.family, outcome, taken)

    def _complain(self, target: Target, what: str, fix: str) -> None:
        held_back = self._limit.pass_through(what, time.monotonic())
        if held_back is not None:
            self._log.error(
                "cannot_probe", mirror=target.mirror, check=target.check, why=what, fix=fix, same_before=held_back
            )

    # -- health

    async def _serve_health(self) -> None:
        for listen in self.config.metrics.listen:
            sock = bind_tcp(listen)
            runner = web.AppRunner(make_health_app(self.registry, self.not_ready), access_log=None)
            self._health.append(runner)
            await runner.setup()
            await web.SockSite(runner, sock).start()
            host, port = sock.getsockname()[:2]
            self.health_addresses.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")

    def _watch_metrics(self) -> None:
        started_s = time.monotonic()

        def age_of(moment_s: float | None) -> float:
            return time.monotonic() - (started_s if moment_s is None else moment_s)

        self._metrics.spooled.set_function(lambda: len(self._spool))
        self._metrics.dropped.set_function(lambda: self._spool.dropped)
        self._metrics.spool_works.set_function(lambda: 0 if self._spool.trouble else 1)
        self._metrics.delivery_age_s.set_function(lambda: age_of(self._reporter.delivered_s))
        self._metrics.targets_age_s.set_function(lambda: age_of(self._reporter.confirmed_s))
