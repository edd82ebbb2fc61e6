"""The process that tells the collector: records from standard input, OpenTelemetry's SDK, counts to standard output.

It ends with its standard input. Nothing here is on the path of a request; what is too much is dropped and counted.
"""

from __future__ import annotations

import json
import logging
import marshal
import os
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from ssl import get_default_verify_paths
from typing import Any, BinaryIO

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from local_infer.telemetry.records import (
    HISTOGRAMS,
    Attempt,
    Exchange,
    Point,
    Span,
    attempt_points,
    client_span,
    exchange_points,
    server_span,
)

_SCOPE = "nearpath.local_infer"
_MOST_SPANS = 4096
"""Waiting for the collector: some MB, and minutes of usual traffic at the usual share."""
_BATCH = 256
_TIMEOUT_S = 5.0
_TELL_S = 1.0
_END_S, _END_DEAD_S = 1.0, 0.1
"""The gateway waits for the end of this process: a moment for the last spans, and as long again for the metrics."""
_MOST_MODELS = 200
"""Different model names in the metrics; an upstream that serves every name would make endless series of them."""
_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_MODEL_KEYS = ("gen_ai.request.model", "gen_ai.response.model")


class Counts:
    """What happened since it was last told; threads add to it."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, name: str, count: int = 1) -> None:
        """Count."""
        with self._lock:
            self._counts[name] += count

    def tell(self) -> None:
        """One line to the gateway, if there is something to tell."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        if counts:
            print(json.dumps(counts), flush=True)


class _MetricExporter(OTLPMetricExporter):
    """Counts what became of an export."""

    counts: Counts

    def export(self, *arguments: Any, **more: Any) -> MetricExportResult:
        result = super().export(*arguments, **more)
        self.counts.add("metrics_exported" if result is MetricExportResult.SUCCESS else "metrics_failed")
        return result


