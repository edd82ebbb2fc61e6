"""A copy of a tree kept as its parent has it: the task that follows a parent, and goes on whatever happens.

One task a tree. Whatever goes wrong ends the attempt, not the task: the reason shows in `status`, the next attempt begins
with what is recorded. How a parent is followed is in `io_follow` and `io_follow_plain`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from core.config_sync import Tree
from core.errors import NearpathError
from core.io_log import get_logger
from syncd.copy.child_status import Activity, ChildStatus, Totals
from syncd.copy.io_copy import Copy
from syncd.copy.io_expire import Expiry
from syncd.copy.io_failures import OTHER_S, judge
from syncd.copy.io_follow import Following
from syncd.copy.io_follow_plain import PlainFollowing
from syncd.copy.io_intake import Intake
from syncd.copy.io_mend import Mender
from syncd.copy.io_parents import Lineage
from syncd.copy.io_reconcile import compare_with
from syncd.copy.io_site import Site
from syncd.copy.io_wishes import Wishes
from syncd.source.io_scrub import Scrubber
from syncd.store.io_offer import Freshness, Offer
from syncd.store.io_store import StoreBusy
from syncd.store.manifest import Comparison
from syncd.transfer.io_parent import Parent
from syncd.transfer.io_plain import PlainParent

T = TypeVar("T")

_log = get_logger("child")


class Follower:
    """See the module. `start` raises StoreBusy when another daemon has the tree; anything else shows in `status`."""

    def __init__(
        self, name: str, tree: Tree, store: Path, key_file: Path, lineage: Lineage, on_change: Callable[[], None]
    ) -> None:
        self.name = name
        self.tree = tree
        self.store = store
        self.site = Site(name, tree, store, lineage, on_change, self.freshness)
        self.wishes = Wishes(self.site)
        mender = Mender(self.site, self.wishes)
        self._following = Following(self.site, self.wishes, mender)
        self._plain_following = PlainFollowing(self.site, self.wishes, mender, key_file)
        self._expiry = Expiry(name, tree, self.site.work, lambda: self.site.copy)
        self.scrubber = Scrubber(name, store, self.site.served_path, tree.scrub, mender.wrong.add, by_inode=True)
        self._task: asyncio.Task[None] | None = None
        # What operators ask, as they ask it of an origin too.
        self.look, self.ask_now, self.verify = self.wishes.look, self.wishes.ask_now, self.wishes.verify
        self.approve, self.accept = self.wishes.approve, self.wishes.accept
        self.trust, self.show_version = self.wishes.trust, self.wishes.show_version

    # -- life

    async def start(self) -> None:
        """Open the copy and begin to follow."""
        try:
            await self.site.open()
        except StoreBusy:
            raise
        except (NearpathError, OSError) as error:
            failure = judge(error, self.tree.path)
            self.site.board.note(failure.activity, failure.why)
        self._task = asyncio.create_task(self._run(), name=f"follow-{self.name}")
        self.scrubber.start()
        self._expiry.start()

    async def stop(self) -> None:
        """End what is under way; what was fetched stays for the next start."""
        await asyncio.to_thread(self.scrubber.stop)
        await self._expiry.stop()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.site.close()

    def follow(self, lineage: Lineage) -> None:
        """Choose among other parents from now on."""
        self.site.lineage = lineage

    # -- what it says

    @property
    def offer(self) -> Offer:
        """The copy as our own children see it."""
        return self.site.offer

    @property
    def intake(self) -> Intake:
        """What takes batches in."""
        return self.site.intake

    def why_not_served(self) -> str:
        """Why no child is served of the tree, though it is here; empty when they are."""
        return self.site.why_not_served()

    @property
    def status(self) -> ChildStatus:
        """What the copy says of itself now."""
        return self.site.status

    @property
    def totals(self) -> Totals:
        """What was done since the start."""
        return self.site.board.totals

    @property
    def pinned(self) -> int | None:
        """An older version that is shown until it is released."""
        return self.site.pinned

    @property
    def current_asked_s(self) -> float:
        """Monotonic time of the last question to the parent after whose answer the copy was current."""
        return self.site.current_asked_s

    def freshness(self) -> Freshness:
        """How far behind the origin the copy is at most."""
        knowledge = self.site.knowledge
        return Freshness(knowledge.lag_s(time.monotonic()), knowledge.said.version)

    @property
    def is_sealed(self) -> bool:
        """Whether the origin's signature, which the copy was found equal to, covers contents."""
        matched = self.site.signature.matched
        return matched is not None and matched.sealed

    # -- for who looks at it

    def at_hand(self) -> tuple[Copy, Parent | PlainParent]:
        """The copy and the parent to ask, for who looks and changes nothing; NearpathError when one is not there."""
        if self.site.copy is None:
            raise NearpathError(f"tree {self.name} cannot be looked at", self.status.why or "it is being opened")
        chosen = self.site.lineage.choose(self.name)
        if chosen is None:
            raise NearpathError(f"no parent of tree {self.name} answers", self.status.why or "see `syncd status`")
        return self.site.copy, chosen[1]

    async def with_copy(self, work: Callable[[Copy], T]) -> T:
        """`work` in the thread that owns the copy, between what the follower does there."""
        copy = self.site.copy
        if copy is None:
            raise NearpathError(f"tree {self.name} is not open", self.status.why or "it is being opened")
        return await self.site.work(lambda: work(copy))

    async def compare_with(self, parent: Parent) -> Comparison:
        """What must change here to be what the parent has now."""
        return await compare_with(self.name, self.offer, parent)

    # -- the task

    async def _run(self) -> None:
        while True:
            rest_s = await self._attempt()
            if rest_s is None:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self.wishes.nudged.wait()
            self.wishes.nudged.clear()

    async def _attempt(self) -> float | None:
        """Follow the best parent for as long as it goes well; how long to rest then, None: not at all."""
        site = self.site
        chosen = None
        try:
            copy = await site.open()
            await self.wishes.obey(copy)
            chosen = site.lineage.choose(self.name)
            if chosen is not None:
                await self._follow(copy, *chosen)
                site.backoff.worked()
                return None
            if self.status.activity not in (Activity.NO_PARENT, Activity.FAILED):
                site.board.note(Activity.NO_PARENT, "no parent answers")  # else the reason stays
            rest_s = site.backoff.rest_s
        except Exception as error:
            # Also a fault of ours must not end the replication of this tree.
            rest_s = await self._failed(error, chosen)
        site.backoff.failed()
        return rest_s

    async def _follow(self, copy: Copy, name: str, parent: Parent | PlainParent) -> None:
        self.site.board.update(parent=name)
        # A publish that a full disk stopped, say, is gone on with before anything else.
        await self.site.work(copy.recover)
        if isinstance(parent, Parent):
            await self._following.follow(copy, name, parent)
        else:
            await self._plain_following.follow(copy, name, parent)

    async def _failed(self, error: Exception, chosen: tuple[str, Parent | PlainParent] | None) -> float:
        """Say why an attempt ended, and do what follows from it; how long to rest."""
        site = self.site
        name, parent = chosen or ("", None)
        failure = judge(error, self.tree.path)
        if failure.closes:
            await site.close_copy()
        if failure.disproves:
            site.knowledge.disprove()
        self.wishes.compare |= failure.compare
        site.board.note(failure.activity, failure.why, failure.held)
        if failure.is_odd:
            _log.warning("attempt_failed", tree=self.name, why=failure.why)
        if failure.is_fault:
            _log.error("attempt_crashed", tree=self.name, exc_info=error)
        if failure.blames:
            site.lineage.failed(name, self.name, failure.why)
            if site.other_parent(name):
                return OTHER_S
        rest_s = site.backoff.rest_s if failure.rest_s is None else failure.rest_s
        if failure.listing and isinstance(parent, PlainParent):
            return max(rest_s, parent.every_s)
        return rest_s
