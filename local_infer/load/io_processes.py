"""Processes of a benchmark: CPU time and memory of one and its children; a gateway, and played upstreams for it."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from core.errors import NearpathError
from core.io_state import find_holder

KEY = "np-bench-key"
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_START_S = 60.0


class Watched:
    """A running process, with its children: what it costs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu_s(self) -> float:
        """User and system time so far, in all threads, of the process and its children (ended ones too)."""
        return sum(self._cpu_s(pid) for pid in self._family())

    def own_cpu_s(self) -> float:
        """The same of the process alone."""
        return self._cpu_s(self.pid)

    def rss_mb(self) -> float:
        """Resident memory of the process and its children."""
        return sum(self._rss_mb(pid) for pid in self._family())

    def alive(self) -> bool:
        """Whether it still runs."""
        return self._read(self.pid, "stat").rpartition(")")[2].split()[:1] not in ([], ["Z"])

    def _family(self) -> list[int]:
        found = [self.pid]
        for pid in found:
            try:
                tasks = os.listdir(f"/proc/{pid}/task")
            except OSError:
                continue
            for task in tasks:
                found += [int(child) for child in self._read(pid, f"task/{task}/children").split()]
        return found

    def _cpu_s(self, pid: int) -> float:
        fields = self._read(pid, "stat").rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) * _TICK_S

    def _rss_mb(self, pid: int) -> float:
        match = re.search(r"VmRSS:\s+(\d+)", self._read(pid, "status"))
        return int(match[1]) / 1024 if match else 0.0

    @staticmethod
    def _read(pid: int, name: str) -> str:
        try:
            return Path(f"/proc/{pid}/{name}").read_text()
        except OSError:
            return ""


class Process(Watched):
    """A child of ours. `stderr` goes to a file, or where ours goes."""

    def __init__(self, *command: str, env: Mapping[str, str] | None = None, stderr: IO[bytes] | None = None) -> None:
        own = {**os.environ, **(env or {})}
        # Our packages, also when they are not installed.
        own["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parents[2]), own.get("PYTHONPATH")])
        )
        # In a group of its own: Ctrl-C ends the run, and the run ends its children, in the right order.
        self.child = subprocess.Popen(
            command, env=own, stdout=subprocess.PIPE, stderr=stderr, text=True, process_group=0
        )
        super().__init__(self.child.pid)

    def line(self) -> str:
        """The next line that it prints."""
        assert self.child.stdout is not None
        return self.child.stdout.readline()

    def stop(self) -> None:
        """End it, with force when it must be."""
        self.child.send_signal(signal.SIGTERM)
        try:
            self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
        if self.child.stdout is not None:
            self.child.stdout.close()


def pid_of(state_dir: Path) -> int:
    """The gateway that runs on a state_dir; NearpathError when none does, or it cannot be seen."""
    try:
        pid, why = find_holder(state_dir), ""
    except OSError as error:
        pid, why = 0, f" ({error.strerror})"
    if not pid:
        raise NearpathError(f"no gateway runs on {state_dir}{why}", "is it running? else give --pid")
    return pid


@contextmanager
def playing_upstreams(count: int, seed: int) -> Iterator[tuple[list[str], Callable[[], None]]]:
    """Played upstreams; their base URLs, and what makes them misbehave in turns from then on."""
    process = Process(sys.executable, "-m", "local_infer.load.io_upstream", str(count), str(seed))
    try:
        ports = process.line().split()
        if len(ports) != count:
            raise NearpathError("the played upstreams did not start", "what they said is above")
        yield [f"http://127.0.0.1:{port}/v1" for port in ports], lambda: process.child.send_signal(signal.SIGUSR1)
    finally:
        process.stop()


@contextmanager
def running_gateway(
    folder: Path, urls: Sequence[str], stderr: IO[bytes] | None, **more: Any
) -> Iterator[tuple[Process, int]]:
    """A gateway in front of these upstreams for the key KEY, as it comes but for `more`; the process and its port."""
    port = free_port()
    config = {
        "version": 1,
        "state_dir": str(folder / f"state-{port}"),
        "listen": [f"127.0.0.1:{port}"],
        "keys": {"bench": {"token_sha256": hashlib.sha256(KEY.encode()).hexdigest()}},
        "upstreams": {f"up-{number}": {"url": url} for number, url in enumerate(urls)},
        "metrics": {"listen": []},
        **more,
    }
    file = folder / f"gateway-{port}.yaml"
    file.write_text(yaml.safe_dump(config, allow_unicode=True))
    process = Process(sys.executable, "-m", "local_infer.main", "run", "-c", str(file), stderr=stderr)
    try:
        wait_for(port, process)
        yield process, port
    finally:
        process.stop()


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int, process: Process, most_s: float = _START_S) -> None:
    """Until somebody listens there; NearpathError when the process ended or took too long."""
    command = " ".join(map(str, process.child.args)) if isinstance(process.child.args, list | tuple) else ""
    ends = time.monotonic() + most_s
    while time.monotonic() < ends:
        if process.child.poll() is not None:
            raise NearpathError(
                f"`{command}` ended with status {process.child.returncode}", "what it said is above, or in its log"
            )
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            time.sleep(0.3)
            return
    raise NearpathError(f"`{command}` does not listen on port {port}", "look at its log")
