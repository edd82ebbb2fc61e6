"""New directories brought whole, in one rename: only those where that shows nothing sooner than it may be seen."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from syncd.model import Entry, Kind
from syncd.publish.io_below import remove_all
from syncd.publish.io_publish import Layout, begin, bring_whole, finish, pending, prepare, run
from syncd.publish.steps import Do, Intent, PublishError, Ranks, Step, decode_intent, encode_intent
from tests.syncd.disk_tree import killed_at
from tests.syncd.test_publish_disk import Case, needs_root

NO_INDEXES = Ranks([])


def small(tmp_path: Path) -> tuple[Layout, Path]:
    root = tmp_path / "tree"
    root.mkdir(parents=True)
    layout = Layout(os.fsencode(root), os.fsencode(tmp_path / "work"))
    prepare(layout)
    return layout, root


def put(layout: Layout, path: bytes) -> Step:
    place = os.path.join(layout.stage, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb") as file:
        file.write(b"new")
    return Step(Do.PUT, path, entry=Entry(path, Kind.FILE, 0o644, 3, os.stat(place).st_mtime_ns))


def make(path: bytes, mode: int = 0o755) -> Step:
    return Step(Do.MAKE, path, entry=Entry(path, Kind.DIRECTORY, mode))


def shape(steps: tuple[Step, ...]) -> list[tuple[str, bytes]]:
    return [(step.do.name, step.path) for step in steps if step.do in (Do.MAKE, Do.BRING)]


def test_new_directories_come_with_all_that_is_in_them(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    steps = (make(b"d", 0o500), make(b"d/e", 0o711), make(b"d/empty"), put(layout, b"d/f"), put(layout, b"d/e/f"))
    steps = bring_whole(layout, steps, NO_INDEXES)
    assert shape(steps) == [("BRING", b"d"), ("BRING", b"d/e"), ("MAKE", b"d/empty")]
    assert not [step for step in steps if step.do is Do.PUT], "they come with their directories"
    assert decode_intent(encode_intent(Intent(1, steps))).steps == steps
    inode = os.stat(os.path.join(layout.stage, b"d")).st_ino
    begin(layout, Intent(1, steps))
    seen: list[list[str]] = []
    run(layout, durable=False, trip=lambda what: seen.append(sorted(os.listdir(root / "d")) if seen_at(root) else []))
    assert next(names for names in seen if names) == ["e", "f"], "never empty, and never half"
    assert (root / "d").stat().st_ino == inode
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o700, "ours to write until ATTR"
    assert stat.S_IMODE((root / "d/e").stat().st_mode) == 0o711
    assert (root / "d/e/f").read_text() == "new"
    assert os.listdir(root / "d/empty") == []
    run(layout, durable=False)  # not recorded yet: it may be asked for again
    assert sorted(os.listdir(root / "d")) == ["e", "empty", "f"]
    finish(layout)


def seen_at(root: Path) -> bool:
    return (root / "d").exists()


def test_a_directory_is_brought_only_with_just_the_payload_that_is_put_into_it(tmp_path: Path) -> None:
    layout, _ = small(tmp_path)
    steps = (
        make(b"index"),
        put(layout, b"index/Release"),
        put(layout, b"index/f"),
        make(b"above"),
        make(b"above/index"),
        put(layout, b"above/f"),
        put(layout, b"above/index/Release"),
        make(b"left"),
        put(layout, b"left/f"),
        make(b"into"),
        Step(Do.MOVE, b"into/moved", source=b"old"),
        put(layout, b"into/moved/f"),
        make(b"link"),
        put(layout, b"link/f"),
        make(b"good"),
        put(layout, b"good/f"),
    )
    stage = Path(os.fsdecode(layout.stage))
    (stage / "left/.~partial~").mkdir()
    (stage / "link/g").symlink_to("f")
    brought = bring_whole(layout, steps, Ranks(["Release"]))
    assert [path for do, path in shape(brought) if do == "BRING"] == [b"good"]
    (stage / "good/f").unlink()
    assert bring_whole(layout, steps, Ranks(["Release"])) == steps, "a file that did not come"
    assert bring_whole(layout, (put(layout, b"x/y"),), NO_INDEXES)[0].do is Do.PUT


def test_what_stands_in_the_place_of_a_brought_directory_is_exchanged_for_it(tmp_path: Path) -> None:
    for kind in ("file", "directory", "symlink"):
        layout, root = small(tmp_path / kind)
        if kind == "file":
            (root / "d").write_text("old")
        elif kind == "directory":
            (root / "d/full").mkdir(parents=True)
        else:
            (root / "d").symlink_to("elsewhere")
        steps = bring_whole(layout, (make(b"d"), put(layout, b"d/f")), NO_INDEXES)
        assert shape(steps) == [("BRING", b"d")]
        begin(layout, Intent(1, steps))
        run(layout, durable=True)
        assert os.listdir(root / "d") == ["f"]
        assert not os.path.lexists(os.path.join(layout.stage, b"d"))


def test_a_staged_file_that_is_gone_is_no_proof_that_an_old_one_was_replaced(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    (root / "f").write_text("other")
    step = put(layout, b"f")
    (Path(os.fsdecode(layout.stage)) / "f").unlink()
    begin(layout, Intent(1, (step,)))
    with pytest.raises(PublishError, match="besides syncd"):
        run(layout)


@needs_root
def test_killed_before_any_system_call_while_directories_are_brought(tmp_path: Path) -> None:
    """Of random plans those that bring something; resumed, killed again, resumed."""
    ranks, brought = Ranks(["dd"]), 0
    for seed in range(400, 440):
        count = 0
        while True:
            case = Case(seed, tmp_path / f"{seed}-{count}", ranks)
            steps = bring_whole(case.layout, case.plan.steps, ranks)
            if not any(step.do is Do.BRING for step in steps):
                break
            begin(case.layout, Intent(1, steps))
            if not killed_at(lambda trip, c=case: run(c.layout, durable=False, trip=trip), count):
                brought += 1
                case.assert_published()
                break
            if count % 3 == 0:
                killed_at(lambda trip, c=case: run(c.layout, durable=False, trip=trip), count % 7)
            again = pending(case.layout)
            assert again is not None
            run(case.layout, durable=False)
            case.assert_published()
            remove_all(os.fsencode(case.home))
            count += 1
        if brought == 4:
            return
    raise AssertionError("too few of the plans brought a directory")
