"""What telling an OpenTelemetry collector costs: on the path of a request, and in the process beside the gateway.

The path is measured in this process, for it is a few microseconds and the CPU time of a gateway is told in hundredths of a
second. Every request is recorded, each with one attempt at an upstream.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry

from core.config_infer import Otlp
from local_infer.load.io_processes import Process
from local_infer.model import Ask, Client, Endpoint
from local_infer.telemetry.call import begin_call
from local_infer.telemetry.io_otlp import Telemetry
from local_infer.telemetry.note import Note

_COUNT = 20_000
_TURNS = 5
_URL = "http://127.0.0.1:1/v1"
_ANSWER = b'{"model":"bench","choices":[{"finish_reason":"stop"}],"text":"%s","usage":{}}' % (b"x" * 1000)


class _Pipe:
    """Takes everything."""

    returncode = None

    @property
    def stdin(self) -> _Pipe:
        return self

    @property
    def transport(self) -> _Pipe:
        return self

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes) -> None:
        pass


def measure_path() -> dict[str, float]:
    """Microseconds of CPU a request: with telemetry, and what its hooks cost when there is none."""
    return asyncio.run(_measure_path())


async def _measure_path() -> dict[str, float]:
    config = Otlp.model_validate({"endpoint": "http://127.0.0.1:1", "sample": "100%"})
    telemetry = Telemetry(config, "bench", time.time, random.Random(1), CollectorRegistry())
    telemetry._process = _Pipe()  # type: ignore[assignment]
    ask = Ask("id", Endpoint.CHAT, b"x" * 500, {}, "bench", False, Client("bench", "bench"), 0.0)

    def note() -> Note:
        one = Note("req", "/chat/completions", 1.0, "bench", "bench", False, 200, "upstream", "one")
        one.tail = _ANSWER
        return one

    def attempt(asked: Ask) -> None:
        call = begin_call(asked, "bench", "one", _URL, 1.0)
        call.status, call.first_s = 200, 1.1
        _headers = {"Accept": "application/json", **call.headers}
        call.end("ok", 1.2)

    def nothing() -> None:
        note()
        _headers = {"Accept": "application/json"}

    def off() -> None:
        note()
        attempt(ask)

    def on() -> None:
        one = note()
        one.trace = telemetry.begin({})
        attempt(replace(ask, trace=one.trace))
        telemetry.over(one, 1.3, (20, 100), ("127.0.0.1", 80))

    least = {work: min(_us_of(work) for _ in range(_TURNS)) for work in (nothing, off, on)}
    return {"otlp_us": least[on] - least[nothing], "otlp_off_us": least[off] - least[nothing]}


def _us_of(work: Callable[[], None]) -> float:
    before_s = time.process_time()
    for _ in range(_COUNT):
        work()
    return (time.process_time() - before_s) / _COUNT * 1e6


def measure_beside(process: Process, load: Callable[[], dict[str, Any]]) -> float:
    """Microseconds of CPU a request of the processes below the gateway during a run; the least of three."""
    found = []
    for _ in range(3):
        before_s = process.cpu_s() - process.own_cpu_s()
        count = load()["count"]
        found.append((process.cpu_s() - process.own_cpu_s() - before_s) / count * 1e6)
    return min(found)


@contextmanager
def collector() -> Iterator[str]:
    """An OTLP collector that takes everything and keeps nothing; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
