"""A hostile or broken parent, and what a copy makes of it: nothing leaves the tree, and another parent is asked."""

# ruff: noqa: ASYNC110 (a test has its loop to itself)

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from core.config_sync import Tree
from core.errors import MessageError
from core.io_http import bind_tcp, bound_address
from core.tokens import token_sha256
from syncd.copy import io_failures, io_wishes, proofs, unsigned
from syncd.copy.child_status import Activity
from syncd.copy.io_child import Follower
from syncd.copy.note import encode_changes
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.plan import make_plan
from syncd.publish.steps import Do, Ranks
from syncd.source.io_origin import Origin
from syncd.store.io_offer import Catalogue
from syncd.store.io_signer import read_key
from syncd.store.io_store import close_store, open_store, set_fact, transaction
from syncd.store.manifest import Leaf, ManifestError, decode_listing, encode_listing
from syncd.store.signed_root import public_key, sign_root
from syncd.transfer import io_parent, rsync, streams, wire
from syncd.transfer.change_codec import pack_changes, unpack_changes
from syncd.transfer.io_parent import Parent, ParentError
from syncd.transfer.io_rsync import own_ids
from syncd.transfer.io_serve import Server, Serving
from tests.syncd.serving import TOKEN, OneParent, until
from tests.syncd.tree_model import tree_of

# --- what it says -------------------------------------------------------------------------------------------------------

DIRECTORIES = [Entry(path, Kind.DIRECTORY, 0o755) for path in (b"", b"a", b"a/b")]
LINK = Entry(b"a/b/l", Kind.SYMLINK, 0o777, target=b"../../f")
FILE = Entry(b"f", Kind.FILE, 0o644, 5, 1)
AFTER = wire.Cursor(b"j" * 16, 1)


def file_at(path: bytes) -> Entry:
    return Entry(path, Kind.FILE, 0o644, 5, 1)


@pytest.mark.parametrize("is_new", [False, True])
def test_another_name_of_a_symlink_is_none_for_it_would_lead_elsewhere(is_new: bool) -> None:
    known = [] if is_new else [LINK]
    first = [Change(1, Op.UPSERT, LINK.path, LINK)] if is_new else []
    changes = [*first, Change(2, Op.UPSERT, b"m", file_at(b"m"), LINK.path)]
    plan = make_plan(changes, tree_of(*DIRECTORIES, *known), Ranks([]))
    assert [fetch.entry.path for fetch in plan.payload] == [b"m"]
    assert not [step for step in plan.steps if step.do is Do.LINK]


@pytest.mark.parametrize("source", [b"a", b"nowhere", b"m", b"f/below"])
def test_another_name_of_no_file_is_fetched(source: bytes) -> None:
    plan = make_plan([Change(1, Op.UPSERT, b"m", file_at(b"m"), source)], tree_of(*DIRECTORIES, FILE), Ranks([]))
    assert [fetch.entry.path for fetch in plan.payload] == [b"m"]


@pytest.mark.parametrize("target", [b"x" * 4096, b"a\0b"])
def test_a_symlink_that_no_disk_holds_is_the_parents_fault(target: bytes) -> None:
    entry = Entry(b"l", Kind.SYMLINK, 0o777, target=target)
    with pytest.raises(MessageError, match="target"):
        unpack_changes(pack_changes([Change(1, Op.UPSERT, b"l", entry)]), 1)
    with pytest.raises(ManifestError, match="no disk holds"):
        decode_listing(b"", encode_listing([Leaf(entry)]))


def test_numbers_that_no_disk_holds_are_the_parents_fault() -> None:
    for entry in (Entry(b"f", Kind.FILE, 0o644, 2**63), Entry(b"f", Kind.FILE, 0o644, 1, -(2**63))):
        with pytest.raises(ManifestError, match="no disk holds"):
            decode_listing(b"", encode_listing([Leaf(entry)]))


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(home: Path, answer: Answer) -> AsyncIterator[Parent]:
    """A parent that answers everything by `answer`."""
    app = web.Application()
    app.router.add_get("/{any:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    sock = bind_tcp("127.0.0.1:0")
    await web.SockSite(runner, sock).start()
    (home / "token").write_text(TOKEN)
    try:
        async with Parent(f"http://{bound_address(sock)}", "edge", str(home / "token")) as parent:
            yield parent
    finally:
        await runner.cleanup()


async def test_an_answer_that_is_compressed_stays_small(tmp_path: Path) -> None:
    squeeze = zlib.compressobj(9)
    bomb = b"".join([squeeze.compress(b"\0" * 1_000_000) for _ in range(20)]) + squeeze.flush()
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["Accept-Encoding"])
        return web.Response(body=bomb, headers={"Content-Encoding": "deflate"})

    async with answering(tmp_path, answer) as parent:
        with pytest.raises(MessageError, match="not a JSON object"):  # as it came: nothing was unpacked
            await parent.journal("t", AFTER, 0.0)
    assert asked == ["identity"]


