"""The intake of a copy: a batch of changes planned, guarded, fetched, published, and what failed kept for another time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol, TypeVar

from core.config_sync import Tree
from core.errors import NearpathError
from core.io_log import get_logger
from syncd.copy.child_status import Activity, ChildStatus, Fetching, Totals
from syncd.copy.io_ahead import MAX_BYTES
from syncd.copy.io_copy import Copy
from syncd.copy.note import Note
from syncd.io_hooks import run_hook
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.guard import DeleteLimits, Objection, RecentDeletes, Reserve, check_deletes, check_space
from syncd.publish.io_publish import DiskFull
from syncd.publish.plan import Fetch, Plan
from syncd.publish.steps import Do, hold_back
from syncd.source.row import Written
from syncd.store.coalesce import coalesce
from syncd.transfer.io_parent import ParentError, ParentRefuses
from syncd.transfer.io_rsync import pull_all
from syncd.transfer.rsync import Arrived, Options, Progress, Result, Transport, Verdict
from syncd.transfer.small import divide
from syncd.transfer.streams import Retries, Window, limit_at, split
from syncd.transfer.wire import Cursor

T = TypeVar("T")

PART = 10_000
"""Changes published at once when a whole tree is brought up to another: progress is kept, and memory stays bounded."""

_log = get_logger("intake")


class Held(NearpathError):
    """A guard holds the batch until it is approved, or the tree changes."""

    def __init__(self, objection: Objection) -> None:
        super().__init__(objection.what, objection.fix)
        self.objection = objection


class Incomplete(NearpathError):
    """Some files of a version could not be fetched; clients see the version before."""


class NoRoom(NearpathError):
    """The disk has no room for the batch."""


class Supplier(Protocol):
    """Where the contents of files come from."""

    has_files: bool
    """whether small files may be asked for with `files`"""

    async def files(
        self,
        tree: str,
        entries: Sequence[Entry],
        stage: bytes,
        hard_links: bool = True,
        written: Written | None = None,
    ) -> dict[bytes, str]:
        """Bring small files into the directory `stage`; those that did not come, with the reason."""

    def connector(self, tree: str) -> Transport:
        """How rsync reaches the tree."""


class Board:
    """What a copy says of itself now; `on_change` is called when it may be worth a stamp."""

    def __init__(self, tree: str, on_change: Callable[[], None]) -> None:
        self.status = ChildStatus()
        self.totals = Totals()
        self.on_change = on_change
        self._tree = tree

    def update(self, **changes: Any) -> None:
        """Replace some of the status."""
        self.status = replace(self.status, **changes)

    def note(self, activity: Activity, why: str, held: Objection | None = None) -> None:
        """What the copy does now, or waits for."""
        changed = (self.status.activity, self.status.why) != (activity, why)
        self.update(activity=activity, why=why, held=held, fetching=None)
        if changed:
            if why:
                _log.warning("tree_waits", tree=self._tree, state=activity.value, why=why)
            self.on_change()


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
        self.approved = ""
        self.size_due = False
        """the number of entries is to be counted when there is time"""
        self.is_lacking = False
        """directories came from where nothing is known here: only a comparison can tell what is in them"""
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

    async def choose_ahead(self, copy: Copy, changes: Sequence[Change]) -> list[Entry]:
        """Files that may be brought before their changes are planned: small payload, a moderate lot of it, where there is
        room, and nothing slows it down on purpose."""
        if self.tree.mode == "atomic" or self.tree.bandwidth:
            return []
        entries = [
            change.entry
            for change in changes
            if change.op is Op.UPSERT
            and change.entry is not None
            and change.entry.kind is Kind.FILE
            and not change.source
            and not copy.ranks.of(change.path)
        ]
        small, _ = divide([Fetch(entry) for entry in entries], self._options(copy))
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
        # In the form of a journal's page again: what waited may have been renamed or deleted meanwhile.
        every = tuple(coalesce((*later, *changes))) if later else tuple(changes)
        plan = await self._work(lambda: copy.plan(every))
        if plan.deleted_entries > self.tree.deletes.floor:
            self.board.update(entries=(await self._work(copy.size)).entries)
        self._guard(copy, plan, recent.count(time.time()))
        if plan.lacking:
            # Directories moved there from where nothing is known here: the comparison after this brings what is in them.
            self.is_lacking = True
            _log.info("directory_unknown", tree=self.name, path=os.fsdecode(plan.lacking[0]))
        for change in changes:
            self.retries.forget(change.path)  # there is news of it: what was wrong with it before says nothing
        await self._hook("before", plan)
        staged: Written = {} if ahead is None or later else ahead
        if not staged:
            await self._work(copy.clear_stage)
        failed = await self._fetch(copy, parent, plan, now, staged)
        failed |= await self._work(lambda: copy.check_staged(plan.steps, staged))
        steps, waiting = hold_back(plan.steps, failed, copy.ranks)
        if waiting and self.tree.mode == "atomic":
            raise Incomplete(
                f"{len(failed):,} files did not come, such as {_some(failed)}", "a version is whole or not: tried again"
            )
        self._settle_retries(plan, failed, now)
        if self.approved:
            recent.approve()
        else:
            recent.add(time.time(), plan.deleted_entries)
        counted = recent.kept if recent.kept != kept else None
        note = Note(every, waiting, tuple(path for path, _ in plan.refused), cursor, counted)
        # How far the fetching came stays to be seen: a first sync is fetched and published in turns.
        self.board.update(activity=Activity.PUBLISHING)
        await self._work(lambda: copy.publish(steps, note, staged))
        self.approved = ""
        refused = dict(self.board.status.refused_paths) | dict(plan.refused)
        if refused:
            still = await self._work(lambda: copy.still_refused(refused))
            refused = {path: why for path, why in refused.items() if path in still}
        self.board.update(
            waiting=len(waiting),
            troubles=tuple((os.fsdecode(t.path), t.why, t.tries) for t in self.retries.troubles()[:20]),
            refused_paths=tuple(list(refused.items())[:100]),
            refused=len(refused),
            published=self.board.status.published + len(steps),
        )
        await self._published()
        if steps:
            await self._hook("after", plan)
        await self._work(copy.tidy)
        self.size_due = True

    def _guard(self, copy: Copy, plan: Plan, recent: int) -> None:
        limits = self.tree.deletes
        objection = check_deletes(
            self.name,
            (*plan.deletes, *plan.emptied),
            plan.deleted_entries,
            self.board.status.entries,
            DeleteLimits(limits.files, limits.share, limits.floor),
            self.approved,
            recent,
        )
        if objection is not None:
            raise Held(objection)
        full = self._full(copy, plan.fetch_bytes, len(plan.payload) + len(plan.indexes))
        if full is not None:
            raise NoRoom(full.what, full.fix)

    def _full(self, copy: Copy, size: int, files: int) -> Objection | None:
        reserve = Reserve(self.tree.reserve.size, self.tree.reserve.share)
        return check_space(self.tree.path, size, files, copy.space(), reserve)

    async def _fetch(self, copy: Copy, parent: Supplier, plan: Plan, now: float, staged: Written) -> dict[bytes, str]:
        """Bring the files of a plan that are not `staged` into the stage; those that did not come, with the reason.

        Indexes first: one is taken only as it was announced, so what it names is in this batch or was before; and at an
        origin that never rests, one that was fetched after all the payload would mostly be another by then.
        """
        due = frozenset(self.retries.due(now))
        resting = {t.path: t.why for t in self.retries.troubles() if t.path not in due}
        failed: dict[bytes, str] = {}
        total = sum(fetch.entry.size for fetch in (*plan.payload, *plan.indexes))
        fetching = Fetching(len(plan.payload) + len(plan.indexes), total, time.monotonic())
        self.board.update(activity=Activity.FETCHING, fetching=fetching)
        try:
            for fetches in (plan.indexes, plan.payload):
                here = [fetch.entry for fetch in fetches if fetch.entry.path in staged]
                fetching.took(len(here), sum(entry.size for entry in here))
                wanted = [f for f in fetches if f.entry.path not in resting and f.entry.path not in staged]
                failed |= {f.entry.path: resting[f.entry.path] for f in fetches if f.entry.path in resting}
                if wanted:
                    failed |= await self._bring(copy, parent, wanted, fetching, staged)
        finally:
            self.totals.fetched_files += fetching.done_files
            self.totals.fetched_bytes += fetching.done_bytes
        return failed

    async def _bring(
        self, copy: Copy, parent: Supplier, fetches: Sequence[Fetch], fetching: Fetching, staged: Written
    ) -> dict[bytes, str]:
        options = self._options(copy)
        small, large = divide(fetches, options) if parent.has_files else ([], list(fetches))
        failed: dict[bytes, str] = {}
        if small:
            entries = [fetch.entry for fetch in small]
            try:
                failed |= await parent.files(self.name, entries, copy.layout.stage, options.hard_links, staged)
                fetching.took(len(small), sum(entry.size for entry in entries))
            except ParentRefuses:
                raise
            except ParentError as error:
                # An older parent, or one that serves under another user: rsync can do it all the same.
                _log.info("files_by_rsync", tree=self.name, why=str(error))
                large = list(fetches)
                for fetch in large:
                    staged.pop(fetch.entry.path, None)
        if not large:
            return failed

        def watch(what: Arrived | Progress) -> None:
            if isinstance(what, Arrived):
                fetching.took(1, what.size)

        stage, batches = os.fsdecode(copy.layout.stage), split(large, self.tree.streams)
        results = await pull_all(parent.connector(self.name), options, stage, batches, watch, self.tree.streams)
        for result in results:
            failed |= self._judge(result)
        return failed

    def _options(self, copy: Copy) -> Options:
        keep = self.tree.keep
        return Options(
            hard_links="hard-links" in keep,
            sparse="sparse" in keep,
            xattrs="xattrs" in keep,
            acls="acls" in keep,
            owners="owners" in keep,
            compress=self.tree.compress,
            basis=os.fsdecode(copy.root),
            partial=copy.partial,
            limit_bytes_s=self._limit(),
        )

    def _judge(self, result: Result) -> dict[bytes, str]:
        if result.verdict is Verdict.LOCAL:
            raise DiskFull(f"{self.tree.path}: {result.text}", "make space; syncd goes on by itself")
        if result.verdict is Verdict.FATAL:
            raise NearpathError(f"rsync of tree {self.name}: {result.text}", "see both nodes' rsync and configuration")
        if result.verdict is Verdict.AGAIN and not result.arrived:
            raise ParentError(f"rsync of tree {self.name}: {result.text}", "tried again")
        return result.failed | dict.fromkeys(result.vanished, "it vanished at the parent")

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

    def _limit(self) -> int:
        if not self.tree.bandwidth:
            return 0
        schedule = [Window(*rule.window()[:2], rule.per_second, rule.window()[2]) for rule in self.tree.bandwidth]
        local = datetime.now().astimezone().tzinfo
        return limit_at(schedule, time.time(), local) if local is not None else 0

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


def in_parts(changes: Sequence[Change], rank: Callable[[bytes], int]) -> list[tuple[Change, ...]]:
    """Changes from a comparison in parts that can be published one after the other: payload, indexes by rank, deletes."""
    upserts = [change for change in changes if change.op is Op.UPSERT]
    deletes = tuple(change for change in changes if change.op is not Op.UPSERT)
    upserts.sort(key=lambda change: (rank(change.path) if change.path else 0, change.path))
    parts = [tuple(upserts[i : i + PART]) for i in range(0, len(upserts), PART)]
    if not parts:
        return [deletes] if deletes else []
    # What is replaced by something of another kind must go with its replacement: so deletes come with the last part.
    parts[-1] += deletes
    return parts


def _some(failed: dict[bytes, str]) -> str:
    path, why = next(iter(failed.items()))
    return f"{os.fsdecode(path)!r} ({why})"


def weight(changes: Sequence[Change]) -> tuple[int, int]:
    """Files and bytes that changes bring."""
    files = [change.entry for change in changes if change.entry is not None and change.entry.kind is Kind.FILE]
    return len(files), sum(entry.size for entry in files)
