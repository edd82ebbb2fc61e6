"""Following a parent with a journal: long polls, batches taken in, the signed root compared, drift found and repaired.

The copy's hash is held against the signed root when nothing came for a moment; while changes flow, at the end of a batch
that the parent was asked to prove.
"""

from __future__ import annotations

import asyncio
import time

from core.io_log import get_logger
from syncd.copy.child_status import Activity
from syncd.copy.io_ahead import Ahead, Page
from syncd.copy.io_copy import Copy
from syncd.copy.io_intake import Undigested
from syncd.copy.io_mend import Mender
from syncd.copy.io_reconcile import compare_with, link_changes
from syncd.copy.io_site import Site
from syncd.copy.io_wishes import Wishes
from syncd.copy.parts import weight
from syncd.copy.proofs import Proofs
from syncd.copy.unsigned import never_proved
from syncd.store.signed_root import Root
from syncd.transfer.io_parent import Parent
from syncd.transfer.wire import Batch, Behind, Cursor

ROOT_AFTER_S = 0.5
"""The root is compared once nothing came for so long: in a burst, hashing all of it takes as long as fetching some."""
MAX_ROUNDS = 20
"""Comparisons in a row of a tree that changes while it is compared; what is left then, the journal brings."""

_log = get_logger("follow")


