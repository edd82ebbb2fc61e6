"""How fast a tree may come: the limit of the time of day, followed while files come.

Our own connectors carry rsync's stream, so they slow it down themselves. All of a tree share one purse, a small file: what
one of them receives is missing to all until it has grown back at the rate that stands there, which this process writes
anew when another window begins. Where others carry the stream, rsync has its `--bwlimit`, and is begun anew then.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from core.config_sync import Bandwidth
from syncd.transfer.io_connector import PURSE
from syncd.transfer.streams import Window, limit_at

LOOK_EVERY_S = 1.0
"""How soon another window is noticed."""


class Pace:
    """The limits of one tree. From one event loop."""

    def __init__(self, rules: Sequence[Bandwidth]) -> None:
        self._schedule = [Window(*rule.window()[:2], rule.per_second, rule.window()[2]) for rule in rules]

    def __bool__(self) -> bool:
        """Whether there is any limit at any time."""
        return bool(self._schedule)

    def now(self) -> int:
        """The limit in bytes/s; 0: none."""
        if not self._schedule:
            return 0
        local = datetime.now().astimezone().tzinfo
        return limit_at(self._schedule, time.time(), local) if local is not None else 0

    def slowest(self) -> int:
        """The lowest limit that there ever is; 0: none."""
        return min((window.limit_bytes_s for window in self._schedule if window.limit_bytes_s), default=0)

    async def until_changed(self, limit_bytes_s: int) -> None:
        """Return when the limit is another one."""
        while self.now() == limit_bytes_s:  # noqa: ASYNC110 (the wall clock tells nobody when it is a certain time)
            await asyncio.sleep(LOOK_EVERY_S)

    @asynccontextmanager
    async def purse(self, file: bytes) -> AsyncIterator[None]:
        """Keep the limit in `file` what it is, for connectors that are given it (see `rsync.Options.purse`)."""
        fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        os.pwrite(fd, PURSE.pack(self.now(), 0.0, time.monotonic()), 0)
        follow = asyncio.create_task(self._follow(fd))
        try:
            yield
        finally:
            follow.cancel()
            with suppress(asyncio.CancelledError):
                await follow
            os.close(fd)

    async def _follow(self, fd: int) -> None:
        while True:
            os.pwrite(fd, PURSE.pack(self.now(), 0.0, 0.0)[:8], 0)
            await asyncio.sleep(LOOK_EVERY_S)
