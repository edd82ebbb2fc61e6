"""What the patterns of a copy make of a batch of changes: what is told and recorded, and what of that is planned.

The index has a row for all that the origin has, so that its hash is the origin's; what the patterns cover is recorded as
it was told, and no step is ever made for it. A rename is what needs care:

| what is renamed                                      | becomes                                              |
|------------------------------------------------------|------------------------------------------------------|
| nothing of it is left out, here or there             | the rename that it is                                |
| it is left out where it was, and where it is now     | the same; only rows of the index move                |
| a file that crosses the border                       | a delete and an upsert                               |
| a directory that does, or something in it; or one in | a delete, and a directory of which nothing is known: |
| which something of this node's own lies              | a comparison tells what is in it                     |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from core.exclude import Exclude
from syncd.model import Change, Entry, Kind, Op, check_path, join
from syncd.publish.final_tree import FinalTree, Have, Node
from syncd.store.coalesce import coalesce

_MAX_CACHED = 50_000


class Border:
    """Patterns as paths of a tree are held against them, with all that lies above: each directory once."""

    def __init__(self, exclude: Exclude) -> None:
        self.exclude = exclude
        self._covered: dict[bytes, bool] = {b"": False}

    def covers(self, path: bytes, is_directory: bool) -> bool:
        """Whether what is at `path`, or a directory above it, is left out."""
        return self._is_below(path.rpartition(b"/")[0]) or (bool(path) and self.exclude.leaves_out(path, is_directory))

    def leaves_out(self, entry: Entry, path: bytes) -> bool:
        """`covers` of an entry at `path`."""
        return self.covers(path, entry.kind is Kind.DIRECTORY)

    def _is_below(self, directory: bytes) -> bool:
        known = self._covered.get(directory)
        if known is not None:
            return known
        if len(self._covered) > _MAX_CACHED:
            self._covered = {b"": False}
        # With a stack of its own: paths may be 2,048 names deep.
        unknown: list[bytes] = []
        above = directory
        while above not in self._covered:
            unknown.append(above)
            above = above.rpartition(b"/")[0]
        known = self._covered[above]
        for below in reversed(unknown):
            known = self._covered[below] = known or self.exclude.leaves_out(below, True)
        return known


@dataclass(frozen=True, slots=True)
class Told:
    """Changes to plan and record. `is_lacking`: directories came of which nothing is known; compare listings after them."""

    changes: tuple[Change, ...]
    is_lacking: bool = False


def leave_out(changes: Sequence[Change], have: Have, border: Border, holds_own: Callable[[bytes], bool]) -> Told:
    """What `changes`, in the order of a journal, are for a copy with these patterns.

    `have`: all that its index has, what is left out too. `holds_own`: whether something that is left out lies on its disk
    in the directory at a path. PathError as a plan's.
    """
    told = [_unlinked(change, border) for change in changes]
    if all(change.op is not Op.RENAME for change in changes):
        return Told(tuple(told))
    tree = FinalTree(have, keeps_more=True)
    found: list[Change] = []
    is_lacking = is_other = False
    for change in told:
        if change.op is Op.RENAME and change.entry is not None:
            new, lacks = _renamed(change, change.entry, tree, border, holds_own)
            is_lacking |= lacks
            is_other |= new != [change]
            found += new
        else:
            found.append(change)
        tree.play(change)
    # In the form of a journal's page again: no file is told of before a rename that may concern it.
    return Told(tuple(coalesce(found) if is_other else found), is_lacking)


def _unlinked(change: Change, border: Border) -> Change:
    """Without the name of a file that is not here: then it is fetched."""
    if change.op is Op.UPSERT and change.source and border.covers(change.source, False):
        return change._replace(source=b"")
    return change


def _renamed(
    change: Change, entry: Entry, tree: FinalTree, border: Border, holds_own: Callable[[bytes], bool]
) -> tuple[list[Change], bool]:
    node = tree.find(change.source)
    is_directory = entry.kind is Kind.DIRECTORY
    was_out = border.covers(change.source, node.is_directory if node is not None else is_directory)
    is_out = border.leaves_out(entry, change.path)
    if was_out and is_out and node is not None:
        return [change], False
    gone = Change(change.sequence, Op.DELETE, change.source)
    if is_out or (was_out and not is_directory):
        return [gone, Change(change.sequence, Op.UPSERT, change.path, entry)], is_directory
    if was_out or (node is not None and _is_crossed(change, node, tree.have, border, holds_own)):
        return [gone, change], True
    return [change], False


def _is_crossed(change: Change, node: Node, have: Have, border: Border, holds_own: Callable[[bytes], bool]) -> bool:
    """Whether something in a directory that moves is left out, at its old place or at its new one."""
    if not node.is_directory:
        return False
    if (node.known is not None and holds_own(node.known.path)) or holds_own(change.path):
        return True
    return any(
        border.covers(top + b"/" + name, is_directory)
        for name, is_directory in _below(node, have)
        for top in (change.source, change.path)
    )


def _below(top: Node, have: Have) -> Iterator[tuple[bytes, bool]]:
    """(path below `top`, whether it is a directory) of all that is in it; of some that has left it, too."""
    stack = [(b"", top)]
    while stack:
        path, node = stack.pop()
        if node.known is not None and node.known.kind is Kind.DIRECTORY:
            cut = len(node.known.path) + 1
            for entry in have.below(node.known.path):
                yield join(path, entry.path[cut:]), entry.kind is Kind.DIRECTORY
        for name, kid in node.kids.items():
            if kid is not None:
                yield join(path, name), kid.is_directory
                stack.append((join(path, name), kid))


def wanted(changes: Iterable[Change], border: Border) -> tuple[Change, ...]:
    """What of changes that `leave_out` gave is planned: nothing that is left out. PathError as a plan's."""
    found: list[Change] = []
    for change in changes:
        check_path(change.path)  # no plan sees all of them
        if change.op is Op.DELETE or change.entry is None or not border.leaves_out(change.entry, change.path):
            found.append(change)
        elif change.entry.kind is Kind.DIRECTORY and not border.covers(change.path, False):
            # A pattern for directories only: a file of this name may have been published.
            found.append(Change(change.sequence, Op.DELETE, change.path))
    return tuple(found)
