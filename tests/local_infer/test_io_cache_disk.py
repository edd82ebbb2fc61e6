"""The cache on disk, with real SQLite: bounds, kill -9, damage, a disk that fails."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from local_infer.cache import io_cache_disk
from local_infer.cache.cache_entry import Entry
from local_infer.cache.io_cache_disk import DiskCache
from local_infer.model import Endpoint
from tests.local_infer.cache_asks import ScriptedClock

ROOT = Path(__file__).resolve().parents[2]
LIFETIME_S = 1000.0


def key(n: int) -> bytes:
    return hashlib.blake2b(b"%d" % n, digest_size=32).digest()


def entry(n: int, size: int = 100, born_s: float = 1_000_000.0) -> Entry:
    body = (b"answer %d " % n) + b"." * size
    headers = (("content-type", "application/json"),)
    return Entry(key(n), "t", Endpoint.CHAT, "m", "east", "whole", born_s, headers, body, b"{}")


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


async def opened(folder: Path, limit_bytes: int = 1 << 24, clock: ScriptedClock | None = None) -> DiskCache:
    return await DiskCache.open(folder / "cache.sqlite", limit_bytes, LIFETIME_S, clock or ScriptedClock())


async def test_what_was_put_is_there_at_once_and_after_a_restart(tmp_path: Path) -> None:
    disk = await opened(tmp_path)
    assert not disk.may_have(key(1))
    disk.put(entry(1))
    assert disk.may_have(key(1))
    assert await disk.get(key(1)) == entry(1)  # perhaps not written yet
    await disk.settle()
    assert await disk.get(key(1)) == entry(1)
    disk.put(entry(1, size=5))
    assert await disk.get(key(1)) == entry(1, size=5)
    await disk.close()
    assert stat.S_IMODE((tmp_path / "cache.sqlite").stat().st_mode) == 0o600
    disk = await opened(tmp_path)
    assert disk.may_have(key(1))
    assert await disk.get(key(1)) == entry(1, size=5)
    assert await disk.get(key(2)) is None
    assert disk.trouble() == ""
    await disk.close()


async def test_bytes_are_bounded_and_the_least_recently_used_go(tmp_path: Path) -> None:
    limit, clock = 1 << 20, ScriptedClock()
    disk = await opened(tmp_path, limit, clock)
    for n in range(400):
        clock.now += 1
        disk.put(entry(n, size=9_000 if n % 3 else 300))
        if n == 300:
            disk.touch(key(201))
        if n % 20 == 0:
            await disk.settle()
    await disk.settle()
    files = size_of(tmp_path)
    assert (tmp_path / "cache.sqlite").stat().st_size <= limit
    assert files <= limit + (8 << 20)  # the WAL is bounded too
    there = [n for n in range(400) if await disk.get(key(n)) is not None]
    assert there[0] == 201
    assert there[1:] == list(range(there[1], 400))
    assert 50 <= len(there) <= 200
    await disk.close()
    disk = await opened(tmp_path, limit // 4, clock)  # a lower limit: the file gives its space back
    assert (tmp_path / "cache.sqlite").stat().st_size <= limit // 4
    assert await disk.get(key(399)) is not None
    await disk.close()


async def test_an_entry_too_large_for_the_file_does_not_empty_it(tmp_path: Path) -> None:
    disk = await opened(tmp_path, 1 << 20)
    disk.put(entry(1))
    disk.put(entry(2, size=1 << 19))
    await disk.settle()
    assert await disk.get(key(1)) is not None
    assert await disk.get(key(2)) is None
    await disk.close()


async def test_what_is_too_old_for_anything_goes(tmp_path: Path) -> None:
    clock = ScriptedClock()
    disk = await opened(tmp_path, clock=clock)
    disk.put(entry(1, born_s=clock.now - LIFETIME_S + 5))
    disk.put(entry(2, born_s=clock.now))
    await disk.settle()
    clock.now += 10
    await disk.settle()
    assert await disk.get(key(1)) is None
    assert await disk.get(key(2)) is not None
    await disk.close()


async def test_those_used_last_come_first(tmp_path: Path) -> None:
    clock = ScriptedClock()
    disk = await opened(tmp_path, clock=clock)
    for n in range(5):
        clock.now += 1
        disk.put(entry(n))
        await disk.settle()
    clock.now += 1
    disk.touch(key(1))
    await disk.settle()
    assert [each.key for each in await disk.recent(1 << 20)] == [key(n) for n in (1, 4, 3, 2, 0)]
    assert [each.key for each in await disk.recent(2 * entry(1).size_bytes)] == [key(1), key(4)]
    await disk.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.local_infer.test_io_cache_disk import entry, opened

async def main():
    disk = await opened(Path(sys.argv[1]))
    for n in range(100_000):
        disk.put(entry(n, size=2000))
        if n % 50 == 49:
            await disk.settle()
            print(n, flush=True)

asyncio.run(main())
"""


async def test_what_was_written_survives_kill_9(tmp_path: Path) -> None:
    child = subprocess.Popen(  # noqa: ASYNC220 (the test has nothing else to do)
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    last = 0
    for line in child.stdout:
        last = int(line)
        if last > 500:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    disk = await opened(tmp_path)
    assert disk.trouble() == ""
    assert [n for n in range(last + 1) if await disk.get(key(n)) != entry(n, size=2000)] == []
    disk.put(entry(0))
    await disk.settle()
    await disk.close()
    assert not (tmp_path / "cache.sqlite.damaged").exists()


async def fill(folder: Path, count: int = 200) -> None:
    disk = await opened(folder)
    for n in range(count):
        disk.put(entry(n, size=3000))
    await disk.close()


async def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path) -> None:
    file = tmp_path / "cache.sqlite"
    file.write_bytes(b"this is no database " * 1000)
    disk = await opened(tmp_path)
    disk.put(entry(1))
    await disk.settle()
    assert await disk.get(key(1)) == entry(1)
    await disk.close()
    assert (tmp_path / "cache.sqlite.damaged").read_bytes().startswith(b"this is no database")
    assert sqlite3.connect(file).execute("SELECT count(*) FROM entries").fetchone() == (1,)