async def test_an_answer_that_trickles_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_parent, "_PATIENCE_S", 0.1)

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.01)

    async with answering(tmp_path, answer) as parent:
        with pytest.raises(ParentError, match="bytes of an answer in"):
            await parent.root("t")


async def test_a_cursor_that_is_taken_back_at_once_is_a_failure(tmp_path: Path) -> None:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=410, body=wire.encode_behind(wire.Behind(AFTER, "too far")))

    async with answering(tmp_path, answer) as parent:
        for _ in range(2):
            assert isinstance(await parent.journal("t", wire.Cursor(), 0.0), wire.Behind)
            with pytest.raises(ParentError, match="takes back"):
                await parent.journal("t", AFTER, 0.0)
            assert isinstance(await parent.journal("t", AFTER, 0.0), wire.Behind)


# --- what becomes of a copy ---------------------------------------------------------------------------------------------


class Twisted(Catalogue):
    """The tree of a real origin, told as a hostile parent would."""

    def __init__(self, origin: Origin) -> None:
        super().__init__({"t": origin.offer})
        self.page: Callable[[wire.Cursor], wire.Batch] | None = None
        self.lies: Path | None = None
        self.proves = False
        """the origin's newest root is sent with each page that is to be proved, wherever it stands"""
        self.frozen: bytes | None = None

    async def root(self, tree: str) -> bytes | None:
        return self.frozen or await super().root(tree)

    async def journal(
        self, tree: str, after: wire.Cursor, limit: int, proof: wire.Proof | None = None
    ) -> wire.Batch | wire.Behind | None:
        if not self.page or not after.journal:
            return await super().journal(tree, after, limit, proof)
        answer = self.page(after)
        return answer if proof is None else replace(answer, root=proof.root)

    async def proved(self, tree: str, sequence: int) -> wire.Proof | None:
        if not self.page:
            return await super().proved(tree, sequence)
        return wire.Proof(sequence, await super().root(tree) or b"") if self.proves else None

    async def path(self, tree: str) -> str | None:
        return str(self.lies) if self.lies else await super().path(tree)


class Nodes:
    """An origin, a port that tells lies of it, and copies that follow."""

    def __init__(self, home: Path, origin: Origin, source: Twisted, parent: Parent, key: str) -> None:
        self.home, self.origin, self.source, self.key = home, origin, source, key
        self.lineage = OneParent(parent)
        self.tree, self.copied = home / "tree", home / "copy"

    @asynccontextmanager
    async def following(self, **deletes: object) -> AsyncIterator[Follower]:
        said = {"path": str(self.copied), "parents": ["up"], "public_key": self.key, "poll": "500ms"}
        tree = Tree.model_validate(said | {"deletes": deletes, "reserve": {"size": "0B", "share": "0%"}})
        store, key = self.home / "state" / "copy.db", self.home / "copy.key"
        follower = Follower("t", tree, store, key, self.lineage, lambda: None)
        await follower.start()
        try:
            yield follower
        finally:
            await follower.stop()

    def write(self, *names: str, text: str = "content") -> None:
        for name in names:
            (self.tree / name).parent.mkdir(exist_ok=True)
            (self.tree / name).write_text(text)

    async def tick(self, every_s: float) -> None:
        """Change something without pause."""
        for count in itertools.count():
            self.write("tick", text=f"{count}")
            await asyncio.sleep(every_s)

    def signed(self) -> str:
        return self.origin.root.root_hash.hex() if self.origin.root else ""

    async def settled(self) -> None:
        """Wait until the origin has told, and signed, all that is in the tree now."""
        await until(lambda: self.origin.entries == len(names(self.tree)) + 1)

    async def until_current(self, follower: Follower) -> None:
        await until(lambda: sorted(names(self.tree)) == sorted(names(self.copied)))
        await until(lambda: follower.status.root_hash == self.signed() != "")


def names(top: Path) -> list[str]:
    return [str(path.relative_to(top)) for path in top.rglob("*")] if top.is_dir() else []


