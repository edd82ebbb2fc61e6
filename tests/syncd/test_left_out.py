"""What patterns make of a batch: beside a tree that changes at random, a copy comes to what rsync would leave of it."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.exclude import Exclude
from syncd.model import UNTOLD, Change, Entry, Kind, Op, PathError
from syncd.publish.left_out import Border, Told, leave_out, wanted
from syncd.publish.plan import ancestors, make_plan
from syncd.publish.steps import Ranks
from tests.syncd.test_plan import delete, directory, file, rename, tree_of, upsert
from tests.syncd.tree_model import Tree, do_steps


def nothing_own(_path: bytes) -> bool:
    return False


def left(changes: list[Change], have: Tree, *patterns: str, own: Callable[[bytes], bool] = nothing_own) -> Told:
    return leave_out(changes, have, Border(Exclude(patterns)), own)


def shape(told: Told) -> list[tuple[str, bytes]]:
    return [(change.op.name, change.path) for change in told.changes]


HAVE = tree_of(directory(b"d"), file(b"d/a.deb"), file(b"d/x.part"), directory(b"e"), file(b"e/f"), file(b"g"))


@pytest.mark.parametrize(
    ("change", "pattern", "becomes", "lacks"),
    [
        (rename(b"g", file(b"g.part")), "*.part", [("DELETE", b"g"), ("UPSERT", b"g.part")], False),
        (rename(b"d/x.part", file(b"d/x")), "*.part", [("DELETE", b"d/x.part"), ("UPSERT", b"d/x")], False),
        (rename(b"d/x.part", file(b"d/y.part")), "*.part", [("RENAME", b"d/y.part")], False),
        (rename(b"g", file(b"h")), "*.part", [("RENAME", b"h")], False),
        (rename(b"e", directory(b"h")), "*.part", [("RENAME", b"h")], False),
        (rename(b"d", directory(b"h")), "*.part", [("DELETE", b"d"), ("RENAME", b"h")], True),
        (rename(b"e", directory(b"h")), "/h/f", [("DELETE", b"e"), ("RENAME", b"h")], True),
        (rename(b"e", directory(b"h")), "h/", [("DELETE", b"e"), ("UPSERT", b"h")], True),
        (rename(b"e", directory(b"h")), "e/", [("DELETE", b"e"), ("RENAME", b"h")], True),
        (rename(b"e", directory(b"d/e")), "/d/", [("DELETE", b"e"), ("UPSERT", b"d/e")], True),
        (rename(b"nowhere", directory(b"h")), "*.part", [("RENAME", b"h")], False),
        (rename(b"nowhere", file(b"h.part")), "*.part", [("DELETE", b"nowhere"), ("UPSERT", b"h.part")], False),
        (rename(b"g", file(b"d")), "d/", [("RENAME", b"d")], False),
    ],
)
def test_a_rename_across_the_border(
    change: Change, pattern: str, becomes: list[tuple[str, bytes]], lacks: bool
) -> None:
    told = left([change], HAVE, pattern)
    assert (shape(told), told.is_lacking) == (becomes, lacks)


def test_what_moves_is_looked_for_under_the_name_it_had() -> None:
    """Two renames in one batch, and what came to it before the second."""
    twice = [rename(b"d", directory(b"t")), rename(b"t", directory(b"u"))]
    told = left(twice, HAVE, "own", own=lambda path: path == b"d")
    assert shape(told) == [("DELETE", b"d"), ("DELETE", b"t"), ("RENAME", b"u")]
    assert told.is_lacking
    new = [upsert(file(b"e/new.part")), rename(b"e", directory(b"h"))]
    assert shape(left(new, HAVE, "*.part")) == [("DELETE", b"e"), ("RENAME", b"h")]
    assert left(new, HAVE, "*.part").is_lacking
    gone = [rename(b"e", directory(b"t")), rename(b"t/f", file(b"f")), rename(b"t", directory(b"h"))]
    assert shape(left(gone, HAVE, "*.part")) == [("RENAME", b"t"), ("RENAME", b"f"), ("RENAME", b"h")]


def test_a_directory_that_comes_to_where_something_of_our_own_lies_is_filled() -> None:
    told = left([rename(b"e", directory(b"h"))], HAVE, "own", own=lambda path: path == b"h")
    assert shape(told) == [("DELETE", b"e"), ("RENAME", b"h")]


def test_a_further_name_of_what_is_left_out_is_fetched() -> None:
    told = left([upsert(file(b"h"), link_of=b"d/x.part"), upsert(file(b"i"), link_of=b"g")], HAVE, "*.part")
    assert [change.source for change in told.changes] == [b"", b"g"]


def test_nothing_that_is_left_out_is_planned() -> None:
    border = Border(Exclude(["*.part", "e/"]))
    changes = [upsert(file(b"n.part")), upsert(directory(b"e")), upsert(file(b"e/f")), upsert(file(b"n")), delete(b"d")]
    assert [(change.op.name, change.path) for change in wanted(changes, border)] == [
        ("DELETE", b"e"),
        ("UPSERT", b"n"),
        ("DELETE", b"d"),
    ]


def test_a_path_that_leads_elsewhere_is_refused_though_it_is_left_out() -> None:
    with pytest.raises(PathError):
        wanted([upsert(file(b"../x.part"))], Border(Exclude(["*.part"])))


def test_depth_is_no_matter() -> None:
    deep = b"/".join([b"d"] * 2000)
    border = Border(Exclude(["x"]))
    assert not border.covers(deep, True)
    assert border.covers(deep.replace(b"d", b"x", 1), False)
    assert not border.covers(b"", True)


PATTERNS = ["a", "b/", "/c", "dd/a", "-x", "/a/**/b", "c/", "new?line"]


def published(parent: Tree, border: Border) -> dict[bytes, tuple[object, ...]]:
    return {
        path: seen
        for path, seen in parent.seen().items()
        if not border.covers(path, parent.kind(path) is Kind.DIRECTORY)
    }


def compare(have: dict[bytes, Entry], parent: Tree) -> list[Change]:
    """As `manifest.compare`: upserts, parents first, then deletes."""
    theirs = parent.whole()
    new = [upsert(entry) for path, entry in sorted(theirs.items()) if have.get(path) != entry]
    return [*new, *(delete(path) for path in sorted(have.keys() - theirs.keys()))]


@settings(max_examples=25, deadline=None)
@example(seed=1, patterns=["a"])
@given(seed=st.integers(0, 10**9), patterns=st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=3))
def test_a_copy_with_patterns_has_what_is_not_left_out(seed: int, patterns: list[str]) -> None:
    """`child` is its disk, `index` all that it was told of; what it lacks after a rename, a comparison brings."""
    rng = random.Random(seed)
    border = Border(Exclude(patterns))
    parent = Tree()
    for _ in range(25):
        parent.churn(rng)
    child, index = Tree(), Tree()
    changes = compare(index.whole(), parent)
    for _ in range(6):
        for _ in range(3):  # a batch, and what a comparison after it finds
            told = leave_out(changes, index, border, nothing_own)
            visible = Tree(
                {p: e for p, e in index.entries.items() if not border.covers(p, e.kind is Kind.DIRECTORY)},
                top=index.top,
            )
            plan = make_plan(wanted(told.changes, border), visible, Ranks([]))
            assert not [step for step in plan.steps if step.entry and border.leaves_out(step.entry, step.path)]
            do_steps(child, plan.steps, parent)
            record(index, told.changes, child, border)
            changes = compare(index.whole(), parent)
            if not told.is_lacking and not plan.lacking:
                break
        assert not changes, "nothing tells that a comparison is needed"
        assert child.seen() == published(parent, border)
        parent.journal.clear()
        for _ in range(rng.randrange(1, 12)):
            churn(parent, rng)
        changes = list(parent.journal)


def churn(parent: Tree, rng: random.Random) -> None:
    """A directory that something of another kind replaces is told as deleted first, as origins do."""
    before = {path for path, entry in parent.entries.items() if entry.kind is Kind.DIRECTORY}
    told = len(parent.journal)
    parent.churn(rng)
    for change in parent.journal[told:]:
        if (
            change.op is Op.UPSERT
            and change.path in before
            and change.entry
            and change.entry.kind is not Kind.DIRECTORY
        ):
            parent.journal.insert(told, Change(0, Op.DELETE, change.path))
    parent.journal[:] = [change._replace(sequence=number) for number, change in enumerate(parent.journal, 1)]


def record(index: Tree, changes: tuple[Change, ...], child: Tree, border: Border) -> None:
    """Play changes on what is told of, as `io_record` does on the index, when the steps are done on the disk of `child`."""
    for change in changes:
        entry = change.entry
        if change.op is Op.DELETE:
            index.remove(change.path)
        elif entry is None:
            continue
        elif change.op is Op.RENAME and index.get(change.source) is not None:
            taken = index.take(change.source)
            index.remove(change.path)
            index.graft(change.path, taken)
            index.set(entry)
        else:
            old = index.kind(change.path)
            if change.path and old is not None and (old is Kind.DIRECTORY) != (entry.kind is Kind.DIRECTORY):
                index.remove(change.path)
            homes = [above for above in ancestors(change.path) if not border.covers(above, True)]
            is_home_here = not homes or Kind.DIRECTORY in (index.kind(homes[0]), child.kind(homes[0]))
            if border.leaves_out(entry, change.path) and not is_home_here:
                continue
            for above in ancestors(change.path):
                if index.kind(above) is not Kind.DIRECTORY:
                    index.set(directory(above, mtime_ns=UNTOLD))
            index.set(entry)
