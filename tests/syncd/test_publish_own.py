"""What lies in a copy that its patterns cover stays, whatever is published around it, and wherever that is cut short."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from core.exclude import Exclude
from syncd.model import Entry, Kind
from syncd.publish.io_below import Below
from syncd.publish.io_own import check_way, find_own, holds_only_own, prune
from syncd.publish.io_publish import Layout, begin, bring_whole, finish, prepare, run, sweep
from syncd.publish.io_version import Versions, adopt, current, expire, finish_version, publish_version, roll_back
from syncd.publish.steps import Do, Intent, PublishError, Ranks, Step
from tests.syncd.disk_tree import killed_at
from tests.syncd.test_publish_faults import put

OWN = Exclude(["own", "own/", "*.part"])


def small(home: Path) -> tuple[Layout, Path]:
    root = home / "tree"
    root.mkdir(parents=True)
    layout = Layout(os.fsencode(root), os.fsencode(home / "work"), exclude=OWN)
    prepare(layout)
    return layout, root


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def files(root: Path) -> set[str]:
    found = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    assert all((root / path).read_text() in (path, "new") for path in found)
    return found


def make(path: bytes) -> Step:
    return Step(Do.MAKE, path, entry=Entry(path, Kind.DIRECTORY, 0o755, mtime_ns=7))


def case(home: Path) -> tuple[Layout, Path, tuple[Step, ...]]:
    """A directory that goes, one that is made anew where it stands, and one that goes as a whole."""
    layout, root = small(home)
    write(root, "gone/f", "gone/s/own", "gone/s/g", "gone/t/h", "anew/old", "anew/s/x.part", "whole/f", "own/z", "last")
    steps = (
        make(b"anew"),
        make(b"anew/d"),
        put(layout, b"anew/d/f"),
        put(layout, b"anew/n"),
        Step(Do.DELETE, b"gone"),
        Step(Do.DELETE, b"last"),
        Step(Do.DELETE, b"whole"),
        Step(Do.ATTR, b"anew", entry=Entry(b"anew", Kind.DIRECTORY, 0o755, mtime_ns=7)),
    )
    return layout, root, steps


LEFT = {"gone/s/own", "anew/s/x.part", "anew/d/f", "anew/n", "own/z"}


def test_what_is_left_out_stays_whatever_goes_around_it(tmp_path: Path) -> None:
    layout, root, steps = case(tmp_path)
    begin(layout, Intent(1, steps))
    run(layout, durable=False)
    finish(layout)
    sweep(layout)
    assert files(root) == LEFT
    assert not (root / "gone" / "t").exists()
    assert not (root / "whole").exists()
    assert (root / "anew").stat().st_mtime_ns == 7


def test_it_stays_wherever_that_is_cut_short(tmp_path: Path) -> None:
    for number in range(0, 200, 2):
        home = tmp_path / str(number)
        layout, root, steps = case(home)
        begin(layout, Intent(1, steps))
        was_killed = killed_at(lambda trip, layout=layout: run(layout, trip=trip, durable=False), number)
        run(layout, durable=False)
        assert files(root) == LEFT, number
        shutil.rmtree(home)
        if not was_killed:
            break
    assert number > 10


@pytest.mark.parametrize("do", [Do.PUT, Do.MOVE])
def test_what_has_no_place_beside_it_stops_before_the_first_step(tmp_path: Path, do: Do) -> None:
    layout, root = small(tmp_path)
    write(root, "d/s/own", "e/f")
    step = put(layout, b"d") if do is Do.PUT else Step(do, b"d", b"e", entry=Entry(b"d", Kind.DIRECTORY, 0o755))
    with pytest.raises(PublishError, match="'d/s/own' is left alone by `exclude`"):
        check_way(layout.root, [step], OWN)
    begin(layout, Intent(1, (step,)))
    with pytest.raises(PublishError, match="move it away"):  # it came between the look and the step
        run(layout, durable=False)
    assert files(root) == {"d/s/own", "e/f"}
    (root / "d/s/own").unlink()
    check_way(layout.root, [step], OWN)
    run(layout, durable=False)
    assert (root / "d").is_file() if do is Do.PUT else (root / "d" / "f").exists()


def test_a_directory_is_not_brought_whole_to_where_something_lies(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    write(root, "d/own")
    steps = (make(b"d"), make(b"e"), put(layout, b"d/f"), put(layout, b"e/f"))
    whole = bring_whole(layout, steps, Ranks([]))
    assert [(step.do, step.path) for step in whole] == [(Do.MAKE, b"d"), (Do.BRING, b"e"), (Do.PUT, b"d/f")]
    begin(layout, Intent(1, whole))
    run(layout, durable=False)
    assert files(root) == {"d/own", "d/f", "e/f"}


def test_only_what_is_left_out_is_found_and_only_the_rest_is_pruned(tmp_path: Path) -> None:
    write(tmp_path, "a/b/c/d", "a/own/x", "f", "e/g")
    with Below(os.fsencode(tmp_path)) as tree:
        assert find_own(tree, b"a", OWN) == b"a/own"
        assert find_own(tree, b"a/own", OWN) == b"a/own"
        assert find_own(tree, b"", OWN) == b"a/own"
        assert [find_own(tree, path, OWN) for path in (b"a/b", b"e", b"f", b"nowhere", b"nowhere/x")] == [None] * 5
        assert find_own(tree, b"a", Exclude()) is None
        assert [holds_only_own(tree, path, OWN) for path in (b"a", b"a/own", b"e", b"f")] == [False, True, False, False]
        prune(tree, b"a/own", OWN)
        prune(tree, b"a", OWN)
        assert holds_only_own(tree, b"a", OWN)
    assert files(tmp_path) == {"a/own/x", "f", "e/g"}
    assert not (tmp_path / "a" / "b").exists()


@pytest.mark.parametrize("may_link", [True, False])
def test_versions_carry_it_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_link: bool) -> None:
    """Also what belongs to somebody else, of which the kernel lets nobody make a further name."""
    layout, root = small(tmp_path)
    write(root, "d/own", "d/f", "e/x.part", "g")
    place = Versions(layout.root, os.fsencode(tmp_path / "tree.versions"), layout.work, exclude=OWN)
    adopt(place)
    link = os.link

    def refuse(source: bytes, *arguments: object, **more: object) -> None:
        if source == b"own" and not may_link:
            raise PermissionError(1, "Operation not permitted")
        link(source, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", refuse)
    before = (root / "d/own").stat().st_mtime_ns
    for number in (1, 2):
        intent = Intent(number, (Step(Do.DELETE, b"e" if number == 1 else b"d"), put(layout, b"n")))
        publish_version(place, intent, now=float(number), durable=False)
        finish_version(place, intent)
        expire(place, now=100.0, grace_s=1.0)
        sweep(layout)
        assert current(place) == number
    assert files(root) == {"d/own", "e/x.part", "g", "n"}
    assert (root / "d/own").stat().st_mtime_ns == before


def test_what_is_made_over_an_empty_directory_is_filled_not_that(tmp_path: Path) -> None:
    """A directory that was looked into, and then replaced, must not be kept open."""
    layout, root = small(tmp_path)
    (root / "d").mkdir()
    begin(layout, Intent(1, (make(b"d"), put(layout, b"d/f"))))
    run(layout, durable=False)
    assert (root / "d" / "f").read_text() == "new"


def test_what_comes_while_a_version_is_built_is_in_it(tmp_path: Path) -> None:
    """It lies in the version that goes, and goes with that for good once its grace is over."""
    layout, root = small(tmp_path)
    write(root, "d/f", "g")
    place = Versions(layout.root, os.fsencode(tmp_path / "tree.versions"), layout.work, exclude=OWN)
    adopt(place)

    def come(what: str) -> None:
        if what == "note":
            write(root, "d/own", "d/n/x.part", "h/own/z")

    intent = Intent(1, (put(layout, b"n"), Step(Do.DELETE, b"g"), Step(Do.DELETE, b"d")))
    publish_version(place, intent, now=1.0, durable=False, trip=come)
    assert files(root) == {"d/own", "d/n/x.part", "h/own/z", "n"}


def test_what_came_since_is_in_an_older_version_that_is_shown_again(tmp_path: Path) -> None:
    """The next one is made of that, and the newest goes once its grace is over."""
    layout, root = small(tmp_path)
    write(root, "d/f")
    place = Versions(layout.root, os.fsencode(tmp_path / "tree.versions"), layout.work, exclude=OWN)
    adopt(place)
    publish_version(place, Intent(1, (put(layout, b"n"),)), now=1.0, durable=False)
    write(root, "d/own", "e/x.part")
    roll_back(place, 0, now=2.0)
    assert files(root) == {"d/f", "d/own", "e/x.part"}


def test_what_came_into_a_directory_while_its_move_waited_is_not_taken_along(tmp_path: Path) -> None:
    """For room on the disk, say: nothing but the steps looks there again."""
    layout, root = small(tmp_path)
    write(root, "d/f")
    begin(layout, Intent(1, (Step(Do.MOVE, b"e", b"d", entry=Entry(b"e", Kind.DIRECTORY, 0o755)),)))
    write(root, "d/own")
    with pytest.raises(PublishError, match="came into a directory that moves"):
        run(layout, durable=False)
    assert files(root) == {"d/f", "d/own"}
