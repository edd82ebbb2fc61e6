"""What an earlier try left in the stage: what of it is gone on from, and what goes; room that is made for a batch."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from core.config_sync import Tree
from syncd.copy.child_status import Activity, Fetching, Rate
from syncd.copy.io_board import Board
from syncd.copy.io_bring import Bringer
from syncd.copy.io_copy import Copy
from syncd.copy.io_intake import VERSIONS, Intake, NoRoom
from syncd.copy.parts import PART, PART_BYTES, PART_FILES, in_parts, weight
from syncd.model import Change, Entry, Kind, Op
from syncd.publish import io_leftovers
from syncd.publish.io_leftovers import renew_stage
from syncd.publish.io_publish import Layout, prepare
from syncd.publish.plan import Fetch
from syncd.source.io_digest import digest_of
from syncd.transfer import io_pace
from syncd.transfer.rsync import Ssh
from tests.syncd.small_disk import mounted

PARTIAL = b".~secret~"
DIGEST = b"d" * 32
HERE = ("sh", "-c", 'exec "$@"')
"""As a remote shell of rsync: what it is to run there runs here."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "tree").mkdir()
    layout = Layout(os.fsencode(tmp_path / "tree"), os.fsencode(tmp_path / "work"))
    prepare(layout)
    return layout


