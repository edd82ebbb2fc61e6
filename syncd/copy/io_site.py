"""A copy of a tree at this node, and what everybody shares who works on it: its thread, its offer, what it says of itself.

The copy itself is worked on in a thread of its own (`Copy`), the network in the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from core.config_sync import Tree
from core.exclude import Exclude
from core.io_log import get_logger
from syncd.copy.child_status import FOLLOWING, Activity, ChildStatus
from syncd.copy.io_board import Board
from syncd.copy.io_copy import Copy
from syncd.copy.io_failures import Backoff
from syncd.copy.io_intake import Intake
from syncd.copy.io_parents import Lineage
from syncd.copy.io_signature import Signature
from syncd.copy.knowledge import Knowledge
from syncd.store.io_ledger import Ledger
from syncd.store.io_offer import Freshness, Offer

T = TypeVar("T")

_log = get_logger("site")


class Site:
    """See the module. `freshness` is told to our own children."""

    def __init__(
        self,
        name: str,
        tree: Tree,
        store: Path,
        lineage: Lineage,
        on_change: Callable[[], None],
        freshness: Callable[[], Freshness],
    ) -> None:
        self.name = name
        self.tree = tree
        self.store = store
        self.lineage = lineage
        self.copy: Copy | None = None
        """None while it is not open"""
        self.accept = False
        """whatever directory is there at the next opening is taken for the copy's"""
        self.pinned: int | None = None
        """an older version that is shown until it is released"""
        self.current_asked_s = 0.0
        """monotonic time of the last question to the parent after whose answer the copy was current"""
        self.board = Board(name, on_change)
        self.offer = Offer(
            store, freshness, self.served_path, Exclude(tree.exclude), self._can_prove, self.why_not_served
        )
        self.knowledge = Knowledge()
        self.signature = Signature(name, tree, self.offer, self.board)
        self.intake = Intake(name, tree, self.board, self.work, self._announce)
        self.backoff = Backoff()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"copy-{name}")

    @property
    def status(self) -> ChildStatus:
        """What the copy says of itself now."""
        return self.board.status

    def served_path(self) -> str | None:
        """Where what is published lies; None while there is nothing whole."""
        return self.tree.path if self.copy is not None and self.status.has_content else None

    def why_not_served(self) -> str:
        """Why no child is served of the tree, though it is here; empty when they are."""
        if self.copy is None or not self.copy.is_partial:
            return ""
        return (
            f"tree {self.name!r} is not whole here: its `exclude` leaves out something that its origin has; ask another"
        )

    def _can_prove(self) -> bool:
        """Whether the copy may soon be found equal to a root: not while a file waits, or the parent is not followed."""
        return self.status.activity in FOLLOWING and not self.status.waiting

    async def work(self, work: Callable[[], T]) -> T:
        """`work` in the thread that owns the copy."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def open(self) -> Copy:
        """The copy, opened if it is not."""
        if self.copy is not None:
            return self.copy
        self.board.note(Activity.READING, "")
        copy, went_on = await self.work(self._open)
        self.pinned = await self.work(lambda: copy.pinned)
        await self._announce()
        size = await self.work(copy.size)
        has_content = bool((await self.work(copy.cursor)).journal)
        self.board.update(entries=size.entries, bytes_=size.bytes, has_content=has_content)
        self.board.update(left_out=await self.work(copy.left_out))
        refused = await self.work(copy.refused)
        self.board.update(refused=len(refused), refused_paths=refused)
        _log.info("tree_opened", tree=self.name, entries=size.entries, recovered=went_on)
        return copy

    async def close_copy(self) -> None:
        """Let go of the disk; `open` opens it anew."""
        await self.work(self._close)

    async def close(self) -> None:
        """Let go of everything."""
        await self.offer.close()
        await self.close_copy()
        self._worker.shutdown()

    def other_parent(self, name: str) -> str:
        """The parent to follow now in place of `name`; "" when that one is still the best, or the only one."""
        chosen = self.lineage.choose(self.name)
        return chosen[0] if chosen is not None and chosen[0] != name else ""

    async def _announce(self) -> None:
        self.offer.announce(await self.offer.run(Ledger.last))

    def _open(self) -> tuple[Copy, int]:
        """All in the worker: whoever gives up waiting for it, the copy is either closed again or `copy`."""
        copy = Copy(self.name, self.tree, self.store, accept=self.accept)
        try:
            self.accept = False
            went_on = copy.recover()
        except BaseException:
            copy.close()
            raise
        self.copy = copy
        return copy, went_on

    def _close(self) -> None:
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.close()
