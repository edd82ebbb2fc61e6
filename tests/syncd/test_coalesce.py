"""What is coalesced must lead a child to the same tree as every change in its order."""

from __future__ import annotations

import random

import pytest

from syncd.model import Change, Entry, Kind, Op
from syncd.store.coalesce import coalesce

Tree = dict[bytes, Entry]


def entry(path: bytes, size: int = 0, kind: Kind = Kind.FILE) -> Entry:
    return Entry(path, kind, 0o644, size)


def up(n: int, path: bytes, size: int = 0, kind: Kind = Kind.FILE) -> Change:
    return Change(n, Op.UPSERT, path, entry(path, size, kind))


def rm(n: int, path: bytes) -> Change:
    return Change(n, Op.DELETE, path)


def mv(n: int, source: bytes, path: bytes) -> Change:
    return Change(n, Op.RENAME, path, entry(path), source)


def short(changes: list[Change]) -> list[str]:
    """u PATH, x PATH or r SOURCE>PATH."""
    return [f"{c.op.value} {c.source.decode() + '>' if c.source else ''}{c.path.decode()}" for c in changes]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([up(1, b"a"), up(2, b"a", 5)], ["u a"]),
        ([up(1, b"d/a"), up(2, b"d/b"), rm(3, b"d/a"), rm(4, b"d")], ["x d"]),
        ([rm(1, b"d/a"), rm(2, b"d")], ["x d"]),
        ([rm(1, b"a"), up(2, b"a")], ["x a", "u a"]),
        ([up(1, b".tmp"), mv(2, b".tmp", b"f")], ["r .tmp>f", "u f"]),
        ([up(1, b"d/a"), mv(2, b"d", b"e"), up(3, b"e/b")], ["r d>e", "u e/a", "u e/b"]),
        ([mv(1, b"d", b"e"), rm(2, b"e")], ["x d", "x e"]),
        ([rm(1, b"d/a"), mv(2, b"d", b"e"), rm(3, b"e")], ["x d", "x e"]),
        # A directory that may be new is there before it is renamed.
        (
            [up(1, b"new", 0, Kind.DIRECTORY), up(2, b"new/a"), mv(3, b"new", b"d")],
            ["u new", "r new>d", "u d", "u d/a"],
        ),
        # What was moved out before is spared, and so is the delete of what was in it.
        ([rm(1, b"d/s/a"), mv(2, b"d/s", b"t"), rm(3, b"d")], ["x d/s/a", "r d/s>t", "x d"]),
        ([rm(1, b"d"), up(2, b"d/s"), mv(3, b"d/s", b"t"), rm(4, b"d")], ["x d", "r d/s>t", "x d", "u t"]),
        (
            [rm(1, b"d"), mv(2, b"s", b"d"), mv(3, b"d/x", b"y"), rm(4, b"d")],
            ["x d", "r s>d", "r d/x>y", "x d"],
        ),
        ([], []),
    ],
)
def test_examples(changes: list[Change], expected: list[str]) -> None:
    assert short(coalesce(changes)) == expected


def test_the_latest_entry_and_sequence_count_under_the_last_name() -> None:
    (rename, upsert) = coalesce([up(1, b"d/a", 1), up(2, b"d/a", 2), mv(3, b"d", b"e")])
    assert rename.sequence == 3
    assert upsert == Change(2, Op.UPSERT, b"e/a", entry(b"e/a", 2))


def subtree(tree: Tree, path: bytes) -> list[bytes]:
    return [p for p in tree if p == path or p.startswith(path + b"/")]


def apply(tree: Tree, change: Change) -> None:
    """What a child does with one change, see the head of coalesce.py."""
    if change.op is Op.DELETE:
        for path in subtree(tree, change.path):
            del tree[path]
        return
    above = change.path.rpartition(b"/")[0]
    while above:
        tree.setdefault(above, entry(above, -1, Kind.DIRECTORY))
        above = above.rpartition(b"/")[0]
    if change.op is Op.UPSERT:
        assert change.entry is not None
        tree[change.path] = change.entry
    else:
        moved = {p: tree.pop(p) for p in subtree(tree, change.source)}
        assert moved or change.entry is None or change.entry.kind is Kind.FILE, change
        if moved:
            # rename(2): a directory does not replace one that holds something.
            assert subtree(tree, change.path) in ([], [change.path]), change
            for path, old in moved.items():
                new = change.path + path[len(change.source) :]
                tree[new] = Entry(new, old.kind, old.mode, old.size)