@pytest.fixture
async def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    monkeypatch.setattr(io_failures, "AGAIN_S", 0.05)
    (tmp_path / "tree").mkdir()
    key_file = tmp_path / "key"
    key = public_key(read_key(key_file)).hex()
    origin = Origin("t", Tree(path=str(tmp_path / "tree"), watch="inotify"), tmp_path / "state" / "origin.db", key_file)
    source = Twisted(origin)
    child = wire.Child("edge", token_sha256(TOKEN), frozenset({"t"}))
    server = Server(source, {"edge": child}, serving=Serving(owner=own_ids()))
    sock = bind_tcp("127.0.0.1:0")
    (tmp_path / "token").write_text(TOKEN)
    await origin.start()
    await server.start(sock, None)
    try:
        async with Parent(f"http://{bound_address(sock)}", "edge", str(tmp_path / "token")) as parent:
            yield Nodes(tmp_path, origin, source, parent, key)
    finally:
        await server.stop()
        await origin.stop()


def page(*changes: Change, on: int = 1, last: int = 1) -> Callable[[wire.Cursor], wire.Batch]:
    return lambda after: wire.Batch(
        tuple(changes), wire.Cursor(after.journal, after.sequence + on), after.sequence + last
    )


HOSTILE: dict[str, tuple[Callable[[wire.Cursor], wire.Batch], str]] = {
    "nothing, for ever": (page(on=0, last=9), "leads nowhere"),
    "the same again": (page(Change(1, Op.DELETE, b"x"), on=0, last=0), "leads nowhere"),
    "back": (lambda _after: wire.Batch((), wire.Cursor(b"x" * 16, 0), 0), "leads nowhere"),
    "beyond the end": (page(on=9, last=1), "leads nowhere"),
    "into itself": (page(Change(1, Op.RENAME, b"d/e", Entry(b"d/e", Kind.DIRECTORY, 0o755), b"d")), "below itself"),
}


async def test_pages_of_no_real_journal_are_the_parents_fault_and_change_nothing(nodes: Nodes) -> None:
    nodes.write("d/a", "d/b")
    async with nodes.following() as follower:
        await nodes.until_current(follower)
        before = names(nodes.copied)
        for what, (hostile, words) in HOSTILE.items():
            nodes.lineage.faults.clear()
            nodes.source.page = hostile
            follower.look()
            await until(lambda: bool(nodes.lineage.faults))
            assert words in nodes.lineage.faults[0], what
            assert names(nodes.copied) == before, what
        nodes.source.page = None
        nodes.write("d/c")
        await nodes.until_current(follower)


async def test_a_tree_that_the_origin_did_not_sign_is_not_fresh_and_its_parent_is_left(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsigned, "UNSIGNED_S", 0.3)
    nodes.write("d/a")
    async with nodes.following() as follower:
        await nodes.until_current(follower)
        nodes.source.frozen = await nodes.source.root("t")
        nodes.lineage.faults.clear()
        nodes.write("d/put in by the parent")
        await until(lambda: bool(nodes.lineage.faults))
        assert "did not sign" in nodes.lineage.faults[0]
        assert follower.status.activity is Activity.FAILED
        fresh_s = follower.current_asked_s
        nodes.lineage.faults.clear()
        await until(lambda: bool(nodes.lineage.faults))  # asked again meanwhile, and it did not help
        assert follower.current_asked_s == fresh_s
        nodes.source.frozen = None
        await nodes.until_current(follower)
        await until(lambda: follower.current_asked_s > fresh_s)


def without_pause(slipped_in: Entry) -> Callable[[wire.Cursor], wire.Batch]:
    """Pages that bring a file once, and change a directory without end."""
    times = itertools.count(1)

    def page(after: wire.Cursor) -> wire.Batch:
        number = next(times)
        entry = slipped_in if number == 3 else Entry(b"d", Kind.DIRECTORY, 0o755, mtime_ns=number * 10**9)
        now = after.sequence + 1
        return wire.Batch((Change(now, Op.UPSERT, entry.path, entry),), wire.Cursor(after.journal, now), now)

    return page


