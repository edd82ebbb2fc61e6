"""fanotify: the decoder with bytes as the kernel lays them out, and SourceTree with one mark instead of many watches."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncd.source.fanotify import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    MODIFY,
    ONDIR,
    Q_OVERFLOW,
    RENAME,
    SELF,
    Decoder,
    Event,
    EventError,
    number_of,
    tells_of,
)
from syncd.source.io_fanotify import Fanotify, fanotify_problem
from syncd.source.io_source import SourceTree
from syncd.source.io_watch import News, Watcher, WatchError
from tests.syncd.churn import scan
from tests.syncd.watched import PROBLEM, Start, indexed, needs_fanotify, settle, told, write

# --- the decoder --------------------------------------------------------------------------------------------------------

EXT4 = struct.pack("=II", 4711, 0xC0FFEE)
"""FILEID_INO32_GEN (type 1): inode and generation."""
LONG = bytes(range(128))
"""The longest handle there may be (MAX_HANDLE_SZ)."""
D, E, F, X = number_of(1, EXT4), number_of(1, EXT4[::-1]), number_of(0x81, EXT4 + b"....."), number_of(2, LONG)
HANDLES = {D: (1, EXT4), E: (1, EXT4[::-1]), F: (0x81, EXT4 + b"....."), X: (2, LONG)}


def record(kind: int, number: int, name: bytes | None = None) -> bytes:
    """struct fanotify_event_info_fid: header, fsid, struct file_handle, and the name up to a multiple of 4."""
    handle_type, handle = HANDLES[number]
    body = struct.pack("=8sIi", b"anyfsid.", len(handle), handle_type) + handle
    if name is not None:
        body += name + b"\0"
    body += b"\0" * (-len(body) % 4)
    return struct.pack("=BBH", kind, 0, 4 + len(body)) + body


def raw(event: Event, more: bytes = b"") -> bytes:
    """As fanotify(7) says; `more` are further records."""
    records = b""
    if event.new_directory:
        records += record(10, event.directory, event.name) + record(12, event.new_directory, event.new_name)
    elif event.directory and event.name == SELF:
        records += record(3, event.directory)
    elif event.directory:
        records += record(2, event.directory, event.name)
    if event.target:
        records += record(1, event.target)
    records += more
    return struct.pack("=IBBHQii", 24 + len(records), 3, 0, 24, event.mask, -1, os.getpid()) + records


EVENTS = [
    Event(CREATE | MODIFY | CLOSE_WRITE, D, b"plain", F),
    Event(CREATE | ONDIR, E, b"\n-\xff\xfe \xe8\xbf\x91", X),
    Event(RENAME | ONDIR, D, b"x" * 255, F, X, b"y"),
    Event(RENAME, X, b"abc", F, X, b"abcd"),
    Event(ATTRIB | ONDIR, D, SELF),
    Event(ATTRIB, 0, b"", F),
    Event(Q_OVERFLOW),
    Event(DELETE, F, b"z" * 255, X),
]
STREAM = b"".join(map(raw, EVENTS))


def test_events_whole() -> None:
    assert Decoder().feed(STREAM) == EVENTS


def test_events_cut_at_every_byte() -> None:
    for cut in range(len(STREAM) + 1):
        decoder = Decoder()
        assert decoder.feed(STREAM[:cut]) + decoder.feed(STREAM[cut:]) == EVENTS
    decoder = Decoder()
    assert [event for i in range(len(STREAM)) for event in decoder.feed(STREAM[i : i + 1])] == EVENTS


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_cut_anywhere(cuts: list[int]) -> None:
    at = sorted({0, len(STREAM), *cuts})
    decoder = Decoder()
    assert [e for a, b in itertools.pairwise(at) for e in decoder.feed(STREAM[a:b])] == EVENTS


def test_records_of_other_kinds_are_passed_over() -> None:
    pidfd = struct.pack("=BBHi", 4, 0, 8, -1)
    event = Event(CREATE, D, b"f", F)
    assert Decoder().feed(raw(event, pidfd) + raw(event)) == [event, event]


@pytest.mark.parametrize(
    ("known", "kept"),
    [
        (set(), [6]),
        ({D}, [0, 2, 4, 6]),
        ({E}, [1, 6]),
        # By its own number: a directory that is renamed or deleted where nothing is known.
        ({F}, [2, 6, 7]),
        ({X}, [1, 2, 3, 6]),
    ],
)
def test_events_of_nothing_known_are_only_counted(known: set[int], kept: list[int]) -> None:
    decoder = Decoder()
    assert decoder.feed(STREAM, known) == [EVENTS[i] for i in kept]
    assert decoder.foreign == len(EVENTS) - len(kept)
    assert tells_of(STREAM, known) == (kept[0] + 1, True)
    assert tells_of(b"".join(raw(event) for i, event in enumerate(EVENTS) if i not in kept), known) == (
        len(EVENTS) - len(kept),
        False,
    )


def test_a_busy_directory_elsewhere_hides_nothing_of_ours() -> None:
    elsewhere = [Event(CREATE, X, b"f%d" % i, D if i % 2 else E) for i in range(9)]
    ours, gone = Event(CREATE, D, b"g", E), Event(DELETE | ONDIR, X, b"d", D)
    assert tells_of(b"".join(map(raw, elsewhere)), {D}) == (9, False)
    for event in (ours, gone):
        assert tells_of(b"".join(map(raw, [*elsewhere, event, *elsewhere])), {D}) == (10, True)
    assert tells_of(b"".join(map(raw, elsewhere)), {X}) == (1, True)


def test_handles_that_differ_in_anything_have_other_numbers() -> None:
    handles = [(1, b""), (1, b"\0"), (1, b"\0\0"), (2, b"\0"), (1, b"\1"), (-1, b"\0")]
    assert len({number_of(*handle) for handle in handles}) == len(handles)


def changed(data: bytes, at: int, form: str, value: int) -> bytes:
    packed = struct.pack(form, value)
    return data[:at] + packed + data[at + len(packed) :]


@pytest.mark.parametrize(
    ("at", "form", "value", "why"),
    [
        (0, "=I", 23, "event of 23 bytes"),
        (0, "=I", 0, "event of 0 bytes"),
        (0, "=I", 1 << 20, "event of 1048576 bytes"),
        (4, "=B", 4, "version 4, not 3"),
        (6, "=H", 23, "23 bytes of metadata"),
        (6, "=H", 1000, "1000 bytes of metadata"),
        (26, "=H", 3, "record of 3 bytes"),
        (26, "=H", 0, "record of 0 bytes"),
        (26, "=H", 1000, "record of 1000 bytes"),
        (26, "=H", 16, "no room for a handle"),
        (36, "=I", 9 + 8, "handle of 17 bytes does not fit"),
        (36, "=I", 0xFFFF_FFFF, "handle of 4294967295 bytes"),
        (36, "=I", 8 + 6, "name without its end"),
    ],
)
def test_what_cannot_be_an_event_is_refused(at: int, form: str, value: int, why: str) -> None:
    event = raw(Event(CREATE, D, b"names", 0))
    assert len(event) == 24 + 4 + 8 + 8 + 8 + 8
    broken = changed(event, at, form, value)
    if "without its end" in why:
        broken = broken[:-2] + b"xx"
    with pytest.raises(EventError, match=why):
        Decoder().feed(broken)


def test_bytes_behind_the_last_record_are_refused() -> None:
    with pytest.raises(EventError, match="3 bytes behind"):
        Decoder().feed(raw(Event(CREATE, D, b"f"), b"\0\0\0"))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_events_or_an_event_error(data: bytes, is_known: bool) -> None:
    try:
        events = Decoder().feed(data, set() if is_known else None)
    except EventError:
        return
    assert len(events) <= len(data) // 24


@given(st.integers(0, len(STREAM) - 1), st.binary(min_size=1, max_size=8))
def test_a_damaged_stream_gives_events_or_an_event_error(at: int, damage: bytes) -> None:
    try:
        events = Decoder().feed(STREAM[:at] + damage + STREAM[at + len(damage) :])
    except EventError:
        return
    assert len(events) <= len(STREAM) // 24


# --- a real file system -------------------------------------------------------------------------------------------------

CAP_SYS_ADMIN = 1 << 21
rights = int(
    next(line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line).split()[1], 16
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not rights & CAP_SYS_ADMIN,
    reason="mounting, and giving up rights, needs root and CAP_SYS_ADMIN",
)


@pytest.fixture
def watch() -> str:
    return "fanotify"


@needs_fanotify
def test_a_deleted_directory_is_forgotten_at_once(root: bytes, start: Start) -> None:
    for i in range(20):
        write(root, b"d/%d/f" % i)
    source = start()
    settle(source)
    assert source.status.watches == 22
    shutil.rmtree(os.path.join(root, b"d"))
    settle(source)
    assert source.status.watches == 1


@needs_fanotify
@pytest.mark.parametrize("times", [2, 3])
def test_a_directory_that_went_to_and_fro_is_where_it_ended(root: bytes, start: Start, times: int) -> None:
    """The kernel tells the third of three renames by the first one's event, so the order of events is not the order of
    what happened."""
    write(root, b"a/x/deep/f")
    write(root, b"b/f")
    source = start()
    settle(source)
    here, there = os.path.join(root, b"a/x"), os.path.join(root, b"b/y")
    for _ in range(times):
        os.rename(here, there)
        here, there = there, here
    settle(source)
    assert indexed(source) == scan(root)
    at = source.status.sequence
    path = os.path.relpath(here, root)
    with open(os.path.join(here, b"deep/f"), "ab") as file:
        file.write(b"more")
    assert told(source, at) == [f"u {os.fsdecode(path)}/deep/f"]


@needs_fanotify
def test_paths_follow_when_directories_far_above_are_renamed(root: bytes, start: Start) -> None:
    write(root, b"a/b/c/d/f")
    source = start()
    settle(source)
    os.rename(os.path.join(root, b"a"), os.path.join(root, b"z"))
    with open(os.path.join(root, b"z/b/c/d/f"), "ab") as file:
        file.write(b"at once, before anything was taken")
    settle(source)
    assert indexed(source) == scan(root)
    os.rename(os.path.join(root, b"z/b"), os.path.join(root, b"b"))
    settle(source)
    at = source.status.sequence
    os.chmod(os.path.join(root, b"b/c/d/f"), 0o600)
    assert told(source, at) == ["u b/c/d/f"]


@needs_fanotify
def test_what_happens_elsewhere_in_the_file_system_is_counted_and_dropped(
    root: bytes, start: Start, tmp_path: Path
) -> None:
    write(root, b"f")
    source = start()
    settle(source)
    at = source.status.sequence
    foreign = source._watcher.foreign
    for i in range(500):
        write(os.fsencode(tmp_path), b"elsewhere/%d/f" % i)
    shutil.rmtree(tmp_path / "elsewhere")
    settle(source)
    assert source._watcher.foreign - foreign >= 1000
    assert source._watcher.events < 10
    assert source.status.watches == 1
    assert told(source, at) == []


@pytest.fixture
def kernel(root: bytes) -> Iterator[Fanotify]:
    """The tree with the directories a, a/x and b, known and without news; nobody but the test reads."""
    os.makedirs(os.path.join(root, b"a/x"))
    os.mkdir(os.path.join(root, b"b"))
    kernel = Fanotify(root)
    for path, above in ((b"", None), (b"a", b""), (b"a/x", b"a"), (b"b", b"")):
        assert see(kernel, root, path, above)[1]
    yield kernel
    kernel.close()


def see(kernel: Fanotify, root: bytes, path: bytes, above: bytes | None) -> tuple[int | None, bool]:
    """What `Disk` does when it opens a directory."""
    parent = None
    if above is not None:
        parent = next(wd for wd in kernel.tree.below(kernel.tree.root_wd or 0) if kernel.tree.path(wd) == above)
    fd = os.open(os.path.join(root, path), os.O_RDONLY)
    try:
        return kernel.watch(fd, parent, os.path.basename(path), path)
    finally:
        os.close(fd)


def waiting(kernel: Fanotify) -> bytes:
    """All that is in the queue; others may be busy in the same file system."""
    data = b""
    with suppress(BlockingIOError):
        while True:
            data += os.read(kernel.fileno(), 1 << 18)
    return data


def news_of(kernel: Fanotify) -> News:
    news = News()
    kernel.take(waiting(kernel), news, 0.0)
    return news


@needs_fanotify
def test_a_directory_is_fresh_until_it_is_known(root: bytes, kernel: Fanotify) -> None:
    wd, fresh = see(kernel, root, b"a", b"")
    assert wd is not None
    assert not fresh
    kernel.unwatch(wd)
    assert see(kernel, root, b"a", b"") == (wd, True)


@needs_fanotify
def test_what_is_read_concerns_the_tree_or_is_dropped(root: bytes, kernel: Fanotify) -> None:
    write(root + b".aside", b"f")
    foreign = waiting(kernel)
    write(root, b"a/f")
    ours = waiting(kernel)
    assert not kernel.concerns(foreign)
    assert kernel.foreign >= 2
    assert kernel.concerns(foreign + ours)
    # What cannot be decoded is the owner's to find.
    assert kernel.concerns(foreign + b"\xff" * 24)
    with pytest.raises(EventError):
        kernel.take(foreign + b"\xff" * 24, News(), 0.0)


@needs_fanotify
def test_events_on_both_sides_of_a_rename_have_the_paths_of_their_time(root: bytes, kernel: Fanotify) -> None:
    write(root, b"a/x/before")
    os.rename(os.path.join(root, b"a/x"), os.path.join(root, b"b/y"))
    write(root, b"b/y/after")
    news = news_of(kernel)
    assert news.hints == {b"a/x/before": False, b"a/x": True, b"b/y": True, b"b/y/after": False}
    assert news.moves == [(b"a/x", b"b/y")]


@needs_fanotify
def test_both_names_of_a_merged_rename_are_looked_into(root: bytes, kernel: Fanotify) -> None:
    """The third rename is told by the first one's event: what is read last says that it is at a/x, and it is at b/y."""
    x, y = os.path.join(root, b"a/x"), os.path.join(root, b"b/y")
    for source, target in ((x, y), (y, x), (x, y)):
        os.rename(source, target)
    news = news_of(kernel)
    assert news.hints == {b"a/x": True, b"b/y": True}
    # Looked into, it is placed where it is.
    wd, fresh = see(kernel, root, b"b/y", b"b")
    assert not fresh
    assert wd is not None
    assert kernel.tree.path(wd) == b"b/y"


