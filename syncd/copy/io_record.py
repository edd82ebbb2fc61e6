"""Recording what a batch brought: the index brought to where the changes brought the disk, and the drafts of the same.

What the copy leaves out is recorded as it was told: it is not on the disk. The drafts are for children of our own. Contents
come with the digest that was announced with them: it was proved by then, or is that of what was here already. And the index
as a plan asks it.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from syncd.copy.io_prove import announced, digests_of
from syncd.model import UNTOLD, Change, Entry, Op
from syncd.publish.left_out import Border
from syncd.publish.steps import Do, Step
from syncd.source.io_compare import Comparer
from syncd.source.io_scan import Disk, Gone, Trouble
from syncd.source.row import EXCLUDED, REFUSED, Row, Written, as_left_out, as_sure, is_published, to_entry
from syncd.store.io_index import Index
from syncd.store.io_journal import Draft

NOT_TOLD: Mapping[bytes, Entry] = {}


def brought(steps: Iterable[Step], staged: Written) -> dict[bytes, Row]:
    """What is known, without a look, of the files in directories that the steps bring whole; to be called before they do.

    The rename of a directory changes nothing of what is in it; that of a file moves its ctime.
    """
    whole = {step.path for step in steps if step.do is Do.BRING}
    now_ns = time.time_ns()
    return {
        path: as_sure(row, now_ns)
        for path, row in staged.items()
        if row is not None and path.rpartition(b"/")[0] in whole
    }


def record_upserts(
    index: Index, disk: Disk, paths: Sequence[bytes], known: Mapping[bytes, Row], told: Mapping[bytes, Entry] = NOT_TOLD
) -> list[Draft] | None:
    """Index what is at `paths` now, each once, directories before what is in them; the drafts of the same.

    `told`: files that come with a digest, which was proved.

    The disk is asked about all but what is `known`. None when a directory above one of them is not indexed: then they are
    to be done one by one, in the same transaction. Where nothing is, nothing is done.
    """
    rows = list(disk.look_all([path for path in paths if path not in known]))
    if known:
        found = {**dict(rows), **known}
        rows = [(path, found[path]) for path in paths if path in found]
    digests = digests_of(rows, told) if told else {}
    try:
        index.put_all(rows, digests)
    except KeyError:
        return None
    if digests:
        return [Draft(Op.UPSERT, path, row, b"", digests.get(path)) for path, row in rows]
    return [Draft(Op.UPSERT, path, row) for path, row in rows]


class Published:
    """The index as a plan asks it, with digests of contents as they came, or were read here once."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, path: bytes) -> Entry | None:
        """The entry at `path`."""
        child = self._index.get(path)
        return to_entry(path, child.row, child.digest) if child is not None and is_published(child.row) else None

    def below(self, path: bytes) -> Iterator[Entry]:
        """All entries below `path`."""
        entries = self._index.entries(path)
        next(entries, None)
        return (entry for entry in entries if entry.inode[0] >= 0)


