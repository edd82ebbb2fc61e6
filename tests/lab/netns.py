"""Network namespaces of the lab: named after their owner, entered, and removed again, also those a killed run left.

A name is `lab-PID-START-SERIAL-NODE`; START is the owner's start time, so a number that the kernel gave out again is not
taken for the owner. Whoever's owner is gone may be removed.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pyroute2 import netns as pyroute2_netns

DIRECTORY = Path("/run/netns")
CLONE_NEWNET = 0x40000000
OURS = re.compile(r"lab-(\d+)-(\d+)-\d+-.+")

Result = TypeVar("Result")

_libc = ctypes.CDLL(None, use_errno=True)


def why_not_here() -> str | None:
    """What this machine lacks to run the lab, or None."""
    if os.geteuid() != 0:
        return "the lab makes network namespaces and TUN devices: needs root"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "the lab needs /dev/net/tun (kernel module tun)"
    if not Path("/proc/self/ns/net").exists():
        return "the lab needs network namespaces (CONFIG_NET_NS)"
    return None


def prefix(serial: int) -> str:
    """The first part of the names of this process's lab number `serial`."""
    return f"lab-{os.getpid()}-{_start_time(os.getpid())}-{serial}-"


def create(name: str) -> None:
    """Make a namespace. Only for a process with one thread (it forks)."""
    pyroute2_netns.create(name)


def enter(name: str) -> None:
    """Move the calling thread into a namespace. There is no way back: see `call_inside`."""
    path = DIRECTORY / name
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"cannot enter network namespace {path}: {os.strerror(error)}")
    finally:
        os.close(descriptor)


def call_inside(name: str, function: Callable[[], Result]) -> Result:
    """Run a function in a namespace, in a thread of its own, so the caller never leaves its own namespace."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def inside() -> None:
        try:
            enter(name)
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=inside, name=f"in-{name}")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def open_socket(name: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of the namespace; it stays there wherever it is used."""
    return call_inside(name, lambda: socket.socket(family, kind, protocol))


def pids(name: str) -> list[int]:
    """Processes whose main thread is in the namespace."""
    try:
        wanted = os.stat(DIRECTORY / name)
    except OSError:
        return []
    own = os.stat("/proc/self/ns/net")
    if (wanted.st_dev, wanted.st_ino) == (own.st_dev, own.st_ino):
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):  # it ended meanwhile
                status = os.stat(f"/proc/{entry}/ns/net")
                if (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino):
                    found.append(int(entry))
    return found


def remove(names: Iterable[str]) -> None:
    """End what still runs in these namespaces, and remove them. Those that are gone already are fine."""
    for name in names:
        if OURS.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not a namespace of the lab")
        for _ in range(20):  # a process may be forking right now
            running = pids(name)
            if not running:
                break
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        with suppress(OSError):  # not mounted: only the file is left
            pyroute2_netns.remove(name)
        (DIRECTORY / name).unlink(missing_ok=True)


def listed(start: str = "lab-") -> list[str]:
    """Names of the lab's namespaces that begin with `start`."""
    if not DIRECTORY.is_dir():
        return []
    return sorted(entry for entry in os.listdir(DIRECTORY) if entry.startswith(start) and OURS.fullmatch(entry))


def remove_stale() -> list[str]:
    """Remove the namespaces of labs whose owner is gone; returns their names."""
    stale = [name for name in listed() if not _owner_lives(name)]
    remove(stale)
    return stale


def _owner_lives(name: str) -> bool:
    match = OURS.fullmatch(name)
    return match is not None and _start_time(int(match[1])) == int(match[2])


def _start_time(pid: int) -> int | None:
    """The process's start in clock ticks since boot (proc(5), stat field 22), None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
