"""The page after next: while one page of the parent's journal is published, the next one is asked for, with its files.

At most one page is held, whose small files lie in a directory of their own beside the stage, and the changes of the page
behind it. Nothing here counts as published: the parent is told only of the cursor that is, and whatever goes wrong, or is
not wanted any more, is dropped and asked for again in the usual way. Whether a file is the one that a plan needs is for
`check_staged` to say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from core.errors import NearpathError
from syncd.copy.io_bring import Files
from syncd.copy.io_copy import Copy
from syncd.model import Change, Entry
from syncd.source.row import Written
from syncd.transfer.wire import Batch, Behind, Cursor

WORTH = 500
"""Changes in a page from which on it takes long enough to publish; below, the next page has next to nothing in it."""
MAX_BYTES = 64 << 20
"""Of files that are fetched without knowing whether they are wanted."""


class Pages(Protocol):
    """The parent, as it is asked here: see `io_parent.Parent`."""

    async def journal(
        self, tree: str, after: Cursor, wait_s: float = ..., published: Cursor | None = None
    ) -> Batch | Behind:
        """What came after `after`."""

    @property
    def files(self) -> Files:
        """How small files are asked for."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer to a question asked at `asked_s` (monotonic); `staged`: files that lie in the stage already.

    `prove`: the parent was asked to prove it.
    """

    answer: Batch | Behind
    asked_s: float
    staged: Written = field(default_factory=dict)
    prove: bool = False


Choose = Callable[[Copy, Sequence[Change]], Awaitable[Sequence[Entry]]]
"""Which files of changes may be brought before the changes are planned."""


class Ahead:
    """See the module. `work` runs something in the thread that owns the copy. For one task at a time."""

    def __init__(
        self, tree: str, work: Callable[[Callable[[], Any]], Awaitable[Any]], choose: Choose, hard_links: bool
    ) -> None:
        self._tree = tree
        self._hard_links = hard_links
        self._work = work
        self._choose = choose
        self._task: asyncio.Task[Page | None] | None = None
        self._of: tuple[Copy, Pages, Cursor] | None = None
        self._next: tuple[Pages, Cursor, asyncio.Task[Page]] | None = None
        """what was asked for while files come, once it is known that there is more"""

    def begin(self, copy: Copy, parent: Pages, published: Cursor, page: Batch) -> None:
        """Ask for what comes after `page`, which is about to be published on top of `published`."""
        if self._task is None and len(page.changes) >= WORTH:
            self._of = copy, parent, page.cursor
            self._task = asyncio.create_task(self._ask(copy, parent, published, page.cursor), name="ahead")

    async def take(self, copy: Copy, parent: Pages, cursor: Cursor) -> Page | None:
        """The page after `cursor`, its files in the stage; None when it is not here: then it is to be asked for."""
        if self._task is None or self._of != (copy, parent, cursor):
            await self.drop()
            return None
        page = await self._task
        self._task = None
        if page is not None and page.staged:
            await self._work(copy.take_ahead)
        return page

    async def drop(self) -> None:
        """Forget the page; nothing is written for it any more when this returns."""
        task, self._task = self._task, None
        if task is not None and self._of is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._clear(self._of[0])
        self._forget_next()

    async def _clear(self, copy: Copy) -> None:
        """Give back the space."""
        with suppress(NearpathError, OSError):
            await asyncio.to_thread(copy.clear_ahead)

    async def _ask(self, copy: Copy, parent: Pages, published: Cursor, after: Cursor) -> Page | None:
        try:
            page = await self._page(parent, published, after)
            answer = page.answer
            if isinstance(answer, Behind) or not answer.changes:
                return None
            if answer.last - answer.cursor.sequence >= WORTH:
                more = asyncio.create_task(self._journal(parent, published, answer.cursor), name="ahead-journal")
                self._next = parent, answer.cursor, more
            entries = await self._choose(copy, answer.changes)
        except NearpathError:
            return None
        if not entries:
            return page
        staged: Written = {entry.path: None for entry in entries}
        try:
            stage = await asyncio.to_thread(copy.clear_ahead)
            failed = await parent.files(self._tree, entries, stage, self._hard_links, staged)
        except (NearpathError, OSError):
            await self._clear(copy)
            return page
        for path in failed:
            staged.pop(path, None)
        return replace(page, staged=staged)

    async def _page(self, parent: Pages, published: Cursor, after: Cursor) -> Page:
        if self._next is not None and self._next[:2] == (parent, after):
            asked, self._next = self._next[2], None
            return await asked
        self._forget_next()
        return await self._journal(parent, published, after)

    async def _journal(self, parent: Pages, published: Cursor, after: Cursor) -> Page:
        asked_s = time.monotonic()
        return Page(await parent.journal(self._tree, after, 0.0, published), asked_s)

    def _forget_next(self) -> None:
        if self._next is not None:
            self._next[2].cancel()
            self._next[2].add_done_callback(lambda task: task.cancelled() or task.exception())
            self._next = None