def write(directory: bytes, path: bytes, content: bytes) -> os.stat_result:
    place = os.path.join(directory, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb") as file:
        file.write(content)
    return os.stat(place)


def entry(path: bytes, found: os.stat_result, digest: bytes | None = None) -> Entry:
    return Entry(path, Kind.FILE, 0o644, found.st_size, found.st_mtime_ns, b"", digest)


def on_disk(top: bytes) -> dict[bytes, bytes]:
    """path -> content of all files below."""
    found: dict[bytes, bytes] = {}
    for home, _, names in os.walk(top):
        for name in names:
            with open(os.path.join(home, name), "rb") as file:
                found[os.path.relpath(os.path.join(home, name), top)] = file.read()
    return found


def test_what_is_still_wanted_of_a_stage_is_kept_and_the_rest_goes(layout: Layout) -> None:
    stage = layout.stage
    sealed = write(stage, b"d/sealed", b"as the origin signed it")
    other = write(stage, b"d/other", b"whole, but nothing proves it")
    write(stage, b"d/.cut.a1B2c3", b"a killed rsync leaves this")
    write(stage, b"d/.hidden.a1B2c3", b"or this")
    write(stage, b"d/" + PARTIAL + b"/ended", b"and one that was ended this")
    write(stage, b"d/.ended.a1B2c3", b"with less of it")
    write(stage, b"d/sealed-before", b"of another time than it has now")
    write(stage, b"d/unwanted", b"x")
    write(stage, b"d/" + PARTIAL + b"/unwanted", b"x")
    write(stage, b"d/linked", b"clients see it already")
    os.link(os.path.join(stage, b"d/linked"), os.path.join(layout.root, b"linked"))
    os.symlink(b"/etc/passwd", os.path.join(stage, b"d/link"))
    large = Entry(b"", Kind.FILE, 0o644, 1000, 5)
    names = (b"d/cut", b"d/.hidden", b"d/ended", b"d/linked", b"d/link", b"e/none")
    wanted = {path: large._replace(path=path) for path in names}
    wanted[b"d/sealed"] = entry(b"d/sealed", sealed, DIGEST)
    wanted[b"d/sealed-before"] = Entry(b"d/sealed-before", Kind.FILE, 0o644, 31, 5, b"", DIGEST)
    wanted[b"d/other"] = entry(b"d/other", other)
    assert renew_stage(layout, wanted, PARTIAL) == {b"d/sealed"}
    rest = {
        b"other": b"whole, but nothing proves it",
        b"cut": b"a killed rsync leaves this",
        b".hidden": b"or this",
        b"ended": b"and one that was ended this",
        b"sealed-before": b"of another time than it has now",
    }
    kept = {b"d/" + PARTIAL + b"/" + name: content for name, content in rest.items()}
    assert on_disk(stage) == {b"d/sealed": b"as the origin signed it", **kept}
    assert os.listdir(os.path.join(layout.work, b"left")) == []
    assert renew_stage(layout, wanted, PARTIAL) == {b"d/sealed"}
    assert on_disk(stage) == {b"d/sealed": b"as the origin signed it", **kept}, "however often"
    assert renew_stage(layout, {}, PARTIAL) == frozenset()
    assert os.listdir(stage) == []


def test_a_small_part_of_a_new_content_is_not_preferred_to_the_old_one(layout: Layout) -> None:
    write(layout.root, b"image", b"x" * 1000)
    for size, is_kept in ((499, False), (500, True)):
        write(layout.stage, b".image.a1B2c3", b"y" * size)
        renew_stage(layout, {b"image": Entry(b"image", Kind.FILE, 0o644, 1000, 5)}, PARTIAL)
        assert (PARTIAL + b"/image" in on_disk(layout.stage)) is is_kept


def test_who_still_writes_into_a_stage_that_was_disturbs_nobody(layout: Layout) -> None:
    """As an rsync whose daemon was killed does: by names relative to where it stands."""
    write(layout.stage, b"d/" + PARTIAL + b"/big", b"part")
    pid = os.fork()
    if pid == 0:
        try:
            os.chdir(os.path.join(layout.stage, b"d"))
            number = 0
            while True:
                number = (number + 1) % 50
                with open(b".big%d.a1B2c3" % number, "wb") as file:
                    file.write(b"x")
                os.makedirs(b"e", exist_ok=True)
                os.rename(b".big%d.a1B2c3" % number, b"e/big%d" % (number % 3))
                shutil.rmtree(b"e", ignore_errors=True)
                with open(b".big.a1B2c3", "wb") as file:
                    file.write(b"xyz"[: number % 4])
                os.unlink(b".big.a1B2c3")
        except OSError:
            os._exit(0)
    try:
        wanted = {b"d/big": Entry(b"d/big", Kind.FILE, 0o644, 1000, 5)}
        while not [name for name in os.listdir(os.path.join(layout.stage, b"d")) if name.endswith(b".a1B2c3")]:
            pass
        for _ in range(50):
            assert renew_stage(layout, wanted, PARTIAL) == frozenset()
            assert on_disk(layout.stage) == {b"d/" + PARTIAL + b"/big": b"part"}
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


# --- a copy -------------------------------------------------------------------------------------------------------------


class Server:
    """A plain parent: rsync over something like ssh."""

    where = "server"
    files = None

    def __init__(self, root: Path) -> None:
        self.root = root

    def connector(self, tree: str) -> Ssh:
        return Ssh("host", str(self.root), HERE)

    def change(self, path: bytes, content: bytes, with_digest: bool = False) -> Change:
        found = write(os.fsencode(self.root), path, content)
        return Change(1, Op.UPSERT, path, entry(path, found, digest_of(content) if with_digest else None))


def tree_at(path: Path, **more: Any) -> Tree:
    """A copy's configuration, with nothing kept in reserve."""
    reserve = {"size": "0B", "share": "0%"}
    return Tree.model_validate({"path": str(path), "parents": ["p"], "reserve": reserve, **more})


def intake(tree: Tree) -> Intake:
    async def work(what: Callable[[], Any]) -> Any:
        return what()

    async def published() -> None:
        pass

    as_awaitable: Callable[[Callable[[], Any]], Awaitable[Any]] = work
    return Intake("t", tree, Board("t", lambda: None), as_awaitable, published)


async def test_versions_whose_time_is_over_and_leftovers_make_room_before_it_is_said_that_there_is_none(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path / "server")
    server.root.mkdir()
    with mounted(tmp_path / "disk", "10m") as disk:
        tree = tree_at(disk / "tree", mode="atomic", grace="1h")
        copy = Copy("t", tree, tmp_path / "store.db")
        taken = intake(tree)
        try:
            await taken.apply(copy, server, [server.change(b"a", bytes(5_000_000))], None)
            gone = Change(2, Op.DELETE, b"a")
            await taken.apply(copy, server, [gone, server.change(b"b", b"x")], None)
            assert len(copy.versions()) == 2
            copy.tree = tree.model_copy(update={"grace": 0.0})  # as if that hour were over
            large = server.change(b"c", bytes(6_000_000))
            await taken.apply(copy, server, [large], None)
            assert (disk / "tree/c").stat().st_size == 6_000_000
            write(copy.layout.stage, copy.partial.encode() + b"/d", bytes(3_000_000))
            with pytest.raises(NoRoom, match=r"make 2\.4 MiB"):
                await taken.apply(copy, server, [server.change(b"d", bytes(7_000_000))], None)
            write(copy.layout.stage, copy.partial.encode() + b"/e", bytes(2_000_000))
            await taken.apply(copy, server, [server.change(b"e", bytes(3_000_000))], None)
            assert (disk / "tree/e").stat().st_size == 3_000_000, "not gone on from, since there is room for one only"
        finally:
            copy.close()


async def test_a_file_that_is_here_whole_needs_no_room_and_one_that_was_damaged_is_found(tmp_path: Path) -> None:
    server = Server(tmp_path / "server")
    server.root.mkdir()
    content = random.Random(1).randbytes(2_000_000)
    tree = tree_at(tmp_path / "tree")
    copy = Copy("t", tree, tmp_path / "store.db")
    taken = intake(tree)
    try:
        change = server.change(b"big", content, with_digest=True)
        assert change.entry is not None
        write(copy.layout.stage, b"big", b"\0" * len(content))  # as after a power cut
        os.utime(os.path.join(copy.layout.stage, b"big"), ns=(0, change.entry.mtime_ns))
        await taken.apply(copy, server, [change], None)
        assert not (tmp_path / "tree/big").exists()
        assert [why for _, why, _ in taken.board.status.troubles] == [
            "its content is not the one that its origin signed"
        ]
        taken.retries.forget(b"big")
        await taken.apply(copy, server, [], None)
        assert (tmp_path / "tree/big").read_bytes() == content
        same = server.change(b"other", content)
        assert same.entry is not None
        write(copy.layout.stage, b"other", b"\0" * len(content))
        os.utime(os.path.join(copy.layout.stage, b"other"), ns=(0, same.entry.mtime_ns))
        await taken.apply(copy, server, [same], None)
        assert (tmp_path / "tree/other").read_bytes() == content, "of size and time it was not believed"
    finally:
        copy.close()


async def test_another_limit_counts_at_once_where_others_carry_the_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path / "server")
    server.root.mkdir()
    content = random.Random(2).randbytes(30_000_000)
    change = server.change(b"big", content)
    assert change.entry is not None
    tree = tree_at(tmp_path / "tree", bandwidth=[{"per_second": "1MB"}])
    copy = Copy("t", tree, tmp_path / "store.db")
    bringer, fetching = Bringer("t", tree, Rate()), Fetching(1, len(content), 0.0)
    limit = [1_000_000]
    monkeypatch.setattr(bringer.pace, "now", lambda: limit[0])
    monkeypatch.setattr(io_pace, "LOOK_EVERY_S", 0.02)
    try:
        bringing = asyncio.create_task(bringer.bring(copy, server, [Fetch(change.entry)], fetching, {}))
        while not fetching.seen_bytes:  # noqa: ASYNC110 (rsync says it when it does)
            await asyncio.sleep(0.02)
        assert fetching.done_files == 0
        limit[0] = 0
        assert await bringing == {}
        assert on_disk(copy.layout.stage) == {b"big": content}
        assert (fetching.done_files, fetching.seen_bytes) == (1, len(content))
    finally:
        copy.close()


