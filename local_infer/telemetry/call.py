"""An attempt at an upstream as long as it goes on: its span, and what is noted of it when it is over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import urlsplit

from local_infer.model import Ask
from local_infer.telemetry.trace_context import Trace

NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Call:
    """`headers` go to the upstream, which is known as `upstream` here. Without a trace nothing is done."""

    trace: Trace | None
    ask: Ask
    model: str
    upstream: str
    url: str
    started_s: float
    headers: Mapping[str, str]
    span_id: int = 0
    status: int = 0
    first_s: float | None = None
    is_over: bool = False

    def end(self, outcome: str, now: float) -> None:
        """It is over: `ok`, `left`, or why it failed. Only the first time counts."""
        if self.trace is None or self.is_over:
            return
        self.is_over = True
        trace, ask = self.trace, self.ask
        address, port = place_of(self.url)
        trace.note(
            trace.trace_id, self.span_id, trace.span_id, trace.sampled, ask.endpoint.value, self.model, ask.stream,
            self.upstream, address, port, outcome, self.status, self.started_s, self.first_s, now,
        )  # fmt: skip


def begin_call(ask: Ask, model: str, upstream: str, url: str, now: float) -> Call:
    """An attempt for `ask` at the upstream with the base URL `url`, where its model is called `model`."""
    trace = ask.trace
    own = {"Idempotency-Key": ask.idempotency_key} if ask.idempotency_key else NO_HEADERS
    if trace is None:
        return Call(None, ask, model, upstream, url, now, own)
    span_id = trace.draw()
    headers = trace.headers_for(span_id)
    return Call(trace, ask, model, upstream, url, now, {**headers, **own} if own else headers, span_id)


@lru_cache(maxsize=256)
def place_of(url: str) -> tuple[str, int]:
    """(host, port) of a URL; 0 for a port that is no number."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    return parts.hostname or "", (443 if parts.scheme == "https" else 80) if port is None else port
