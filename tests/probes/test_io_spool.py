"""The spool on a real disk: numbers, order, limits, kill -9, a full disk, a damaged file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import NearpathError
from probes import io_spool
from probes.io_moment import boot_id, now_moment
from probes.io_spool import Spool
from probes.report import Outcome
from tests.probes.netspace import ROOT
from tests.probes.small_appliance import until


def fill(spool: Spool, count: int) -> list[int]:
    return [spool.add(f"m{i % 7}", "ping", 4, Outcome(i / 1000), now_moment()) for i in range(count)]


async def numbers(spool: Spool, limit: int = 10_000) -> list[int]:
    return [sample.sequence for sample in (await spool.oldest(limit)).samples]


async def test_samples_come_back_as_they_went_in(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 1000)
    moment = now_moment()
    outcomes = [Outcome(0.0125, stamp="kernel"), Outcome(None, "status 503", load_ratio=0.5), Outcome(0.0)]
    for outcome in outcomes:
        spool.add("m", "web", 6, outcome, moment)
    await spool.flush()
    samples = (await spool.oldest(10)).samples
    assert [sample.outcome for sample in samples] == outcomes
    assert {(s.mirror, s.check, s.family, s.taken) for s in samples} == {("m", "web", 6, moment)}
    await spool.close()


async def test_numbers_have_no_holes_and_are_never_used_again_over_restarts(tmp_path: Path) -> None:
    given: list[int] = []
    incarnations = set()
    for _ in range(4):
        spool = await Spool.open(tmp_path, 1000)
        incarnations.add(spool.incarnation)
        given += fill(spool, 10)
        await spool.flush()
        await spool.forget(spool.last_sequence)
        assert await numbers(spool) == []
        await spool.close()
    assert given == list(range(1, 41))
    assert len(incarnations) == 1


async def test_only_committed_samples_are_told_and_the_reader_is_woken(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 1000, flush_every_s=0.05)
    woken = asyncio.Event()
    spool.on_ready = woken.set
    fill(spool, 3)
    assert await numbers(spool) == []
    async with asyncio.timeout(10):
        await woken.wait()
    assert await numbers(spool) == [1, 2, 3]
    with sqlite3.connect(tmp_path / "spool.sqlite") as other:
        assert other.execute("SELECT count(*) FROM samples").fetchone() == (3,)
    other.close()
    await spool.close()


async def test_a_full_spool_drops_the_oldest_and_counts_them_over_restarts(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 1000)
    for _ in range(3):
        fill(spool, 800)
        await spool.flush()
    assert len(spool) == 1000
    assert spool.dropped == 1400
    assert await numbers(spool) == list(range(1401, 2401))
    await spool.close()
    spool = await Spool.open(tmp_path, 1000)
    assert (len(spool), spool.dropped) == (1000, 1400)
    await spool.close()


async def test_forget_takes_what_is_acknowledged_and_no_more(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 1000)
    fill(spool, 10)
    await spool.flush()
    await spool.forget(4)
    assert await numbers(spool) == [5, 6, 7, 8, 9, 10]
    await spool.forget(2)
    assert await numbers(spool, 3) == [5, 6, 7]
    await spool.give_up(5)
    assert (await numbers(spool), spool.dropped) == ([6, 7, 8, 9, 10], 1)
    await spool.close()


KILLED = """
import asyncio, sys
from pathlib import Path
from probes.io_moment import now_moment
from probes.io_spool import Spool
from probes.report import Outcome

