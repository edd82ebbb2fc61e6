"""Continuing a cut stream: who may, what is asked of the next upstream, and how its chunks become those of the first."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from local_infer.api.sse import DONE, data_of, split_events, write_event
from local_infer.model import Ask, Client, Endpoint
from local_infer.upstreams.resume import MAX_TEXT_CHARS, Sofar, continuation, ending, join, may_resume


def ask(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> Ask:
    base: dict[str, Any] = {"model": "m", "stream": True}
    base |= {"messages": [{"role": "user", "content": "数"}]} if endpoint is Endpoint.CHAT else {"prompt": "数"}
    base |= fields
    return Ask("id", endpoint, b"", base, "m", True, Client("c", "t"), 0.0, resume=True)


def chunk(delta: dict[str, Any], finish: str | None = None, id: str = "first", **more: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return write_event(json.dumps({"id": id, "created": 1, "model": "m-1", "choices": [choice], **more}).encode())


def parsed(events: bytes) -> list[Any]:
    return [json.loads(data_of(event)) for event in split_events(events) if data_of(event) != b"[DONE]"]


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({}, True),
        ({"n": 1}, True),
        ({"response_format": {"type": "text"}}, True),
        ({"n": 2}, False),
        ({"logprobs": True}, False),
        ({"tools": [{"type": "function"}]}, False),
        ({"functions": [{}]}, False),
        ({"response_format": {"type": "json_object"}}, False),
        ({"messages": "x"}, False),
    ],
)
def test_what_may_be_continued(fields: dict[str, Any], may: bool) -> None:
    assert may_resume(ask(**fields)) is may
    assert not may_resume(replace(ask(**fields), resume=False)), "only for clients that opted in"


def test_completions_may_unless_the_prompt_comes_back() -> None:
    assert may_resume(ask(Endpoint.COMPLETIONS))
    assert not may_resume(ask(Endpoint.COMPLETIONS, echo=True))
    assert not may_resume(ask(Endpoint.COMPLETIONS, prompt=["a", "b"]))
    assert not may_resume(ask(Endpoint.EMBEDDINGS))


def test_the_text_so_far_becomes_an_assistant_message_and_the_limit_shrinks() -> None:
    sofar = Sofar(Endpoint.CHAT)
    sofar.take(chunk({"role": "assistant", "content": ""}) + chunk({"content": "一、"}) + chunk({"content": "二"}))
    rest = continuation(ask(max_tokens=10, seed=7), sofar)
    assert rest is not None
    assert json.loads(rest.body) == rest.fields
    assert rest.fields["messages"] == [{"role": "user", "content": "数"}, {"role": "assistant", "content": "一、二"}]
    assert (rest.fields["max_tokens"], rest.fields["seed"]) == (8, 7)


def test_a_prompt_is_lengthened() -> None:
    sofar = Sofar(Endpoint.COMPLETIONS)
    sofar.take(write_event('{"id":"first","choices":[{"index":0,"text":"一二"}]}'.encode()))
    rest = continuation(ask(Endpoint.COMPLETIONS), sofar)
    assert rest is not None
    assert rest.fields["prompt"] == "数一二"


def test_a_cut_before_any_text_asks_the_same_again() -> None:
    sofar = Sofar(Endpoint.CHAT)
    sofar.take(chunk({"role": "assistant", "content": ""}))
    rest = continuation(ask(), sofar)
    assert rest is not None
    assert rest.fields == ask().fields


@pytest.mark.parametrize(
    "events",
    [
        chunk({"content": "x"}, "stop"),
        chunk({"tool_calls": [{"index": 0}]}),
        chunk({"refusal": "no"}),
        write_event(b"not json"),
        write_event(b'{"choices":[{"index":1,"delta":{"content":"x"}}]}'),
        chunk({"content": "x" * (MAX_TEXT_CHARS + 1)}),
    ],
    ids=["finished", "tool call", "refusal", "no JSON", "second choice", "too long"],
)
def test_what_cannot_be_continued(events: bytes) -> None:
    sofar = Sofar(Endpoint.CHAT)
    sofar.take(events)
    assert continuation(ask(), sofar) is None


def test_nothing_is_asked_when_the_limit_is_used_up() -> None:
    sofar = Sofar(Endpoint.CHAT)
    sofar.take(chunk({"content": "a"}) + chunk({"content": "b"}))
    assert continuation(ask(max_completion_tokens=2), sofar) is None
    assert continuation(ask(max_completion_tokens=3), sofar) is not None


def test_chunks_go_on_under_the_first_id_and_the_role_is_not_announced_again() -> None:
    sofar = Sofar(Endpoint.CHAT)
    sofar.take(chunk({"role": "assistant", "content": ""}) + chunk({"content": "一"}))
    more = (
        b": ping\n\n"
        + chunk({"role": "assistant", "content": ""}, id="second")
        + chunk({"role": "assistant", "content": "二"}, id="second")
        + chunk({}, "stop", id="second")
        + chunk({}, id="second", usage={"total_tokens": 3})
        + DONE
    )
    joined = join(more, sofar)
    assert joined.startswith(b": ping\n\n")
    assert joined.endswith(DONE)
    one, end = parsed(joined.removeprefix(b": ping\n\n"))
    assert (one["id"], one["choices"][0]["delta"]) == ("first", {"content": "二"})
    assert (end["id"], end["choices"][0]["finish_reason"]) == ("first", "stop")


def test_usage_is_kept() -> None:
    sofar = Sofar(Endpoint.CHAT)
    sofar.take(chunk({"content": "一"}))
    usage = write_event(b'{"id":"second","choices":[],"usage":{"total_tokens":3}}')
    assert parsed(join(usage, sofar)) == [
        {"id": "first", "created": 1, "model": "m-1", "choices": [], "usage": {"total_tokens": 3}}
    ]


def test_a_cut_after_the_last_word_only_needs_done() -> None:
    sofar = Sofar(Endpoint.CHAT)
    sofar.take(chunk({"content": "x"}))
    assert ending(sofar) == b""
    sofar.take(chunk({}, "stop"))
    assert ending(sofar) == DONE
