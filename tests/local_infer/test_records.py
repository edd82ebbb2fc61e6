"""What OpenTelemetry is told of requests and attempts that the whole daemon's test does not meet."""

from __future__ import annotations

from typing import Any

import pytest

from local_infer.telemetry.note import CLIENT_GONE
from local_infer.telemetry.records import (
    HISTOGRAMS,
    Attempt,
    Exchange,
    attempt_points,
    client_span,
    error_of,
    exchange_points,
    server_span,
)

DONE = b"data: [DONE]\n\n"
CHUNK = b'data: {"model":"gpt-4o-2024","choices":[{"delta":{"content":"x"},"finish_reason":null}]}\n\n'
LAST = b'data: {"model":"gpt-4o-2024","choices":[{"delta":{},"finish_reason":"length"}]}\n\n'


def exchange(**more: Any) -> Exchange:
    fields: dict[str, Any] = {
        "trace_id": 1, "span_id": 2, "parent_id": 0, "sampled": True, "request_id": "req_1",
        "endpoint": "/chat/completions", "client": "web", "model": "gpt-4o", "stream": False, "status": 200,
        "step": "upstream", "source": "east", "reason": "", "cache": "fwd=miss; stored", "started_s": 100.0,
        "first_byte_s": 100.25, "ended_s": 101.5, "prompt_tokens": 3, "completion_tokens": 4, "address": "::1",
        "port": 80, "head": b'{"model":"gpt-4o-2024"', "tail": b'"finish_reason":"stop"}',
    }  # fmt: skip
    return Exchange(**{**fields, **more})


def attempt(**more: Any) -> Attempt:
    fields: dict[str, Any] = {
        "trace_id": 1, "span_id": 3, "parent_id": 2, "sampled": True, "endpoint": "/embeddings", "model": "e",
        "stream": False, "upstream": "east", "address": "a", "port": 443, "outcome": "ok", "status": 200,
        "started_s": 100.0, "first_s": 100.1, "ended_s": 100.2,
    }  # fmt: skip
    return Attempt(**{**fields, **more})


@pytest.mark.parametrize(
    ("more", "error", "failed"),
    [
        ({}, "", False),
        ({"status": 503, "step": "none", "reason": "no_step"}, "no_step", True),
        ({"status": 400, "step": "upstream"}, "400", False),
        ({"status": CLIENT_GONE, "stream": True}, "client_gone", False),
        ({"stream": True, "tail": CHUNK + DONE}, "", False),
        ({"stream": True, "tail": CHUNK + LAST}, "stream_cut", True),  # a whole one has got its `[DONE]`
        ({"stream": True, "tail": CHUNK}, "stream_cut", True),
        ({"stream": True, "tail": CHUNK + b'data: {"error":{"message":"cut"}}\n\n'}, "stream_cut", True),
    ],
)
def test_errors(more: dict[str, Any], error: str, failed: bool) -> None:
    one = exchange(**more)
    span = server_span(one)
    assert (error_of(one), span.failed, span.attributes.get("error.type", "")) == (error, failed, error)


def test_who_answered() -> None:
    attributes = server_span(exchange()).attributes
    assert (attributes["gen_ai.request.model"], attributes["gen_ai.response.model"]) == ("gpt-4o", "gpt-4o-2024")
    assert attributes["gen_ai.response.finish_reasons"] == ["stop"]
    local = server_span(exchange(step="generation", head=b'{"model":"local/small"')).attributes
    assert (local["gen_ai.provider.name"], local["gen_ai.response.model"]) == ("nearpath", "local/small")
    # What somebody wrote is escaped, and is not taken for the model.
    assert server_span(exchange(head=rb'{"content":"\"model\":\"evil\""', tail=b"")).attributes.get(
        "gen_ai.response.model"
    ) in (None, "")
    span = server_span(exchange())
    assert (span.started_ns, span.ended_ns) == (100_000_000_000, 101_500_000_000)


def points(one: Exchange) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for point in exchange_points(one):
        found.setdefault(point.name, []).append(point.value)
    return found


def test_tokens_count_once() -> None:
    assert points(exchange())["gen_ai.client.token.usage"] == [3, 4]
    assert "gen_ai.client.token.usage" not in points(exchange(cache="fwd=miss; collapsed"))
    assert "gen_ai.client.token.usage" not in points(exchange(step="cache", cache="hit; ttl=5"))


def test_models_that_clients_make_up_are_in_no_metric() -> None:
    made_up = exchange(status=404, model="made-up-1", head=b"", tail=b"")
    assert all("gen_ai.request.model" not in point.attributes for point in exchange_points(made_up))
    assert server_span(made_up).name == "chat made-up-1"
    failed = attempt(outcome="timeout", status=0, model="made-up-2")
    assert all("gen_ai.request.model" not in point.attributes for point in attempt_points(failed))


def test_attempts() -> None:
    good = client_span(attempt())
    assert (good.name, good.kind, good.failed, "error.type" in good.attributes) == (
        "embeddings e",
        "client",
        False,
        False,
    )
    refused = client_span(attempt(status=400))
    assert (refused.attributes["error.type"], refused.failed) == ("400", True)
    left = client_span(attempt(outcome="left"))
    assert (left.attributes["error.type"], left.failed) == ("left", False)
    names = [point.name for point in attempt_points(attempt(stream=True))]
    assert names == ["gen_ai.client.operation.duration", "gen_ai.client.operation.time_to_first_chunk"]


def test_every_value_has_its_histogram() -> None:
    made = {
        point.name
        for point in [*exchange_points(exchange(stream=True, tail=DONE)), *attempt_points(attempt(stream=True))]
    }
    assert made == set(HISTOGRAMS)
    assert len(Exchange._fields) != len(Attempt._fields)  # by which the two are told apart in the pipe
