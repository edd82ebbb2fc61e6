"""Running daemons for `bench_sync`: an origin and its copies, each a process of its own, in one temporary directory."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.tokens import token_sha256
from syncd.store.signed_root import public_key

TREE = "bench"
START_S = 600.0

Launch = Callable[[Sequence[str], Path], "subprocess.Popen[bytes]"]


@dataclass(frozen=True, slots=True)
class SyncNode:
    """A running daemon with the one tree at `path`."""

    name: str
    path: Path
    home: Path
    process: subprocess.Popen[bytes]

    def status(self) -> dict[str, Any]:
        """What `syncd status` says, all of it."""
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.home / "state" / "control.sock"))
        connection.request("GET", "/v1/status")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return found

    def tree(self) -> dict[str, Any]:
        """The status of the tree."""
        found: dict[str, Any] = self.status()["trees"][TREE]
        return found

    def processor_s(self) -> float:
        """Processor seconds of the daemon so far, with children that ended."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        """Peak resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def launch_here(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a program in this network."""
    with log.open("ab") as out:
        return subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


@dataclass(slots=True)
class Fleet:
    """Nodes of one origin's tree; children are named when it is made, since their parents must know their tokens."""

    top: Path
    host: str = "127.0.0.1"
    launch: dict[str, Launch] = field(default_factory=dict)
    """how to start a node, where not here"""
    nodes: list[SyncNode] = field(default_factory=list)
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            node.stop()

    def start(
        self,
        name: str,
        *,
        parents: Sequence[SyncNode] = (),
        children: Sequence[str] = (),
        host: str = "",
        port: int = 0,
        options: dict[str, Any] | None = None,
        path: Path | None = None,
    ) -> SyncNode:
        """Start a node and wait until it serves: the origin, or a copy of its `parents`' tree."""
        home = self.top / name
        home.mkdir()
        path = path or home / "tree"
        path.mkdir(exist_ok=True)
        host = host or self.host
        tree: dict[str, Any] = {"path": str(path), "deletes": {"files": 10_000_000, "share": "100%"}}
        tree["reserve"] = {"size": "0B", "share": "0%"}
        tree |= options or {}
        config: dict[str, Any] = {"version": 1, "node": name, "state_dir": "state", "trees": {TREE: tree}}
        if parents:
            _write_secret(home / "token", _token(name))
            tree |= {"parents": [node.name for node in parents], "public_key": public_key(self.seed).hex()}
            config["parents"] = {
                node.name: {
                    "url": f"https://{node.status()['addresses'][0]}",
                    "token_file": "token",
                    "ca_file": str(node.home / "cert.pem"),
                }
                for node in parents
            }
        else:
            _write_secret(home / "key", self.seed.hex())
            tree["key_file"] = str(home / "key")
        if children:
            make_certificate(home, host)
            config |= {"listen": [f"{host}:{port}"], "tls": {"cert": "cert.pem", "key": "key.pem"}}
            config["children"] = {child: {"token_sha256": token_sha256(_token(child))} for child in children}
        (home / "syncd.yaml").write_text(json.dumps(config))  # JSON is YAML
        argv = [sys.executable, "-m", "syncd.main", "run", "-c", str(home / "syncd.yaml")]
        node = SyncNode(name, path, home, self.launch.get(name, launch_here)(argv, home / "log"))
        self.nodes.append(node)
        wait_until(lambda: _serves(node), START_S, f"{name} to serve")
        return node


@dataclass(frozen=True, slots=True)
class Pair:
    """Two running daemons: what is written below `origin_dir` comes to `child_dir`."""

    origin_dir: Path
    child_dir: Path
    origin: SyncNode
    child: SyncNode
    fleet: Fleet

    def stop(self) -> None:
        """End both."""
        self.fleet.__exit__()


def start_pair(top: Path, options: dict[str, Any] | None = None) -> Pair:
    """An origin and one child of it, over TLS on loopback, both with empty trees."""
    fleet = Fleet(top)
    try:
        origin = fleet.start("origin", children=["child"])
        child = fleet.start("child", parents=[origin], options=options)
        wait_until(lambda: is_current(child), START_S, "the child to be current")
    except BaseException:
        fleet.__exit__()
        raise
    return Pair(origin.path, child.path, origin, child, fleet)


def is_current(node: SyncNode) -> bool:
    """Whether a copy has all that its parent told."""
    return str(node.tree()["state"]) == "current"


def make_certificate(home: Path, host: str) -> None:
    """cert.pem and key.pem in `home`, for the address `host`."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-days", "2", "-keyout", f"{home}/key.pem", "-out", f"{home}/cert.pem", "-subj", "/CN=bench"]
    subprocess.run([*made, "-addext", f"subjectAltName=IP:{host}"], check=True, capture_output=True)


def wait_until(is_so: Callable[[], bool], timeout_s: float, what: str) -> float:
    """Ask every 10 ms; how many seconds it took. SystemExit when it takes too long: nothing was measured then."""
    started = time.monotonic()
    while not is_so():
        if time.monotonic() - started > timeout_s:
            raise SystemExit(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.01)
    return time.monotonic() - started


def _serves(node: SyncNode) -> bool:
    if node.process.poll() is not None:
        log = (node.home / "log").read_text(errors="replace")
        raise SystemExit(f"{node.name} ended with {node.process.returncode}:\n{log[-2000:]}")
    try:
        return str(node.tree()["state"]) != "starting"
    except (OSError, http.client.HTTPException):
        return False


def _token(name: str) -> str:
    return f"token-of-{name}"  # on loopback, for as long as a benchmark


def _write_secret(file: Path, text: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as stream:
        stream.write(text)
