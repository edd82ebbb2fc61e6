"""A copy that was cut short in the midst of something, and is opened again: its index is of what lies on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from syncd.publish.steps import Do, Intent, Step
from syncd.source.io_compare import Comparer
from syncd.store.io_store import StoreError

SECOND_NS = 10**9


class Cut(BaseException):
    """The process ends here."""


def open_copy(tmp_path: Path, mode: str = "live") -> closing[Copy]:
    tree = Tree.model_validate({"path": str(tmp_path / "m"), "parents": ["p"], "public_key": "00" * 32, "mode": mode})
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
        assert (1, True) in copy.versions()
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
