"""Index and journal in one store: sequences, cursors, trimming, and a writer that is killed."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.model import Change, Entry, Kind, Op
from syncd.source.row import Row
from syncd.store.io_index import Index
from syncd.store.io_journal import CompareManifests, Draft, Journal, Page
from syncd.store.io_store import StoreError, close_store, open_store, transaction
from syncd.transfer.change_codec import PackedChanges, pack_changes

DIRECTORY = Row(stat.S_IFDIR | 0o755, 0, 0, 0, 0, 1, b"")


def file(size: int = 1, inode: int = 9) -> Row:
    return Row(stat.S_IFREG | 0o644, size, 5, 6, 0, inode, b"")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    db = open_store(tmp_path / "s.db")
    yield db
    close_store(db)


def append(db: sqlite3.Connection, *drafts: Draft, at_s: float = 1000.0) -> int:
    with transaction(db):
        return Journal(db).append(drafts, at_s)


def read(db: sqlite3.Connection, after: int, limit: int = 100) -> Page | CompareManifests:
    journal = Journal(db)
    return journal.read(journal.journal_id, after, limit)


def test_every_commit_is_flushed(db: sqlite3.Connection) -> None:
    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_reading_goes_on_from_the_cursor_and_is_coalesced(db: sqlite3.Connection) -> None:
    append(db, Draft(Op.UPSERT, b"a", file(1)), Draft(Op.UPSERT, b"a", file(2)), Draft(Op.DELETE, b"b"))
    page = read(db, 0)
    assert isinstance(page, Page)
    assert [(c.sequence, c.op, c.path) for c in page.changes] == [(3, Op.DELETE, b"b"), (2, Op.UPSERT, b"a")]
    assert page.changes[1].entry is not None
    assert page.changes[1].entry.size == 2
    assert (page.cursor, page.last) == (3, 3)
    assert read(db, 3) == Page((), 3, 3)
    page = read(db, 0, limit=1)
    assert isinstance(page, Page)
    assert (page.cursor, page.last) == (1, 3)


def test_numbers_are_never_given_out_twice(db: sqlite3.Connection) -> None:
    append(db, Draft(Op.DELETE, b"a"))
    journal = Journal(db)
    journal.move_cursor("edge", 1, now=1000.0)
    assert journal.trim(now=1001.0) == 1
    assert append(db, Draft(Op.DELETE, b"b")) == 2
    assert isinstance(read(db, 0), CompareManifests)
    assert isinstance(read(db, 1), Page)


def test_the_slowest_child_holds_changes_back_but_not_for_ever(db: sqlite3.Connection) -> None:
    journal = Journal(db)
    for i in range(10):
        append(db, Draft(Op.DELETE, b"%d" % i), at_s=1000.0 + i)
    journal.move_cursor("fast", 9, now=1010.0)
    journal.move_cursor("slow", 3, now=1010.0)
    assert journal.trim(now=1010.0) == 3
    assert journal.floor() == 3
    # Beyond the bound the slow one has to compare.
    assert journal.trim(now=1010.0, max_changes=4) == 3
    answer = read(db, 3)
    assert isinstance(answer, CompareManifests)
    assert answer.cursor == 10
    assert "below 6" in answer.why
    # A child that is not heard of is forgotten.
    journal.move_cursor("fast", 9, now=9000.0)
    assert journal.trim(now=9000.0, max_age_s=100.0) == 3
    assert journal.cursors() == {"fast": (9, 9000.0)}


@pytest.mark.parametrize(("until", "limit", "end"), [(4, 9, 4), (4, 2, 3), (1, 9, 1), (0, 9, 1), (9, 9, 5)])
def test_a_page_ends_where_it_is_to_end(db: sqlite3.Connection, until: int, limit: int, end: int) -> None:
    append(db, *(Draft(Op.DELETE, b"%d" % i) for i in range(5)))
    journal = Journal(db)
    page = journal.read(journal.journal_id, 1, limit, until)
    assert isinstance(page, Page)
    assert (page.cursor, len(page.changes), page.last) == (end, end - 1, 5)


def test_without_children_changes_are_kept_for_their_age(db: sqlite3.Connection) -> None:
    append(db, Draft(Op.DELETE, b"old"), at_s=1000.0)
    append(db, Draft(Op.DELETE, b"new"), at_s=5000.0)
    assert Journal(db).trim(now=5100.0, max_age_s=1000.0) == 1
    assert isinstance(read(db, 1), Page)


@pytest.mark.parametrize("after", [7, 1 << 60])
def test_a_cursor_that_is_ahead_compares(db: sqlite3.Connection, after: int) -> None:
    append(db, Draft(Op.DELETE, b"a"))
    answer = read(db, after)
    assert isinstance(answer, CompareManifests)
    assert "ahead" in answer.why


def test_a_cursor_of_another_journal_compares(db: sqlite3.Connection, tmp_path: Path) -> None:
    other = open_store(tmp_path / "other.db")
    answer = Journal(db).read(Journal(other).journal_id, 0)
    close_store(other)
    assert isinstance(answer, CompareManifests)
    assert "another journal" in answer.why


def test_a_damaged_store_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"not a database at all" * 400)
    with pytest.raises(StoreError, match="move it away"):
        open_store(tmp_path / "bad.db")


def test_a_failed_transaction_changes_nothing(db: sqlite3.Connection) -> None:
    index = Index(db)

    def fail() -> None:
        with transaction(db):
            index.put(b"", DIRECTORY)
            Journal(db).append([Draft(Op.UPSERT, b"", DIRECTORY)], 1.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    index.rolled_back()
    assert index.number(b"") is None
    assert Journal(db).last() == 0


def test_index_against_a_dict(db: sqlite3.Connection) -> None:
    rng = random.Random(3)
    index = Index(db)
    naive: dict[bytes, Row] = {b"": DIRECTORY}

    def below(path: bytes) -> list[bytes]:
        return [p for p in naive if p == path or p.startswith(path + b"/")]

    with transaction(db):
        index.put(b"", DIRECTORY)
        for step in range(3000):
            above = rng.choice([p for p, r in naive.items() if r.is_directory])
            path = (above + b"/" if above else b"") + rng.choice([b"a", b"\xff", b"\n"])
            what = rng.random()
            if what < 0.6 and path.count(b"/") < 4:
                row = rng.choice([DIRECTORY, file(step)])
                if path in naive and naive[path].is_directory != row.is_directory:
                    assert index.remove(path) == len(below(path))
                    for p in below(path):
                        del naive[p]
                index.put(path, row)
                naive[path] = row
            elif what < 0.75:
                assert index.remove(path) == len(below(path))
                for p in below(path):
                    del naive[p]
            else:
                source = rng.choice([p for p in naive if p] or [b"none"])
                if source not in naive or (path + b"/").startswith(source + b"/") or source.startswith(path + b"/"):
                    continue
                index.move(source, path)
                for p in below(path):
                    del naive[p]
                for p in below(source):
                    naive[path + p[len(source) :]] = naive.pop(p)
            probe = rng.choice(list(naive))
            found = index.get(probe)
            assert found is not None
            assert found.row == naive[probe]
            if not found.row.is_directory:
                assert probe in index.paths_of(0, 9) or len(index.paths_of(0, 9)) == 16
    entries = list(index.entries())
    assert {e.path: e.size for e in entries} == {p: r.size for p, r in naive.items()}
    seen = set()
    for e in entries:
        assert not e.path or e.path.rpartition(b"/")[0] in seen
        seen.add(e.path)
    assert index.size().entries == len(naive)
    assert index.size().directories == sum(e.kind is Kind.DIRECTORY for e in entries)


def test_a_digest_holds_only_for_the_content_that_was_read(db: sqlite3.Connection) -> None:
    index = Index(db)
    with transaction(db):
        index.put(b"", DIRECTORY)
        index.put(b"f", file(1))
        assert index.set_digest(b"f", file(1), b"D" * 32)
        assert not index.set_digest(b"f", file(2), b"E" * 32)
        index.put(b"f", file(1)._replace(mode=stat.S_IFREG | 0o600))
        assert [e.digest for e in index.entries(b"f")] == [b"D" * 32]
        index.put(b"f", file(2))
        assert [e.digest for e in index.entries(b"f")] == [None]


WRITER = """
import sys
from pathlib import Path
from syncd.store.io_index import Index
from syncd.store.io_journal import Draft, Journal
from syncd.store.io_store import open_store, transaction
from syncd.model import Op
from tests.syncd.test_journal import DIRECTORY, file
db = open_store(Path(sys.argv[1]))
index, journal = Index(db), Journal(db)
while True:
    with transaction(db):
        if index.number(b"") is None:
            index.put(b"", DIRECTORY)
        first = journal.last()
        drafts = [Draft(Op.UPSERT, b"%d" % (first + i), file(first + i)) for i in range(1, 8)]
        for draft in drafts:
            index.put(draft.path, draft.row)
        last = journal.append(drafts, 1.0)
    print(last, flush=True)
