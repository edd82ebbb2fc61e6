"""Real syncd nodes for tests: processes with a configuration of their own, on loopback, stopped or killed by pid."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
TOKEN = "a token of the test, 0123456789abcdef"[::-1].replace(" ", "-").replace(",", "")


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def ask_socket(socket_file: Path, method: str = "GET", path: str = "/v1/status", body: Any = None) -> Any:
    """What a syncd answers on its control socket; None when there is none."""
    connection = http.client.HTTPConnection("syncd", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(socket_file))
        connection.request(method, path, body=json.dumps(body) if body is not None else None)
        return json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


@dataclass
class Node:
    """One mirror node. `tree` is the published directory of its one tree `t`."""

    name: str
    home: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None
    wrap: Sequence[str] = ()
    """a command that starts the daemon given after it, with fewer rights or in a namespace, say"""

    @property
    def tree(self) -> Path:
        return self.home / "tree"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.home / "log").read_text("utf-8", "replace")

    def configure(self, parents: Sequence[Node] = (), children: Sequence[str] = (), key: str = "", **tree: Any) -> None:
        """Write its configuration; more keys of the tree as keywords."""
        self.home.mkdir(parents=True, exist_ok=True)
        token = self.home / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        config: dict[str, Any] = {"version": 1, "node": self.name, "state_dir": "state"}
        if children:
            digest = hashlib.sha256(TOKEN.encode()).hexdigest()
            config["listen"] = [f"127.0.0.1:{self.port}"]
            config["children"] = {child: {"token_sha256": digest} for child in children}
        if parents:
            config["parents"] = {parent.name: {"url": parent.url, "token_file": "token"} for parent in parents}
            tree = {"parents": [parent.name for parent in parents], "public_key": key, "poll": "1s", **tree}
        config["trees"] = {"t": {"path": str(self.tree), "reserve": {"size": "0B", "share": "0%"}, **tree}}
        (self.home / "syncd.yaml").write_text(yaml.safe_dump(config))

    def run(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        """The `syncd` command with this node's configuration."""
        command = [
            sys.executable,
            "-m",
            "syncd.main",
            arguments[0],
            "-c",
            str(self.home / "syncd.yaml"),
            *arguments[1:],
        ]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, **more)

    def key(self) -> str:
        """The public key of its tree."""
        done = self.run("key", "t")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self, wait: bool = True) -> None:
        """Start it; with `wait` until its control socket answers."""
        assert self.process is None
        command = [*self.wrap, sys.executable, "-m", "syncd.main", "run", "-c", str(self.home / "syncd.yaml")]
        with open(self.home / "log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        if wait:
            self.until(lambda: self.ask() is not None, "it answers")

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it with a signal, and wait for that; with SIGKILL its rsyncs are ended as well, as a power cut would."""
        if self.process is None:
            return
        process, self.process = self.process, None
        if how == signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        process.wait(30)

    def ask(self, method: str = "GET", path: str = "/v1/status", body: Any = None) -> Any:
        """What the control socket answers; None when there is none."""
        return ask_socket(self.home / "state" / "control.sock", method, path, body)

    def status(self) -> dict[str, Any]:
        """What it says of its tree."""
        answer = self.ask()
        return answer["trees"].get("t", answer) if answer else {}

    def until(self, holds: Callable[[], Any], what: str, timeout_s: float = 60.0) -> None:
        """Wait for something; fails with the node's log and status when it does not come."""
        until_s = time.monotonic() + timeout_s
        while not holds():
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}:\n{self.log[-3000:]}")
            if time.monotonic() > until_s:
                raise AssertionError(
                    f"{self.name}: not within {timeout_s:g} s: {what}\n{self.status()}\n{self.log[-3000:]}"
                )
            time.sleep(0.02)

    def until_current(self, root_hash: str, timeout_s: float = 60.0) -> None:
        """Wait until it has the tree with this root hash."""
        self.until(lambda: self.status().get("root_hash") == root_hash, f"the tree of {root_hash[:12]}", timeout_s)


@contextlib.contextmanager
def running(*nodes: Node) -> Iterator[None]:
    """All nodes started, and stopped at the end whatever happens."""
    try:
        for node in nodes:
            node.start()
        yield
    finally:
        for node in nodes:
            node.stop(signal.SIGKILL)


def differences(origin: Path, copy: Path, exclude: Sequence[str] = ()) -> list[str]:
    """What rsync would do to make the copy the same: by content, with modes and all times. Fifos are not replicated."""
    left_out = [f"--exclude={pattern}" for pattern in exclude]
    command = ["rsync", "-anic", "--no-D", "--delete", *left_out, f"{origin}/", f"{copy}/"]
    done = subprocess.run(command, capture_output=True, timeout=120)
    if done.returncode in (23, 24):
        return ["something changed while rsync looked"]
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("utf-8", "backslashreplace").splitlines()
    return [line for line in lines if not line.startswith("skipping non-regular file")]
