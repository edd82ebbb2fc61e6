"""A `SourceTree` on a real directory for tests: started again and again, stepped until it is quiet, read like a child."""

from __future__ import annotations

import os
import stat
import tempfile
from typing import Protocol

import pytest

from core.exclude import NOTHING, Exclude
from syncd.model import Change, Op
from syncd.source.io_fanotify import fanotify_problem
from syncd.source.io_source import SourceTree
from syncd.store.io_journal import Page
from tests.syncd.churn import Seen

SETTLE_STEPS = 3

PROBLEM = fanotify_problem(os.fsencode(tempfile.gettempdir()))
needs_fanotify = pytest.mark.skipif(bool(PROBLEM), reason=f"no fanotify for the temporary directory: {PROBLEM}")
with_both = pytest.mark.parametrize("watch", ["inotify", pytest.param("fanotify", marks=needs_fanotify)])
"""The test is run with both ways to watch."""


class Start(Protocol):
    """See the fixture `start`."""

    def __call__(
        self,
        *,
        accept_root: bool = False,
        cross_mounts: bool = False,
        signed_contents: bool = False,
        exclude: Exclude = NOTHING,
    ) -> SourceTree: ...

    def stop(self) -> None:
        """Close the one that runs."""


def settle(source: SourceTree) -> None:
    """Step until nothing waits and nothing is walked, some times in a row."""
    quiet = 0
    while quiet < SETTLE_STEPS:
        written = source.step(0.06)
        status = source.status
        quiet = quiet + 1 if not written and not status.waiting and not status.walking else 0


def indexed(source: SourceTree) -> Seen:
    """The index in the form of `scan`."""
    top = source.index.get(b"")
    assert top is not None
    seen: Seen = {b"": (top.row.mode, top.row.size, top.row.mtime_ns, top.row.inode, top.row.target)}
    stack = [(b"", top.directory)]
    while stack:
        above, number = stack.pop()
        assert number is not None
        for name, child in source.index.children(number).items():
            path = above + b"/" + name if above else name
            row = child.row
            seen[path] = (row.mode, row.size, row.mtime_ns, row.inode, row.target)
            if child.directory is not None:
                stack.append((path, child.directory))
    return seen


def read(source: SourceTree, after: int, limit: int = 10_000) -> tuple[list[Change], int]:
    page = source.journal.read(source.journal.journal_id, after, limit)
    assert isinstance(page, Page), page
    return list(page.changes), page.cursor


def write(root: bytes, path: bytes, data: bytes = b"x") -> bytes:
    full = os.path.join(root, path)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "wb") as file:
        file.write(data)
    return full


def told(source: SourceTree, after: int) -> list[str]:
    """The journal after `after`: u PATH, x PATH, r SOURCE>PATH; the root's PATH is a dot."""
    settle(source)
    changes, _ = read(source, after)
    return [f"{c.op.value} " + os.fsdecode((c.source + b">" if c.source else b"") + (c.path or b".")) for c in changes]


class Child:
    """Applies pages to a dict, as the head of coalesce.py says; what it holds is (mode, size, mtime_ns, target)."""

    def __init__(self, seen: Seen, cursor: int) -> None:
        self.cursor = cursor
        self.tree = {path: self.reduce(row) for path, row in seen.items()}

    @staticmethod
    def reduce(row: tuple[object, ...]) -> tuple[object, ...]:
        return row[0], row[1], row[2], row[4]

    def pull(self, source: SourceTree, limit: int) -> None:
        while True:
            changes, cursor = read(source, self.cursor, limit)
            for change in changes:
                self.apply(change)
            if cursor == self.cursor:
                return
            self.cursor = cursor

    def below(self, path: bytes) -> list[bytes]:
        return [p for p in self.tree if p == path or p.startswith(path + b"/")]

    def apply(self, change: Change) -> None:
        if change.op is Op.DELETE:
            for path in self.below(change.path):
                del self.tree[path]
            return
        entry = change.entry
        assert entry is not None
        if change.op is Op.RENAME:
            moved = {p: self.tree.pop(p) for p in self.below(change.source)}
            for path, row in moved.items():
                self.tree[change.path + path[len(change.source) :]] = row
            if not moved:
                return
        else:
            form = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK}[entry.kind.value]
            self.tree[entry.path] = (form | entry.mode, entry.size, entry.mtime_ns, entry.target)
