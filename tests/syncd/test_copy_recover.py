"""A copy that was cut short in the midst of something, and is opened again: its index is of what lies on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from core.config_sync import Tree
from syncd.copy import io_copy
from syncd.copy.io_copy import Copy
from syncd.copy.note import Note, encode_note
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.io_leftovers import renew_stage
from syncd.publish.io_publish import begin, run
from syncd.publish.steps import Do, Intent, PublishError, Step
from syncd.source.io_compare import Comparer
from syncd.source.row import EXCLUDED
from syncd.store.io_store import StoreError

SECOND_NS = 10**9


class Cut(BaseException):
    """The process ends here."""


def open_copy(tmp_path: Path, mode: str = "live", exclude: Sequence[str] = ()) -> closing[Copy]:
    of_copy = {"parents": ["p"], "public_key": "00" * 32, "mode": mode, "exclude": list(exclude)}
    tree = Tree.model_validate({"path": str(tmp_path / "m"), **of_copy})
    return closing(Copy("t", tree, tmp_path / "t.db"))


def upsert(name: bytes, content: bytes, mtime_ns: int = SECOND_NS) -> Change:
    return Change(0, Op.UPSERT, name, Entry(name, Kind.FILE, 0o644, len(content), mtime_ns))


def stage(copy: Copy, name: bytes, content: bytes, mtime_ns: int = SECOND_NS) -> Change:
    place = Path(os.fsdecode(copy.layout.stage)) / os.fsdecode(name)
    place.write_bytes(content)
    place.chmod(0o644)
    os.utime(place, ns=(mtime_ns, mtime_ns))
    return upsert(name, content, mtime_ns)


def publish(copy: Copy, change: Change) -> None:
    copy.publish(copy.plan([change]).steps, Note((change,)))


def indexed_size(copy: Copy, path: bytes) -> int:
    child = copy.index.get(path)
    assert child is not None
    return child.row.size


@contextmanager
def cut_at_walk(monkeypatch: pytest.MonkeyPatch, number: int) -> Iterator[None]:
    """The process ends before the `number`th directory is read."""
    walk, walked = Comparer.walk, []

    def counted(self: Comparer, *arguments: object) -> None:
        walked.append(arguments)
        if len(walked) == number:
            raise Cut
        walk(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(io_copy, "_LOOK_SLICE", 1)
        patch.setattr(Comparer, "walk", counted)
        with pytest.raises(Cut):
            yield


def test_a_first_reading_that_was_cut_short_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what was not read yet is no difference to the parent's: it would be served for ever."""
    for number in range(4):
        (tmp_path / "m" / f"d{number}").mkdir(parents=True)
        (tmp_path / "m" / f"d{number}" / "old").write_bytes(b"x")
    with open_copy(tmp_path) as copy, cut_at_walk(monkeypatch, 3):
        copy.recover()
    with open_copy(tmp_path) as copy:
        assert copy.size().entries < 9
        copy.recover()
        assert copy.size().entries == 9


def test_a_rollback_that_was_cut_short_leaves_no_index_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else, once it is released, the older version is proved by the newer one's index, and served as fresh."""
    with open_copy(tmp_path, "atomic") as copy:
        copy.recover()
        publish(copy, stage(copy, b"f", b"one"))
        publish(copy, stage(copy, b"f", b"three", 2 * SECOND_NS))
        assert indexed_size(copy, b"f") == 5
        with cut_at_walk(monkeypatch, 1):
            copy.pin(1)
    with open_copy(tmp_path, "atomic") as copy:
        assert copy.pinned == 1
        assert (1, True) in [(number, public) for number, public, _ in copy.versions()]
        copy.recover()
        assert indexed_size(copy, b"f") == 3


def test_a_damaged_note_of_a_publish_does_not_stop_the_tree(tmp_path: Path) -> None:
    with open_copy(tmp_path) as copy:
        copy.recover()
        for damaged in (b"x" * 100, b"x" * 36 + b"nearpath-publish-v1\n"):
            (tmp_path / "m" / "by-it").write_bytes(damaged)
            Path(os.fsdecode(copy.layout.work), "intent").write_bytes(damaged)
            copy.recover()
            assert indexed_size(copy, b"by-it") == len(damaged)


def test_rooms_that_could_not_be_made_on_a_full_disk_are_made_later(tmp_path: Path) -> None:
    with open_copy(tmp_path) as copy:
        copy.recover()
        os.rmdir(copy.layout.stage)
        os.rmdir(copy.layout.ahead)
        assert renew_stage(copy.layout, {}, b"partial") == frozenset()
        assert copy.clear_ahead() == copy.layout.ahead
        publish(copy, stage(copy, b"f", b"new"))


