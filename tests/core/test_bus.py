"""The embedded bus: streams without loss or repetition, values with revisions, and both over every kind of trouble."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.bus import Published, Record, Value
from core.errors import BusConflict, BusUnavailable, NearpathError
from core.io_bus import EmbeddedBus
from core.io_clock import AnchoredClock

ROOT = Path(__file__).resolve().parents[2]


@contextlib.asynccontextmanager
async def open_bus(file: Path, clock: Any = None) -> AsyncIterator[EmbeddedBus]:
    bus = await EmbeddedBus.open(file, clock or AnchoredClock())
    try:
        yield bus
    finally:
        await bus.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "bus.sqlite"


@pytest.fixture
async def bus(file: Path) -> AsyncIterator[EmbeddedBus]:
    async with open_bus(file) as opened:
        yield opened


class Heard(list[tuple[int, bytes]]):
    """A subscriber that remembers."""

    def __call__(self, position: int, body: bytes) -> None:
        self.append((position, body))


def numbered(first: int, last: int) -> list[Record]:
    return [Record(n, str(n).encode()) for n in range(first, last + 1)]


async def kept(bus: EmbeddedBus, stream: str = "s", after: int = 0) -> Heard:
    heard = Heard()
    (await bus.subscribe(stream, heard, after=after))()
    return heard


# -- streams


async def test_a_sequence_is_stored_once_per_source(bus: EmbeddedBus) -> None:
    heard = Heard()
    await bus.subscribe("s", heard, after=0)
    assert await bus.publish("s", "a", numbered(1, 3)) == Published(3, 3)
    assert await bus.publish("s", "a", numbered(1, 3)) == Published(0, 3)
    assert await bus.publish("s", "a", numbered(2, 5)) == Published(2, 5)
    assert await bus.publish("s", "a", numbered(1, 2)) == Published(0, 5)
    assert await bus.publish("s", "b", numbered(1, 1)) == Published(1, 1)
    assert await bus.publish("s", "a", [Record(9, b"9"), Record(9, b"again"), Record(7, b"7")]) == Published(1, 9)
    assert await bus.publish("s", "c", []) == Published(0, 0)
    assert heard == [(1, b"1"), (2, b"2"), (3, b"3"), (4, b"4"), (5, b"5"), (6, b"1"), (7, b"9")]
    assert await kept(bus) == heard


async def test_streams_are_apart(bus: EmbeddedBus) -> None:
    heard = Heard()
    await bus.subscribe("s", heard, after=0)
    assert await bus.publish("t", "a", numbered(1, 2)) == Published(2, 2)
    assert await bus.publish("s", "a", numbered(1, 1)) == Published(1, 1)
    assert heard == [(1, b"1")]
    assert await kept(bus, "t") == [(1, b"1"), (2, b"2")]


async def test_a_publish_is_handed_out_before_it_returns(bus: EmbeddedBus) -> None:
    # The report interface counts on it: what it acknowledges has been taken by the steerer.
    heard = Heard()
    await bus.subscribe("s", heard, after=0)
    for n in range(1, 20):
        await bus.publish("s", "a", numbered(n, n))
        assert len(heard) == n


async def test_subscribing_after_a_position(bus: EmbeddedBus) -> None:
    await bus.publish("s", "a", numbered(1, 1300))  # more than one page of the replay
    for after in (0, 1, 499, 500, 501, 999, 1299, 1300, 5000):
        assert [p for p, _ in await kept(bus, after=after)] == list(range(after + 1, 1301))


async def test_no_loss_no_double_while_publishes_go_on(bus: EmbeddedBus) -> None:
    await bus.publish("s", "old", numbered(1, 2600))
    rng = random.Random(7)
    subscribers: list[tuple[int, Heard]] = []

    async def publish(source: str) -> None:
        n = 1
        while n <= 400:
            step = rng.randint(1, 7)
            await bus.publish("s", source, numbered(n, n + step - 1))
            n += step
            await asyncio.sleep(0)

    async def subscribe() -> None:
        after, heard = rng.randint(0, 2700), Heard()
        await bus.subscribe("s", heard, after=after)
        subscribers.append((after, heard))

    publishers = [asyncio.create_task(publish(f"src{i}")) for i in range(6)]
    while not all(p.done() for p in publishers):
        await subscribe()
    await asyncio.gather(*publishers)
    everything = await kept(bus)
    assert [p for p, _ in everything] == list(range(1, len(everything) + 1))
    assert len(subscribers) > 10
    for after, heard in subscribers:
        assert heard == everything[after:]


async def test_unsubscribing_ends_it_and_may_be_done_twice(bus: EmbeddedBus) -> None:
    heard, other, changes = Heard(), Heard(), []
    stop = await bus.subscribe("s", heard, after=0)
    await bus.subscribe("s", other, after=0)
    unwatch = bus.watch("", lambda key, value: changes.append(key))
    await bus.publish("s", "a", numbered(1, 1))
    for _ in range(2):
        stop()
        unwatch()
    await bus.publish("s", "a", numbered(2, 2))
    await bus.put("k", b"")
    assert (len(heard), len(other), changes) == (1, 2, [])


async def test_a_failing_subscriber_takes_nothing_from_the_others(bus: EmbeddedBus) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))

    def fails(position: int, _body: bytes) -> None:
        if position == 2:
            raise RuntimeError("subscriber")

    def fails_too(_key: str, _value: Value | None) -> None:
        raise RuntimeError("watcher")

    seen: list[str] = []
    first, second = Heard(), Heard()
    await bus.subscribe("s", first, after=0)
    await bus.subscribe("s", fails, after=0)
    await bus.subscribe("s", second, after=0)
    bus.watch("", fails_too)
    bus.watch("", lambda key, _value: seen.append(key))
    assert await bus.publish("s", "a", numbered(1, 3)) == Published(3, 3)
    assert await bus.put("k", b"v") == 1
    assert first == second == [(1, b"1"), (2, b"2"), (3, b"3")]
    assert seen == ["k"]
    assert [str(context["exception"]) for context in told] == ["subscriber", "watcher"]


async def test_trim_keeps_what_is_young_or_not_yet_included(file: Path) -> None:
    class Clock(AnchoredClock):
        def now(self) -> float:
            return self.at

        at = 1000.0

    clock = Clock()
    async with open_bus(file, clock) as bus:
        await bus.publish("s", "a", numbered(1, 10))
        clock.at = 2000.0
        await bus.publish("s", "a", numbered(11, 20))
        await bus.publish("t", "a", numbered(1, 5))
        assert await bus.trim("s", upto=5, older_than_s=1500.0) == 5
        assert await bus.trim("s", upto=15, older_than_s=1500.0) == 5
        assert [p for p, _ in await kept(bus)] == list(range(11, 21))
        assert len(await kept(bus, "t")) == 5
        assert await bus.trim("s", upto=20, older_than_s=3000.0) == 10
        # Positions and sequences go on, also over a restart with nothing kept.
        assert await bus.publish("s", "a", numbered(20, 20)) == Published(0, 20)
    async with open_bus(file, clock) as bus:
        assert await bus.publish("s", "a", numbered(20, 21)) == Published(1, 21)
        assert await kept(bus) == [(21, b"21")]


async def test_a_silent_source_is_forgotten_after_30_days_only(file: Path) -> None:
    class Clock(AnchoredClock):
        def now(self) -> float:
            return self.at

        at = 0.0

    clock = Clock()
    async with open_bus(file, clock) as bus:
        await bus.publish("s", "a", numbered(1, 10))
        clock.at = 29 * 86400.0
        await bus.trim("s", upto=10, older_than_s=clock.at)
        assert await bus.publish("s", "a", numbered(1, 10)) == Published(0, 10)
        clock.at += 31 * 86400.0
        await bus.trim("s", upto=10, older_than_s=clock.at)
        assert await bus.publish("s", "a", numbered(1, 10)) == Published(10, 10)


# -- values


async def test_values_and_revisions(bus: EmbeddedBus) -> None:
    assert await bus.get("k") is None
    first = await bus.put("k", b"1", expected=0)
    assert await bus.get("k") == Value(b"1", first)
    second = await bus.put("k", b"2", expected=first)
    third = await bus.put("k", b"3")
    other = await bus.put("j", b"")
    assert first < second < third < other
    for expected in (0, first, second, third + 1):
        with pytest.raises(BusConflict, match=f"k is at revision {third}, not {expected}: read it again, then retry"):
            await bus.put("k", b"x", expected=expected)
    assert await bus.get("k") == Value(b"3", third)
    with pytest.raises(BusConflict, match="none is at revision 0, not 5"):
        await bus.put("none", b"x", expected=5)
    await bus.delete("k")
    assert await bus.get("k") is None
    assert await bus.put("k", b"4", expected=0) > other


async def test_of_many_compare_and_sets_one_wins(bus: EmbeddedBus) -> None:
    for rounds in range(5):
        value = await bus.get("lease")
        revision = value.revision if value else 0
        bodies = [f"{rounds}/{i}".encode() for i in range(20)]
        outcomes = await asyncio.gather(
            *(bus.put("lease", body, expected=revision) for body in bodies), return_exceptions=True
        )
        winners = [body for body, outcome in zip(bodies, outcomes, strict=True) if isinstance(outcome, int)]
        assert len(winners) == 1
        assert sum(isinstance(outcome, BusConflict) for outcome in outcomes) == 19
        value = await bus.get("lease")
        assert value is not None
        assert value.body == winners[0]


async def test_items_takes_its_prefix_to_the_letter(bus: EmbeddedBus) -> None:
    keys = ["a%b", "a_b", "axb", "A%b", "a%", "a", "a*b", "a?b", "ä%", "a'b", "a\\%", ""]
    for key in keys:
        await bus.put(key, key.encode())
    for prefix in ["", "a", "a%", "a_", "A", "ä", "a'", "a*", "a\\", "%", "a%b", "a%bc", "é"]:
        assert list(await bus.items(prefix)) == sorted(key for key in keys if key.startswith(prefix))
    assert {key: value.body.decode() for key, value in (await bus.items("")).items()} == {k: k for k in keys}


async def test_watch(bus: EmbeddedBus) -> None:
    await bus.put("admin/a", b"before")
    changes: list[tuple[str, bytes | None]] = []
    bus.watch("admin/", lambda key, value: changes.append((key, value.body if value else None)))
    await bus.put("admin/a", b"1")
    await bus.put("other", b"2")
    await bus.delete("admin/a")
    await bus.delete("admin/a")  # not there any more: no change
    with contextlib.suppress(BusConflict):
        await bus.put("admin/a", b"3", expected=99)
    assert changes == [("admin/a", b"1"), ("admin/a", None)]


# -- restart, concurrency, shutdown


async def test_everything_is_there_after_a_restart(file: Path) -> None:
    async with open_bus(file) as bus:
        await bus.publish("s", "a", numbered(1, 4))
        revision = await bus.put("k", b"v")
    async with open_bus(file) as bus:
        assert await kept(bus) == [(n, str(n).encode()) for n in range(1, 5)]
        assert await bus.get("k") == Value(b"v", revision)
        assert await bus.publish("s", "a", numbered(3, 6)) == Published(2, 6)
        assert await bus.put("k", b"w") > revision
    assert not file.with_name("bus.sqlite-wal").exists()  # closed cleanly: all is in the one file


async def test_writes_that_wait_share_a_commit(bus: EmbeddedBus) -> None:
    running = asyncio.Event()
    loop = asyncio.get_running_loop()
    groups: list[int] = []
    run_group = bus._run_group

    def counting(db: sqlite3.Connection, group: Any) -> None:
        groups.append(len(group))
        loop.call_soon_threadsafe(running.set)
        run_group(db, group)

    bus._run_group = counting  # type: ignore[method-assign]
    # All are queued before the loop runs again; the thread may have begun with the first few.
    await asyncio.gather(*(bus.publish("s", f"src{i}", numbered(1, 1)) for i in range(200)))
    assert sum(groups) == 200
    assert len(groups) < 50
    assert len(await kept(bus)) == 200


async def test_close_finishes_what_is_queued_then_refuses(file: Path) -> None:
    async with open_bus(file) as bus:
        pending = [asyncio.create_task(bus.publish("s", "a", numbered(n, n))) for n in range(1, 101)]
        await asyncio.sleep(0)  # each has queued its write
        await bus.close()
        assert [done.accepted for done in await asyncio.gather(*pending)] == [1] * 100
        await bus.close()
        with pytest.raises(BusUnavailable, match=f"the store {file} is closed: the appliance is shutting down"):
            await bus.publish("s", "a", numbered(101, 101))
        for call in (bus.get("k"), bus.put("k", b""), bus.items(""), bus.delete("k"), kept(bus)):
            with pytest.raises(BusUnavailable, match="is closed"):
                await call
    async with open_bus(file) as bus:
        assert len(await kept(bus)) == 100


async def test_a_caller_that_gave_up_does_not_undo_its_write(bus: EmbeddedBus) -> None:
    heard = Heard()
    await bus.subscribe("s", heard, after=0)
    task = asyncio.create_task(bus.publish("s", "a", numbered(1, 1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await bus.publish("s", "a", numbered(1, 2)) == Published(1, 2)
    assert heard == [(1, b"1"), (2, b"2")]


async def test_a_fault_inside_one_work_is_its_callers_alone(bus: EmbeddedBus) -> None:
    def broken(db: sqlite3.Connection) -> tuple[None, None]:
        db.execute("INSERT INTO latest VALUES ('half', x'00', 1)")
        raise ZeroDivisionError("a fault of ours")

    bad: Any = "not bytes but a str is stored as text"
    outcomes = await asyncio.gather(
        bus.publish("s", "a", numbered(1, 2)),
        bus._write(broken),
        bus.publish("s", "b", [Record(1, object())]),  # type: ignore[arg-type]
        bus.publish("s", "c", [Record(1 << 70, b"too large for SQLite")]),
        bus.put("k", bad, expected=7),
        bus.publish("s", "d", numbered(1, 1)),
        return_exceptions=True,
    )
    assert [type(o) for o in outcomes] == [
        Published, ZeroDivisionError, BusUnavailable, OverflowError, BusConflict, Published,
    ]  # fmt: skip
    assert await bus.get("half") is None
    assert await kept(bus) == [(1, b"1"), (2, b"2"), (3, b"1")]


# -- kill -9


def run_writer(file: Path, first: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("bus_writer.py")), str(file), str(first)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


async def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing(file: Path) -> None:
    rng = random.Random(9)
    acked = 0
    for _ in range(12):
        # An agent that was not answered sends again from what was acknowledged: some of it may be stored already.
        writer = run_writer(file, acked + 1)
        assert writer.stdout is not None
        for _ in range(rng.randint(1, 40)):
            acked = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        acked = int(([str(acked), *writer.stdout.read().split()])[-1])
        writer.stdout.close()
        writer.wait()
    async with open_bus(file) as bus:
        found = await kept(bus)
        last = len(found)
        assert found == [(n, str(n).encode()) for n in range(1, last + 1)]
        assert last >= acked
        assert last % 3 == 0  # a publish is stored whole or not at all
        assert await bus.publish("s", "a", numbered(1, last + 1)) == Published(1, last + 1)


# -- other trouble with the file


async def test_a_second_process_on_the_file_keeps_the_numbers_right(file: Path) -> None:
    async with open_bus(file) as bus:
        writer = run_writer(file, 1)
        try:
            assert writer.stdout is not None
            for n in range(1, 30):
                writer.stdout.readline()
                await bus.publish("s", "b", numbered(n, n))
        finally:
            writer.kill()
            writer.stdout.close()  # type: ignore[union-attr]
            writer.wait()
        found = await kept(bus)
        assert [p for p, _ in found] == list(range(1, len(found) + 1))
        assert await bus.publish("s", "b", numbered(1, 29)) == Published(0, 29)


async def test_a_file_held_by_another_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_bus(file) as bus:
        # The wait for a lock, 5 s, is the connection's; shorter here so that the test need not wait for it.
        await bus._write(lambda db: (db.execute("PRAGMA busy_timeout=50").fetchone(), None))
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(BusUnavailable, match=f"{file}.*another process holds it: is a second appliance running"):
            await bus.publish("s", "a", numbered(1, 1))
        other.execute("COMMIT")
        other.close()
        assert await bus.publish("s", "a", numbered(1, 1)) == Published(1, 1)


def scramble(file: Path, start: int, end: int | None = None) -> None:
    """Put random bytes in place of a part of a file, which is made if it is not there."""
    file.parent.mkdir(exist_ok=True)
    data = bytearray(file.read_bytes()) if file.exists() else bytearray(end or 0)
    data[start:end] = random.Random(1).randbytes(len(data[start:end]))
    file.write_bytes(data)


@pytest.mark.parametrize("size_bytes", [100, 5000, 100_000])
async def test_a_damaged_file_is_named(file: Path, size_bytes: int) -> None:
    scramble(file, 0, size_bytes)
    with pytest.raises(BusUnavailable, match=f"cannot use the store {file}.*the file is damaged: move it away"):
        await EmbeddedBus.open(file, AnchoredClock())
    os.unlink(file)  # what the message advises
    async with open_bus(file) as bus:
        assert await bus.publish("s", "a", numbered(1, 1)) == Published(1, 1)


async def test_damage_in_the_middle_is_found_when_it_is_read(file: Path) -> None:
    async with open_bus(file) as bus:
        await bus.publish("s", "a", [Record(n, bytes(900)) for n in range(1, 500)])
    # The first pages hold the roots of the tables; behind them are the records.
    scramble(file, 40960)
    async with open_bus(file) as bus:
        with pytest.raises(BusUnavailable, match=f"cannot use the store {file}.*the file is damaged"):
            await kept(bus)


async def test_a_store_of_another_version_is_left_alone(file: Path) -> None:
    async with open_bus(file):
        pass
    with contextlib.closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version=7")
    with pytest.raises(NearpathError, match="is of version 7, this program knows 1: use the nearpath version that"):
        await EmbeddedBus.open(file, AnchoredClock())


async def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in ("file/bus.sqlite", "folder", "nul\0/bus.sqlite"):
        with pytest.raises(NearpathError, match="cannot use"):
            await EmbeddedBus.open(tmp_path / place, AnchoredClock())


async def test_a_file_that_is_read_only_is_named(file: Path) -> None:
    async with open_bus(file):
        pass
    os.chmod(file, 0o400)
    if os.access(file, os.W_OK):
        pytest.skip("this user may write every file (root)")
    with pytest.raises(BusUnavailable, match="make the file and its folder writable for the daemon's user"):
        await EmbeddedBus.open(file, AnchoredClock())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs root and the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_disk_full(small_disk: Path) -> None:
    file = small_disk / "bus.sqlite"
    ballast = small_disk / "ballast"
    heard = Heard()
    async with open_bus(file) as bus:
        await bus.subscribe("s", heard, after=0)
        revision = await bus.put("k", b"v")
        await bus.publish("s", "a", numbered(1, 3))
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        acked, refused = 3, ""
        while not refused:
            try:
                acked = (await bus.publish("s", "a", [Record(acked + 1, bytes(900))])).last_sequence
            except BusUnavailable as error:
                refused = str(error)
        assert f"cannot use the store {file}" in refused
        assert "the disk is full: free some space; agents keep their samples until then" in refused
        # Reading goes on, and what was refused was not handed out.
        assert await bus.get("k") == Value(b"v", revision)
        assert [p for p, _ in heard] == list(range(1, acked + 1))
        with pytest.raises(BusUnavailable, match="disk is full"):
            await bus.publish("s", "b", [Record(n, bytes(900)) for n in range(1, 100)])
        ballast.unlink()
        assert (await bus.publish("s", "a", numbered(acked + 1, acked + 2))).accepted == 2
        assert [p for p, _ in heard] == list(range(1, acked + 3))
    async with open_bus(file) as bus:
        assert [p for p, _ in await kept(bus)] == list(range(1, acked + 3))
        assert await bus.publish("s", "a", numbered(1, acked + 2)) == Published(0, acked + 2)


async def test_closing_on_a_full_disk(small_disk: Path, recwarn: pytest.WarningsRecorder) -> None:
    async with open_bus(small_disk / "bus.sqlite") as bus:
        acked = 0
        with contextlib.suppress(BusUnavailable):
            while True:
                acked = (await bus.publish("s", "a", [Record(acked + 1, bytes(5000))])).last_sequence
    assert [str(w.message) for w in recwarn] == []  # no thread died of it
    with contextlib.closing(sqlite3.connect(small_disk / "bus.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM records").fetchone() == (acked,)
