"""The page after next is asked for while one is published; it counts for nothing until it is the next."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from core.config_sync import Tree
from syncd.copy.io_ahead import WORTH, Ahead, Page
from syncd.copy.io_copy import Copy
from syncd.model import Change, Entry, Kind, Op
from syncd.source.row import Written
from syncd.transfer.io_parent import ParentError
from syncd.transfer.wire import Batch, Behind, Cursor

ID = b"j" * 16


def at(sequence: int) -> Cursor:
    return Cursor(ID, sequence)


class Pages:
    """A parent whose journal has `last` new files; it hands out WORTH at a time, and files that are not in `lacking`."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.asked: list[tuple[int, int]] = []
        """(after, published)"""
        self.lacking: set[bytes] = set()
        self.broken = False
        self.linked: list[bool] = []
        self.came = asyncio.Event()

    def page(self, after: int) -> Batch:
        last = min(self.last, after + WORTH)
        changes = tuple(
            Change(i, Op.UPSERT, b"f%d" % i, Entry(b"f%d" % i, Kind.FILE, 0o644, 1)) for i in range(after + 1, last + 1)
        )
        return Batch(changes, at(last), self.last)

    async def journal(
        self, tree: str, after: Cursor, wait_s: float = 50.0, published: Cursor | None = None
    ) -> Batch | Behind:
        assert published is not None
        self.asked.append((after.sequence, published.sequence))
        return self.page(after.sequence)

    async def files(
        self, tree: str, entries: Sequence[Entry], stage: bytes, hard_links: bool, written: Written
    ) -> dict[bytes, str]:
        self.linked.append(hard_links)
        for entry in entries:
            put(stage, entry.path)
        self.came.set()
        if self.broken:
            raise ParentError("the connection was cut", "tried again")
        return dict.fromkeys(self.lacking, "it vanished")


async def choose(copy: Copy, changes: Sequence[Change]) -> list[Entry]:
    return [change.entry for change in changes if change.entry is not None]


async def work(job: Callable[[], Any]) -> Any:
    return job()


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    tree = Tree.model_validate({"path": str(tmp_path / "tree"), "parents": ["origin"], "public_key": "00" * 32})
    return Copy("t", tree, tmp_path / "store" / "t.db")


def run(copy: Copy, scenario: Callable[[Ahead], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        ahead = Ahead("t", work, choose, hard_links=False)
        try:
            await asyncio.wait_for(scenario(ahead), 20)
        finally:
            await ahead.drop()

    asyncio.run(whole())
    copy.close()


def put(directory: bytes, name: bytes) -> None:
    with open(os.path.join(directory, name), "wb") as file:
        file.write(b"x")


def names(directory: bytes) -> set[bytes]:
    return set(os.listdir(directory))


def test_the_next_page_is_here_with_its_files_and_nothing_counts_as_published(copy: Copy) -> None:
    parent = Pages(3 * WORTH)
    parent.lacking = {b"f%d" % (WORTH + 1)}

    async def scenario(ahead: Ahead) -> None:
        ahead.begin(copy, parent, at(0), parent.page(0))
        page = await ahead.take(copy, parent, at(WORTH))
        assert isinstance(page, Page)
        assert page.answer == parent.page(WORTH)
        assert page.staged.keys() == {change.path for change in parent.page(WORTH).changes} - parent.lacking
        assert page.staged.keys() < names(copy.layout.stage)
        assert names(copy.layout.ahead) == set()
        # The page behind it was asked for meanwhile, and is not asked for twice; what is published was told each time.
        ahead.begin(copy, parent, at(WORTH), parent.page(WORTH))
        last = await ahead.take(copy, parent, at(2 * WORTH))
        assert last is not None
        assert last.answer == parent.page(2 * WORTH)
        assert parent.asked == [(WORTH, 0), (2 * WORTH, 0)]
        assert parent.linked == [False, False]

    run(copy, scenario)


@pytest.mark.parametrize("other", ["cursor", "parent"])
def test_a_page_that_is_not_the_next_is_dropped_with_its_files(copy: Copy, other: str) -> None:
    parent = Pages(3 * WORTH)

    async def scenario(ahead: Ahead) -> None:
        ahead.begin(copy, parent, at(0), parent.page(0))
        await parent.came.wait()
        asked = Pages(1) if other == "parent" else parent
        assert await ahead.take(copy, asked, at(WORTH if other == "parent" else WORTH - 1)) is None
        assert names(copy.layout.stage) == names(copy.layout.ahead) == set()
        assert await ahead.take(copy, parent, at(WORTH)) is None

    run(copy, scenario)


def test_a_page_whose_files_did_not_come_is_a_page_without_files(copy: Copy) -> None:
    parent = Pages(2 * WORTH)
    parent.broken = True

    async def scenario(ahead: Ahead) -> None:
        put(copy.layout.stage, b"kept")
        ahead.begin(copy, parent, at(0), parent.page(0))
        page = await ahead.take(copy, parent, at(WORTH))
        assert page is not None
        assert page.staged == {}
        assert names(copy.layout.stage) == {b"kept"}
        assert names(copy.layout.ahead) == set()

    run(copy, scenario)


def test_nothing_is_asked_ahead_of_a_small_page_and_nothing_comes_of_an_empty_one(copy: Copy) -> None:
    parent = Pages(WORTH)

    async def scenario(ahead: Ahead) -> None:
        ahead.begin(copy, parent, at(0), Batch(parent.page(0).changes[1:], at(WORTH), WORTH))
        assert await ahead.take(copy, parent, at(WORTH)) is None
        assert parent.asked == []
        ahead.begin(copy, parent, at(0), parent.page(0))
        assert await ahead.take(copy, parent, at(WORTH)) is None
        assert parent.asked == [(WORTH, 0)]

    run(copy, scenario)