def test_paths_of_a_publish_that_lost_power_are_looked_at_before_they_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_copy(tmp_path) as copy:
        copy.recover()
        change = stage(copy, b"f", b"new")
        begin(copy.layout, Intent(1, (Step(Do.PUT, b"f", entry=change.entry),), encode_note(Note((change,)))))
        run(copy.layout)
        intent = Path(os.fsdecode(copy.layout.work), "intent")
        intent.write_bytes(b"0" * 36 + intent.read_bytes()[36:])  # of another boot

        def full(*_: object) -> int:
            raise StoreError("the index cannot be written", "free some space")

        with monkeypatch.context() as patch:
            patch.setattr(copy.journal, "append", full)
            with pytest.raises(StoreError):
                copy.recover()
        assert copy.index.get(b"f") is None
        copy.recover()
        assert indexed_size(copy, b"f") == 3
        assert not intent.exists()


def rows(copy: Copy) -> dict[bytes, int]:
    """Path -> device, of all that is indexed but the root."""
    return {entry.path: entry.inode[0] for entry in copy.index.entries() if entry.path}


def test_what_is_left_out_stays_indexed_through_readings_and_other_patterns(tmp_path: Path) -> None:
    """So that its hash is the origin's all the time; what the patterns no longer cover is missing, and fetched."""
    (tmp_path / "m").mkdir()
    folder = Change(0, Op.UPSERT, b"d", Entry(b"d", Kind.DIRECTORY, 0o755, mtime_ns=SECOND_NS))
    changes = (folder, upsert(b"d/a.part", b"12345"), upsert(b"d/b.part", b"123"), upsert(b"d/f", b""))
    with open_copy(tmp_path, exclude=["*.part"]) as copy:
        copy.recover()
        (tmp_path / ".m.syncd" / "stage" / "d").mkdir()
        stage(copy, b"d/f", b"")
        assert not copy.is_partial
        plan = copy.plan(changes)
        assert b"d/a.part" not in {step.path for step in plan.steps}
        copy.publish(plan.steps, Note(changes))
        (tmp_path / "m" / "d" / "own.part").write_text("of this mirror")
        (tmp_path / "m" / "d" / "b.part").write_text("left from before")
        told = {b"d": 0, b"d/a.part": EXCLUDED, b"d/b.part": EXCLUDED, b"d/f": 0}
        for _ in range(2):
            assert rows(copy) == told
            assert (copy.left_out(), copy.size().entries, copy.is_partial) == ((2, 8), 3, True)
            copy.read_disk()
    with open_copy(tmp_path, exclude=["*.part", "f"]) as copy:
        copy.recover()
        assert rows(copy) == told | {b"d/f": EXCLUDED}, "what was published is left out where it lies"
    with open_copy(tmp_path, exclude=["d/"]) as copy:
        copy.recover()
        assert set(rows(copy).values()) == {EXCLUDED}
    with open_copy(tmp_path) as copy:
        assert copy.is_partial, "until it is compared"
        copy.recover()
        assert copy.is_partial
        assert rows(copy) == {b"d": 0, b"d/b.part": 0, b"d/f": 0, b"d/own.part": 0}
        copy.found_equal()
        assert not copy.is_partial
        assert copy.left_out() == (0, 0)


def test_a_part_that_is_held_back_holds_back_nothing_of_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with open_copy(tmp_path, exclude=["*.part"]) as copy:
        copy.recover()
        publish(copy, stage(copy, b"f", b"one"))
        first = (upsert(b"a.part", b"1"), upsert(b"b.part", b"22"))
        copy.publish((), Note(first))
        move = Change(0, Op.RENAME, b"c.part", upsert(b"c.part", b"22")[3], b"b.part")
        changes = (
            Change(0, Op.DELETE, b"a.part"),
            move,
            upsert(b"e.part", b"333"),
            upsert(b"f", b"three", 2 * SECOND_NS),
        )
        told = copy.leave_out(changes).changes
        later = (upsert(b"f", b"three", 2 * SECOND_NS),)
        copy.publish((Step(Do.ATTR, b"", entry=Entry(b"", Kind.DIRECTORY, 0o755)),), Note(told, later))
        assert rows(copy) == {b"f": 0, b"c.part": EXCLUDED, b"e.part": EXCLUDED}
        assert indexed_size(copy, b"f") == 3
        assert copy.later() == later


def test_a_plain_server_tells_nothing_of_what_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with open_copy(tmp_path, exclude=["*.part"]) as copy:
        copy.recover()
        copy.publish((), Note((upsert(b"a.part", b"1"),)))
        copy.forget_left_out()
        assert (rows(copy), copy.is_partial) == ({}, False)


