"""What is told of each request when it is over: metrics, and one line of the access log. By default without content."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from local_infer.telemetry.note import Note

_TTFB_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_TOTAL_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# A quote within a JSON string is escaped, so no text that somebody wrote can look like these names.
_PROMPT_RE = re.compile(rb'"prompt_tokens"\s*:\s*([0-9]{1,12})')
_COMPLETION_RE = re.compile(rb'"completion_tokens"\s*:\s*([0-9]{1,12})')

_BREAKING_RE = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")
"""What JSON may hold as it is, and a terminal takes as a command, or a program as the end of a line."""


def read_usage(tail: bytes) -> tuple[int, int]:
    """(prompt, completion) tokens as the last `usage` in the end of an answer has them; zeros when it has none."""
    at = tail.rfind(b'"usage"')
    if at < 0:
        return 0, 0
    prompt, completion = _PROMPT_RE.search(tail, at), _COMPLETION_RE.search(tail, at)
    return int(prompt[1]) if prompt else 0, int(completion[1]) if completion else 0


class _Children:
    """Metrics of one combination of labels, looked up once."""

    __slots__ = ("requests", "total_s", "ttfb_s")

    def __init__(self, metrics: GatewayMetrics, endpoint: str, step: str, status: str) -> None:
        self.requests = metrics.requests.labels(endpoint, step, status)
        self.ttfb_s = metrics.ttfb_s.labels(endpoint, step)
        self.total_s = metrics.total_s.labels(endpoint, step)


class GatewayMetrics:
    """All metrics of the gateway's front in one registry. No label names a client's model: those are free to make up."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "local_infer_requests", "Requests by path, step that answered, and status (499: client left)",
            ["endpoint", "step", "status"], registry=registry,
        )  # fmt: skip
        self.ttfb_s = Histogram(
            "local_infer_first_byte_seconds", "From the request to the first byte of its answer", ["endpoint", "step"],
            buckets=_TTFB_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.total_s = Histogram(
            "local_infer_request_seconds", "From the request to the end of its answer", ["endpoint", "step"],
            buckets=_TOTAL_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "local_infer_tokens", "Tokens as the answers count them", ["step", "kind"], registry=registry
        )
        self.refused = Counter("local_infer_refused", "Requests refused by the gateway", ["code"], registry=registry)
        self.under_way = Gauge("local_infer_requests_under_way", "Requests under way", registry=registry)
        self.connections = Gauge("local_infer_connections", "Open connections of clients", registry=registry)
        self.log_lost = Gauge(
            "local_infer_access_log_lost_lines", "Lines given up because nobody read the log", registry=registry
        )
        self._children: dict[tuple[str, str, int], _Children] = {}

    def observe(self, note: Note, now: float) -> tuple[int, int]:
        """Count a request that is over; its tokens (prompt, completion)."""
        key = (note.endpoint, note.step, note.status)
        children = self._children.get(key)
        if children is None:
            children = self._children[key] = _Children(self, note.endpoint, note.step, str(note.status))
        children.requests.inc()
        children.total_s.observe(now - note.started_s)
        if note.first_byte_s is not None:
            children.ttfb_s.observe(note.first_byte_s - note.started_s)
        prompt, completion = read_usage(note.tail) if note.tail else (0, 0)
        if prompt:
            self.tokens.labels(note.step, "prompt").inc(prompt)
        if completion:
            self.tokens.labels(note.step, "completion").inc(completion)
        return prompt, completion


def access_line(note: Note, now: float, tokens: tuple[int, int]) -> bytes:
    """One JSON line; `now` is the request's end. Question and answer only where they were noted."""
    line = {
        "event": "access",
        "time": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "id": note.id,
        "client": note.client,
        "endpoint": note.endpoint,
        "model": note.model,
        "stream": note.stream,
        "status": note.status,
        "step": note.step,
        "source": note.source,
        "reason": note.reason,
        "ttfb_ms": None if note.first_byte_s is None else round((note.first_byte_s - note.started_s) * 1e3, 3),
        "total_ms": round((now - note.started_s) * 1e3, 3),
        "in_bytes": note.in_bytes,
        "out_bytes": note.out_bytes,
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
    }
    if not (note.question or note.answer):
        return _dump(line)
    line["question"] = note.question.decode("utf-8", "replace")
    line["answer"] = note.answer.decode("utf-8", "replace")
    # All else are our own words, and names that may only be visible ASCII.
    return _BREAKING_RE.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), _dump(line)[:-1]) + b"\n"


def _dump(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
