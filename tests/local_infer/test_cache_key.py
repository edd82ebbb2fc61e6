"""Which requests are the same: nothing that could change an answer is left out, and tenants never meet."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_infer.cache.cache_key import KEY_BYTES, keys_of, raw_digest, why_not
from local_infer.model import Endpoint
from tests.local_infer.cache_asks import cache_config, chat, make_ask


def key_of(body: dict[str, Any] | bytes, tenant: str = "t", endpoint: Endpoint = Endpoint.CHAT) -> bytes:
    keys = keys_of(make_ask(body, tenant=tenant, endpoint=endpoint))
    assert keys is not None
    assert len(keys.key) == KEY_BYTES
    return keys.key


SAME = {
    "order of fields": dict(reversed(chat().items())),
    "a null field": chat(stop=None, tools=None),
    "stream": chat(stream=True, stream_options={"include_usage": True}),
    "0.0 for 0": chat(temperature=0.0),
    "order in a message": chat(messages=[{"content": "hello", "role": "user"}]),
}

OTHER = {
    "text": chat("hello "),
    "model": chat(model="n"),
    "temperature": chat(temperature=0.1),
    "an unknown field": chat(some_new_switch=True),
    "user": chat(user="jo"),
    "max_tokens": chat(max_tokens=5),
    "max_completion_tokens": chat(max_completion_tokens=5),
    "a number as text": chat(temperature="0"),
    "true for 1": chat(top_p=True),
    "role": chat(messages=[{"role": "system", "content": "hello"}]),
    "null in a message": chat(messages=[{"role": "user", "content": "hello", "name": None}]),
    "one more message": chat(messages=[*chat()["messages"], {"role": "user", "content": "hello"}]),
}


@pytest.mark.parametrize("body", SAME.values(), ids=SAME.keys())
def test_the_same_request(body: dict[str, Any]) -> None:
    assert key_of(body) == key_of(chat())


def test_the_same_request_written_otherwise() -> None:
    body = chat("你好 😀")
    assert key_of(json.dumps(body, indent=2).encode()) == key_of(json.dumps(body, ensure_ascii=False).encode())


@pytest.mark.parametrize("body", OTHER.values(), ids=OTHER.keys())
def test_another_request(body: dict[str, Any]) -> None:
    assert key_of(body) != key_of(chat())


def test_all_others_differ_from_each_other_and_between_endpoints() -> None:
    keys = [key_of(body) for body in OTHER.values()]
    assert len(set(keys)) == len(keys)
    body = {"model": "m", "input": "x", "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    assert len({key_of(body, endpoint=endpoint) for endpoint in Endpoint}) == 3


def test_order_in_a_schema_counts_because_models_answer_in_it() -> None:
    def asked(*names: str) -> dict[str, Any]:
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
        return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})

    assert key_of(asked("reason", "grade")) != key_of(asked("grade", "reason"))


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"a"}],"messages":[{"role":"user","content":"b"}]}',
        b'{"model":"m","temperature":0,"messages":[{"role":"user","content":"a","content":"b"}]}',
    ],
)
def test_what_can_be_read_in_two_ways_has_no_key(body: bytes) -> None:
    assert keys_of(make_ask(body)) is None


def test_predecessor_is_the_request_without_last_answer_and_question() -> None:
    first = chat("a")
    second = chat(
        messages=[*first["messages"], {"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]
    )
    keys = keys_of(make_ask(second))
    assert keys is not None
    assert keys.previous == key_of(first)
    assert keys.previous != key_of(chat("a", max_tokens=1))
    first_keys = keys_of(make_ask(first))
    assert first_keys is not None
    assert first_keys.previous is None
    # A tool call in between: the answer was not what the user saw.
    tools = [*first["messages"], {"role": "tool", "content": "x"}, {"role": "user", "content": "b"}]
    tool_keys = keys_of(make_ask(chat(messages=tools)))
    assert tool_keys is not None
    assert tool_keys.previous is None


texts = st.text(max_size=20)
tenants = st.text(min_size=1, max_size=12)


@given(tenants, tenants, texts, texts)
def test_tenants_never_share_a_key(one: str, two: str, first: str, second: str) -> None:
    a, b = make_ask(chat(first), tenant=one), make_ask(chat(second), tenant=two)
    same = (one, first) == (two, second)
    assert (key_of(chat(first), one) == key_of(chat(second), two)) == same
    assert (raw_digest(a) == raw_digest(b)) == same


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(texts.filter(lambda name: name != "model"), json_values, max_size=5), st.randoms())
def test_order_and_spaces_never_matter(extra: dict[str, Any], rng: Any) -> None:
    # Names that the gateway checks itself keep their good values.
    body = {**extra, **chat()}
    items = list(body.items())
    rng.shuffle(items)
    assert key_of(json.dumps(dict(items), indent=1).encode()) == key_of(body)


def test_what_may_be_kept() -> None:
    config = cache_config()
    assert why_not(make_ask(chat()), config) == ""
    assert why_not(make_ask(chat(temperature=0.0)), config) == ""
    assert why_not(make_ask(chat(temperature=0.7)), config) == "sampled"
    assert why_not(make_ask(chat(temperature=None)), config) == "sampled"  # the API's default is 1
    assert why_not(make_ask(chat(temperature=False)), config) == "sampled"
    assert why_not(make_ask(chat(temperature="0")), config) == "sampled"
    assert why_not(make_ask(chat(temperature=0.7), headers={"X-Cache": "keep"}), config) == ""
    assert why_not(make_ask(chat(temperature=0.7)), cache_config(sampled=True)) == ""
    assert why_not(make_ask({"model": "m", "input": "x"}, endpoint=Endpoint.EMBEDDINGS), config) == ""
    assert why_not(make_ask(chat(store=True)), config) == "stateful"
    assert why_not(make_ask(chat(store=False)), config) == ""
    assert why_not(make_ask(chat(web_search_options={"user_location": None})), config) == "stateful"
    assert why_not(make_ask(chat(model="local/m")), config) == "local"
