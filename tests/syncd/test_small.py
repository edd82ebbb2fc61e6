"""Small files by one request: which go that way, what is read below a tree, what is written into a stage, and all of it."""

# ruff: noqa: ASYNC230, ASYNC240 (a test has its loop to itself)

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from core.exclude import Exclude
from core.io_http import bind_tcp, bound_address
from syncd.model import Entry, Kind
from syncd.publish.io_publish import DiskFull, Layout, check_staged
from syncd.publish.plan import Fetch
from syncd.publish.steps import Do, PublishError, Step
from syncd.source.io_scan import Disk
from syncd.source.row import Written
from syncd.transfer import io_parent, io_serve, wire
from syncd.transfer.io_parent import Parent, ParentError, ParentRefuses
from syncd.transfer.io_serve import Serving
from syncd.transfer.io_small import CHANGED, NO_FILE, UNREADABLE, VANISHED, read_files, stage_files
from syncd.transfer.rsync import Options
from syncd.transfer.small import DELTA_BYTES, divide
from syncd.transfer.wire import SMALL_FILE_BYTES, Content, Lack, Linked, decode_files
from tests.syncd.serving import TOKEN, Site, make_certificate, served
from tests.syncd.small_disk import mounted

# --- which ------------------------------------------------------------------------------------------------------------


def fetch(size: int, number: int = 0, exact: bool = False) -> Fetch:
    return Fetch(Entry(b"f%d" % number, Kind.FILE, 0o644, size), exact)


def test_small_files_go_by_request_and_others_by_rsync() -> None:
    fetches = [fetch(SMALL_FILE_BYTES), fetch(SMALL_FILE_BYTES + 1), fetch(0, exact=True), fetch(10**9)]
    assert divide(fetches, Options()) == ((fetches[0], fetches[2]), (fetches[1], fetches[3]))
    assert divide([], Options()) == ((), ())


@pytest.mark.parametrize("options", [Options(xattrs=True), Options(acls=True), Options(owners=True)])
def test_what_a_request_does_not_bring_goes_by_rsync(options: Options) -> None:
    assert divide([fetch(1)], options) == ((), (fetch(1),))


def test_small_files_go_by_request_however_many() -> None:
    many = tuple(fetch(SMALL_FILE_BYTES, number) for number in range(1000))
    assert divide(many, Options()) == (many, ())
    assert divide((*many, fetch(10**9)), Options()) == (many, (fetch(10**9),))


def test_what_rsync_would_compress_or_slow_down_goes_by_rsync_when_it_is_much() -> None:
    full = tuple(fetch(SMALL_FILE_BYTES, number) for number in range(DELTA_BYTES // SMALL_FILE_BYTES))
    for options in (Options(compress=True), Options(limit_bytes_s=10**9)):
        assert divide(full, options) == (full, ())
        assert divide((*full, fetch(1)), options) == ((), (*full, fetch(1)))


def test_a_bandwidth_limit_holds() -> None:
    assert divide([fetch(1000), fetch(1000, 1)], Options(limit_bytes_s=2000))[1] == ()
    assert divide([fetch(1000), fetch(1001, 1)], Options(limit_bytes_s=2000))[0] == ()


# --- reading ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


def read(tree: Path, *paths: bytes, exclude: Sequence[str] = ()) -> list[wire.Answer]:
    return decode_files(len(paths), read_files(os.fsencode(tree), paths, Exclude(exclude)))


def test_files_are_read_with_mode_and_time(tree: Path) -> None:
    (tree / "d").mkdir()
    for name, size in ((b"empty", 0), (b"d/\xff\n", SMALL_FILE_BYTES)):
        path = os.path.join(os.fsencode(tree), name)
        with open(path, "wb") as file:
            file.write(b"x" * size)
        os.chmod(path, 0o4751)
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + size))
    assert read(tree, b"empty", b"d/\xff\n") == [
        Content(0o4751, 1_700_000_000_123_456_789, b""),
        Content(0o4751, 1_700_000_000_123_456_789 + SMALL_FILE_BYTES, b"x" * SMALL_FILE_BYTES),
    ]


