"""Which requests the local steps may look at, and what counts as the same context."""

from __future__ import annotations

import json
from typing import Any

import pytest

from local_infer.model import Abstained, Ask, Client, Endpoint, Question
from local_infer.retrieval.question import context_of, language_of, question_of, system_context

HELLO = {"role": "user", "content": "如何退款"}


def ask(fields: dict[str, Any], endpoint: Endpoint = Endpoint.CHAT) -> Ask:
    return Ask("req_1", endpoint, json.dumps(fields).encode(), fields, "m", False, Client("c", "shop"), 0.0)


def chat(*messages: object, **more: object) -> Question | Abstained:
    return question_of(ask({"model": "m", "messages": list(messages), **more}))


def test_plain_question() -> None:
    assert chat(HELLO) == Question("shop", "如何退款", "zh", b"")
    parts = {"role": "user", "content": [{"type": "text", "text": "How?"}, {"type": "text", "text": "When?"}]}
    assert chat(parts) == Question("shop", "How?\nWhen?", "en", b"")
    assert question_of(ask({"prompt": "how are you"}, Endpoint.COMPLETIONS)) == Question("shop", "how are you", "en")


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("tools", [{"type": "function", "function": {"name": "x"}}], "tools"),
        ("functions", [{"name": "x"}], "tools"),
        ("tool_choice", "auto", "tools"),
        ("response_format", {"type": "json_object"}, "response_format"),
        ("response_format", {"type": "json_schema", "json_schema": {}}, "response_format"),
        ("n", 2, "n"),
        ("n", True, "n"),
        ("n", "1", "n"),
        ("best_of", 3, "n"),
        ("logprobs", True, "logprobs"),
        ("top_logprobs", 2, "logprobs"),
        ("logit_bias", {"50256": -100}, "logit_bias"),
        ("modalities", ["text", "audio"], "modalities"),
        ("audio", {"voice": "alloy"}, "audio"),
        ("stop", ["\n"], "stop"),
        ("web_search_options", {}, "web_search_options"),
    ],
)
def test_what_asks_for_more_is_left_alone(field: str, value: object, why: str) -> None:
    assert chat(HELLO, **{field: value}) == Abstained(why)


def test_fields_that_ask_for_nothing_do_no_harm() -> None:
    nothing = {"tools": [], "n": 1, "logprobs": False, "response_format": None, "temperature": 0.7, "user": "u"}
    assert isinstance(chat(HELLO, **nothing), Question)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        [{"role": "user", "content": [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {}}]}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": " \n"}],
        ["x"],
    ],
)
def test_other_messages_are_left_alone(messages: list[object]) -> None:
    assert isinstance(chat(*messages), Abstained)


def test_embeddings_and_token_prompts_are_left_alone() -> None:
    assert question_of(ask({"input": "x"}, Endpoint.EMBEDDINGS)) == Abstained("endpoint")
    assert question_of(ask({"prompt": [1, 2]}, Endpoint.COMPLETIONS)) == Abstained("prompt")


def test_everything_before_the_question_is_its_context() -> None:
    system = {"role": "system", "content": "Be kind."}
    plain, with_system = chat(HELLO), chat(system, HELLO)
    assert isinstance(plain, Question)
    assert isinstance(with_system, Question)
    assert with_system.context == system_context("Be kind.") != plain.context == b""
    as_parts = {"role": "system", "content": [{"type": "text", "text": "Be kind."}]}
    assert context_of([as_parts]) == context_of([system])
    others = [
        [{"role": "system", "content": "Be kind"}],
        [{"role": "developer", "content": "Be kind."}],
        [system, system],
        [system, HELLO, {"role": "assistant", "content": "Hi"}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
    ]
    digests = {context_of(messages) for messages in [[system], *others]}
    assert len(digests) == len(others) + 1


def test_languages() -> None:
    assert [language_of(t) for t in ("iPhone 怎么录屏", "How?", "¿?", "123")] == ["zh", "en", "other", "other"]
