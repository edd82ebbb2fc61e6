"""What is told of a request and of an attempt at an upstream, and what OpenTelemetry calls that.

Names follow the GenAI semantic conventions (status Development, repository semantic-conventions-genai as of 2026-11) and
those for HTTP. Nothing of what was asked or answered is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from local_infer.api.sse import ends_with_done
from local_infer.cache.freshness import cache_word
from local_infer.telemetry.note import CLIENT_GONE

Value = str | int | float | bool | list[str]
Kind = Literal["server", "client"]

OPERATIONS = {"/chat/completions": "chat", "/completions": "text_completion", "/embeddings": "embeddings"}
"""`gen_ai.operation.name` of our paths."""

PROVIDER = "openai"
"""`gen_ai.provider.name` names the flavour of the telemetry; ours are APIs in OpenAI's form, whoever runs them."""
LOCAL_PROVIDER = "nearpath"
_LOCAL_STEPS = frozenset({"retrieval", "generation"})

# A quote within a JSON string is escaped, so no text that somebody wrote can look like these names.
_MODEL_RE = re.compile(rb'"model"\s*:\s*"([^"\\]{1,128})"')
_FINISH_RE = re.compile(rb'"finish_reason"\s*:\s*"([a-z_]{1,32})"')

SECONDS_BOUNDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
TOKEN_BOUNDS = tuple(4**power for power in range(14))

HISTOGRAMS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "gen_ai.server.request.duration": ("s", "From the request to the end of its answer", SECONDS_BOUNDS),
    "gen_ai.server.time_to_first_token": ("s", "From the request to the first event of a stream", FIRST_TOKEN_BOUNDS),
    "gen_ai.client.operation.duration": ("s", "From asking an upstream to the end of its answer", SECONDS_BOUNDS),
    "gen_ai.client.operation.time_to_first_chunk": ("s", "From asking an upstream to its first event", SECONDS_BOUNDS),
    "gen_ai.client.token.usage": ("{token}", "Tokens as upstreams count them", TOKEN_BOUNDS),
}
"""Name -> unit, description, bucket borders as the conventions advise them."""


class Exchange(NamedTuple):
    """One request that is over; ids 0 where its span is not recorded. Times in seconds since 1970.

    `head` and `tail` are the first and last bytes of the answer, where model and finish reason stand.
    """

    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool
    request_id: str
    endpoint: str
    client: str
    model: str
    stream: bool
    status: int
    step: str
    source: str
    reason: str
    cache: str
    started_s: float
    first_byte_s: float | None
    ended_s: float
    prompt_tokens: int
    completion_tokens: int
    address: str
    port: int
    head: bytes
    tail: bytes


class Attempt(NamedTuple):
    """One request to an upstream that is over. `outcome` is `ok`, `left` (nobody wanted it any more), or why it failed."""

    trace_id: int
    span_id: int
    parent_id: int
    sampled: bool
    endpoint: str
    model: str
    stream: bool
    upstream: str
    address: str
    port: int
    outcome: str
    status: int
    started_s: float
    first_s: float | None
    ended_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """A span as OpenTelemetry has them; times in ns since 1970. `failed`: its status is Error."""

    name: str
    kind: Kind
    trace_id: int
    span_id: int
    parent_id: int
    started_ns: int
    ended_ns: int
    attributes: dict[str, Value]
    failed: bool


class Point(NamedTuple):
    """One value for the histogram `name`."""

    name: str
    value: float
    attributes: dict[str, Value]


# -- requests


def error_of(one: Exchange) -> str:
    """`error.type`: empty when the answer was a good one."""
    if one.status == CLIENT_GONE:
        return "client_gone"
    if one.status >= 400:
        # The reason is a code in fixed words; a status is one too.
        return one.reason if one.step == "none" and one.reason else str(one.status)
    if one.stream and one.status == 200 and not ends_with_done(one.tail):
        return "stream_cut"
    return ""


def answered_by(one: Exchange) -> str:
    """`gen_ai.response.model`: what the answer itself names."""
    match = _MODEL_RE.search(one.head) or _MODEL_RE.search(one.tail)
    return match[1].decode("utf-8", "replace") if match and one.status == 200 else ""


