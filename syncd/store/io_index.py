"""The index: what the tree held when it was last looked at.

Rows are keyed by (parent directory's number, name), so listing a directory is one range, a renamed directory is one row
however much is below it, and no path is stored twice. All writing happens within the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from syncd.model import Entry
from syncd.source.row import EXCLUDED, Row, to_entry
from syncd.store.io_store import fact, set_fact

ROOT = 1
"""The number of the root directory; its own row has parent 0 and an empty name."""

_ASIDE = -1
"""A parent that nothing has: of what takes the place of the directory that it was in, for as long as that goes."""

_ROW = "mode, size, mtime_ns, ctime_ns, device, inode, target"
_MAX_CACHED_PATHS = 20_000

_MAX_NAMES = 16
"""How many names of one inode are looked at to find the one it was renamed from; all of them would be quadratic when
a thousand hard links to one file are made."""


_MAX_ASKED = 500
"""Values in one question; SQLite takes 32,766."""

_MANY = 8
"""From so many names of a directory on, all its sub-directories are listed rather than each name looked up."""

_PUT = (
    f"INSERT INTO entries (parent, name, directory, {_ROW}, digest) VALUES (?,?,?,?,?,?,?,?,?,?,?) "
    "ON CONFLICT (parent, name) DO UPDATE SET digest=coalesce(excluded.digest, CASE WHEN size=excluded.size AND "
    "mtime_ns=excluded.mtime_ns AND ctime_ns=excluded.ctime_ns AND inode=excluded.inode THEN digest END), "
    "directory=excluded.directory, listed_ns=CASE WHEN inode=excluded.inode THEN listed_ns END, "
    "mode=excluded.mode, size=excluded.size, mtime_ns=excluded.mtime_ns, ctime_ns=excluded.ctime_ns, "
    "device=excluded.device, inode=excluded.inode, target=excluded.target"
)


UNREADABLE = b""
"""As a digest in the index: it was tried, and the content could not be read. Outside of it such a file has none."""

NO_DIGESTS: Mapping[bytes, bytes] = {}

_UNREAD = "directory IS NULL AND mode & 61440 = 32768 AND digest IS NULL"
"""Files (S_IFREG of S_IFMT) whose content was not read since it changed."""


class Child(NamedTuple):
    """A name in a directory: its row, its number when it is a directory itself, and the digest of a file's content."""

    row: Row
    directory: int | None
    digest: bytes | None = None


@dataclass(frozen=True, slots=True)
class Size:
    """How much the index holds."""

    entries: int
    directories: int
    bytes: int