def test_a_publish_that_was_cut_short_is_not_gone_on_with_by_other_patterns(tmp_path: Path) -> None:
    """What they cover from now on is the mirror's own: it was neither to be replaced nor deleted."""
    with open_copy(tmp_path) as copy:
        copy.recover()
        publish(copy, stage(copy, b"old", b"1"))
        changes = (stage(copy, b"mine", b"theirs"), stage(copy, b"other", b"2"), Change(0, Op.DELETE, b"old"))
        begin(copy.layout, Intent(9, copy.plan(changes).steps, encode_note(Note(changes))))
    (tmp_path / "m" / "mine").write_text("own")
    with open_copy(tmp_path, exclude=["/mine", "/old"]) as copy:
        assert copy.recover() == 0
        assert sorted(os.listdir(tmp_path / "m")) == ["mine", "old"]
        assert (tmp_path / "m" / "mine").read_text() == "own"
        publish(copy, stage(copy, b"other", b"2"))
        assert sorted(os.listdir(tmp_path / "m")) == ["mine", "old", "other"]


def test_what_came_into_a_directory_after_its_move_was_planned_stays_where_it_is(tmp_path: Path) -> None:
    with open_copy(tmp_path, exclude=["/d/own"]) as copy:
        copy.recover()
        (tmp_path / "m" / "d").mkdir()
        copy.read_disk()
        moved = Change(0, Op.RENAME, b"e", Entry(b"e", Kind.DIRECTORY, 0o755, mtime_ns=SECOND_NS), b"d")
        told = copy.leave_out([moved]).changes
        steps = copy.plan(told).steps
        (tmp_path / "m" / "d" / "own").write_text("own")
        with pytest.raises(PublishError, match="'d/own', which is left alone"):
            copy.publish(steps, Note(told))
        told = copy.leave_out([moved]).changes
        copy.publish(copy.plan(told).steps, Note(told))
        assert (tmp_path / "m" / "d" / "own").read_text() == "own"
        assert (tmp_path / "m" / "e").is_dir()


def test_what_takes_the_place_of_the_directory_it_was_in_is_recorded(tmp_path: Path) -> None:
    """No journal of ours tells it so; were it not recorded once it is done, no parent could mend this copy any more."""
    with open_copy(tmp_path) as copy:
        copy.recover()
        (tmp_path / "m" / "d" / "in" / "deep").mkdir(parents=True)
        (tmp_path / "m" / "d" / "other").touch()
        copy.read_disk()
        publish(copy, Change(0, Op.RENAME, b"d", Entry(b"d", Kind.DIRECTORY, 0o755, mtime_ns=SECOND_NS), b"d/in"))
        assert rows(copy) == {b"d": 0, b"d/deep": 0}
        assert os.listdir(tmp_path / "m" / "d") == ["deep"]


def on_disk(copy: Copy) -> set[bytes]:
    with_root = [os.path.join(above, name) for above, dirs, files in os.walk(copy.root) for name in (*dirs, *files)]
    return {os.path.relpath(path, copy.root) for path in with_root}


DIRECTORY = Entry(b"", Kind.DIRECTORY, 0o755, mtime_ns=SECOND_NS)
LINK = Entry(b"", Kind.SYMLINK, 0o777, mtime_ns=SECOND_NS, target=b"b")


def told(op: Op, path: bytes, entry: Entry | None = None, source: bytes = b"") -> Change:
    return Change(0, op, path, None if entry is None else entry._replace(path=path), source)


@pytest.mark.parametrize(
    "changes",
    [
        (told(Op.UPSERT, b"a", LINK), told(Op.UPSERT, b"a/x", DIRECTORY)),
        (told(Op.UPSERT, b"a", LINK), told(Op.UPSERT, b"a", DIRECTORY)),
        (told(Op.UPSERT, b"b/z", LINK), told(Op.RENAME, b"a/x", LINK, b"b")),
        (told(Op.UPSERT, b"a/z", LINK), told(Op.RENAME, b"c", DIRECTORY, b"a")),
        (told(Op.DELETE, b"k"), told(Op.RENAME, b"n", LINK, b"no"), told(Op.RENAME, b"m", DIRECTORY, b"k/d")),
    ],
)
def test_an_index_is_of_the_disk_though_changes_are_at_odds(tmp_path: Path, changes: tuple[Change, ...]) -> None:
    """Else a hostile parent takes files away, or puts some there, and the hash of the index is still the signed one."""
    with open_copy(tmp_path, exclude=["own"]) as copy:
        copy.recover()
        for name in ("a/d/y", "a/x", "b", "k/d/f", "k/own"):
            (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "m" / name).touch()
        copy.read_disk()
        copy.publish(copy.plan(changes).steps, Note(changes))
        assert set(rows(copy)) == on_disk(copy) - {b"k/own"}


def test_a_file_is_not_forgotten_for_what_is_left_out_below_it(tmp_path: Path) -> None:
    with open_copy(tmp_path, exclude=["d/"]) as copy:
        copy.recover()
        publish(copy, stage(copy, b"d", b"1"))
        publish(copy, upsert(b"d/x", b"2"))
        assert rows(copy) == {b"d": 0}
