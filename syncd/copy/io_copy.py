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
from dataclasses import replace
from pathlib import Path

from core.config_sync import Tree
from core.errors import NearpathError
from core.exclude import Exclude
from core.io_config_sync import work_directory
from core.io_log import get_logger
from syncd.copy.io_prove import announced
from syncd.copy.io_record import Everything, Published, Record, brought
from syncd.copy.note import Note, NoteError, decode_changes, decode_note, encode_changes, encode_note
from syncd.model import Change, Op
from syncd.publish import io_publish, io_version
from syncd.publish.final_tree import is_at_odds
from syncd.publish.guard import Space
from syncd.publish.io_attributes import Kept
from syncd.publish.io_below import Below, remove_all
from syncd.publish.io_own import check_way, find_own
from syncd.publish.io_publish import DiskFull, Layout
from syncd.publish.io_version import Versions
from syncd.publish.left_out import Border, Told, leave_out, wanted
from syncd.publish.plan import Plan, make_plan
from syncd.publish.steps import Do, Intent, PublishError, Ranks, Step, touched
from syncd.source.io_compare import Comparer, Depth
from syncd.source.io_scan import Disk
from syncd.source.row import REFUSED, Row, Written, is_published, to_entry
from syncd.store.io_index import Index, Size
from syncd.store.io_journal import Draft, Journal
from syncd.store.io_store import SEALED, close_store, fact, hold_directory, open_store, set_fact, transaction
from syncd.transfer.wire import Cursor

_LOOK_SLICE = 2_000
"""Directories walked in one transaction when the disk is read anew."""

MAX_REFUSED = 100
"""So many paths are named; people fix them at the origin one by one."""

_READ = "disk_read"
"""The fact that the index was made of all that lies there, but for what `exclude` has: its fingerprint and 1; else 0."""

_PARTIAL = "left_out"
"""The fact that something is, or may be, left out that the origin has."""

_NOTHING: Mapping[bytes, Row] = {}


_log = get_logger("copy")


class CopyError(NearpathError):
    """The copy cannot be worked on: its disk is not there, or is another one."""


