"""W3C Trace Context (Recommendation of 2021-11-23): who called us, whom we call, and whether it is recorded."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_PARENT_RE = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_RE = re.compile(r"[ -~]{1,512}")
_SAMPLED = 0x01

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"


@dataclass(frozen=True, slots=True)
class Parent:
    """What a client said of its span."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """The span of one request. `note` takes what became of an attempt at an upstream, see `records.Attempt`.

    `parent_id` 0: it is the first of its trace.
    """

    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool
    state: str
    draw: Callable[[], int]
    note: Callable[..., None]

    def headers_for(self, span_id: int) -> dict[str, str]:
        """What an upstream is sent by the span `span_id` of ours."""
        headers = {TRACEPARENT: write_parent(self.trace_id, span_id, self.sampled)}
        if self.state:
            # 3.3.1.1: passed on with traceparent; we add nothing to it.
            headers[TRACESTATE] = self.state
        return headers


def read_parent(headers: Mapping[str, str]) -> Parent | None:
    """The client's span; None when there is none, or what is said of it is no traceparent (3.2.2: then a new trace)."""
    text = headers.get(TRACEPARENT)
    if not text:
        return None
    match = _PARENT_RE.fullmatch(text.strip())
    # Version 00 has exactly four fields; a higher one may have more, which we do not know; ff is forbidden.
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    state = headers.get(TRACESTATE, "")
    # 3.3.1.5: at least 512 characters should be passed on; a longer one may be left out.
    return Parent(trace_id, span_id, bool(int(match[4], 16) & _SAMPLED), state if _STATE_RE.fullmatch(state) else "")


def write_parent(trace_id: int, span_id: int, sampled: bool) -> str:
    """A traceparent of version 00."""
    return f"00-{trace_id:032x}-{span_id:016x}-{int(sampled):02x}"


def is_sampled(trace_id: int, share: float) -> bool:
    """Whether a trace that begins here is recorded: by the lower 64 bits of its id, as OpenTelemetry's
    TraceIdRatioBased does, so that others with the same share record the same traces.
    """
    return trace_id & (1 << 64) - 1 < round(share * (1 << 64))