@needs_fanotify
def test_a_rename_moves_what_was_renamed_not_what_has_its_old_name_by_now(root: bytes, kernel: Fanotify) -> None:
    x, y = os.path.join(root, b"a/x"), os.path.join(root, b"b/y")
    os.rename(x, y)
    os.mkdir(x)
    # A walk comes to the new directory before the news are taken.
    wd, fresh = see(kernel, root, b"a/x", b"a")
    assert fresh
    assert wd is not None
    news_of(kernel)
    write(root, b"a/x/f")
    write(root, b"b/y/g")
    assert news_of(kernel).hints == {b"a/x/f": False, b"b/y/g": False}


@needs_fanotify
def test_a_directory_that_left_has_no_path_until_it_is_back(root: bytes, kernel: Fanotify) -> None:
    x, aside = os.path.join(root, b"a/x"), root + b".aside"
    os.rename(x, aside)
    write(aside, b"f")
    news = news_of(kernel)
    assert news.hints == {b"a/x": True}
    assert news.moves == []
    os.rename(aside, os.path.join(root, b"b/back"))
    write(root, b"b/back/g")
    assert news_of(kernel).hints == {b"b/back": True, b"b/back/g": False}


@needs_fanotify
def test_an_overflow_of_the_kernels_queue_is_told(root: bytes) -> None:
    kernel = Fanotify(root)
    try:
        limit = int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())
        if limit > 50_000:
            pytest.skip(f"fs.fanotify.max_queued_events is {limit}: filling it takes too long")
        for i in range(limit + 100):
            os.close(os.open(os.path.join(root, b"%d" % i), os.O_CREAT | os.O_WRONLY))
        news = News()
        while not news.overflowed:
            kernel.take(os.read(kernel.fileno(), 1 << 18), news, 0.0)
    finally:
        kernel.close()
    assert news.hints == {}


