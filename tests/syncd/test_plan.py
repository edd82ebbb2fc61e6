"""Planning: whatever happened to the parent's tree, the plan's steps make the child's tree the same."""

from __future__ import annotations

import random

import pytest

from syncd.model import UNTOLD, Change, Entry, Kind, Op, PathError
from syncd.publish.plan import Plan, make_plan
from syncd.publish.steps import Do, Ranks, Step
from syncd.store.coalesce import coalesce
from tests.syncd.tree_model import Tree, do_steps, tree_of

NO_INDEXES = Ranks([])


def file(path: bytes, mtime_ns: int = 1, size: int = 3, mode: int = 0o644, digest: bytes | None = None) -> Entry:
    return Entry(path, Kind.FILE, mode, size, mtime_ns, digest=digest)


def directory(path: bytes, mode: int = 0o755, mtime_ns: int = 1) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode, mtime_ns=mtime_ns)


def symlink(path: bytes, target: bytes, mtime_ns: int = 1) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, target=target, mtime_ns=mtime_ns)


def upsert(entry: Entry, link_of: bytes = b"") -> Change:
    return Change(1, Op.UPSERT, entry.path, entry, link_of)


def delete(path: bytes) -> Change:
    return Change(1, Op.DELETE, path)


def rename(source: bytes, entry: Entry) -> Change:
    return Change(1, Op.RENAME, entry.path, entry, source)


def shape(plan: Plan) -> list[tuple[str, bytes]]:
    """The steps, but for the attributes of directories."""
    return [(step.do.name, step.path) for step in plan.steps if not is_directory_attribute(step)]


def attributes(plan: Plan) -> list[tuple[bytes, int, int]]:
    """(path, mode, mtime_ns) of the directories that get attributes, in the order in which they get them."""
    return [
        (step.path, step.entry.mode, step.entry.mtime_ns)
        for step in plan.steps
        if is_directory_attribute(step) and step.entry is not None
    ]


def is_directory_attribute(step: Step) -> bool:
    return step.do is Do.ATTR and step.entry is not None and step.entry.kind is Kind.DIRECTORY


# --- the property -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(8))
def test_any_history_is_reached(block: int) -> None:
    parks = moves = links = 0
    for seed in range(block * 250, block * 250 + 250):
        rng = random.Random(seed)
        parent = Tree()
        for _ in range(rng.randrange(25)):
            parent.churn(rng)
        child = parent.copy()
        parent.journal.clear()
        for _ in range(rng.randrange(1, 18)):
            parent.churn(rng)
        journal = coalesced(parent.journal) if seed % 3 == 0 else parent.journal
        plan = make_plan(journal, child, NO_INDEXES if seed % 2 else Ranks(["dd", "/a/**"]))
        assert not plan.lacking
        assert not plan.refused
        parks += sum(step.do is Do.PARK for step in plan.steps)
        moves += sum(step.do is Do.MOVE for step in plan.steps)
        links += sum(step.do is Do.LINK for step in plan.steps)
        before = child.copy()
        for fetch in (*plan.payload, *plan.indexes):
            # rsync takes what lies at the path for the file when size and time agree, unless told to look inside.
            there, path = child.get(fetch.entry.path), fetch.entry.path
            if not fetch.exact and there is not None and there.kind is Kind.FILE:
                alike = (there.size, there.mtime_ns) == (fetch.entry.size, fetch.entry.mtime_ns)
                assert not alike or child.content[path] == parent.content[path], f"seed {seed}: {path!r}"
        try:
            do_steps(child, plan.steps, parent)
            assert child.seen() == parent.seen()
        except AssertionError as error:
            error.add_note(f"seed {seed}: {parent.journal}\nfrom {sorted(before.entries)}\nby {plan.steps}")
            raise
        given = [path for path, _, _ in attributes(plan)]
        assert len(given) == len(set(given)), f"seed {seed}: a directory gets its attributes twice"
        fetched = [fetch.entry.path for fetch in (*plan.payload, *plan.indexes)]
        assert sorted(fetched) == sorted(step.path for step in plan.steps if step.do is Do.PUT)
    # The generator must reach the hard cases, or this test says little.
    assert parks > 5
    assert moves > 50
    assert links > 50


