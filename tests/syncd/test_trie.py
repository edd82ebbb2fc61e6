"""DirtyTrie against a set of paths, and its cost on mass deletes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from syncd.source.trie import DirtyTrie

PATHS = st.lists(st.sampled_from([b"a", b"b", b"\n", b"-x"]), max_size=4).map(b"/".join)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), PATHS, st.booleans()),
        st.tuples(st.just("discard"), PATHS, st.just(False)),
        st.tuples(st.just("pop"), st.just(b""), st.just(False)),
    ),
    max_size=40,
)


def is_below(path: bytes, above: bytes) -> bool:
    return path != above and (not above or path.startswith(above + b"/"))


class Naive:
    """What the trie promises, said with a dict and loops."""

    def __init__(self) -> None:
        self.marks: dict[bytes, bool] = {}

    def covers(self, path: bytes) -> bool:
        return path in self.marks or any(sub and is_below(path, p) for p, sub in self.marks.items())

    def add(self, path: bytes, subtree: bool) -> None:
        if any(sub and is_below(path, p) for p, sub in self.marks.items()):
            return
        self.marks[path] = self.marks.get(path, False) or subtree
        if subtree:
            self.marks = {p: s for p, s in self.marks.items() if not is_below(p, path)}

    def discard(self, path: bytes) -> None:
        self.marks = {p: s for p, s in self.marks.items() if p != path and not is_below(p, path)}


@given(STEPS)
def test_does_what_a_set_of_paths_would(steps: list[tuple[str, bytes, bool]]) -> None:
    trie, naive = DirtyTrie(), Naive()
    for what, path, subtree in steps:
        if what == "add":
            trie.add(path, subtree)
            naive.add(path, subtree)
        elif what == "discard":
            trie.discard(path)
            naive.discard(path)
        else:
            for popped, is_subtree in trie.pop(2):
                assert naive.marks.pop(popped) == is_subtree
        assert {mark.path: mark.subtree for mark in trie.marks()} == naive.marks
        assert len(trie) == len(naive.marks)
        assert trie.covers(path) == naive.covers(path)


def test_pops_parents_before_what_is_below_them() -> None:
    trie = DirtyTrie()
    for path in (b"a/b/c", b"a", b"a/b", b""):
        trie.add(path)
    assert [path for path, _ in trie.pop(10)] == [b"", b"a", b"a/b", b"a/b/c"]
    assert len(trie) == 0


def test_a_subtree_keeps_the_earliest_time_of_what_it_absorbed() -> None:
    trie = DirtyTrie()
    trie.add(b"a/x").first_s = 7.0
    trie.add(b"a/y").first_s = 3.0
    assert trie.add(b"a", subtree=True).first_s == 3.0
    assert trie.add(b"a/z/deep").path == b"a"


def test_taking_everything_out_leaves_no_nodes() -> None:
    trie = DirtyTrie()
    for i in range(1000):
        trie.add(b"d%d/e/f%d" % (i % 7, i))
    while trie.pop(64):
        pass
    assert trie.add(b"q").parent is not None
    root = trie.add(b"q").parent
    assert root is not None
    assert list(root.children or {}) == [b"q"]


def test_mass_deletes_take_a_number_of_steps_in_proportion() -> None:
    """Counted, not timed: the nodes that are visited for 100,000 deletes in one directory, then for the directory."""
    visited = 0

    class Counting(dict):  # type: ignore[type-arg]
        def get(self, *args: object) -> object:
            nonlocal visited
            visited += 1
            return super().get(*args)

    trie = DirtyTrie()
    directory = trie.add(b"d")
    directory.children = Counting()
    for i in range(100_000):
        trie.add(b"d/%d" % i)
    assert visited <= 100_000
    assert len(trie.pop(50_000)) == 50_000
    assert visited <= 200_000
    trie.add(b"d", subtree=True)
    assert len(trie) == 1
