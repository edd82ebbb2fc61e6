"""Planning: whatever happened to the parent's tree, the plan's steps make the child's tree the same."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from syncd.model import Change, Entry, Kind, Op, PathError
from syncd.plan import Plan, make_plan
from syncd.publish import Do, Ranks
from tests.syncd.tree_model import Tree, do_steps

NO_INDEXES = Ranks([])


def file(path: bytes, mtime_ns: int = 1, size: int = 3, mode: int = 0o644, digest: bytes | None = None) -> Entry:
    return Entry(path, Kind.FILE, mode, size, mtime_ns, digest=digest)


def directory(path: bytes, mode: int = 0o755) -> Entry:
    return Entry(path, Kind.DIRECTORY, mode)


def symlink(path: bytes, target: bytes) -> Entry:
    return Entry(path, Kind.SYMLINK, 0o777, target=target)


def upsert(entry: Entry, link_of: bytes = b"") -> Change:
    return Change(1, Op.UPSERT, entry.path, entry, link_of)


def delete(path: bytes) -> Change:
    return Change(1, Op.DELETE, path)


def rename(source: bytes, entry: Entry) -> Change:
    return Change(1, Op.RENAME, entry.path, entry, source)


def tree_of(*entries: Entry) -> Tree:
    tree = Tree()
    for number, entry in enumerate(entries, 1):
        tree.set(entry, number if entry.kind is Kind.FILE else None)
    return tree


def shape(plan: Plan) -> list[tuple[str, bytes]]:
    return [(step.do.name, step.path) for step in plan.steps]


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
        plan = make_plan(parent.journal, child, NO_INDEXES if seed % 2 else Ranks(["dd", "/a/**"]))
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
            error.add_note(f"seed {seed}: {parent.journal}\nfrom {sorted(before.entries)}\nby {shape(plan)}")
            raise
        fetched = [fetch.entry.path for fetch in (*plan.payload, *plan.indexes)]
        assert sorted(fetched) == sorted(step.path for step in plan.steps if step.do is Do.PUT)
    # The generator must reach the hard cases, or this test says little.
    assert parks > 5
    assert moves > 50
    assert links > 50


# --- single cases -------------------------------------------------------------------------------------------------------


def test_a_new_file_in_a_new_directory() -> None:
    plan = make_plan([upsert(directory(b"d", 0o711)), upsert(file(b"d/f"))], Tree(), NO_INDEXES)
    assert shape(plan) == [("MAKE", b"d"), ("PUT", b"d/f"), ("ATTR", b"d")]
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
    changes = [rename(one.path, replace(one, path=b"tmp")), rename(two.path, replace(two, path=one.path))]
    return [*changes, rename(b"tmp", replace(one, path=two.path))]


def test_swapped_files_are_never_away() -> None:
    have = tree_of(file(b"a", 1), file(b"b", 2))
    plan = make_plan(swap(file(b"a", 1), file(b"b", 2)), have, NO_INDEXES)
    assert [step.do for step in plan.steps] == [Do.PARK, Do.LINK, Do.UNPARK]


def test_swapped_directories_go_through_one_slot() -> None:
    have = tree_of(directory(b"a"), file(b"a/1"), directory(b"b"), file(b"b/2"))
    plan = make_plan(swap(directory(b"a"), directory(b"b")), have, NO_INDEXES)
    assert [step.do for step in plan.steps] == [Do.PARK, Do.MOVE, Do.UNPARK]


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
    assert shape(plan) == [("MAKE", b"d"), ("PUT", b"f"), ("ATTR", b"d")]


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
    assert len(plan.steps) == 20_000
