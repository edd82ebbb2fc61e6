"""Publishing on a real disk: any plan, ended by SIGKILL before any system call, and gone on from."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from syncd.model import Change, Entry, Kind, Op
from syncd.publish.io_below import remove_all
from syncd.publish.io_publish import Layout, begin, check_staged, clear_stage, finish, pending, prepare, run, sweep
from syncd.publish.io_version import Versions, adopt, finish_version, publish_version
from syncd.publish.plan import Plan, make_plan
from syncd.publish.steps import Intent, Ranks
from tests.syncd.disk_tree import killed_at, read_tree, stage_files, write_tree
from tests.syncd.tree_model import Tree


class Case:
    """A child on disk about to publish what happened to its parent, from a seed."""

    def __init__(self, seed: int, home: Path, ranks: Ranks | None = None) -> None:
        rng = random.Random(seed)
        self.parent = Tree()
        for _ in range(rng.randrange(5, 30)):
            self.parent.churn(rng)
        self.child = self.parent.copy()
        self.parent.journal.clear()
        for _ in range(rng.randrange(3, 18)):
            self.parent.churn(rng)
        self.plan: Plan = make_plan(self.parent.journal, self.child, ranks or Ranks(["dd"]))
        self.home = home
        self.root = home / "tree"
        self.root.mkdir(parents=True)
        write_tree(self.child, self.root)
        self.layout = Layout(os.fsencode(self.root), os.fsencode(home / "work"))
        prepare(self.layout)
        stage_files(self.plan.steps, self.parent, self.layout.stage)
        self.intent = Intent(1, self.plan.steps, b"cursor 7")

    @property
    def versions(self) -> Versions:
        return Versions(self.layout.root, os.fsencode(self.home / "tree.versions"), self.layout.work)

    def assert_published(self) -> None:
        assert read_tree(self.root) == self.parent.seen()


needs_root = pytest.mark.skipif(
    os.geteuid() != 0,
    reason="random trees have directories without the owner's write bit, in which only root can publish yet",
)


@needs_root
@pytest.mark.parametrize("seed", range(40))
def test_any_plan_is_published_in_place(tmp_path: Path, seed: int) -> None:
    case = Case(seed, tmp_path)
    assert check_staged(case.layout, case.plan.steps) == {}
    begin(case.layout, case.intent)
    assert run(case.layout, durable=seed % 4 == 0) == case.intent
    case.assert_published()
    run(case.layout, durable=False)  # not recorded yet: it may be asked for again
    case.assert_published()
    finish(case.layout)
    assert pending(case.layout) is None
    sweep(case.layout)
    assert [os.listdir(os.path.join(case.layout.work, room)) for room in (b"slots", b"fresh", b"trash")] == [[]] * 3


@needs_root
@pytest.mark.parametrize("seed", range(12))
def test_any_plan_is_published_as_a_version(tmp_path: Path, seed: int) -> None:
    case = Case(seed, tmp_path)
    adopt(case.versions)
    before = read_tree(case.root)
    publish_version(case.versions, case.intent, 1000.0, durable=seed % 4 == 0)
    case.assert_published()
    assert read_tree(case.versions.path(0)) == before, "the old version was changed"
    finish_version(case.versions, case.intent)
    assert pending(case.layout) is None


@needs_root
@pytest.mark.parametrize("seed", range(100, 106))
def test_killed_before_any_system_call_in_place(tmp_path: Path, seed: int) -> None:
    count = 0
    while True:
        case = Case(seed, tmp_path / str(count))
        begin(case.layout, case.intent)
        if not killed_at(lambda trip, c=case: run(c.layout, durable=False, trip=trip), count):
            break
        if count % 3 == 0:  # and killed again while it goes on
            killed_at(lambda trip, c=case: run(c.layout, durable=False, trip=trip), count % 7)
        again = pending(case.layout)
        assert again is not None
        assert again.trusted
        assert again.intent.note == b"cursor 7"
        run(case.layout, durable=False)
        case.assert_published()
        remove_all(os.fsencode(case.home))
        count += 1
    assert count > 10


@needs_root
@pytest.mark.parametrize("seed", range(200, 202))
def test_killed_before_any_system_call_of_a_version(tmp_path: Path, seed: int) -> None:
    count = 0
    while True:
        case = Case(seed, tmp_path / str(count))
        adopt(case.versions)
        before = read_tree(case.root)

        def publish(trip: Callable[[str], None], case: Case = case) -> None:
            publish_version(case.versions, case.intent, 1000.0, durable=False, trip=trip)

        if not killed_at(publish, count):
            break
        assert read_tree(case.root) in (before, case.parent.seen()), "a state that neither version has"
        publish(lambda what: None)
        case.assert_published()
        assert read_tree(case.versions.path(0)) == before
        remove_all(os.fsencode(case.home))
        count += 1
    assert count > 10


# --- what a reader sees -------------------------------------------------------------------------------------------------


def release(number: int) -> Tree:
    """Version `number` of a small archive: an index that names its payload; one file renamed, one replaced a version."""
    tree = Tree()
    tree.set(Entry(b"pool", Kind.DIRECTORY, 0o755))
    for n in range(number, number + 5):
        tree.set(Entry(b"pool/p%d" % n, Kind.FILE, 0o644, 20, n + 1), n)
    tree.set(Entry(b"pool/moved-%d" % number, Kind.FILE, 0o644, 20, 1), 1_000_000)
    tree.set(Entry(b"index", Kind.FILE, 0o644, 20, number + 1), number)
    return tree


def next_release(number: int) -> list[Change]:
    old, new = release(number), release(number + 1)
    moved = new.entries[b"pool/moved-%d" % (number + 1)]
    index, fresh = new.entries[b"index"], new.entries[b"pool/p%d" % (number + 5)]
    assert b"pool/p%d" % number in old.entries
    return [
        Change(1, Op.UPSERT, index.path, index),  # the journal's order is not a publishing order
        Change(2, Op.DELETE, b"pool/p%d" % number),
        Change(3, Op.RENAME, moved.path, moved, b"pool/moved-%d" % number),
        Change(4, Op.UPSERT, fresh.path, fresh),
    ]


def assert_whole(root: bytes) -> int:
    """Read the index and all it names, as a client does; its version. One that changed meanwhile is read again."""
    for _ in range(50):
        number = index_of(root)
        wanted = [b"pool/p%d" % n for n in range(number, number + 5)] + [b"pool/moved-%d" % number]
        missing = [path for path in wanted if not os.path.exists(os.path.join(root, path))]
        if not missing or index_of(root) == number:
            assert not missing, f"index {number} names {missing}, which is not there"
            return number
    return number


def index_of(root: bytes) -> int:
    with open(os.path.join(root, b"index"), "rb") as file:
        return int(file.readline())


def publish_releases(layout: Layout, last: int, versions: Versions | None, trip: Callable[[str], None]) -> None:
    """A daemon's loop: go on with what is under way, then the next release, until `last`."""
    while True:
        root = layout.root
        todo = pending(layout if versions is None else Layout(versions.path(0), layout.work))
        if todo is None:
            number = index_of(root)
            if number == last:
                return
            plan = make_plan(next_release(number), release(number), Ranks(["index"]))
            clear_stage(layout)
            stage_files(plan.steps, release(number + 1), layout.stage)
            todo_intent = Intent(number + 1, plan.steps)
            begin(layout, todo_intent)
        else:
            todo_intent = todo.intent
        if versions is None:
            run(layout, durable=False, trip=trip)
            finish(layout, trip)
        else:
            publish_version(versions, todo_intent, float(todo_intent.number), durable=False, trip=trip)
            finish_version(versions, todo_intent)
        sweep(layout)


