"""WatchTree: directories that move, displace each other, and turn out to be elsewhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from syncd.source.watch_tree import WatchTree


def tree_of(*places: tuple[int, int, bytes]) -> WatchTree:
    tree = WatchTree()
    tree.place_root(1)
    for wd, parent, name in places:
        tree.place(wd, parent, name)
    return tree


def test_paths_follow_a_renamed_directory() -> None:
    tree = tree_of((2, 1, b"a"), (3, 2, b"b"), (4, 1, b"c"))
    assert tree.path(1) == b""
    assert tree.path(3) == b"a/b"
    tree.place(2, 4, b"moved")
    assert tree.path(3) == b"c/moved/b"
    assert tree.child(1, b"a") is None


def test_a_displaced_directory_is_loose_until_it_is_placed() -> None:
    tree = tree_of((2, 1, b"a"), (3, 2, b"b"))
    tree.place(4, 1, b"a")
    assert tree.path(4) == b"a"
    assert tree.path(2) is None
    assert tree.path(3) is None
    assert tree.loose() == {2}
    tree.place(2, 1, b"elsewhere")
    assert tree.path(3) == b"elsewhere/b"
    assert tree.loose() == frozenset()


def test_old_news_make_no_circle() -> None:
    # On disk: mv a/b b; mv a b/a. Here b is still thought to be below a.
    tree = tree_of((2, 1, b"a"), (3, 2, b"b"))
    tree.place(2, 3, b"a")
    assert tree.path(2) is None
    tree.place(3, 1, b"b")
    assert tree.path(2) == b"b/a"


def test_forgetting_a_directory_loosens_what_is_below_it() -> None:
    tree = tree_of((2, 1, b"a"), (3, 2, b"b"))
    tree.forget(2)
    assert 2 not in tree
    assert tree.path(3) is None
    assert sorted(tree.below(1)) == [1]
    tree.forget(1)
    assert tree.root_wd is None
    tree.place(5, 1, b"x")
    assert tree.loose() == {3, 5}


WDS = st.integers(1, 6)
STEPS = st.lists(st.tuples(st.sampled_from(["place", "loosen", "forget"]), WDS, WDS, st.sampled_from([b"a", b"b"])))


@given(STEPS)
def test_any_news_leave_a_tree(steps: list[tuple[str, int, int, bytes]]) -> None:
    tree = tree_of()
    for what, wd, parent, name in steps:
        if what == "place":
            tree.place(wd, parent, name)
            assert wd in tree
        elif what == "loosen":
            tree.loosen(wd)
        elif wd != 1:
            tree.forget(wd)
        placed = [(path, w) for w in range(1, 7) if (path := tree.path(w)) is not None]
        assert len({path for path, _ in placed}) == len(placed)
        # Everything is below the root or below something loose, and nothing is below two.
        below = [w for top in {1} | tree.loose() for w in tree.below(top)]
        assert len(below) == len(set(below)) == len(tree)
