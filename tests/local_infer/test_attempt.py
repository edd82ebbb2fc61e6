"""What a response means: the table at the head of the module, Retry-After in all its forms, errors inside a 200."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from local_infer.model import Ask, Client, Endpoint
from local_infer.upstreams.attempt import (
    Verdict,
    body_for,
    fault_of_body,
    fault_of_event,
    find_strange,
    first_event,
    is_finished,
    judge,
    lane_of,
    pause_s,
    reason_of,
    retry_after_s,
    tells_end,
    without_secret,
)

NOW = 784_111_000.0  # 777 s before the date of RFC 9110's example

VERDICTS = {
    Verdict.ANSWER: [200, 201, 400, 404, 409, 413, 415, 422, 451],
    Verdict.RETRY: [301, 302, 307, 401, 403, 408, 425, 500, 502, 503, 504, 529],
    Verdict.FULL: [429],
}


@pytest.mark.parametrize(("status", "verdict"), [(s, v) for v, statuses in VERDICTS.items() for s in statuses])
def test_verdicts(status: int, verdict: Verdict) -> None:
    assert judge(status, {}) is verdict


def test_503_with_retry_after_is_full_and_500_is_not() -> None:
    assert judge(503, {"retry-after": "1"}) is Verdict.FULL
    assert judge(500, {"retry-after": "1"}) is Verdict.RETRY


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "rate limited"), (401, "credentials"), (302, "redirect"), (503, "status 503"), (529, "status 5xx")],
)
def test_reasons_are_a_few_fixed_words(status: int, reason: str) -> None:
    assert reason_of(status) == reason


def test_all_statuses_together_have_few_reasons() -> None:
    assert len({reason_of(status) for status in range(300, 1000)}) < 15


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "999999"}, 3600.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, 777.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:37 GMT"}, 777.0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, 777.0),
        ({"retry-after": "Sat, 05 Nov 1994 08:49:37 GMT"}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(headers, NOW) == expected


def test_pauses_double_up_to_a_minute() -> None:
    assert [pause_s(times) for times in (1, 2, 3, 7, 100)] == [1.0, 2.0, 4.0, 60.0, 60.0]


def test_a_login_page_and_an_encoded_body_are_no_answers() -> None:
    assert find_strange(200, {"content-type": "text/html; charset=utf-8"}) == "not the API"
    assert find_strange(200, {"content-encoding": "gzip"}) == "encoded"
    assert find_strange(200, {"content-type": "application/json", "content-encoding": "identity"}) == ""
    assert find_strange(404, {"content-type": "text/html"}) == ""


@pytest.mark.parametrize(
    ("event", "reason", "status"),
    [
        (b'data: {"error":{"message":"dead","type":"server_error","code":null}}\n\n', "error in stream", None),
        (b'data: {"error": {"message": "no", "code": 400}}\n\n', "status 4xx", 400),
        (b'data: {"error":{"message":"slow down","code":"429"}}\n\n', "rate limited", 429),
        (b'data: {"error":"dead","status":503}\n\n', "status 503", 503),
        (b'event: error\ndata: {"message":"dead"}\n\n', "error in stream", None),
    ],
)
def test_an_error_in_the_first_event(event: bytes, reason: str, status: int | None) -> None:
    fault = fault_of_event(event)
    assert fault is not None
    assert (fault.reason, fault.status) == (reason, status)
    assert fault.full is (status == 429)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"delta":{"content":"the \\"error\\" is yours"}}]}\n\n',
        b'data: {"choices":[],"error":null}\n\n',
        b'data: "error"\n\n',
        b'data: {"error" broken\n\n',
        b"data: [DONE]\n\n",
        b": error\n\n",
    ],
)
def test_events_that_only_look_like_errors(event: bytes) -> None:
    assert fault_of_event(event) is None


def test_an_error_object_as_whole_body() -> None:
    fault = fault_of_body(b' { "error": {"message": "dead"}}')
    assert fault is not None
    assert fault.body == b'{"error":{"message":"dead"}}'
    assert fault_of_body(b'{"id":"x","choices":[{"message":{"content":"{\\"error\\":1}"}}]}') is None
    assert fault_of_body(b'{"error":null,"id":"x"}') is None


def test_comments_are_no_data() -> None:
    assert not first_event(b": PROCESSING\n\n: data\n\n")
    assert first_event(b": PROCESSING\n\ndata: {}\n\n")
    assert first_event(b": x\r\n\r\ndata:{}\r\n\r\n")


def ask(endpoint: Endpoint = Endpoint.CHAT, *, stream: bool = False) -> Ask:
    fields = {"model": "m", "messages": [{"role": "user", "content": "你好"}], "unknown": {"x": [1, None]}}
    body = b'{"model":"m", "messages":[{"role":"user","content":"\\u4f60\\u597d"}],"unknown":{"x":[1,null]}}'
    return Ask("id", endpoint, body, fields, "m", stream, Client("c", "t"), 0.0)


def test_the_body_goes_as_it_came_unless_the_model_has_another_name_there() -> None:
    one = ask()
    assert body_for(one, "m") is one.body
    assert body_for(ask(), "small") == (
        '{"model":"small","messages":[{"role":"user","content":"你好"}],"unknown":{"x":[1,null]}}'.encode()
    )


def test_lanes() -> None:
    assert [lane_of(ask()), lane_of(ask(stream=True)), lane_of(ask(Endpoint.EMBEDDINGS))] == [
        "whole",
        "stream",
        "embeddings",
    ]


def test_a_repeated_credential_is_hidden() -> None:
    assert without_secret(b"bad key sk-12345!", b"sk-12345") == b"bad key [hidden]!"
    assert without_secret(b"an apple", b"a") == b"an apple"


def test_a_complete_answer_without_done() -> None:
    end = b'data: {"choices":[{"delta":{},"finish_reason": "stop"}]}\n\n'
    begun = b'data: {"choices":[{"delta":{"content":"x"},"finish_reason": null}]}\n\n'
    quoted = b'data: {"choices":[{"delta":{"content":"\\"finish_reason\\":\\"stop\\""}}]}\n\n'
    assert [tells_end(events) for events in (end, begun + end, begun, quoted)] == [True, True, False, False]
    assert is_finished(begun + end, ask())
    assert not is_finished(begun, ask())
    assert not is_finished(b'data: {"finish_reason":"stop"}\n\ndata: [{"finish_reason":"stop"}]\n\n', ask())


@pytest.mark.parametrize(
    ("more", "choices"),
    [({"n": 2}, 2), ({"prompt": ["a", "b", "c"]}, 3), ({"prompt": ["a", "b"], "n": 2}, 4), ({"prompt": [7, 8]}, 1)],
)
def test_each_choice_asked_for_must_end(more: dict[str, Any], choices: int) -> None:
    one = replace(ask(Endpoint.COMPLETIONS), fields={"model": "m", **more})
    ends = [b'data: {"choices":[{"index":%d,"finish_reason":"stop"}]}\n\n' % index for index in range(choices)]
    assert is_finished(b"".join(ends), one)
    assert not is_finished(b"".join(ends[1:]), one)
