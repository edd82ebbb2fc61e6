"""What is noted of a request on its way, for all who are told when it is over."""

from __future__ import annotations

from dataclasses import dataclass

from local_infer.telemetry.trace_context import Trace

CLIENT_GONE = 499
"""In log and metrics only: the client left before its answer (nginx's number for it)."""


@dataclass(slots=True)
class Note:
    """What became of one request; filled in on its way, read when it is over. Times on the anchored clock."""

    id: str
    endpoint: str
    started_s: float
    client: str = ""
    model: str = ""
    stream: bool = False
    status: int = 0
    step: str = "none"
    source: str = ""
    reason: str = ""
    first_byte_s: float | None = None
    in_bytes: int = 0
    out_bytes: int = 0
    tail: bytes = b""
    """The end of the answer, where `usage` stands."""
    question: bytes = b""
    answer: bytes = b""
    cache: str = ""
    """The parameters of Cache-Status."""
    trace: Trace | None = None