def random_history(rng: random.Random, tree: Tree, length: int) -> list[Change]:
    """Changes as a source writes them: each is possible on the tree as it is then; `tree` is left as they make it."""
    history: list[Change] = []

    def do(change: Change) -> None:
        history.append(change)
        apply(tree, change)

    while len(history) < length:
        directories = [b"", *(p for p, e in tree.items() if e.kind is Kind.DIRECTORY)]
        above = rng.choice(directories)
        path = (above + b"/" if above else b"") + rng.choice([b"a", b"b", b"c"])
        n = len(history) + 1
        there = tree.get(path)
        what = rng.random()
        if path.count(b"/") > 3:
            continue
        if what < 0.4:
            kind = rng.choice([Kind.FILE, Kind.DIRECTORY])
            if there and there.kind is not kind:
                do(rm(n, path))
                n += 1
            do(up(n, path, rng.randrange(1000), kind))
        elif what < 0.65 and there:
            do(rm(n, path))
        elif tree:
            source = rng.choice(list(tree))
            if path == source or path.startswith(source + b"/") or source.startswith(path + b"/"):
                continue
            if there and (there.kind is Kind.DIRECTORY or tree[source].kind is Kind.DIRECTORY):
                do(rm(n, path))
                n += 1
            do(Change(n, Op.RENAME, path, entry(path, 0, tree[source].kind), source))
    return history


@pytest.mark.parametrize("seed", range(20))
def test_a_child_ends_at_the_same_tree(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        tree: Tree = {}
        random_history(rng, tree, rng.randrange(1, 15))
        child = dict(tree)
        history = random_history(rng, tree, rng.randrange(1, 25))
        shorter = coalesce(history)
        first = next((i for i, c in enumerate(shorter) if all(d.op is Op.UPSERT for d in shorter[i:])), len(shorter))
        upserts = [c.path for c in shorter[first:]]
        assert len(upserts) == len(set(upserts))
        for change in shorter:
            apply(child, change)
        assert child == tree, (short(history), short(shorter))


@pytest.mark.parametrize("seed", range(3))
def test_pages_one_after_the_other_lead_there_too(seed: int) -> None:
    rng = random.Random(100 + seed)
    for _ in range(100):
        tree: Tree = {}
        child: Tree = {}
        history = random_history(rng, tree, 30)
        while history:
            size = rng.randrange(1, 10)
            page, history = history[:size], history[size:]
            for change in coalesce(page):
                apply(child, change)
        assert child == tree


def link(n: int, path: bytes, source: bytes) -> Change:
    return Change(n, Op.UPSERT, path, entry(path), source)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([up(1, b"b"), link(2, b"a", b"b")], ["u b", "u b>a"]),
        ([up(1, b"c"), link(2, b"b", b"c"), link(3, b"a", b"b")], ["u c", "u c>b", "u b>a"]),
        ([link(1, b"a", b"old")], ["u old>a"]),
        # Replaced after it had got the other name: the other name is of what was there before.
        ([up(1, b"b"), link(2, b"a", b"b"), up(3, b"b", 5)], ["u a", "u b"]),
        ([rm(1, b"x"), up(2, b"b"), link(3, b"a", b"b")], ["x x", "u b", "u b>a"]),
        ([rm(1, b"x"), link(2, b"a", b"b"), up(3, b"b")], ["x x", "u a", "u b"]),
    ],
)
def test_other_names_of_a_file_come_behind_it(changes: list[Change], expected: list[str]) -> None:
    assert short(coalesce(changes)) == expected


def test_a_further_name_is_not_of_the_file_that_took_the_name_since() -> None:
    link = up(2, b"l")._replace(source=b"c")
    swapped = [up(1, b"n"), link, mv(3, b"n", b"s"), mv(4, b"c", b"n"), mv(5, b"s", b"c")]
    assert short(coalesce(swapped))[-2:] == ["u c", "u l"]
    moved = [link._replace(source=b"d/c"), mv(3, b"d", b"e"), mv(4, b"f", b"d")]
    assert short(coalesce(moved)) == ["r d>e", "r f>d", "u l"]
    assert short(coalesce([mv(1, b"d", b"e"), link])) == ["r d>e", "u c>l"]
