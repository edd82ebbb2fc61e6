"""The copy of a tree on a child's disk: planned against, published to, recorded; recovered after a crash, read anew.

Everything here is synchronous, for one thread that owns the copy. What is recorded (index, journal for children of our
own, cursor at the parent, changes that wait) goes into one transaction, after the steps are on disk and before the note of
them goes: whatever instruction a crash falls on, either the steps are gone on with, or they are known to be done.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from core.config_sync import Tree
from core.errors import NearpathError
from core.io_config_sync import work_directory
from syncd.copy.io_record import brought, record_upserts
from syncd.copy.note import Note, decode_changes, decode_note, encode_changes, encode_note
from syncd.model import UNTOLD, Change, Entry, Op
from syncd.publish import io_publish, io_version
from syncd.publish.guard import Space
from syncd.publish.io_below import remove_all
from syncd.publish.io_publish import DiskFull, Layout
from syncd.publish.io_version import Versions
from syncd.publish.plan import Plan, make_plan
from syncd.publish.steps import Intent, PublishError, Ranks, Step, touched
from syncd.source.io_compare import Comparer, Depth
from syncd.source.io_scan import Disk, Gone, Trouble
from syncd.source.row import Row, Written, to_entry
from syncd.store.io_index import Index, Size
from syncd.store.io_journal import Draft, Journal
from syncd.store.io_store import close_store, fact, hold_directory, open_store, set_fact, transaction
from syncd.transfer.wire import Cursor

_LOOK_SLICE = 2_000
"""Directories walked in one transaction when the disk is read anew."""


REFUSED = -1
"""As the device of a row: the index has it, since the origin has, but it is not published."""


MAX_REFUSED = 100
"""So many paths are named; people fix them at the origin one by one."""


_NOTHING: Mapping[bytes, Row] = {}


class CopyError(NearpathError):
    """The copy cannot be worked on: its disk is not there, or is another one."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was found at start."""

    first_reading: bool = False
    """there was no index: what lies on the disk was read, and is compared with the parent's"""
    went_on: int = 0
    """steps of a publish that was under way and is done now"""
    looked_again: int = 0
    """paths that were looked at again, since the machine went down in a publish"""