class Copy:
    """See the module. CopyError, StoreBusy or PublishError when it cannot be opened; `accept` takes another disk for it."""

    def __init__(self, name: str, tree: Tree, store: Path, *, accept: bool = False) -> None:
        self.name = name
        self.tree = tree
        self.ranks = Ranks(tree.indexes)
        self._exclude = Exclude(tree.exclude)
        self._border = Border(self._exclude)
        self._path = os.fsencode(tree.path)
        self._work = os.fsencode(work_directory(tree))
        self._kept = Kept("xattrs" in tree.keep, "acls" in tree.keep, "owners" in tree.keep)
        self._versions = Versions(self._path, self._path + b".versions", self._work, self._kept, self._exclude)
        self._is_atomic = tree.mode == "atomic"
        self._lock = self._work_lock = -1
        self._db = open_store(store)
        try:
            self.index = Index(self._db, by_inode=True)
            self.journal = Journal(self._db)
            self.partial = f".~{self.journal.journal_id.hex()[:16]}~"
            """for `rsync.Options.partial`"""
            self.is_partial = self._is_partial()
            """whether it leaves out anything that the origin has, as far as is known: asked from any thread"""
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
        return Layout(self.root, self._work, self._kept, self._exclude)

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

    def left_out(self) -> tuple[int, int]:
        """(entries, bytes of files) that it leaves out of what the origin has; counted, as `size` is."""
        found = self.index.left_out() if self.is_partial else Size(0, 0, 0)
        return found.entries, found.bytes

    def found_equal(self) -> None:
        """The index has all that the origin has: now it is known whether something of it is left out."""
        if self.is_partial and self._has_read() and not self.index.left_out().entries:
            with transaction(self._db):
                set_fact(self._db, _PARTIAL, 0)
            self.is_partial = False

    def _is_partial(self) -> bool:
        """Until the patterns of now were compared by, what those before left out may be missing."""
        is_read_by_others = bool(fact(self._db, _READ)) and not self._has_read()
        return bool(fact(self._db, _PARTIAL)) or is_read_by_others

    def _has_read(self) -> bool:
        """Whether the index is of the disk as the patterns of now show it."""
        return int(fact(self._db, _READ) or 0) == self._exclude.fingerprint() + 1

    def space(self) -> Space:
        """Free space on the disk of the copy."""
        found = os.statvfs(self._work)
        free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        return Space(free, total, found.f_favail, found.f_files)

    @property
    def is_sealed(self) -> bool:
        """Whether the origin signs contents: then each file comes with its digest."""
        return bool(fact(self._db, SEALED))

    def unread(self, changes: Iterable[Change]) -> list[tuple[bytes, Row]]:
        """(path, row) of files that are here as they were announced, as far as is known without reading them."""
        found: list[tuple[bytes, Row]] = []
        for path, entry in announced(changes).items():
            child = self.index.get(path)
            if child is not None and child.digest is None and is_published(child.row):
                row = child.row
                if stat.S_ISREG(row.mode) and (row.size, row.mtime_ns) == (entry.size, entry.mtime_ns):
                    found.append((path, row))
        return found

    def keep_digests(self, read: Iterable[tuple[bytes, Row, bytes]]) -> None:
        """What was read of contents that are here, and are indexed with these rows."""
        with self._indexing():
            for path, row, digest in read:
                self.index.set_digest(path, row, digest)
            self._note_quiet_look()

    def leave_out(self, changes: Sequence[Change]) -> Told:
        """What the parent's changes are for this copy: see `left_out`."""
        if not self._exclude:
            return Told(tuple(changes))
        with Below(self.root) as tree:
            return leave_out(
                changes,
                Everything(self.index),
                self._border,
                lambda path: find_own(tree, path, self._exclude) is not None,
            )

    def wanted(self, changes: Sequence[Change]) -> tuple[Change, ...]:
        """What of them is published here."""
        return wanted(changes, self._border) if self._exclude else tuple(changes)

    def plan(self, changes: Iterable[Change]) -> Plan:
        """The plan of changes on what is published now."""
        return make_plan(self.wanted(tuple(changes)), Published(self.index), self.ranks, bool(self._kept))

    def as_recorded(self, paths: Iterable[bytes]) -> tuple[Change, ...]:
        """Changes that bring files to what the index says they are: their contents are fetched anew.

        With the digests that the origin signed; what was read here first may have been wrong already. Either is forgotten:
        it says nothing of what lies there.
        """
        is_sealed = self.is_sealed
        found = [(path, self.index.get(path)) for path in sorted(paths)]
        changes = tuple(
            Change(0, Op.UPSERT, path, to_entry(path, child.row, child.digest if is_sealed else None))
            for path, child in found
            if child is not None and stat.S_ISREG(child.row.mode) and is_published(child.row)
        )
        with self._indexing():
            for change in changes:
                self.index.forget_digest(change.path)
            self._note_quiet_look()
        return changes

    def as_indexed(self, paths: Iterable[bytes]) -> tuple[Change, ...]:
        """Changes that bring whatever lies at these paths once more, as the index has it: for what no entry tells of."""
        found = [(path, self.index.get(path)) for path in sorted(paths)]
        return tuple(
            Change(0, Op.UPSERT, path, to_entry(path, child.row, child.digest))
            for path, child in found
            if child is not None and is_published(child.row)
        )

    def indexed(self) -> list[bytes]:
        """Every path that is published."""
        return [entry.path for entry in self.index.entries() if entry.inode[0] >= 0]

    def refused(self) -> tuple[tuple[bytes, str], ...]:
        """(path, why) of what the origin has and is not published here: the first of them."""
        found = self.index.on_device(REFUSED, MAX_REFUSED)
        return tuple((path, f"symlink to {row.target!r}, which leads out of the tree") for path, row in found)

    def still_refused(self, paths: Iterable[bytes]) -> frozenset[bytes]:
        """Those of `paths` that are not published still: the others changed, or went."""
        found = [(path, self.index.get(path)) for path in paths]
        return frozenset(path for path, child in found if child is not None and child.row.device == REFUSED)

    def clear_stage(self) -> None:
        """Drop all that was fetched."""
        io_publish.clear_stage(self.layout)

    def clear_ahead(self) -> bytes:
        """The directory for files of a batch that is not the next yet, emptied; from any thread."""
        layout = Layout(self._path, self._work)
        os.makedirs(layout.ahead, mode=0o700, exist_ok=True)  # it could not be made when the disk was full
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
        check_way(self.root, steps, self._exclude)
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

    def recover(self) -> int:
        """Go on with a publish that was under way, and read the disk where the index is not of it; steps gone on with."""
        self.check_place()
        went_on = self._end_pending()
        if not self._has_read():
            with transaction(self._db):
                set_fact(self._db, _PARTIAL, int(self.is_partial))
            self.read_disk()
        return went_on

    def _end_pending(self) -> int:
        """Bring a publish that was under way to an end, whichever; steps of it that were gone on with."""
        try:
            if (pending := io_publish.pending(self.layout)) is None:
                return 0
            intent, note = pending.intent, decode_note(pending.intent.note)
        except (PublishError, NoteError) as error:
            _log.error("intent_damaged", tree=self.name, why=error.what, doing="the disk is read anew")
            self._forget_reading()  # only the disk can tell what was done
            io_publish.finish(self.layout)
            return 0
        if int(fact(self._db, "published") or 0) >= intent.number:
            self._finish(intent)
        elif self._is_atomic:
            # Built anew from the cursor, unless it has its name already: then only the record is missing.
            if os.path.isdir(self._versions.path(intent.number)):
                io_version.publish_version(self._versions, intent, time.time())
                self._record(note, intent)
                self._finish(intent)
            else:
                io_publish.abandon(self.layout)
        elif pending.trusted and self._has_read() and self._goes_on(note, intent):
            # Not with other patterns than it was planned by: what they cover is not ours to replace or delete any more.
            return len(intent.steps)
        else:
            # Before the intent goes: if the store fails now, or the machine does again, nothing else knows these paths.
            self._look_again(intent.steps)
            io_publish.abandon(self.layout)
        return 0

    def _goes_on(self, note: Note, intent: Intent) -> bool:
        """Whether the rest of a publish could be done; not when something else changed the tree meanwhile."""
        try:
            io_publish.run(self.layout)
        except DiskFull:
            raise
        except PublishError:
            return False
        self._record(note, intent)
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

    def read_disk(self) -> None:
        """Make the index what the disk holds, without a word in the journal.

        For the first start, and for `verify`: then the comparison of manifests tells what is wrong. What is cut short
        before the index was once of the whole disk is begun again by `recover`.
        """
        self.check_place()
        disk = Disk(self.root, exclude=self._exclude)
        try:
            comparer = Comparer(disk, self.index)
            comparer.quiet = comparer.keeps_hidden = True
            stack = [(b"", Depth.ALL)]
            while stack:
                with self._indexing():
                    for _ in range(_LOOK_SLICE):
                        if not stack:
                            comparer.settle_losses()
                            break
                        comparer.walk(*stack.pop())
                        stack.extend(comparer.take_walks())
                    self._note_quiet_look()
                stack.extend(comparer.take_walks())
        finally:
            disk.close()
        with transaction(self._db):
            set_fact(self._db, _READ, self._exclude.fingerprint() + 1)

    def forget_left_out(self) -> None:
        """A plain server is followed: what is left out is as if it were not there, for our own children too."""
        if self.is_partial:
            with self._indexing():
                self.index.forget_left_out()
                set_fact(self._db, _PARTIAL, 0)
                self._note_quiet_look()
            self.is_partial = False

    def _forget_reading(self) -> None:
        """The index may not be what lies there any more: `recover` reads the disk, unless that is done before."""
        with transaction(self._db):
            set_fact(self._db, _READ, 0)

    # -- older versions

    def versions(self) -> list[tuple[int, bool, float]]:
        """(number, whether clients see it, wall time it was made) of an atomic tree's versions, oldest first.

        Only of those that hold anything: what was there before the first sync is not for clients.
        """
        if not self._is_atomic:
            return []
        public = io_version.current(self._versions)
        kept = sorted(int(name) for name in os.listdir(self._versions.versions) if name.isdigit())
        found = [(number, os.fsencode(self._versions.path(number))) for number in kept]
        return [(number, number == public, os.stat(path).st_ctime) for number, path in found if os.listdir(path)]

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
            if os.path.isdir(path := self._versions.path(number)):
                if not os.listdir(path):
                    raise PublishError(f"version {number} of tree {self.name} is empty", "choose one that is listed")
                self._forget_reading()
            io_version.roll_back(self._versions, number, time.time())
        with transaction(self._db):
            set_fact(self._db, "pinned", 0 if number is None else number + 1)
        if number is not None:
            self.read_disk()

    # -- recording

    def _record(self, note: Note, intent: Intent, known: Mapping[bytes, Row] = _NOTHING) -> None:
        with self._indexing():
            # With a part held back the disk is not what the changes say, and nobody knows what changes at odds say.
            do_look = bool(note.later) or is_at_odds(self.wanted(note.changes), Published(self.index))
            drafts = self._look(intent.steps, note.changes) if do_look else self._play(note, known)
            self.journal.append(drafts, time.time())
            set_fact(self._db, "later", encode_changes(note.later))
            set_fact(self._db, "published", intent.number)
            if note.deletes is not None:
                set_fact(self._db, "recent_deletes", json.dumps(note.deletes).encode())
            if note.cursor is not None:
                self._set_cursor(note.cursor)

    def _play(self, note: Note, known: Mapping[bytes, Row]) -> list[Draft]:
        """Bring the index to where the changes bring the tree; the drafts of the same for our children."""
        disk = Disk(self.root, exclude=self._exclude)
        try:
            record = Record(self.index, disk, note.changes, self._border)
            drafts = record.play(frozenset(note.refused), known)
            self._note_partial(record)
            return drafts
        finally:
            disk.close()

    def _note_partial(self, record: Record) -> None:
        if record.is_partial and not self.is_partial:
            self.is_partial = True  # before anybody can be told of it
            set_fact(self._db, _PARTIAL, 1)

    def _look_again(self, steps: Sequence[Step]) -> None:
        with self._indexing():
            drafts = self._look(steps)
            self.journal.append(drafts, time.time())

    def _look(self, steps: Sequence[Step], changes: Sequence[Change] = ()) -> list[Draft]:
        """Index what is where the steps were, and below directories that are new; the drafts of what was different.

        `changes`: what brought it there.
        """
        disk = Disk(self.root, exclude=self._exclude)
        try:
            record = Record(self.index, disk, changes, self._border)
            # A directory that is kept for what is left alone in it is the same one, with less in it.
            emptied = {step.path for step in steps if self._exclude and step.do in (Do.DELETE, Do.MAKE)}
            drafts = record.look([(path, path in emptied) for path in touched(steps)])
            self._note_partial(record)
            return drafts
        finally:
            disk.close()

    def _note_quiet_look(self) -> None:
        """The index changes without a word in the journal: hashes that were made of it say nothing any more."""
        set_fact(self._db, "quiet_looks", int(fact(self._db, "quiet_looks") or 0) + 1)

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
                set_fact(self._db, _READ, 0)
                set_fact(self._db, "pinned", 0)  # that version went with the other disk
                self._note_quiet_look()
        with transaction(self._db):
            set_fact(self._db, "root_inode", inode)

    def _was_emptied(self) -> bool:
        try:
            return not os.listdir(self.root) and self.index.holds_more_than_root()
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