async def test_pages_overwritten_under_it_lose_no_more_than_the_cache(tmp_path: Path) -> None:
    await fill(tmp_path)
    file = tmp_path / "cache.sqlite"
    data = bytearray(file.read_bytes())
    for at in range(4096, len(data), 3 * 4096):
        data[at : at + 200] = os.urandom(200)
    file.write_bytes(data)
    disk = await opened(tmp_path)
    for n in range(200):
        found = await disk.get(key(n))
        assert found in (None, entry(n, size=3000))  # never something else
    disk.put(entry(1000))
    await disk.settle()
    assert await disk.get(key(1000)) == entry(1000)
    assert disk.trouble() == ""
    await disk.close()


async def test_a_flipped_bit_that_sqlite_does_not_see_is_found(tmp_path: Path) -> None:
    await fill(tmp_path, 20)
    file = tmp_path / "cache.sqlite"
    data = bytearray(file.read_bytes())
    at = data.index(b"answer 7 ")
    data[at] ^= 1
    file.write_bytes(data)
    disk = await opened(tmp_path)
    assert [n for n in range(20) if await disk.get(key(n)) is None] == [7]
    await disk.settle()
    disk.put(entry(7))
    await disk.settle()
    assert await disk.get(key(7)) == entry(7)
    await disk.close()


async def test_a_disk_that_fails_keeps_nothing_and_works_again_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_cache_disk, "_RETRY_S", 0.0)
    await fill(tmp_path, 3)
    file = tmp_path / "cache.sqlite"
    file.rename(tmp_path / "away")
    file.mkdir()
    disk = await opened(tmp_path)
    assert "directory" in disk.trouble()
    disk.put(entry(5))
    await disk.settle()
    assert await disk.get(key(5)) is None
    assert await disk.get(key(1)) is None
    assert disk.dropped == 1
    file.rmdir()
    (tmp_path / "away").rename(file)
    disk.put(entry(6))
    await disk.settle()
    assert await disk.get(key(6)) == entry(6)
    assert await disk.get(key(1)) == entry(1, size=3000)  # of before: it is looked for although the start failed
    assert disk.trouble() == ""
    await disk.close()


async def test_with_a_full_disk_the_gateway_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself says FULL: the file may have no more pages."""
    monkeypatch.setattr(io_cache_disk, "_RETRY_S", 0.0)
    prepare = io_cache_disk._prepare
    pages = [20]

    def with_few_pages(db: sqlite3.Connection) -> None:
        prepare(db)
        db.execute(f"PRAGMA max_page_count={pages[0]}")

    monkeypatch.setattr(io_cache_disk, "_prepare", with_few_pages)
    disk = await opened(tmp_path)
    for n in range(40):
        disk.put(entry(n, size=3000))
        await disk.settle()
    assert "full" in disk.trouble()
    assert disk.dropped > 10
    assert await disk.get(key(0)) == entry(0, size=3000)
    pages[0] = 10_000
    disk.put(entry(100))
    await disk.settle()
    assert await disk.get(key(100)) == entry(100)
    assert disk.trouble() == ""
    await disk.close()


async def test_a_slow_disk_does_not_let_memory_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_cache_disk, "_QUEUED_BYTES", 10 * entry(0, size=1000).size_bytes)
    disk = await opened(tmp_path)
    blocker = sqlite3.connect(tmp_path / "cache.sqlite", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # the writer waits for this
    for n in range(50):
        disk.put(entry(n, size=1000))
    assert disk.dropped >= 40
    blocker.execute("ROLLBACK")
    blocker.close()
    await disk.settle()
    assert await disk.get(key(0)) is not None
    disk.put(entry(99))
    await disk.settle()
    assert await disk.get(key(99)) is not None
    await disk.close()


async def test_many_readers_and_a_writer_at_once(tmp_path: Path) -> None:
    disk = await opened(tmp_path)

    async def write() -> None:
        for n in range(300):
            disk.put(entry(n, size=500))
            await asyncio.sleep(0)

    async def read(first: int) -> None:
        for n in range(first, 300, 7):
            assert await disk.get(key(n)) in (None, entry(n, size=500))

    await asyncio.gather(write(), *(read(first) for first in range(7)))
    await disk.settle()
    assert [n for n in range(300) if await disk.get(key(n)) is None] == []
    await disk.close()


async def test_rows_of_wrong_types_stop_nothing(tmp_path: Path) -> None:
    await fill(tmp_path, 3)
    db = sqlite3.connect(tmp_path / "cache.sqlite")
    rows = [("text", 1.0, 1e9, 5), (7, 2.0, 1e9, None), (b"short", 3.0, 1e9, "x"), (b"x" * 99, 4.0, 1e9, b"")]
    db.executemany("INSERT OR IGNORE INTO entries VALUES (?,?,?,?)", rows)
    db.execute("UPDATE entries SET record='text' WHERE key=?", (key(1),))
    db.commit()
    db.close()
    disk = await opened(tmp_path)
    assert [n for n in range(3) if await disk.get(key(n)) is None] == [1]
    assert {each.key for each in await disk.recent(1 << 20)} == {key(0), key(2)}
    assert disk.trouble() == ""
    await disk.close()
