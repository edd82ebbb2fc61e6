"""Publishing when something is wrong: symlinks swapped in, full disks, restarts, odd modes; and keeping versions."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from syncd.model import UNTOLD, Entry, Kind
from syncd.publish.io_below import Below, remove_all
from syncd.publish.io_publish import (
    BOOT_ID,
    DiskFull,
    Layout,
    abandon,
    begin,
    check_staged,
    finish,
    pending,
    prepare,
    run,
    sweep,
)
from syncd.publish.io_version import Versions, adopt, current, expire, finish_version, publish_version, roll_back
from syncd.publish.steps import Do, Intent, PublishError, Step
from tests.syncd.disk_tree import killed_at


def small(tmp_path: Path) -> tuple[Layout, Path]:
    root = tmp_path / "tree"
    root.mkdir(exist_ok=True)
    layout = Layout(os.fsencode(root), os.fsencode(tmp_path / "work"))
    prepare(layout)
    return layout, root


def put(layout: Layout, path: bytes, content: bytes = b"new") -> Step:
    place = os.path.join(layout.stage, path)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, "wb") as file:
        file.write(content)
    found = os.stat(place)
    return Step(Do.PUT, path, entry=Entry(path, Kind.FILE, 0o644, found.st_size, found.st_mtime_ns))


def do(layout: Layout, *steps: Step) -> None:
    begin(layout, Intent(1, steps))
    run(layout, durable=False)
    finish(layout)


def test_a_symlink_swapped_in_leads_nowhere(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    (root / "d").symlink_to(outside)
    victim = Entry(b"d/victim", Kind.FILE, 0o777)
    steps = [
        put(layout, b"d/victim"),
        Step(Do.DELETE, b"d/victim"),
        Step(Do.ATTR, b"d/victim", entry=victim),
        Step(Do.MAKE, b"d/new", entry=Entry(b"d/new", Kind.DIRECTORY, 0o755)),
        Step(Do.LINK, b"x", source=b"d/victim"),
        Step(Do.PARK, b"x", source=b"d/victim", slot=0),
        Step(Do.SYMLINK, b"d/s", entry=Entry(b"d/s", Kind.SYMLINK, 0o777, target=b"x")),
    ]
    for step in steps:
        try:
            do(layout, step)
        except PublishError as error:
            assert "besides syncd" in str(error)  # noqa: PT017 (some steps have nothing to do, and do nothing)
        finish(layout)
    assert (outside / "victim").read_text() == "untouched"
    assert stat.S_IMODE((outside / "victim").stat().st_mode) != 0o777
    assert os.listdir(outside) == ["victim"]
    assert not (root / "x").exists()


def test_a_symlink_itself_is_replaced_not_followed(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (root / "f").symlink_to(outside)
    do(layout, put(layout, b"f"))
    assert (root / "f").read_text() == "new"
    (root / "g").symlink_to(outside)
    do(layout, Step(Do.ATTR, b"g", entry=Entry(b"g", Kind.FILE, 0o777, mtime_ns=5)))
    assert outside.read_text() == "untouched"
    assert stat.S_IMODE(outside.stat().st_mode) != 0o777
    assert outside.stat().st_mtime_ns != 5


def test_a_time_of_zero_is_a_time_and_only_untold_is_none(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    (root / "d").mkdir()
    (root / "links").mkdir()
    for mtime_ns, found in ((7, 7), (0, 0), (-9, -9), (UNTOLD, -9)):
        for path in (b"d", b""):
            do(layout, Step(Do.ATTR, path, entry=Entry(path, Kind.DIRECTORY, 0o711, mtime_ns=mtime_ns)))
            place = root / os.fsdecode(path)
            assert (stat.S_IMODE(place.stat().st_mode), place.stat().st_mtime_ns) == (0o711, found)
        link = Entry(b"links/l", Kind.SYMLINK, 0o777, mtime_ns=mtime_ns, target=b"d")
        do(layout, Step(Do.SYMLINK, b"links/l", entry=link))
        assert mtime_ns == UNTOLD or (root / "links/l").lstat().st_mtime_ns == found
    file = put(layout, b"f")
    assert file.entry is not None
    assert check_staged(layout, [file._replace(entry=file.entry._replace(mtime_ns=UNTOLD))]) == {}
    assert check_staged(layout, [file._replace(entry=file.entry._replace(mtime_ns=0))]).keys() == {b"f"}


def test_every_kind_replaces_every_other(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    for old in ("file", "directory", "symlink"):
        for new in ("file", "directory", "symlink"):
            if old == "file":
                (root / "x").write_text("old")
            elif old == "directory":
                (root / "x" / "full").mkdir(parents=True)
            else:
                (root / "x").symlink_to("old")
            step = {
                "file": put(layout, b"x"),
                "directory": Step(Do.MAKE, b"x", entry=Entry(b"x", Kind.DIRECTORY, 0o755)),
                "symlink": Step(Do.SYMLINK, b"x", entry=Entry(b"x", Kind.SYMLINK, 0o777, target=b"y")),
            }[new]
            do(layout, step)
            found = (root / "x").lstat().st_mode
            kinds = {"file": stat.S_ISREG, "directory": stat.S_ISDIR, "symlink": stat.S_ISLNK}
            assert kinds[new](found)
            if new == "directory":
                assert os.listdir(root / "x") == []
                (root / "x").rmdir()
            else:
                (root / "x").unlink()


def test_what_was_staged_is_looked_at_before_it_is_published(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    good, other, gone, directory = (put(layout, name) for name in (b"good", b"other", b"gone", b"dir"))
    (root.parent / "work/stage/other").write_text("changed")
    (root.parent / "work/stage/gone").unlink()
    (root.parent / "work/stage/dir").unlink()
    (root.parent / "work/stage/dir").mkdir()
    assert check_staged(layout, [good, other, gone, directory]) == {
        b"other": "it changed again at the parent",
        b"gone": "it was not transferred",
        b"dir": "it is no longer a file at the parent",
    }


def test_after_a_restart_of_the_machine_nothing_is_guessed(tmp_path: Path) -> None:
    layout, _ = small(tmp_path)
    begin(layout, Intent(1, (put(layout, b"d/f"), Step(Do.DELETE, b"old"))))
    intent = tmp_path / "work/intent"
    intent.write_bytes(b"0" * len(Path(os.fsdecode(BOOT_ID)).read_bytes().strip()) + intent.read_bytes()[36:])
    again = pending(layout)
    assert again is not None
    assert not again.trusted
    with pytest.raises(PublishError, match="went down during a publish"):
        run(layout)
    assert abandon(layout) == (b"d/f", b"old")
    assert pending(layout) is None


def test_a_damaged_note_is_told(tmp_path: Path) -> None:
    layout, _ = small(tmp_path)
    begin(layout, Intent(1, (put(layout, b"f"),)))
    note = tmp_path / "work/intent"
    note.write_bytes(note.read_bytes()[:-3])
    with pytest.raises(PublishError, match="damaged"):
        pending(layout)


def test_work_on_another_file_system_is_refused(tmp_path: Path) -> None:
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("/dev/shm is not another file system here")
    (tmp_path / "tree").mkdir()
    work = f"/dev/shm/nearpath-test-{os.getpid()}"
    try:
        with pytest.raises(PublishError, match="not on the file system of"):
            prepare(Layout(os.fsencode(tmp_path / "tree"), work.encode()))
    finally:
        remove_all(work.encode())
        os.rmdir(work)


needs_root = pytest.mark.skipif(
    os.getuid() != 0, reason="needs root: to mount a small file system, or to become another user"
)


@needs_root
@pytest.mark.parametrize("mode", ["live", "atomic"])
def test_a_full_disk_stops_between_two_steps_and_goes_on_later(tmp_path: Path, mode: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=100", "none", disk], check=True)
    try:
        layout, root = small(disk)
        for number in range(20):
            (root / f"old{number}").write_text("0")
        before = sorted(os.listdir(root))
        versions = Versions(layout.root, os.fsencode(disk / "versions"), layout.work)
        if mode == "atomic":
            adopt(versions)
        steps = [Step(Do.MAKE, b"d%d" % n, entry=Entry(b"d%d" % n, Kind.DIRECTORY, 0o755)) for n in range(90)]
        intent = Intent(1, (*steps, Step(Do.DELETE, b"old0")))
        begin(layout, intent)
        with pytest.raises(DiskFull, match="No space left on device: make space"):
            run(layout) if mode == "live" else publish_version(versions, intent, 0.0)
        assert "old0" in os.listdir(root)
        if mode == "atomic":
            assert sorted(os.listdir(root)) == before
            assert current(versions) == 0
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", disk], check=True)
        if mode == "live":
            assert run(layout) == intent
            finish(layout)
        else:
            publish_version(versions, intent, 0.0)
            finish_version(versions, intent)
        assert sorted(os.listdir(root)) == sorted([*before[1:], *(f"d{n}" for n in range(90))])
    finally:
        subprocess.run(["umount", disk], check=True)


@needs_root
def test_read_only_directories_of_ours_are_no_obstacle(tmp_path: Path) -> None:
    for above in (tmp_path, *tmp_path.parents[:3]):
        above.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)

    def as_nobody(trip: Callable[[str], None]) -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        layout, root = small(home)
        (root / "ro" / "sub").mkdir(parents=True)
        (root / "ro" / "old").write_text("x")
        (root / "ro" / "sub").chmod(0o555)
        (root / "ro").chmod(0o555)
        do(layout, put(layout, b"ro/f"), Step(Do.DELETE, b"ro/old"), Step(Do.MOVE, b"sub", source=b"ro/sub"))
        assert sorted(os.listdir(root / "ro")) == ["f"]
        assert stat.S_IMODE((root / "ro").stat().st_mode) == 0o555
        assert stat.S_IMODE((root / "sub").stat().st_mode) == 0o555
        do(layout, Step(Do.DELETE, b"ro"))
        assert sweep(layout) == 2
        root.chmod(0o555)
        do(layout, put(layout, b"f"), Step(Do.DELETE, b"sub"))
        assert os.listdir(root) == ["f"]
        assert stat.S_IMODE(root.stat().st_mode) == 0o555
        do(layout, put(layout, b"g"), Step(Do.ATTR, b"", entry=Entry(b"", Kind.DIRECTORY, 0o500, mtime_ns=4)))
        assert (stat.S_IMODE(root.stat().st_mode), root.stat().st_mtime_ns) == (0o500, 4)

    assert not killed_at(as_nobody, 1_000_000)


# --- versions -----------------------------------------------------------------------------------------------------------


def test_versions_are_kept_for_a_grace_time_and_can_come_back(tmp_path: Path) -> None:
    layout, root = small(tmp_path)
    (root / "f").write_text("0")
    inode = root.stat().st_ino
    versions = Versions(layout.root, os.fsencode(tmp_path / "tree.versions"), layout.work)
    with pytest.raises(PublishError, match="taken over by itself"):
        current(versions)
    adopt(versions)
    adopt(versions)
    assert root.is_symlink()
    assert os.readlink(root) == "tree.versions/0"
    assert root.stat().st_ino == inode, "the directory itself became version 0"
    for number in (1, 2):
        intent = Intent(number, (put(layout, b"f", b"%d" % number),))
        publish_version(versions, intent, 1000.0 * number)
        finish_version(versions, intent)
    assert [(root / "f").read_text(), current(versions)] == ["2", 2]
    assert expire(versions, 1900.0, 1000.0) == []
    roll_back(versions, 1, 2500.0)
    assert (root / "f").read_text() == "1"
    assert expire(versions, 2500.0, 1000.0) == [0]
    assert expire(versions, 9999.0, 1000.0) == [2]
    with pytest.raises(PublishError, match="no version 2: there are: 1"):
        roll_back(versions, 2, 3000.0)
    assert sweep(layout) == 4
    with pytest.raises(PublishError, match="older than 1"):
        publish_version(versions, Intent(0, ()), 0.0)


def test_a_public_name_that_does_not_exist_becomes_an_empty_version(tmp_path: Path) -> None:
    versions = Versions(os.fsencode(tmp_path / "t"), os.fsencode(tmp_path / "v"), os.fsencode(tmp_path / "w"))
    adopt(versions)
    assert current(versions) == 0
    assert os.listdir(tmp_path / "t") == []


def test_removing_takes_no_recursion(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "trash")
    fd = os.open(tmp_path / "trash", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir(b"d", dir_fd=fd)
        deeper = os.open(b"d", os.O_RDONLY, dir_fd=fd)
        os.close(os.open(b"f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        fd = deeper
    os.close(fd)
    assert remove_all(os.fsencode(tmp_path / "trash")) == 3000
    assert os.listdir(tmp_path / "trash") == []


def test_only_a_bounded_number_of_directories_is_kept_open(tmp_path: Path) -> None:
    for number in range(400):
        (tmp_path / str(number) / "d").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    with Below(os.fsencode(tmp_path)) as below:
        for number in range(400):
            assert below.stat(b"%d/d" % number) is not None
            fd, name = below.at(b"%d/d/f" % number)
            assert name == b"f"
            os.fstat(fd)
        assert len(os.listdir("/proc/self/fd")) < before + 135
    assert len(os.listdir("/proc/self/fd")) == before