@needs_fanotify
@needs_root
def test_another_file_system_below_the_root_is_scanned(root: bytes, tmp_path: Path) -> None:
    mounted = os.path.join(root, b"m")
    os.mkdir(mounted)
    subprocess.run(["mount", "-t", "tmpfs", "nearpath-test", mounted], check=True)
    try:
        source = SourceTree(root, tmp_path / "store.db", cross_mounts=True, watch="fanotify")
        source.start()
        assert source._watcher.unwatched == {b"m": "it is on another file system than the one that is marked"}
        at = source.status.sequence
        write(root, b"m/d/f")
        source._poll_at_s = 0.0
        assert [line for line in told(source, at) if line.startswith("u m/")] == ["u m/d", "u m/d/f"]
        source.close()
    finally:
        subprocess.run(["umount", mounted], check=True)


# --- where it cannot be had ---------------------------------------------------------------------------------------------


def test_a_file_system_without_handles_is_named() -> None:
    problem = fanotify_problem(b"/proc")
    assert problem in (PROBLEM, "the file system has no file handles")
    assert problem


@needs_root
def test_without_the_right_to_it_the_capability_is_named() -> None:
    os.seteuid(65534)
    try:
        problem = fanotify_problem(b"/")
    finally:
        os.seteuid(0)
    assert problem.endswith(": give the unit CAP_SYS_ADMIN"), problem


