"""The stager: the same as without it, whatever comes, and whatever becomes of the process."""

# ruff: noqa: ASYNC240 (a test has its loop to itself)

from __future__ import annotations

import asyncio
import os
import random
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.errors import MessageError, NearpathError
from syncd.model import Entry, Kind
from syncd.publish.io_publish import DiskFull
from syncd.publish.steps import PublishError
from syncd.source.row import Written
from syncd.transfer import io_stager
from syncd.transfer.io_small import VANISHED, stage_answer
from syncd.transfer.io_stager import WORTH_BYTES, Stager
from syncd.transfer.wire import MAX_FILES_ASKED, Answer, Content, Lack, Linked, encode_files
from tests.syncd.serving import served, until
from tests.syncd.small_disk import mounted

MTIME_NS = 1_700_000_000_123_456_789
WORTH = 40
"""Fewer files than a daemon takes, so that these tests write few."""
Staged = tuple[int, dict[bytes, str]]


def told(path: bytes, size: int = 1, mode: int = 0o644) -> Entry:
    return Entry(path, Kind.FILE, mode, size, MTIME_NS)


def sent(*answers: Answer) -> bytes:
    return b"".join(encode_files(answers))


FULL = [told(b"d%d/f%d" % (number % 9, number)) for number in range(WORTH)]
FULL_DATA = sent(*[Content(0o644, MTIME_NS, b"x")] * WORTH)


@asynccontextmanager
async def ready(tmp_path: Path, **options: float) -> AsyncIterator[Stager]:
    """A stager whose process waits for a request."""
    stager = Stager(worth=WORTH, **options)
    try:
        warm = tmp_path / "warm"
        warm.mkdir()
        assert await stage(stager, warm) == (WORTH, {}), "it is staged while the process starts"
        await until(lambda: stager.pid is not None)
        yield stager
    finally:
        await stager.close()
        assert stager.pid is None


async def stage(
    stager: Stager,
    place: Path,
    entries: Sequence[Entry] = FULL,
    data: bytes = FULL_DATA,
    written: Written | None = None,
) -> Staged:
    return await stager.stage(os.fsencode(place), entries, data, True, {} if written is None else written)


def there_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(*_: object) -> Staged:
        raise AssertionError("staged by the daemon itself")

    monkeypatch.setattr(io_stager, "stage_answer", not_here)


def on_disk(place: Path) -> dict[str, tuple[int, int, bytes, int]]:
    """Mode, time, content and number of names of each file."""
    found = {}
    for path in place.rglob("*"):
        seen = path.lstat()
        if stat.S_ISREG(seen.st_mode):
            found[str(path.relative_to(place))] = (seen.st_mode, seen.st_mtime_ns, path.read_bytes(), seen.st_nlink)
    return found


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def mixed(rng: random.Random) -> tuple[list[Entry], bytes]:
    """A full request and its answer, with everything that can become of a file."""
    entries: list[Entry] = []
    answers: list[Answer] = []
    contents: list[int] = []
    for number in range(MAX_FILES_ASKED):
        path = b"d%d/%s%d" % (rng.randrange(20), rng.choice((b"f", b"\xff\n", b"n" * 253)), number)
        content, mode = rng.randbytes(rng.randrange(300)), rng.choice((0o644, 0o755, 0o600, 0o4755))
        entry = told(path, len(content), mode)
        answer: Answer = Content(mode, MTIME_NS, content)
        match rng.randrange(8):
            case 0:
                answer = rng.choice(list(Lack))
            case 1:
                entry = entry._replace(mtime_ns=MTIME_NS + 1)
            case 2 if contents:
                first = rng.choice(contents)
                answer = Linked(first)
                entry = entries[first]._replace(path=path)
            case _:
                contents.append(number)
        entries.append(entry)
        answers.append(answer)
    return entries, sent(*answers)


async def test_it_does_what_the_daemon_itself_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, data = mixed(random.Random(3))
    here, there = tmp_path / "here", tmp_path / "there"
    written_here: Written = {}
    written: Written = {}
    for place in (here, there):
        place.mkdir()
        (place / "d1").mkdir()
        (place / "d2").write_bytes(b"left by an earlier try")
    outcome = stage_answer(os.fsencode(here), entries, data, True, written_here)
    assert len(outcome[1]) > 100
    assert any("too long" in why for why in outcome[1].values())
    async with ready(tmp_path) as stager:
        there_only(monkeypatch)
        assert await stage(stager, there, entries, data, written) == outcome
    assert on_disk(there) == on_disk(here)
    assert max(links for _, _, _, links in on_disk(there).values()) > 1
    assert list(written) == list(written_here)
    for path, row in written.items():
        assert (row is None) == (written_here[path] is None)
        if row is not None:
            seen = os.lstat(os.path.join(os.fsencode(there), path))
            found = (seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, 0, seen.st_ino, b"")
            assert row == found


async def test_an_answer_that_is_short_or_few_and_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [told(b"%d" % number, 60_000) for number in range(7)]
    content = Content(0o644, MTIME_NS, b"x" * 60_000)
    async with ready(tmp_path) as stager:
        there_only(monkeypatch)
        assert await stage(stager, tmp_path, entries, sent(Lack.GONE, *[content] * 5)) == (6, {b"0": VANISHED})
    assert sorted(on_disk(tmp_path))[:5] == ["1", "2", "3", "4", "5"]


