"""The parents of this node: their connections, measured now and then, and for each tree the one to follow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from core.config_sync import SyncConfig
from core.errors import NearpathError
from core.io_config_sync import is_plain
from syncd.transfer.io_parent import Parent
from syncd.transfer.io_plain import PlainParent
from syncd.transfer.io_stager import Stager
from syncd.transfer.lineage import Choice, Standing

MEASURE_EVERY_S = 10.0
MEASURE_TIMEOUT_S = 5.0


class Lineage:
    """See the module; `io_parents.Lineage` is what a follower sees of it."""

    def __init__(self, config: SyncConfig, stager: Stager | None = None) -> None:
        self.parents: dict[str, Parent | PlainParent] = {
            name: PlainParent(parent)
            if is_plain(parent)
            else Parent(parent.url, config.node, parent.token_file, parent.ca_file or "", stager)
            for name, parent in config.parents.items()
        }
        self.standings: dict[str, dict[str, Standing]] = {}
        self._choices: dict[str, Choice] = {}
        for name, tree in config.trees.items():
            allowed = [parent for parent in tree.parents if parent in self.parents]
            if allowed:
                self._choices[name] = Choice(allowed)
                self.standings[name] = {parent: Standing() for parent in allowed}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._task = asyncio.create_task(self._measure(), name="lineage")

    async def stop(self) -> None:
        """Drop the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for parent in self.parents.values():
            await parent.close()

    def choose(self, tree: str) -> tuple[str, Parent | PlainParent] | None:
        """(name, parent) to follow for a tree now."""
        name = self._choices[tree].choose(self.standings[tree], time.monotonic())
        return (name, self.parents[name]) if name else None

    def wake(self, tree: str) -> None:
        """Let none of the parents of a tree rest any longer: somebody says that they may be asked again."""
        for standing in self.standings[tree].values():
            standing.rest_until = 0.0

    def worked(self, name: str, tree: str, lag_s: float) -> None:
        """The parent answered a poll."""
        self.standings[tree][name].worked(lag_s=lag_s)

    def failed(self, name: str, tree: str, why: str) -> None:
        """The parent did not answer as it must."""
        if name:
            self.standings[tree][name].failed(time.monotonic(), why)

    async def _measure(self) -> None:
        """Ask each parent that is one of several for a root: on a warm connection that is one round trip."""
        while True:
            asked = [
                self._ask(tree, name)
                for tree, standings in self.standings.items()
                if len(standings) > 1
                for name in standings
            ]
            await asyncio.gather(*asked)
            await asyncio.sleep(MEASURE_EVERY_S)

    async def _ask(self, tree: str, name: str) -> None:
        standing, parent = self.standings[tree][name], self.parents[name]
        if standing.rest_until > time.monotonic() or not isinstance(parent, Parent):
            return  # a plain server is not measured, and so comes after those that are
        try:
            async with asyncio.timeout(MEASURE_TIMEOUT_S):
                if standing.srtt_s is None:
                    await parent.root(tree)  # the first one pays for the connection
                started_s = time.monotonic()
                await parent.root(tree)
            standing.worked(time.monotonic() - started_s)
        except (NearpathError, TimeoutError) as error:
            standing.failed(time.monotonic(), str(error) or "no answer in time")


def shown(standings: Mapping[str, Standing]) -> list[dict[str, object]]:
    """The parents of a tree for `syncd status`."""
    return [
        {
            "name": name,
            "srtt_ms": None if s.srtt_s is None else round(s.srtt_s * 1000, 1),
            "lag_s": round(s.lag_s, 1),
            "failures": s.failures,
            "why": s.why,
        }
        for name, s in standings.items()
    ]
