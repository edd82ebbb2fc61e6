"""What a tree leaves out: the same as rsync does, unseen by whoever watches, kept by nobody, and served to nobody."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from core.exclude import Exclude
from tests.syncd.nodes import Node, differences, running
from tests.syncd.plain_server import rsync_daemon
from tests.syncd.test_plain import follow_plainly, write_source
from tests.syncd.watched import Start, indexed, settle, told, with_both, write

# fmt: off
FILES = [
    "a.tmp", "bb", "iso/x.iso", "iso/deep/y", "sub/iso/z", "debug/tree/f", "x/debug/tree", "x/debugtree", "x/debug/tree2",
    ".git/HEAD", "sub/.git", "q1", "q22", "z[1]", "z1", "a b/c d", "e*f", "exf", "a/b/c/d.deb", "a/b.deb", "b/a/b/c", "p.q",
    "p-q", "p^q", "p]q", "-n", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\nx", "foo/bar/foo/baz",
]
PATTERNS = [
    "*.tmp", "/iso", "iso", "iso/", "/iso/", "debug/tree", ".git/", ".git", "q?", "q??", "z[[]1]", "z[1]", "a b", "a?b",
    "e[*]f", "e*f", "a/**", "a/**/d.deb", "**/c", "**.deb", "*.deb", "/a/*.deb", "b/*", "p[.-]q", "p[!.]q", "p[^.]q",
    "p[]^]q", "/**/iso", "**", "a**c", "/a**b", "foo/*/foo", "foo/**/baz", "f*/ba*", "x/d*tree", "/sub/*", "?", "??", "-n",
    "[a-c]", "[!a-c]", "a/b", "/b/a", "b/**", "**iso", "iso**", "*/iso", "/*/iso", "/*/",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
]
# fmt: on


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    return folder


def left_by_rsync(folder: Path, pattern: str) -> set[bytes]:
    command = ["rsync", "-rn", "-8", "--out-format=%n", f"--exclude={pattern}", f"{folder}/", f"{folder}.none/"]
    said = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    names = {re.sub(rb"\\#(\d{3})", lambda code: bytes([int(code[1], 8)]), line) for line in said}
    return {name.rstrip(b"/") for name in names} - {b".", b""}


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_leaves_out_what_it_does_for_rsync(many: Path, pattern: str) -> None:
    exclude = Exclude([pattern])
    every = {os.fsencode(path.relative_to(many)): path.is_dir() for path in many.rglob("*")}

    def is_left(path: bytes) -> bool:
        above = path.split(b"/")[:-1]
        is_below = any(exclude.leaves_out(b"/".join(above[: n + 1]), True) for n in range(len(above)))
        return not is_below and not exclude.leaves_out(path, every[path])

    assert {path for path in every if is_left(path)} == left_by_rsync(many, pattern)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "is empty"),
        ("/", "is empty"),
        (" x", "space at an end"),
        ("x" * 1025, "longer than 1,024 bytes"),
        ("!", "another rule"),
        ("+ x", "another rule"),
        ("- x", "another rule"),
        ("a\\*", "backslash"),
        ("a\nb", "line end"),
        ("a/***", "not known here"),
        ("[[:alpha:]]", "not known here"),
        ("../x", "no path in a tree has"),
        ("./x", "no path in a tree has"),
        ("[z-a]", "cannot be read"),
        ("a[b", "without its ]"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        Exclude([pattern])


def test_what_lies_below_is_covered() -> None:
    exclude = Exclude(["/private/", "*.part"])
    covered = [b"private", b"private/x/y", b"a/x.part", b"a/x.part/z"]
    assert [path for path in [*covered, b"", b"a/private", b"a/x.parts"] if exclude.covers(path)] == covered
    assert not Exclude().covers(b"a")
    assert Exclude(["a"]).fingerprint() != Exclude(["b"]).fingerprint() != Exclude().fingerprint() == 0


@with_both
def test_what_is_left_out_is_as_if_it_were_not_there(root: bytes, start: Start) -> None:
    here = os.fsdecode(root)
    for path in (b"a", b"new.part", b".git/HEAD", b"d/.git/x/y"):
        write(root, path)
    exclude = Exclude(["*.part", ".git/"])
    source = start(exclude=exclude)
    settle(source)
    assert set(indexed(source)) == {b"", b"a", b"d"}
    at = source.status.sequence
    write(root, b"new.part", b"more")
    write(root, b".git/x/y/z")
    write(root, b"d/.git/x/y", b"more")
    assert {one for one in told(source, at) if one not in ("u .", "u d")} == set()
    # Uploads are written under another name first; and what is put away is gone.
    os.rename(here + "/new.part", here + "/new")
    os.rename(here + "/d/.git", here + "/d/shown")
    os.rename(here + "/a", here + "/a.part")
    written = [one for one in told(source, at) if one not in ("u .", "u d")]
    assert sorted(written) == ["u d/shown", "u d/shown/x", "u d/shown/x/y", "u new", "x a"]
    at = source.status.sequence
    write(root, b"d/shown/x/z")
    assert {one for one in told(source, at) if one != "u d/shown/x"} == {"u d/shown/x/z"}, "it is not watched"
    # With other patterns after a restart it is another tree.
    at = source.status.sequence
    source = start(exclude=Exclude(["/d/"]))
    assert {one for one in told(source, at) if one != "u ."} >= {"x d", "u .git", "u .git/x/y/z", "u a.part"}
    assert b"d" not in indexed(source)


def test_a_copy_has_all_but_what_its_origin_leaves_out(tmp_path: Path) -> None:
    origin, copy = Node("origin", tmp_path / "origin"), Node("copy", tmp_path / "copy")
    with rsync_daemon(tmp_path) as url:
        patterns = ["*.part", "/private/"]
        mirror = tmp_path / "pushed"
        (mirror / "private").mkdir()
        (mirror / "private" / "of the mirror").write_text("kept")
        (mirror / "stale").write_text("of before")
        origin.configure(children=["copy"], exclude=patterns, push={"plain": {"to": f"{url}/pushed"}})
        copy.configure(parents=[origin], key=origin.key())
        shown = tmp_path / "shown"
        for folder in (origin.tree, shown):
            (folder / "pool").mkdir(parents=True)
            (folder / "pool" / "p").write_text("payload")
            os.utime(folder / "pool" / "p", (1, 1))
        for name in ("private/secret", "pool/q.part"):
            (origin.tree / name).parent.mkdir(exist_ok=True)
            (origin.tree / name).write_text("not for others")
        for folder in (origin.tree, shown):
            os.utime(folder / "pool", (2, 2))
            os.utime(folder, (3, 3))
        with running(origin, copy):
            copy.until(lambda: differences(shown, copy.tree) == [], "all but what is left out")
            origin.until(lambda: (mirror / "pool" / "p").exists() and not (mirror / "stale").exists(), "it is pushed")
            assert (mirror / "private" / "of the mirror").read_text() == "kept"
            assert not (mirror / "private" / "secret").exists()
            assert not (mirror / "pool" / "q.part").exists()
            (origin.tree / "pool" / "q.part").rename(origin.tree / "pool" / "q")
            copy.until((copy.tree / "pool" / "q").exists, "what is whole now")
            copy.until(lambda: copy.status()["root_hash"] == origin.status()["root_hash"] != "", "the signed root")
            assert copy.run("verify", "t").returncode == 0


def test_a_copy_of_a_plain_server_leaves_out_what_cannot_be_listed_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_source(source)
    (source / "lost+found").mkdir(mode=0)
    copy = Node("copy", tmp_path / "copy")
    (copy.tree / "lost+found").mkdir(parents=True)
    (copy.tree / "lost+found" / "own").write_text("of this disk")
    inner = copy.tree / "was" / "lost+found" / "own"
    inner.parent.mkdir(parents=True)
    inner.write_text("of this disk")
    (copy.tree / "was" / "f").write_text("of another time")
    with rsync_daemon(tmp_path) as url:
        place = {"transport": "rsyncd", "place": f"{url}/source"}
        follow_plainly(copy, place, exclude=["lost+found/"])
        with running(copy):
            copy.until(lambda: copy.status()["state"] == "current", "the rest is all there is")
            assert (copy.tree / "d" / "f").read_text() == "first"
            assert (copy.tree / "lost+found" / "own").exists()
            assert inner.read_text() == "of this disk", "it went with the directory that it lies in"
            assert not (copy.tree / "was" / "f").exists()
            assert copy.status()["entries"] == 7, "what is left out is counted"
            assert copy.run("verify", "t").returncode == 0
            (source / "shown").mkdir()
            follow_plainly(copy, place, exclude=["lost+found/", "/index"])
            assert copy.run("reload").returncode == 0
            copy.until(lambda: copy.status()["entries"] == 7 and (copy.tree / "shown").exists(), "other patterns")
            assert (copy.tree / "index").exists(), "what is left out from now on was deleted"
