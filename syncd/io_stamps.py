"""Delivering stamps to the appliance: how fresh each tree of this node is, so that DNS answers only nodes that have it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import aiohttp

from core.config_sync import Appliance
from core.errors import NearpathError
from core.io_log import get_logger
from core.io_token import read_token
from core.messages import ReportedStamp, StampReport, encode
from syncd.transfer.io_connector import client_tls
from syncd.transfer.wire import NODE_HEADER

TIMEOUT_S = 10.0
MAX_AGAIN_S = 30.0
AT_MOST_EVERY_S = 0.1
"""Changes that come faster are reported together."""

_log = get_logger("stamps")


class Stamper:
    """Reports what `take` says, every `every` seconds and when it is told of a change; never gives up."""

    def __init__(self, appliance: Appliance, node: str, take: Callable[[], Sequence[ReportedStamp]]) -> None:
        self._appliance = appliance
        self._node = appliance.node or node
        self._take = take
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.delivered_s: float | None = None
        self.error = ""

    def start(self) -> None:
        """Begin to report."""
        self._task = asyncio.create_task(self._run(), name="stamps")

    async def stop(self) -> None:
        """End; the appliance sees this node age from its last stamp on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def changed(self) -> None:
        """Something worth a report has happened."""
        self._changed.set()

    async def _run(self) -> None:
        failures = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            while True:
                self._changed.clear()
                try:
                    await self._deliver(session)
                    self.delivered_s, self.error, failures = time.monotonic(), "", 0
                except Exception as error:
                    # A fault of ours too: a node that stops to report is left out of DNS, with no word of it here.
                    failures += 1
                    said = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))
                    if said != self.error:
                        _log.warning("stamps_not_delivered", appliance=self._appliance.url, why=said)
                    self.error = said
                wait_s = min(self._appliance.every * 2.0 ** min(failures, 10), MAX_AGAIN_S)
                await asyncio.sleep(AT_MOST_EVERY_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s - AT_MOST_EVERY_S):
                        await (self._changed.wait() if not failures else asyncio.sleep(wait_s))

    async def _deliver(self, session: aiohttp.ClientSession) -> None:
        stamps = list(self._take())
        body = encode(StampReport(self._node, time.time(), stamps))
        token = await asyncio.to_thread(read_token, self._appliance.token_file, "nearpath agent-token")
        tls: ssl.SSLContext | bool = True
        if self._appliance.url.startswith("https:"):
            tls = client_tls(self._appliance.ca_file or "")
        async with session.post(
            self._appliance.url.rstrip("/") + "/v1/stamps",
            data=body,
            headers={"Authorization": f"Bearer {token}", NODE_HEADER: self._node, "Content-Type": "application/json"},
            ssl=tls,
            allow_redirects=False,
        ) as answer:
            if answer.status != 200:
                said = (await answer.content.read(500)).decode("utf-8", "replace").strip()
                raise NearpathError(f"the appliance answers {answer.status}", said)