async def main():
    spool = await Spool.open(Path(sys.argv[1]), 100000, flush_every_s=0.02)
    while True:
        spool.add("m", "c", 4, Outcome(0.001), now_moment())
        samples = (await spool.oldest(100000)).samples
        if samples:
            print(samples[-1].sequence, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


def run_and_kill(folder: Path) -> int:
    """The highest number that a process told before it was killed in the middle of its work."""
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(120)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    process.stdout.close()
    return max(int(line) for line in lines)


async def test_kill_9_keeps_every_sample_that_was_told(tmp_path: Path) -> None:
    told = 0
    for _ in range(3):
        before, told = told, await asyncio.to_thread(run_and_kill, tmp_path)
        assert told > before
    spool = await Spool.open(tmp_path, 100_000)
    assert (await numbers(spool, 100_000))[:told] == list(range(1, told + 1))
    await spool.close()


async def test_after_the_machine_died_numbers_go_on_after_all_that_can_have_been_used(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 1000)
    fill(spool, 10)
    await spool.close()
    with sqlite3.connect(tmp_path / "spool.sqlite") as db:
        db.execute("UPDATE meta SET booted='another boot'")
    db.close()
    spool = await Spool.open(tmp_path, 1000)
    (first,) = fill(spool, 1)
    assert first > 10 + io_spool.BLOCK // 2
    assert await numbers(spool) == list(range(1, 11))
    await spool.close()
    with sqlite3.connect(tmp_path / "spool.sqlite") as db:
        assert db.execute("SELECT booted, last, reserved >= last FROM meta").fetchone() == ("", first, 1)
        db.execute("UPDATE meta SET booted=?", (boot_id(),))
    db.close()
    spool = await Spool.open(tmp_path, 1000)
    assert fill(spool, 1) == [first + 1]
    await spool.close()


async def test_the_reserve_is_always_ahead_of_what_is_told(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 100_000)
    for _ in range(8):
        fill(spool, io_spool.BLOCK // 4)
        await spool.flush()
        last = (await numbers(spool, 100_000))[-1]
        with sqlite3.connect(tmp_path / "spool.sqlite") as db:
            (reserved,) = db.execute("SELECT reserved FROM meta").fetchone()
        db.close()
        assert reserved >= last + io_spool.BLOCK // 4
    await spool.close()


@pytest.mark.parametrize("damage", ["garbage", "truncated", "page", "no rows"])
async def test_a_damaged_file_is_moved_aside(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    spool = await Spool.open(tmp_path, 10_000)
    incarnation = spool.incarnation
    fill(spool, 3000)
    await spool.close()
    file = tmp_path / "spool.sqlite"
    data = file.read_bytes()
    match damage:
        case "garbage":
            file.write_bytes(os.urandom(len(data)))
        case "truncated":
            file.write_bytes(data[: len(data) // 2])
        case "page":
            file.write_bytes(data[:8192] + os.urandom(len(data) - 8192))
        case "no rows":
            file.write_bytes(b"not a database, but long enough to be read as one" * 100)
    damaged = file.read_bytes()
    spool = await Spool.open(tmp_path, 10_000)
    assert spool.incarnation != incarnation
    # Opening it may have touched its header, nothing else.
    assert (tmp_path / "spool.sqlite.damaged").read_bytes()[100:8192] == damaged[100:8192]
    fill(spool, 3)
    await spool.flush()
    assert len(await numbers(spool)) == 3
    await spool.close()
    assert "spool_damaged" in "".join(capsys.readouterr())


async def test_a_file_damaged_while_in_use_is_replaced_and_nothing_in_memory_is_lost(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 10_000, flush_every_s=0.02)
    incarnation = spool.incarnation
    fill(spool, 3000)
    await spool.flush()
    with sqlite3.connect(tmp_path / "spool.sqlite") as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    file = tmp_path / "spool.sqlite"
    handle = os.open(file, os.O_WRONLY)
    os.pwrite(handle, os.urandom(file.stat().st_size - 4096), 4096)
    os.close(handle)
    await spool.forget(1500)
    fresh = fill(spool, 50)
    await until(lambda: spool.incarnation != incarnation)
    await spool.flush()
    await spool.flush()
    assert [n for n in await numbers(spool) if n >= fresh[0]] == fresh
    assert spool.trouble == ""
    await spool.close()


FULL_DISK = """
import asyncio, json, os
from pathlib import Path
from probes.io_moment import now_moment
from probes.io_spool import Spool
from probes.report import Outcome

def add(spool, count):
    for i in range(count):
        spool.add("mirror-with-a-long-name", "check", 4, Outcome(None, "x" * 60), now_moment())

async def numbers(spool):
    return [s.sequence for s in (await spool.oldest(10**6)).samples]

async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)

async def main():
    spool = await Spool.open(Path("/mnt/spool"), 10**6, flush_every_s=0.02)
    add(spool, 100)
    await spool.flush()
    with open("/mnt/ballast", "wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"x" * 4096)
        except OSError:
            pass
    found = {}
    total = 100
    while not spool.trouble:
        add(spool, 2000)
        total += 2000
        await asyncio.sleep(0.05)
    found["trouble"] = spool.trouble
    # All are told, in order, the newest from memory.
    found["all told"] = await numbers(spool) == list(range(1, total + 1))
    await spool.forget(total - 5)
    found["after ack"] = await numbers(spool) == list(range(total - 4, total + 1))
    # Bounded memory: the oldest go first.
    add(spool, 30000)
    total += 30000
    told = await numbers(spool)
    found["bounded"] = len(told) <= 20000 and told[-1] == total and spool.dropped >= 10000
    kept = len(told)
    os.unlink("/mnt/ballast")
    await until(lambda: not spool.trouble)
    await spool.flush()
    found["recovered"] = await numbers(spool) == told
    await spool.close()
    spool = await Spool.open(Path("/mnt/spool"), 10**6)
    found["on disk"] = await numbers(spool) == told
    add(spool, 1)
    found["goes on"] = spool.last_sequence == total + 1
    await spool.close()
    print(json.dumps(found))

asyncio.run(main())
"""


def test_a_full_disk_is_survived() -> None:
    script = f'mount -t tmpfs -o size=24m none /mnt\nexec {sys.executable} -c "$1"\n'
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk (needs root)")
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", FULL_DISK],
        capture_output=True, text=True, cwd=ROOT, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert "full" in found.pop("trouble")
    assert found == dict.fromkeys(found, True)
    log = done.stdout + done.stderr
    assert log.count("spool_failed") == 1
    assert log.count("spool_works_again") == 1


async def test_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "spool.sqlite") as db:
        db.execute("PRAGMA user_version=9")
    db.close()
    with pytest.raises(NearpathError, match="is of version 9"):
        await Spool.open(tmp_path, 1000)
    assert not (tmp_path / "spool.sqlite.damaged").exists()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NearpathError, match="state_dir"):
        await Spool.open(tmp_path / "file" / "spool", 1000)


async def test_a_renewed_spool_keeps_its_samples(tmp_path: Path) -> None:
    spool = await Spool.open(tmp_path, 1000)
    before = spool.incarnation
    fill(spool, 5)
    await spool.flush()
    assert await spool.renew() == spool.incarnation != before
    batch = await spool.oldest(10)
    assert (batch.incarnation, len(batch.samples)) == (spool.incarnation, 5)
    await spool.close()