@pytest.mark.parametrize("proves", [False, True], ids=["with no root", "with roots that stand for something else"])
async def test_a_parent_that_changes_things_without_pause_is_held_against_the_signature(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, proves: bool
) -> None:
    """Such a copy was never at rest, and so believed whatever came for ever."""
    monkeypatch.setattr(proofs, "EVERY_S", 0.02)
    monkeypatch.setattr(proofs, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(proofs, "PATIENCE_S", 9.0 if proves else 0.3)
    monkeypatch.setattr(unsigned, "UNSIGNED_S", 0.2)
    nodes.write("d/a")
    async with nodes.following() as follower:
        await nodes.until_current(follower)
        await until(lambda: follower.freshness().lag_s < 60)
        shutil.copytree(nodes.tree, nodes.home / "lies", copy_function=shutil.copy2)
        evil = nodes.home / "lies" / "d" / "evil"
        evil.write_text("slipped in")
        nodes.lineage.faults.clear()
        began_s = time.monotonic()
        size, mtime_ns = evil.stat().st_size, evil.stat().st_mtime_ns
        nodes.source.page = without_pause(Entry(b"d/evil", Kind.FILE, 0o644, size, mtime_ns))
        nodes.source.lies, nodes.source.proves = nodes.home / "lies", proves
        follower.look()
        await until(lambda: "d/evil" in names(nodes.copied))
        await until(lambda: bool(nodes.lineage.faults))
        assert ("did not sign" if proves else "shows no root") in nodes.lineage.faults[0]
        published = follower.status.published
        await until(lambda: follower.status.published > published + 5)  # it has no other parent
        fresh_s = follower.site.knowledge.said.current_s
        assert fresh_s is not None
        assert fresh_s <= began_s, "it is not fresh, whatever comes"
        nodes.source.page = nodes.source.lies = None
        await nodes.until_current(follower)
        await until(lambda: (follower.site.knowledge.said.current_s or 0) > began_s)


async def test_nothing_is_taken_of_a_parent_whose_root_another_key_signed(nodes: Nodes) -> None:
    """Seen in an audit: a copy with a wrong `public_key` fetched and published all, and said so afterwards."""
    nodes.write("d/a")
    await nodes.settled()
    nodes.key = public_key(b"k" * 32).hex()
    async with nodes.following() as follower:
        await until(lambda: len(nodes.lineage.faults) > 1)
        assert "is not signed with the origin's key" in nodes.lineage.faults[0]
        assert names(nodes.copied) == []
        assert follower.freshness().lag_s > 86400


async def test_a_copy_of_which_nothing_was_ever_proved_is_not_fresh(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent that keeps the root to itself could fill a new copy with anything, and have DNS send people there."""

    async def none(_tree: str) -> None:
        return None

    nodes.write("f")
    await nodes.settled()
    with monkeypatch.context() as patch:
        patch.setattr(nodes.source, "root", none)
        async with nodes.following() as follower:
            await until(lambda: len(nodes.lineage.faults) > 2 and names(nodes.copied) == ["f"])
            assert follower.freshness().lag_s > 86400
            patch.undo()
            await nodes.until_current(follower)
            await until(lambda: follower.freshness().lag_s < 60)


async def test_what_comes_after_another_key_signed_is_not_taken_and_the_copy_ages(nodes: Nodes) -> None:
    nodes.write("d/a")
    async with nodes.following() as follower:
        await nodes.until_current(follower)
        await until(lambda: follower.freshness().lag_s < 60)
        assert nodes.origin.root is not None
        nodes.lineage.faults.clear()
        nodes.source.frozen = sign_root(nodes.origin.root, b"k" * 32)
        await until(lambda: bool(nodes.lineage.faults))
        proved_s = follower.site.knowledge.said.current_s
        nodes.lineage.faults.clear()
        nodes.write("d/put in by the parent")
        await until(lambda: len(nodes.lineage.faults) > 2)
        assert names(nodes.copied) == ["d", "d/a"]
        assert follower.site.knowledge.said.current_s == proved_s
        nodes.source.frozen = None
        await nodes.until_current(follower)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
async def test_no_name_in_a_tree_stops_the_others(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    # As rsync would call what it keeps of a cut transfer, and as syncd calls what it keeps beside a tree.
    for name in (rsync.PARTIAL_DIR, ".~tmp~", ".tree.syncd", "stage", "intent"):
        nodes.write(f"{name}/large", text="x" * 70_000)  # too large to come by request
    async with nodes.following() as follower:
        await nodes.until_current(follower)
        assert len(names(nodes.copied)) == 10


# --- the guard ----------------------------------------------------------------------------------------------------------


async def test_a_daemon_that_starts_again_and_again_does_not_delete_a_little_each_time(nodes: Nodes) -> None:
    limits: dict[str, object] = {"files": 10, "share": "100%", "floor": 0}
    nodes.write(*(f"d/{i:02d}" for i in range(40)))
    async with nodes.following(**limits) as follower:
        await nodes.until_current(follower)
    for first in (0, 4):
        delete(nodes, range(first, first + 4))
        await nodes.settled()
        async with nodes.following(**limits) as follower:
            await nodes.until_current(follower)
    delete(nodes, range(8, 12))
    await nodes.settled()
    async with nodes.following(**limits) as follower:
        await until(lambda: follower.status.held is not None)
        assert follower.status.held is not None
        assert "after 8 in the last minutes" in follower.status.held.what
        assert len(names(nodes.copied)) == 1 + 32
        assert follower.approve(follower.status.held.token)
        await nodes.until_current(follower)
    delete(nodes, range(12, 20))
    async with nodes.following(**limits) as follower:  # what a person has looked at does not count again
        await nodes.until_current(follower)


def delete(nodes: Nodes, numbers: Sequence[int]) -> None:
    for i in numbers:
        (nodes.tree / f"d/{i:02d}").unlink()


def test_what_is_lost_by_another_name_than_delete_is_counted() -> None:
    files = [Entry(b"a/%d" % i, Kind.FILE, 0o644, 5, 1) for i in range(3)]
    have = tree_of(*DIRECTORIES, *files)
    emptied = [Change(1, Op.UPSERT, file.path, Entry(file.path, Kind.FILE, 0o644, 0, 2)) for file in files]
    plan = make_plan(emptied, have, Ranks([]))
    assert (plan.deleted_entries, sorted(plan.emptied)) == (3, [b"a/0", b"a/1", b"a/2"])
    for entry in (
        Entry(b"a/0", Kind.SYMLINK, 0o777, target=b"1"),
        Entry(b"a/0", Kind.DIRECTORY, 0o755),
    ):
        assert make_plan([Change(1, Op.UPSERT, b"a/0", entry)], have, Ranks([])).deleted_entries == 1
    moved = [
        Change(1, Op.RENAME, b"m", Entry(b"m", Kind.FILE, 0o644, 5, 1), b"a/0"),
        Change(2, Op.UPSERT, b"a/0", Entry(b"a/0", Kind.SYMLINK, 0o777, target=b"../m")),
    ]
    assert make_plan(moved, have, Ranks([])).deleted_entries == 0
    shorter = Change(1, Op.UPSERT, b"a/0", Entry(b"a/0", Kind.FILE, 0o644, 1, 2))
    assert make_plan([shorter], have, Ranks([])).deleted_entries == 0


# --- the copy's own journal ---------------------------------------------------------------------------------------------


async def test_a_copy_forgets_what_all_its_children_have(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes.write("d/a")
    async with nodes.following() as follower:
        await nodes.until_current(follower)
        nodes.write("d/b", "d/c")
        await nodes.until_current(follower)
        reached = follower.offer.last
        assert reached > 0

        async def floor() -> int:
            ledger_floor: int = await follower.offer.run(lambda ledger: ledger._journal.floor())
            return ledger_floor

        assert await floor() < reached
        await follower.offer.run(lambda ledger: ledger.moved("edge", reached))
        monkeypatch.setattr(io_wishes, "TRIM_EVERY_S", 0.0)
        follower.look()
        while await floor() < reached:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("rests", [True, False])
async def test_what_waits_in_vain_is_found_by_comparing(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, rests: bool
) -> None:
    """The parent told of a file, and its word that the file is gone was lost: nothing in the journal ends the wait."""
    monkeypatch.setattr(streams, "FIRST_RETRY_S", 0.01)
    nodes.write("d/a")
    async with nodes.following() as follower:
        await nodes.until_current(follower)
    told = (Change(0, Op.UPSERT, b"ghost", Entry(b"ghost", Kind.FILE, 0o644, 3, 1)), Change(0, Op.DELETE, b"d/gone"))
    db = open_store(nodes.home / "state" / "copy.db")
    with transaction(db):
        set_fact(db, "later", encode_changes(told))
    close_store(db)
    ticking = asyncio.create_task(nodes.tick(3600.0 if rests else 0.1))
    async with nodes.following() as follower:
        nodes.write("d/b")
        await until(lambda: "d/b" in names(nodes.copied))
        await until(lambda: follower.status.waiting > 0)
        await until(lambda: follower.status.waiting == 0)
        ticking.cancel()
        await until(lambda: follower.status.activity is Activity.CURRENT)
        assert not follower.status.troubles