class Following:
    """See the module."""

    def __init__(self, site: Site, wishes: Wishes, mender: Mender) -> None:
        self._site = site
        self._wishes = wishes
        self._mender = mender
        self._ahead = Ahead(site.name, site.work, site.intake.choose_ahead, "hard-links" in site.tree.keep)
        self._proofs = Proofs()
        self._is_caught_up = False
        """By the last answer. Only then the copy is just what the parent's journal says: a comparison brings also what the
        journal tells later."""
        self._is_root_due = False

    async def follow(self, copy: Copy, name: str, parent: Parent) -> None:
        """Until another parent is better, or something fails."""
        site = self._site
        self._is_caught_up = False
        try:
            await site.signature.demand(parent)
            while True:
                await self._wishes.obey(copy)
                if await self._step(copy, name, parent) and (other := site.other_parent(name)):
                    _log.info("parent_changes", tree=site.name, before=name, now=other)
                    return
        finally:
            await self._ahead.drop()

    async def _step(self, copy: Copy, name: str, parent: Parent) -> bool:
        """What is due is repaired, the journal asked once, and what it tells is published; False when it told nothing."""
        site = self._site
        if self._wishes.compare or self._wishes.reread or site.intake.is_lacking:
            await self._compare(copy, parent, None)
        await self._mender.mend(copy, parent)
        cursor = await site.work(copy.cursor)
        if (page := await self._next(copy, parent, cursor)) is None:
            return False
        answer = page.answer
        if isinstance(answer, Behind):
            _log.info("comparing_manifests", tree=site.name, why=answer.why)
            await self._compare(copy, parent, answer.cursor)
            return False
        site.lineage.worked(name, site.name, answer.lag_s)
        self._ahead.begin(copy, parent, cursor, answer)
        try:
            await self._take(copy, parent, answer, page)
        except Undigested:
            await self._compare(copy, parent, answer.cursor)
        site.backoff.worked()
        return True

    async def _take(self, copy: Copy, parent: Parent, answer: Batch, page: Page) -> None:
        """Publish what the journal told; say how fresh the copy is then; hold it against a root that came with it."""
        site, intake = self._site, self._site.intake
        if answer.changes or intake.is_retry_due():
            site.signature.news()
            await intake.apply(copy, parent, answer.changes, answer.cursor, page.staged)
        elif answer.cursor != await site.work(copy.cursor):
            await site.work(lambda: copy.move_cursor(answer.cursor))
        if answer.changes:
            self._proofs.changed(time.monotonic(), len(answer.changes))
        else:
            # Counting takes 50 ms for a million entries: not after every change.
            await intake.count(copy)
        behind = max(0, answer.last - answer.cursor.sequence)
        self._is_caught_up = not behind
        site.board.update(behind=behind)
        root = await self._prove(parent, answer) if page.prove else None
        if not behind and not self._wishes.compare:
            await self._caught_up(parent, answer, page.asked_s, root is not None)
        if root is not None:
            await self._proved(root)

    async def _caught_up(self, parent: Parent, answer: Batch, asked_s: float, is_proved: bool) -> None:
        """The copy has all that the parent has."""
        site = self._site
        if not site.status.waiting and not site.signature.is_missing:
            # With changes, what came while they were published is in the next answer: current as of the question.
            site.current_asked_s = asked_s
            received_s = asked_s if answer.changes else time.monotonic()
            site.knowledge.tell(received_s - answer.lag_s, answer.version)
        site.board.note(Activity.RETRYING if site.status.waiting else Activity.CURRENT, "")
        site.board.update(has_content=True)
        if is_proved:
            self._is_root_due = False
        elif answer.changes:
            self._is_root_due = True
            if site.status.waiting:
                # A tree that never rests is not looked at in quiet moments: it has none.
                if site.signature.doubts(site.intake.retries.most_tries()):
                    self._drifted()
            elif self._proofs.told(time.monotonic(), answer.lag_s):
                site.signature.distrust()
                raise never_proved(site.name, parent.url)
        else:
            quiet, self._is_root_due = not self._is_root_due, False
            await self._rest(parent, quiet, answer.lag_s)

    async def _rest(self, parent: Parent, quiet: bool, lag_s: float) -> None:
        """Nothing came: the time to compare hashes."""
        site = self._site
        received_s = time.monotonic()
        await self._check_root(parent, quiet, lag_s)
        if site.knowledge.said.current_s is None and not site.status.waiting and not site.signature.is_missing:
            # Proved for the first time just now: the parent may be gone before it can be asked once more.
            site.knowledge.tell(received_s - lag_s)
            site.knowledge.prove()

    # -- asking

    async def _next(self, copy: Copy, parent: Parent, cursor: Cursor) -> Page | None:
        """What the parent has after `cursor`, to be proved when that is due; None when the wait for it was cut short."""
        wanted = self._site.offer.proof_wanted
        if wanted.is_set():
            wanted.clear()
            self._proofs.want()
        now = time.monotonic()
        proof_in_s = self._proof_in_s(now)
        if proof_in_s == 0.0:
            await self._ahead.drop()
            return await self._poll(parent, cursor, self._proofs.wait_s, prove=True)
        if (page := await self._ahead.take(copy, parent, cursor)) is not None:
            return page
        # After a comparison it is not known yet whether there is more: the first question does not wait.
        wait_s = self._wait_s(now) if self._is_caught_up else 0.0
        return await self._poll(parent, cursor, wait_s if proof_in_s is None else min(wait_s, proof_in_s))

    async def _poll(self, parent: Parent, cursor: Cursor, wait_s: float, prove: bool = False) -> Page | None:
        """What the parent's journal has after `cursor`; None when the wait was cut short, see `Wishes.look`."""
        tree, asked_s = self._site.name, time.monotonic()
        if not wait_s:
            return Page(await parent.journal(tree, cursor, 0.0), asked_s)
        poll = asyncio.ensure_future(parent.journal(tree, cursor, wait_s, prove=prove))
        look = asyncio.ensure_future(self._wishes.looked.wait())
        wanted = asyncio.ensure_future(self._site.offer.proof_wanted.wait())
        try:
            cuts = (look,) if prove else (look, wanted)
            await asyncio.wait((poll, *cuts), return_when=asyncio.FIRST_COMPLETED)
            if poll.done():
                return Page(poll.result(), asked_s, prove=prove)
            if look.done():
                self._wishes.looked.clear()
                self._is_caught_up = False
            return None
        finally:
            for task in (poll, look, wanted):
                task.cancel()
            await asyncio.gather(poll, look, wanted, return_exceptions=True)

    def _wait_s(self, now: float) -> float:
        site = self._site
        if self._is_root_due or (site.knowledge.said.current_s is None and not site.status.waiting):
            return min(site.tree.poll, ROOT_AFTER_S)
        due = site.intake.retries.next_due()
        return site.tree.poll if due is None else min(site.tree.poll, max(0.0, due - now))

    def _proof_in_s(self, now: float) -> float | None:
        """In how many seconds to ask for a proof; None while none is due, or none could hold: the copy is behind, say."""
        due_s = self._proofs.due_s()
        if due_s is None or not self._is_caught_up or self._site.status.waiting:
            return None
        return max(0.0, due_s - now)

    # -- the signed root

    async def _check_root(self, parent: Parent, quiet: bool, lag_s: float) -> None:
        """Compare hashes with the parent's signed root; what drifted is found by a comparison after this."""
        site = self._site
        root, has_drifted = await site.signature.check(parent, quiet, lag_s, site.intake.retries.most_tries())
        if root is not None:
            await self._proved(root)
        if has_drifted:
            self._drifted()

    async def _prove(self, parent: Parent, answer: Batch) -> Root | None:
        """Compare hashes with the root that came with a batch; None when there is none, or it is another."""
        site = self._site
        root = None
        if answer.root and not site.status.waiting:
            root = await site.signature.prove(parent, answer.root, answer.lag_s)
            if root is None:
                self._drifted()
        if root is None:
            self._proofs.missed(time.monotonic())
        return root

    async def _proved(self, root: Root) -> None:
        """The copy is what the origin signed, and what was said of how fresh it is holds."""
        site = self._site
        self._proofs.proved(time.monotonic())
        if (copy := site.copy) is not None:
            await site.work(copy.found_equal)
        is_news = await site.signature.keep(root)
        site.knowledge.prove(root.version)
        if is_news:
            site.board.on_change()

    def _drifted(self) -> None:
        _log.warning("drift_found", tree=self._site.name, doing="comparing; only what differs is fetched")
        self._wishes.compare = True

    async def _compare(self, copy: Copy, parent: Parent, cursor: Cursor | None) -> None:
        """Bring the copy to what the parent has by comparing listings; then go on from `cursor`.

        Without `cursor` from where the copy is: what changed meanwhile comes a second time, which does no harm.
        """
        site, intake = self._site, self._site.intake
        self._wishes.compare = True  # until it is through
        await self._ahead.drop()
        intake.is_lacking = self._is_caught_up = False
        site.board.note(Activity.COMPARING, "")
        # ManifestError before anything is touched: nobody brings back an older tree than was here already.
        await site.signature.demand(parent)
        if self._wishes.reread:
            await site.work(copy.read_disk)
            self._wishes.reread = False
        await site.work(copy.forget_later)
        for _ in range(MAX_ROUNDS):
            if not await self._compare_once(copy, parent):
                break
        if "hard-links" in site.tree.keep:
            groups = await parent.links(site.name)
            for part in intake.in_parts(copy, await site.work(lambda: link_changes(copy, groups))):
                await intake.apply(copy, parent, part, None)
        site.board.update(whole=None)
        if cursor is not None:
            kept = cursor
            await site.work(lambda: copy.move_cursor(kept))
        site.board.update(has_content=True)
        self._wishes.compare = False

    async def _compare_once(self, copy: Copy, parent: Parent) -> bool:
        """Publish what differs now; whether the parent's tree changed meanwhile."""
        site, intake = self._site, self._site.intake
        found = await compare_with(site.name, site.offer, parent)
        site.board.update(differences=len(found.changes), compared_wall_s=time.time())
        site.board.totals.differences += len(found.changes)
        await intake.begin_whole(copy, found.changes)
        if found.changes:
            _log.info("differences_found", tree=site.name, changes=len(found.changes), moved=len(found.moved))
        for part in intake.in_parts(copy, found.changes):
            await intake.apply(copy, parent, part, None)
            if site.status.whole is not None:
                site.status.whole.took(*weight(copy.wanted(part)))
                site.board.update(fetching=None)
        return bool(found.moved)
