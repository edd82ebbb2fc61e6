"""A tree in memory, for tests: random changes to it as an origin's journal tells them, and publish steps done to it.

A directory's mtime moves with every name that comes to it, goes from it or is replaced in it, as POSIX has it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from syncd.model import UNTOLD, Change, Entry, Kind, Op
from syncd.publish.steps import Do, Step

NAMES = [b"a", b"b", b"c", b"dd", b"\xff", b"-x", b"new\nline"]
LATER_NS = 1_000_000
"""From here on are the mtimes that publish steps leave behind; no entry of a parent has one."""
TOP = Entry(b"", Kind.DIRECTORY, 0o755, mtime_ns=1)


@dataclass
class Tree:
    """Entries by path, the root apart; `content` tells files apart with the same entry, and hard links from copies."""

    entries: dict[bytes, Entry] = field(default_factory=dict)
    content: dict[bytes, int] = field(default_factory=dict)
    journal: list[Change] = field(default_factory=list)
    clock: int = 1
    top: Entry = TOP

    def copy(self) -> Tree:
        return Tree(dict(self.entries), dict(self.content), [], self.clock, self.top)

    def whole(self) -> dict[bytes, Entry]:
        """All entries, with the root under b""."""
        return {b"": self.top, **self.entries}

    # what planning asks
    def get(self, path: bytes) -> Entry | None:
        return self.entries.get(path) if path else self.top

    def below(self, path: bytes) -> Iterator[Entry]:
        return (entry for key, entry in self.entries.items() if key.startswith(path + b"/"))

    def kind(self, path: bytes) -> Kind | None:
        if not path:
            return Kind.DIRECTORY
        return self.entries[path].kind if path in self.entries else None

    def seen(self) -> dict[bytes, tuple[object, ...]]:
        """What a reader sees: all but the identity of inodes."""
        return {
            p: (e.kind, e.mode if e.kind is not Kind.SYMLINK else 0, e.mtime_ns, e.target, self.content.get(p))
            for p, e in self.whole().items()
        }

    # the primitives
    def remove(self, path: bytes) -> None:
        for key in [key for key in self.entries if key == path or key.startswith(path + b"/")]:
            del self.entries[key]
            self.content.pop(key, None)

    def set(self, entry: Entry, content: int | None = None) -> None:
        if not entry.path:
            self.top = entry
            return
        self.entries[entry.path] = entry
        if content is not None:
            self.content[entry.path] = content

    def take(self, path: bytes) -> Tree:
        """Cut out the subtree at `path`, with paths from b"" on."""
        taken = Tree()
        for key in [key for key in self.entries if key == path or key.startswith(path + b"/")]:
            taken.entries[key[len(path) :]] = self.entries.pop(key)
            if key in self.content:
                taken.content[key[len(path) :]] = self.content.pop(key)
        return taken

    def graft(self, path: bytes, taken: Tree) -> None:
        for key, entry in taken.entries.items():
            self.entries[path + key] = entry._replace(path=path + key)
            if key in taken.content:
                self.content[path + key] = taken.content[key]

    # an origin's random life
    def some(self, rng: random.Random, *kinds: Kind) -> bytes | None:
        found = sorted(p for p, e in self.entries.items() if not kinds or e.kind in kinds)
        return rng.choice(found) if found else None

    def free_path(self, rng: random.Random) -> bytes:
        home = rng.choice([b"", *sorted(p for p, e in self.entries.items() if e.kind is Kind.DIRECTORY)])
        if home.count(b"/") > 3:
            home = b""
        return home + b"/" + rng.choice(NAMES) if home else rng.choice(NAMES)

    def tell(self, op: Op, path: bytes, source: bytes = b"") -> None:
        entry = self.whole()[path] if op is not Op.DELETE else None
        self.journal.append(Change(len(self.journal) + 1, op, path, entry, source))

    def listing_changed(self, *paths: bytes) -> None:
        """These names came, went or were replaced: the directories that they are in have another mtime, and it is told."""
        for home in sorted({path.rpartition(b"/")[0] for path in paths}):
            self.set(self.whole()[home]._replace(mtime_ns=self.clock))
            self.tell(Op.UPSERT, home)

    def churn(self, rng: random.Random) -> None:
        """One random thing that can happen to a tree on disk."""
        self.clock += 1
        action = rng.choice("nnndddwwcrrrRRRxlhtssT")
        path = self.free_path(rng)
        is_dir = self.kind(path) is Kind.DIRECTORY
        if action == "n":
            if is_dir:
                self.remove(path)
                self.tell(Op.DELETE, path)
            self.set(Entry(path, Kind.FILE, 0o644, rng.randrange(20, 99), self.clock), self.clock)
            self.tell(Op.UPSERT, path)
            self.listing_changed(path)
        elif action == "d" and path not in self.entries:
            self.set(Entry(path, Kind.DIRECTORY, 0o755, 0, self.clock))
            self.tell(Op.UPSERT, path)
            self.listing_changed(path)
        elif action == "w" and (file := self.some(rng, Kind.FILE)):
            # Written in place: the same time and size now and then, as within a tick of the clock.
            mtime_ns = self.entries[file].mtime_ns if rng.random() < 0.3 else self.clock
            for each in [p for p, c in self.content.items() if c == self.content[file]]:  # hard links of it as well
                self.set(self.entries[each]._replace(mtime_ns=mtime_ns), -self.clock)
                self.tell(Op.UPSERT, each)
        elif action == "T":  # touch, also of a time long ago
            touched = self.some(rng, Kind.DIRECTORY, Kind.SYMLINK) or b""
            if rng.random() < 0.2:
                touched = b""
            self.set(self.whole()[touched]._replace(mtime_ns=rng.choice([self.clock, 0, -5])))
            self.tell(Op.UPSERT, touched)
        elif action == "c" and rng.random() < 0.1:
            self.set(self.top._replace(mode=rng.choice([0o711, 0o755])))
            self.tell(Op.UPSERT, b"")
        elif action == "c" and (any_path := self.some(rng, Kind.FILE, Kind.DIRECTORY)):
            mode, content = rng.choice([0o600, 0o755, 0o711]), self.content.get(any_path)
            linked = [p for p, c in self.content.items() if c == content] if content is not None else [any_path]
            for each in linked:
                self.set(self.entries[each]._replace(mode=mode))
                self.tell(Op.UPSERT, each)
        elif action in "rR" and (source := self.some(rng, *([Kind.DIRECTORY] if action == "R" else []))):
            self.rename(source, path)
        elif action == "s" and (one := self.some(rng)) and (two := self.some(rng)):
            if one != two and not one.startswith(two + b"/"):
                self.rename(one, b"swap")
                self.rename(two, one)
                self.rename(b"swap", two if self.kind(two.rpartition(b"/")[0]) else b"c")
        elif action == "x" and (victim := self.some(rng)):
            self.remove(victim)
            self.tell(Op.DELETE, victim)
            self.listing_changed(victim)
        elif action == "l":
            if is_dir:
                self.remove(path)
                self.tell(Op.DELETE, path)
            self.content.pop(path, None)
            self.set(Entry(path, Kind.SYMLINK, 0o777, mtime_ns=self.clock, target=rng.choice(NAMES)))
            self.tell(Op.UPSERT, path)
            self.listing_changed(path)
        elif action == "h" and (file := self.some(rng, Kind.FILE)) and path not in self.entries:
            self.set(self.entries[file]._replace(path=path), self.content[file])
            self.tell(Op.UPSERT, path, file)
            self.listing_changed(path)
        elif action == "t" and is_dir:  # a directory becomes a symlink or a file at once
            self.remove(path)
            self.set(Entry(path, Kind.SYMLINK, 0o777, mtime_ns=self.clock, target=rng.choice(NAMES)))
            self.tell(Op.UPSERT, path)
            self.listing_changed(path)

    def rename(self, source: bytes, path: bytes) -> None:
        if path == source or path.startswith(source + b"/"):
            return
        if source.startswith(path + b"/"):
            return  # rename(2) says ENOTEMPTY
        occupied = self.kind(path)
        if occupied is not None and (occupied is Kind.DIRECTORY) != (self.kind(source) is Kind.DIRECTORY):
            return  # EISDIR, ENOTDIR
        if occupied is Kind.DIRECTORY and any(True for _ in self.below(path)):
            return
        taken = self.take(source)
        self.remove(path)
        self.graft(path, taken)
        self.tell(Op.RENAME, path, source)
        self.listing_changed(source, path)


def tree_of(*entries: Entry) -> Tree:
    """A tree with these, each file with a content of its own."""
    tree = Tree()
    for number, entry in enumerate(entries, 1):
        tree.set(entry, number if entry.kind is Kind.FILE else None)
    return tree


def do_steps(tree: Tree, steps: Iterable[Step], parent: Tree) -> None:
    """Do publish steps to `tree`, files coming from `parent`; AssertionError where a disk would refuse."""
    slots: dict[int, Tree] = {}
    clock = LATER_NS

    def listing_changed(path: bytes) -> None:
        nonlocal clock
        clock += 1
        tree.set(tree.whole()[path.rpartition(b"/")[0]]._replace(mtime_ns=clock))

    def place(path: bytes, taken: Tree) -> None:
        home = path.rpartition(b"/")[0]
        assert tree.kind(home) is Kind.DIRECTORY, f"no directory {home!r} for {path!r}"
        tree.remove(path)
        tree.graft(path, taken)
        listing_changed(path)

    for step in steps:
        path, entry = step.path, step.entry
        if step.do is Do.MAKE:
            assert entry is not None
            place(path, Tree({b"": entry._replace(mode=0o700, mtime_ns=clock)}))
        elif step.do is Do.MOVE:
            assert tree.kind(step.source) is Kind.DIRECTORY
            assert not path.startswith(step.source + b"/")
            assert not step.source.startswith(path + b"/")
            taken = tree.take(step.source)
            listing_changed(step.source)
            place(path, taken)
        elif step.do is Do.LINK:
            assert tree.kind(step.source) in (Kind.FILE, Kind.SYMLINK), step
            one = Tree({b"": tree.entries[step.source]})
            if step.source in tree.content:
                one.content[b""] = tree.content[step.source]
            place(path, one)
        elif step.do is Do.PARK:
            assert step.source in tree.entries
            kept = tree.copy().take(step.source)
            slots[step.slot] = kept
            if tree.kind(step.source) is Kind.DIRECTORY:
                tree.remove(step.source)
                listing_changed(step.source)
        elif step.do is Do.UNPARK:
            place(path, slots.pop(step.slot))
        elif step.do is Do.PUT:
            assert entry is not None
            assert parent.kind(path) is Kind.FILE, step
            place(path, Tree({b"": entry}, {b"": parent.content[path]}))
        elif step.do is Do.SYMLINK:
            assert entry is not None
            place(path, Tree({b"": entry}))
        elif step.do is Do.DELETE:
            if path in tree.entries:
                listing_changed(path)
            tree.remove(path)
        elif step.do is Do.ATTR:
            assert entry is not None
            there = tree.whole()[path]
            mtime_ns = there.mtime_ns if entry.mtime_ns == UNTOLD else entry.mtime_ns
            tree.set(there._replace(mode=entry.mode, mtime_ns=mtime_ns))
    assert not slots, "something stays parked"
