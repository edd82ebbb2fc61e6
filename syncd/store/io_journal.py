"""The journal: what changed, in order, for children who remember how far they are.

Appending happens in the transaction that changes the index. Sequence numbers never come twice, over restarts and trims;
together with the journal's id they say where a child stands. Who stands below the floor is told to compare manifests:
then, and only then, the journal cannot bring it up to date.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from syncd.model import Change, Op
from syncd.source.row import Row, to_entry
from syncd.store.coalesce import coalesce
from syncd.store.io_store import fact, set_fact, transaction
from syncd.transfer.change_codec import PackedChanges, pack_upserts

MAX_CHANGES = 2_000_000
"""How many changes are kept for the slowest child: about 300 MB. Comparing manifests is cheaper than reading more."""

MAX_AGE_S = 14 * 86_400.0
"""How long a child may be away before its cursor stops holding changes back."""

MAX_PAGE = 50_000
_MAX_CHILDREN = 10_000
_MAX_CHILD_LEN = 255
_OPS = {op.value: op for op in Op}
_UPSERT = Op.UPSERT.value
_INSERT = "INSERT INTO changes (sequence, op, path, source, at_s, mode, size, mtime_ns, target, digest) VALUES (%s)"
_Row = tuple[Any, ...]
"""Of the table of changes, without the time."""


class Draft(NamedTuple):
    """A change that has no sequence number yet. `row` comes with UPSERT and RENAME, `source` with RENAME.

    `digest`: of the content, where it is known and to be told.
    """

    op: Op
    path: bytes
    row: Row | None = None
    source: bytes = b""
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Changes after a cursor, coalesced; `cursor` is where to go on from, once they are applied durably."""

    changes: Sequence[Change]
    cursor: int
    last: int
    """the newest sequence number there is: `last - cursor` is how far behind the child is then"""


@dataclass(frozen=True, slots=True)
class CompareManifests:
    """The journal cannot bring this child up to date: compare manifests, then go on from `cursor`."""

    cursor: int
    why: str


