"""The intake of a copy: a batch of changes planned, guarded, fetched, published, and what failed kept for another time."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from core.config_sync import Tree
from core.errors import NearpathError
from core.io_log import get_logger
from syncd.copy.child_status import Activity, Fetching
from syncd.copy.io_ahead import MAX_BYTES
from syncd.copy.io_board import Board
from syncd.copy.io_bring import Bringer, Supplier
from syncd.copy.io_copy import Copy
from syncd.copy.io_prove import read_here, undigested
from syncd.copy.note import Note
from syncd.copy.parts import PART_BYTES, in_parts, weight
from syncd.copy.unsigned import WrongContents, wrong_content
from syncd.io_hooks import run_hook
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.guard import (
    DeleteLimits,
    Objection,
    RecentDeletes,
    Reserve,
    change_token,
    check_deletes,
    check_space,
)
from syncd.publish.io_leftovers import WORTH_BYTES, renew_stage
from syncd.publish.io_publish import clear_attributes
from syncd.publish.plan import Fetch, Plan
from syncd.publish.steps import Do, hold_back
from syncd.source.row import Written
from syncd.store.coalesce import coalesce
from syncd.transfer.io_parent import ParentError
from syncd.transfer.io_rsync import find_unlike, pull_attributes
from syncd.transfer.rsync import Verdict
from syncd.transfer.small import NO_DIGEST, divide
from syncd.transfer.streams import Retries
from syncd.transfer.wire import Cursor

T = TypeVar("T")

VERSIONS = 16
"""In so many parts of about the same size a first sync in mode atomic is published."""

MAX_BARE = 1_000
"""Paths whose attributes cannot be kept, with the reason: who has more sees the same in the first of them."""

_log = get_logger("intake")


class Held(NearpathError):
    """A guard holds the batch until it is approved, or the tree changes."""

    def __init__(self, objection: Objection) -> None:
        super().__init__(objection.what, objection.fix)
        self.objection = objection


class Incomplete(NearpathError):
    """Some files of a version could not be fetched; clients see the version before."""


class Undigested(Incomplete):
    """Of some of them the journal does not tell the digest that the origin signed: the parent's listings may."""


class NoRoom(NearpathError):
    """The disk has no room for the batch."""