def test_nothing_but_small_regular_files_inside_is_read(tree: Path) -> None:
    (tree.parent / "secret").write_bytes(b"secret")
    (tree / "large").write_bytes(b"x" * (SMALL_FILE_BYTES + 1))
    (tree / "plain").write_bytes(b"x")
    os.mkfifo(tree / "fifo")
    os.symlink("../secret", tree / "link")
    os.symlink("..", tree / "up")
    os.symlink("plain", tree / "inner")
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.open(tree, os.O_RDONLY)  # as a path the socket's name may be too long
        sock.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    asked = [b"large", b"fifo", b"link", b"up/secret", b"inner", b"socket", b"no", b"no/no", b"plain/x", b"", b"plain"]
    large, no, gone = Lack.TOO_LARGE, Lack.NO_FILE, Lack.GONE
    *refused, last = read(tree, *asked)
    assert refused == [large, no, no, gone, no, no, gone, gone, gone, no]
    assert isinstance(last, Content)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_what_may_not_be_read_is_told_apart(tree: Path) -> None:
    (tree / "private").write_bytes(b"x")
    (tree / "private").chmod(0)
    assert read(tree, b"private") == [Lack.UNREADABLE]


def test_a_tree_that_is_not_there(tree: Path) -> None:
    with pytest.raises(PublishError, match="check the tree's path"):
        read(tree / "nowhere", b"a")


