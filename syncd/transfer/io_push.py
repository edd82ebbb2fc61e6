"""Pushing a tree to a plain mirror: `rsync ... user@node:/mirror/`, driven by the journal as a child would be.

The other side has no syncd, so files come into place one by one, payload before indexes, deletes last; there is no
verification but rsync's own. A mirror that is new, or was away for too long, gets the whole tree compared by rsync. Nobody
there would hold a mass delete: a dry run tells what the mirror would lose, and the guard is asked here.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

from core.config_sync import Push, Tree
from core.errors import NearpathError
from core.io_log import get_logger
from syncd.model import Change, Kind, Op
from syncd.publish.guard import DeleteLimits, Objection, RecentDeletes, check_deletes
from syncd.publish.steps import Ranks
from syncd.store.io_ledger import Ledger
from syncd.store.io_offer import Offer
from syncd.transfer import wire
from syncd.transfer.io_pace import Pace
from syncd.transfer.io_rsync import find_loss, push, push_whole
from syncd.transfer.loss import Loss, old_paths
from syncd.transfer.plain import transport_of
from syncd.transfer.rsync import Options, Result, Verdict
from syncd.transfer.streams import share

T = TypeVar("T")

AGAIN_S = 5.0
MAX_AGAIN_S = 600.0
PUSHED = "push:"
"""With this in front, the name of a mirror is that of a child in the journal; no node can have such a name."""

_log = get_logger("push")


class PushHeld(NearpathError):
    """A guard holds what would be deleted at the mirror until it is approved, or the tree changes."""

    def __init__(self, objection: Objection) -> None:
        super().__init__(objection.what, objection.fix)
        self.objection = objection


class Pusher:
    """One plain mirror of one tree; begins by itself, never gives up."""

    def __init__(self, tree_name: str, tree: Tree, name: str, target: Push, offer: Offer) -> None:
        self.name = name
        self.target = target
        self.error = ""
        self.held: Objection | None = None
        self.pushed = 0
        self._child = f"{PUSHED}{name}"
        self._tree_name = tree_name
        self._tree = tree
        self._ranks = Ranks(tree.indexes)
        self._offer = offer
        self._transport = transport_of(target.to, target.password_file)
        self._pace = Pace(tree.bandwidth)
        self._approved = ""
        self._looked_at = 0
        """up to which sequence number what is held was looked at"""
        self._nudge = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to push."""
        self._task = asyncio.create_task(self._run(), name=self._child)

    async def stop(self) -> None:
        """End; what was not pushed is pushed at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def approve(self, token: str) -> bool:
        """Let the held deletes through; False when nothing with this token is held."""
        if self.held is None or self.held.token != token.strip().lower():
            return False
        self._approved = self.held.token
        self._nudge.set()
        return True

    async def _run(self) -> None:
        again_s = AGAIN_S
        while True:
            try:
                await self._step()
                self.error, self.held, again_s = "", None, AGAIN_S
            except PushHeld as held:
                if self.held is None or self.held.token != held.objection.token:
                    _log.warning("push_held", tree=self._tree_name, to=self.target.to, why=str(held))
                self.error, self.held = "", held.objection
                await self._rest_held()
            except (NearpathError, OSError) as error:
                if str(error) != self.error:
                    _log.warning("push_failed", tree=self._tree_name, to=self.target.to, why=str(error))
                self.error, self.held = str(error), None
                await asyncio.sleep(again_s)
                again_s = min(again_s * 2, MAX_AGAIN_S)
            except Exception as error:
                # A fault of ours must not end the pushing to this mirror.
                _log.exception("push_crashed", tree=self._tree_name, to=self.target.to)
                self.error, self.held = f"an internal fault: {error!r}", None
                await asyncio.sleep(MAX_AGAIN_S)

    async def _rest_held(self) -> None:
        """Until somebody approves; or there is news, which may be the same files again: but not at each of them.

        What was looked at may have been in the midst of something, half of a chain of renames, say.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(AGAIN_S):
                await self._nudge.wait()
        if not self._nudge.is_set():
            nudge = asyncio.ensure_future(self._nudge.wait())
            news = asyncio.ensure_future(self._offer.changed(self._looked_at))
            try:
                await asyncio.wait((nudge, news), timeout=MAX_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                nudge.cancel()
                news.cancel()
        self._nudge.clear()

    async def _step(self) -> None:
        """Bring the mirror to the journal's next page, or wait for one."""
        journal_id = await self._offer.run(lambda ledger: ledger.journal_id)
        sequence = self._offer.seen.get(self._child, (-1, 0.0))[0]
        if sequence < 0:
            answer = await self._offer.journal(wire.Cursor(), 1)
        else:
            answer = await self._offer.journal(wire.Cursor(journal_id, sequence), wire.MAX_BATCH)
        if answer is None:
            await asyncio.sleep(1.0)
            return
        self._looked_at = answer.cursor.sequence
        if isinstance(answer, wire.Behind):
            await self._push_whole()
            await self._offer.moved(self._child, answer.cursor)
        elif answer.changes:
            await self._push(answer.changes)
            await self._offer.moved(self._child, answer.cursor)
        else:
            await self._offer.changed(sequence)

    async def _push_whole(self) -> None:
        _log.info("push_whole", tree=self._tree_name, to=self.target.to)
        root = await self._root()
        delete = self.target.delete
        result, loss = await self._paced(lambda options: find_loss(self._transport, options, root, None, delete))
        self._judge(result)
        lost = await self._guard(loss, frozenset())
        self._judge(await self._paced(lambda options: push_whole(self._transport, options, root)))
        if loss.deleted:
            most = len(loss.deleted)
            self._judge(await self._paced(lambda options: push_whole(self._transport, options, root, True, most)))
        await self._count(lost)

    async def _push(self, changes: Sequence[Change]) -> None:
        renames = [(change.source, change.path) for change in changes if change.op is Op.RENAME]
        gone = [change.path for change in changes if change.op is Op.DELETE] + [source for source, _ in renames]
        come = [change.path for change in changes if change.op is Op.UPSERT]
        renamed: list[bytes] = []
        for _, path in renames:
            # rsync does not know of renames; with --files-from it does not descend either.
            renamed += await self._offer.run(lambda ledger, path=path: ledger.paths_below(path))  # type: ignore[misc]
        root = await self._root()
        doomed, lost = await self._look_at_loss(
            root, gone if self.target.delete else [], _empty(changes), renamed, renames
        )
        ranked: dict[int, list[bytes]] = {}
        for path in dict.fromkeys(come + renamed):
            ranked.setdefault(self._ranks.of(path), []).append(path)
        for rank in sorted(ranked):
            lost += await self._bring(root, ranked[rank])
        if doomed:
            doomed += [b""] * (b"" in come)  # deletes below it move its time
            # What came back meanwhile is pushed once more, what did not is deleted.
            self._judge(await self._paced(lambda options: push(self._transport, options, root, doomed, delete=True)))
        await self._count(lost)
        self.pushed += len(come) + len(renamed) + len(doomed)

    async def _bring(self, root: str, paths: list[bytes]) -> int:
        """Push paths of one rank; entries that were lost, since something else had their place."""
        result = await self._paced(lambda options: push(self._transport, options, root, paths))
        if not (self.target.delete and result.verdict is Verdict.PARTIAL and result.failed):
            self._judge(result)
            return 0
        # A directory there may be in the way of what is none any more: rsync removes only empty ones unasked.
        failed = list(result.failed)
        result, loss = await self._paced(lambda options: find_loss(self._transport, options, root, failed, True))
        self._judge(result)
        lost = await self._guard(loss, frozenset())
        self._judge(await self._paced(lambda options: push(self._transport, options, root, failed, delete=True)))
        return lost

    # -- what the mirror would lose

    async def _look_at_loss(
        self, root: str, gone: list[bytes], empty: list[bytes], renamed: list[bytes], renames: list[tuple[bytes, bytes]]
    ) -> tuple[list[bytes], int]:
        """(paths of `gone` that the mirror has, and are to be deleted there; entries that count). PushHeld: too many."""
        paths = list(dict.fromkeys(gone + empty))
        if not paths:
            return [], 0
        result, loss = await self._paced(lambda options: find_loss(self._transport, options, root, paths, bool(gone)))
        self._judge(result)
        lost = await self._guard(loss, old_paths(renamed, renames))
        deleted = frozenset(loss.deleted)
        return [path for path in dict.fromkeys(gone) if path in deleted], lost

    async def _guard(self, loss: Loss, moved: frozenset[bytes]) -> int:
        """How many entries count as lost; PushHeld when that is too much."""
        lost = [path for path in loss.deleted if path not in moved] + loss.emptied
        if not lost:
            return 0
        limits = self._tree.deletes
        # What is deleted here is not in the index any more, but the mirror has it.
        entries = (await self._offer.run(Ledger.size)).entries + len(lost)
        objection = check_deletes(
            self._tree_name,
            lost,
            len(lost),
            entries,
            DeleteLimits(limits.files, limits.share, limits.floor),
            self._approved,
            (await self._recent()).count(time.time()),
            self.target.to,
        )
        if objection is not None:
            raise PushHeld(objection)
        return len(lost)

    async def _recent(self) -> RecentDeletes:
        """What was deleted there lately; also by a daemon before this one."""
        kept = await self._offer.run(lambda ledger: ledger.kept(self._child))
        return RecentDeletes(kept=[(at, count) for at, count in json.loads(kept or b"[]")])

    async def _count(self, lost: int) -> None:
        """So many entries were deleted there; an approval is used up by what it was given for."""
        if not lost:
            return
        recent = await self._recent()
        if self._approved:
            recent.approve()
        else:
            recent.add(time.time(), lost)
        self._approved = ""
        kept = json.dumps(recent.kept).encode()
        await self._offer.run(lambda ledger: ledger.keep(self._child, kept))

    # -- rsync

    async def _root(self) -> str:
        """The directory to push from; NearpathError when it has lost all that the tree has."""
        root = os.path.realpath(self._tree.path)  # noqa: ASYNC240 (a few lstats)
        with os.scandir(root) as names:
            is_empty = next(names, None) is None
        if is_empty and (await self._offer.run(Ledger.size)).entries > 1:
            raise NearpathError(f"{root} is empty, the tree {self._tree_name} is not", "is its disk mounted?")
        return root

    async def _paced(self, run: Callable[[Options], Awaitable[T]]) -> T:
        """`run` within the limit of the time of day: begun anew when another begins. All mirrors of a tree share it."""
        while self._pace:
            limit = self._pace.now()
            task = asyncio.ensure_future(run(self._options(share(limit, len(self._tree.push)))))
            border = asyncio.create_task(self._pace.until_changed(limit))
            try:
                await asyncio.wait((task, border), return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
            finally:
                task.cancel()
                border.cancel()
                await asyncio.gather(task, border, return_exceptions=True)
        return await run(self._options(0))

    def _options(self, limit_bytes_s: int) -> Options:
        options = Options.keeping(self._tree.keep)
        return replace(options, exclude=self._tree.exclude, limit_bytes_s=limit_bytes_s)

    def _judge(self, result: Result) -> None:
        """A file that vanished here meanwhile is told by the next page; anything else that failed is tried again."""
        # What the receiver says of its temporary files names no path of ours: partial without a reason is a failure too.
        is_unexplained = result.verdict is Verdict.PARTIAL and not result.vanished
        if result.failed or is_unexplained or result.verdict not in (Verdict.DONE, Verdict.PARTIAL):
            some = next(iter(result.failed.items()), (b"", result.text))
            why = some[1].replace("at the parent", "here")  # whence files come, as a copy would say it
            raise NearpathError(f"{self.target.to}: {os.fsdecode(some[0])} {why}".strip(), "it is tried again")


def _empty(changes: Sequence[Change]) -> list[bytes]:
    """Files that have no content now."""
    return [
        change.path
        for change in changes
        if change.entry is not None
        and change.op is Op.UPSERT
        and change.entry.kind is Kind.FILE
        and not change.entry.size
    ]
