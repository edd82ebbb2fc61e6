"""The steerer: the engine with its time, its stream of samples, its kept state and whoever wants its tables.

Every sample counts once. A sample is handed over by the bus after it is stored; while the bus cannot store (a full disk)
it is taken unstored, so that steering goes on, and the agent, which got no acknowledgement, sends it again later. The
cursor of each agent, kept in the same snapshot as the engine's state, tells the two apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from core.bus import Bus, Unsubscribe, Value
from core.errors import BusUnavailable, MessageError
from core.io_clock import AnchoredClock
from core.io_log import get_logger
from core.messages import MirrorAdmin, PathSample, SyncStamp, decode
from policy.engine import SteeringEngine
from policy.plan import SteeringPlan
from policy.table import SteeringTable

SAMPLES = "samples"
_STATE_KEY = "engine"
ADMIN_PREFIX = "admin/"
STAMP_PREFIX = "stamp/"

_TICK_S = 0.5
"""How often everything is decided when nothing urgent happened."""

_SNAPSHOT_EVERY_S = 10.0
_TRIM_EVERY_S = 60.0
_BUSY_SHARE = 0.1
"""Deciding may take this share of the time: after a pass of 50 ms, the next starts 450 ms later at the earliest."""

TableHandler = Callable[[SteeringTable], None]

_log = get_logger("steerer")


class Steerer:
    """Runs a SteeringEngine; `on_table` gets every new generation, on the event loop."""

    def __init__(
        self, plan: SteeringPlan, bus: Bus, clock: AnchoredClock, on_table: TableHandler, history_s: float
    ) -> None:
        self.engine = SteeringEngine(plan)
        self.decide_s = 0.0
        self.decided_s = 0.0
        self.repeated = 0
        self.failures = 0
        self.bus_error = ""
        self._bus = bus
        self._clock = clock
        self._on_table = on_table
        self._history_s = history_s
        self._position = 0
        self._cursors: dict[str, int] = {}
        self._urgent = asyncio.Event()
        self._generation = -1
        self._unsubscribe: list[Unsubscribe] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take over the kept state, replay what came after it, decide, and go on deciding."""
        for key, value in (await self._bus.items(ADMIN_PREFIX)).items():
            self._take_admin(key, value)
        for key, value in (await self._bus.items(STAMP_PREFIX)).items():
            self._take_stamp(key, value)
        kept = await self._bus.get(_STATE_KEY)
        if kept is not None:
            self._restore(kept.body)
        self._unsubscribe = [
            self._bus.watch(ADMIN_PREFIX, self._take_admin),
            self._bus.watch(STAMP_PREFIX, self._take_stamp),
            await self._bus.subscribe(SAMPLES, self._take_stored, after=self._position),
        ]
        self._decide()
        self._task = asyncio.create_task(self._run(), name="steerer")

    async def stop(self) -> None:
        """Stop deciding and keep the state."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._keep()

    def change_plan(self, plan: SteeringPlan) -> None:
        """Go on with a new plan; estimates and memories of what both plans name are taken over."""
        engine = SteeringEngine(plan)
        engine.restore(self.engine.dump(self._position))
        engine.adopt(self.engine)
        self.engine = engine
        self._decide()

    def take_unstored(self, samples: Sequence[PathSample]) -> None:
        """Take samples that the bus could not store; they will come again and are then left out."""
        for sample in samples:
            self._take(sample)

    # -- what the bus hands over

    def _take_stored(self, position: int, body: bytes) -> None:
        self._position = position
        try:
            sample = decode(PathSample, body)
        except MessageError as error:
            _log.error("stored_sample_damaged", position=position, why=str(error))
            return
        self._take(sample)

    def _take(self, sample: PathSample) -> None:
        source = f"{sample.agent}/{sample.incarnation}"
        if sample.sequence <= self._cursors.get(source, 0):
            self.repeated += 1
            return
        self._cursors[source] = sample.sequence
        if self.engine.take(sample):
            self._urgent.set()

    def _take_admin(self, key: str, value: Value | None) -> None:
        mirror = key.removeprefix(ADMIN_PREFIX)
        try:
            self.engine.set_admin(decode(MirrorAdmin, value.body) if value else None, mirror)
        except MessageError as error:
            _log.error("admin_state_damaged", mirror=mirror, why=str(error))
        self._urgent.set()

    def _take_stamp(self, key: str, value: Value | None) -> None:
        if value is None:
            return
        try:
            self.engine.set_stamp(decode(SyncStamp, value.body))
        except MessageError as error:
            _log.error("stamp_damaged", key=key, why=str(error))

    # -- deciding

    async def _run(self) -> None:
        kept_s = trimmed_s = self._clock.now()
        while True:
            await asyncio.sleep(self.decide_s * (1 / _BUSY_SHARE - 1))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._urgent.wait(), _TICK_S)
            self._urgent.clear()
            try:
                self._decide()
            except Exception:
                # A fault in one pass must not end steering: the last table goes on being served, /readyz tells, and the
                # watchdog acts if it lasts.
                self.failures += 1
                _log.exception("decision_failed")
            now = self._clock.now()
            if now - kept_s >= _SNAPSHOT_EVERY_S:
                kept_s = now
                await self._keep()
            if now - trimmed_s >= _TRIM_EVERY_S:
                trimmed_s = now
                await self._trim(now)

    def _decide(self) -> None:
        started_s = self._clock.now()
        table = self.engine.decide(started_s)
        self.decided_s = self._clock.now()
        self.decide_s = self.decided_s - started_s
        if table.generation != self._generation:
            self._generation = table.generation
            self._on_table(table)

    async def _keep(self) -> None:
        """Store the engine's state; when that fails, the samples since the last one are simply replayed."""
        state = json.dumps({"cursors": self._cursors}).encode() + b"\n" + self.engine.dump(self._position)
        try:
            await self._bus.put(_STATE_KEY, state)
            self._note_bus("")
        except BusUnavailable as error:
            self._note_bus(str(error))

    async def _trim(self, now: float) -> None:
        try:
            kept = await self._bus.get(_STATE_KEY)
            upto = json.loads(kept.body.partition(b"\n")[2])["position"] if kept else 0
            await self._bus.trim(SAMPLES, upto=upto, older_than_s=now - self._history_s)
        except BusUnavailable as error:
            self._note_bus(str(error))

    def _note_bus(self, error: str) -> None:
        if error and error != self.bus_error:
            _log.error("state_not_stored", why=error)
        elif self.bus_error and not error:
            _log.info("state_stored_again")
        self.bus_error = error

    def _restore(self, body: bytes) -> None:
        head, _newline, dumped = body.partition(b"\n")
        try:
            cursors: dict[str, Any] = json.loads(head)["cursors"]
            position = self.engine.restore(dumped)
            self._cursors = {str(source): int(sequence) for source, sequence in cursors.items()}
            self._position = position
        except (MessageError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.error("kept_state_damaged", why=str(error), doing="rebuilding it from the stored samples")
