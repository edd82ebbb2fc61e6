"""A real mirror for the lab: a small HTTP server that says its name and can be told to misbehave.

    GET /            200, the mirror's name as text (HEAD as well)
    GET /bytes/N     200, N bytes of a fixed pattern (see `pattern`)

Run by `start_mirror` as a program on a node. How it behaves is the text in its control file, read at each request:

    ok               answer at once (also when there is no such file)
    slow SECONDS     answer after so long
    hang             take the request and never answer
    status CODE      answer with this status, such as 503
    reset            close the connection with RST, without an answer
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.lab.wan import LabProcess, Wan

READY = "mirror is ready"
START_S = 20.0
MAX_BYTES = 1 << 30


def pattern(size: int) -> bytes:
    """The body of /bytes/SIZE: no two places within 64 KiB look alike, so a lost or swapped segment shows."""
    block = b"".join(struct.pack("!I", number * 2654435761 % 2**32) for number in range(16384))
    return (block * (size // len(block) + 1))[:size]


class Handler(BaseHTTPRequestHandler):
    """Answers as the control file says."""

    protocol_version = "HTTP/1.1"
    server: MirrorServer

    def do_GET(self) -> None:
        order, _, value = self.server.behaviour().partition(" ")
        if order == "hang":
            self.rfile.read()  # until the client gives up
            self.close_connection = True
            return
        if order == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        if order == "slow":
            time.sleep(float(value))
        status, body = 200, self.server.mirror_name.encode() + b"\n"
        if order == "status":
            status, body = int(value), b"as the lab asked\n"
        elif self.path.startswith("/bytes/"):
            size = self.path.removeprefix("/bytes/")
            if not size.isdigit() or int(size) > MAX_BYTES:
                status, body = 400, f"/bytes/N, with N up to {MAX_BYTES}\n".encode()
            else:
                body = pattern(int(size))
        elif self.path != "/":
            status, body = 404, b"the mirror has / and /bytes/N\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET


class MirrorServer(ThreadingHTTPServer):
    """Listens on IPv4 and IPv6."""

    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, name: str, host: str, port: int, control: Path) -> None:
        self.mirror_name = name
        self.control = control
        if ":" not in host:
            self.address_family = socket.AF_INET
        super().__init__((host, port), Handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def behaviour(self) -> str:
        """What the control file says now."""
        try:
            return self.control.read_text().strip() or "ok"
        except FileNotFoundError:
            return "ok"


class Mirror:
    """A mirror that runs in the lab: its process, and what the test can tell it."""

    def __init__(self, process: LabProcess, control: Path) -> None:
        self.process = process
        self._control = control

    def behave(self, order: str) -> None:
        """Set the behaviour from the next request on: one of the lines at the head of this file."""
        if order.split(" ")[0] not in {"ok", "slow", "hang", "status", "reset"}:
            raise ValueError(f"{order!r} is not a behaviour of the lab's mirror")
        new = self._control.with_suffix(".new")
        new.write_text(order)
        os.replace(new, self._control)  # never half written

    def kill(self) -> None:
        """kill -9: connections are refused from now on."""
        self.process.kill()


def start_mirror(wan: Wan, node: str, port: int = 80) -> Mirror:
    """Start a mirror on all addresses of a node, named like it; returns when it listens."""
    return start_mirrors(wan, [node], port)[0]


def start_mirrors(wan: Wan, nodes: list[str], port: int = 80) -> list[Mirror]:
    """Start several at the same time."""
    mirrors = []
    for node in nodes:
        control = wan.directory / f"{node}-mirror.control"
        control.unlink(missing_ok=True)
        process = wan.python(
            node, "-m", "tests.lab.mirror_server", node, "::", str(port), control, name=f"{node}-mirror"
        )
        mirrors.append(Mirror(process, control))
    for mirror in mirrors:
        process = mirror.process
        wan.wait_until(lambda process=process: READY in process.text(), START_S, f"{process.name} listens")  # type: ignore[misc]
    return mirrors


def main() -> None:
    name, host, port, control = sys.argv[1:]
    with MirrorServer(name, host, int(port), Path(control)) as server:
        print(f"{READY}: {name} on {host} port {server.server_address[1]}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