@pytest.mark.parametrize("how", ["appended", "cut", "rewritten", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_not_sent(
    tree: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    place = tree / "f"
    place.write_bytes(b"x" * 1000)
    (tree / "new").write_bytes(b"y" * 1000)
    real_read = os.read

    def disturbed(fd: int, size: int) -> bytes:
        if how == "replaced":
            os.replace(tree / "new", place) if (tree / "new").exists() else None
        else:
            with open(place, "r+b") as file:
                file.write(b"y") if how == "rewritten" else file.truncate(1001 if how == "appended" else 999)
        return real_read(fd, size)

    monkeypatch.setattr(os, "read", disturbed)
    assert read(tree, b"f") == [Lack.CHANGED]


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_what_is_excluded_is_what_rsync_excludes(tree: Path) -> None:
    patterns = ["/.work", "tmp/", "*.swp", "a/b"]
    paths = [b".work/x", b"d/.work", b".workers", b"d/tmp/x", b"d/tmpx", b"d/x.swp", b"a/b/c", b"x/a/b", b"a/bc"]
    for path in paths:
        os.makedirs(os.path.dirname(os.fsencode(tree) + b"/" + path), exist_ok=True)
        with open(os.fsencode(tree) + b"/" + path, "wb") as file:
            file.write(b"x")
    arguments = ["rsync", "-r", *[f"--exclude={pattern}" for pattern in patterns], f"{tree}/", f"{tree.parent}/out/"]
    subprocess.run(arguments, check=True)
    left = [path for path in paths if os.path.exists(os.fsencode(tree.parent) + b"/out/" + path)]
    answers = read(tree, *paths, exclude=patterns)
    assert [path for path, answer in zip(paths, answers, strict=True) if answer is not Lack.GONE] == left


# --- staging ------------------------------------------------------------------------------------------------------------


def told(path: bytes, content: bytes, mode: int = 0o644, mtime_ns: int = 1_700_000_000_123_456_789) -> Entry:
    return Entry(path, Kind.FILE, mode, len(content), mtime_ns)


def sent(entry: Entry, content: bytes) -> Content:
    return Content(entry.mode, entry.mtime_ns, content)


def staged(stage: Path, path: bytes) -> tuple[int, int, bytes]:
    place = os.path.join(os.fsencode(stage), path)
    found = os.lstat(place)
    assert stat.S_ISREG(found.st_mode)
    with open(place, "rb") as file:
        return stat.S_IMODE(found.st_mode), found.st_mtime_ns, file.read()


@pytest.mark.parametrize("mode", [0o644, 0o400, 0o6755, 0o1777])
@pytest.mark.parametrize("mtime_ns", [0, -1_000_000_001, 1_700_000_000_123_456_789])
def test_a_staged_file_is_as_it_was_announced(tree: Path, mode: int, mtime_ns: int) -> None:
    entry = told(b"a/b/\xff\n", b"content", mode, mtime_ns)
    assert stage_files(os.fsencode(tree), [entry], [sent(entry, b"content")]) == {}
    assert staged(tree, entry.path) == (mode, mtime_ns, b"content")
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o700
    layout = Layout(b"/nowhere", os.fsencode(tree.parent))
    os.rename(tree, layout.stage)
    assert check_staged(layout, [Step(Do.PUT, entry.path, entry)]) == {}  # and a publish takes it


def test_what_was_written_is_told_as_the_disk_has_it(tree: Path) -> None:
    modes = (0o644, 0o755, 0o600, 0o666, 0o4755, 0o444)
    entries = [told(b"d/f%o" % mode, b"x")._replace(mode=mode) for mode in modes]
    one, two = told(b"one", b"x"), told(b"two", b"x")
    written: Written = {}
    answers = [*(sent(entry, b"x") for entry in entries), sent(one, b"x"), wire.Linked(len(entries))]
    mask = os.umask(0o077)
    try:
        assert stage_files(os.fsencode(tree), [*entries, one, two], answers, True, written) == {}
    finally:
        os.umask(mask)
    disk = Disk(os.fsencode(tree))
    try:
        for entry in entries:
            found, row = disk.look(entry.path), written[entry.path]
            assert found is not None
            assert row is not None
            assert found._replace(ctime_ns=row.ctime_ns) == row
            assert row.mode == stat.S_IFREG | entry.mode
    finally:
        disk.close()
    assert written[b"one"] is written[b"two"] is None, "a further name moves the ctime"


def test_what_did_not_come_as_announced_is_not_written(tree: Path) -> None:
    entry = told(b"f", b"abc")
    answers = {
        CHANGED: [Content(0o644, entry.mtime_ns + 1, b"abc"), Content(0o644, entry.mtime_ns, b"ab")],
        NO_FILE: [Lack.NO_FILE],
        VANISHED: [Lack.GONE],
        UNREADABLE: [Lack.UNREADABLE],
    }
    answers[CHANGED] += [Lack.CHANGED, Lack.TOO_LARGE]
    for why, ways in answers.items():
        for answer in ways:
            assert stage_files(os.fsencode(tree), [entry], [answer]) == {b"f": why}
    assert os.listdir(tree) == []


def test_leftovers_give_way_and_symlinks_lead_nowhere(tree: Path) -> None:
    (tree.parent / "outside").mkdir()
    (tree.parent / "outside" / "f").write_bytes(b"kept")
    os.symlink("../outside", tree / "d")
    os.symlink("../outside/f", tree / "link")
    (tree / "file").write_bytes(b"old and longer")
    (tree / "above").write_bytes(b"a file where a directory is wanted")
    (tree / "dir" / "deep" / "er").mkdir(parents=True)
    (tree / "dir" / "deep" / "f").write_bytes(b"old")
    entries = [told(path, b"new") for path in (b"d/f", b"link", b"file", b"above/x", b"dir")]
    assert stage_files(os.fsencode(tree), entries, [sent(entry, b"new") for entry in entries]) == {}
    assert [staged(tree, entry.path)[2] for entry in entries] == [b"new"] * 5
    assert (tree.parent / "outside" / "f").read_bytes() == b"kept"
    assert sorted(os.listdir(tree.parent / "outside")) == ["f"]


def test_hard_links_stay_hard_links_when_they_are_wanted(tree: Path) -> None:
    entries = [told(b"a", b"x"), told(b"d/b", b"x"), told(b"c", b"x")._replace(mode=0o600)]
    answers: list[wire.Answer] = [sent(entries[0], b"x"), Linked(0), Linked(0)]
    assert stage_files(os.fsencode(tree), entries, answers) == {}
    assert os.path.samefile(tree / "a", tree / "d" / "b")
    assert staged(tree, b"c")[0] == 0o600  # it was announced otherwise: a file of its own until that is cleared up
    assert stage_files(os.fsencode(tree), entries, answers, hard_links=False) == {}
    assert (tree / "a").stat().st_nlink == 1
    # When the first was not as announced, the second can still be.
    assert stage_files(os.fsencode(tree), [told(b"a", b"xy"), entries[1]], answers[:2]) == {b"a": CHANGED}
    assert staged(tree, b"d/b")[2] == b"x"


def test_a_name_the_disk_does_not_take_fails_alone(tree: Path) -> None:
    entries = [told(b"a/" * 300 + b"x" * 255, b"x"), told(b"x" * 256, b"x"), told(b"good", b"x")]
    failed = stage_files(os.fsencode(tree), entries, [sent(entry, b"x") for entry in entries])
    assert failed == {b"x" * 256: "it cannot be written here: File name too long"}
    assert staged(tree, b"good")[2] == b"x"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "64k") as disk:
        yield disk


def test_a_full_disk_says_so_and_leaves_nothing_partial(small_disk: Path) -> None:
    entries = [told(b"a", b"x" * 40_000), told(b"b", b"y" * 40_000)]
    answers = [sent(entries[0], b"x" * 40_000), sent(entries[1], b"y" * 40_000)]
    with pytest.raises(DiskFull, match="No space left on device: make space"):
        stage_files(os.fsencode(small_disk), entries, answers)
    assert os.listdir(small_disk) == ["a"]


# --- over the network ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
async def site(tmp_path: Path, certificate: tuple[str, str]) -> AsyncIterator[Site]:
    async with served(tmp_path, certificate) as found:
        yield found


def stage_of(site: Site) -> bytes:
    return os.fsencode(site.stage)


async def test_small_files_arrive_byte_by_byte_in_as_many_answers_as_it_takes(site: Site) -> None:
    entries = [site.file(b"d%d/f%d\n\xff" % (i % 7, i), os.urandom(30_000 + i)).entry for i in range(300)]
    assert await site.parent.files("t", entries, stage_of(site)) == {}
    for entry in entries:
        with open(os.path.join(os.fsencode(site.source.disk), entry.path), "rb") as file:
            assert staged(site.stage, entry.path) == (entry.mode, entry.mtime_ns, file.read())
    assert site.server.sent_bytes["edge1"] > 300 * 30_000


async def test_each_path_that_failed_is_named_with_its_reason(site: Site) -> None:
    gone, newer, good, directory = (site.file(path).entry for path in (b"gone", b"newer", b"good", b"dir"))
    for name in ("gone", "dir"):
        (site.source.disk / name).unlink()
    (site.source.disk / "dir").mkdir()
    (site.source.disk / "newer").write_bytes(b"other")
    failed = await site.parent.files("t", [gone, newer, good, good, directory], stage_of(site))
    assert failed == {b"gone": VANISHED, b"newer": CHANGED, b"dir": NO_FILE}
    assert os.listdir(site.stage) == ["good"]


async def test_names_of_one_file_arrive_as_names_of_one_file(site: Site) -> None:
    entry = site.file(b"a", b"content").entry
    os.link(site.source.disk / "a", site.source.disk / "b")
    assert await site.parent.files("t", [entry, entry._replace(path=b"b")], stage_of(site)) == {}
    assert os.path.samefile(site.stage / "a", site.stage / "b")


async def test_only_small_files_may_be_asked_for(site: Site) -> None:
    for entry in (told(b"a", b"x" * (SMALL_FILE_BYTES + 1)), Entry(b"d", Kind.DIRECTORY, 0o755)):
        with pytest.raises(ValueError, match="small"):
            await site.parent.files("t", [entry], stage_of(site))
    assert await site.parent.files("t", [], stage_of(site)) == {}


async def test_no_file_without_the_right_token_for_the_tree(site: Site) -> None:
    entry = site.file(b"secret").entry
    for token, node, tree_name in (("wrong", "edge1", "t"), (TOKEN, "edge9", "t"), (TOKEN, "edge1", "x")):
        async with site.child(token, node) as stranger:
            with pytest.raises(ParentRefuses):
                await stranger.files(tree_name, [entry], stage_of(site))
    with pytest.raises(ParentError, match="503"):
        await site.parent.files("later", [entry], stage_of(site))
    assert os.listdir(site.stage) == []


@pytest.mark.parametrize("body", [b"", b"../x\0", b"/etc/passwd\0", b"a", b"a\0" * (wire.MAX_FILES_ASKED + 1)])
async def test_a_request_out_of_form_is_a_400(site: Site, body: bytes) -> None:
    with pytest.raises(ParentError, match="400"):
        await site.parent._ask("POST", "t", "files", 100, (200,), body=body)


async def test_what_is_left_out_is_not_served(tmp_path: Path) -> None:
    async with served(tmp_path) as site:
        site.source.left_out = Exclude(["/.work"])
        entries = [site.file(b".work/stage/f").entry, site.file(b"f").entry]
        assert await site.parent.files("t", entries, stage_of(site)) == {b".work/stage/f": VANISHED}


async def test_a_parent_that_serves_as_another_user_does_not_read_as_itself(tmp_path: Path) -> None:
    async with served(tmp_path, serving=Serving(owner=(os.geteuid() + 1, os.getegid()))) as site:
        with pytest.raises(ParentError, match="501"):
            await site.parent.files("t", [site.file(b"f").entry], stage_of(site))


async def test_a_request_serves_the_version_that_is_current(site: Site) -> None:
    entry = site.file(b"v1/index", b"one").entry._replace(path=b"index")
    os.symlink("v1", site.source.disk / "current")
    site.source.disk = site.source.disk / "current"
    assert await site.parent.files("t", [entry], stage_of(site)) == {}
    assert staged(site.stage, b"index")[2] == b"one"


async def test_poll_root_and_files_share_warm_connections(site: Site) -> None:
    door = site.server.door
    assert door is not None
    entry = site.file(b"f").entry
    cursor = wire.Cursor(b"j" * 16, 0)
    for _ in range(5):
        poll = asyncio.create_task(site.parent.journal("t", cursor, wait_s=60))
        assert await site.parent.files("t", [entry], stage_of(site)) == {}
        await site.parent.root("t")
        site.source.add(b"f")
        batch = await poll
        assert isinstance(batch, wire.Batch)
        cursor = batch.cursor
    assert door.accepted == door.connections == 2
    # Idle ones outlast a poll at both ends, and the child gives up first: none is cut just as it is used.
    assert wire.MAX_WAIT_S < io_parent._KEEP_S < io_serve._KEEP_S


async def test_a_kept_connection_that_was_cut_is_no_failure(tmp_path: Path) -> None:
    accepted = requests = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted, requests
        accepted += 1
        number = accepted
        for _ in range(1 if number == 1 else 2):  # the first connection ends when it is asked for the second time
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            requests += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\x01")
        if number == 1:
            await reader.readuntil(b"\r\n\r\n")
        writer.close()

    sock = bind_tcp("127.0.0.1:0")
    (tmp_path / "token").write_text(TOKEN)
    async with (
        await asyncio.start_server(serve, sock=sock),
        Parent(f"http://{bound_address(sock)}", "edge1", str(tmp_path / "token")) as parent,
    ):
        for _ in range(2):
            assert await parent.files("t", [told(b"f", b"x")], os.fsencode(tmp_path)) == {b"f": VANISHED}
    assert (accepted, requests) == (2, 2)
