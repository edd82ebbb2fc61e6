"""Old versions of an atomic tree go when their time is over, whether anything new is published or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from core.config_sync import Tree
from core.errors import NearpathError
from core.io_log import get_logger
from syncd.copy.io_copy import Copy

_SOONEST_S = 1.0
_LATEST_S = 30.0

_log = get_logger("expire")


class Expiry:
    """See the module. `work` runs something in the thread that owns the copy, `copy` tells which it is, if it is open."""

    def __init__(
        self,
        name: str,
        tree: Tree,
        work: Callable[[Callable[[], Any]], Awaitable[Any]],
        copy: Callable[[], Copy | None],
    ) -> None:
        self._name = name
        self._tree = tree
        self._work = work
        self._copy = copy
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look; nothing is to be looked at for a tree without versions."""
        if self._tree.mode == "atomic":
            self._task = asyncio.create_task(self._run(), name=f"expire-{self._name}")

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause_s = min(_LATEST_S, max(_SOONEST_S, self._tree.grace / 10))
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self._work(self._tidy)
            except (NearpathError, OSError) as error:
                _log.warning("versions_stay", tree=self._name, why=str(error))

    def _tidy(self) -> None:
        copy = self._copy()
        if copy is not None:
            copy.tidy()
