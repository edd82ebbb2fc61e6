"""The final tree: what a batch of changes leaves of a tree, and where the content of each name of it comes from.

The changes are played in order on a symbolic tree. A node's content is what this node's index knows at an old path
(`known`), or is fetched from the parent. Names that no change spoke of have no node: they are as their directory's
`known` has them. A file that came and went within the batch, or was renamed three times, leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from syncd.model import UNTOLD, Change, Entry, Kind, Op, PathError, check_path, join

IMPLIED_MODE = 0o755
"""Of a directory whose own change never came; the next comparison of manifests puts it right."""


class Have(Protocol):
    """What this node holds, by its index."""

    def get(self, path: bytes) -> Entry | None:
        """The entry at `path`; None when there is none."""

    def below(self, path: bytes) -> Iterable[Entry]:
        """All entries strictly below directory `path`."""


class Node:
    """One name of the final tree that differs from the old one, or leads to one that does."""

    __slots__ = ("entry", "fetch", "kids", "known", "link_of")

    def __init__(self, known: Entry | None = None, entry: Entry | None = None, fetch: bool = False) -> None:
        self.known = known
        """what it is by this node's index: content, and children not in `kids`, come from `known.path`"""
        self.entry = entry
        """what the parent says of it now; None: as known"""
        self.fetch = fetch
        self.link_of: Node | None = None
        self.kids: dict[bytes, Node | None] = {}
        """None: gone"""

    @property
    def is_directory(self) -> bool:
        entry = self.entry or self.known
        return entry is not None and entry.kind is Kind.DIRECTORY

    @property
    def is_file(self) -> bool:
        entry = self.entry or self.known
        return entry is not None and entry.kind is Kind.FILE


_ROOT = Entry(b"", Kind.DIRECTORY, IMPLIED_MODE, mtime_ns=UNTOLD)


class FinalTree:
    def __init__(self, have: Have, keeps_more: bool = False) -> None:
        """`keeps_more`: owners, say. No entry tells of them: what is told of is done anew, though it looks the same."""
        self.have = have
        self.keeps_more = keeps_more
        self.root = Node(known=have.get(b"") or _ROOT)
        self.lacking: list[bytes] = []
        self.is_odd = False
        """a change does not go with what was there before it: no journal tells it so of this tree"""
        self._homes: dict[bytes, Node] = {}
        """directories that were looked up, by path; empty again when one of them may have gone or moved"""

    def play(self, change: Change) -> None:
        path = check_path(change.path)
        if not path:
            if change.op is not Op.UPSERT or change.entry is None or change.entry.kind is not Kind.DIRECTORY:
                raise PathError(f"a change that would {change.op.name} the root of the tree", "the sender is broken")
            self.root.entry = change.entry
            return
        if change.op is Op.DELETE:
            self._detach(path)
        elif change.entry is None:
            raise PathError(f"a change of {path!r} that does not say what is there", "the sender is broken")
        elif change.op is Op.RENAME:
            self._rename(check_path(change.source), path, change.entry)
        else:
            self._upsert(path, change.entry, check_path(change.source))

    def find(self, path: bytes) -> Node | None:
        node: Node | None = self.root
        for name in path.split(b"/") if path else ():
            if node is None:
                return None
            node = self._kid(node, name)
        return node

    def _kid(self, node: Node, name: bytes) -> Node | None:
        if name in node.kids:
            return node.kids[name]
        if node.known is None or not node.is_directory:
            return None
        known = self.have.get(join(node.known.path, name))
        if known is None:
            return None
        kid = node.kids[name] = Node(known=known)
        return kid

    def _home(self, path: bytes) -> tuple[Node, bytes]:
        """The directory that `path` lies in, made if need be, and its last name."""
        above, _, last = path.rpartition(b"/")
        known = self._homes.get(above)
        if known is not None:
            return known, last
        names = path.split(b"/")
        node = self.root
        for depth, name in enumerate(names[:-1]):
            kid = self._kid(node, name)
            if kid is None or not kid.is_directory:
                self.is_odd |= kid is not None
                kid = Node(entry=Entry(b"/".join(names[: depth + 1]), Kind.DIRECTORY, IMPLIED_MODE, mtime_ns=UNTOLD))
                node.kids[name] = kid
            node = kid
        self._homes[above] = node
        return node, last

    def _detach(self, path: bytes) -> None:
        self._homes.clear()
        parent, _, name = path.rpartition(b"/")
        node = self.find(parent)
        if node is not None and node.is_directory:
            node.kids[name] = None

    def _upsert(self, path: bytes, entry: Entry, link_of: bytes) -> None:
        home, name = self._home(path)
        node = self._kid(home, name)
        self.is_odd |= node is not None and node.is_directory != (entry.kind is Kind.DIRECTORY)
        if entry.kind is Kind.DIRECTORY:
            if node is not None and node.is_directory:
                node.entry = entry
            else:
                home.kids[name] = Node(entry=entry)
            return
        if node is not None and node.is_directory:
            self._homes.clear()
        known = node.known if node is not None and not node.fetch and node.known is not None else None
        if known is not None and not self.keeps_more and is_same(known, entry):
            return
        target = self.find(link_of) if link_of and link_of != path and entry.kind is Kind.FILE else None
        fresh = Node(known=known, entry=entry, fetch=True)
        # Only of a file: one more name of a symlink, in another directory, would lead elsewhere, perhaps out of the tree.
        if target is not None and target.is_file and _may_be_one(target, entry):
            fresh.link_of = target.link_of or target
        home.kids[name] = fresh

    def _rename(self, source: bytes, path: bytes, entry: Entry) -> None:
        if not source or path == source or path.startswith(source + b"/"):
            raise PathError(f"a rename of {source!r} to {path!r}", "no directory can go below itself; a broken sender")
        node = self.find(source)
        if node is None:
            there = self.find(path)
            if entry.kind is Kind.DIRECTORY and (there is None or not there.is_directory):
                self.lacking.append(path)
            self._upsert(path, entry, b"")
            return
        self.is_odd |= node.is_directory != (entry.kind is Kind.DIRECTORY)
        self._detach(source)
        home, name = self._home(path)
        self._homes.clear()
        if node.is_directory and entry.kind is Kind.DIRECTORY:
            node.entry = entry
        home.kids[name] = node


