"""The gateway's side of OpenTelemetry: ids at a request's start, one record at its end, handed to a process of its own.

The OpenTelemetry SDK costs about 100 us a span and holds the GIL while it encodes; so it runs in another process
(`io_otlp_child`). Here a record is a tuple; what the pipe does not take is dropped and counted, never waited for.
"""

from __future__ import annotations

import asyncio
import json
import marshal
import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig, Otlp
from core.errors import NearpathError
from core.io_log import get_logger
from local_infer.model import Clock
from local_infer.telemetry.note import Note
from local_infer.telemetry.otlp_metrics import OtlpMetrics
from local_infer.telemetry.records import Attempt, Exchange
from local_infer.telemetry.trace_context import Trace, is_sampled, read_parent

_log = get_logger("otlp")

_FLUSH_S = 0.25
_BATCH = 64
_MOST_WAITING_BYTES = 1 << 20
"""In the pipe's buffer, about 2,000 records: a second of full traffic, so that a process that starts anew loses little."""
_ENDS_BYTES = 1024
"""Of the beginning and the end of an answer: model, finish reason and `[DONE]` stand there."""
_RESTART_S = 5.0
_END_S = 3.0
_MAX_HEADERS_BYTES = 65536
_ROOT = str(Path(__file__).resolve().parents[2])


def check_extra() -> None:
    """NearpathError when the `otlp` extra is not installed."""
    try:
        missing = not (find_spec("opentelemetry.sdk") and find_spec("opentelemetry.exporter.otlp.proto.http"))
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise NearpathError(
            "otlp is configured, but OpenTelemetry is not installed",
            "install nearpath with the `otlp` extra, or leave out `otlp`",
        )


def read_headers(file: str) -> dict[str, str]:
    """The headers for the collector; NearpathError (that holds none of them) when the file is no good."""
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read(_MAX_HEADERS_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise NearpathError(f"headers_file {file} of otlp cannot be read: {why}", "see otlp.headers_file") from None
    headers = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip().replace("-", "").isalnum() or not value.strip().isprintable():
            raise NearpathError(f"line {number} of {file} is no header", "write `Name: value`, one a line")
        headers[name.strip()] = value.strip()
    return headers


class Telemetry:
    """Makes traces and takes records. `await Telemetry.start(...)` on the event loop."""

    def __init__(self, config: Otlp, node: str, clock: Clock, rng: Random, registry: CollectorRegistry) -> None:
        self._config, self._node, self._clock, self._rng = config, node, clock, rng
        self._metrics = OtlpMetrics(registry)
        self._records: list[tuple[Any, ...]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closing = False

    @classmethod
    async def start(cls, config: InferConfig, clock: Clock, rng: Random, registry: CollectorRegistry) -> Telemetry:
        """Start the process; NearpathError when the extra or the headers are missing. The collector may be away."""
        assert config.otlp is not None
        check_extra()
        headers = await asyncio.to_thread(read_headers, config.otlp.headers_file) if config.otlp.headers_file else {}
        telemetry = cls(config.otlp, config.node, clock, rng, registry)
        await telemetry._spawn(headers)
        telemetry._keeper = asyncio.create_task(telemetry._keep(headers))
        return telemetry

    async def close(self) -> None:
        """Hand over what is left, and give the process a moment to tell it."""
        self._closing = True
        self._flush()
        process = self._process
        if process is not None:
            assert process.stdin is not None
            with suppress(ConnectionError):
                process.stdin.close()
            try:
                async with asyncio.timeout(_END_S):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
        if self._keeper is not None:
            await self._keeper

    # -- on the path of a request

    def begin(self, headers: Any) -> Trace:
        """The trace of a request that was let in, with the client's span above it if it named one."""
        draw = self._draw
        parent = read_parent(headers)
        if parent is not None:
            return Trace(parent.trace_id, draw(), parent.span_id, parent.sampled, parent.state, draw, self._attempted)
        trace_id = self._rng.getrandbits(128) or 1
        return Trace(trace_id, draw(), 0, is_sampled(trace_id, self._config.sample), "", draw, self._attempted)

    def over(self, note: Note, now: float, tokens: tuple[int, int], address: tuple[str, int]) -> None:
        """A request is over; one that was not let in gets a trace of its own."""
        trace = note.trace or self.begin({})
        tail = note.tail
        self._add(
            Exchange(
                trace.trace_id, trace.span_id, trace.parent_id, trace.sampled, note.id, note.endpoint, note.client,
                note.model, note.stream, note.status, note.step, note.source, note.reason, note.cache, note.started_s,
                note.first_byte_s, now, tokens[0], tokens[1], address[0], address[1], tail[:_ENDS_BYTES],
                tail[-_ENDS_BYTES:],
            )
        )  # fmt: skip

    def _attempted(self, *fields: Any) -> None:
        self._add(Attempt(*fields))

    def _draw(self) -> int:
        return self._rng.getrandbits(64) or 1

    def _add(self, record: tuple[Any, ...]) -> None:
        self._records.append(record)
        if len(self._records) >= _BATCH:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records, self._records = self._records, []
        if not records:
            return
        process = self._process
        pipe = process.stdin if process is not None and process.returncode is None else None
        if pipe is None or pipe.is_closing() or pipe.transport.get_write_buffer_size() > _MOST_WAITING_BYTES:
            self._metrics.lost.inc(len(records))
            return
        # NamedTuples of two lengths: the length tells them apart at the other end.
        data = marshal.dumps([tuple(record) for record in records])
        pipe.write(len(data).to_bytes(4, "big") + data)

    # -- the process

    async def _spawn(self, headers: dict[str, str]) -> None:
        config = self._config
        setup = {
            "endpoint": config.endpoint.rstrip("/"), "headers": headers, "ca_file": config.ca_file,
            "service": config.service, "node": self._node, "every_s": config.every,
        }  # fmt: skip
        paths = [_ROOT, *(path for path in [os.environ.get("PYTHONPATH")] if path)]
        # What OTEL_* variables say is not for us: the configuration file is the one place to look.
        env = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "local_infer.telemetry.io_otlp_child",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            env={**env, "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        assert process.stdin is not None
        # By the pipe, not as arguments: those can be read by others on the host.
        line = json.dumps(setup).encode()
        process.stdin.write(len(line).to_bytes(4, "big") + line)
        self._process = process

    async def _keep(self, headers: dict[str, str]) -> None:
        """Read what the process counts; start it again when it ends. Until closed."""
        while True:
            assert self._process is not None
            self._metrics.running.set(1)
            await self._read(self._process)
            self._metrics.running.set(0)
            if self._closing:
                return
            _log.warning("otlp_process_ended", status=self._process.returncode, doing=f"again in {_RESTART_S:g} s")
            await asyncio.sleep(_RESTART_S)
            if self._closing:
                return
            await self._spawn(headers)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        works: bool | None = None
        async for line in process.stdout:
            with suppress(ValueError):
                counts = json.loads(line)
                self._metrics.take(counts)
                failed = counts.get("spans_failed", 0) + counts.get("metrics_failed", 0)
                exported = counts.get("spans_exported", 0) + counts.get("metrics_exported", 0)
                # Told once when it begins to fail, and once when it works again.
                if failed and not exported and works is not False:
                    works = False
                    _log.warning(
                        "otlp_collector_fails", endpoint=self._config.endpoint, doing="what is told meanwhile is lost"
                    )
                elif exported and works is not True:
                    works = True
                    _log.info("otlp_collector_works", endpoint=self._config.endpoint)
        await process.wait()