class Everything:
    """The index with all that the origin has, published here or not."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, path: bytes) -> Entry | None:
        """The entry at `path`."""
        child = self._index.get(path)
        return to_entry(path, child.row, child.digest) if child is not None else None

    def below(self, path: bytes) -> Iterator[Entry]:
        """All entries below `path`."""
        entries = self._index.entries(path)
        next(entries, None)
        return entries


class Record:
    """See the module. Within one transaction; `changes`: what was planned, in the order of a journal's page.

    `border`: what of them is left out here.
    """

    def __init__(self, index: Index, disk: Disk, changes: Sequence[Change], border: Border) -> None:
        self._index = index
        self._disk = disk
        self._changes = changes
        self._border = border
        self.is_partial = False
        """something was recorded that is left out"""
        self._told = announced(changes)
        self._drafts: list[Draft] = []

    def play(self, refused: frozenset[bytes], known: Mapping[bytes, Row]) -> list[Draft]:
        """All changes are done: go through them; `refused` paths are not published. `known`: see `brought`."""
        if not refused and all(change.op is Op.UPSERT and not change.source for change in self._changes):
            paths = dict.fromkeys(change.path for change in self._changes)
            known = {**known, **self._rows_left_out()}
            found = record_upserts(self._index, self._disk, list(paths), known, self._told)
            if found is not None:
                return found
        for change in self._changes:
            if change.op is Op.DELETE:
                if self._index.remove(change.path):
                    self._drafts.append(Draft(Op.DELETE, change.path))
            elif self._is_left_out(change):
                self._leave_out(change)
            elif change.op is Op.RENAME:
                self._rename(change, refused)
            elif change.path in refused and change.entry is not None:
                self._put_refused(change.path, change.entry.target, change.entry.mtime_ns)
            else:
                self._upsert(change.path, change.source)
        for path in refused:
            old = self._index.get(path)
            if old is not None and old.row.device != REFUSED:
                self._index.put(path, old.row._replace(device=REFUSED))
        return self._drafts

    def look(self, marks: Sequence[tuple[bytes, bool]]) -> list[Draft]:
        """Ask the disk what is at these (path, subtree) now, and below directories that are new."""
        comparer = Comparer(self._disk, self._index)
        comparer.check(marks)
        while walks := comparer.take_walks():
            for path, depth in walks:
                comparer.walk(path, depth)
        comparer.settle_losses()
        drafts = comparer.take().drafts
        if self._told:
            drafts = [self._with_digest(draft) for draft in drafts]
        # What is left out is not on the disk to be found: of that, nothing is ever held back.
        for change in self._changes:
            if self._is_left_out(change):
                self._leave_out(change)
            elif change.op is Op.DELETE and (old := self._index.get(change.path)) and old.row.device == EXCLUDED:
                self._index.remove(change.path)
                self._drafts.append(Draft(Op.DELETE, change.path))
        return [*drafts, *self._drafts]

    def _is_left_out(self, change: Change) -> bool:
        is_told = change.op is not Op.DELETE and change.entry is not None
        return is_told and change.entry is not None and self._border.leaves_out(change.entry, change.path)

    def _rows_left_out(self) -> dict[bytes, Row]:
        """By path, of what upserts tell of last and is left out."""
        if not self._border.exclude:
            return {}
        last = {change.path: change for change in self._changes}
        found = {p: as_left_out(c.entry) for p, c in last.items() if c.entry is not None and self._is_left_out(c)}
        self.is_partial |= bool(found)
        return found

    def _leave_out(self, change: Change) -> None:
        """Index what is left out as it was told: so the hash is the origin's."""
        assert change.entry is not None
        if not self._is_home_here(change.path):
            return  # nothing makes the directory that it is in: the comparison that tells of it brings this, too
        self.is_partial = True
        path, row, digest = change.path, as_left_out(change.entry), change.entry.digest
        old = self._index.get(change.source) if change.op is Op.RENAME else None
        if old is not None:
            self._make_above(path)
            self._index.move(change.source, path)
            self._index.put(path, row, old.digest)
            self._drafts.append(Draft(Op.RENAME, path, row, change.source, old.digest))
            return
        self._make_way(path, row)
        self._make_above(path)
        self._index.put(path, row, digest)
        self._drafts.append(Draft(Op.UPSERT, path, row, b"", digest))

    def _with_digest(self, draft: Draft) -> Draft:
        """The draft with the digest that its content was announced with, which is stored too."""
        if draft.row is None or draft.op is not Op.UPSERT:
            return draft
        digest = digests_of([(draft.path, draft.row)], self._told).get(draft.path)
        child = self._index.get(draft.path) if digest is not None else None
        if digest is None or child is None or child.row != draft.row:
            return draft
        self._index.put(draft.path, draft.row, digest)
        return draft._replace(digest=digest)

    def _is_home_here(self, path: bytes) -> bool:
        """Whether the lowest directory above `path` that is not left out is here, and no file where one is that is."""
        above = path.rpartition(b"/")[0]
        while self._border.covers(above, is_directory=True):
            there = self._index.get(above)
            if there is not None and is_published(there.row) and not there.row.is_directory:
                return False
            above = above.rpartition(b"/")[0]
        if self._index.number(above) is not None:
            return True
        row = _look(self._disk, above)
        return row is not None and row.is_directory

    def _rename(self, change: Change, refused: frozenset[bytes]) -> None:
        old = self._index.get(change.source)
        if old is None or change.entry is None or not is_published(old.row):
            # Of what is not published here children know all the same.
            if self._index.remove(change.source):
                self._drafts.append(Draft(Op.DELETE, change.source))
            if change.path in refused and change.entry is not None:
                self._put_refused(change.path, change.entry.target, change.entry.mtime_ns)
            else:
                self._upsert(change.path)
            return
        self._make_above(change.path)
        self._index.move(change.source, change.path)
        row = old.row._replace(mode=stat.S_IFMT(old.row.mode) | change.entry.mode)
        if row.is_directory:
            row = row._replace(mtime_ns=change.entry.mtime_ns)
        self._index.put(change.path, row)
        self._drafts.append(Draft(Op.RENAME, change.path, row, change.source, old.digest))

    def _upsert(self, path: bytes, link_of: bytes = b"") -> None:
        row = _look(self._disk, path)
        if row is None:
            return
        self._make_way(path, row)
        self._make_above(path)
        digest = digests_of([(path, row)], self._told).get(path)
        self._index.put(path, row, digest)
        first = _look(self._disk, link_of) if link_of else None
        is_link = first is not None and first.inode == row.inode
        self._drafts.append(Draft(Op.UPSERT, path, row, link_of if is_link else b"", digest))

    def _make_way(self, path: bytes, row: Row) -> None:
        """Forget what is of another kind at `path`; told to our children too, who may have taken something below it."""
        old = self._index.get(path)
        if old is not None and old.row.is_directory != row.is_directory:
            self._index.remove(path)
            self._drafts.append(Draft(Op.DELETE, path))

    def _put_refused(self, path: bytes, target: bytes, mtime_ns: int) -> None:
        """Index a symlink that is not published: so the hash is the origin's, and our children decide for themselves."""
        row = Row(stat.S_IFLNK | 0o777, 0, mtime_ns, 0, REFUSED, 0, target)
        self._make_way(path, row)
        self._make_above(path)
        self._index.put(path, row)
        self._drafts.append(Draft(Op.UPSERT, path, row))

    def _make_above(self, path: bytes) -> None:
        """Index the directories above `path` that are not yet: a change of theirs comes later, or never came."""
        above = path.rpartition(b"/")[0]
        if self._index.number(above) is not None:
            return
        if above:
            self._make_above(above)
        row = _look(self._disk, above)
        if row is None or not row.is_directory:
            # The disk is as after the last of the changes: what is a directory now may be gone, or a file, by then.
            is_out = self._border.covers(above, is_directory=True)
            row = Row(stat.S_IFDIR | 0o755, 0, UNTOLD, 0, EXCLUDED if is_out else 0, 0, b"")
        self._make_way(above, row)
        self._index.put(above, row)
        if above:
            self._drafts.append(Draft(Op.UPSERT, above, row))


def _look(disk: Disk, path: bytes) -> Row | None:
    try:
        return disk.look(path)
    except (Gone, Trouble):
        return None