class Journal:
    """See the module. A connection of its own (open_store(..., exclusive=False)) for each thread that reads."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @property
    def journal_id(self) -> bytes:
        """16 random bytes that another journal does not have."""
        found = fact(self._db, "journal_id")
        assert isinstance(found, bytes)
        return found

    def last(self) -> int:
        """The newest sequence number; 0 before the first change."""
        return int(fact(self._db, "last_sequence") or 0)

    def floor(self) -> int:
        """The lowest cursor that can be read from."""
        return int(fact(self._db, "floor") or 0)

    # -- within a transaction

    def append(self, drafts: Sequence[Draft], at_s: float) -> int:
        """Write changes down, but for what only this node knows of a row; the sequence number of the last."""
        upserts: list[tuple[Any, ...]] = []
        others: list[tuple[Any, ...]] = []
        sequence = last = self.last()
        for sequence, (op, path, row, source, digest) in enumerate(drafts, last + 1):
            if op is Op.UPSERT and row is not None and not source:
                upserts.append((sequence, path, at_s, row.mode, row.size, row.mtime_ns, row.target, digest))
            elif row is not None:
                what = (row.mode, row.size, row.mtime_ns, row.target, digest)
                others.append((sequence, op.value, path, source, at_s, *what))
            else:
                others.append((sequence, op.value, path, source, at_s, None, None, None, None, None))
        self._db.executemany(_INSERT % "?,'u',?,x'',?,?,?,?,?,?", upserts)
        self._db.executemany(_INSERT % "?,?,?,?,?,?,?,?,?,?", others)
        if sequence > last:
            set_fact(self._db, "last_sequence", sequence)
        return sequence

    def append_baseline(self) -> int:
        """The tree changed in a way that is not written down change by change (its first reading): raise the floor."""
        last = self.last() + 1
        self._db.execute("DELETE FROM changes")
        set_fact(self._db, "last_sequence", last)
        set_fact(self._db, "floor", last)
        return last

    def since(self, after: int, limit: int) -> list[Change] | None:
        """Every single change after `after`, as it was written; None when they are not all here, or more than `limit`."""
        last = self.last()
        if after < self.floor() or after > last or last - after > limit:
            return None
        return [_change(row) for row in self._rows(after, limit)]

    # -- on their own

    def read(
        self, journal_id: bytes, after: int, limit: int = 10_000, until: int | None = None
    ) -> Page | CompareManifests:
        """What came after the cursor `after` of the journal `journal_id`, made of at most `limit` written changes.

        `until`: nothing that came after this one. An empty page means that the child is up to date. Upserts alone, most
        pages of a burst, come as bytes.
        """
        limit = max(1, min(limit, MAX_PAGE))
        self._db.execute("BEGIN")
        try:
            last, floor = self.last(), self.floor()
            if journal_id != self.journal_id:
                return CompareManifests(last, "the cursor is of another journal")
            if after > last:
                return CompareManifests(last, f"the cursor {after} is ahead of the journal, which ends at {last}")
            if after < floor:
                return CompareManifests(last, f"the cursor {after} is below {floor}, where the journal starts")
            # Numbers have no gaps above the floor: so many rows end at `until`.
            rows = self._rows(after, limit if until is None else min(limit, max(0, until - after)))
        finally:
            self._db.execute("COMMIT")
        if not rows:
            return Page((), after, last)
        if any(row[1] != _UPSERT or row[3] for row in rows):
            return Page(tuple(coalesce([_change(row) for row in rows])), rows[-1][0], last)
        # As `coalesce` does it: each path once, what is in a directory right behind it.
        newest = {row[2]: row for row in rows}
        ordered = [newest[path] for path in sorted(newest, key=lambda path: path.replace(b"/", b"\0"))]
        packed = pack_upserts([(row[0], row[2], *row[4:]) for row in ordered])
        return Page(PackedChanges(packed, len(ordered)), rows[-1][0], last)

    def _rows(self, after: int, limit: int) -> list[_Row]:
        return self._db.execute(
            "SELECT sequence, op, path, source, mode, size, mtime_ns, target, digest FROM changes "
            "WHERE sequence>? ORDER BY sequence LIMIT ?",
            (after, limit),
        ).fetchall()

    def move_cursor(self, child: str, sequence: int, now: float) -> None:
        """`child` has published everything up to `sequence`. A cursor may go back: the child was restored, say."""
        if not 0 < len(child) <= _MAX_CHILD_LEN:
            raise ValueError(f"the name of a child has 1 to {_MAX_CHILD_LEN} characters")
        with transaction(self._db):
            known = self._db.execute("SELECT count(*) FROM cursors WHERE child<>?", (child,)).fetchone()[0]
            if known >= _MAX_CHILDREN:
                raise ValueError(f"{known} children are known already; no more are taken")
            self._db.execute("INSERT OR REPLACE INTO cursors VALUES (?,?,?)", (child, min(sequence, self.last()), now))

    def cursors(self) -> dict[str, tuple[int, float]]:
        """child -> (sequence, when it was last heard of)."""
        rows = self._db.execute("SELECT child, sequence, seen_s FROM cursors ORDER BY child")
        return {child: (sequence, seen_s) for child, sequence, seen_s in rows}

    def forget(self, child: str) -> bool:
        """Drop a child that is no more."""
        with transaction(self._db):
            return self._db.execute("DELETE FROM cursors WHERE child=?", (child,)).rowcount > 0

    def trim(self, now: float, max_changes: int = MAX_CHANGES, max_age_s: float = MAX_AGE_S) -> int:
        """Drop what every child has, and what is beyond the bounds; how many changes that were.

        Children not heard of for `max_age_s` are forgotten; without any child, changes are kept for that long.
        """
        with transaction(self._db):
            self._db.execute("DELETE FROM cursors WHERE seen_s<?", (now - max_age_s,))
            last = self.last()
            lowest = self._db.execute("SELECT min(sequence) FROM cursors").fetchone()[0]
            if lowest is None:
                old = self._db.execute("SELECT max(sequence) FROM changes WHERE at_s<?", (now - max_age_s,)).fetchone()[
                    0
                ]
                lowest = old or self.floor()
            floor = max(self.floor(), min(lowest, last), last - max_changes)
            gone = self._db.execute("DELETE FROM changes WHERE sequence<=?", (floor,)).rowcount
            set_fact(self._db, "floor", floor)
            return gone


def _change(row: _Row) -> Change:
    sequence, op, path, source, mode, size, mtime_ns, target, digest = row
    entry = None if mode is None else to_entry(path, Row(mode, size, mtime_ns, 0, 0, 0, target), digest)
    return Change(sequence, _OPS[op], path, entry, source)