"""


def test_a_writer_killed_anywhere_leaves_index_and_journal_in_step(tmp_path: Path) -> None:
    rng = random.Random(11)
    store = tmp_path / "s.db"
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    told = 0
    for _ in range(12):
        with subprocess.Popen([sys.executable, "-c", WRITER, store], stdout=subprocess.PIPE, env=env) as writer:
            assert writer.stdout is not None
            # What was told must be kept, so wait for something to be told; then any instruction may be the last.
            told = int(writer.stdout.readline())
            time.sleep(rng.random() * 0.05)
            writer.kill()
            lines = writer.stdout.read().split(b"\n")[:-1]
            told = int(lines[-1]) if lines else told
        db = open_store(store)
        last = Journal(db).last()
        assert last >= told
        assert last % 7 == 0
        page = read(db, 0, 50_000)
        assert isinstance(page, Page)
        assert sorted(c.sequence for c in page.changes) == list(range(1, last + 1))
        assert {e.path for e in Index(db).entries()} - {b""} == {b"%d" % i for i in range(1, last + 1)}
        close_store(db)


def test_upserts_alone_come_as_the_bytes_that_their_changes_make(db: sqlite3.Connection) -> None:
    link = Row(stat.S_IFLNK | 0o777, 0, 5, 0, 0, 9, b"f")
    rows = {b"d": Row(stat.S_IFDIR | 0o755, 0, 5, 0, 0, 9, b""), b"d/f": file(2), b"d.x": file(3), b"d/l": link}
    with transaction(db):
        Journal(db).append([Draft(Op.UPSERT, path, row) for path, row in [(b"d/f", file(1)), *rows.items()]], 1.0)
    page = read(db, 0)
    assert isinstance(page, Page)
    assert isinstance(page.changes, PackedChanges)
    assert len(page.changes) == 4
    assert [change.path for change in page.changes] == [b"d", b"d/f", b"d/l", b"d.x"], (
        "what is in a directory behind it"
    )
    assert page.changes[1] == Change(3, Op.UPSERT, b"d/f", Entry(b"d/f", Kind.FILE, 0o644, 2, 5))
    assert page.changes.packed == pack_changes(tuple(page.changes))
    with transaction(db):
        Journal(db).append([Draft(Op.DELETE, b"d.x")], 2.0)
    page = read(db, 0)
    assert isinstance(page, Page)
    assert [change.op for change in page.changes].count(Op.DELETE) == 1
