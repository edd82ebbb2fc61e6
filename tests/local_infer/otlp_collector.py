"""A real OTLP/HTTP collector: takes what is posted to /v1/traces and /v1/metrics, and decodes it as OpenTelemetry does."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

KINDS = {2: "server", 3: "client"}


class Collector:
    """The server, as an async context manager. `spans` and `metrics` are dicts; `status` is what it answers."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.metrics: dict[str, list[dict[str, Any]]] = {}
        self.headers: list[dict[str, str]] = []
        self.resource: dict[str, Any] = {}
        self.status = 200
        self.raw = b""
        self.url = ""
        self._come = asyncio.Condition()
        self._runner: web.ServerRunner | None = None

    async def __aenter__(self) -> Collector:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def until(self, enough: Callable[[], bool]) -> None:
        """Wait for it."""
        async with asyncio.timeout(20), self._come:
            await self._come.wait_for(enough)

    def named(self, kind: str) -> list[dict[str, Any]]:
        """The spans of a kind."""
        return [span for span in self.spans if span["kind"] == kind]

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        if request.headers.get("Content-Encoding") == "gzip" and body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        if self.status == 200:
            self.headers.append(dict(request.headers))
            self.raw += body
            (self._take_spans if request.path == "/v1/traces" else self._take_metrics)(body)
        async with self._come:
            self._come.notify_all()
        return web.Response(status=self.status)

    def _take_spans(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resource = attributes(resource.resource.attributes)
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        {
                            "name": span.name, "kind": KINDS[span.kind], "trace": span.trace_id.hex(),
                            "span": span.span_id.hex(), "parent": span.parent_span_id.hex(),
                            "ns": span.end_time_unix_nano - span.start_time_unix_nano, "error": span.status.code == 2,
                            **attributes(span.attributes),
                        }
                    )  # fmt: skip

    def _take_metrics(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    self.metrics[metric.name] = [
                        {
                            "count": point.count, "sum": point.sum, "bounds": list(point.explicit_bounds),
                            "unit": metric.unit, **attributes(point.attributes),
                        }
                        for point in metric.histogram.data_points
                    ]  # fmt: skip


def attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    """The values of an attribute list."""
    found = {}
    for pair in pairs:
        which = pair.value.WhichOneof("value")
        value = getattr(pair.value, which)
        found[pair.key] = [one.string_value for one in value.values] if which == "array_value" else value
    return found
