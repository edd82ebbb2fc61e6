"""A prefix trie of dirty paths: what has to be looked at, with every part that a dirty subtree covers left out.

All operations cost the length of the path (in names), whatever else is in the trie; taking everything costs its size.
"""

from __future__ import annotations

from collections.abc import Iterator


class Mark:
    """One node of the trie. Only nodes with `dirty` set are marks; the others lead to marks below them.

    `first_s`, `last_s` (when the path was first and last hinted) and `queued` are for the owner of the trie.
    """

    __slots__ = ("children", "dirty", "first_s", "last_s", "name", "parent", "queued", "subtree")

    def __init__(self, parent: Mark | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.children: dict[bytes, Mark] | None = None
        self.dirty = False
        self.subtree = False
        self.first_s = 0.0
        self.last_s = 0.0
        self.queued = False

    @property
    def path(self) -> bytes:
        """The path from the root of the trie; also right after the mark was taken out."""
        names = []
        node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))


class DirtyTrie:
    """A set of dirty paths; `len()` counts marks. b"" is the root itself."""

    def __init__(self) -> None:
        self._root = Mark(None, b"")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, path: bytes, subtree: bool = False) -> Mark:
        """Mark `path` (and all below it, with `subtree`) dirty; the mark that now covers it: its own, or a subtree's above.

        A new mark has `first_s` 0. A new subtree mark takes the place of all marks below it, and the earliest of their
        `first_s`, so that what has waited longest still counts.
        """
        node = self._root
        for name in path.split(b"/") if path else ():
            if node.subtree:
                return node
            if node.children is None:
                node.children = {}
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = Mark(node, name)
            node = child
        if not node.dirty:
            node.dirty = True
            self._count += 1
        if subtree and not node.subtree:
            node.subtree = True
            self._absorb(node)
        return node

    def covers(self, path: bytes) -> bool:
        """Whether `path` is dirty, by itself or below a dirty subtree."""
        node = self._root
        for name in path.split(b"/") if path else ():
            if node.subtree:
                return True
            child = node.children.get(name) if node.children else None
            if child is None:
                return False
            node = child
        return node.dirty

    def remove(self, mark: Mark) -> None:
        """Take out one mark; nothing happens when it was absorbed or taken meanwhile."""
        if not mark.dirty:
            return
        mark.dirty = mark.subtree = mark.queued = False
        mark.first_s = mark.last_s = 0.0
        self._count -= 1
        node = mark
        while node.parent is not None and not node.dirty and not node.children:
            above = node.parent
            # The parent link stays, for `path`; a node that was cut off already is in nobody's children.
            if above.children is not None and above.children.get(node.name) is node:
                del above.children[node.name]
            node = above

    def discard(self, path: bytes) -> None:
        """Take out the marks of `path` and of everything below it; a subtree marked above stays."""
        node = self._root
        for name in path.split(b"/") if path else ():
            child = node.children.get(name) if node.children else None
            if child is None:
                return
            node = child
        self._absorb(node)
        self.remove(node)

    def pop(self, limit: int) -> list[tuple[bytes, bool]]:
        """Take out at most `limit` marks, parents before what is below them: (path, subtree) of each."""
        taken: list[Mark] = []
        for mark in self.marks():
            if len(taken) >= limit:
                break
            taken.append(mark)
        result = [(mark.path, mark.subtree) for mark in taken]
        for mark in taken:
            self.remove(mark)
        return result

    def marks(self) -> Iterator[Mark]:
        """All marks, parents before what is below them; the trie must not be changed meanwhile."""
        stack = [self._root]
        while stack:
            node = stack.pop()
            if node.dirty:
                yield node
            if node.children:
                stack.extend(node.children.values())

    def _absorb(self, node: Mark) -> None:
        """Drop all marks below `node`."""
        if not node.children:
            return
        stack = list(node.children.values())
        node.children = None
        while stack:
            below = stack.pop()
            if below.dirty:
                below.dirty = below.subtree = False
                self._count -= 1
                if below.first_s and node.dirty:
                    node.first_s = min(node.first_s or below.first_s, below.first_s)
            if below.children:
                stack.extend(below.children.values())