def server_span(one: Exchange) -> Span:
    """The span of a request."""
    error = error_of(one)
    attributes: dict[str, Value] = {
        **_common(one, one.model),
        "http.request.method": "POST",
        "http.route": f"/v1{one.endpoint}",
        "http.response.status_code": one.status,
        "nearpath.step": one.step,
        "nearpath.cache": cache_word(one.cache),
        "nearpath.request_id": one.request_id,
    }
    if one.stream:
        attributes["gen_ai.request.stream"] = True
    optional: dict[str, Value] = {
        "gen_ai.response.model": answered_by(one),
        "gen_ai.response.finish_reasons": [word.decode() for word in _FINISH_RE.findall(one.tail)[-8:]],
        "gen_ai.usage.input_tokens": one.prompt_tokens,
        "gen_ai.usage.output_tokens": one.completion_tokens,
        "nearpath.client": one.client,
        "nearpath.source": one.source,
        "nearpath.reason": one.reason,
        "error.type": error,
    }
    attributes |= {name: value for name, value in optional.items() if value}
    if one.stream and one.first_byte_s is not None:
        attributes["gen_ai.response.time_to_first_chunk"] = one.first_byte_s - one.started_s
    # HTTP's conventions: a fault of the client's is no fault of the server's span.
    failed = one.status >= 500 or error == "stream_cut"
    return Span(
        _name(one.endpoint, one.model), "server", one.trace_id, one.span_id, one.parent_id, _ns(one.started_s),
        _ns(one.ended_s), attributes, failed,
    )  # fmt: skip


def exchange_points(one: Exchange) -> Iterator[Point]:
    """What a request adds to the metrics. Models that clients made up are in none: only those that answered count."""
    error = error_of(one)
    common = _common(one, one.model if one.status == 200 else "")
    answered = answered_by(one)
    if answered:
        common["gen_ai.response.model"] = answered
    labels = {**common, "nearpath.step": one.step}
    duration = {**labels, "error.type": error} if error else labels
    yield Point("gen_ai.server.request.duration", max(0.0, one.ended_s - one.started_s), duration)
    if one.stream and one.first_byte_s is not None and one.status == 200:
        yield Point("gen_ai.server.time_to_first_token", max(0.0, one.first_byte_s - one.started_s), labels)
    # Only what an upstream was asked for is used: not what was kept, or what came out of another's request.
    if one.step == "upstream" and not cache_word(one.cache).endswith("shared"):
        for kind, count in (("input", one.prompt_tokens), ("output", one.completion_tokens)):
            if count:
                yield Point("gen_ai.client.token.usage", count, {**common, "gen_ai.token.type": kind})


# -- attempts


def client_span(one: Attempt) -> Span:
    """The span of an attempt."""
    attributes: dict[str, Value] = {**_common(one, one.model), "nearpath.upstream": one.upstream}
    if one.status:
        attributes["http.response.status_code"] = one.status
    if one.stream:
        attributes["gen_ai.request.stream"] = True
        if one.first_s is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = one.first_s - one.started_s
    error = _error_of_attempt(one)
    if error:
        attributes["error.type"] = error
    # HTTP's conventions: what an upstream refuses is an error of the span that asked it.
    failed = bool(error) and error != "left"
    return Span(
        _name(one.endpoint, one.model), "client", one.trace_id, one.span_id, one.parent_id, _ns(one.started_s),
        _ns(one.ended_s), attributes, failed,
    )  # fmt: skip


def attempt_points(one: Attempt) -> Iterator[Point]:
    """What an attempt adds to the metrics."""
    labels = {**_common(one, one.model if one.outcome == "ok" else ""), "nearpath.upstream": one.upstream}
    error = _error_of_attempt(one)
    duration = {**labels, "error.type": error} if error else labels
    yield Point("gen_ai.client.operation.duration", max(0.0, one.ended_s - one.started_s), duration)
    if one.stream and one.first_s is not None:
        yield Point("gen_ai.client.operation.time_to_first_chunk", max(0.0, one.first_s - one.started_s), labels)


def _error_of_attempt(one: Attempt) -> str:
    if one.outcome != "ok":
        return one.outcome
    return str(one.status) if one.status >= 400 else ""


# -- both


def _common(one: Exchange | Attempt, model: str) -> dict[str, Value]:
    local = isinstance(one, Exchange) and one.step in _LOCAL_STEPS
    attributes: dict[str, Value] = {
        "gen_ai.operation.name": OPERATIONS[one.endpoint],
        "gen_ai.provider.name": LOCAL_PROVIDER if local else PROVIDER,
        "server.address": one.address,
        "server.port": one.port,
    }
    if model:
        attributes["gen_ai.request.model"] = model
    return attributes


def _name(endpoint: str, model: str) -> str:
    return f"{OPERATIONS[endpoint]} {model}" if model else OPERATIONS[endpoint]


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
