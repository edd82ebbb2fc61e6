"""Pushing a tree to a plain mirror: `rsync ... user@node:/mirror/`, driven by the journal as a child would be.

The other side has no syncd, so files come into place one by one, payload before indexes, deletes last; there is no
verification but rsync's own. A mirror that is new, or was away for too long, gets the whole tree compared by rsync.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from core.config_sync import Push, Tree
from core.errors import NearpathError
from core.io_log import get_logger
from syncd.model import Change, Op
from syncd.publish.steps import Ranks
from syncd.store.io_offer import Offer
from syncd.transfer import wire
from syncd.transfer.io_rsync import push, push_whole
from syncd.transfer.plain import transport_of
from syncd.transfer.rsync import Options, Result, Verdict

AGAIN_S = 5.0
MAX_AGAIN_S = 600.0

_log = get_logger("push")


class Pusher:
    """One plain mirror of one tree; begins by itself, never gives up."""

    def __init__(self, tree_name: str, tree: Tree, name: str, target: Push, offer: Offer) -> None:
        self.name = name
        self.target = target
        self.error = ""
        self.pushed = 0
        self._child = f"push:{name}"
        self._tree_name = tree_name
        self._tree = tree
        self._ranks = Ranks(tree.indexes)
        self._offer = offer
        self._transport = transport_of(target.to, target.password_file)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to push."""
        self._task = asyncio.create_task(self._run(), name=self._child)

    async def stop(self) -> None:
        """End; what was not pushed is pushed at the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        again_s = AGAIN_S
        while True:
            try:
                await self._step()
                self.error, again_s = "", AGAIN_S
            except (NearpathError, OSError) as error:
                if str(error) != self.error:
                    _log.warning("push_failed", tree=self._tree_name, to=self.target.to, why=str(error))
                self.error = str(error)
                await asyncio.sleep(again_s)
                again_s = min(again_s * 2, MAX_AGAIN_S)

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
        elif isinstance(answer, wire.Behind):
            await self._push_whole()
            await self._offer.moved(self._child, answer.cursor)
        elif answer.changes:
            await self._push(answer.changes)
            await self._offer.moved(self._child, answer.cursor)
        else:
            await self._offer.changed(sequence)

    async def _push_whole(self) -> None:
        _log.info("push_whole", tree=self._tree_name, to=self.target.to)
        root = os.path.realpath(self._tree.path)  # noqa: ASYNC240 (a few lstats)
        self._judge(await push_whole(self._transport, self._options(), root, delete=False))
        if self.target.delete:
            self._judge(await push_whole(self._transport, self._options(), root, delete=True))

    async def _push(self, changes: Sequence[Change]) -> None:
        gone = [change.path for change in changes if change.op is Op.DELETE]
        gone += [change.source for change in changes if change.op is Op.RENAME]
        come = [change.path for change in changes if change.op is Op.UPSERT and change.path]
        for change in changes:
            if change.op is Op.RENAME:
                # rsync does not know of renames; with --files-from it does not descend either.
                come += await self._offer.run(lambda ledger, path=change.path: ledger.paths_below(path))  # type: ignore[misc]
        root = os.path.realpath(self._tree.path)  # noqa: ASYNC240
        ranked: dict[int, list[bytes]] = {}
        for path in dict.fromkeys(come):
            ranked.setdefault(self._ranks.of(path), []).append(path)
        for rank in sorted(ranked):
            self._judge(await push(self._transport, self._options(), root, ranked[rank]))
        if gone and self.target.delete:
            # What came back meanwhile is pushed once more, what did not is deleted.
            self._judge(await push(self._transport, self._options(), root, gone, delete=True))
        self.pushed += len(come) + len(gone)

    def _options(self) -> Options:
        keep = self._tree.keep
        return Options("hard-links" in keep, "sparse" in keep, "xattrs" in keep, "acls" in keep, "owners" in keep)

    def _judge(self, result: Result) -> None:
        """A file that vanished here meanwhile is told by the next page; anything else that failed is tried again."""
        # What the receiver says of its temporary files names no path of ours: partial without a reason is a failure too.
        is_unexplained = result.verdict is Verdict.PARTIAL and not result.vanished
        if result.failed or is_unexplained or result.verdict not in (Verdict.DONE, Verdict.PARTIAL):
            some = next(iter(result.failed.items()), (b"", result.text))
            raise NearpathError(f"{self.target.to}: {os.fsdecode(some[0])} {some[1]}".strip(), "it is tried again")
