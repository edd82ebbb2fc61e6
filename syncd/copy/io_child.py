"""A copy of a tree kept as its parent has it: the journal followed, batches fetched, published, compared, repaired.

One task a tree. Whatever goes wrong ends the attempt, not the task: the reason shows in `status`, the next attempt begins
with what is recorded. The copy itself is worked on in a thread of its own (`Copy`), the network in the event loop.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from core.config_sync import Tree
from core.errors import MessageError, NearpathError
from core.exclude import Exclude
from core.io_log import get_logger
from syncd.copy.child_status import Activity, ChildStatus, Totals
from syncd.copy.io_ahead import Ahead, Page
from syncd.copy.io_copy import Copy, CopyError
from syncd.copy.io_expire import Expiry
from syncd.copy.io_intake import Board, Held, Incomplete, Intake, NoRoom, Undigested
from syncd.copy.io_parents import Lineage
from syncd.copy.io_reconcile import compare_with, link_changes
from syncd.copy.io_signature import Signature
from syncd.copy.knowledge import Knowledge
from syncd.copy.parts import weight
from syncd.copy.unsigned import UnsignedTree
from syncd.model import PathError
from syncd.publish.io_publish import DiskFull
from syncd.source.io_scrub import Scrubber, Wrong
from syncd.store.io_ledger import Ledger
from syncd.store.io_offer import Freshness, Offer
from syncd.store.io_signer import read_key, sign
from syncd.store.io_store import StoreBusy
from syncd.store.manifest import Comparison, ManifestError
from syncd.transfer.io_parent import Parent, ParentError
from syncd.transfer.io_plain import PlainParent
from syncd.transfer.wire import Batch, Behind, Cursor

T = TypeVar("T")

AGAIN_S = 2.0
MAX_AGAIN_S = 60.0
"""Between attempts that fail one after the other; doubled each time."""
HELD_AGAIN_S = 5.0
FULL_AGAIN_S = 10.0
"""After a full disk is looked at again."""
ROOT_AFTER_S = 0.5
"""The root is compared once nothing came for so long: in a burst, hashing all of it takes as long as fetching some."""
TRIM_EVERY_S = 600.0
"""How often the journal is cut to what our own children have not got yet."""
MAX_ROUNDS = 20
"""Comparisons in a row of a tree that changes while it is compared; what is left then, the journal brings."""

_log = get_logger("child")


class Pinned(NearpathError):
    """The copy shows an older version because an operator said so."""


class Follower:
    """See the module. `start` raises StoreBusy when another daemon has the tree; anything else shows in `status`."""

    def __init__(
        self, name: str, tree: Tree, store: Path, key_file: Path, lineage: Lineage, on_change: Callable[[], None]
    ) -> None:
        self.name = name
        self.tree = tree
        self.board = Board(name, on_change)
        self.offer = Offer(store, self.freshness, self._served_path, Exclude(tree.exclude), self.why_not_served)
        self.store = store
        self._key_file = key_file
        self._lineage = lineage
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=f"copy-{name}")
        self._copy: Copy | None = None
        self._task: asyncio.Task[None] | None = None
        self._knowledge = Knowledge()
        self._accept = False
        self._nudge = asyncio.Event()
        self._look = asyncio.Event()
        self._trust = False
        self.pinned: int | None = None
        """an older version that is shown until it is released"""
        self._wish: tuple[int | None, asyncio.Future[None]] | None = None
        self._again_s = AGAIN_S
        self.current_asked_s = 0.0
        """monotonic time of the last question to the parent after whose answer the copy was current"""
        self._compare_due = False
        self._reread_due = False
        self._is_caught_up = False
        self._is_root_due = False
        self._trimmed_s = -TRIM_EVERY_S
        self._signature = Signature(name, tree, self.offer, self.board)
        self.intake = Intake(name, tree, self.board, self._work, self._announce)
        self._ahead = Ahead(name, self._work, self.intake.choose_ahead, "hard-links" in tree.keep)
        self._expiry = Expiry(name, tree, self._work, lambda: self._copy)
        self._wrong = Wrong(self.look)
        self._unlike: set[bytes] = set()
        """paths that have other owners, say, than at the parent"""
        self.scrubber = Scrubber(name, store, self._served_path, tree.scrub, self._wrong.add, by_inode=True)

    # -- life

    async def start(self) -> None:
        """Open the copy and begin to follow."""
        try:
            await self._open()
        except StoreBusy:
            raise
        except NearpathError as error:
            self.board.note(Activity.STOPPED, str(error))
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
        await self.offer.close()
        await self._work(self._close_copy)
        self._worker.shutdown()

    def approve(self, token: str) -> bool:
        """Let the held deletes through; False when nothing with this token is held."""
        held = self.status.held
        if held is None or held.token != token.strip().lower():
            return False
        self.intake.approved = held.token
        self._nudge.set()
        return True

    def accept(self) -> None:
        """Take the disk that is there now for the copy's, and look at all of it; NearpathError when it is the right one."""
        if self._copy is not None:
            raise NearpathError(
                f"there is nothing to accept: tree {self.name} has its directory",
                "`syncd status` says what it waits for",
            )
        self._accept = True
        self._nudge.set()

    def verify(self, unlike: Iterable[bytes] = ()) -> None:
        """Read the disk anew, compare with the parent's listings, repair what differs; `unlike`: in what no listing has."""
        self._reread_due = self._compare_due = True
        self._unlike.update(unlike)
        self.look()

    def ask_now(self) -> None:
        """`look`, also where parents rest after failures."""
        self._lineage.wake(self.name)
        self.look()

    def look(self) -> None:
        """Ask the parent now: a rest after a failure, and a poll that waits for news, are cut short."""
        self._nudge.set()
        self._look.set()

    def trust(self) -> None:
        """Forget the last accepted root: the origin was restored from a backup, or begins anew."""
        self._trust = True
        self.look()

    def show_version(self, number: int | None) -> asyncio.Future[None]:
        """Show an older version of an atomic tree and stay at it; None: follow the parent again. Done: so it is."""
        wish = asyncio.get_running_loop().create_future()
        if self._wish is not None:
            self._wish[1].cancel()
        self._wish = number, wish
        self.look()
        return wish

    def at_hand(self) -> tuple[Copy, Parent | PlainParent]:
        """The copy and the parent to ask, for who looks and changes nothing; NearpathError when one is not there."""
        if self._copy is None:
            raise NearpathError(f"tree {self.name} cannot be looked at", self.status.why or "it is being opened")
        chosen = self._lineage.choose(self.name)
        if chosen is None:
            raise NearpathError(f"no parent of tree {self.name} answers", self.status.why or "see `syncd status`")
        return self._copy, chosen[1]

    async def with_copy(self, work: Callable[[Copy], T]) -> T:
        """`work` in the thread that owns the copy, between what the follower does there."""
        copy = self._copy
        if copy is None:
            raise NearpathError(f"tree {self.name} is not open", self.status.why or "it is being opened")
        return await self._work(lambda: work(copy))

    def follow(self, lineage: Lineage) -> None:
        """Choose among other parents from now on."""
        self._lineage = lineage

    def freshness(self) -> Freshness:
        """How far behind the origin the copy is at most."""
        return Freshness(self._knowledge.lag_s(time.monotonic()), self._knowledge.said.version)

    @property
    def is_sealed(self) -> bool:
        """Whether the origin's signature, which the copy was found equal to, covers contents."""
        return self._signature.matched is not None and self._signature.matched.sealed

    @property
    def status(self) -> ChildStatus:
        """What the copy says of itself now."""
        return self.board.status

    @property
    def totals(self) -> Totals:
        """What was done since the start."""
        return self.board.totals

    def _served_path(self) -> str | None:
        return self.tree.path if self._copy is not None and self.status.has_content else None

    def why_not_served(self) -> str:
        """Why no child is served of the tree, though it is here; empty when they are."""
        if self._copy is None or not self._copy.is_partial:
            return ""
        return (
            f"tree {self.name!r} is not whole here: its `exclude` leaves out something that its origin has; ask another"
        )

    async def _work(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def _announce(self) -> None:
        self.offer.announce(await self.offer.run(Ledger.last))

    async def _open(self) -> Copy:
        if self._copy is not None:
            return self._copy
        self.board.note(Activity.READING, "")
        copy, went_on = await self._work(self._open_copy)
        self.pinned = await self._work(lambda: copy.pinned)
        self.offer.announce(await self.offer.run(Ledger.last))
        size = await self._work(copy.size)
        has_content = bool((await self._work(copy.cursor)).journal)
        self.board.update(entries=size.entries, bytes_=size.bytes, has_content=has_content)
        self.board.update(left_out=await self._work(copy.left_out))
        refused = await self._work(copy.refused)
        self.board.update(refused=len(refused), refused_paths=refused)
        _log.info("tree_opened", tree=self.name, entries=size.entries, recovered=went_on)
        return copy

    def _open_copy(self) -> tuple[Copy, int]:
        """All in the worker: whoever gives up waiting for it, the copy is either closed again or `_copy`."""
        copy = Copy(self.name, self.tree, self.store, accept=self._accept)
        try:
            self._accept = False
            went_on = copy.recover()
        except BaseException:
            copy.close()
            raise
        self._copy = copy
        return copy, went_on

    def _close_copy(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.close()

    async def _run(self) -> None:
        while True:
            wait_s = self._again_s
            name, listed_s = "", 0.0
            try:
                copy = await self._open()
                await self._obey(copy)
                chosen = self._lineage.choose(self.name)
                if chosen is None:
                    if self.status.activity not in (Activity.NO_PARENT, Activity.FAILED):
                        self.board.note(Activity.NO_PARENT, "no parent answers")  # else the reason stays
                else:
                    name, parent = chosen
                    self.board.update(parent=name)
                    # A publish that a full disk stopped, say, is gone on with before anything else.
                    await self._work(copy.recover)
                    if isinstance(parent, Parent):
                        try:
                            await self._follow(copy, name, parent)
                        finally:
                            await self._ahead.drop()
                    else:
                        listed_s = parent.every_s  # listing all of it costs that server as much as ever
                        await self._follow_plain(copy, name, parent)
                    self._again_s = AGAIN_S
                    continue
            except Pinned as pinned:
                self.board.note(Activity.HELD, str(pinned))
                wait_s = MAX_AGAIN_S
            except Held as held:
                self.board.note(Activity.HELD, str(held), held=held.objection)
                wait_s = max(HELD_AGAIN_S, listed_s)
            except (DiskFull, NoRoom) as error:
                self.board.note(Activity.DISK_FULL, str(error))
                wait_s = max(FULL_AGAIN_S, listed_s)
            except Incomplete as error:
                self.board.note(Activity.RETRYING, str(error))
                wait_s = self._again_s
            except (ParentError, MessageError, PathError) as error:
                self.board.note(Activity.NO_PARENT, str(error))
                self._lineage.failed(name, self.name, str(error))
                wait_s = 0.2 if self._other_parent(name) else self._again_s
            except CopyError as error:
                await self._work(self._close_copy)
                self.board.note(Activity.STOPPED, str(error))
                wait_s = FULL_AGAIN_S
            except ManifestError as error:
                # What this parent shows is not what the origin signed, or older than what is here: others may do better.
                self._knowledge.disprove()
                self._compare_due |= isinstance(error, UnsignedTree)
                self.board.note(Activity.FAILED, str(error))
                self._lineage.failed(name, self.name, str(error))
                wait_s = 0.2 if self._other_parent(name) else self._again_s
            except NearpathError as error:
                self.board.note(Activity.FAILED, str(error))
                _log.warning("attempt_failed", tree=self.name, why=str(error))
            except OSError as error:
                self.board.note(Activity.FAILED, f"{self.tree.path}: {error}")
            except Exception as error:
                # A fault of ours must not end the replication of this tree.
                _log.exception("attempt_crashed", tree=self.name)
                self.board.note(Activity.FAILED, f"an internal fault: {error!r}")
            self._again_s = min(self._again_s * 2, MAX_AGAIN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._nudge.wait()
            self._nudge.clear()

    async def _obey(self, copy: Copy) -> None:
        """Do what operators asked for; Pinned while an older version is to stay, CopyError when the disk is gone."""
        await self._work(copy.check_place)
        if time.monotonic() - self._trimmed_s >= TRIM_EVERY_S:
            self._trimmed_s = time.monotonic()
            await self._work(lambda: copy.journal.trim(time.time()))
        if self._trust:
            self._trust = False
            self._lineage.wake(self.name)
            self._knowledge.forget_versions()
            await self._signature.forget()
        if self._wish is not None:
            (number, done), self._wish = self._wish, None
            try:
                await self._work(lambda: copy.pin(number))
            except (NearpathError, OSError) as error:
                if not done.done():
                    done.set_exception(error)
                self.pinned = await self._work(lambda: copy.pinned)
                await self._work(copy.recover)  # it may be shown all the same, and not be read yet
            else:
                self.pinned = number
                self._compare_due = True
                self._knowledge.forget()
                self.board.update(root_hash="", version=0)
                if not done.done():
                    done.set_result(None)
        if self.pinned is not None:
            raise Pinned(
                f"tree {self.name} was rolled back to version {self.pinned} and stays there",
                f"`syncd rollback {self.name} --release` follows the parent again",
            )

    def _other_parent(self, name: str) -> bool:
        chosen = self._lineage.choose(self.name)
        return chosen is not None and chosen[0] != name

    # -- one attempt: until the parent fails, or another is better

    async def _follow(self, copy: Copy, name: str, parent: Parent) -> None:
        await self._signature.demand(parent)
        while True:
            await self._obey(copy)
            if self._compare_due or self._reread_due or self.intake.is_lacking:
                await self._compare(copy, parent, None)
            await self._repair(copy, parent)
            cursor = await self._work(copy.cursor)
            page = await self._ahead.take(copy, parent, cursor)
            if page is None and (page := await self._poll(parent, cursor)) is None:
                self._is_caught_up = False
                continue
            answer = page.answer
            if isinstance(answer, Behind):
                _log.info("comparing_manifests", tree=self.name, why=answer.why)
                await self._compare(copy, parent, answer.cursor)
                continue
            self._lineage.worked(name, self.name, answer.lag_s)
            self._ahead.begin(copy, parent, cursor, answer)
            try:
                await self._take(copy, parent, answer, page)
            except Undigested:
                await self._compare(copy, parent, answer.cursor)
            self._again_s = AGAIN_S
            if (chosen := self._lineage.choose(self.name)) is not None and chosen[0] != name:
                _log.info("parent_changes", tree=self.name, before=name, now=chosen[0])
                return

    async def _follow_plain(self, copy: Copy, name: str, parent: PlainParent) -> None:
        """Follow a server without a journal: what rsync finds different is published, every so often.

        What it cannot list there stays here as it is, and the copy is not current until it can.
        """
        again_s = AGAIN_S
        await self.offer.run(lambda ledger: ledger.set_sealed(False))  # it may have had a syncd above it before
        await self._work(copy.forget_left_out)
        while True:
            await self._obey(copy)
            started_s, wall_s = time.monotonic(), time.time()
            self.board.note(Activity.COMPARING, "")
            if self._reread_due:
                await self._work(copy.read_disk)
            await self._work(copy.forget_later)
            await self._repair(copy, parent)
            look = await parent.differences(os.fsdecode(copy.root), self.tree.exclude)
            self.board.update(differences=len(look.changes), compared_wall_s=wall_s)
            await self.intake.check_emptied(copy, look.changes)
            await self.intake.begin_whole(copy, look.changes)
            for part in self.intake.in_parts(copy, look.changes):
                await self.intake.apply(copy, parent, part, None)
            self._reread_due = self._compare_due = self.intake.is_lacking = False
            if look.unread:
                self._lineage.failed(name, self.name, look.why)
            else:
                self._lineage.worked(name, self.name, 0.0)
                await self._work(lambda: copy.move_cursor(parent.cursor))
                self.board.update(has_content=True)
            is_current = not look.unread and not self.status.waiting
            if is_current:
                self.current_asked_s = started_s
                self._knowledge.tell(started_s, int(wall_s))
            await self._count(copy)
            self.board.note(Activity.CURRENT if is_current else Activity.RETRYING, look.why)
            self.board.update(whole=None)
            if self.status.has_content:
                await self._sign_here()
            due = self.intake.retries.next_due()
            rest_s = parent.every_s if due is None else min(parent.every_s, max(1.0, due - time.monotonic()))
            # A listing that is not whole is tried again sooner, but costs that server as much as any other.
            again_s = AGAIN_S if look.is_settled and not look.unread else again_s * 2
            rest_s = rest_s if again_s == AGAIN_S else min(rest_s, again_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._look.wait()
            self._look.clear()
            if (chosen := self._lineage.choose(self.name)) is not None and chosen[0] != name:
                return

    async def _count(self, copy: Copy) -> None:
        """How much the copy holds, when that changed."""
        if self.intake.size_due:
            self.intake.size_due = False
            size = await self._work(copy.size)
            self.board.update(entries=size.entries, bytes_=size.bytes, left_out=await self._work(copy.left_out))

    async def _repair(self, copy: Copy, parent: Parent | PlainParent) -> None:
        """Fetch anew what the scrub found to be wrong; compared by content, since the parent has the same size and time."""
        if unlike := frozenset(self._unlike):
            for part in self.intake.in_parts(copy, await self._work(lambda: copy.as_indexed(unlike))):
                await self.intake.apply(copy, parent, part, None)
            self._unlike -= unlike
        if not (wrong := frozenset(self._wrong.paths)):
            return
        changes = await self._work(lambda: copy.as_recorded(wrong))
        for part in self.intake.in_parts(copy, changes):
            await self.intake.apply(copy, parent, part, None)
        self._wrong.paths -= wrong

    async def _sign_here(self) -> None:
        """Nobody above signs a tree of a plain server: for our own children, its origin is here."""
        seed = await asyncio.to_thread(read_key, self._key_file)
        root = await self.offer.run(lambda ledger: sign(ledger, self.name, seed, self._signature.matched))
        self._signature.matched = root
        self.board.update(root_hash=root.root_hash.hex(), version=root.version)

    async def _take(self, copy: Copy, parent: Parent, answer: Batch, page: Page) -> None:
        """Publish what the journal told; note how fresh the copy is then."""
        asked_s = page.asked_s
        if answer.changes or self.intake.is_retry_due():
            self._signature.news()
            await self.intake.apply(copy, parent, answer.changes, answer.cursor, page.staged)
        elif answer.cursor != await self._work(copy.cursor):
            await self._work(lambda: copy.move_cursor(answer.cursor))
        if not answer.changes:
            # Counting takes 50 ms for a million entries: not after every change.
            await self._count(copy)
        behind = max(0, answer.last - answer.cursor.sequence)
        self._is_caught_up = not behind
        self.board.update(behind=behind)
        if behind:
            return
        if not self.status.waiting and not self._signature.is_missing:
            # With changes, what came while they were published is in the next answer: current as of the question.
            self.current_asked_s = asked_s
            received_s = asked_s if answer.changes else time.monotonic()
            self._knowledge.tell(received_s - answer.lag_s, answer.version)
        self.board.note(Activity.RETRYING if self.status.waiting else Activity.CURRENT, "")
        self.board.update(has_content=True)
        if answer.changes:
            self._is_root_due = True
            return
        quiet, self._is_root_due = not self._is_root_due, False
        received_s = time.monotonic()
        await self._check_root(copy, parent, quiet, answer.lag_s)
        if self._knowledge.said.current_s is None and not self.status.waiting and not self._signature.is_missing:
            # Proved for the first time just now: the parent may be gone before it can be asked once more.
            self._knowledge.tell(received_s - answer.lag_s)
            self._knowledge.prove()

    async def _poll(self, parent: Parent, cursor: Cursor) -> Page | None:
        """What the parent's journal has after `cursor`; None when the wait for it was cut short, see `look`."""
        asked_s = time.monotonic()
        # After a comparison it is not known yet whether there is more: the first question does not wait.
        wait_s = self._wait_s(asked_s) if self._is_caught_up else 0.0
        if not wait_s:
            return Page(await parent.journal(self.name, cursor, 0.0), asked_s)
        poll = asyncio.ensure_future(parent.journal(self.name, cursor, wait_s))
        look = asyncio.ensure_future(self._look.wait())
        try:
            await asyncio.wait((poll, look), return_when=asyncio.FIRST_COMPLETED)
            if poll.done():
                return Page(poll.result(), asked_s)
            self._look.clear()
            return None
        finally:
            poll.cancel()
            look.cancel()
            await asyncio.gather(poll, look, return_exceptions=True)

    def _wait_s(self, now: float) -> float:
        if self._is_root_due or (self._knowledge.said.current_s is None and not self.status.waiting):
            return min(self.tree.poll, ROOT_AFTER_S)
        due = self.intake.retries.next_due()
        return self.tree.poll if due is None else min(self.tree.poll, max(0.0, due - now))

    # -- the signed root

    async def _check_root(self, copy: Copy, parent: Parent, quiet: bool, lag_s: float) -> None:
        """Compare hashes with the parent's signed root; what drifted is found by a comparison after this."""
        root, has_drifted = await self._signature.check(parent, quiet, lag_s, self.intake.retries.most_tries())
        if root is not None:
            await self._work(copy.found_equal)
            is_news = await self._signature.keep(root)
            self._knowledge.prove(root.version)
            if is_news:
                self.board.on_change()
        if has_drifted:
            _log.warning("drift_found", tree=self.name, doing="comparing; only what differs is fetched")
            self._compare_due = True

    async def _compare(self, copy: Copy, parent: Parent, cursor: Cursor | None) -> None:
        """Bring the copy to what the parent has by comparing listings; then go on from `cursor`.

        Without `cursor` from where the copy is: what changed meanwhile comes a second time, which does no harm.
        """
        self._compare_due = True
        await self._ahead.drop()
        self.intake.is_lacking = self._is_caught_up = False
        self.board.note(Activity.COMPARING, "")
        # ManifestError before anything is touched: nobody brings back an older tree than was here already.
        await self._signature.demand(parent)
        if self._reread_due:
            await self._work(copy.read_disk)
            self._reread_due = False
        await self._work(copy.forget_later)
        for _ in range(MAX_ROUNDS):
            found = await self.compare_with(parent)
            self.board.update(differences=len(found.changes), compared_wall_s=time.time())
            self.board.totals.differences += len(found.changes)
            await self.intake.begin_whole(copy, found.changes)
            if found.changes:
                _log.info("differences_found", tree=self.name, changes=len(found.changes), moved=len(found.moved))
            for part in self.intake.in_parts(copy, found.changes):
                await self.intake.apply(copy, parent, part, None)
                if self.status.whole is not None:
                    self.status.whole.took(*weight(copy.wanted(part)))
                    self.board.update(fetching=None)
            if not found.moved:
                break
        if "hard-links" in self.tree.keep:
            groups = await parent.links(self.name)
            for part in self.intake.in_parts(copy, await self._work(lambda: link_changes(copy, groups))):
                await self.intake.apply(copy, parent, part, None)
        self.board.update(whole=None)
        if cursor is not None:
            kept = cursor
            await self._work(lambda: copy.move_cursor(kept))
        self.board.update(has_content=True)
        self._compare_due = False

    async def compare_with(self, parent: Parent) -> Comparison:
        """What must change here to be what the parent has now."""
        return await compare_with(self.name, self.offer, parent)