# --- parts, and what is said of them ------------------------------------------------------------------------------------


def test_parts_are_bounded_by_bytes_and_by_number_and_by_neither_too_soon() -> None:
    def changes(count: int, size: int) -> list[Change]:
        made = [Entry(b"%05d" % n, Kind.FILE, 0o644, size, 1) for n in range(count)]
        return [*(Change(0, Op.UPSERT, entry.path, entry) for entry in made), Change(0, Op.DELETE, b"gone")]

    def sizes(count: int, size: int, part_bytes: int | None = 1000) -> list[int]:
        parts = in_parts(changes(count, size), lambda path: 0, part_bytes)
        assert [change for part in parts for change in part] == changes(count, size)
        return [len(part) for part in parts]

    assert sizes(100, 50) == [20, 20, 20, 20, 21]
    assert sizes(3 * PART_FILES, 10_000) == [PART_FILES, PART_FILES, PART_FILES + 1]
    assert sizes(100, 50, None) == [101]
    assert sizes(PART + 1, 0) == [PART, 2]
    assert weight(changes(3, 7)) == (3, 21)
    assert in_parts([], lambda path: 0) == []


def test_clients_of_an_atomic_tree_never_see_it_with_some_of_its_large_files_changed(tmp_path: Path) -> None:
    tree = tree_at(tmp_path / "tree", mode="atomic")
    copy, taken = Copy("t", tree, tmp_path / "store.db"), intake(tree)
    made = [Entry(b"%02d" % n, Kind.FILE, 0o644, PART_BYTES, 1) for n in range(64)]
    changes = [Change(0, Op.UPSERT, entry.path, entry) for entry in made]
    assert len(taken.in_parts(copy, changes)) == VERSIONS, "a first sync: nobody is sent here yet"
    taken.board.update(has_content=True)
    assert len(taken.in_parts(copy, changes)) == 1
    copy.close()


def test_nothing_is_said_of_a_transfer_that_waits() -> None:
    board = Board("t", lambda: None)
    for waits in (Activity.HELD, Activity.NO_PARENT, Activity.DISK_FULL):
        board.update(fetching=Fetching(1, 1, 0.0), whole=Fetching(1, 1, 0.0))
        board.note(waits, "why")
        assert (board.status.fetching, board.status.whole) == (None, None)


def test_the_rate_is_that_of_the_last_moments() -> None:
    rate = Rate()
    assert rate.bytes_s(5.0) == 0.0
    for second in range(100):
        rate.add(1000, 100.0 + second)
    assert rate.bytes_s(199.0) == pytest.approx(1000, rel=0.1)
    for second in range(60):
        rate.add(10, 200.0 + second)
    assert rate.bytes_s(259.0) == pytest.approx(10, rel=0.1)
    assert rate.bytes_s(300.0) == 0.0
    rate.add(500, 1000.0)
    assert rate.bytes_s(1000.0) == pytest.approx(500, rel=0.1), "what was before is long ago"


def test_small_files_are_fetched_anew() -> None:
    assert io_leftovers.WORTH_BYTES > 64 * 1024, "they come by request, which knows nothing of the stage"
