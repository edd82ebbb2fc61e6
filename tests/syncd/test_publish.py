"""Publishing, the pure part: index patterns, symlinks that stay inside, what is held back, the intent as bytes."""

from __future__ import annotations

import random

import pytest

from core.errors import NearpathError
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.steps import (
    Do,
    Intent,
    PublishError,
    Ranks,
    Step,
    decode_intent,
    encode_intent,
    hold_back,
    stays_inside,
    touched,
)


@pytest.mark.parametrize(
    ("pattern", "matches", "others"),
    [
        ("/dists/**", [b"dists/a", b"dists/a/b"], [b"dists", b"x/dists/a", b"distsx/a"]),
        ("repodata/*", [b"repodata/x", b"9/os/repodata/repomd.xml"], [b"repodata", b"repodata/a/b", b"xrepodata/y"]),
        ("InRelease", [b"InRelease", b"dists/s/InRelease"], [b"InRelease.gpg", b"xInRelease"]),
        ("/a/**/z", [b"a/z", b"a/b/z", b"a/b/c/z"], [b"a/bz", b"b/a/z"]),
        ("*.[jx]?", [b"a.js", b"d/a.xz"], [b"a.sj", b"a.j"]),
        ("[!a-c]x", [b"dx", b"-x"], [b"ax", b"/x"]),
        ("a+(b).c\\", [b"a+(b).c\\"], [b"aa(b).c\\", b"a+(b)xc\\"]),
        ("路", ["d/路".encode()], [b"x"]),
        ("?", [b"\n", b"\xff", b"d/\n"], [b"ab"]),
    ],
)
def test_index_patterns(pattern: str, matches: list[bytes], others: list[bytes]) -> None:
    ranks = Ranks([pattern])
    assert [ranks.of(path) for path in matches] == [1] * len(matches)
    assert [ranks.of(path) for path in others] == [0] * len(others)


def test_the_last_pattern_that_matches_ranks() -> None:
    ranks = Ranks(["/dists/**", "Release", "InRelease"])
    paths = [b"pool/x", b"dists/Packages", b"dists/Release", b"dists/InRelease"]
    assert [ranks.of(path) for path in paths] == [0, 1, 2, 3]
    with pytest.raises(NearpathError, match="matches nothing"):
        Ranks(["/"])


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        (b"l", b"a/b", True),
        (b"d/l", b"../a", True),
        (b"d/e/l", b"../../a/./b/", True),
        (b"l", b".", True),
        (b"l", b"../a", False),
        (b"d/l", b"../../a", False),
        (b"l", b"/etc", False),
        (b"l", b"", False),
        (b"d/l", b"./../../x", False),
        (b"l", b"a/../b", False),  # inside by its letters, but `a` may be a symlink to a directory further up
        (b"l", b"...", True),
        (b"l", b"..a", True),
    ],
)
def test_symlinks_that_stay_inside(path: bytes, target: bytes, inside: bool) -> None:
    assert stays_inside(path, target) == inside


def test_no_set_of_allowed_symlinks_leads_out() -> None:
    """Random trees of allowed symlinks, every path resolved name by name as the kernel does."""
    rng, followed = random.Random(2), 0
    names = [b"a", b"b", b"c"]
    for _ in range(2000):
        links: dict[tuple[bytes, ...], bytes] = {}
        for _ in range(5):
            place = tuple(rng.choice(names) for _ in range(rng.randrange(1, 4)))
            target = b"/".join(rng.choice([b"..", b"..", b".", *names]) for _ in range(rng.randrange(1, 5)))
            if stays_inside(b"/".join(place), target) and not any(place[:n] in links for n in range(1, len(place))):
                links[place] = target
        for place in links:
            at: tuple[bytes, ...] = place[:-1]
            todo = links[place].split(b"/")
            for _ in range(40):
                if not todo:
                    break
                name = todo.pop(0)
                if name == b"..":
                    assert at, (place, links)
                    at = at[:-1]
                elif name != b"." and (*at, name) in links:
                    todo = links[(*at, name)].split(b"/") + todo
                    followed += 1
                elif name != b".":
                    at = (*at, name)
    assert followed > 200


def put(path: bytes) -> Step:
    return Step(Do.PUT, path, entry=Entry(path, Kind.FILE, 0o644, 1, 1))


STEPS = (
    Step(Do.MAKE, b"d", entry=Entry(b"d", Kind.DIRECTORY, 0o755)),
    put(b"d/a"),
    put(b"d/b"),
    Step(Do.LINK, b"d/b2", source=b"d/b", entry=Entry(b"d/b2", Kind.FILE, 0o644, 1, 1)),
    put(b"Packages"),
    put(b"Release"),
    Step(Do.DELETE, b"old"),
    Step(Do.ATTR, b"d", entry=Entry(b"d", Kind.DIRECTORY, 0o755)),
)
RANKS = Ranks(["Packages", "Release"])


def names(steps: tuple[Step, ...]) -> list[bytes]:
    return [step.path for step in steps]


def test_nothing_failed_nothing_is_held_back() -> None:
    assert hold_back(STEPS, {}, RANKS) == (STEPS, ())
    assert hold_back(STEPS, {b"other": "x"}, RANKS) == (STEPS, ())


def test_a_missing_payload_file_holds_back_all_indexes_and_deletes() -> None:
    now, later = hold_back(STEPS, {b"d/b": "denied"}, RANKS)
    assert names(now) == [b"d", b"d/a", b"d"]
    assert [(change.op, change.path) for change in later] == [
        (Op.UPSERT, b"d/b"),
        (Op.UPSERT, b"d/b2"),
        (Op.UPSERT, b"Packages"),
        (Op.UPSERT, b"Release"),
        (Op.DELETE, b"old"),
    ]


def test_a_missing_index_holds_back_those_after_it_and_the_deletes() -> None:
    now, later = hold_back(STEPS, {b"Release": "denied"}, RANKS)
    assert names(now) == [b"d", b"d/a", b"d/b", b"d/b2", b"Packages", b"d"]
    assert later == (Change(0, Op.UPSERT, b"Release", STEPS[5].entry), Change(0, Op.DELETE, b"old"))
    now, later = hold_back(STEPS, {b"Packages": "denied"}, RANKS)
    assert [change.path for change in later] == [b"Packages", b"Release", b"old"]


def test_intents_round_trip_and_any_damage_is_found() -> None:
    steps = (*STEPS, Step(Do.PARK, b"x\n", b"\xff", 3), Step(Do.UNPARK, b"x\n", slot=3))
    link = Entry(b"s", Kind.SYMLINK, 0o777, target=b"x" * 4000, mtime_ns=-7)
    intent = Intent(12, (*steps, Step(Do.SYMLINK, b"s", entry=link)), b"note\0")
    data = encode_intent(intent)
    assert decode_intent(data) == intent
    for cut in range(len(data)):
        with pytest.raises(PublishError, match="damaged"):
            decode_intent(data[:cut])
    hostile = encode_intent(Intent(1, (Step(Do.DELETE, b"../../etc"),)))
    with pytest.raises(PublishError, match="damaged"):
        decode_intent(hostile)


def test_touched_paths() -> None:
    assert touched(STEPS) == (b"Packages", b"Release", b"d", b"d/a", b"d/b", b"d/b2", b"old")
