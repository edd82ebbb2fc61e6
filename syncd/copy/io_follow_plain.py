"""Following a server without a journal: what rsync finds different is published, every so often, and signed here."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path

from syncd.copy.child_status import Activity
from syncd.copy.io_copy import Copy
from syncd.copy.io_failures import AGAIN_S
from syncd.copy.io_mend import Mender
from syncd.copy.io_site import Site
from syncd.copy.io_wishes import Wishes
from syncd.store.io_signer import read_key
from syncd.transfer.io_plain import PlainParent


class PlainFollowing:
    """See the module. `key_file`: the secret key of the tree, whose origin is here for our own children."""

    def __init__(self, site: Site, wishes: Wishes, mender: Mender, key_file: Path) -> None:
        self._site = site
        self._wishes = wishes
        self._mender = mender
        self._key_file = key_file

    async def follow(self, copy: Copy, name: str, parent: PlainParent) -> None:
        """Until another parent is better, or something fails.

        What it cannot list there stays here as it is, and the copy is not current until it can.
        """
        site = self._site
        again_s = AGAIN_S
        await site.offer.run(lambda ledger: ledger.set_sealed(False))  # it may have had a syncd above it before
        await site.work(copy.forget_left_out)
        while True:
            await self._wishes.obey(copy)
            is_whole = await self._look(copy, name, parent)
            due = site.intake.retries.next_due()
            rest_s = parent.every_s if due is None else min(parent.every_s, max(1.0, due - time.monotonic()))
            # A listing that is not whole is tried again sooner, but costs that server as much as any other.
            again_s = AGAIN_S if is_whole else again_s * 2
            rest_s = rest_s if again_s == AGAIN_S else min(rest_s, again_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._wishes.looked.wait()
            self._wishes.looked.clear()
            if site.other_parent(name):
                return

    async def _look(self, copy: Copy, name: str, parent: PlainParent) -> bool:
        """List it once, and publish what differs; whether the listing was whole, and at rest."""
        site, intake = self._site, self._site.intake
        started_s, wall_s = time.monotonic(), time.time()
        site.board.note(Activity.COMPARING, "")
        if self._wishes.reread:
            await site.work(copy.read_disk)
        await site.work(copy.forget_later)
        await self._mender.mend(copy, parent)
        look = await parent.differences(os.fsdecode(copy.root), site.tree.exclude)
        site.board.update(differences=len(look.changes), compared_wall_s=wall_s)
        await intake.check_emptied(copy, look.changes)
        await intake.begin_whole(copy, look.changes)
        for part in intake.in_parts(copy, look.changes):
            await intake.apply(copy, parent, part, None)
        self._wishes.reread = self._wishes.compare = intake.is_lacking = False
        if look.unread:
            site.lineage.failed(name, site.name, look.why)
        else:
            site.lineage.worked(name, site.name, 0.0)
            await site.work(lambda: copy.move_cursor(parent.cursor))
            site.board.update(has_content=True)
        is_current = not look.unread and not site.status.waiting
        if is_current:
            site.current_asked_s = started_s
            site.knowledge.tell(started_s, int(wall_s))
        await intake.count(copy)
        site.board.note(Activity.CURRENT if is_current else Activity.RETRYING, look.why)
        site.board.update(whole=None)
        if site.status.has_content:
            await self._sign()
        return look.is_settled and not look.unread

    async def _sign(self) -> None:
        """Nobody above signs a tree of a plain server: for our own children, its origin is here."""
        site = self._site
        seed = await asyncio.to_thread(read_key, self._key_file)
        root = await site.offer.sign(site.name, seed, site.signature.matched)
        site.signature.matched = root
        site.board.update(root_hash=root.root_hash.hex(), version=root.version)