def is_at_odds(changes: Sequence[Change], have: Have) -> bool:
    """Whether changes do not go with each other, or with this tree: a file with something in it, a rename of another kind.

    One who follows the journal meets that only where a comparison brought more than the journal had told by then; a
    hostile parent sends it, so that an index that is made of the changes is not what they have made of the disk. PathError.
    """
    told = [(change.path, change.entry.kind is Kind.DIRECTORY) for change in changes if change.entry is not None]
    files = {path for path, is_directory in told if not is_directory}
    if any(is_directory and path in files for path, is_directory in told):
        return True
    if all(change.op is not Op.RENAME for change in changes):
        above = {path.rpartition(b"/")[0] for path, _ in told}
        while above:
            if not above.isdisjoint(files):
                return True
            above = {path.rpartition(b"/")[0] for path in above if path}
        return False
    tree, has_files = FinalTree(have), False
    for change in changes:
        # What came before a rename may have moved with it: its old path, at which it would be looked for, tells nothing.
        if change.op is Op.RENAME and (has_files or tree.find(change.source) is None):
            return True
        has_files |= change.op is Op.UPSERT and change.path in files
        tree.play(change)
    return tree.is_odd


def _may_be_one(node: Node, entry: Entry) -> bool:
    """Whether the content of a file may be that of another name of it: where a digest is told, by that."""
    content = node.entry if node.fetch else node.known
    return entry.digest is None or (content is not None and content.digest == entry.digest)


def is_same(known: Entry, entry: Entry) -> bool:
    """Whether nothing of a file or symlink need be done: a batch that is played again costs nothing where it can."""
    if known.kind is not entry.kind or known.mtime_ns != entry.mtime_ns:
        return False
    if entry.kind is Kind.SYMLINK:
        return known.target == entry.target
    same = known.size == entry.size and known.mode == entry.mode
    return same and known.digest is not None and known.digest == entry.digest