def coalesced(journal: list[Change]) -> list[Change]:
    """`journal` as a source tells it and a child reads it: no hard links, and a delete before another kind of thing."""
    changes: list[Change] = []
    for change in journal:
        if change.op is Op.UPSERT and change.entry is not None and change.entry.kind is Kind.SYMLINK:
            changes.append(delete(change.path))
        changes.append(change._replace(source=b"") if change.op is Op.UPSERT else change)
    return coalesce(changes)


# --- single cases -------------------------------------------------------------------------------------------------------


def test_a_new_file_in_a_new_directory() -> None:
    plan = make_plan([upsert(directory(b"d", 0o711, 7)), upsert(file(b"d/f"))], Tree(), NO_INDEXES)
    assert shape(plan) == [("MAKE", b"d"), ("PUT", b"d/f")]
    assert attributes(plan) == [(b"d", 0o711, 7), (b"", 0o755, 1)]
    assert plan.steps[-2].do is Do.ATTR, "after everything else"
    assert [fetch.entry.path for fetch in plan.payload] == [b"d/f"]
    assert plan.fetch_bytes == 3


def test_payload_before_indexes_by_rank_and_deletes_last() -> None:
    ranks = Ranks(["/dists/**", "InRelease"])
    have = tree_of(directory(b"dists"), file(b"dists/old"), directory(b"pool"), file(b"pool/old"))
    changes = [
        delete(b"pool/old"),
        delete(b"dists/old"),
        upsert(file(b"dists/InRelease")),
        upsert(file(b"dists/Packages")),
        upsert(symlink(b"dists/stable", b"x")),
        upsert(file(b"pool/new")),
        upsert(symlink(b"pool/link", b"new")),
    ]
    plan = make_plan(changes, have, ranks)
    assert shape(plan) == [
        ("PUT", b"pool/new"),
        ("SYMLINK", b"pool/link"),
        ("PUT", b"dists/Packages"),
        ("SYMLINK", b"dists/stable"),
        ("PUT", b"dists/InRelease"),
        ("DELETE", b"dists/old"),  # an index goes before what it names
        ("DELETE", b"pool/old"),
    ]
    assert [fetch.entry.path for fetch in plan.payload] == [b"pool/new"]
    assert [fetch.entry.path for fetch in plan.indexes] == [b"dists/Packages", b"dists/InRelease"]


def test_a_file_written_beside_and_renamed_over_is_fetched_once() -> None:
    have = tree_of(file(b"f"))
    plan = make_plan([upsert(file(b".f.tmp", 9)), rename(b".f.tmp", file(b"f", 9))], have, NO_INDEXES)
    assert shape(plan) == [("PUT", b"f")]
    assert plan.deleted_entries == 0


def test_what_came_and_went_leaves_no_trace() -> None:
    plan = make_plan([upsert(file(b"t")), rename(b"t", file(b"u")), delete(b"u")], Tree(), NO_INDEXES)
    assert plan.steps == ()
    assert plan.fetch_bytes == 0


def test_a_renamed_file_has_both_names_until_the_deletes() -> None:
    plan = make_plan([rename(b"a", file(b"b")), upsert(file(b"index"))], tree_of(file(b"a")), Ranks(["index"]))
    assert shape(plan) == [("LINK", b"b"), ("PUT", b"index"), ("DELETE", b"a")]
    assert plan.deleted_entries == 0
    assert plan.payload == ()


def test_a_file_renamed_to_an_index_comes_in_its_turn() -> None:
    have = tree_of(file(b"new-index"), file(b"index"))
    plan = make_plan([upsert(file(b"p")), rename(b"new-index", file(b"index"))], have, Ranks(["index"]))
    assert shape(plan) == [("PARK", b"index"), ("PUT", b"p"), ("UNPARK", b"index"), ("DELETE", b"new-index")]


