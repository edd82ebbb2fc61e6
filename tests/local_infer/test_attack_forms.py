"""Answers of odd shapes, kept or in the form that was not asked for: they cost no more than their size, and no 500."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from local_infer.api.forms import mark_events, to_events, to_whole
from local_infer.api.sse import write_event
from local_infer.model import Endpoint, Step
from local_infer.upstreams.attempt import fault_of_event
from local_infer.upstreams.resume import Sofar, continuation, join
from tests.local_infer.asking_upstreams import make_ask
from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import DONE, MockUpstream, Reply

GOOD = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}


def event(choice: Any, **more: Any) -> bytes:
    return write_event(json.dumps({"choices": [choice], **more}).encode())


def odd(*deltas: Any) -> bytes:
    """A stream that can be kept, with such chunks in it."""
    last = event({"index": 0, "delta": {}, "finish_reason": "stop"}, usage={"total_tokens": 1})
    return b"".join([*(event({"index": 0, "delta": delta}) for delta in deltas), last, DONE])


ODD_STREAMS = [
    event({"index": [1], "delta": {}}) + odd(),
    event({"index": None, "delta": {}}) + odd(),
    odd({"tool_calls": [5]}),
    odd({"tool_calls": [{"index": 0}, {"index": "a"}]}),
    odd({"tool_calls": "x"}, {"tool_calls": [{}]}),
    odd({"function_call": "x"}, {"function_call": {"a": {"b": 1}}}),
]
ODD_WHOLES = [{"message": "x"}, {"message": [1]}, {"message": {"tool_calls": [5]}}]


@pytest.mark.parametrize("stream", ODD_STREAMS)
def test_a_stream_of_odd_shapes_is_no_whole_answer(stream: bytes) -> None:
    with pytest.raises(ValueError, match="no form of the API"):
        to_whole(stream)


@pytest.mark.parametrize("choice", ODD_WHOLES)
def test_a_whole_answer_of_odd_shapes_is_no_stream(choice: Any) -> None:
    with pytest.raises(ValueError, match="no form of the API"):
        to_events(json.dumps({"choices": [choice]}).encode())


@pytest.mark.parametrize("index", [[1], {}])
def test_a_kept_stream_of_odd_shapes_is_not_marked(index: Any) -> None:
    with pytest.raises(ValueError, match="no form of the API"):
        mark_events(event({"index": index, "text": "a"}) + odd(), "cache/", Step.STALE, "[old] ")


def test_a_character_that_was_cut_in_two_halves_stays_whole() -> None:
    # Some servers end a chunk between the escapes of a surrogate pair.
    halves = [b'data: {"id":"2","choices":[{"index":0,"delta":{"content":"\\ud83d"}}]}\n\n']
    halves += [halves[0].replace(b"ud83d", b"ude00")]
    sofar = Sofar(Endpoint.CHAT)
    joined = b"".join(join(half, sofar) for half in halves)
    assert b"\\ud83d" in joined
    for half in halves:
        sofar.take(half)
    rest = continuation(make_ask(stream=True, resume=True), sofar)
    assert rest is not None
    assert json.loads(rest.body)["messages"][-1]["content"] == "😀"
    whole = to_whole(b"".join(halves) + odd())
    assert json.loads(whole)["choices"][0]["message"]["content"] == "😀"
    told = fault_of_event(b'data: {"error":{"message":"\\ud83d"}}\n\n')
    assert told is not None
    assert json.loads(told.body)["error"]["message"] == "\ud83d"


async def test_what_is_kept_in_an_odd_shape_is_asked_for_anew_in_the_other_form(tmp_path: Path) -> None:
    async with (
        MockUpstream() as upstream,
        running_gateway(tmp_path, {"east": upstream}) as daemon,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
    ):

        async def ask(number: int, *, stream: bool) -> tuple[int, bytes]:
            messages = [{"role": "user", "content": f"{number}"}]
            body = {"model": "m", "temperature": 0, "stream": stream, "messages": messages}
            async with session.post(url_of(daemon) + "/chat/completions", json=body) as response:
                return response.status, await response.read()

        wholes = [json.dumps({"choices": [choice]}).encode() for choice in ODD_WHOLES]
        for number, kept in enumerate([*ODD_STREAMS, *wholes]):
            stream = number < len(ODD_STREAMS)
            upstream.next(Reply(events=[kept]) if stream else Reply(body=kept))
            for _ in range(2):
                assert await ask(number, stream=stream) == (200, kept)
            status, other = await ask(number, stream=not stream)
            assert status == 200, kept
            assert b"chatcmpl-mock" in other
            assert len(upstream.asked) == 2 * (number + 1), "the second one was a kept one"


def test_choices_beside_a_long_field_do_not_multiply_it() -> None:
    long = json.dumps({"prompt": "x" * 100_000, "choices": [GOOD] * 1000}).encode()
    with pytest.raises(ValueError, match="too many choices"):
        to_events(long)
    few = json.dumps({"id": "x" * 1000, "choices": [{**GOOD, "index": i} for i in range(128)]}).encode()
    assert to_events(few).count(b'"content":"hi"') == 128


def test_the_log_probabilities_of_a_long_stream_cost_no_square_of_it() -> None:
    def cost_s(count: int) -> float:
        stream = b"".join([*[b'data: {"choices":[{"logprobs":{"content":[1]}}]}\n\n'] * count, DONE])
        began_s = time.process_time()
        assert json.loads(to_whole(stream))["choices"][0]["logprobs"]["content"] == [1] * count
        return time.process_time() - began_s

    # 8 times as long cost 8 times as much (before: 50 times).
    assert min(cost_s(32_000) for _ in range(2)) < 20 * min(cost_s(4_000) for _ in range(3))
