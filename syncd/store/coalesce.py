"""Changes of a journal with everything left out that later ones make needless.

The result is for a child whose tree is what the parent's was before the first change. It is in two parts: first the deletes
and renames that still count, in their order; then the upserts, each path once, under the name it has after the last change,
parents first. A directory that is new, and then renamed, is upserted before the rename too, so that there is something to
rename. A child must take two things as they come: a rename of a file that it does not have is skipped (an upsert
follows), and missing directories above a rename's destination are made (their upsert follows).
"""

from __future__ import annotations

from collections.abc import Sequence

from syncd.model import Change, Kind, Op


class _Node:
    """Of a trie that can cut out a subtree and put it elsewhere, which DirtyTrie need not."""

    __slots__ = ("change", "children", "killed")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] = {}
        self.killed: bool | None = None
        self.change: Change | None = None


def coalesce(changes: Sequence[Change]) -> list[Change]:
    """See the module. Linear in the number of changes times the length of their paths."""
    if all(change.op is Op.UPSERT for change in changes):
        # Most pages of a burst. Sorted name by name: what is in a directory comes right behind it.
        last = {change.path: change for change in changes}
        return _links_last([last[path] for path in sorted(last, key=lambda path: path.replace(b"/", b"\0"))])
    upserts, before_renames = _final_upserts(changes)
    result = []
    for change in _needed_deletes_and_renames(changes):
        if change.op is Op.RENAME and change.sequence in before_renames:
            result.append(before_renames[change.sequence])
        result.append(change)
    return result + _links_last(_unmoved(upserts, changes))


def _unmoved(upserts: list[Change], changes: Sequence[Change]) -> list[Change]:
    """`upserts`, without names of files by which another file goes since a rename that came after."""
    if not any(change.source for change in upserts):
        return upserts
    moved = {name: one.sequence for one in changes if one.op is Op.RENAME for name in (one.path, one.source)}

    def is_moved(link: Change) -> bool:
        names = link.source.split(b"/")
        return any(moved.get(b"/".join(names[:n]), -1) > link.sequence for n in range(1, len(names) + 1))

    return [one._replace(source=b"") if one.source and is_moved(one) else one for one in upserts]


def _links_last(upserts: list[Change]) -> list[Change]:
    """Further names of files behind the files they are names of, in the order they were told.

    What was replaced after it had got the other name is not that file any more: the other name is then a file like any.
    """
    if not any(change.source for change in upserts):
        return upserts
    told = {change.path: change.sequence for change in upserts}
    links = [change for change in upserts if change.source and told.get(change.source, -1) <= change.sequence]
    names = {change.path for change in links}
    others = [
        change if not change.source else change._replace(source=b"") for change in upserts if change.path not in names
    ]
    return others + sorted(links, key=lambda change: change.sequence)


def _final_upserts(changes: Sequence[Change]) -> tuple[list[Change], dict[int, Change]]:
    """(the upserts that count, renamed directories that were upserted before: sequence of the rename -> upsert)."""
    root = _Node()
    before_renames = {}
    for change in changes:
        names = _names(change.path)
        if change.op is Op.UPSERT:
            _make(root, names).change = change
        elif change.op is Op.DELETE:
            _cut(root, names)
        else:
            moved = _cut(root, _names(change.source))
            _cut(root, names)
            if moved is not None:
                _put(root, names, moved)
                made = moved.change
                if made is not None and made.entry is not None and made.entry.kind is Kind.DIRECTORY:
                    before_renames[change.sequence] = _renamed(made, change.source)
    result = []
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        if node.change is not None:
            result.append(_renamed(node.change, path))
        below = sorted(node.children.items(), reverse=True)
        stack.extend((path + b"/" + name if path else name, child) for name, child in below)
    return result, before_renames


def _needed_deletes_and_renames(changes: Sequence[Change]) -> list[Change]:
    """From the last to the first, with the set of paths that are deleted later: named as they were at that moment.

    What was moved out of a directory before it was deleted is spared: an exception below the killed directory. Whatever is
    not surely needless stays, since the changes as they are, in their order, are right.
    """
    root = _Node()
    needed = []
    for change in reversed(changes):
        if change.op is Op.UPSERT:
            continue
        names = _names(change.path)
        doomed = _is_wholly_killed(root, names)
        if change.op is Op.DELETE:
            if not doomed:
                needed.append(change)
                _kill(root, names)
            continue
        source = _names(change.source)
        if doomed:
            # Moved only to be deleted there: delete it where it was. What it replaced is deleted by the later change.
            _cut(root, source)
            if not _is_wholly_killed(root, source):
                needed.append(Change(change.sequence, Op.DELETE, change.source))
                _kill(root, source)
            continue
        needed.append(change)
        after = _cut(root, names)
        _cut(root, source)
        _spare(root, source, after)
        _spare(root, names, None)
    needed.reverse()
    return needed


def _renamed(change: Change, path: bytes) -> Change:
    if change.path == path:
        return change
    return change._replace(path=path, entry=change.entry._replace(path=path) if change.entry else None)


def _names(path: bytes) -> list[bytes]:
    return path.split(b"/") if path else []


def _make(root: _Node, names: Sequence[bytes]) -> _Node:
    node = root
    for name in names:
        below = node.children.get(name)
        if below is None:
            below = node.children[name] = _Node()
        node = below
    return node


def _cut(root: _Node, names: Sequence[bytes]) -> _Node | None:
    """Take out the node at `names` with all below it."""
    if not names:
        cut = _Node()
        cut.children, cut.change, cut.killed = root.children, root.change, root.killed
        root.children, root.change, root.killed = {}, None, None
        return cut
    node: _Node | None = root
    for name in names[:-1]:
        node = node.children.get(name) if node else None
    return node.children.pop(names[-1], None) if node else None


def _put(root: _Node, names: Sequence[bytes], node: _Node) -> None:
    _make(root, names[:-1]).children[names[-1]] = node


def _kill(root: _Node, names: Sequence[bytes]) -> None:
    node = _make(root, names)
    node.killed = True
    node.children.clear()


def _spare(root: _Node, names: Sequence[bytes], node: _Node | None) -> None:
    """Put `node` (or nothing) at `names`, where it does not share the fate of the directories above."""
    if node is None and not _is_killed(root, names):
        return
    node = node or _Node()
    if node.killed is None:
        node.killed = False
    _put(root, names, node)


def _is_killed(root: _Node, names: Sequence[bytes]) -> bool:
    """What the nearest node says that says anything."""
    return _fate(root, names)[0]


def _is_wholly_killed(root: _Node, names: Sequence[bytes]) -> bool:
    """Killed, and nothing below is known to be spared."""
    killed, node = _fate(root, names)
    return killed and (node is None or not node.children)


def _fate(root: _Node, names: Sequence[bytes]) -> tuple[bool, _Node | None]:
    """(whether `names` is killed, its own node if there is one)."""
    node = root
    killed = bool(node.killed)
    for name in names:
        below = node.children.get(name)
        if below is None:
            return killed, None
        node = below
        if node.killed is not None:
            killed = node.killed
    return killed, node