def test_a_renamed_directory_is_one_move() -> None:
    have = tree_of(directory(b"a"), *(file(b"a/%d" % n) for n in range(100)))
    plan = make_plan([rename(b"a", directory(b"b")), upsert(file(b"b/7", 5))], have, NO_INDEXES)
    assert shape(plan) == [("MOVE", b"b"), ("PUT", b"b/7")]


def swap(one: Entry, two: Entry) -> list[Change]:
    changes = [rename(one.path, one._replace(path=b"tmp")), rename(two.path, two._replace(path=one.path))]
    return [*changes, rename(b"tmp", one._replace(path=two.path))]


def test_swapped_files_are_never_away() -> None:
    have = tree_of(file(b"a", 1), file(b"b", 2))
    plan = make_plan(swap(file(b"a", 1), file(b"b", 2)), have, NO_INDEXES)
    assert [name for name, _ in shape(plan)] == ["PARK", "LINK", "UNPARK"]


def test_swapped_directories_go_through_one_slot() -> None:
    have = tree_of(directory(b"a"), file(b"a/1"), directory(b"b"), file(b"b/2"))
    plan = make_plan(swap(directory(b"a"), directory(b"b")), have, NO_INDEXES)
    assert [name for name, _ in shape(plan)] == ["PARK", "MOVE", "UNPARK"]


def test_a_directory_and_its_own_child_change_places() -> None:
    have = tree_of(directory(b"a"), directory(b"a/b"), file(b"a/b/f"), file(b"a/g"))
    changes = [rename(b"a/b", directory(b"t")), rename(b"a", directory(b"t/b")), rename(b"t", directory(b"a"))]
    plan = make_plan(changes, have, NO_INDEXES)
    parent = tree_of(directory(b"a"), directory(b"a/b"))
    parent.set(file(b"a/f"), 3)
    parent.set(file(b"a/b/g"), 4)
    do_steps(have, plan.steps, parent)
    assert have.seen() == parent.seen()


def test_a_renamed_directory_of_which_this_node_has_nothing_is_asked_for() -> None:
    plan = make_plan([rename(b"away", directory(b"d")), rename(b"gone", file(b"f"))], Tree(), NO_INDEXES)
    assert plan.lacking == (b"d",)
    assert shape(plan) == [("MAKE", b"d"), ("PUT", b"f")]


def test_played_again_a_rename_costs_nothing() -> None:
    have = tree_of(directory(b"b"), file(b"b/x"))
    plan = make_plan([rename(b"a", directory(b"b"))], have, NO_INDEXES)
    assert plan.lacking == ()
    assert plan.steps == ()


def test_same_time_and_size_is_fetched_by_content_unless_digests_tell() -> None:
    old = file(b"f", digest=b"1" * 32)
    (fetch,) = make_plan([upsert(file(b"f"))], tree_of(old), NO_INDEXES).payload
    assert fetch.exact
    (fetch,) = make_plan([upsert(file(b"f", mtime_ns=2))], tree_of(old), NO_INDEXES).payload
    assert not fetch.exact
    assert make_plan([upsert(old)], tree_of(old), NO_INDEXES).steps == ()
    plan = make_plan([upsert(file(b"f", mode=0o600, digest=b"1" * 32))], tree_of(old), NO_INDEXES)
    assert (plan.payload, shape(plan)) == ((), [("ATTR", b"f")])


def test_exactness_is_about_what_lies_at_the_path_whatever_happened_in_between() -> None:
    have = tree_of(file(b"f"))
    for changes in (
        [upsert(file(b"f"))] * 2,
        [delete(b"f"), upsert(file(b"f"))],
        [rename(b"f", file(b"g")), upsert(file(b"f"))],
    ):
        (fetch,) = make_plan(changes, have, NO_INDEXES).payload
        assert fetch.exact


def test_a_hard_link_is_made_not_fetched() -> None:
    plan = make_plan([upsert(file(b"a")), upsert(file(b"b"), b"a")], Tree(), NO_INDEXES)
    assert shape(plan) == [("PUT", b"a"), ("LINK", b"b")]
    plan = make_plan([upsert(file(b"a")), upsert(file(b"b"), b"a"), delete(b"a")], Tree(), NO_INDEXES)
    assert shape(plan) == [("PUT", b"b")]


