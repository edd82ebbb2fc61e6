"""What the local model is asked; what it cannot do is never left out silently."""

from __future__ import annotations

import json
from typing import Any

import pytest

from core.config_infer import Generation
from local_infer.generation.prompt import MOST_CHARACTERS, Prompt, read_prompt
from local_infer.model import Abstained, Ask, Client, Endpoint

CONFIG = Generation(model="m", max_tokens=100)
USER = [{"role": "user", "content": "如何关闭?"}]


def read(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> Prompt | Abstained:
    if endpoint is Endpoint.CHAT:
        fields = {"messages": USER, **fields}
    ask = Ask("req_1", endpoint, b"", fields, "gpt", False, Client("a", "a"), 0.0)
    return read_prompt(ask, CONFIG)


def prompt(endpoint: Endpoint = Endpoint.CHAT, **fields: Any) -> Prompt:
    got = read(endpoint, **fields)
    assert isinstance(got, Prompt), got
    return got


def test_a_plain_request() -> None:
    assert prompt() == Prompt(USER, None, 100, [], None, None, None, None)
    text = prompt(Endpoint.COMPLETIONS, prompt="从前")
    assert (text.messages, text.text) == (None, "从前")


def test_messages_become_plain_text() -> None:
    parts = [{"type": "text", "text": "一"}, {"type": "text", "text": "二"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": parts, "name": "jo"},
        {"role": "assistant", "content": "三", "tool_calls": None},
        {"role": "user", "content": "四"},
    ]
    assert prompt(messages=messages).messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "一\n二"},
        {"role": "assistant", "content": "三"},
        {"role": "user", "content": "四"},
    ]


def test_limits_and_sampling() -> None:
    assert prompt(max_tokens=5).max_tokens == 5
    assert prompt(max_tokens=500).max_tokens == 100
    assert prompt(max_tokens=50, max_completion_tokens=7).max_tokens == 7
    got = prompt(temperature=0, top_p=0.5, seed=-1, stop="\n", presence_penalty=1.0, unknown={"x": 1})
    assert (got.temperature, got.top_p, got.seed, got.stops) == (0.0, 0.5, (1 << 31) - 1, ["\n"])
    assert prompt(stop=["a", ""]).stops == ["a"]
    assert prompt(stop=None, n=1, tools=[], logprobs=False, tool_choice="none").stops == []


def test_schema() -> None:
    schema = {"type": "object", "properties": {"答": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert json.loads(prompt(response_format=wanted).schema or "") == schema
    assert json.loads(prompt(response_format={"type": "json_object"}).schema or "") == {"type": "object"}
    assert prompt(response_format={"type": "text"}).schema is None


def test_a_schema_that_is_too_much_is_left_to_others_and_it_is_said_why() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": list(range(2001))}}}
    got = read(response_format=wanted)
    assert isinstance(got, Abstained)
    assert got.why == "schema"
    assert got.what.endswith("too much for it: it has more than 2000 enum values")


IMAGE = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "tools"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"best_of": 3}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [{"role": "user", "content": IMAGE}]}, "content"),
        ({"messages": [{"role": "user", "content": None}]}, "content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tools"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tools"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * (MOST_CHARACTERS * 2048 + 1)}]}, "too long"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": True}, "top_p"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_is_left_to_a_real_model(fields: dict[str, Any], why: str) -> None:
    assert read(**fields) == Abstained(why)


def test_completions_and_embeddings_that_are_left() -> None:
    assert read(Endpoint.COMPLETIONS, prompt=["a", "b"]) == Abstained("prompt")
    assert read(Endpoint.COMPLETIONS) == Abstained("prompt")
    assert read(Endpoint.COMPLETIONS, prompt="a", suffix="b") == Abstained("suffix")
    assert read(Endpoint.COMPLETIONS, prompt="a", echo=True) == Abstained("echo")
    assert read(Endpoint.EMBEDDINGS, input="a") == Abstained("endpoint")