class Intake:
    """See the module. `work` runs something in the thread that owns the copy, `published` tells our own children."""

    def __init__(
        self,
        name: str,
        tree: Tree,
        board: Board,
        work: Callable[[Callable[[], Any]], Awaitable[Any]],
        published: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = name
        self.tree = tree
        self.board = board
        self.retries = Retries()
        self.totals = board.totals
        self._bringer = Bringer(name, tree, board.totals.rate)
        self.approved = ""
        self.size_due = False
        """the number of entries is to be counted when there is time"""
        self.is_lacking = False
        """directories came from where nothing is known here: only a comparison can tell what is in them"""
        self._bare: dict[bytes, str] = {}
        """directories and symlinks that lack attributes, and why"""
        self._wrong = WrongContents()
        self._work = work
        self._published_at_all = published
        self._rng = random.Random()

    async def _published(self) -> None:
        await self._published_at_all()
        self.board.on_change()

    def is_retry_due(self) -> bool:
        """Whether some file that failed is to be tried now."""
        due = self.retries.next_due()
        return due is not None and due <= time.monotonic()

    def in_parts(self, copy: Copy, changes: Sequence[Change]) -> list[tuple[Change, ...]]:
        """`parts.in_parts` of what a comparison found: a version that clients see is not made of some large files first."""
        part_bytes: int | None = PART_BYTES
        if self.tree.mode == "atomic":
            # Each part is a version, which costs a link for each file of the tree.
            part_bytes = None if self.board.status.has_content else max(PART_BYTES, weight(changes)[1] // VERSIONS)
        return in_parts(changes, copy.ranks.of, part_bytes)

    async def begin_whole(self, copy: Copy, changes: Sequence[Change]) -> None:
        """Say how far a first sync, or a repair, is: parts of it are fetched one after the other.

        In a first sync what is here already counts too: it may have been begun more than once.
        """
        wanted = await self._work(lambda: copy.wanted(changes))
        whole = Fetching(*weight(wanted), time.monotonic()) if wanted else None
        if whole is not None and not self.board.status.has_content:
            size = await self._work(copy.size)
            files = size.entries - size.directories
            whole.files, whole.size = whole.files + files, whole.size + size.bytes
            whole.took(files, size.bytes)
        self.board.update(whole=whole)

    async def choose_ahead(self, copy: Copy, changes: Sequence[Change]) -> list[Entry]:
        """Files that may be brought before their changes are planned: small payload, a moderate lot of it, where there is
        room, and nothing slows it down on purpose. Not while something waits: what is staged of it would go for them."""
        if self.tree.mode == "atomic" or self.tree.bandwidth or self.board.status.waiting:
            return []
        entries = [
            change.entry
            for change in await self._work(lambda: copy.wanted(changes))
            if change.op is Op.UPSERT
            and change.entry is not None
            and change.entry.kind is Kind.FILE
            and not change.source
            and not copy.ranks.of(change.path)
        ]
        small, _ = divide([Fetch(entry) for entry in entries], self._bringer.options(copy))
        size = sum(fetch.entry.size for fetch in small)
        if size > MAX_BYTES or self._full(copy, size, len(small)) is not None:
            return []
        return [fetch.entry for fetch in small]

    async def apply(
        self,
        copy: Copy,
        parent: Supplier,
        changes: Sequence[Change],
        cursor: Cursor | None,
        ahead: Written | None = None,
    ) -> None:
        """Fetch and publish changes, and record that the copy is at `cursor` then. Raises what stops it.

        `ahead`: files that lie in the stage already, fetched for just these changes.
        """
        now = time.monotonic()
        later, kept = await self._work(lambda: (copy.later(), copy.recent_deletes()))
        recent = RecentDeletes(kept=kept)
        every, is_usual = await self._in_order(copy, later, changes)
        plan = await self._work(lambda: copy.plan(every))
        await self._guard(copy, plan, recent.count(time.time()))
        staged: Written = ahead if ahead is not None and is_usual else {}
        left = frozenset[bytes]() if staged else await self._work(lambda: renew_stage_of(copy, plan))
        await self._make_room(copy, plan, left, staged)
        self._note_news(changes, plan)
        await self._hook("before", plan)
        failed, liar = await self._fetch(copy, parent, plan, now, staged)
        await self._bring_attributes(copy, parent, plan)
        steps, waiting = hold_back(plan.steps, failed, copy.ranks)
        if self.tree.mode == "atomic":
            self._check_whole(parent, failed if waiting else {}, liar)
        self._settle_retries(plan, failed, now)
        # Deletes that wait for a file that does not come are not done, and are planned and guarded again with each try.
        do_wait = any(change.op is Op.DELETE for change in waiting)
        is_approved = self._count_deletes(plan, recent, do_wait)
        counted = recent.kept if recent.kept != kept else None
        note = Note(every, waiting, tuple(path for path, _ in plan.refused), cursor, counted)
        # How far the fetching came stays to be seen: a first sync is fetched and published in turns.
        self.board.update(activity=Activity.PUBLISHING)
        await self._work(lambda: copy.publish(steps, note, staged))
        if not do_wait and (is_approved or cursor is not None):
            self.approved = ""
        await self._tell(copy, plan, len(waiting), len(steps))
        if steps:
            await self._hook("after", plan)
        await self._work(copy.tidy)
        self.size_due = True
        if liar is not None:
            raise wrong_content(self.name, parent.where, liar)

    async def count(self, copy: Copy) -> None:
        """How much the copy holds, when that changed."""
        if self.size_due:
            self.size_due = False
            size = await self._work(copy.size)
            self.board.update(entries=size.entries, bytes_=size.bytes, left_out=await self._work(copy.left_out))

    # -- the steps of `apply`, in their order

    async def _in_order(
        self, copy: Copy, later: Sequence[Change], changes: Sequence[Change]
    ) -> tuple[tuple[Change, ...], bool]:
        """(what waited and what is new, whether that is just what is new); what is here already, by content, is known then.

        In the form of a journal's page again: what waited may have been renamed or deleted meanwhile.
        """
        has_digests = any(change.entry is not None and change.entry.digest is not None for change in changes)
        is_usual = not later and (not has_digests or are_in_order(changes))
        every = tuple(changes) if is_usual else tuple(coalesce((*later, *changes)))
        told = await self._work(lambda: copy.leave_out(every))
        every, self.is_lacking = told.changes, self.is_lacking or told.is_lacking
        if has_digests:
            await self._read_here(copy, every)
        return every, is_usual

    def _note_news(self, changes: Sequence[Change], plan: Plan) -> None:
        if plan.lacking:
            # Directories moved there from where nothing is known here: the comparison after this brings what is in them.
            self.is_lacking = True
            _log.info("directory_unknown", tree=self.name, path=os.fsdecode(plan.lacking[0]))
        for change in changes:
            self._forget_bare(change)
            self.retries.forget(change.path)  # there is news of it: what was wrong with it before says nothing

    def _check_whole(self, parent: Supplier, failed: Mapping[bytes, str], liar: bytes | None) -> None:
        """A version is whole or not: raises when files of it did not come."""
        if liar is not None:
            raise wrong_content(self.name, parent.where, liar)
        if failed:
            kind = Undigested if NO_DIGEST in failed.values() else Incomplete
            raise kind(
                f"{len(failed):,} files did not come, such as {_some(failed)}", "a version is whole or not: tried again"
            )

    def _count_deletes(self, plan: Plan, recent: RecentDeletes, do_wait: bool) -> bool:
        """Count what a batch deletes with that of the last minutes; whether a person approved just this."""
        is_approved = bool(self.approved) and self.approved == change_token(
            self.name, _gone(plan), plan.deleted_entries
        )
        if not is_approved:
            recent.add(time.time(), plan.replaced_entries if do_wait else plan.deleted_entries)
        elif not do_wait:
            recent.approve()
        return is_approved

    async def _tell(self, copy: Copy, plan: Plan, waiting: int, steps: int) -> None:
        """Say what was published, and what of it was not."""
        refused = dict(self.board.status.refused_paths) | dict(plan.refused)
        if refused:
            still = await self._work(lambda: copy.still_refused(refused))
            refused = {path: why for path, why in refused.items() if path in still}
        self.board.update(
            waiting=waiting,
            troubles=self._troubles(),
            refused_paths=tuple(list(refused.items())[:100]),
            refused=len(refused),
            published=self.board.status.published + steps,
        )
        await self._published()

    async def _read_here(self, copy: Copy, changes: Sequence[Change]) -> None:
        """Files that are announced with a digest, and lie here already but were never read: they need not be fetched."""
        unread = await self._work(lambda: copy.unread(changes))
        if unread:
            self.board.update(activity=Activity.COMPARING)
            root = copy.root
            read = await asyncio.to_thread(read_here, root, unread)
            await self._work(lambda: copy.keep_digests(read))

    async def check_emptied(self, copy: Copy, changes: Sequence[Change]) -> None:
        """Held when changes of a comparison leave nothing of the tree, however small it is: a disk that is not mounted
        there looks just so, and a plain server does not know that it should be."""
        if any(change.op is not Op.DELETE for change in changes if change.path) or not any(c.path for c in changes):
            return
        plan = await self._work(lambda: copy.plan(changes))
        entries = (await self._work(copy.size)).entries
        if plan.deleted_entries < entries - 1:  # the root itself is counted
            return
        none = DeleteLimits(0, 0.0, 0)
        objection = check_deletes(self.name, _gone(plan), plan.deleted_entries, entries, none, self.approved)
        if objection is not None:
            raise Held(objection)

    async def _guard(self, copy: Copy, plan: Plan, recent: int) -> None:
        """Held when the batch deletes too much."""
        limits = self.tree.deletes
        if plan.deleted_entries > limits.floor:
            self.board.update(entries=(await self._work(copy.size)).entries)
        objection = check_deletes(
            self.name,
            _gone(plan),
            plan.deleted_entries,
            self.board.status.entries,
            DeleteLimits(limits.files, limits.share, limits.floor),
            self.approved,
            recent,
        )
        if objection is not None:
            raise Held(objection)
        self.board.update(held=None)

    async def _make_room(self, copy: Copy, plan: Plan, left: frozenset[bytes], staged: Written) -> None:
        """NoRoom unless there is room, without what nobody wants: versions whose time is over, what an earlier try left."""
        fetches = (*plan.payload, *plan.indexes)
        size = sum(fetch.entry.size for fetch in fetches if fetch.entry.path not in left)
        if self._full(copy, size, len(fetches)) is None:
            return
        await self._work(copy.tidy)
        if self._full(copy, size, len(fetches)) is None:
            return
        if not staged:
            # What is cut and gone on from takes its place twice, for a while.
            await self._work(copy.clear_stage)
        if (full := self._full(copy, plan.fetch_bytes, len(fetches))) is not None:
            raise NoRoom(full.what, full.fix)

    def _full(self, copy: Copy, size: int, files: int) -> Objection | None:
        reserve = Reserve(self.tree.reserve.size, self.tree.reserve.share)
        return check_space(self.tree.path, size, files, copy.space(), reserve)

    async def _fetch(
        self, copy: Copy, parent: Supplier, plan: Plan, now: float, staged: Written
    ) -> tuple[dict[bytes, str], bytes | None]:
        """Bring the files of a plan that are not `staged` into the stage: (those that did not come, with the reason; a path
        that the parent sent wrong once too often).

        Indexes first: one is taken only as it was announced, so what it names is in this batch or was before; and at an
        origin that never rests, one that was fetched after all the payload would mostly be another by then.
        """
        is_sealed = await self._work(lambda: copy.is_sealed)
        due = frozenset(self.retries.due(now))
        resting = {t.path: t.why for t in self.retries.troubles() if t.path not in due}
        failed: dict[bytes, str] = {}
        liar: bytes | None = None
        total = sum(fetch.entry.size for fetch in (*plan.payload, *plan.indexes))
        fetching = Fetching(len(plan.payload) + len(plan.indexes), total, time.monotonic())
        self.board.update(activity=Activity.FETCHING, fetching=fetching)
        try:
            for fetches in (plan.indexes, plan.payload):
                here = [fetch.entry for fetch in fetches if fetch.entry.path in staged]
                fetching.took(len(here), sum(entry.size for entry in here))
                wanted = [f for f in fetches if f.entry.path not in resting and f.entry.path not in staged]
                if is_sealed and (unsaid := undigested(f.entry for f in fetches)):
                    failed |= unsaid
                    wanted = [f for f in wanted if f.entry.path not in unsaid]
                failed |= {f.entry.path: resting[f.entry.path] for f in fetches if f.entry.path in resting}
                if wanted:
                    came_not = await self._bringer.bring(copy, parent, wanted, fetching, staged)
                    liar = self._wrong.judge(came_not) or liar
                    failed |= came_not
        finally:
            self.totals.fetched_files += fetching.done_files
            self.totals.fetched_bytes += fetching.done_bytes
        checked = await self._work(lambda: copy.check_staged(plan.steps, staged))
        return checked | failed, liar  # who tried it knows better why

    async def _bring_attributes(self, copy: Copy, parent: Supplier, plan: Plan) -> None:
        """Have at hand what directories and symlinks are given besides mode and time; what cannot be had is named."""
        if not copy.layout.kept:
            return
        paths = sorted({step.path for step in plan.steps if step.do in (Do.MAKE, Do.SYMLINK, Do.ATTR)})
        for path in paths:
            self._bare.pop(path, None)
        layout = copy.layout
        await self._work(lambda: clear_attributes(layout))
        if not paths:
            return
        room = os.fsdecode(layout.attributes)
        result = await pull_attributes(parent.connector(self.name), self._bringer.options(copy), room, paths)
        if result.verdict is Verdict.AGAIN:
            raise ParentError(f"rsync of tree {self.name}: {result.text}", "tried again")
        failed = self._bringer.judge(result)
        for path in failed.keys() - result.vanished:  # what vanished is told of in the next batch
            if len(self._bare) < MAX_BARE:
                self._bare[path.removeprefix(b"./")] = f"its attributes cannot be kept: {failed[path]}"
            _log.warning("attributes_failed", tree=self.name, path=os.fsdecode(path), why=failed[path])

    async def find_unlike(self, copy: Copy, parent: Supplier, paths: Sequence[bytes]) -> list[tuple[bytes, str]]:
        """Those of `paths` that have other attributes at the parent than here, and which."""
        where = parent.connector(self.name)
        result, found = await find_unlike(where, self._bringer.options(copy), os.fsdecode(copy.root), paths)
        if result.verdict not in (Verdict.DONE, Verdict.PARTIAL):
            raise ParentError(f"rsync of tree {self.name}: {result.text}", "tried again")
        return found

    def _forget_bare(self, change: Change) -> None:
        """What lacked attributes is told of anew, or is gone with all below it."""
        if not self._bare:
            return
        self._bare.pop(change.path, None)
        if change.op is not Op.UPSERT:
            gone = (change.source or change.path) + b"/"
            self._bare = {path: why for path, why in self._bare.items() if not path.startswith(gone)}

    def _troubles(self) -> tuple[tuple[str, str, int], ...]:
        waiting = tuple((os.fsdecode(t.path), t.why, t.tries) for t in self.retries.troubles()[:20])
        return (waiting + tuple((os.fsdecode(path), why, 1) for path, why in self._bare.items()))[:20]

    def _settle_retries(self, plan: Plan, failed: dict[bytes, str], now: float) -> None:
        """Each failed path has a back-off of its own; what came, or is not wanted any more, is forgotten."""
        wanted = {step.path for step in plan.steps if step.do is Do.PUT}
        for trouble in self.retries.troubles():
            if trouble.path not in failed:
                self.retries.forget(trouble.path)
        due = {trouble.path for trouble in self.retries.troubles() if trouble.due > now}
        for path, why in failed.items():
            if path in wanted and path not in due:
                self.retries.failed(path, why, now, self._rng)

    async def _hook(self, which: str, plan: Plan) -> None:
        hooks = self.tree.hooks
        command = hooks.before if which == "before" else hooks.after
        if not command or not plan.steps:
            return
        environment = {
            "NEARPATH_TREE": self.name,
            "NEARPATH_PATH": self.tree.path,
            "NEARPATH_STEPS": str(len(plan.steps)),
            "NEARPATH_DELETES": str(plan.deleted_entries),
        }
        why = await run_hook(command, environment, hooks.timeout)
        if not why:
            return
        if which == "before":
            raise NearpathError(f"tree {self.name}: the hook before publishing {why}", "the publish waits for it")
        _log.warning("hook_failed", tree=self.name, why=why)
        self.board.update(hook_failed=why)


def are_in_order(changes: Sequence[Change]) -> bool:
    """Whether they are as a journal's page has them: no file is told of twice, or before a rename that may concern it.

    Only then each file that is told of lies at its path after the last of them. A hostile parent could else have one
    content proved, and another one recorded as proved.
    """
    seen: set[bytes] = set()
    for change in changes:
        if change.op is Op.RENAME and seen:
            return False
        if change.op is Op.UPSERT and change.entry is not None and change.entry.kind is not Kind.DIRECTORY:
            if change.path in seen:
                return False
            seen.add(change.path)
    return True


def renew_stage_of(copy: Copy, plan: Plan) -> frozenset[bytes]:
    """An empty stage, but for what an earlier try left of large files of this plan; those that lie there whole."""
    fetches = (*plan.payload, *plan.indexes)
    wanted = {fetch.entry.path: fetch.entry for fetch in fetches if fetch.entry.size >= WORTH_BYTES}
    return renew_stage(copy.layout, wanted, os.fsencode(copy.partial))


def _gone(plan: Plan) -> tuple[bytes, ...]:
    """What a person is asked about, and gives a word for."""
    return (*plan.deletes, *plan.emptied)


def _some(failed: Mapping[bytes, str]) -> str:
    path, why = next(iter(failed.items()))
    return f"{os.fsdecode(path)!r} ({why})"
