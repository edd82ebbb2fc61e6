"""A request that is over is counted once, and its line in the access log holds no content unless that was noted."""

from __future__ import annotations

import json

import pytest
from prometheus_client import CollectorRegistry

from local_infer.gateway.gateway_metrics import GatewayMetrics, access_line, read_usage
from local_infer.telemetry.note import Note


@pytest.mark.parametrize(
    ("tail", "tokens"),
    [
        (b'{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}', (5, 7)),
        (b'{"usage": {"completion_tokens": 7, "prompt_tokens" : 5}, "x": 1}', (5, 7)),
        (b'{"data":[],"usage":{"prompt_tokens":5,"total_tokens":5}}', (5, 0)),
        (b'data: {"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\ndata: [DONE]\n\n', (5, 7)),
        (b'{"usage":null}', (0, 0)),
        (b'{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}', (0, 0)),
        (b"", (0, 0)),
    ],
)
def test_usage(tail: bytes, tokens: tuple[int, int]) -> None:
    assert read_usage(tail) == tokens


def note() -> Note:
    return Note(
        "req_1", "/chat/completions", 1_700_000_000.0, client="web", model="m", status=200, step="stale", source="east",
        reason="timeout", first_byte_s=1_700_000_000.25, in_bytes=10, out_bytes=20,
        tail=b'{"usage":{"prompt_tokens":5,"completion_tokens":7}}',
    )  # fmt: skip


def test_counted() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    for _ in range(2):
        assert metrics.observe(note(), 1_700_000_001.0) == (5, 7)
    labels = {"endpoint": "/chat/completions", "step": "stale"}
    assert registry.get_sample_value("local_infer_requests_total", {**labels, "status": "200"}) == 2
    assert registry.get_sample_value("local_infer_first_byte_seconds_sum", labels) == pytest.approx(0.5)
    assert registry.get_sample_value("local_infer_request_seconds_sum", labels) == pytest.approx(2.0)
    assert registry.get_sample_value("local_infer_tokens_total", {"step": "stale", "kind": "completion"}) == 14


def test_line() -> None:
    line = access_line(note(), 1_700_000_001.0, (5, 7))
    assert line.endswith(b"}\n")
    assert json.loads(line) == {
        "event": "access", "time": "2023-11-14T22:13:21.000+00:00", "id": "req_1", "client": "web",
        "endpoint": "/chat/completions", "model": "m", "stream": False, "status": 200, "step": "stale", "source": "east",
        "reason": "timeout", "ttfb_ms": 250.0, "total_ms": 1000.0, "in_bytes": 10, "out_bytes": 20, "prompt_tokens": 5,
        "completion_tokens": 7,
    }  # fmt: skip
    told = note()
    told.question, told.answer = "你".encode() + b"\xe5", b'{"a":1}'
    shown = json.loads(access_line(told, 1_700_000_001.0, (5, 7)))
    assert (shown["question"], shown["answer"]) == ("你�", '{"a":1}')


def test_content_can_neither_end_a_line_nor_speak_to_a_terminal() -> None:
    told = note()
    told.question = "a\x1b[31m\x7f\x9b31m\x85\u2028\u2029\n你好 é\u00a0".encode()
    line = access_line(told, 1_700_000_001.0, (5, 7))
    assert json.loads(line)["question"] == told.question.decode()
    assert len(line.decode().splitlines()) == 1
    assert "你好 é".encode() in line
    assert not set(line.decode()) & {chr(code) for code in [*range(10), *range(11, 32), *range(0x7F, 0xA0)]}
