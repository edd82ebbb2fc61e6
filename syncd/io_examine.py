"""Looking at a copy without changing it: what would be done now (`syncd plan`), and what is wrong on its disk (`verify`).

Both run beside the follower. What it publishes meanwhile is no finding: paths that the parent's journal names since the
beginning are left out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from core.exclude import Exclude
from syncd.copy.io_child import Follower
from syncd.copy.io_reconcile import compare_in_thread
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.io_below import Below
from syncd.publish.io_own import holds_only_own
from syncd.publish.plan import Plan
from syncd.publish.steps import stays_inside
from syncd.source.io_compare import Comparer, Depth
from syncd.source.io_scan import Disk, Trouble
from syncd.store.io_index import Child, Index
from syncd.store.io_ledger import Ledger
from syncd.store.io_store import SEALED, close_store, fact, open_store, transaction
from syncd.store.manifest import Comparison
from syncd.transfer.io_parent import Parent
from syncd.transfer.io_plain import PlainParent
from syncd.transfer.wire import Behind

_SLICE = 2_000
"""Directories read in one transaction."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that is not as the parent has it, and how."""

    path: bytes
    what: str


@dataclass(frozen=True, slots=True)
class Findings:
    """What a verification found. `unsure`: paths that changed meanwhile, of which nothing can be said."""

    entries: int
    differences: tuple[Difference, ...]
    troubles: tuple[Trouble, ...]
    """what could not be looked at"""
    unsure: int
    refused: tuple[Difference, ...] = ()
    """symlinks of the parent that are not published here on purpose: nothing is wrong with that"""
    unlike: frozenset[bytes] = frozenset()
    """those that differ in what no listing has: owners, extended attributes, lists"""


async def plan_now(follower: Follower) -> Plan:
    """What a follower would fetch and do if it did it now; everything it waits for, is held for, and has not asked for."""
    copy, parent = follower.at_hand()
    if isinstance(parent, PlainParent):
        look = await parent.differences(os.fsdecode(copy.root), copy.tree.exclude)
        return await follower.with_copy(lambda copy: copy.plan(look.changes))
    cursor = await follower.with_copy(lambda copy: copy.cursor())
    answer = await parent.journal(follower.name, cursor, 0.0)
    if isinstance(answer, Behind):
        changes: Sequence[Change] = (await follower.compare_with(parent)).changes
    else:
        later = await follower.with_copy(lambda copy: copy.later())
        changes = (*later, *answer.changes)
    return await follower.with_copy(lambda copy: copy.plan(copy.leave_out(changes).changes))


async def verify_now(follower: Follower, scratch: Path) -> Findings:
    """Read every name on the disk and compare it with the parent's listings; `scratch` is made for it, and removed.

    With a plain rsync server as parent, rsync itself compares, and what changes there meanwhile is found different.
    """
    copy, parent = follower.at_hand()
    if isinstance(parent, PlainParent):
        look = await parent.differences(os.fsdecode(copy.root), copy.tree.exclude)
        entries = (await follower.with_copy(lambda copy: copy.size())).entries
        changes = await asyncio.to_thread(_but_kept, copy.root, look.changes, Exclude(copy.tree.exclude))
        wrong, refused = _refused_apart(changes)
        unread = tuple(Trouble(fault.path, fault.why) for fault in look.unread)
        different = tuple(Difference(change.path, _plainly(change)) for change in wrong)
        return Findings(entries, different, unread, 0, refused)
    cursor = await follower.with_copy(lambda copy: copy.cursor())
    root = copy.root
    loop = asyncio.get_running_loop()
    _remove_store(scratch)  # of a verification that was killed
    try:
        entries, troubles, found, had = await asyncio.to_thread(
            _read_and_compare, root, scratch, parent, follower, loop
        )
    finally:
        _remove_store(scratch)
    unlike: list[tuple[bytes, str]] = []
    if copy.layout.kept:
        unlike = await follower.intake.find_unlike(copy, parent, await follower.with_copy(lambda copy: copy.indexed()))
    meanwhile = await parent.journal(follower.name, cursor, 0.0)
    moved = set(found.moved)
    if isinstance(meanwhile, Behind):
        return Findings(entries, (), troubles, len(found.changes) + len(moved) + len(unlike))
    for change in meanwhile.changes:
        moved |= {change.path, *([change.source] if change.source else [])}
    every, refused = _refused_apart(found.changes)
    sure = [change for change in every if not _is_below(change.path, moved)]
    differences = {change.path: _difference(change, had.get(change.path)) for change in sure}
    # Where a listing finds something wrong, it is brought anew with all that belongs to it.
    others = {path: what for path, what in unlike if path not in differences and not _is_below(path, moved)}
    differences |= {path: f"has {what}" for path, what in others.items()}
    return Findings(
        entries,
        tuple(Difference(path, what) for path, what in differences.items()),
        troubles,
        len(every) - len(sure) + len(found.moved),
        refused,
        frozenset(others),
    )