def test_symlinks_that_lead_out_are_refused_and_what_was_there_goes() -> None:
    have = tree_of(directory(b"d"), file(b"d/l"))
    plan = make_plan([upsert(symlink(b"d/l", b"../../etc")), upsert(symlink(b"d/m", b"../ok"))], have, NO_INDEXES)
    assert shape(plan) == [("SYMLINK", b"d/m"), ("DELETE", b"d/l")]
    assert plan.refused == ((b"d/l", "symlink to b'../../etc', which leads out of the tree"),)


def test_symlinks_that_begin_to_lead_out_by_a_move_go_before_it() -> None:
    have = tree_of(directory(b"a"), directory(b"a/b"), symlink(b"a/b/up", b"../../x"), symlink(b"a/b/in", b"../x"))
    plan = make_plan([rename(b"a/b", directory(b"b"))], have, NO_INDEXES)
    assert shape(plan) == [("DELETE", b"a/b/up"), ("MOVE", b"b")]
    assert [path for path, _ in plan.refused] == [b"b/up"]
    assert attributes(plan) == [(b"a", 0o755, 1), (b"b", 0o755, 1), (b"", 0o755, 1)], "the loss moves b's mtime"
    plan = make_plan([rename(b"a/b", directory(b"b")), upsert(file(b"b"))], have, NO_INDEXES)
    given = [step.path for step in plan.steps if step.do is Do.ATTR]
    assert given == [b"a", b""], "b is a file in the end"


def test_deleted_entries_are_those_that_really_go() -> None:
    have = tree_of(directory(b"a"), *(file(b"a/%d" % n) for n in range(10)), directory(b"b"))
    assert make_plan([delete(b"a")], have, NO_INDEXES).deleted_entries == 11
    moved = [rename(b"a/%d" % n, file(b"b/%d" % n)) for n in range(10)]
    assert make_plan([*moved, delete(b"a")], have, NO_INDEXES).deleted_entries == 1
    assert make_plan([delete(b"a"), upsert(symlink(b"a", b"b"))], have, NO_INDEXES).deleted_entries == 11
    assert make_plan([rename(b"a", directory(b"c"))], have, NO_INDEXES).deleted_entries == 0


@pytest.mark.parametrize(
    "change",
    [
        delete(b""),
        delete(b"../x"),
        upsert(file(b"/etc/passwd")),
        Change(1, Op.UPSERT, b"x"),
        rename(b"", directory(b"x")),
        rename(b"a", directory(b"a/b")),
        rename(b"a", directory(b"a")),
        rename(b"../a", directory(b"b")),
    ],
)
def test_changes_of_no_real_tree_are_refused(change: Change) -> None:
    with pytest.raises(PathError):
        make_plan([change], tree_of(directory(b"a")), NO_INDEXES)


def test_large_batches_take_linear_time() -> None:
    entries = [directory(b"%d" % d) for d in range(100)]
    entries += [file(b"%d/%d" % (d, n)) for d in range(100) for n in range(100)]
    have = tree_of(*entries)
    changes = [rename(b"%d/%d" % (d, n), file(b"%d/new%d" % (d, n))) for d in range(100) for n in range(100)]
    plan = make_plan(changes, have, NO_INDEXES)
    assert len(shape(plan)) == 20_000
    assert len(attributes(plan)) == 100


# --- attributes of directories ------------------------------------------------------------------------------------------


def test_what_is_put_into_a_directory_leaves_it_the_time_it_had() -> None:
    have = tree_of(directory(b"d", 0o750, 40), file(b"d/f"), directory(b"d/e"), file(b"d/e/g"))
    plan = make_plan([upsert(file(b"d/f", 9))], have, NO_INDEXES)
    assert (shape(plan), attributes(plan)) == ([("PUT", b"d/f")], [(b"d", 0o750, 40)])
    plan = make_plan([upsert(file(b"d/f", 9)), upsert(directory(b"d", 0o750, 50))], have, NO_INDEXES)
    assert attributes(plan) == [(b"d", 0o750, 50)], "what the parent says now"
    have.set(have.entries[b"d"]._replace(mtime_ns=UNTOLD))
    assert attributes(make_plan([upsert(file(b"d/f", 9))], have, NO_INDEXES)) == [], "nothing is known of it"


