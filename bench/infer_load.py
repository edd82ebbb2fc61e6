"""The load generator of the gateway's benchmark: keep-alive connections, so cheap that a core is left to it.

`python -m bench.infer_load SETTINGS` prints one JSON object. SETTINGS is one too: port, path, key, connections, seconds,
body (`@` is a number that changes), and perhaps rate, distinct and linger_s. With a rate requests start at their planned
times, and latency counts from there (no coordinated omission); without it each connection asks again at once.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from typing import Any

import uvloop


class Connection(asyncio.Protocol):
    """One keep-alive connection; `ask` when it is free."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._data = bytearray()
        self._head = -1
        self._length = -1
        self._planned_s = 0.0
        self._busy = False
        self._forwarded = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def ask(self, planned_s: float) -> None:
        """Send the next request."""
        assert self._transport is not None
        self._planned_s, self._busy = planned_s, True
        self._data.clear()
        self._head = -1
        self._forwarded = False
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        """Collect one response; only its borders and status are looked at."""
        self._data += data
        self._load.chunks += data.count(b"data: ")
        if self._head < 0:
            self._head = self._data.find(b"\r\n\r\n")
            if self._head < 0:
                return
            head = bytes(self._data[: self._head]).lower()
            at = head.find(b"content-length:")
            self._length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else -1
            self._load.first_s.append(time.perf_counter() - self._planned_s)
        if not self._forwarded and self._length < 0 and (at := self._data.find(b'"sent_ns":')) >= 0:
            self._forwarded = True
            sent_ns = int(self._data[at + 10 : at + 40].split(b",", 1)[0])
            self._load.forwarded_s.append((time.monotonic_ns() - sent_ns) / 1e9)
        done = (
            len(self._data) >= self._head + 4 + self._length
            if self._length >= 0
            else self._data.endswith(b"\r\n0\r\n\r\n")
        )
        if done:
            self._busy = False
            self._load.over(self, self._data[9:12] == b"200", self._planned_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """A request under way has failed."""
        if self._busy:
            self._load.errors += 1


class Load:
    """One run."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()
        self._count = 0
        self._stopping = False
        self.latencies_s: list[float] = []
        self.first_s: list[float] = []
        self.forwarded_s: list[float] = []
        """from when the upstream sent the first event of a stream until it was here"""
        self.errors = 0
        self.chunks = 0

    def next_request(self) -> bytes:
        """Bytes of the next request; bodies differ when `distinct` is set."""
        settings = self._settings
        self._count += 1
        body = settings["body"].replace("@", str(self._count % settings.get("distinct", 1))).encode()
        return (
            f"POST {settings['path']} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {settings['key']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def over(self, connection: Connection, good: bool, planned_s: float) -> None:
        """A response is whole."""
        now = time.perf_counter()
        self.latencies_s.append(now - planned_s)
        self.errors += not good
        if self._stopping:
            return
        if not self._settings.get("rate"):
            connection.ask(now)
        elif self._waiting:
            connection.ask(self._waiting.popleft())
        else:
            self._free.append(connection)

    async def run(self) -> dict[str, Any]:
        """The whole run; times in ms."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        for _ in range(settings["connections"]):
            _transport, connection = await loop.create_connection(
                lambda: Connection(self), "127.0.0.1", settings["port"]
            )
            self._free.append(connection)
        started = time.perf_counter()
        cpu_s = time.process_time()
        if settings.get("rate"):
            await self._paced(started)
        else:
            for connection in self._free:
                connection.ask(time.perf_counter())
            await asyncio.sleep(settings["seconds"])
        elapsed_s = time.perf_counter() - started
        cpu_s = time.process_time() - cpu_s
        count = len(self.latencies_s)
        self._stopping = True
        await asyncio.sleep(settings.get("linger_s", 0.2))
        return {
            "rps": count / elapsed_s,
            "count": count,
            "errors": self.errors,
            "chunks": self.chunks,
            "own_cpu_s": cpu_s,
            "elapsed_s": elapsed_s,
            **{f"p{p:g}_ms": _percentile(self.latencies_s, p) * 1e3 for p in (50, 95, 99)},
            **{f"first_p{p:g}_ms": _percentile(self.first_s, p) * 1e3 for p in (50, 99)},
            **{f"forwarded_p{p:g}_ms": _percentile(self.forwarded_s, p) * 1e3 for p in (50, 99)},
        }

    async def _paced(self, started: float) -> None:
        rate, sent = self._settings["rate"], 0
        while (now := time.perf_counter()) - started < self._settings["seconds"]:
            due = int((now - started) * rate)
            while sent < due:
                planned_s = started + (sent + 1) / rate
                sent += 1
                if self._free:
                    self._free.popleft().ask(planned_s)
                else:
                    self._waiting.append(planned_s)
            await asyncio.sleep(max(0.0, started + (sent + 1) / rate - time.perf_counter()))


def _percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(Load(json.loads(sys.argv[1])).run())))
