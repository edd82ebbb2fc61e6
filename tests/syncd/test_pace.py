"""Limits of the time of day, kept by all streams of a tree together, and followed while they run."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest

from core.config_sync import Bandwidth
from syncd.transfer import io_pace
from syncd.transfer.io_connector import PURSE, Purse, copy
from syncd.transfer.io_pace import Pace


@pytest.fixture
def file(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "purse")


def rule(size: int) -> Bandwidth:
    return Bandwidth.model_validate({"per_second": f"{size}B"})


def purse(file: bytes) -> Purse:
    return Purse(os.open(file, os.O_RDWR))


async def test_what_one_stream_receives_is_missing_to_the_others(file: bytes) -> None:
    async with Pace([rule(1000)]).purse(file):
        one, other = purse(file), purse(file)
        assert one.pause_s() == other.pause_s() == (0.0, 1024)
        one.spend(1_000_000)
        assert one.pause_s()[0] == other.pause_s()[0] == 1.0, "then it is looked again"
    async with Pace([]).purse(file):
        one.spend(1_000_000)
        assert one.pause_s() == other.pause_s() == (0.0, 65536), "no limit"


async def test_another_limit_is_told_to_streams_that_run(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace([rule(1000)])
    monkeypatch.setattr(io_pace, "LOOK_EVERY_S", 0.01)
    async with pace.purse(file):
        stream = purse(file)
        stream.spend(1_000_000)
        assert stream.pause_s()[0]
        monkeypatch.setattr(pace, "now", lambda: 0)
        while stream.pause_s()[0]:  # noqa: ASYNC110 (it stands in a file)
            await asyncio.sleep(0.01)
        monkeypatch.setattr(pace, "now", lambda: 7)
        await asyncio.wait_for(pace.until_changed(0), 60)


def test_a_stream_that_has_to_pause_goes_on_when_it_need_not_any_more(file: bytes) -> None:
    with open(file, "wb") as made:
        made.write(PURSE.pack(1, -1e9, 0.0))
    theirs, ours = socket.socketpair()
    (out, sink), (source, into) = os.pipe(), os.pipe()
    stream = threading.Thread(target=copy, args=(ours, b"", source, sink, purse(file)))
    stream.start()
    theirs.sendall(b"x" * 10_000)
    os.set_blocking(out, False)
    os.write(into, b"what rsync says goes on its way all the same")
    assert theirs.recv(100)
    with pytest.raises(BlockingIOError):
        os.read(out, 1)
    with open(file, "r+b") as made:
        made.write(PURSE.pack(0, -1e9, 0.0))
    os.set_blocking(out, True)
    came = 0
    while came < 10_000:
        came += len(os.read(out, 65536))
    theirs.close()
    stream.join(60)
    assert not stream.is_alive()
    ours.close()
    for fd in (out, sink, source, into):
        os.close(fd)


def test_the_lowest_limit_is_that_of_any_time() -> None:
    assert (Pace([]).slowest(), Pace([]).now(), bool(Pace([]))) == (0, 0, False)
    rules = [rule(size) for size in (0, 300, 200)]
    assert (Pace(rules).slowest(), Pace(rules).now()) == (200, 0)