class Index:
    """See the module. `Row`s go in and out; `Entry` is made only for what leaves.

    `by_inode`: digests are kept when only the ctime moved; for a copy, where every new content has an inode of its own.
    """

    def __init__(self, db: sqlite3.Connection, *, by_inode: bool = False) -> None:
        self._db = db
        self._put_row = _PUT.replace("ctime_ns=excluded.ctime_ns AND ", "", 1) if by_inode else _PUT
        self._numbers: dict[bytes, int] = {}
        self._next = int(fact(db, "next_directory") or ROOT)

    def rolled_back(self) -> None:
        """To be called when a transaction that wrote here was rolled back: what was kept in memory may be wrong."""
        self._numbers.clear()
        self._next = int(fact(self._db, "next_directory") or ROOT)

    def size(self) -> Size:
        """Of what is published. Counted, so not for every second: 1,000,000 rows take about 50 ms. `bytes` as files say."""
        return self._size("device>=0")

    def left_out(self) -> Size:
        """Of what the origin has, and the patterns of this copy leave out."""
        return self._size(f"device={EXCLUDED}")

    def _size(self, which: str) -> Size:
        sql = f"SELECT count(*), count(directory), coalesce(sum(size), 0) FROM entries WHERE {which}"
        return Size(*self._db.execute(sql).fetchone())

    def holds_more_than_root(self) -> bool:
        """Whether there is anything in the root that is published."""
        sql = "SELECT 1 FROM entries WHERE parent=? AND device>=0 LIMIT 1"
        return self._db.execute(sql, (self.number(b"") or ROOT,)).fetchone() is not None

    def on_device(self, device: int, limit: int) -> list[tuple[bytes, Row]]:
        """At most `limit` of the paths, with their rows, that are on this device. Reads the whole index."""
        sql = f"SELECT parent, name, {_ROW} FROM entries WHERE device=? LIMIT ?"
        found = self._db.execute(sql, (device, limit)).fetchall()
        paths = [(self._path(parent, name), Row._make(row)) for parent, name, *row in found]
        return [(path, row) for path, row in paths if path is not None]

    def number(self, path: bytes) -> int | None:
        """The number of the directory `path`; None when the index has no such directory."""
        if (known := self._numbers.get(path)) is not None:
            return known
        if path:
            above, _, name = path.rpartition(b"/")
            parent = self.number(above)
            if parent is None:
                return None
        else:
            parent, name = 0, b""
        row = self._db.execute("SELECT directory FROM entries WHERE parent=? AND name=?", (parent, name)).fetchone()
        number: int | None = row[0] if row else None
        if number is not None:
            if len(self._numbers) >= _MAX_CACHED_PATHS:
                self._numbers.clear()
            self._numbers[path] = number
        return number

    def get(self, path: bytes) -> Child | None:
        """What the index has at `path`."""
        place = self._place(path)
        if place is None:
            return None
        sql = f"SELECT directory, digest, {_ROW} FROM entries WHERE parent=? AND name=?"
        row = self._db.execute(sql, place).fetchone()
        return Child(Row._make(row[2:]), row[0], row[1] or None) if row else None

    def children(self, number: int) -> dict[bytes, Child]:
        """All names in the directory with this number."""
        rows = self._db.execute(f"SELECT name, directory, digest, {_ROW} FROM entries WHERE parent=?", (number,))
        return {row[0]: Child(Row._make(row[3:]), row[1], row[2] or None) for row in rows}

    def subdirectories(self, number: int) -> list[bytes]:
        """The names of the directories in the directory with this number."""
        rows = self._db.execute("SELECT name FROM entries WHERE parent=? AND directory IS NOT NULL", (number,))
        return [row[0] for row in rows]

    def listed_ns(self, path: bytes) -> int:
        """The ctime of the directory when all its names were last compared; 0 when that is not known."""
        place = self._place(path)
        row = place and self._db.execute("SELECT listed_ns FROM entries WHERE parent=? AND name=?", place).fetchone()
        return row[0] or 0 if row else 0

    def paths_of(self, device: int, inode: int) -> list[bytes]:
        """The paths that had this inode when last looked at; several for hard links, not all if very many."""
        sql = f"SELECT parent, name, device FROM entries WHERE inode=? LIMIT {_MAX_NAMES}"
        found = self._db.execute(sql, (inode,)).fetchall()
        return [path for parent, name, dev in found if dev == device and (path := self._path(parent, name)) is not None]

    def known_inodes(self, inodes: Iterable[int]) -> frozenset[int]:
        """Those of `inodes`, on whatever device, that something here had when last looked at."""
        asked = list(inodes)
        found: set[int] = set()
        for i in range(0, len(asked), _MAX_ASKED):
            some = asked[i : i + _MAX_ASKED]
            sql = f"SELECT DISTINCT inode FROM entries WHERE inode IN ({','.join('?' * len(some))})"
            found.update(row[0] for row in self._db.execute(sql, some))
        return frozenset(found)

    def link_groups(self) -> Iterator[tuple[bytes, ...]]:
        """The paths of each file that has several names here."""
        sql = (
            "SELECT inode, device FROM entries WHERE directory IS NULL AND inode>0 AND target=x'' "
            "GROUP BY inode, device HAVING count(*)>1"
        )
        for inode, device in self._db.execute(sql).fetchall():
            rows = self._db.execute("SELECT parent, name FROM entries WHERE inode=? AND device=?", (inode, device))
            paths = [self._path(parent, name) for parent, name in rows.fetchall()]
            yield tuple(path for path in paths if path is not None)

    def entries(self, path: bytes = b"") -> Iterator[Entry]:
        """The entry at `path` and all below it, parents first, siblings in the order of their bytes."""
        top = self.get(path)
        if top is None:
            return
        yield to_entry(path, top.row, top.digest)
        stack = [(path, top.directory)]
        while stack:
            above, number = stack.pop()
            if number is None:
                continue
            sql = f"SELECT name, directory, digest, {_ROW} FROM entries WHERE parent=? ORDER BY name"
            deeper = []
            for name, directory, digest, *row in self._db.execute(sql, (number,)).fetchall():
                below = above + b"/" + name if above else name
                yield to_entry(below, Row._make(row), digest or None)
                if directory is not None:
                    deeper.append((below, directory))
            stack.extend(reversed(deeper))

    def unread(self) -> Size:
        """How many files have no digest, and their bytes. Reads the whole index."""
        count, size = self._db.execute(
            f"SELECT count(*), coalesce(sum(size), 0) FROM entries WHERE {_UNREAD}"
        ).fetchone()
        return Size(count, 0, size)

    def unread_files(
        self, limit: int, after: tuple[int, bytes] = (0, b"")
    ) -> list[tuple[tuple[int, bytes], bytes, Row]]:
        """(place, path, row) of at most `limit` files without a digest that come behind the place `after`."""
        sql = (
            f"SELECT parent, name, {_ROW} FROM entries WHERE (parent, name) > (?,?) AND {_UNREAD} ORDER BY parent, name"
        )
        found = self._db.execute(sql + " LIMIT ?", (*after, limit)).fetchall()
        paths = [((parent, name), self._path(parent, name), Row._make(row)) for parent, name, *row in found]
        return [(place, path, row) for place, path, row in paths if path is not None]

    # -- within a transaction

    def put(self, path: bytes, row: Row, digest: bytes | None = None) -> None:
        """Store what is at `path` now. A directory keeps its number and what is below it; its parent must be there.

        Without a new `digest` (UNREADABLE is one too), the old one is forgotten unless the row says that the content is the
        one that was read.
        """
        place = self._place(path)
        if place is None:
            raise KeyError(path)
        number = None
        if row.is_directory:
            number = self.number(path) or self._new_number()
            self._numbers[path] = number
        self._db.execute(self._put_row, (*place, number, *row, digest))

    def put_all(self, rows: Iterable[tuple[bytes, Row]], digests: Mapping[bytes, bytes] = NO_DIGESTS) -> None:
        """`put` of many (path, row), each path once, directories before what is in them; quick where many share one.

        `digests` of files, by path.

        Unlike `put`, it forgets what was below a directory that is something else now.
        """
        files: dict[int, list[tuple[bytes, Row]]] = {}
        empty: set[int] = set()
        for path, row in rows:
            if row.is_directory or not path:
                before = self._next
                self.put(path, row)
                if self._next != before:
                    empty.add(before)
                continue
            number = self.number(path.rpartition(b"/")[0])
            if number is None:
                raise KeyError(path)
            files.setdefault(number, []).append((path, row))
        for number, found in files.items():
            if number in empty:
                new = [(path.rpartition(b"/")[2], row, digests.get(path)) for path, row in found]
                self.put_new_files(number, new)
                continue
            self._forget_directories(number, [path for path, _ in found])
            names = [(number, path.rpartition(b"/")[2], None, *row, digests.get(path)) for path, row in found]
            self._db.executemany(self._put_row, names)

    def _forget_directories(self, number: int, paths: list[bytes]) -> None:
        """What the index has below those of `paths`, all of them names in the directory with this number."""
        if len(paths) < _MANY:
            gone = [path for path in paths if self.number(path) is not None]
        else:
            directories = frozenset(self.subdirectories(number))
            gone = [path for path in paths if path.rpartition(b"/")[2] in directories]
        for path in gone:
            self.remove(path)

    def put_new_files(self, number: int, rows: list[tuple[bytes, Row, bytes | None]]) -> None:
        """Store files and symlinks (name, row, digest) that the directory with this number did not have before."""
        self._db.executemany(
            f"INSERT OR REPLACE INTO entries (parent, name, {_ROW}, digest) VALUES (?,?,?,?,?,?,?,?,?,?)",
            [(number, name, *row, digest) for name, row, digest in rows],
        )

    def set_listed(self, path: bytes, listed_ns: int) -> None:
        """All names of the directory were compared when its ctime was `listed_ns`."""
        if (place := self._place(path)) is not None:
            self._db.execute("UPDATE entries SET listed_ns=? WHERE parent=? AND name=?", (listed_ns, *place))

    def set_digest(self, path: bytes, row: Row, digest: bytes, ctime_ns: int | None = None) -> bool:
        """Store the digest of what was read while `path` was `row`; False when the index has moved on meanwhile.

        `ctime_ns`: of the file then, for a row that was not sure of it.
        """
        place = self._place(path)
        if place is None:
            return False
        sql = (
            "UPDATE entries SET digest=?, ctime_ns=? "
            "WHERE parent=? AND name=? AND size=? AND mtime_ns=? AND ctime_ns=? AND inode=?"
        )
        new = row.ctime_ns if ctime_ns is None else ctime_ns
        values = (digest, new, *place, row.size, row.mtime_ns, row.ctime_ns, row.inode)
        return self._db.execute(sql, values).rowcount > 0

    def forget_digest(self, path: bytes) -> None:
        """Nothing is known of the content at `path` any more."""
        if (place := self._place(path)) is not None:
            self._db.execute("UPDATE entries SET digest=NULL WHERE parent=? AND name=?", place)

    def retry_unreadable(self) -> None:
        """What could not be read counts as not read yet."""
        self._db.execute("UPDATE entries SET digest=NULL WHERE digest=?", (UNREADABLE,))

    def inodes(self, path: bytes) -> set[tuple[int, int]]:
        """(device, inode) of the file at `path`, or of all files below it."""
        child = self.get(path)
        if child is None:
            return set()
        if child.directory is None:
            return {(child.row.device, child.row.inode)} if child.row.inode else set()
        found: set[tuple[int, int]] = set()
        stack = [child.directory]
        while stack:
            sql = "SELECT device, inode, directory FROM entries WHERE parent=?"
            for device, inode, directory in self._db.execute(sql, (stack.pop(),)).fetchall():
                if directory is None:
                    if inode:  # else it is not published
                        found.add((device, inode))
                else:
                    stack.append(directory)
        return found

    def remove(self, path: bytes) -> int:
        """Forget `path` and all below it; how many entries that were."""
        child = self.get(path)
        place = self._place(path)
        if child is None or place is None:
            return 0
        self._db.execute("DELETE FROM entries WHERE parent=? AND name=?", place)
        gone = 1
        if child.directory is not None:
            self._numbers.clear()
            stack = [child.directory]
            while stack:
                number = stack.pop()
                below = "SELECT directory FROM entries WHERE parent=? AND directory IS NOT NULL"
                stack.extend(row[0] for row in self._db.execute(below, (number,)).fetchall())
                gone += self._db.execute("DELETE FROM entries WHERE parent=?", (number,)).rowcount
        return gone

    def leave_out(self, path: bytes) -> None:
        """`path`, with all below it, is left out from now on."""
        place, child = self._place(path), self.get(path)
        if place is None or child is None:
            return
        mark = f"UPDATE entries SET device={EXCLUDED}, inode=0, ctime_ns=0 WHERE parent=?"
        self._db.execute(f"{mark} AND name=?", place)
        stack = [child.directory]
        while stack:
            if (number := stack.pop()) is not None:
                self._db.execute(mark, (number,))
                below = "SELECT directory FROM entries WHERE parent=? AND directory IS NOT NULL"
                stack.extend(row[0] for row in self._db.execute(below, (number,)).fetchall())

    def forget_left_out(self) -> int:
        """Forget all that is left out; how many entries that were."""
        self._numbers.clear()
        return self._db.execute(f"DELETE FROM entries WHERE device={EXCLUDED}").rowcount

    def move(self, source: bytes, path: bytes) -> None:
        """`source`, with all below it, is at `path` now; what was there is forgotten. It may have been in that."""
        old = self._place(source)
        if old is not None and source.startswith(path + b"/"):
            aside = _ASIDE, old[1]
            self._db.execute("UPDATE entries SET parent=?, name=? WHERE parent=? AND name=?", (*aside, *old))
            old = aside
        self.remove(path)
        new = self._place(path)
        if old is None or new is None:
            raise KeyError(source)
        self._db.execute("UPDATE entries SET parent=?, name=? WHERE parent=? AND name=?", (*new, *old))
        self._numbers.clear()

    def _place(self, path: bytes) -> tuple[int, bytes] | None:
        if not path:
            return 0, b""
        above, _, name = path.rpartition(b"/")
        number = self.number(above)
        return None if number is None else (number, name)

    def digest(self, path: bytes) -> bytes | None:
        """The digest of the content at `path`, if it was read since it changed."""
        place = self._place(path)
        row = place and self._db.execute("SELECT digest FROM entries WHERE parent=? AND name=?", place).fetchone()
        return row[0] or None if row else None

    def _path(self, parent: int, name: bytes) -> bytes | None:
        names = [name]
        while parent != ROOT:
            row = self._db.execute("SELECT parent, name FROM entries WHERE directory=?", (parent,)).fetchone()
            if row is None:
                return None
            parent, name = row
            names.append(name)
        return b"/".join(reversed(names))

    def _new_number(self) -> int:
        number = self._next
        self._next += 1
        set_fact(self._db, "next_directory", self._next)
        return number
