"""Recording a large batch at once: it must come to what recording each path by itself comes to."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.exclude import NOTHING
from syncd.copy.io_record import Record, brought, record_upserts
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.left_out import Border
from syncd.publish.steps import Do, Step
from syncd.source.io_scan import Disk
from syncd.source.row import UNSURE, Row, Written
from syncd.store.io_index import Index
from syncd.store.io_store import close_store, open_store, transaction


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    db = open_store(tmp_path / "store.db")
    with transaction(db):
        yield Index(db)
    close_store(db)


FILE, DIRECTORY = 0o100644, 0o040755


def row(mode: int, inode: int, size: int = 0) -> Row:
    return Row(mode, size, 1, 1, 0, inode, b"")


def content(index: Index) -> list[tuple[bytes, int, int]]:
    return [(entry.path, entry.mode, entry.size) for entry in index.entries()]


def test_many_at_once_is_one_after_the_other(tmp_path: Path) -> None:
    rng = random.Random(5)
    found = []
    for name in ("one", "all"):
        db = open_store(tmp_path / f"{name}.db")
        index = Index(db)
        rng.seed(5)
        with transaction(db):
            index.put(b"", row(DIRECTORY, 1))
            for inode in range(2, 60):
                homes = rng.randrange(1, 4)
                rows = {b"d%d" % n: row(DIRECTORY, 1000 * inode + n) for n in range(homes)}
                for _ in range(rng.randrange(30)):
                    path = b"d%d/f%d" % (rng.randrange(homes), rng.randrange(20))
                    rows[path] = row(FILE, 1000 * inode, rng.randrange(100))
                batch = sorted(rows.items(), key=lambda item: (item[1].mode == FILE, item[0]))
                if name == "all":
                    index.put_all(batch)
                else:
                    for path, each in batch:
                        index.put(path, each)
        found.append(content(index))
        close_store(db)
    assert found[0] == found[1]
    assert len(found[0]) > 50


@pytest.mark.parametrize("many", [1, 20])
def test_what_was_below_a_directory_that_is_a_file_now_is_forgotten(index: Index, many: int) -> None:
    index.put_all([(b"", row(DIRECTORY, 1)), (b"d", row(DIRECTORY, 2)), (b"d/e", row(DIRECTORY, 3))])
    index.put_all([(b"d/e/f", row(FILE, 4)), (b"d/g", row(FILE, 5))])
    index.put_all([(b"d/e" if n == 0 else b"d/n%02d" % n, row(FILE, 10 + n)) for n in range(many)])
    paths = [path for path, _, _ in content(index)]
    assert b"d/e" in paths
    assert b"d/e/f" not in paths
    index.put_all([(b"d/e", row(DIRECTORY, 99))])
    assert index.children(index.number(b"d/e") or 0) == {}
    with pytest.raises(KeyError):
        index.put_all([(b"nowhere/f", row(FILE, 7))])


def test_the_disk_is_asked_and_drafts_say_what_it_has(tmp_path: Path, index: Index) -> None:
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    (root / "d/f").write_text("abc")
    (root / "d/link").symlink_to("f")
    (root / "outside").symlink_to(tmp_path)
    disk = Disk(os.fsencode(root))
    try:
        assert record_upserts(index, disk, [b"d/f"], {}) is None, "nothing above it is indexed"
        index.put(b"", row(DIRECTORY, 1))
        paths = [b"", b"d", b"d/f", b"d/gone", b"d/link", b"gone/f", b"outside/store.db", b"x" * 5000]
        drafts = record_upserts(index, disk, paths, {})
    finally:
        disk.close()
    assert drafts is not None
    assert [draft.path for draft in drafts] == [b"", b"d", b"d/f", b"d/link"]
    assert [path for path, _, _ in content(index)] == [b"", b"d", b"d/f", b"d/link"]
    found = index.get(b"d/f")
    assert found is not None
    assert found.row == drafts[2].row
    assert found.row.inode == (root / "d/f").stat().st_ino


def test_what_came_in_a_whole_directory_is_recorded_as_it_was_written(tmp_path: Path, index: Index) -> None:
    root = tmp_path / "tree"
    (root / "d").mkdir(parents=True)
    (root / "d/f").write_text("abc")
    (root / "g").write_text("x")
    entries = [Entry(path, Kind.FILE, 0o644, 3, 5) for path in (b"d/f", b"g", b"d/linked")]
    written: Written = {entry.path: row(FILE, inode, 3) for inode, entry in enumerate(entries, 7)}
    written[b"d/linked"] = None
    steps = [Step(Do.BRING, b"d"), Step(Do.PUT, b"g", entry=entries[1])]
    known = brought(steps, written)
    assert known == {b"d/f": row(FILE, 7, 3)}, "a rename of the file itself moves its ctime, and so does a further name"
    fresh = {b"d/f": row(FILE, 7, 3)._replace(ctime_ns=time.time_ns())}
    assert brought(steps, fresh)[b"d/f"].ctime_ns == UNSURE
    disk = Disk(os.fsencode(root))
    try:
        drafts = record_upserts(index, disk, [b"", b"d", b"d/f", b"g"], known)
    finally:
        disk.close()
    assert drafts is not None
    assert [draft.path for draft in drafts] == [b"", b"d", b"d/f", b"g"]
    found = {path: index.get(path) for path in (b"d/f", b"g")}
    assert found[b"d/f"] is not None
    assert found[b"d/f"].row == known[b"d/f"]
    assert found[b"g"] is not None
    assert found[b"g"].row.inode == (root / "g").stat().st_ino


def test_a_symlink_that_is_refused_is_renamed_too(tmp_path: Path, index: Index) -> None:
    """Else the copy's hash is not the origin's until a comparison, and children keep the old name."""
    index.put(b"", row(DIRECTORY, 1))
    link = Entry(b"l", Kind.SYMLINK, 0o777, mtime_ns=1, target=b"/nowhere")
    disk = Disk(os.fsencode(tmp_path))
    Record(index, disk, [Change(1, Op.UPSERT, b"l", link)], Border(NOTHING)).play(frozenset({b"l"}), {})
    moved = Change(2, Op.RENAME, b"m", link._replace(path=b"m"), b"l")
    drafts = Record(index, disk, [moved], Border(NOTHING)).play(frozenset({b"m"}), {})
    disk.close()
    assert [(draft.op, draft.path) for draft in drafts] == [(Op.DELETE, b"l"), (Op.UPSERT, b"m")]
    assert [(entry.path, entry.target) for entry in index.entries()][1:] == [(b"m", b"/nowhere")]
