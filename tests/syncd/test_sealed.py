"""Contents that the origin signs: read where they change, told with them, proved before they are published, and kept."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from core.config_sync import Tree
from core.io_http import bind_tcp, bound_address
from core.tokens import token_sha256
from syncd.copy import io_failures
from syncd.copy.io_child import Follower
from syncd.copy.io_intake import are_in_order
from syncd.copy.note import Note, decode_changes, decode_note, encode_changes, encode_note
from syncd.copy.unsigned import MISMATCHES, WrongContents
from syncd.io_examine import verify_now
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.plan import make_plan
from syncd.publish.steps import Do, Ranks
from syncd.source import io_contents, io_seal
from syncd.source.io_contents import Contents, Later
from syncd.source.io_digest import digest_below, digest_of
from syncd.source.io_origin import Origin
from syncd.source.io_scan import Disk
from syncd.source.io_scrub import Scrubber
from syncd.source.row import Row
from syncd.store.io_index import Index
from syncd.store.io_journal import Draft, Journal, Page
from syncd.store.io_offer import Catalogue
from syncd.store.io_signer import read_key
from syncd.store.io_store import SEALED, close_store, open_store, set_fact, transaction
from syncd.store.signed_root import public_key
from syncd.transfer import stage_codec, streams, wire
from syncd.transfer.io_parent import Parent
from syncd.transfer.io_rsync import own_ids
from syncd.transfer.io_serve import Server, Serving
from syncd.transfer.small import NO_DIGEST, WRONG_CONTENT
from tests.syncd.churn import Churn
from tests.syncd.serving import TOKEN, until
from tests.syncd.tree_model import tree_of
from tests.syncd.watched import Start, settle, write

D, E = b"D" * 32, b"E" * 32
FILE = Entry(b"f", Kind.FILE, 0o644, 5, 1, digest=D)
ROW_MODE = stat.S_IFREG | 0o644


# --- what is told -------------------------------------------------------------------------------------------------------


def test_digests_go_through_the_journal_the_wire_the_note_and_the_stager(tmp_path: Path) -> None:
    db = open_store(tmp_path / "t.db")
    row = Row(ROW_MODE, 5, 1, 9, 0, 7, b"")
    with transaction(db):
        drafts = [
            Draft(Op.UPSERT, b"f", row, b"", D),
            Draft(Op.UPSERT, b"g", row, b"f", E),
            Draft(Op.UPSERT, b"h", row),
        ]
        Journal(db).append(drafts, 1.0)
    journal = Journal(db)
    for limit in (1, 9):  # upserts alone come as bytes, links do not
        page = journal.read(journal.journal_id, 0, limit)
        assert isinstance(page, Page)
        batch = wire.decode_batch(wire.encode_batch(wire.Batch(page.changes, wire.Cursor(), page.last)))
        told = {change.path: change.entry.digest for change in batch.changes if change.entry}
        assert told == dict([(b"f", D), (b"g", E), (b"h", None)][:limit])
    close_store(db)
    changes = (Change(1, Op.UPSERT, b"f", FILE), Change(2, Op.UPSERT, b"g", FILE._replace(path=b"g", digest=None)))
    assert decode_changes(encode_changes(changes)) == changes
    assert decode_note(encode_note(Note(changes, changes))) == Note(changes, changes)
    entries = [change.entry for change in changes if change.entry]
    sent = stage_codec.encode_request(b"/stage", entries, True, b"data") + b"data"
    size = stage_codec.REQUEST_HEAD.size
    assert list(stage_codec.decode_request(sent[:size], sent[size:]).entries) == [
        e._replace(mode=0o644) for e in entries
    ]


def test_a_store_of_before_is_taken_over(tmp_path: Path) -> None:
    db = open_store(tmp_path / "t.db")
    with transaction(db):
        db.execute("ALTER TABLE changes DROP COLUMN digest")
        db.execute("PRAGMA user_version=1")
    close_store(db)
    db = open_store(tmp_path / "t.db")
    with transaction(db):
        Journal(db).append([Draft(Op.UPSERT, b"f", Row(ROW_MODE, 5, 1, 9, 0, 7, b""), b"", D)], 1.0)
    changes = Journal(db).since(0, 9)
    assert changes is not None
    assert [change.entry and change.entry.digest for change in changes] == [D]
    close_store(db)


@pytest.mark.parametrize(("said", "is_link"), [(D, True), (E, False), (None, True)])
def test_another_name_is_of_a_file_only_when_the_digest_says_so(said: bytes | None, is_link: bool) -> None:
    """Else a parent could have any content recorded as the one that the origin signed."""
    link = Change(1, Op.UPSERT, b"m", FILE._replace(path=b"m", digest=said), b"f")
    plan = make_plan([link], tree_of(FILE), Ranks([]))
    assert any(step.do is Do.LINK for step in plan.steps) is is_link
    assert [fetch.entry.path for fetch in plan.payload] == ([] if is_link else [b"m"])


def test_pages_that_no_journal_makes_are_seen() -> None:
    put, other = Change(1, Op.UPSERT, b"f", FILE), Change(2, Op.UPSERT, b"f", FILE._replace(digest=E))
    made = Change(3, Op.UPSERT, b"d", Entry(b"d", Kind.DIRECTORY, 0o755))
    moved = Change(4, Op.RENAME, b"g", FILE._replace(path=b"g"), b"f")
    assert are_in_order([Change(1, Op.DELETE, b"f"), moved, made, put])
    assert not are_in_order([put, other])
    assert not are_in_order([put, moved])


def test_a_parent_is_left_after_some_wrong_contents_of_one_file() -> None:
    wrong = WrongContents()
    for _ in range(MISMATCHES - 1):
        assert wrong.judge({b"f": WRONG_CONTENT, b"g": "it vanished"}) is None
    assert wrong.judge({b"h": WRONG_CONTENT}) is None
    assert wrong.judge({b"f": WRONG_CONTENT}) == b"f"
    assert wrong.judge({b"f": WRONG_CONTENT}) is None, "the count begins anew"


# --- where they change --------------------------------------------------------------------------------------------------


def contents_of(index: Index) -> dict[bytes, bytes | None]:
    return {entry.path: entry.digest for entry in index.entries() if entry.kind is Kind.FILE}


def on_disk(root: bytes) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for above, _, names in os.walk(root):
        for name in names:
            full = os.path.join(above, name)
            if stat.S_ISREG(os.lstat(full).st_mode):
                with open(full, "rb") as file:
                    found[os.path.relpath(full, root)] = digest_of(file.read())
    return found


def test_every_file_of_a_churned_tree_has_the_digest_of_its_content(
    root: bytes, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_contents, "SMALL_BYTES", 30)  # so that most are read by the thread
    monkeypatch.setattr(io_contents, "SLICE_BYTES", 20_000)
    source = start(signed_contents=True)
    churn, rng = Churn(root, 3), random.Random(3)
    at = source.status.sequence
    told: dict[bytes, bytes | None] = {}
    for _ in range(1500):
        churn.step()
        if rng.random() < 0.2:
            source.step(0.005)
    settle(source)
    assert contents_of(source.index) == on_disk(root)
    for change in source.journal.since(at, 100_000) or ():
        if change.entry is not None and change.entry.kind is Kind.FILE:
            told[change.path] = change.entry.digest
            assert change.entry.digest is not None, change
    last = {path: digest for path, digest in told.items() if path in on_disk(root)}
    assert last == {path: digest for path, digest in on_disk(root).items() if path in last}


def test_what_cannot_be_read_any_more_has_the_digest_it_had(
    root: bytes, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its copies, which have what they had, hold another tree than the origin signed, and say that of their parent."""
    source = start(signed_contents=True)
    full = write(root, b"f", b"old")
    settle(source)
    at, before = source.status.sequence, os.stat(full)

    def closed(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(io_contents, "open_to_read", closed)
        os.chmod(full, 0o600)
        write(root, b"g", b"new")
        settle(source)
        assert contents_of(source.index) == {b"f": digest_of(b"old"), b"g": None}
    assert {change.path for change in source.journal.since(at, 9) or ()} >= {b"f", b"g"}
    write(root, b"f", b"odd")
    os.utime(full, ns=(0, before.st_mtime_ns))
    settle(source)
    assert contents_of(source.index)[b"f"] == digest_of(b"odd")


def test_what_changes_while_it_is_read_has_no_digest(root: bytes) -> None:
    full = write(root, b"f", b"x" * 3_000_000)
    reads = 0

    def took(_size: int) -> bool:
        nonlocal reads
        reads += 1
        if reads == 2:
            with open(full, "r+b") as file:
                file.write(b"y")
        return True

    assert digest_below(root, b"f", lambda _st: True, took) is None
    read = digest_below(root, b"f", lambda _st: True, lambda _size: True)
    assert read is not None
    assert read[0] == digest_of(Path(os.fsdecode(full)).read_bytes())


def test_what_is_not_the_file_that_was_looked_at_is_looked_at_again(root: bytes) -> None:
    contents, disk = Contents(root, lambda: None), Disk(root)
    try:
        for size in (10, io_contents.SMALL_BYTES + 1):  # read at once, and by the thread
            write(root, b"f", b"x" * size)
            row = disk.look(b"f")
            assert row is not None
            write(root, b"f", b"y" * (size - 1))
            with pytest.raises(Later):
                contents.of(disk, b"f", row)
            again: list[tuple[bytes, float]] = []
            while not again:
                again = contents.take_again()
            assert again[0][0] == b"f"
            assert again[0][1] > 0.0
            row = disk.look(b"f")
            assert row is not None
            digest = b""
            while not digest:
                try:
                    digest = contents.of(disk, b"f", row)
                except Later:
                    time.sleep(0.001)
                    contents.take_again()
            assert digest == digest_of(b"y" * (size - 1))
    finally:
        contents.close()
        disk.close()


def test_the_scrub_writes_no_digest_of_its_own_into_a_sealed_tree(root: bytes, tmp_path: Path) -> None:
    """What has none at a copy is not what the origin signed: the copy's hash must go on saying so."""
    write(root, b"f", b"content")
    disk, store = Disk(root), tmp_path / "t.db"
    db = open_store(store, exclusive=False)
    index = Index(db, by_inode=True)
    for sealed in (1, 0):
        with transaction(db):
            set_fact(db, SEALED, sealed)
            for path in (b"", b"f"):
                row = disk.look(path)
                assert row is not None
                index.put(path, row)
        scrubber = Scrubber("t", store, lambda: os.fsdecode(root), 60.0, lambda _path: None, by_inode=True)
        scrubber.hurry()
        scrubber.start()
        while not scrubber.status.passes:
            time.sleep(0.005)
        scrubber.stop()
        assert index.digest(b"f") == (None if sealed else digest_of(b"content"))
    close_store(db)
    disk.close()


# --- nodes --------------------------------------------------------------------------------------------------------------


class Said(Catalogue):
    """An origin's word on a tree, with the files of another directory where `lies` names one."""

    def __init__(self, origin: Origin) -> None:
        super().__init__({"t": origin.offer})
        self.lies: Path | None = None
        self.told: Change | None = None
        """said to whoever asks, until it is taken"""
        self.told_at = -1

    async def journal(
        self, tree: str, after: wire.Cursor, limit: int, proof: wire.Proof | None = None
    ) -> wire.Batch | wire.Behind | None:
        if self.told is not None and after.journal and self.told_at in (-1, after.sequence):
            self.told_at = after.sequence
            return wire.Batch((self.told,), replace(after, sequence=after.sequence + 1), after.sequence + 1)
        return await super().journal(tree, after, limit, proof)

    async def path(self, tree: str) -> str | None:
        return str(self.lies) if self.lies is not None else await super().path(tree)


@dataclass
class Parents:
    """Those that can be chosen, and what was said of those that were left."""

    every: dict[str, Parent]
    faults: list[tuple[str, str]] = field(default_factory=list)
    on_fault: Callable[[], None] = lambda: None

    def choose(self, tree: str) -> tuple[str, Parent] | None:
        left = {name for name, _ in self.faults}
        return next(((name, parent) for name, parent in self.every.items() if name not in left), None)

    def wake(self, tree: str) -> None:
        pass

    def worked(self, name: str, tree: str, lag_s: float) -> None:
        pass

    def failed(self, name: str, tree: str, why: str) -> None:
        self.on_fault()
        self.faults.append((name, why))


class Site:
    """An origin that is started again at will, and two ports that serve it: `bad` and `good`."""

    def __init__(self, home: Path) -> None:
        self.home, self.tree, self.copied = home, home / "tree", home / "copy"
        self.tree.mkdir()
        (home / "token").write_text(TOKEN)
        self.key = public_key(read_key(home / "key")).hex()
        self.origin: Origin
        self.bad: Said

    @asynccontextmanager
    async def serving(self, contents: str = "signed", lies: Path | None = None) -> AsyncIterator[Parents]:
        tree = Tree.model_validate({"path": str(self.tree), "watch": "inotify", "contents": contents})
        self.origin = origin = Origin("t", tree, self.home / "state" / "origin.db", self.home / "key")
        await origin.start()
        child = wire.Child("edge", token_sha256(TOKEN), frozenset({"t"}))
        servers, parents = [], {}
        for name in ("bad", "good"):
            said = Said(origin)
            if name == "bad":
                said.lies, self.bad = lies, said
            server = Server(said, {"edge": child}, serving=Serving(owner=own_ids()))
            sock = bind_tcp("127.0.0.1:0")
            await server.start(sock, None)
            servers.append(server)
            parents[name] = Parent(f"http://{bound_address(sock)}", "edge", str(self.home / "token"))
        try:
            await until(lambda: origin.root is not None)
            yield Parents(parents)
        finally:
            for parent in parents.values():
                await parent.close()
            for server in servers:
                await server.stop()
            await origin.stop()

    @asynccontextmanager
    async def following(self, parents: Parents, mode: str = "live") -> AsyncIterator[Follower]:
        said = {"path": str(self.copied), "parents": ["bad", "good"], "public_key": self.key, "poll": "500ms"}
        tree = Tree.model_validate(said | {"mode": mode, "reserve": {"size": "0B", "share": "0%"}})
        store = self.home / "state" / "copy.db"
        follower = Follower("t", tree, store, self.home / "copy.key", parents, lambda: None)
        await follower.start()
        try:
            yield follower
        finally:
            await follower.stop()

    async def until_current(self, follower: Follower, sealed: bool = True) -> None:
        def is_current() -> bool:
            root = self.origin.root
            return root is not None and root.sealed is sealed and follower.status.root_hash == root.root_hash.hex()

        await until(is_current)
        assert on_disk(os.fsencode(self.copied)) == on_disk(os.fsencode(self.tree))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(io_failures, "AGAIN_S", 0.05)
    monkeypatch.setattr(streams, "FIRST_RETRY_S", 0.01)
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    return Site(tmp_path)


def rot(path: Path) -> None:
    """Other bytes, and everything that a listing shows as before."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(b"evil")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
@pytest.mark.parametrize("size", [1_000, 70_000])
async def test_a_parent_that_sends_other_contents_is_left_and_nothing_of_them_is_seen(site: Site, size: int) -> None:
    for name in ("wrong", "right"):
        (site.tree / name).write_bytes(b"x" * size)
    lies = site.home / "lies"
    shutil.copytree(site.tree, lies)
    rot(lies / "wrong")
    async with site.serving(lies=lies) as parents:
        await until(lambda: site.origin.root is not None and site.origin.root.sealed)
        seen: list[bool] = []
        parents.on_fault = lambda: seen.extend(((site.copied / "right").exists(), (site.copied / "wrong").exists()))
        async with site.following(parents) as follower:
            await until(lambda: bool(parents.faults))
            assert seen == [True, False]
            name, why = parents.faults[0]
            assert name == "bad"
            assert "'wrong' of tree t with another content than its origin signed" in why
            assert parents.every["bad"].url in why
            await site.until_current(follower)
            assert follower.is_sealed
            assert len(parents.faults) == 1


async def test_nothing_is_taken_for_a_content_of_a_sealed_tree_of_which_no_digest_is_told(site: Site) -> None:
    (site.tree / "f").write_bytes(b"content")
    async with site.serving() as parents, site.following(parents) as follower:
        await site.until_current(follower)
        await until(lambda: site.origin.root is not None and site.origin.root.sealed)
        lies = site.home / "lies"
        shutil.copytree(site.tree, lies)
        (lies / "evil").write_bytes(b"evil")
        st = (lies / "evil").stat()
        site.bad.lies = lies
        entry = Entry(b"evil", Kind.FILE, stat.S_IMODE(st.st_mode), st.st_size, st.st_mtime_ns)
        site.bad.told = Change(1, Op.UPSERT, b"evil", entry)
        follower.look()
        await until(lambda: bool(follower.status.troubles))
        assert follower.status.troubles[0][:2] == ("evil", NO_DIGEST)
        assert not (site.copied / "evil").exists()


async def test_a_version_whose_digests_the_journal_does_not_tell_takes_them_from_the_listings(site: Site) -> None:
    """Seen in five minutes of churn: a regional node learned of a file by itself, and its digest by comparing, later.

    Its journal told the one and not the other; an atomic copy of it waited for ever.
    """
    (site.tree / "f").write_bytes(b"content")
    async with site.serving() as parents, site.following(parents, "atomic") as follower:
        await site.until_current(follower)
        await until(lambda: site.origin.root is not None and site.origin.root.sealed)
        cursor = await follower.with_copy(lambda copy: copy.cursor())
        (site.tree / "late").write_bytes(b"late")
        st = (site.tree / "late").stat()
        entry = Entry(b"late", Kind.FILE, stat.S_IMODE(st.st_mode), st.st_size, st.st_mtime_ns)
        site.bad.told, site.bad.told_at = Change(1, Op.UPSERT, b"late", entry), cursor.sequence
        follower.look()
        await until(lambda: (site.copied / "late").exists())
        await site.until_current(follower)


async def test_a_tree_is_sealed_while_it_is_used_and_nothing_is_fetched_or_read_twice(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        (site.tree / f"f{i}").write_bytes(b"%d" % i * 1000)
    await asyncio.sleep(0.03)  # what is that young is looked at again at the next start
    async with site.serving("unsigned") as parents, site.following(parents) as follower:
        await site.until_current(follower, sealed=False)
        assert follower.totals.fetched_files == 20
    read: list[bytes] = []

    def counted(root: bytes, path: bytes, *more: object, **named: object) -> object:
        read.append(path)
        return digest_below(root, path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(io_seal, "digest_below", counted)
    async with site.serving() as parents, site.following(parents) as follower:
        await site.until_current(follower)
        assert sorted(read) == sorted(on_disk(os.fsencode(site.tree)))
        assert follower.totals.fetched_files == 0
        (site.tree / "f1").chmod(0o600)  # read again: its ctime moved
        (site.tree / "new").write_bytes(b"new")
        (site.tree / "f2").rename(site.tree / "moved")
        await until(lambda: (site.copied / "new").exists() and (site.copied / "moved").exists())
        await site.until_current(follower)
        assert follower.totals.fetched_files == 1
        assert len(read) == 20
        scratch = site.home / "state" / "verify"
        assert (await verify_now(follower, scratch)).differences == ()
        (site.copied / "f5").chmod(0o640)
        (site.copied / "odd").write_bytes(b"odd")
        found = await verify_now(follower, scratch)
        assert [difference.path for difference in found.differences if difference.path] == [b"f5", b"odd"]
        (site.copied / "f5").chmod(0o644)
        (site.copied / "odd").unlink()
    await asyncio.sleep(0.03)
    read.clear()
    monkeypatch.setattr(io_contents, "_read_small", lambda _disk, path, _row: read.append(path))
    async with site.serving() as parents, site.following(parents) as follower:
        await site.until_current(follower)
        assert not read
        # What rotted before anybody had read it here is found by the digest that the origin signed.
        rot(site.copied / "f3")
        follower.scrubber.hurry()
        await until(lambda: follower.scrubber.status.found == 1)
        assert follower.scrubber.status.wrong[0][0] == b"f3"
        await until(lambda: on_disk(os.fsencode(site.copied)) == on_disk(os.fsencode(site.tree)))
        await site.until_current(follower)


async def test_switched_off_it_takes_a_word_at_the_copy(site: Site) -> None:
    (site.tree / "f").write_bytes(b"content")
    async with site.serving() as parents, site.following(parents) as follower:
        await site.until_current(follower)
    async with site.serving("unsigned") as parents, site.following(parents) as follower:
        await until(lambda: len(parents.faults) == 2)
        assert all("no longer covers contents" in why for _, why in parents.faults)
        parents.faults.clear()
        follower.trust()
        await site.until_current(follower, sealed=False)
        (site.tree / "g").write_bytes(b"more")
        await until(lambda: (site.copied / "g").exists())