def test_a_new_mode_of_a_file_moves_no_time_but_in_mode_atomic_where_it_is_a_copy() -> None:
    have = tree_of(file(b"f", digest=b"1" * 32))
    plan = make_plan([upsert(file(b"f", mode=0o600, digest=b"1" * 32))], have, NO_INDEXES)
    assert [(step.do, step.path) for step in plan.steps] == [(Do.ATTR, b"f"), (Do.ATTR, b"")]


def test_a_batch_deep_in_a_tree_gives_each_directory_it_touches_its_attributes_once_the_deepest_first() -> None:
    depth, have, changes = 30, Tree(), []
    paths = [b"/".join([b"d"] * n) for n in range(1, depth + 1)]
    for number, path in enumerate(paths):
        have.set(directory(path, mtime_ns=1000 + number))
    for path in paths[10:]:
        changes += [upsert(file(path + b"/%d" % n)) for n in range(50)]
    plan = make_plan(changes, have, NO_INDEXES)
    assert attributes(plan) == [(path, 0o755, have.entries[path].mtime_ns) for path in reversed(paths[10:])]


def test_only_attributes() -> None:
    have = tree_of(directory(b"d", 0o755, 40), symlink(b"l", b"d", 40))
    assert (
        make_plan([upsert(directory(b"d", 0o755, 40)), upsert(symlink(b"l", b"d", 40))], have, NO_INDEXES).steps == ()
    )
    (step,) = make_plan([upsert(directory(b"d", 0o755, 0))], have, NO_INDEXES).steps
    assert step == Step(Do.ATTR, b"d", entry=directory(b"d", 0o755, 0))
    plan = make_plan([upsert(symlink(b"l", b"d", 0))], have, NO_INDEXES)
    assert shape(plan) == [("SYMLINK", b"l")]
    assert attributes(plan) == [(b"", 0o755, 1)]


def test_attributes_of_the_root() -> None:
    have = tree_of(file(b"f"))
    root = directory(b"", 0o711, 9)
    plan = make_plan([upsert(root)], have, NO_INDEXES)
    assert plan.steps == (Step(Do.ATTR, b"", entry=root),)
    assert make_plan([upsert(have.top)], have, NO_INDEXES).steps == ()
    plan = make_plan([upsert(root), delete(b"f")], have, NO_INDEXES)
    assert (shape(plan), attributes(plan)) == ([("DELETE", b"f")], [(b"", 0o711, 9)])
    for change in (delete(b""), rename(b"f", root), upsert(root._replace(kind=Kind.FILE))):
        with pytest.raises(PathError):
            make_plan([change], have, NO_INDEXES)


def test_parked_and_moved_directories_keep_their_times_and_so_do_those_they_left() -> None:
    have = tree_of(
        *(directory(path, mtime_ns=number) for number, path in enumerate([b"x", b"x/a", b"y", b"y/b", b"y/b/c"], 10))
    )
    changes = swap(have.entries[b"x/a"]._replace(path=b"x/a"), have.entries[b"y/b"]._replace(path=b"y/b"))
    plan = make_plan(changes, have, NO_INDEXES)
    assert [name for name, _ in shape(plan)] == ["PARK", "MOVE", "UNPARK"]
    assert attributes(plan) == [(b"x", 0o755, 10), (b"y", 0o755, 12)]
    parent = tree_of(*(entry._replace(path=path) for path, entry in swapped(have)))
    do_steps(have, plan.steps, parent)
    assert have.seen() == parent.seen()


def swapped(tree: Tree) -> list[tuple[bytes, Entry]]:
    names = {b"x/a": b"y/b", b"y/b": b"x/a", b"y/b/c": b"x/a/c"}
    return [(names.get(path, path), entry) for path, entry in tree.entries.items()]
