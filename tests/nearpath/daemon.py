"""A real `nearpath up` on loopback for tests: its files, its process, and ways to ask it."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from core.io_control import CONTROL_SOCKET

ROOT = Path(__file__).resolve().parents[2]
START_S = 20.0

Result = TypeVar("Result")

ZONE = """\
$TTL 300
@    IN SOA ns1 hostmaster 1 3600 600 86400 60
     IN NS  ns1
ns1  IN A   127.0.0.1
@    IN TXT "as it was"
"""

CONFIG = """\
version: 1
state_dir: state
dns: {listen: ["127.0.0.1:0", "[::1]:0"], nsid: box}
zones:
  - {origin: mirror.example., file: mirror.example.zone}
regions:
  north: {prefixes: [192.0.2.0/24]}
  south: {prefixes: [198.51.100.0/24]}
checks:
  web: {kind: http, port: 80, interval: 1s, timeout: 500ms}
mirrors:
  alpha: {addresses: [192.0.2.1], region: north}
  beta: {addresses: [198.51.100.1], region: south}
services:
  www.mirror.example.:
    mirrors: [alpha, beta]
    checks: [web]
agents: {}
report: {listen: ["127.0.0.1:0"]}
metrics: {listen: ["127.0.0.1:0"]}
"""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("nearpath", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """One folder with a configuration, and the appliance that runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "nearpath.yaml"
        self.log = folder / "nearpath.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.config.write_text(CONFIG)
        (folder / "mirror.example.zone").write_text(ZONE)

    def start(self, *options: str) -> None:
        """Start it and wait until it is ready."""
        with self.log.open("ab") as log:
            argv = [sys.executable, "-m", "nearpath.main", "up", "-c", str(self.config), *options]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT)
        wait_until(lambda: self.process_ended() or self.is_ready(), START_S, "the appliance is ready", self.log)
        assert not self.process_ended(), self.log.read_text()

    def process_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def is_ready(self) -> bool:
        try:
            return bool(self.status()["appliance"]["ready"])
        except OSError:
            return False

    def control(self, path: str) -> Any:
        """The JSON of the control socket: what the command line shows, without starting it."""
        connection = _UnixConnection(str(self.folder / "state" / CONTROL_SOCKET))
        connection.request("GET", path)
        with connection.getresponse() as response:
            return json.loads(response.read())

    def status(self) -> Any:
        """What `nearpath status --json` prints."""
        return self.control("/v1/status")

    def explain(self, name: str, client: str) -> Any:
        """What `nearpath explain NAME --client CLIENT --json` prints."""
        return self.control("/v1/explain?" + urllib.parse.urlencode({"name": name, "client": client}))

    def stop(self) -> int:
        """SIGTERM and wait; the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(10)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a `nearpath` command on this configuration."""
        argv = [sys.executable, "-m", "nearpath.main", *arguments, "-c", str(self.config)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def dig(self, *arguments: str) -> str:
        """Short output of dig at the appliance's IPv4 address."""
        host, _colon, port = self.status()["appliance"]["dns"][0].rpartition(":")
        argv = ["dig", f"@{host}", "-p", port, "+short", "+tries=1", "+time=2", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=15, check=True).stdout.strip()

    def edit(self, old: str, new: str) -> None:
        """Replace a text of the configuration; it must be there."""
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new))


@contextmanager
def daemon_in(folder: Path) -> Iterator[Daemon]:
    """A Daemon that is ended, whatever happens."""
    daemon = Daemon(folder)
    try:
        yield daemon
    finally:
        if not daemon.process_ended():
            daemon.kill()


def wait_until(predicate: Callable[[], Result], timeout_s: float, what: str, log: Path | None = None) -> Result:
    """Call `predicate` until it returns something true, and return that; fails with the log when time is up."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() > deadline:
            text = log.read_text() if log else ""
            raise AssertionError(f"not within {timeout_s} s: {what}; last: {result!r}\n{text}")
        time.sleep(0.05)
