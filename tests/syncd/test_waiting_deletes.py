"""Deletes that wait for a file which does not come: what counts as deleted, what an approval is for, what cannot wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from core.config_sync import Tree
from syncd.copy import io_board
from syncd.copy.child_status import Activity
from syncd.copy.io_board import Board
from syncd.copy.io_copy import Copy
from syncd.copy.io_intake import Held, Intake
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.guard import Objection
from syncd.source.row import Written
from syncd.transfer.rsync import Ssh
from syncd.transfer.wire import Cursor

FILES = 200


class Supplier:
    """A parent whose files come, but for `lacking`."""

    where = "here"

    def __init__(self) -> None:
        self.lacking: set[bytes] = set()

    async def files(
        self, tree: str, entries: Sequence[Entry], stage: bytes, hard_links: bool, written: Written
    ) -> dict[bytes, str]:
        for entry in entries:
            if entry.path not in self.lacking:
                write(Path(os.fsdecode(stage), os.fsdecode(entry.path)), entry)
                written[entry.path] = None
        return {entry.path: "it cannot be read" for entry in entries if entry.path in self.lacking}

    def connector(self, tree: str) -> Ssh:
        raise NotImplementedError


def write(place: Path, entry: Entry) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x" * entry.size)
    place.chmod(entry.mode)
    os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns))


class Scene:
    """A copy with FILES files, and a parent of which `bad` does not come."""

    def __init__(self, home: Path) -> None:
        reserve = {"size": "0B", "share": "0%"}
        self.tree = Tree.model_validate(
            {"path": str(home / "tree"), "parents": ["p"], "public_key": "00" * 32, "reserve": reserve}
        )
        self.copy = Copy("t", self.tree, home / "t.db")
        self.copy.recover()
        self.board = Board("t", lambda: None)
        self.intake = Intake("t", self.tree, self.board, work, nothing)
        self.supplier = Supplier()
        self.supplier.lacking = {b"bad"}
        self.take(*(file(b"f%04d" % number) for number in range(FILES)))
        self.board.update(entries=self.copy.size().entries)

    def take(self, *changes: Change) -> None:
        """Take a batch in, with what waits and is due at once."""
        for trouble in self.intake.retries.troubles():
            self.intake.retries._troubles[trouble.path] = replace(trouble, due=0.0)
        asyncio.run(self.intake.apply(self.copy, self.supplier, changes, Cursor(b"j" * 16, 1)))

    def held(self, *changes: Change) -> Objection:
        with pytest.raises(Held) as held:
            self.take(*changes)
        return held.value.objection

    @property
    def recent(self) -> int:
        return sum(count for _, count in self.copy.recent_deletes())


async def work(what: Callable[[], Any]) -> Any:
    return what()


async def nothing() -> None:
    pass


def file(path: bytes) -> Change:
    return Change(0, Op.UPSERT, path, Entry(path, Kind.FILE, 0o644, 1, 10**9))


def deletes(count: int) -> list[Change]:
    return [Change(0, Op.DELETE, b"f%04d" % number) for number in range(count)]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.copy.close()


def test_deletes_that_wait_are_counted_when_they_are_done_and_once(scene: Scene) -> None:
    few = FILES // 10  # of which a fifth is allowed
    scene.take(file(b"bad"), *deletes(few))
    for _ in range(5):
        scene.take()
        assert scene.recent == 0
    assert scene.copy.size().entries == FILES + 1
    scene.supplier.lacking.clear()
    scene.take()
    assert scene.recent == few
    assert scene.copy.size().entries == FILES + 2 - few


def test_an_approval_lasts_until_the_deletes_that_it_is_for_are_done(scene: Scene) -> None:
    many = FILES // 2
    changes = [file(b"bad"), *deletes(many)]
    scene.intake.approved = scene.held(*changes).token
    scene.take(*changes)
    for _ in range(3):
        scene.take()
    scene.supplier.lacking.clear()
    scene.take()
    assert scene.copy.size().entries == FILES + 2 - many
    assert (scene.recent, scene.intake.approved) == (0, "")


def test_an_approval_is_not_used_up_by_another_part_of_a_comparison(scene: Scene) -> None:
    held = scene.held(*deletes(FILES // 2))
    scene.intake.approved = held.token
    asyncio.run(scene.intake.apply(scene.copy, scene.supplier, [file(b"new")], None))
    scene.take(*deletes(FILES // 2))
    assert scene.copy.size().entries == FILES + 2 - FILES // 2


def test_the_word_can_be_given_while_what_is_held_is_looked_at_again(scene: Scene) -> None:
    """A dry run against a large plain mirror takes minutes, and is repeated soon after it was held."""
    board, held = scene.board, scene.held(*deletes(FILES // 2))
    board.note(Activity.HELD, str(held), held)
    board.note(Activity.COMPARING, "")
    assert board.status.held == held
    board.note(Activity.CURRENT, "")
    assert board.status.held is None
    board.note(Activity.HELD, str(held), held)
    board.note(Activity.COMPARING, "")
    scene.take(file(b"new"))
    assert board.status.held is None, "nothing was in the way of it"


def test_what_a_tree_waits_for_is_logged_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(io_board, "_log", log)
    for _ in range(3):
        scene.board.note(Activity.READING, "")
        scene.board.note(Activity.STOPPED, "its disk is not there")
    assert [call.args for call in log.calls] == [("tree_waits",)]
    scene.board.note(Activity.CURRENT, "")
    scene.board.note(Activity.STOPPED, "its disk is not there")
    assert len(log.calls) == 2, "it was well in between"


def test_a_symlink_that_would_lead_out_goes_before_its_directory_moves_though_deletes_wait(scene: Scene) -> None:
    a, below, moved = (Entry(path, Kind.DIRECTORY, 0o755, 0, 10**9) for path in (b"a", b"a/b", b"c"))
    link = Entry(b"a/b/link", Kind.SYMLINK, 0o777, 0, 10**9, b"../../f0000")
    scene.take(*(Change(0, Op.UPSERT, entry.path, entry) for entry in (a, below, link)))
    top = Path(scene.tree.path)
    assert (top / "a/b/link").is_symlink()
    scene.take(Change(0, Op.RENAME, b"c", moved, b"a/b"), file(b"bad"), *deletes(1))
    assert (top / "c").is_dir()
    assert not (top / "c/link").is_symlink()
    assert (top / "f0000").exists(), "what waits, waits"
