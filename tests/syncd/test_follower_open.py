"""Opening a copy that fails half-way, and is tried again by the same process."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from core.config_sync import Tree
from syncd.copy.child_status import Activity
from syncd.copy.io_child import Follower
from syncd.copy.io_copy import Copy, Recovery
from syncd.publish.io_publish import DiskFull
from syncd.store.io_store import close_store, open_store


class Alone:
    """There is no parent."""

    def choose(self, _tree: str) -> None:
        return None

    def wake(self, _tree: str) -> None:
        pass


async def test_a_recovery_that_fails_does_not_lock_the_tree_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen in an hour of churn: a start on a full disk, and from then on "in use: another syncd has this tree"."""
    recover, failed = Copy.recover, []

    def fail_once(copy: Copy) -> Recovery:
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


async def test_a_stop_in_the_middle_of_the_opening_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, recover = asyncio.Event(), Copy.recover
    loop = asyncio.get_running_loop()

    def slowly(copy: Copy) -> Recovery:
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


def test_a_connection_that_is_forgotten_lets_go_of_its_lock(tmp_path: Path) -> None:
    db = open_store(tmp_path / "t.db")
    del db
    gc.collect()  # a connection and its cache of statements hold each other
    close_store(open_store(tmp_path / "t.db"))