async def test_a_few_small_files_start_nothing(tmp_path: Path) -> None:
    stager = Stager(worth=WORTH)
    data = sent(*[Content(0o644, MTIME_NS, b"x")] * (WORTH - 1))
    assert len(data) < WORTH_BYTES
    assert await stage(stager, tmp_path, FULL[:-1], data) == (WORTH - 1, {})
    assert (stager.pid, stager._starting) == (None, None)
    await stager.close()


async def test_what_was_asked_for_at_once_is_all_there(tmp_path: Path) -> None:
    async with ready(tmp_path) as stager:
        places = [tmp_path / str(number) for number in range(3)]
        for place in places:
            place.mkdir()
        assert await asyncio.gather(*(stage(stager, place) for place in places)) == [(WORTH, {})] * 3
        assert [len(on_disk(place)) for place in places] == [WORTH] * 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "512k") as disk:
        yield disk


async def same_error(stager: Stager, place: Path, data: bytes) -> NearpathError:
    """What the stager raises, which is what is raised here."""
    with pytest.raises(NearpathError) as here:
        stage_answer(os.fsencode(place), FULL, data, True, {})
    with pytest.raises(NearpathError) as there:
        await stage(stager, place, FULL, data)
    found, wanted = there.value, here.value
    assert (type(found), found.what, found.fix) == (type(wanted), wanted.what, wanted.fix)
    return found


async def test_errors_are_those_of_the_daemon_itself(tmp_path: Path) -> None:
    hostile = (
        b"",
        b"\xff",
        FULL_DATA[:-1],
        FULL_DATA + b"\x01",
        b"\x06\0\0" * WORTH,
        os.urandom(WORTH_BYTES),
    )
    async with ready(tmp_path) as stager:
        pid = stager.pid
        for data in hostile:
            assert type(await same_error(stager, tmp_path, data)) is MessageError
        assert type(await same_error(stager, tmp_path / "none", FULL_DATA)) is PublishError
        assert stager.pid == pid, "it met all of them"
    assert [path.name for path in tmp_path.iterdir()] == ["warm"]


async def test_a_full_disk_says_so_and_tells_what_was_written(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [told(b"%d" % number, 60_000) for number in range(12)]
    data = sent(*[Content(0o644, MTIME_NS, b"x" * 60_000)] * 12)
    written: Written = {}
    async with ready(tmp_path) as stager:
        there_only(monkeypatch)
        with pytest.raises(DiskFull, match="No space left on device: make space"):
            await stage(stager, small_disk, entries, data, written)
    assert 0 < len(written) < 12
    assert set(on_disk(small_disk)) == {os.fsdecode(path) for path in written}


@pytest.mark.parametrize("what", ["killed", "hangs"])
async def test_a_batch_comes_without_it_and_it_comes_again(tmp_path: Path, what: str) -> None:
    async with ready(tmp_path, patience_s=60 if what == "killed" else 0.2, rest_s=0) as stager:
        pid = stager.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        task = asyncio.create_task(stage(stager, tmp_path))
        await until(lambda: stager._is_busy)
        if what == "killed":
            os.kill(pid, signal.SIGKILL)
        assert await task == (WORTH, {})
        assert is_gone(pid)
        assert len(on_disk(tmp_path)) == 2 * WORTH
        await stage(stager, tmp_path)
        await until(lambda: stager.pid is not None)
        assert stager.pid != pid


async def test_after_a_death_it_rests(tmp_path: Path) -> None:
    async with ready(tmp_path) as stager:
        pid = stager.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: is_gone(pid))
        for _ in range(2):
            assert await stage(stager, tmp_path) == (WORTH, {})
        assert (stager.pid, stager._starting) == (None, None)


async def test_idle_it_ends(tmp_path: Path) -> None:
    async with ready(tmp_path) as stager:
        pid = stager.pid
        assert pid is not None
        stager._idle_s = 0.0
        assert await stage(stager, tmp_path) == (WORTH, {})
        await until(lambda: is_gone(pid) and stager.pid is None)
        stager._idle_s = 60.0
        assert await stage(stager, tmp_path) == (WORTH, {})
        await until(lambda: stager.pid is not None)


DAEMON = """
import asyncio, sys
from pathlib import Path
from tests.syncd.test_stager import ready
async def main():
    async with ready(Path(sys.argv[1])) as stager:
        print(stager.pid, flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_it_ends_with_a_daemon_that_is_killed(tmp_path: Path, is_stopped: bool) -> None:
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DAEMON, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert daemon.stdout is not None
    pid = int(await daemon.stdout.readline())
    if is_stopped:
        os.kill(pid, signal.SIGSTOP)  # it cannot see that its socket was closed
    daemon.kill()
    await daemon.wait()
    async with asyncio.timeout(30):
        await until(lambda: is_gone(pid))


async def test_the_files_of_a_parent_come_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with served(tmp_path) as site, ready(tmp_path) as stager:
        there_only(monkeypatch)
        entries = [site.file(b"d%d/f%d" % (i % 7, i), os.urandom(20_000 + i)).entry for i in range(300)]
        parent = site.child()
        parent._stager = stager
        written: Written = {}
        async with parent:
            assert await parent.files("t", entries, os.fsencode(site.stage), True, written) == {}
        assert set(written) == {entry.path for entry in entries}
        for entry in entries:
            assert site.staged(entry.path) == Path(os.fsdecode(site.source.disk), os.fsdecode(entry.path)).read_bytes()
