"""A tree that never rests is held against the origin's signature all the same, at every tier."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from core.config_sync import Tree
from core.io_http import bind_tcp, bound_address
from core.tokens import token_sha256
from syncd.copy import io_failures, io_follow, proofs
from syncd.copy.io_child import Follower
from syncd.copy.proofs import (
    BURST,
    BURST_EVERY_S,
    EVERY_S,
    FIRST_WAIT_S,
    GAP_S,
    MAX_WAIT_S,
    PATIENCE_S,
    STALE_S,
    WANTED_EVERY_S,
    Proofs,
)
from syncd.source import io_origin
from syncd.source.io_origin import Origin
from syncd.store.io_offer import Catalogue, Freshness, Offer
from syncd.store.io_signer import read_key
from syncd.store.signed_root import public_key, verify_root
from syncd.transfer import wire
from syncd.transfer.io_parent import Parent
from syncd.transfer.io_rsync import own_ids
from syncd.transfer.io_serve import Server, Serving
from tests.syncd.serving import TOKEN, OneParent, until

# --- when it is asked for -----------------------------------------------------------------------------------------------


def test_changes_are_proved_some_time_after_the_first_of_them() -> None:
    due = Proofs()
    assert due.due_s() is None
    due.changed(100.0)
    due.changed(105.0)
    assert due.due_s() == 100.0 + EVERY_S
    due.proved(110.0)
    assert due.due_s() is None
    due.changed(111.0)
    assert due.due_s() == 111.0 + EVERY_S


def test_a_burst_is_proved_more_rarely() -> None:
    due = Proofs()
    due.changed(100.0)
    due.changed(101.0, BURST)
    assert due.due_s() == 100.0 + BURST_EVERY_S
    due.changed(102.0, BURST - 1)
    assert due.due_s() == 100.0 + EVERY_S


def test_who_waits_for_a_proof_gets_one_soon_and_all_the_same_one() -> None:
    due = Proofs()
    due.want()
    assert due.due_s() is not None
    assert due.due_s() <= 0.0  # type: ignore[operator]
    due.proved(50.0)
    due.want()
    assert due.due_s() == 50.0 + WANTED_EVERY_S


def test_questions_in_vain_become_rarer_and_more_patient_until_one_is_answered() -> None:
    due, now = Proofs(), 0.0
    due.changed(now)
    waits = []
    for _ in range(6):
        waits.append(due.wait_s)
        now += due.wait_s
        due.missed(now)
        due.want()
        assert due.due_s() == now + 2 * waits[-1], "a child that wants one changes nothing of it"
        now = due.due_s() or 0.0
    assert waits == [2.0, 4.0, 8.0, 16.0, MAX_WAIT_S, MAX_WAIT_S]
    due.proved(now)
    assert due.wait_s == FIRST_WAIT_S


def telling(due: Proofs, begin_s: float, so_long_s: float, lag_s: float = 0.0) -> float | None:
    """When it is too long, of a parent that sends a change each second; None: it never is."""
    for second in range(int(so_long_s)):
        due.changed(begin_s + second)
        if due.told(begin_s + second, lag_s):
            return begin_s + second
    return None


def test_a_parent_that_sends_on_and_proves_nothing_is_left() -> None:
    due = Proofs()
    assert telling(due, 0.0, 2 * PATIENCE_S) == PATIENCE_S
    assert telling(due, PATIENCE_S, PATIENCE_S) is None, "the next one has as long"
    due.proved(2 * PATIENCE_S)
    assert telling(due, 2 * PATIENCE_S, PATIENCE_S) is None, "a proof pays for all"


def test_a_parent_that_is_behind_by_its_own_word_owes_nothing() -> None:
    due = Proofs()
    assert telling(due, 0.0, 3 * PATIENCE_S, STALE_S) is None
    assert telling(due, 3 * PATIENCE_S, PATIENCE_S - 1) is None


def test_the_time_without_answers_does_not_count() -> None:
    due = Proofs()
    for hour in range(int(PATIENCE_S / GAP_S)):
        due.changed(hour * 3600.0)
        assert not due.told(hour * 3600.0, 0.0)
    assert telling(due, 99 * 3600.0, 2 * GAP_S) is not None


# --- an offer -----------------------------------------------------------------------------------------------------------


async def test_a_child_waits_for_a_root_only_where_one_may_come(tmp_path: Path) -> None:
    can = False
    offer = Offer(tmp_path / "t.db", lambda: Freshness(0.0, 0), lambda: None, can_prove=lambda: can)
    offer.prove(4, b"older")
    assert await offer.proved(5) is None
    assert not offer.proof_wanted.is_set()
    can = True
    waiting = asyncio.create_task(offer.proved(5))
    await offer.proof_wanted.wait()
    offer.prove(4, b"older")
    await offer.proof_wanted.wait()
    assert not waiting.done()
    offer.prove(7, b"newer")
    assert await waiting == wire.Proof(7, b"newer")
    assert not offer.proof_wanted.is_set()
    offer.forget_proof()
    can = False
    assert await offer.proved(1) is None
    await offer.close()


async def test_an_origin_signs_at_once_when_a_child_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    tree = Tree(path=str(tmp_path / "tree"), watch="inotify")
    origin = Origin("t", tree, tmp_path / "origin.db", tmp_path / "key")
    await origin.start()
    try:
        await until(lambda: origin.root is not None)
        monkeypatch.setattr(io_origin, "REST_S", 600.0)
        monkeypatch.setattr(io_origin, "MAX_UNSIGNED_S", 600.0)
        for name in ("a", "b"):
            before = origin.offer.last
            (tmp_path / "tree" / name).write_text("x")
            await until(lambda before=before: origin.offer.last > before)
            proof = await origin.offer.proved(origin.offer.last)
            assert proof is not None
            root = verify_root(proof.root, bytes.fromhex(origin.public_key()), "t", None)
            assert root.sequence == proof.sequence > before
    finally:
        await origin.stop()


# --- three tiers --------------------------------------------------------------------------------------------------------


class Tiers:
    """An origin, a regional node, and the edge below it."""

    def __init__(self, home: Path, origin: Origin, regional: Follower, edge: Follower, above: OneParent) -> None:
        self.home, self.origin, self.regional, self.edge, self.above = home, origin, regional, edge, above


@asynccontextmanager
async def port(offer: Offer, home: Path) -> AsyncIterator[Parent]:
    """A node's port, and a connection of a child to it."""
    (home / "token").write_text(TOKEN)
    child = wire.Child("child", token_sha256(TOKEN), frozenset({"t"}))
    server = Server(Catalogue({"t": offer}), {"child": child}, serving=Serving(owner=own_ids()))
    sock = bind_tcp("127.0.0.1:0")
    await server.start(sock, None)
    try:
        async with Parent(f"http://{bound_address(sock)}", "child", str(home / "token")) as parent:
            yield parent
    finally:
        await server.stop()


