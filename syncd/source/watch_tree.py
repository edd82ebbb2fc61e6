"""Which directory each watch descriptor stands for, kept right while directories move.

A descriptor is the identity of a directory (the kernel gives the same one for the same inode), a path is only where it
was last seen. Reality may be ahead of the events that are still in the queue, so any placing here may be stale; what keeps
it right in the end is that whoever lists a directory places it first, and that every directory that comes to a new
name is listed again.
"""

from __future__ import annotations

from collections.abc import Iterator


class _Directory:
    __slots__ = ("children", "name", "parent", "wd")

    def __init__(self, wd: int) -> None:
        self.wd = wd
        self.name = b""
        self.parent: _Directory | None = None
        self.children: dict[bytes, _Directory] | None = None


class WatchTree:
    """Directories by watch descriptor. A directory without a place (moved away, or displaced) is loose."""

    def __init__(self) -> None:
        self._by_wd: dict[int, _Directory] = {}
        self._root: _Directory | None = None
        self._loose: set[int] = set()

    def __len__(self) -> int:
        return len(self._by_wd)

    def __contains__(self, wd: int) -> bool:
        return wd in self._by_wd

    @property
    def root_wd(self) -> int | None:
        """The descriptor of the root, None before it is placed."""
        return self._root.wd if self._root else None

    def place_root(self, wd: int) -> None:
        """Make `wd` the root."""
        self._root = self._by_wd.setdefault(wd, _Directory(wd))
        self._loose.discard(wd)

    def place(self, wd: int, parent_wd: int, name: bytes) -> None:
        """`wd` is the directory `name` in `parent_wd`; whatever was thought to be there becomes loose.

        An unknown parent leaves `wd` loose: it was removed meanwhile, and the same will be heard of `wd`.
        """
        node = self._by_wd.get(wd)
        if node is None:
            node = self._by_wd[wd] = _Directory(wd)
        parent = self._by_wd.get(parent_wd)
        if node.parent is parent and node.name == name and parent is not None:
            return
        self.loosen(wd)
        if parent is None or node is self._root:
            return
        # Parent below the child: old news of one of them. The child is where it was seen now, so the other is not there.
        above: _Directory | None = parent
        while above is not None and above.parent is not None:
            if above.parent is node:
                self.loosen(above.wd)
                break
            above = above.parent
        if parent is node:
            return
        if parent.children is None:
            parent.children = {}
        if (other := parent.children.get(name)) is not None:
            self.loosen(other.wd)
        parent.children[name] = node
        node.parent, node.name = parent, name
        self._loose.discard(wd)

    def loosen(self, wd: int) -> None:
        """`wd`, with all below it, is not where it was."""
        node = self._by_wd.get(wd)
        if node is None or node is self._root:
            return
        if node.parent is not None and node.parent.children is not None:
            del node.parent.children[node.name]
        node.parent = None
        self._loose.add(wd)

    def forget(self, wd: int) -> None:
        """The descriptor is no more; directories below it become loose."""
        node = self._by_wd.get(wd)
        if node is None:
            return
        for child in list((node.children or {}).values()):
            self.loosen(child.wd)
        self.loosen(wd)
        if node is self._root:
            self._root = None
        del self._by_wd[wd]
        self._loose.discard(wd)

    def child(self, wd: int, name: bytes) -> int | None:
        """The descriptor of the directory `name` in `wd`, if it is watched."""
        node = self._by_wd.get(wd)
        child = node.children.get(name) if node and node.children else None
        return child.wd if child else None

    def path(self, wd: int) -> bytes | None:
        """Where `wd` is below the root; None when it is unknown, or it or one above it is loose."""
        node = self._by_wd.get(wd)
        names = []
        while node is not None and node.parent is not None:
            names.append(node.name)
            node = node.parent
        if node is None or node is not self._root:
            return None
        return b"/".join(reversed(names))

    def loose(self) -> frozenset[int]:
        """The tops of what has no place."""
        return frozenset(self._loose)

    def below(self, wd: int) -> Iterator[int]:
        """`wd` and everything watched below it."""
        stack = [node] if (node := self._by_wd.get(wd)) else []
        while stack:
            node = stack.pop()
            yield node.wd
            if node.children:
                stack.extend(node.children.values())
