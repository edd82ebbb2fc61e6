"""Opening a copy that fails half-way, and is tried again by the same process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from core.config_sync import Parent, Tree
from syncd.copy import io_failures
from syncd.copy.child_status import Activity
from syncd.copy.io_child import Follower
from syncd.copy.io_copy import Copy
from syncd.model import Change, Op
from syncd.publish.io_publish import DiskFull
from syncd.store.io_store import close_store, open_store
from syncd.transfer.io_plain import PlainParent
from syncd.transfer.plain import Look
from tests.syncd.serving import until
from tests.syncd.small_disk import mounted


class Alone:
    """There is no parent."""

    def choose(self, _tree: str) -> None:
        return None

    def wake(self, _tree: str) -> None:
        pass


class Only(Alone):
    """There is one parent."""

    def __init__(self, parent: PlainParent) -> None:
        self.parent = parent

    def choose(self, _tree: str) -> Any:
        return "p", self.parent

    def failed(self, _name: str, _tree: str, why: str) -> None:
        raise AssertionError(why)


async def test_a_recovery_that_fails_does_not_lock_the_tree_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in an hour of churn: a start on a full disk, and from then on "in use: another syncd has this tree"."""
    recover = Copy.recover
    failed: list[Copy] = []

    def fail_once(copy: Copy) -> int:
        if not failed:
            failed.append(copy)
            raise DiskFull("no space is left", "make some")
        return recover(copy)

    monkeypatch.setattr(Copy, "recover", fail_once)
    tree = Tree(path=str(tmp_path / "tree"), parents=["p"], public_key="0" * 64)
    follower = Follower("t", tree, tmp_path / "t.db", tmp_path / "key", Alone(), lambda: None)  # type: ignore[arg-type]
    await follower.start()
    try:
        async with asyncio.timeout(20):
            while follower.status.activity is not Activity.NO_PARENT:
                assert "another syncd" not in follower.status.why
                follower.look()
                await asyncio.sleep(0.02)
        assert len(failed) == 1
    finally:
        await follower.stop()


async def test_a_start_without_room_for_a_directory_waits_for_it(tmp_path: Path) -> None:
    """Seen in an hour of churn: the daemon ended with a traceback, and again at each start until there was room."""
    with mounted(tmp_path / "disk", "1m,nr_inodes=4") as disk:
        tree = Tree(path=str(disk / "tree"), parents=["p"], public_key="0" * 64)
        follower = Follower("t", tree, tmp_path / "t.db", tmp_path / "key", Alone(), lambda: None)  # type: ignore[arg-type]
        await follower.start()
        try:
            assert follower.status.activity is Activity.DISK_FULL
            assert "make some room" in follower.status.why
            await asyncio.to_thread(subprocess.run, ["mount", "-o", "remount,nr_inodes=100", disk], check=True)
            async with asyncio.timeout(20):
                while follower.status.activity is not Activity.NO_PARENT:
                    follower.look()
                    await asyncio.sleep(0.02)
        finally:
            await follower.stop()


async def test_a_stop_in_the_middle_of_the_opening_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, recover = asyncio.Event(), Copy.recover
    loop = asyncio.get_running_loop()

    def slowly(copy: Copy) -> int:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run(asyncio.sleep(0.2))  # in the copy's thread
        return recover(copy)

    monkeypatch.setattr(Copy, "recover", slowly)
    tree = Tree(path=str(tmp_path / "tree"), parents=["p"], public_key="0" * 64)
    store = tmp_path / "t.db"
    follower = Follower("t", tree, store, tmp_path / "key", Alone(), lambda: None)  # type: ignore[arg-type]
    opening = asyncio.create_task(follower.start())
    await entered.wait()
    opening.cancel()
    await follower.stop()
    close_store(open_store(store))  # not StoreBusy


class Emptied(PlainParent):
    """A plain server that shows nothing any more."""

    looks = 0

    async def differences(self, root: str, exclude: Sequence[str] = ()) -> Look:
        self.looks += 1
        return Look([Change(0, Op.DELETE, b"f")])


async def test_a_plain_server_is_not_listed_again_and_again_while_something_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_failures, "HELD_AGAIN_S", 0.0)
    parent = Emptied(Parent.model_validate({"transport": "rsyncd", "place": "rsync://127.0.0.1/x", "every": "1h"}))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_bytes(b"x")
    tree = Tree(path=str(tmp_path / "tree"), parents=["p"])
    one: Any = Only(parent)
    follower = Follower("t", tree, tmp_path / "t.db", tmp_path / "key", one, lambda: None)
    await follower.start()
    try:
        await until(lambda: follower.status.activity is Activity.HELD)
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert parent.looks == 1
        follower.look()
        await until(lambda: parent.looks == 2)
    finally:
        await follower.stop()


def test_a_connection_that_is_forgotten_lets_go_of_its_lock(tmp_path: Path) -> None:
    db = open_store(tmp_path / "t.db")
    del db
    gc.collect()  # a connection and its cache of statements hold each other
    close_store(open_store(tmp_path / "t.db"))