def _remove_store(file: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        with suppress(FileNotFoundError):
            os.unlink(f"{file}{suffix}")


def _refused_apart(changes: Sequence[Change]) -> tuple[list[Change], tuple[Difference, ...]]:
    """(changes, what is not published on purpose): symlinks that lead out of the tree, which are not here."""
    refused = [change for change in changes if _is_refused(change)]
    if not refused:
        return list(changes), ()
    named = [(change.path, os.fsdecode(change.entry.target)) for change in refused if change.entry is not None]
    told = [Difference(path, f"refused: symlink to {target!r}, which leads out of the tree") for path, target in named]
    return [change for change in changes if not _is_refused(change)], tuple(told)


def _is_refused(change: Change) -> bool:
    entry = change.entry
    return (
        change.op is Op.UPSERT
        and entry is not None
        and entry.kind is Kind.SYMLINK
        and not stays_inside(change.path, entry.target)
    )


def _read_and_compare(
    root: bytes, scratch: Path, parent: Parent, follower: Follower, loop: asyncio.AbstractEventLoop
) -> tuple[int, tuple[Trouble, ...], Comparison, dict[bytes, Child | None]]:
    """In a thread of its own: (entries read, troubles, what differs, what is here at each path that differs)."""
    exclude = Exclude(follower.tree.exclude)
    troubles = _read(root, scratch, follower.store, exclude)
    ledger = Ledger(scratch)
    try:
        with ledger.local() as local:
            found = compare_in_thread(local, follower.name, parent, loop)
            if exclude:
                found = replace(found, changes=_but_kept(root, found.changes, exclude))
            had = {change.path: ledger.get(change.path) for change in found.changes}
        return ledger.size().entries, troubles, found, had
    finally:
        ledger.close()


def _but_kept(root: bytes, changes: Sequence[Change], exclude: Exclude) -> list[Change]:
    """`changes` without directories that are gone at the parent, and stay for what is left alone in them."""
    with Below(root) as tree:
        return [c for c in changes if c.op is not Op.DELETE or not holds_only_own(tree, c.path, exclude)]


def _read(root: bytes, scratch: Path, store: Path, exclude: Exclude) -> tuple[Trouble, ...]:
    """Index the disk in `scratch`; the copy's own index, in `store`, knows the digests of what is as it was, and what is
    left out."""
    db = open_store(scratch)
    disk = Disk(root, exclude=exclude)
    try:
        with closing(open_store(store, exclusive=False)) as known:
            if exclude or fact(known, SEALED):
                known.backup(db)
        index = Index(db, by_inode=True)
        comparer = Comparer(disk, index)
        comparer.quiet = comparer.keeps_hidden = True
        stack = [(b"", Depth.ALL)]
        while stack:
            with transaction(db):
                for _ in range(min(_SLICE, len(stack))):
                    comparer.walk(*stack.pop())
                    stack.extend(comparer.take_walks())
                if not stack:
                    comparer.settle_losses()
        return tuple(comparer.take().troubles)
    finally:
        disk.close()
        close_store(db)


def _is_below(path: bytes, moved: set[bytes]) -> bool:
    if not path:
        return path in moved
    parts = path.split(b"/")
    return any(b"/".join(parts[:n]) in moved for n in range(1, len(parts) + 1))


def _plainly(change: Change) -> str:
    return "should not be here" if change.op is Op.DELETE else "is missing or different"


def _difference(change: Change, had: Child | None) -> str:
    if change.op is Op.DELETE:
        return "should not be here"
    entry = change.entry
    if had is None or entry is None:
        return "is missing"
    return _wrong(entry, had)


_KINDS = {Kind.FILE: "a file", Kind.DIRECTORY: "a directory", Kind.SYMLINK: "a symlink"}


def _wrong(entry: Entry, had: Child) -> str:
    row = had.row
    if row.is_directory != (entry.kind is Kind.DIRECTORY):
        return f"should be {_KINDS[entry.kind]}"
    if entry.kind is Kind.FILE and row.size != entry.size:
        return f"has {row.size:,} bytes, should have {entry.size:,}"
    if entry.kind is Kind.SYMLINK and row.target != entry.target:
        return f"leads to {os.fsdecode(row.target)!r}, should lead to {os.fsdecode(entry.target)!r}"
    if (row.mode & 0o7777) != entry.mode:
        return f"has mode {row.mode & 0o7777:04o}, should have {entry.mode:04o}"
    if row.mtime_ns != entry.mtime_ns:
        return "has another modification time"
    return "is different"