@pytest.mark.parametrize("mode", ["live", "atomic"])
def test_no_reader_sees_an_index_without_its_files_while_publishers_are_killed(tmp_path: Path, mode: str) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    write_tree(release(0), root)
    layout = Layout(os.fsencode(root), os.fsencode(tmp_path / "work"))
    prepare(layout)
    versions = None
    if mode == "atomic":
        versions = Versions(layout.root, os.fsencode(tmp_path / "versions"), layout.work)
        adopt(versions)
    last, kills, rng = 60, 0, random.Random(mode)
    reads: set[int] = set()
    while True:
        child = os.fork()
        if child == 0:
            code = 3
            try:
                publish_releases(layout, last, versions, lambda what: None)
                code = 0
            finally:
                os._exit(code)
        killed_after, reading = rng.randrange(20, 400), 0
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            reads.add(assert_whole(layout.root))
            reading += 1
            if reading == killed_after:
                os.kill(child, signal.SIGKILL)
                kills += 1
        reads.add(assert_whole(layout.root))
        if index_of(layout.root) == last and pending(layout) is None:
            break
        assert kills < 3000
    assert read_tree(root) == release(last).seen()
    assert kills >= 3
    assert len(reads) > 5


def test_every_step_keeps_the_index_whole(tmp_path: Path) -> None:
    """The same without luck: looked at before every system call."""
    root = tmp_path / "tree"
    root.mkdir()
    write_tree(release(0), root)
    layout = Layout(os.fsencode(root), os.fsencode(tmp_path / "work"))
    prepare(layout)
    seen: list[int] = []
    publish_releases(layout, 4, None, lambda what: seen.append(assert_whole(layout.root)))
    assert set(seen) == {0, 1, 2, 3, 4}
    assert seen == sorted(seen)
