"""Our own answers and our marks have the API's form, as its own client library reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from local_infer.api.forms import (
    mark_body,
    mark_events,
    to_events,
    to_whole,
    write_answer,
    write_chunk,
    write_model,
    write_models,
    write_usage,
)
from local_infer.api.sse import DONE, data_of, split_events, write_event
from local_infer.model import Ask, Client, Endpoint, ModelCard, Step

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def ask(endpoint: Endpoint = Endpoint.CHAT, model: str = "gpt", **fields: Any) -> Ask:
    return Ask("req_ab1", endpoint, b"{}", fields, model, True, Client("web", "web"), 0.0)


def dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def chunks(events: bytes) -> list[dict[str, Any]]:
    return [json.loads(data_of(event)) for event in split_events(events) if data_of(event) != b"[DONE]"]


def test_chat_answer() -> None:
    body = write_answer(ask(), "你好", "local/faq", Step.RETRIEVAL, 99, USAGE, "stop")
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert (answer.id, answer.model, answer.created) == ("chatcmpl-ab1", "local/faq", 99)
    assert answer.system_fingerprint == "degraded:retrieval"
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("你好", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 5
    assert "你好".encode() in body


def test_text_answer() -> None:
    body = write_answer(ask(Endpoint.COMPLETIONS), "ok", "local/m", Step.GENERATION, 99, USAGE, "length")
    answer = Completion.model_validate_json(body, strict=True)
    assert (answer.id, answer.choices[0].text, answer.choices[0].finish_reason) == ("cmpl-ab1", "ok", "length")


def test_who_names_a_local_model_gets_no_degraded_answer() -> None:
    body = write_answer(ask(model="local/m"), "ok", "local/m", Step.GENERATION, 9, USAGE, "stop")
    assert json.loads(body)["system_fingerprint"] == "local:generation"


def test_chunks() -> None:
    one = ask(stream_options={"include_usage": True})
    given = ("local/m", Step.GENERATION, 99)
    stream = (
        write_chunk(one, "你", *given, None, True)
        + write_chunk(one, "好", *given, None, False)
        + write_chunk(one, "", *given, "stop", False)
        + write_usage(one, *given, USAGE)
    )
    read = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks(stream)]
    assert [c.choices[0].delta.content for c in read[:3]] == ["你", "好", None]
    assert read[0].choices[0].delta.role == "assistant"
    assert read[2].choices[0].finish_reason == "stop"
    assert read[3].choices == []
    assert read[3].usage is not None
    assert {c.id for c in read} == {"chatcmpl-ab1"}
    # All in one event run, and nothing where nothing is to be said.
    assert len(chunks(write_chunk(one, "x", *given, "stop", True))) == 2
    assert write_chunk(one, "", *given, None, False) == b""
    assert write_usage(ask(), *given, USAGE) == b""


def test_text_chunks() -> None:
    [chunk] = chunks(write_chunk(ask(Endpoint.COMPLETIONS), "x", "local/m", Step.GENERATION, 9, "stop", True))
    assert Completion.model_validate(chunk, strict=True).choices[0].text == "x"


def test_models() -> None:
    cards = [ModelCard("gpt", "east"), ModelCard("gpt", "west"), ModelCard("local/m", "node", {"provider": "cpu"})]
    listed = json.loads(write_models(cards, 7))
    assert listed["object"] == "list"
    assert [(c["id"], c["owned_by"], c["object"], c["created"]) for c in listed["data"]] == [
        ("gpt", "east", "model", 7),
        ("local/m", "node", "model", 7),
    ]
    assert json.loads(write_model(cards[2], 7))["provider"] == "cpu"


# -- marks

KEPT = {
    "id": "c1", "object": "chat.completion", "created": 1, "model": "gpt", "system_fingerprint": "fp",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": USAGE, "service_tier": "flex",
}  # fmt: skip


def test_mark_whole() -> None:
    marked = json.loads(mark_body(dump(KEPT), "cache/", Step.STALE, "[old] "))
    assert (marked["model"], marked["system_fingerprint"]) == ("cache/gpt", "degraded:stale")
    assert marked["choices"][0]["message"]["content"] == "[old] yes"
    assert (marked["id"], marked["usage"], marked["service_tier"]) == ("c1", USAGE, "flex")


@pytest.mark.parametrize(
    "message", [{"content": None}, {"content": "", "tool_calls": [{"id": "t"}]}, {"content": None, "refusal": "no"}]
)
def test_no_prefix_where_there_is_no_content(message: dict[str, Any]) -> None:
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    marked = json.loads(mark_body(dump({**KEPT, "choices": [choice]}), "cache/", Step.STALE, "[old] "))
    assert marked["choices"] == [choice]


def test_mark_embeddings_and_text() -> None:
    vectors = {"object": "list", "data": [{"embedding": [0.5]}], "model": "e"}
    marked = json.loads(mark_body(dump(vectors), "cache/", Step.CACHE, "p"))
    assert marked == {**vectors, "model": "cache/e", "system_fingerprint": "degraded:cache"}
    text = {"model": "m", "choices": [{"index": 0, "text": "x"}]}
    assert json.loads(mark_body(dump(text), "cache/", Step.STALE, "p:"))["choices"][0]["text"] == "p:x"


@pytest.mark.parametrize("body", [b"", b"[]", b"{"])
def test_what_is_no_answer_cannot_be_marked(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        mark_body(body, "cache/", Step.STALE, "")


def stream(*choices: dict[str, Any], done: bool = True, **last: Any) -> bytes:
    base = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt", "system_fingerprint": "fp"}
    events = [write_event(dump({**base, "choices": [choice]})) for choice in choices]
    if last:
        events.append(write_event(dump({**base, **last})))
    return b"".join([*events, DONE if done else b""])


def delta(index: int = 0, finish: str | None = None, **part: Any) -> dict[str, Any]:
    return {"index": index, "delta": part, "finish_reason": finish}


def test_mark_stream() -> None:
    kept = b": ping\n\n" + stream(
        delta(role="assistant", content=""), delta(content="y"), delta(1, content="n"), delta(content="es"),
        delta(finish="stop"),
    )  # fmt: skip
    marked = mark_events(kept, "cache/", Step.STALE, "[old] ")
    assert marked.startswith(b": ping\n\n")
    assert marked.endswith(DONE)
    read = chunks(marked.removeprefix(b": ping\n\n"))
    assert {(c["model"], c["system_fingerprint"]) for c in read} == {("cache/gpt", "degraded:stale")}
    contents = [c["choices"][0]["delta"].get("content") for c in read]
    assert contents == ["", "[old] y", "[old] n", "es", None]


def test_mark_stream_of_a_tool_call() -> None:
    kept = stream(delta(tool_calls=[{"index": 0, "function": {"arguments": "{}"}}]), delta(content="x"))
    assert b"old" not in mark_events(kept, "cache/", Step.STALE, "[old] ")


# -- whole <-> stream


def test_whole_to_stream_and_back() -> None:
    events = to_events(dump(KEPT), include_usage=True)
    assert events.endswith(DONE)
    for chunk in chunks(events):
        ChatCompletionChunk.model_validate(chunk, strict=True)
    whole = json.loads(to_whole(events))
    assert whole["choices"][0]["message"] == KEPT["choices"][0]["message"]  # type: ignore[index]
    assert {k: whole[k] for k in ("id", "model", "object", "usage", "service_tier")} == {
        k: KEPT[k] for k in ("id", "model", "object", "usage", "service_tier")
    }
    assert b'"usage"' not in to_events(dump(KEPT))


def test_stream_to_whole_joins_text_and_reasoning() -> None:
    events = stream(
        delta(role="assistant", content="", reasoning_content="hm"), delta(reasoning_content="m"), delta(content="你"),
        delta(content="好"), delta(1, role="assistant", content="b"), delta(finish="length"), delta(1, finish="stop"),
        choices=[], usage=USAGE,
    )  # fmt: skip
    whole = ChatCompletion.model_validate_json(to_whole(events), strict=False)
    assert [(c.index, c.message.content, c.finish_reason) for c in whole.choices] == [
        (0, "你好", "length"),
        (1, "b", "stop"),
    ]
    assert json.loads(to_whole(events))["choices"][0]["message"]["reasoning_content"] == "hmm"
    assert whole.usage is not None
    assert whole.object == "chat.completion"


def test_stream_to_whole_joins_tool_calls_by_index() -> None:
    events = stream(
        delta(
            role="assistant",
            content=None,
            tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}],
        ),
        delta(tool_calls=[{"index": 0, "function": {"arguments": '{"x":'}}]),
        delta(tool_calls=[{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}}]),
        delta(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        delta(finish="tool_calls"),
    )
    whole = ChatCompletion.model_validate_json(to_whole(events))
    calls = whole.choices[0].message.tool_calls
    assert calls is not None
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [("a", "f", '{"x":1}'), ("b", "g", "{}")]  # type: ignore[union-attr]
    # And once more there and back.
    assert json.loads(to_whole(to_events(to_whole(events)))) == json.loads(to_whole(events))


def test_text_completion_there_and_back() -> None:
    choice = {"index": 0, "text": "hi", "finish_reason": "stop"}
    body = {"id": "c", "object": "text_completion", "model": "m", "choices": [choice]}
    whole = json.loads(to_whole(to_events(dump(body))))
    assert (whole["object"], whole["choices"][0]["text"], whole["choices"][0]["finish_reason"]) == (
        "text_completion", "hi", "stop",
    )  # fmt: skip


@pytest.mark.parametrize(
    "events",
    [
        b"",
        DONE,
        stream(delta(content="x"), done=False),
        stream(delta(content="x"), error={"message": "dead"}),
        b"data: {\n\n" + DONE,
        b"data: []\n\n" + DONE,
    ],
)
def test_no_whole_of_a_stream_that_is_not(events: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        to_whole(events)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices":[]}', b'{"object":"list","data":[]}'])
def test_no_stream_of_what_is_no_completion(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        to_events(body)
