"""The two loops that talk to the appliance: samples are delivered, targets are fetched.

Samples go out within `deliver_every` of their commit, in the order of their sequence. What failed is sent again with the
same numbers until it is acknowledged, so the appliance can tell a repeat. A loop that succeeds wakes the other one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from core.config import AgentConfig
from core.errors import MessageError, NearpathError
from core.io_log import get_logger
from core.messages import TargetList, decode, encode
from probes.io_appliance import ApplianceClient, CallFailed, find_token_exposure
from probes.io_metrics import AgentMetrics
from probes.io_moment import now_moment
from probes.io_spool import Batch, Spool
from probes.loglimit import LogLimit
from probes.report import Backoff, BatchSize, make_report

FETCH_EVERY_S = 10.0
LAST_DELIVERY_S = 3.0
"""A stop waits this long for the last samples to go out; they are on disk in any case."""

_MAX_KEPT_BYTES = 64 << 20


def _kept_file(config: AgentConfig) -> Path:
    return Path(config.state_dir) / "targets.json"


def read_kept_targets(config: AgentConfig) -> TargetList | None:
    """The targets that the agent had last; None when it never had any. OSError, MessageError when they are unusable."""
    try:
        with open(_kept_file(config), "rb") as stream:
            return decode(TargetList, stream.read(_MAX_KEPT_BYTES))
    except FileNotFoundError:
        return None


class Reporter:
    """Delivers what is in the spool and keeps the target list up to date; runs until its tasks are cancelled."""

    def __init__(
        self, config: AgentConfig, spool: Spool, metrics: AgentMetrics, on_targets: Callable[[TargetList], None]
    ) -> None:
        self._config = config
        self._spool = spool
        self._metrics = metrics
        self._on_targets = on_targets
        self._log = get_logger("report")
        self._limit = LogLimit()
        self._client = ApplianceClient(config)
        self._rng = random.SystemRandom()
        self._backoff = {"samples": Backoff(self._rng), "targets": Backoff(self._rng)}
        self._not_before_s = {"samples": 0.0, "targets": 0.0}
        self._retry = {"samples": asyncio.Event(), "targets": asyncio.Event()}
        self._size = BatchSize()
        self._ready = asyncio.Event()
        self._ready.set()
        self._kept_file = _kept_file(config)
        self.etag = ""
        self.failing: dict[str, str] = {}
        """Why the last call of each kind failed, while it does."""
        self.delivered_s: float | None = None
        self.confirmed_s: float | None = None
        """When (monotonic) samples were last acknowledged, and targets last confirmed."""
        spool.on_ready = self._ready.set

    def load_kept_targets(self) -> None:
        """Go on with the targets of the last run, so that an agent probes also while the appliance is away."""
        try:
            kept = read_kept_targets(self._config)
        except (OSError, MessageError) as error:
            self._log.warning("kept_targets_unusable", file=str(self._kept_file), why=str(error))
            return
        if kept is None:
            return
        self._take_targets(kept)
        self._log.info("kept_targets_used", targets=len(kept.targets))

    async def reconfigure(self, config: AgentConfig) -> None:
        """Use another configuration from the next call on; NearpathError leaves the old one in place."""
        client = ApplianceClient(config)
        old, self._client, self._config = self._client, client, config
        for event in self._retry.values():
            event.set()
        await old.close()

    async def close(self) -> None:
        """One last attempt to deliver what is there, then close the connections."""
        with contextlib.suppress(TimeoutError, NearpathError):
            await self._spool.flush()
            if "samples" not in self.failing:
                async with asyncio.timeout(LAST_DELIVERY_S):
                    await self._deliver_all()
        await self._client.close()

    # -- samples

    async def deliver_forever(self) -> None:
        """Deliver samples as they come; never returns."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            began_s = time.monotonic()
            try:
                await self._deliver_all()
            except CallFailed as error:
                await self._wait_after("samples", error)
                self._ready.set()
            except NearpathError as error:
                self._complain("spool", error)
                await asyncio.sleep(1.0)
            # Coalescing: what comes in meanwhile goes out together.
            await asyncio.sleep(max(0.0, began_s + self._config.deliver_every - time.monotonic()))

    async def _deliver_all(self) -> None:
        while await self._deliver_some():
            pass

    async def _deliver_some(self) -> bool:
        """Deliver the oldest samples; whether there is more to do at once. Raises CallFailed."""
        batch = await self._spool.oldest(self._size.count)
        if not batch.samples:
            return False
        try:
            acked = await self._post(batch)
        except CallFailed as error:
            if error.reason != "content":
                raise
            return await self._find_culprit(batch, error)
        first, last = batch.samples[0].sequence, batch.samples[-1].sequence
        if acked > self._spool.last_sequence and batch.incarnation == self._spool.incarnation:
            # The appliance knows numbers that this spool never gave out: it was restored from a backup, or copied.
            incarnation = await self._spool.renew()
            self._log.error(
                "spool_renewed",
                why="the appliance has numbers that this spool never gave out: was it restored or copied?",
                acked=acked,
                last=self._spool.last_sequence,
                incarnation=incarnation,
            )
            return True
        if acked < first:
            raise CallFailed("garbage", f"the appliance acknowledged {acked}, before {first} to {last} that were sent")
        # A number beyond this report is an earlier, longer one whose answer was lost.
        stored = min(acked, last)
        await self._spool.forget(stored)
        full = len(batch.samples) >= self._size.count
        self._size.accepted()
        self._metrics.delivered.inc(sum(1 for sample in batch.samples if sample.sequence <= stored))
        self.delivered_s = time.monotonic()
        self._succeeded("samples")
        return full or stored < last

    async def _post(self, batch: Batch) -> int:
        try:
            report = make_report(batch.incarnation, batch.samples, now_moment())
        except ValueError as error:
            # A damaged spool can hold what no sample can be.
            raise CallFailed("content", f"the spool holds something that is no sample: {error}") from None
        return await self._client.deliver(report)

    async def _find_culprit(self, batch: Batch, error: CallFailed) -> bool:
        """Halve the report that was refused for its content; one that is refused alone must not block the others."""
        self._metrics.failures.labels("samples", error.reason).inc()
        self._complain("samples", error)
        if not self._size.refused() or len(batch.samples) > 1:
            return True
        sequence = batch.samples[0].sequence
        self._log.error("sample_given_up", sequence=sequence, why=error.what)
        await self._spool.give_up(sequence)
        raise error

    # -- targets

    async def fetch_forever(self) -> None:
        """Fetch the target list every 10 seconds; never returns."""
        while True:
            try:
                fetched = await self._client.fetch_targets(self.etag)
            except CallFailed as error:
                await self._wait_after("targets", error)
                continue
            if fetched is not None:
                await asyncio.to_thread(self._keep, fetched)
                self._take_targets(fetched)
                self._log.info("targets_changed", targets=len(fetched.targets), etag=fetched.etag)
            self.confirmed_s = time.monotonic()
            self._succeeded("targets")
            self._warn_of_exposure()
            await self._wait("targets", FETCH_EVERY_S * (0.9 + 0.2 * self._rng.random()))

    def _take_targets(self, targets: TargetList) -> None:
        self.etag = targets.etag
        self._metrics.targets.set(len(targets.targets))
        self._on_targets(targets)

    def _keep(self, targets: TargetList) -> None:
        try:
            write_atomically(self._kept_file, encode(targets))
        except OSError as error:
            # Not needed until the next start.
            self._complain("keep", NearpathError(f"{self._kept_file} cannot be written: {error.strerror}"))

    def _warn_of_exposure(self) -> None:
        exposure = find_token_exposure(self._config.token_file)
        if exposure and self._limit.pass_through("exposure", time.monotonic() / 60) is not None:
            self._log.warning("token_exposed", why=exposure)

    # -- both

    async def _wait_after(self, call: str, error: CallFailed) -> None:
        self._metrics.failures.labels(call, error.reason).inc()
        self.failing[call] = str(error)
        self._complain(call, error)
        wait_s = self._backoff[call].failed(error.retry_after_s)
        if error.retry_after_s is not None:
            self._not_before_s[call] = time.monotonic() + wait_s
        await self._wait(call, wait_s)

    async def _wait(self, call: str, wait_s: float) -> None:
        retry = self._retry[call]
        retry.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(retry.wait(), wait_s)
        # What the appliance asked for with Retry-After holds even when the other call works again.
        await asyncio.sleep(max(0.0, self._not_before_s[call] - time.monotonic()))

    def _succeeded(self, call: str) -> None:
        self._backoff[call].succeeded()
        if self.failing.pop(call, None) is not None:
            self._log.info("appliance_answers_again", call=call, spooled=len(self._spool))
        for other in self.failing:
            self._retry[other].set()

    def _complain(self, what: str, error: NearpathError) -> None:
        held_back = self._limit.pass_through(f"{what}:{getattr(error, 'reason', '')}", time.monotonic())
        if held_back is not None:
            self._log.error(
                f"{what}_failed", why=error.what, fix=error.fix, same_before=held_back, spooled=len(self._spool)
            )


def write_atomically(file: Path, data: bytes) -> None:
    """Replace `file` by `data` so that a crash leaves either the old or the new one; OSError when it cannot be."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
