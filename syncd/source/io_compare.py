"""The disk against the index: what is different becomes drafts of changes, and is stored in the same breath.

Every method runs within the caller's transaction. Nothing here trusts a hint: a path is gone when the directory above it
could be opened and does not have it, a rename is one when the inode says so.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum

from syncd.model import Op, join
from syncd.source.io_contents import Contents, Later
from syncd.source.io_scan import Disk, Gone, Listing, Trouble
from syncd.source.row import EXCLUDED, UNSURE, Row, has_other_mark, is_only_marked, is_same_thing
from syncd.source.touched import Touched
from syncd.store.io_index import UNREADABLE, Child, Index
from syncd.store.io_journal import Draft


class Depth(Enum):
    """How much of a directory and of what is below it is looked at."""

    ALL = "all"
    """every name in every directory: finds everything, also a file written in place while nobody watched"""
    MOVED = "moved"
    """only directories whose ctime is not the one of their last listing: finds names that came, went or moved"""
    ONE = "one"
    """this directory, and those in it that are new"""


@dataclass(slots=True)
class Findings:
    """What came of some comparing."""

    drafts: list[Draft] = field(default_factory=list)
    to_walk: list[tuple[bytes, Depth]] = field(default_factory=list)
    """directories that are to be walked next, those to come first last"""
    troubles: list[Trouble] = field(default_factory=list)
    """what could not be looked at; nothing was concluded about it"""


class Comparer:
    """One disk and its index. `quiet` (a first reading) stores without drafting changes and without looking for renames."""

    def __init__(self, disk: Disk, index: Index, touched: Touched | None = None) -> None:
        self._disk = disk
        self._index = index
        self._touched = touched or Touched()
        self._by_events = False
        """what is looked at now is what events told of"""
        self._unread: set[bytes] = set()
        """what may have been written to before it was renamed, and is still to be read"""
        self.quiet = False
        self.keeps_hidden = False
        """at a copy: names that the disk hides stay in the index, as left out"""
        self.keep_links = False
        """tell of names that are one file"""
        self.contents: Contents | None = None
        """read each content that is told of; None: they are not"""
        self._found = Findings()
        self._lost: list[bytes] = []

    def take(self) -> Findings:
        """What was found since the last call."""
        found, self._found = self._found, Findings()
        return found

    def take_walks(self) -> list[tuple[bytes, Depth]]:
        """Only the walks that were found since the last call."""
        walks, self._found.to_walk = self._found.to_walk, []
        return walks

    def check(self, marks: Iterable[tuple[bytes, bool]]) -> None:
        """Look at each (path, subtree) and store what is different: what is there first, then what is gone.

        In this order a file that was renamed is found under its new name before the old one is taken for deleted. The
        directories above come last: their mtime moves with every name in them, and makes no event.
        """
        asked = dict(marks)
        above = {path.rpartition(b"/")[0] for path in asked if path} - asked.keys()
        self._by_events = True
        try:
            self._check(asked.items())
            self._check((path, False) for path in above)
        finally:
            self._by_events = False

    def _check(self, marks: Iterable[tuple[bytes, bool]]) -> None:
        gone = []
        no_directories = set()
        for path, subtree in sorted(marks):
            try:
                row = self._disk.look(path)
            except Gone as there:
                no_directories.add(there.path)
                continue
            except Trouble as trouble:
                self._found.troubles.append(trouble)
                continue
            finally:
                self._walk_fresh(None)
            if row is None:
                gone.append(path)
            else:
                self._see(path, row, subtree)
                if self._touched.take_again(path) and not row.is_directory:
                    self._tell_again(path, row)
        for path in no_directories:
            self._lose_directory(path)
        for path in gone:
            self._lose(path)

    def settle_losses(self) -> None:
        """Take what walks did not find for gone. After the last of them: it may have been found under another name."""
        for path in self._lost:
            self._lose_directory(path)
        self._lost.clear()

    def walk(self, path: bytes, depth: Depth) -> None:
        """Look at the directory `path`; what is below it goes to `to_walk`."""
        try:
            if depth is Depth.MOVED and self._is_as_listed(path):
                number = self._index.number(path)
                names = self._index.subdirectories(number) if number is not None else []
                self._found.to_walk.extend((join(path, name), depth) for name in names)
                self._walk_fresh(None)
                return
            listing = self._disk.list(path)
        except Gone as there:
            self._lost.append(there.path)
            return
        except Trouble as trouble:
            self._found.troubles.append(trouble)
            self._see_unlisted(path)
            return
        self._walk_fresh(path)
        self._compare(listing, depth)

    def _see_unlisted(self, path: bytes) -> None:
        """A directory that is new and cannot be listed is there all the same; what another file system has here is not."""
        if path and self._index.number(path) is None:
            row = self._look_again(path)
            if row is not None and row.is_directory and not row.device and self._knows_above(path):
                self._put(path, row, self._index.get(path))

    def _compare(self, listing: Listing, depth: Depth) -> None:
        path = listing.path
        if self._index.number(path) is None:
            row = self._look_again(path)
            if row is None or row.inode != listing.row.inode:
                if row is not None and row is not _UNKNOWN:
                    self._see(path, row)
                return
            if not self._knows_above(path):
                return
        old = self._index.get(path)
        # What was made in it after its row was stored, and before it was watched, moved its mtime without an event.
        if (old is None or old.row != listing.row) and not self._put(path, listing.row, old):
            return
        number = self._index.number(path)
        assert number is not None
        if old is None or old.row.inode != listing.row.inode:
            depth = Depth.ALL
        known = self._index.children(number)
        new_files: list[tuple[bytes, Row]] = []
        for name, row in listing.rows.items():
            old = known.pop(name, None)
            if name in listing.mounts:
                continue
            below = join(path, name)
            if old is None:
                # A directory that is new is stored by its own walk: so the journal tells it together with what is in it,
                # and a copy can bring it whole.
                if not row.is_directory:
                    new_files.append((name, row))
            elif old.row != row:
                # Asked anew: a rename just now may have taken what the index had here.
                self._put(below, row, self._index.get(below))
            if row.is_directory:
                # A directory that is new here has no listing that could be trusted.
                is_known = old is not None and old.row.inode == row.inode
                if not is_known or depth is not Depth.ONE:
                    self._found.to_walk.append((below, depth if is_known else Depth.ALL))
        self._put_new(path, number, new_files)
        for name in known:
            below = join(path, name)
            if self.keeps_hidden and self._disk.hides(below, known[name].row.is_directory):
                if known[name].row.device != EXCLUDED:
                    self._index.leave_out(below)
            # Looked at once more: a listing may miss a name that is renamed over while it is read.
            elif name not in listing.troubled and self._look_again(below) is None:
                self._lost.append(below)
        for name in listing.troubled:
            self._found.troubles.append(Trouble(join(path, name), "it is there but cannot be looked at"))
        if listing.listed_ns and listing.listed_ns != self._index.listed_ns(path):
            self._index.set_listed(path, listing.listed_ns)

    def _put_new(self, above: bytes, number: int, files: list[tuple[bytes, Row]]) -> None:
        """Store files and symlinks that are new in the directory `above`, with this number: at once, but for renames."""
        known = frozenset() if self.quiet else self._index.known_inodes(row.inode for _, row in files)
        if self.keep_links and not self.quiet:
            count = Counter(row.inode for _, row in files)
            known |= {inode for inode in count if count[inode] > 1}
        prefix = above + b"/" if above else b""
        new: list[tuple[bytes, Row, bytes | None]] = [
            (name, row, None) for name, row in files if row.inode not in known
        ]
        if self.contents is not None and not self.quiet:
            new = self._with_contents(prefix, new)
        self._index.put_new_files(number, new)
        if not self.quiet:
            self._found.drafts += [
                Draft(Op.UPSERT, prefix + name, row, b"", digest or None) for name, row, digest in new
            ]
        for name, row in files:
            if row.inode in known:
                # It may have come from elsewhere. Asked anew: a rename just now may have taken what the index had here.
                self._put(below := join(above, name), row, self._index.get(below))

    def _with_contents(
        self, prefix: bytes, files: Iterable[tuple[bytes, Row, bytes | None]]
    ) -> list[tuple[bytes, Row, bytes | None]]:
        """Those of `files` whose content was read; the others are looked at again."""
        found: list[tuple[bytes, Row, bytes | None]] = []
        for name, row, _ in files:
            with suppress(Later):
                found.append((name, row, self._content(prefix + name, row)))
        return found

    def _content(self, path: bytes, row: Row, before: Child | None = None) -> bytes | None:
        """The digest to store with `row`; None when none is wanted. Raises Later when it is not known yet.

        `before`: under another name. What was moved, and not written to since it was surely at rest, is not read again.
        What cannot be read any more, and looks as it did, has the digest that it had: copies keep what they have of it, and
        it is read when it may be, since that moves its ctime.
        """
        if self.contents is None or self.quiet or not stat.S_ISREG(row.mode):
            return None
        if before is not None and before.digest is not None and before.row.ctime_ns != UNSURE:
            return before.digest
        digest = self.contents.of(self._disk, path, row)
        if digest != UNREADABLE or (known := self._index.get(path)) is None or not known.digest:
            return digest
        return known.digest if is_same_thing(known.row, row) else digest

    def _is_as_listed(self, path: bytes) -> bool:
        now_ns = self._disk.listed_ns(path)
        return bool(now_ns) and now_ns == self._index.listed_ns(path)

    def _look_again(self, path: bytes) -> Row | None:
        """Like `Disk.look`, with nothing for what is gone; trouble is noted, and taken for a row that says nothing."""
        try:
            return self._disk.look(path)
        except Gone:
            return None
        except Trouble as trouble:
            self._found.troubles.append(trouble)
            return _UNKNOWN

    def _see(self, path: bytes, row: Row, subtree: bool = False) -> bool:
        """`row` is what is at `path`. False when it is not stored: a directory above is gone again, or see `_put`.

        A directory that is not the one it was is walked next, and so is any with `subtree`.
        """
        if not self._knows_above(path):
            return False
        old = self._index.get(path)
        if (old is None or old.row != row) and not self._put(path, row, old):
            return False
        if row.is_directory and (subtree or old is None or old.row.inode != row.inode):
            self._found.to_walk.append((path, Depth.ALL))
        return True

    def _knows_above(self, path: bytes) -> bool:
        """Whether the directory that `path` is in is stored, now at the latest."""
        above = path.rpartition(b"/")[0]
        if not path or self._index.number(above) is not None:
            return True
        # It is not known as a directory yet: it is new, and will be walked.
        upper = self._look_again(above)
        return upper is not None and upper.is_directory and self._see(above, upper)

    def _put(self, path: bytes, row: Row, old: Child | None) -> bool:
        """Store that `path` is not what it was (`old`), and draft what a child has to do about it.

        False: not believed, or its content is still to be read.
        """
        if old is not None and old.row.is_directory and row.is_directory and old.row.device > 0 and not row.device:
            # A mount that is gone leaves an empty directory: the content was not deleted.
            self._found.troubles.append(
                Trouble(path, "the file system that was mounted here is not; nothing is deleted")
            )
            return False
        if old is not None and is_only_marked(old.row, row):
            self._index.put(path, row)
            return True
        is_in_place = old is not None and (old.row.device, old.row.inode) == (row.device, row.inode)
        source = None if self.quiet or is_in_place else self._renamed_from(path, row)
        before = self._index.get(source) if source is not None else None
        is_doubtful = source is not None and self._may_be_written(source, path, row)
        try:
            digest = self._content(path, row, None if is_doubtful else before)
        except Later:
            if is_doubtful:
                self._unread.add(path)
            return False
        is_other_kind = old is not None and old.row.is_directory != row.is_directory
        if old is not None and (is_other_kind or (source is not None and old.row.is_directory)):
            self._forget(path)
            old = None
        if source is not None:
            self._index.move(source, path)
            self._index.put(path, row, digest)
            self._draft(Draft(Op.RENAME, path, row, source, digest or None))
            is_alike = before is not None and _is_alike(before.row, row)
            is_read = digest is not None and before is not None
            is_other = before.digest != (digest or None) if is_read and before is not None else is_doubtful
            if not is_alike or is_other:
                self._draft(Draft(Op.UPSERT, path, row, b"", digest or None))
        else:
            self._index.put(path, row, digest)
            if old is not None and not is_in_place and not old.row.is_directory:
                self._see_left(path, {(old.row.device, old.row.inode)})
            # A directory that was replaced by another with the same attributes differs only in what is in it.
            is_alike = old is not None and _is_alike(old.row, row)
            if not row.is_directory or not is_alike:
                first = b"" if self.quiet or is_in_place else self._linked_to(path, row)
                self._draft(Draft(Op.UPSERT, path, row, first, digest or None))
            if is_in_place and not row.is_directory and not self.quiet:
                self._see_other_names(path, row)
        return True

    def _may_be_written(self, source: bytes, path: bytes, row: Row) -> bool:
        """Whether what was `source` may have been written to before it came to be `path`: see `touched`.

        What a walk finds was renamed while nobody told of anything.
        """
        if not stat.S_ISREG(row.mode):
            return False
        if path in self._unread:
            self._unread.discard(path)
            return True
        return not self._by_events or self._touched.is_doubtful(source, path)

    def _tell_again(self, path: bytes, row: Row) -> None:
        """`path` was found renamed, and written to before that, as one hears only now."""
        with suppress(Later):
            digest = self._content(path, row)
            if digest is not None:
                self._index.put(path, row, digest)
            self._draft(Draft(Op.UPSERT, path, row, b"", digest or None))

    def _linked_to(self, path: bytes, row: Row) -> bytes:
        """Another name that this file has, whose content children have by then; b"" for none, or when nobody asked.

        A new name moves the ctime of the file, and so may a write have: the other name is told once more before, and its
        content is compared.
        """
        if not self.keep_links or row.is_directory or row.target:
            return b""
        first = b""
        for other in self._index.paths_of(row.device, row.inode):
            old = self._index.get(other) if other != path else None
            there = self._look_again(other) if old is not None else None
            if old is None or there is None or there is _UNKNOWN or there.inode != row.inode:
                continue
            if there != old.row:
                try:
                    digest = self._content(other, there)
                except Later:
                    continue
                self._index.put(other, there, digest)
                self._draft(Draft(Op.UPSERT, other, there, first, digest or None))
            first = first or other
        return first

    def _see_other_names(self, path: bytes, row: Row) -> None:
        """What changed under one name of a file changed under all; the kernel tells of the one it was done through."""
        for other in self._index.paths_of(row.device, row.inode):
            old = self._index.get(other) if other != path else None
            there = self._look_again(other) if old is not None else None
            if old is None or there in (None, _UNKNOWN, old.row) or there.inode != row.inode:
                continue
            with suppress(Later):
                digest = self._content(other, there)
                self._index.put(other, there, digest)
                self._draft(Draft(Op.UPSERT, other, there, path if self.keep_links else b"", digest or None))

    def _renamed_from(self, path: bytes, row: Row) -> bytes | None:
        """Where this was before, if the inode is known under a name that is not its own any more."""
        for other in self._index.paths_of(row.device, row.inode):
            # What moved into itself, or onto what it was in, is for deletes and upserts.
            if other == path or path.startswith(other + b"/") or other.startswith(path + b"/"):
                continue
            old = self._index.get(other)
            if old is None or not is_same_thing(old.row, row):
                continue
            there = self._look_again(other)
            if there is None or (there is not _UNKNOWN and (there.device, there.inode) != (row.device, row.inode)):
                return other
        return None

    def _lose_directory(self, path: bytes) -> None:
        """`path` is not there, or is no directory any more."""
        row = self._look_again(path)
        if row is None:
            self._lose(path)
        elif row is not _UNKNOWN:
            self._see(path, row)

    def _lose(self, path: bytes) -> None:
        self._unread.discard(path)
        if path and self._index.get(path) is not None:
            self._forget(path)

    def _forget(self, path: bytes) -> None:
        files = self._index.inodes(path)
        self._index.remove(path)
        self._draft(Draft(Op.DELETE, path))
        self._see_left(path, files)

    def _see_left(self, gone: bytes, files: set[tuple[int, int]]) -> None:
        """`gone` was a name of each of these files: what was done through it just before, only their other names show now.

        A ctime that is another says nothing then: that the name went has moved it. Where nobody watched, it is not taken
        for a write: all of a tree of hard-linked snapshots would be told again when one of them goes.
        """
        known = self._index.known_inodes(inode for _, inode in files)
        is_doubtful = bool(known) and self._by_events and self._touched.is_any_doubtful(gone)
        for device, inode in files:
            for path in self._index.paths_of(device, inode) if inode in known else ():
                old, there = self._index.get(path), self._look_again(path)
                if old is None or there in (None, _UNKNOWN, old.row) or there.inode != inode:
                    continue
                try:
                    digest = self._content(path, there)
                except Later:
                    continue
                self._index.put(path, there, digest)
                is_alike = (there.mode, there.size, there.mtime_ns) == (old.row.mode, old.row.size, old.row.mtime_ns)
                is_other = (digest or None) != old.digest if digest is not None else is_doubtful
                if not is_alike or is_other:
                    self._draft(Draft(Op.UPSERT, path, there, b"", digest or None))

    def _draft(self, draft: Draft) -> None:
        if not self.quiet:
            self._found.drafts.append(draft)

    def _walk_fresh(self, listed: bytes | None) -> None:
        """Directories whose watch was set only now are walked, but for the one that is about to be listed."""
        if self._disk.fresh:
            self._found.to_walk.extend((path, Depth.ALL) for path in self._disk.fresh if path != listed)
            self._disk.fresh.clear()


_UNKNOWN = Row(0, 0, 0, 0, 0, 0, b"")


def _is_alike(old: Row, new: Row) -> bool:
    """Whether nothing is to be told of what was renamed, or of a directory that was replaced by another."""
    if (old.mode, old.mtime_ns) != (new.mode, new.mtime_ns):
        return False
    return stat.S_ISREG(new.mode) or not has_other_mark(old, new)