@pytest.fixture
async def tiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tiers]:
    monkeypatch.setattr(io_failures, "AGAIN_S", 0.05)
    (tmp_path / "tree").mkdir()
    key = public_key(read_key(tmp_path / "key")).hex()

    async def copy(name: str, lineage: OneParent) -> Follower:
        said = {"path": str(tmp_path / name), "parents": ["up"], "public_key": key}
        tree = Tree.model_validate(said | {"reserve": {"size": "0B", "share": "0%"}})
        follower = Follower("t", tree, tmp_path / f"{name}.db", tmp_path / f"{name}.key", lineage, lambda: None)
        await follower.start()
        stack.push_async_callback(follower.stop)
        return follower

    async with AsyncExitStack() as stack:
        tree = Tree(path=str(tmp_path / "tree"), watch="inotify")
        origin = Origin("t", tree, tmp_path / "origin.db", tmp_path / "key")
        await origin.start()
        stack.push_async_callback(origin.stop)
        regional = await copy("regional", OneParent(await stack.enter_async_context(port(origin.offer, tmp_path))))
        above = OneParent(await stack.enter_async_context(port(regional.offer, tmp_path)))
        yield Tiers(tmp_path, origin, regional, await copy("edge", above), above)


async def test_three_tiers_are_proved_while_changes_flow(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proofs, "EVERY_S", 0.3)
    tree = tiers.home / "tree"
    (tree / "first").write_text("x")
    await until(lambda: (tiers.home / "edge" / "first").exists() and bool(tiers.edge.status.root_hash))
    before = tiers.edge.status.version
    tiers.above.faults.clear()
    monkeypatch.setattr(io_follow, "ROOT_AFTER_S", 60.0)  # only proofs: the tree is at rest for no moment

    async def change() -> None:
        number = 0
        while True:
            number += 1
            (tree / f"{number % 50}").write_text(f"{number}")
            await asyncio.sleep(0.02)

    changing = asyncio.create_task(change())
    try:
        await until(lambda: tiers.edge.status.version > before)
        again = tiers.edge.status.version
        await until(lambda: tiers.edge.status.version > again)
    finally:
        changing.cancel()
    assert tiers.above.faults == []
    await until(lambda: tiers.edge.status.root_hash == (tiers.origin.root.root_hash.hex() if tiers.origin.root else ""))
