"""The load generator: requests at their planned times (or as fast as the answers come), each answer read and judged.

With a rate, arrivals are a Poisson process and times count from the planned start: a gateway that stands still is not let
off the requests that it kept from being sent (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import signal
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import aiohttp
from yarl import URL

from local_infer.load.io_processes import Watched
from local_infer.load.shots import Shooter, Shot
from local_infer.load.tally import Tally
from local_infer.load.verdict import Verdict, judge

_LONGEST_S = 180.0
"""A request without an answer after this is lost."""
_BACKLOG = 20
"""Requests that wait for a free slot, for each slot; more are not made, and counted."""
_SAMPLE_S = 1.0
_READ_BYTES = 1 << 16
_TOLD_MOST = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """A run. `url` is the base up to and with /v1; `rate` in requests/s, 0: as fast as `concurrency` at once allows.

    `leave`: share of the streams that the client walks away from.
    """

    url: str
    key: str
    seconds: float
    rate: float
    concurrency: int
    check: bool = True
    leave: float = 0.0


@dataclass(slots=True)
class Run:
    """What came of it. `samples` are (s since the start, MB) of the gateway."""

    elapsed_s: float = 0.0
    kinds: dict[str, Tally] = field(default_factory=dict)
    all: Tally = field(default_factory=Tally)
    unsent: int = 0
    late_s: array[float] = field(default_factory=lambda: array("d"))
    """How late arrivals were for their planned time: this process did not get the CPU."""
    cpu_s: float | None = None
    own_cpu_s: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)
    whys: list[str] = field(default_factory=list)
    """Of the first bad answers, what came."""


class Load:
    """One run of a plan. `tell` hears the tally now and then."""

    def __init__(
        self, plan: Plan, shooter: Shooter, rng: Random, watched: Watched | None, tell: Callable[[Run, float], None]
    ) -> None:
        self._plan, self._shooter, self._rng, self._watched, self._tell = plan, shooter, rng, watched, tell
        self._run = Run()
        self._queue: asyncio.Queue[tuple[float, Shot]] = asyncio.Queue()
        self._urls: dict[str, URL] = {}
        self._stopping = False
        self.interrupted = False
        """Whether Ctrl-C ended it."""

    def stop(self) -> None:
        """Make no more requests; `run` returns what came of those made."""
        self._stopping = True

    def _interrupt(self) -> None:
        self.interrupted = True
        self.stop()

    async def run(self) -> Run:
        """All of it; Ctrl-C ends it early."""
        plan, run = self._plan, self._run
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        before_s = self._watched.cpu_s() if self._watched else 0.0
        own_s = time.process_time()
        started = time.monotonic()
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            headers={"Authorization": f"Bearer {plan.key}", "Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=_LONGEST_S),
            read_bufsize=_READ_BYTES,
            auto_decompress=False,
        ) as session:
            watching = asyncio.create_task(self._watch(started))
            work = self._paced(session, started) if plan.rate else self._flat_out(session, started)
            try:
                await work
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        run.elapsed_s = time.monotonic() - started
        run.own_cpu_s = time.process_time() - own_s
        if self._watched is not None:
            run.cpu_s = self._watched.cpu_s() - before_s
        return run

    async def _paced(self, session: aiohttp.ClientSession, started: float) -> None:
        plan = self._plan
        workers = [asyncio.create_task(self._work(session)) for _ in range(plan.concurrency)]
        planned = started
        while planned < started + plan.seconds and not self._stopping:
            await asyncio.sleep(planned - time.monotonic())
            self._run.late_s.append(time.monotonic() - planned)
            shots = self._shooter.next()
            for shot in shots:
                if self._queue.qsize() >= _BACKLOG * plan.concurrency:
                    self._run.unsent += 1
                    self._shooter.over(shot, None)
                else:
                    self._queue.put_nowait((planned, shot))
            # A batch takes the place of as many single requests.
            planned += self._rng.expovariate(plan.rate / len(shots))
        await self._queue.join()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, session: aiohttp.ClientSession) -> None:
        while True:
            planned, shot = await self._queue.get()
            try:
                await self._shoot(session, shot, planned)
            finally:
                self._queue.task_done()

    async def _flat_out(self, session: aiohttp.ClientSession, started: float) -> None:
        ends = started + self._plan.seconds

        async def loop() -> None:
            while (now := time.monotonic()) < ends and not self._stopping:
                if self._queue.empty():
                    for shot in self._shooter.next():
                        self._queue.put_nowait((now, shot))
                _planned, shot = self._queue.get_nowait()
                await self._shoot(session, shot, time.monotonic())

        await asyncio.gather(*(loop() for _ in range(self._plan.concurrency)))

    async def _shoot(self, session: aiohttp.ClientSession, shot: Shot, planned: float) -> None:
        leaves = shot.stream and self._rng.random() < self._plan.leave
        verdict, first = await self._ask(session, shot, self._rng.randint(1, 20) if leaves else 0)
        now = time.monotonic()
        run = self._run
        run.kinds.setdefault(shot.kind, Tally()).add(verdict, first - planned, now - planned)
        run.all.add(verdict, first - planned, now - planned)
        if verdict.outcome in ("lost", "crossed") and len(run.whys) < _TOLD_MOST:
            run.whys.append(f"{verdict.outcome} {shot.kind} ({verdict.step}, {verdict.cache}): {verdict.why}")
        self._shooter.over(shot, verdict.text if verdict.outcome == "good" else None)

    async def _ask(self, session: aiohttp.ClientSession, shot: Shot, leave_after: int) -> tuple[Verdict, float]:
        """The verdict, and when the first byte of the body came; `leave_after` so many reads, if not 0."""
        url = self._urls.get(shot.path)
        if url is None:
            url = self._urls[shot.path] = URL(self._plan.url.rstrip("/") + shot.path)
        first, reads, pieces = 0.0, 0, []
        try:
            async with session.request(shot.method, url, data=shot.body or None, headers=shot.headers) as response:
                while data := await response.content.readany():
                    first = first or time.monotonic()
                    pieces.append(data)
                    reads += 1
                    if reads == leave_after:
                        response.close()
                        return Verdict("left", "none", "none"), first
                verdict = judge(shot, response.status, response.headers, b"".join(pieces), self._plan.check)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = f"{type(error).__name__}: {error}; got {b''.join(pieces)[-200:]!r}"
            verdict = Verdict("lost", "none", "none", why=why)
        return verdict, first or time.monotonic()

    async def _watch(self, started: float) -> None:
        """The gateway's memory, and who looks on is told."""
        while True:
            await asyncio.sleep(_SAMPLE_S)
            elapsed_s = time.monotonic() - started
            if self._watched is not None and self._watched.alive():
                self._run.samples.append((elapsed_s, self._watched.rss_mb()))
            self._tell(self._run, elapsed_s)