@needs_root
def test_overlayfs_is_refused_since_its_handles_change(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "nearpath-test", tmp_path], check=True)
    try:
        for name in ("lower", "upper", "work", "tree"):
            (tmp_path / name).mkdir()
        options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        mount = ["mount", "-t", "overlay", "nearpath-test", "-o", options, tmp_path / "tree"]
        outcome = subprocess.run(mount, capture_output=True, text=True, check=False)
        if outcome.returncode:
            pytest.skip(f"no overlayfs here: {outcome.stderr.strip()}")
        try:
            problem = fanotify_problem(os.fsencode(tmp_path / "tree"))
        finally:
            subprocess.run(["umount", tmp_path / "tree"], check=True)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert problem == (PROBLEM or "the file system has no file handles")


def test_a_source_that_cannot_have_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(WatchError):
        SourceTree(b"/proc/self/fdinfo", tmp_path / "store.db", watch="fanotify")


def test_a_tree_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert fanotify_problem(os.fsencode(missing)) in (
        PROBLEM,
        f"{missing} cannot be opened (No such file or directory)",
    )


@needs_fanotify
def test_nothing_is_left_open(root: bytes) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        Watcher(lambda: None, kernel=Fanotify(root)).close()
        assert not fanotify_problem(root)
        assert fanotify_problem(b"/proc")
    assert len(os.listdir("/proc/self/fd")) == len(before)
