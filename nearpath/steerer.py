"""The steerer: the engine with its time, its stream of samples, its kept state and whoever wants its tables.

Every sample counts once. A sample is handed over by the bus after it is stored; while the bus cannot store (a full disk)
it is taken unstored, so that steering goes on, and the agent, which got no acknowledgement, sends it again later. The
cursor of each agent, kept in the same snapshot as the engine's state, tells the two apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from core.bus import Bus, Unsubscribe, Value, ValueHandler
from core.errors import BusUnavailable, MessageError
from core.io_clock import AnchoredClock
from core.io_log import get_logger
from core.messages import MirrorAdmin, PathSample, SyncStamp, decode
from nearpath.ingest import MAX_INCARNATIONS
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
        await self._follow(ADMIN_PREFIX, self._take_admin)
        await self._follow(STAMP_PREFIX, self._take_stamp)
        kept = await self._bus.get(_STATE_KEY)
        if kept is not None:
            self._restore(kept.body)
            self.engine.no_later_than(self._clock.now())
        self._unsubscribe.append(await self._bus.subscribe(SAMPLES, self._take_stored, after=self._position))
        self._decide()
        self._task = asyncio.create_task(self._run(), name="steerer")

    async def _follow(self, prefix: str, take: ValueHandler) -> None:
        """Take what is said under `prefix` now and from now on; a change that comes while it is read is the newer word."""
        changed: set[str] = set()

        def take_change(key: str, value: Value | None) -> None:
            changed.add(key)
            take(key, value)

        self._unsubscribe.append(self._bus.watch(prefix, take_change))
        for key, value in (await self._bus.items(prefix)).items():
            if key not in changed:
                take(key, value)

    async def stop(self) -> None:
        """Stop deciding and keep the state."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._keep()
        # Else the start did not come to its end: what is kept knows more than this.

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

    def take_stamps(self, stamps: Iterable[SyncStamp]) -> None:
        """Take stamps, stored or not: the last word on a tree counts, however often it is said."""
        for stamp in stamps:
            if self.engine.set_stamp(stamp):
                self._urgent.set()

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
        self._move_cursor(source, sample)
        if sample.taken_s > (now := self._clock.now()):
            # Stored before a restart and before the wall clock was set back.
            sample = replace(sample, taken_s=now)
        if self.engine.take(sample):
            self._urgent.set()

    def _move_cursor(self, source: str, sample: PathSample) -> None:
        if source not in self._cursors:
            mine = [kept for kept in self._cursors if kept.startswith(f"{sample.agent}/")]
            if len(mine) >= MAX_INCARNATIONS:
                del self._cursors[mine[0]]
        else:
            # The first is the one that was heard longest ago.
            del self._cursors[source]
        self._cursors[source] = sample.sequence

    def _take_admin(self, key: str, value: Value | None) -> None:
        mirror = key.removeprefix(ADMIN_PREFIX)
        try:
            self.engine.set_admin(decode(MirrorAdmin, value.body) if value else None, mirror)
        except MessageError as error:
            _log.error("admin_state_damaged", mirror=mirror, why=str(error))
        self._urgent.set()

    def _take_stamp(self, key: str, value: Value | None) -> None:
        mirror, _slash, tree = key.removeprefix(STAMP_PREFIX).partition("/")
        if value is None:
            self.engine.drop_stamp(mirror, tree)
            self._urgent.set()
            return
        try:
            stamp = decode(SyncStamp, value.body)
            if (stamp.mirror, stamp.tree) != (mirror, tree):
                raise MessageError("not the stamp of its key", f"it is of {stamp.mirror}/{stamp.tree}")
        except MessageError as error:
            _log.error("stamp_damaged", key=key, why=str(error))
            return
        # A stamp ages from now at the latest: one of the future would stay fresh without a node behind it.
        self.take_stamps([replace(stamp, taken_s=min(stamp.taken_s, self._clock.now()))])

    # -- deciding

    async def _run(self) -> None:
        kept_s = trimmed_s = self._clock.now()
        # A fault in one pass must not end steering: the last table goes on being served, /readyz tells, and the watchdog
        # acts if it lasts.
        while True:
            await asyncio.sleep(self.decide_s * (1 / _BUSY_SHARE - 1))
            # Not wait_for: that of Python 3.11 loses a cancellation when the event is set in the same moment.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK_S):
                    await self._urgent.wait()
            self._urgent.clear()
            with self._survive("decision_failed"):
                self._decide()
            now = self._clock.now()
            if now - kept_s >= _SNAPSHOT_EVERY_S:
                kept_s = now
                with self._survive("keeping_failed"):
                    await self._keep()
            if now - trimmed_s >= _TRIM_EVERY_S:
                trimmed_s = now
                with self._survive("trimming_failed"):
                    await self._trim(now)

    @contextlib.contextmanager
    def _survive(self, event: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.failures += 1
            _log.exception(event)

    def _decide(self) -> None:
        started_s = self._clock.now()
        table = self.engine.decide(started_s)
        if table.generation != self._generation:
            # Noted only once it is served: what failed is tried again, and /readyz tells when that lasts.
            self._on_table(table)
            self._generation = table.generation
        self.decided_s = self._clock.now()
        self.decide_s = self.decided_s - started_s

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
            await self._delete_strange_stamps()
        except BusUnavailable as error:
            self._note_bus(str(error))

    async def _delete_strange_stamps(self) -> None:
        """Delete stored stamps that do not count: of mirrors and nodes that the configuration no longer names."""
        for key in await self._bus.items(STAMP_PREFIX):
            mirror, _slash, tree = key.removeprefix(STAMP_PREFIX).partition("/")
            if all(stamp.tree != tree for stamp in self.engine.stamps_of(mirror)):
                await self._bus.delete(key)

    def _note_bus(self, error: str) -> None:
        if error and error != self.bus_error:
            _log.error("state_not_stored", why=error)
        elif self.bus_error and not error:
            _log.info("state_stored_again")
        self.bus_error = error

    def _restore(self, body: bytes) -> None:
        head, _newline, dumped = body.partition(b"\n")
        try:
            kept: dict[str, Any] = json.loads(head)["cursors"]
            cursors = {str(source): int(sequence) for source, sequence in kept.items()}
            # Last, as it changes the engine: half a state with the whole stream after it would count samples twice.
            self._position = self.engine.restore(dumped)
            self._cursors = cursors
        except (MessageError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            _log.error("kept_state_damaged", why=str(error), doing="rebuilding it from the stored samples")
