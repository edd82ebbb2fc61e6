"""The life of a daemon as systemd sees it: a process with a notification socket, real signals, and an end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WAIT_S = 20.0

DAEMON = """
import asyncio, sys
from core.errors import ConfigError, NearpathError, Problem
from core.io_life import Life, errors_printed, live
from core.io_log import set_up_logging

kind = sys.argv[1]
reloads = []

async def start():
    print("starting", flush=True)
    try:
        if kind == "slow":
            await asyncio.sleep(60)
        if kind == "refused":
            raise NearpathError("the port is taken", "free it")
        if kind == "misconfigured":
            raise ConfigError([Problem("x.yaml", 3, "listen", "is no address")])
    except asyncio.CancelledError:
        print("undone", flush=True)
        raise

    async def reload():
        reloads.append(1)
        if len(reloads) == 1:
            raise NearpathError("line 3 is wrong", "mend it")
        if len(reloads) == 2:
            raise KeyError("a fault of ours")

    async def close():
        print("closed", flush=True)

    async def is_well():
        if kind == "ill":
            print("asked", flush=True)
        return kind != "ill"

    async def work():
        await asyncio.sleep(0 if kind == "fails" else 60)
        raise NearpathError("the disk is full")

    return Life(status=lambda: "serving", reload=reload, close=close, is_well=is_well, work=work)

set_up_logging()
with errors_printed("toy", 4 if kind == "refused" else None):
    asyncio.run(live(start))
"""


class Toy:
    def __init__(self, kind: str, folder: Path) -> None:
        self.notes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notes.bind(str(folder / "notify"))
        self.notes.settimeout(WAIT_S)
        env = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "100000"}
        env.pop("WATCHDOG_PID", None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, kind], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def noted(self, first: str, between: str = "WATCHDOG=1") -> str:
        """The next notification that begins with `first`; before it, there may be only `between`."""
        while not (note := self.notes.recv(4096).decode()).startswith(first):
            assert note.startswith(between), note
        return note

    def end(self, number: int = 0) -> tuple[int, str, str]:
        """(exit status, stdout, stderr), after a signal."""
        if number:
            self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, errors


@contextmanager
def toy(kind: str, folder: Path) -> Iterator[Toy]:
    one = Toy(kind, folder)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()
        one.notes.close()


def test_a_whole_life(tmp_path: Path) -> None:
    with toy("good", tmp_path) as daemon:
        assert daemon.noted("READY=1", "-") == "READY=1\nSTATUS=serving"
        daemon.noted("WATCHDOG=1")

        daemon.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in daemon.noted("RELOADING=1")
        failed = "READY=1\nSTATUS=reload failed, the old configuration runs on: line 3 is wrong; serving"
        assert daemon.noted("READY=1") == failed
        daemon.process.send_signal(signal.SIGHUP)
        daemon.noted("RELOADING=1")
        assert "STATUS=reload failed, see the log: KeyError('a fault of ours'); serving" in daemon.noted("READY=1")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.noted("RELOADING=1")
        assert daemon.noted("READY=1") == "READY=1\nSTATUS=serving"

        daemon.process.send_signal(signal.SIGTERM)
        daemon.noted("STOPPING=1")
        status, out, errors = daemon.end()
    assert (status, out) == (0, "starting\nclosed\n")
    assert errors.count("reload_failed") == 2
    assert "line 3 is wrong: mend it" in errors


def test_the_watchdog_is_fed_by_proof_only(tmp_path: Path) -> None:
    with toy("ill", tmp_path) as daemon:
        daemon.noted("READY=1", "-")
        assert daemon.process.stdout is not None
        assert [daemon.process.stdout.readline() for _ in range(3)] == ["starting\n", "asked\n", "asked\n"]
        daemon.process.send_signal(signal.SIGINT)
        daemon.noted("STOPPING=1", "-")
        assert daemon.end()[0] == 0


def test_told_to_stop_while_it_starts(tmp_path: Path) -> None:
    with toy("slow", tmp_path) as daemon:
        assert daemon.process.stdout is not None
        assert daemon.process.stdout.readline() == "starting\n"
        assert daemon.end(signal.SIGTERM)[:2] == (0, "undone\n")


@pytest.mark.parametrize(
    ("kind", "status", "said", "out"),
    [
        ("fails", 1, "toy: the disk is full", "starting\nclosed\n"),
        ("refused", 4, "toy: the port is taken: free it", "starting\n"),
        ("misconfigured", 78, "  x.yaml:3: listen: is no address", "starting\n"),
    ],
)
def test_an_error_ends_it_with_words_and_a_status(kind: str, status: int, said: str, out: str, tmp_path: Path) -> None:
    with toy(kind, tmp_path) as daemon:
        ended = daemon.end()
    assert ended[:2] == (status, out)
    assert said in ended[2].splitlines()
    assert "Traceback" not in ended[2]