class SpanSender:
    """A bounded queue of spans, and the thread that exports them."""

    def __init__(self, exporter: OTLPSpanExporter, counts: Counts) -> None:
        self._exporter, self._counts = exporter, counts
        self._spans: deque[ReadableSpan] = deque()
        self._come = threading.Condition()
        self._ending = False
        self.works = True
        """The last export, if there was one, was taken."""
        self._thread = threading.Thread(target=self._work, name="spans", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether no more are taken."""
        return len(self._spans) >= _MOST_SPANS

    def add(self, span: ReadableSpan) -> None:
        """Take one; look at `full` first."""
        with self._come:
            self._spans.append(span)
            self._come.notify()

    def close(self, wait_s: float) -> None:
        """Export what waits, for so long."""
        with self._come:
            self._ending = True
            self._come.notify()
        self._thread.join(wait_s)

    def _work(self) -> None:
        while True:
            with self._come:
                self._come.wait_for(lambda: self._spans or self._ending)
                if not self._spans:
                    return
                if len(self._spans) < _BATCH and not self._ending:
                    self._come.wait(_TELL_S)
                batch = [self._spans.popleft() for _ in range(min(_BATCH, len(self._spans)))]
            self.works = good = self._exporter.export(batch) is SpanExportResult.SUCCESS
            self._counts.add("spans_exported" if good else "spans_failed", len(batch))


class Teller:
    """Takes records, makes spans and values of them."""

    def __init__(self, setup: dict[str, Any], counts: Counts) -> None:
        self._counts = counts
        self._resource = Resource.create({"service.name": setup["service"], "service.instance.id": setup["node"]})
        self._scope = InstrumentationScope(_SCOPE)
        common = {
            "headers": setup["headers"], "certificate_file": setup["ca_file"] or get_default_verify_paths().cafile,
            "timeout": _TIMEOUT_S, "compression": Compression.Gzip,
        }  # fmt: skip
        traces, metrics = (f"{setup['endpoint']}/v1/{signal}" for signal in ("traces", "metrics"))
        self._sender = SpanSender(OTLPSpanExporter(endpoint=traces, session=_session(), **common), counts)
        exporter = _MetricExporter(endpoint=metrics, session=_session(), **common)
        exporter.counts = counts
        reader = PeriodicExportingMetricReader(
            exporter, export_interval_millis=setup["every_s"] * 1e3, export_timeout_millis=_TIMEOUT_S * 1e3
        )
        self._provider = MeterProvider([reader], resource=self._resource, shutdown_on_exit=False)
        meter = self._provider.get_meter(_SCOPE)
        self._histograms: dict[str, Histogram] = {
            name: meter.create_histogram(name, unit, text, explicit_bucket_boundaries_advisory=bounds)
            for name, (unit, text, bounds) in HISTOGRAMS.items()
        }
        self._models: set[str] = set()

    def take(self, records: Sequence[tuple[Any, ...]]) -> None:
        """A batch from the gateway."""
        for fields in records:
            if len(fields) == len(Exchange._fields):
                exchange = Exchange(*fields)
                points = exchange_points(exchange)
                span = server_span(exchange) if self._wanted(exchange.sampled) else None
            else:
                attempt = Attempt(*fields)
                points = attempt_points(attempt)
                span = client_span(attempt) if self._wanted(attempt.sampled) else None
            for point in points:
                self._record(point)
            if span is not None:
                self._sender.add(self._readable(span))

    def close(self) -> None:
        """Tell what is left; a collector that did not take the last spans is not waited for."""
        wait_s = _END_S if self._sender.works else _END_DEAD_S
        self._sender.close(wait_s)
        self._provider.shutdown(timeout_millis=wait_s * 1e3)

    def _wanted(self, sampled: bool) -> bool:
        if sampled and self._sender.full:
            self._counts.add("spans_dropped")
            return False
        return sampled

    def _record(self, point: Point) -> None:
        for key in _MODEL_KEYS:
            model = point.attributes.get(key)
            if isinstance(model, str) and model not in self._models:
                if len(self._models) < _MOST_MODELS:
                    self._models.add(model)
                else:
                    point.attributes[key] = "other"
        self._histograms[point.name].record(point.value, point.attributes)

    def _readable(self, span: Span) -> ReadableSpan:
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = SpanContext(span.trace_id, span.parent_id, is_remote=span.kind == "server", trace_flags=flags)
        return ReadableSpan(
            span.name,
            context=SpanContext(span.trace_id, span.span_id, is_remote=False, trace_flags=flags),
            parent=parent if span.parent_id else None,
            resource=self._resource,
            attributes=span.attributes,
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR if span.failed else StatusCode.UNSET),
            start_time=span.started_ns,
            end_time=span.ended_ns,
            instrumentation_scope=self._scope,
        )


def _session() -> requests.Session:
    """For one thread. No proxy and no .netrc of the environment: the gateway heeds none either."""
    session = requests.Session()
    session.trust_env = False
    return session


def _read_frame(stream: BinaryIO) -> bytes:
    """The next frame; empty at the end."""
    head = stream.read(4)
    return stream.read(int.from_bytes(head, "big")) if len(head) == 4 else b""


def main() -> None:
    """Until standard input ends."""
    # systemd and Ctrl-C signal the whole group: the gateway ends us, when it has handed over its last records.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What goes wrong is counted, and told by the gateway once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL + 1)
    logging.getLogger("urllib3").setLevel(logging.CRITICAL + 1)
    with suppress(OSError):  # not everywhere allowed
        os.nice(5)
    stream = sys.stdin.buffer
    setup = json.loads(_read_frame(stream) or b"null")
    if setup is None:
        return
    counts = Counts()
    teller = Teller(setup, counts)
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(_TELL_S):
            counts.tell()

    threading.Thread(target=tell, name="tell", daemon=True).start()
    while data := _read_frame(stream):
        teller.take(marshal.loads(data))
    teller.close()
    ended.set()
    counts.tell()
    sys.stdout.flush()
    # Threads of the SDK that still wait for a dead collector are not waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