class Copy:
    """See the module. CopyError, StoreBusy or PublishError when it cannot be opened; `accept` takes another disk for it."""

    def __init__(self, name: str, tree: Tree, store: Path, *, accept: bool = False) -> None:
        self.name = name
        self.tree = tree
        self.ranks = Ranks(tree.indexes)
        self._path = os.fsencode(tree.path)
        self._work = os.fsencode(work_directory(tree))
        self._versions = Versions(self._path, self._path + b".versions", self._work)
        self._is_atomic = tree.mode == "atomic"
        self._lock = self._work_lock = -1
        self._db = open_store(store)
        try:
            self.index = Index(self._db, by_inode=True)
            self.journal = Journal(self._db)
            self.partial = f".~{self.journal.journal_id.hex()[:16]}~"
            """for `rsync.Options.partial`"""
            self._prepare(accept)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the store, and let go of the tree."""
        for lock in (self._lock, self._work_lock):
            if lock >= 0:
                os.close(lock)
        self._lock = self._work_lock = -1
        close_store(self._db)

    # -- what is there

    def check_place(self) -> None:
        """CopyError when the tree's directory is not the one that was opened: its disk was unmounted, say."""
        try:
            found = os.stat(self._home)
        except OSError as error:
            raise CopyError(f"{os.fsdecode(self._home)}: {error.strerror}", "mount its disk") from error
        opened = os.fstat(self._lock)
        if (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino):
            raise self._another()

    @property
    def root(self) -> bytes:
        """The directory with what is published now."""
        return self._versions.path(io_version.current(self._versions)) if self._is_atomic else self._path

    @property
    def layout(self) -> Layout:
        """Where steps are done in mode live, and files staged in both."""
        return Layout(self.root, self._work)

    def cursor(self) -> Cursor:
        """How far the parent's journal is published here."""
        journal = fact(self._db, "parent_journal")
        return Cursor(journal if isinstance(journal, bytes) else b"", int(fact(self._db, "parent_sequence") or 0))

    def later(self) -> tuple[Change, ...]:
        """Changes that wait for files that could not be fetched."""
        kept = fact(self._db, "later")
        return decode_changes(kept) if isinstance(kept, bytes) else ()

    def recent_deletes(self) -> tuple[tuple[float, int], ...]:
        """What was deleted lately without anybody's word; see `guard.RecentDeletes`."""
        kept = fact(self._db, "recent_deletes")
        return tuple((at, count) for at, count in json.loads(kept)) if isinstance(kept, bytes) else ()

    def size(self) -> Size:
        """How much the copy holds."""
        return self.index.size()

    def space(self) -> Space:
        """Free space on the disk of the copy."""
        found = os.statvfs(self._work)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        return Space(free, total, found.f_favail, found.f_files)

    def plan(self, changes: Iterable[Change]) -> Plan:
        """The plan of changes on what is published now."""
        return make_plan(changes, _Have(self.index), self.ranks)

    def as_recorded(self, paths: Iterable[bytes]) -> tuple[Change, ...]:
        """Changes that bring files to what the index says they are: their contents are fetched anew."""
        found = [(path, self.index.get(path)) for path in sorted(paths)]
        return tuple(
            Change(0, Op.UPSERT, path, to_entry(path, child.row))
            for path, child in found
            if child is not None and stat.S_ISREG(child.row.mode)
        )

    def refused(self) -> tuple[tuple[bytes, str], ...]:
        """(path, why) of what the origin has and is not published here: the first of them."""
        found = self.index.on_device(REFUSED, MAX_REFUSED)
        return tuple((path, f"symlink to {row.target!r}, which leads out of the tree") for path, row in found)

    def still_refused(self, paths: Iterable[bytes]) -> frozenset[bytes]:
        """Those of `paths` that are not published still: the others changed, or went."""
        found = [(path, self.index.get(path)) for path in paths]
        return frozenset(path for path, child in found if child is not None and child.row.device == REFUSED)

    def clear_stage(self) -> None:
        """Drop what was fetched for another batch."""
        io_publish.clear_stage(self.layout)

    def clear_ahead(self) -> bytes:
        """The directory for files of a batch that is not the next yet, emptied; from any thread."""
        layout = Layout(self._path, self._work)
        remove_all(layout.ahead)
        return layout.ahead

    def take_ahead(self) -> None:
        """What was fetched ahead is for the next batch now."""
        io_publish.take_ahead(self.layout)

    def check_staged(self, steps: Sequence[Step], staged: Written) -> dict[bytes, str]:
        """Files that the steps need and that did not come; see `io_publish.check_staged`."""
        return io_publish.check_staged(self.layout, steps, staged)

    # -- publishing

    def publish(self, steps: Sequence[Step], note: Note, staged: Written | None = None) -> None:
        """Do the steps, durably, and record the note. PublishError, DiskFull: `recover` goes on from there later.

        `staged`: what is known of the files in the stage. A directory that is brought whole changes none of them: they are
        recorded as they were written, without another look.
        """
        self.check_place()
        number = 1 + max(int(fact(self._db, "published") or 0), self._newest_version())
        intent = Intent(number, tuple(steps), encode_note(note))
        if not steps:
            self._record(note, intent)
            return
        known: dict[bytes, Row] = {}
        if self._is_atomic:
            io_version.publish_version(self._versions, intent, time.time())
        else:
            intent = replace(intent, steps=io_publish.bring_whole(self.layout, intent.steps, self.ranks))
            known = brought(intent.steps, staged or {})
            io_publish.begin(self.layout, intent)
            io_publish.run(self.layout, begun=intent)
        self._record(note, intent, known)
        self._finish(intent)

    def tidy(self) -> int:
        """Remove for good what was replaced or deleted, and old versions; number of entries."""
        if self._is_atomic:
            io_version.expire(self._versions, time.time(), self.tree.grace)
        return io_publish.sweep(self.layout)

    def recover(self) -> Recovery:
        """Go on with a publish that was under way; read what is on the disk when there is no index yet."""
        self.check_place()
        pending = io_publish.pending(self.layout)
        went_on = looked = 0
        if pending is not None:
            done = int(fact(self._db, "published") or 0) >= pending.intent.number
            if done:
                self._finish(pending.intent)
            elif self._is_atomic:
                # Built anew from the cursor, unless it has its name already: then only the record is missing.
                if os.path.isdir(self._versions.path(pending.intent.number)):
                    io_version.publish_version(self._versions, pending.intent, time.time())
                    self._record(decode_note(pending.intent.note), pending.intent)
                    self._finish(pending.intent)
                else:
                    io_publish.abandon(self.layout)
            elif pending.trusted and self._goes_on(pending.intent):
                went_on = len(pending.intent.steps)
            else:
                looked = self._look_again(io_publish.abandon(self.layout))
        first = self.index.is_empty()
        if first:
            self.read_disk()
        return Recovery(first, went_on, looked)

    def _goes_on(self, intent: Intent) -> bool:
        """Whether the rest of a publish could be done; not when something else changed the tree meanwhile."""
        try:
            io_publish.run(self.layout)
        except DiskFull:
            raise
        except PublishError:
            return False
        self._record(decode_note(intent.note), intent)
        self._finish(intent)
        return True

    def forget_later(self) -> None:
        """A comparison is about to tell all that is missing."""
        with transaction(self._db):
            set_fact(self._db, "later", encode_changes(()))

    def move_cursor(self, cursor: Cursor) -> None:
        """The copy is what the parent has at `cursor`, without anything to do for it."""
        with transaction(self._db):
            self._set_cursor(cursor)

    def read_disk(self) -> int:
        """Make the index what the disk holds, without a word in the journal; number of entries that were different.

        For the first start, and for `verify`: then the comparison of manifests tells what is wrong.
        """
        self.check_place()
        disk = Disk(self.root)
        before = self._db.total_changes
        try:
            comparer = Comparer(disk, self.index)
            comparer.quiet = True
            stack = [(b"", Depth.ALL)]
            while stack:
                with self._indexing():
                    for _ in range(_LOOK_SLICE):
                        if not stack:
                            comparer.settle_losses()
                            break
                        comparer.walk(*stack.pop())
                        stack.extend(comparer.take_walks())
                    set_fact(self._db, "quiet_looks", int(fact(self._db, "quiet_looks") or 0) + 1)
                stack.extend(comparer.take_walks())
        finally:
            disk.close()
        return self._db.total_changes - before

    # -- older versions

    def versions(self) -> list[tuple[int, bool]]:
        """(number, whether clients see it) of the versions of an atomic tree that are still there, oldest first."""
        if not self._is_atomic:
            return []
        public = io_version.current(self._versions)
        kept = sorted(int(name) for name in os.listdir(self._versions.versions) if name.isdigit())
        return [(number, number == public) for number in kept]

    @property
    def pinned(self) -> int | None:
        """The version that stays until it is released."""
        number = int(fact(self._db, "pinned") or 0)
        return number - 1 if number else None

    def pin(self, number: int | None) -> None:
        """Show an older version and stay at it; None: no more. PublishError when there is no such version."""
        if number is not None:
            if not self._is_atomic:
                raise PublishError(f"tree {self.name} keeps no versions", "only trees of mode atomic do")
            io_version.roll_back(self._versions, number, time.time())
        with transaction(self._db):
            set_fact(self._db, "pinned", 0 if number is None else number + 1)
        if number is not None:
            self.read_disk()

    # -- recording

    def _record(self, note: Note, intent: Intent, known: Mapping[bytes, Row] = _NOTHING) -> None:
        with self._indexing():
            # With a part held back the disk is not what the changes say: it is asked what it is.
            drafts = self._look(touched(intent.steps)) if note.later else self._play(note, known)
            self.journal.append(drafts, time.time())
            set_fact(self._db, "later", encode_changes(note.later))
            set_fact(self._db, "published", intent.number)
            if note.deletes is not None:
                set_fact(self._db, "recent_deletes", json.dumps(note.deletes).encode())
            if note.cursor is not None:
                self._set_cursor(note.cursor)

    def _play(self, note: Note, known: Mapping[bytes, Row]) -> list[Draft]:
        """Bring the index to where the changes bring the tree; the drafts of the same for our children."""
        drafts: list[Draft] = []
        disk = Disk(self.root)
        refused = frozenset(note.refused)
        try:
            if not refused and all(change.op is Op.UPSERT and not change.source for change in note.changes):
                paths = dict.fromkeys(change.path for change in note.changes)
                found = record_upserts(self.index, disk, list(paths), known)
                if found is not None:
                    return found
            for change in note.changes:
                if change.op is Op.DELETE:
                    if self.index.remove(change.path):
                        drafts.append(Draft(Op.DELETE, change.path))
                elif change.op is Op.RENAME:
                    self._play_rename(change, drafts, disk)
                elif change.path in refused and change.entry is not None:
                    self._put_refused(change.path, change.entry.target, change.entry.mtime_ns, drafts, disk)
                else:
                    self._play_upsert(change.path, drafts, disk, change.source)
            for path in note.refused:
                old = self.index.get(path)
                if old is not None and old.row.device != REFUSED:
                    self.index.put(path, old.row._replace(device=REFUSED))
        finally:
            disk.close()
        return drafts

    def _play_rename(self, change: Change, drafts: list[Draft], disk: Disk) -> None:
        old = self.index.get(change.source)
        if old is None or change.entry is None or old.row.device == REFUSED:
            self.index.remove(change.source)
            self._play_upsert(change.path, drafts, disk)
            return
        self._make_above(change.path, drafts, disk)
        self.index.move(change.source, change.path)
        row = old.row._replace(mode=stat.S_IFMT(old.row.mode) | change.entry.mode)
        if row.is_directory:
            row = row._replace(mtime_ns=change.entry.mtime_ns)
        self.index.put(change.path, row)
        drafts.append(Draft(Op.RENAME, change.path, row, change.source))

    def _play_upsert(self, path: bytes, drafts: list[Draft], disk: Disk, link_of: bytes = b"") -> None:
        row = _look(disk, path)
        if row is None:
            return
        self._make_way(path, row, drafts)
        self._make_above(path, drafts, disk)
        self.index.put(path, row)
        first = _look(disk, link_of) if link_of else None
        is_link = first is not None and first.inode == row.inode
        drafts.append(Draft(Op.UPSERT, path, row, link_of if is_link else b""))

    def _make_way(self, path: bytes, row: Row, drafts: list[Draft]) -> None:
        """Forget what is of another kind at `path`; told to our children too, who may have taken something below it."""
        old = self.index.get(path)
        if old is not None and old.row.is_directory != row.is_directory:
            self.index.remove(path)
            drafts.append(Draft(Op.DELETE, path))

    def _put_refused(self, path: bytes, target: bytes, mtime_ns: int, drafts: list[Draft], disk: Disk) -> None:
        """Index a symlink that is not published: so the hash is the origin's, and our children decide for themselves."""
        row = Row(stat.S_IFLNK | 0o777, 0, mtime_ns, 0, REFUSED, 0, target)
        self._make_way(path, row, drafts)
        self._make_above(path, drafts, disk)
        self.index.put(path, row)
        drafts.append(Draft(Op.UPSERT, path, row))

    def _make_above(self, path: bytes, drafts: list[Draft], disk: Disk) -> None:
        """Index the directories above `path` that are not yet: a change of theirs comes later, or never came."""
        above = path.rpartition(b"/")[0]
        if self.index.number(above) is not None:
            return
        if above:
            self._make_above(above, drafts, disk)
        row = _look(disk, above)
        if row is None or not row.is_directory:
            # The disk is as after the last of the changes: what is a directory now may be gone, or a file, by then.
            row = Row(stat.S_IFDIR | 0o755, 0, UNTOLD, 0, 0, 0, b"")
        self._make_way(above, row, drafts)
        self.index.put(above, row)
        if above:
            drafts.append(Draft(Op.UPSERT, above, row))

    def _look_again(self, paths: Sequence[bytes]) -> int:
        with self._indexing():
            drafts = self._look(paths)
            self.journal.append(drafts, time.time())
        return len(paths)

    def _look(self, paths: Sequence[bytes]) -> list[Draft]:
        """Index what is at these paths, and below directories that are new; the drafts of what was different."""
        disk = Disk(self.root)
        try:
            comparer = Comparer(disk, self.index)
            comparer.check([(path, False) for path in paths])
            while walks := comparer.take_walks():
                for path, depth in walks:
                    comparer.walk(path, depth)
            comparer.settle_losses()
            return comparer.take().drafts
        finally:
            disk.close()

    def _set_cursor(self, cursor: Cursor) -> None:
        set_fact(self._db, "parent_journal", cursor.journal)
        set_fact(self._db, "parent_sequence", cursor.sequence)

    @contextmanager
    def _indexing(self) -> Iterator[None]:
        try:
            with transaction(self._db):
                yield
        except BaseException:
            self.index.rolled_back()
            raise

    # -- the place

    def _prepare(self, accept: bool) -> None:
        """Make the directories; refuse a tree whose disk is not the one it was."""
        known = fact(self._db, "root_inode")
        if not os.path.isdir(self._home):
            if known and not accept:
                raise CopyError(
                    f"{os.fsdecode(self._home)} is not there, and held {self.index.size().entries:,} entries",
                    f"mount its disk; if it was removed on purpose: `syncd accept {self.name}`, and it is fetched anew",
                )
            os.makedirs(self._home, exist_ok=True)
        self._lock = hold_directory(self._home)
        if self._is_atomic:
            io_version.adopt(self._versions)
        inode = os.fstat(self._lock).st_ino
        # A disk that was made anew gives its first directories the numbers that the old one gave them.
        is_other = known != inode or self._was_emptied()
        if known and is_other and not accept:
            raise self._another()
        os.makedirs(self.root, exist_ok=True)
        io_publish.prepare(self.layout)
        self._work_lock = hold_directory(self._work, "work directory")
        if known and is_other:
            with self._indexing():
                self.index.remove(b"")
                # Nothing is current any more: it is compared with the parent's before anyone is sent here.
                self._set_cursor(Cursor())
                set_fact(self._db, "later", encode_changes(()))
                set_fact(self._db, "quiet_looks", int(fact(self._db, "quiet_looks") or 0) + 1)
        with transaction(self._db):
            set_fact(self._db, "root_inode", inode)

    def _was_emptied(self) -> bool:
        try:
            return not os.listdir(self.root) and self.index.holds_more_than_root(REFUSED)
        except FileNotFoundError:
            return True

    @property
    def _home(self) -> bytes:
        """The directory by which the disk is known."""
        return self._versions.versions if self._is_atomic else self._path

    def _another(self) -> CopyError:
        return CopyError(
            f"{os.fsdecode(self._home)} is another directory than before, or was emptied",
            f"is its disk mounted? if it is meant to be this one: `syncd accept {self.name}`",
        )

    def _newest_version(self) -> int:
        return io_version.current(self._versions) if self._is_atomic else 0

    def _finish(self, intent: Intent) -> None:
        if self._is_atomic:
            io_version.finish_version(self._versions, intent)
        else:
            io_publish.finish(self.layout)


class _Have:
    """The index as a plan asks it. Digests are of contents that were read here once: they prove nothing of a transfer."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, path: bytes) -> Entry | None:
        """The entry at `path`."""
        child = self._index.get(path)
        return to_entry(path, child.row) if child is not None and child.row.device != REFUSED else None

    def below(self, path: bytes) -> Iterator[Entry]:
        """All entries below `path`."""
        entries = self._index.entries(path)
        next(entries, None)
        return (entry for entry in entries if entry.inode[0] != REFUSED)


def _look(disk: Disk, path: bytes) -> Row | None:
    try:
        return disk.look(path)
    except (Gone, Trouble):
        return None
