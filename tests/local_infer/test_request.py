"""A request is parsed once; what cannot be understood in one way only is refused in the API's words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from multidict import CIMultiDict

from local_infer.api.request import MAX_DEPTH, parse_body, read_ask, read_cache_wish
from local_infer.fault import ApiError
from local_infer.model import CacheWish, Client, Endpoint, Step

CLIENT = Client("web", "web")
CHAT = {"model": "m", "messages": [{"role": "user", "content": "你好"}]}


def read(body: Any, endpoint: Endpoint = Endpoint.CHAT, **headers: str) -> Any:
    data = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    names = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return read_ask(endpoint, names, data, CLIENT, "req_1", 12.5)


def refused(body: Any, endpoint: Endpoint = Endpoint.CHAT, **headers: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(body, endpoint, **headers)
    return caught.value


def test_plain_request_keeps_its_bytes_and_unknown_fields() -> None:
    body = json.dumps({**CHAT, "a_new_field": {"x": [1]}}, ensure_ascii=False).encode()
    ask = read(body)
    assert ask.body is body
    assert ask.fields["a_new_field"] == {"x": [1]}
    assert (ask.id, ask.endpoint, ask.model, ask.stream, ask.client) == ("req_1", Endpoint.CHAT, "m", False, CLIENT)
    assert (ask.arrived_s, ask.cache, ask.refused, ask.resume) == (12.5, CacheWish(), frozenset(), False)


@pytest.mark.parametrize(("given", "stream"), [(True, True), (False, False), (None, False)])
def test_stream(given: bool | None, stream: bool) -> None:
    assert read({**CHAT, "stream": given}).stream is stream


def test_embeddings_are_never_a_stream() -> None:
    assert read({"model": "m", "input": "x", "stream": True}, Endpoint.EMBEDDINGS).stream is False


def test_completions_need_no_prompt() -> None:
    assert read({"model": "m"}, Endpoint.COMPLETIONS).model == "m"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": CHAT["messages"]}, "model"),
        ({**CHAT, "model": 5}, "model"),
        ({**CHAT, "model": ""}, "model"),
        ({**CHAT, "model": "a" * 129}, "model"),
        ({**CHAT, "model": "a\nb"}, "model"),
        ({**CHAT, "stream": "yes"}, "stream"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": "hello"}, "messages"),
        ({"model": "m", "messages": ["hello"]}, "messages"),
    ],
)
def test_fields_we_decide_by_must_be_right(body: Any, param: str) -> None:
    error = refused(body)
    assert (error.status, error.kind, error.param) == (400, "invalid_request_error", param)


def test_embeddings_need_input() -> None:
    assert refused({"model": "m"}, Endpoint.EMBEDDINGS).param == "input"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b'{"model": NaN}',
        b'{"model": Infinity}',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"model":"m"}{"model":"n"}',
        b'{"model":"m","model":"n","messages":[{}]}',
        b'{"model":"m","mod\\u0065l":"n","messages":[{}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud83d"}]}',
        b'{"a":' + b"1" * 5000 + b"}",
        b'{"a":' * 100_000,
        b"[" * 200_000,
    ],
)
def test_bodies_that_can_be_read_in_two_ways_or_in_none(body: bytes) -> None:
    error = refused(body)
    assert error.status == 400
    assert len(str(error)) < 200


def test_a_name_that_stands_twice_is_told() -> None:
    twice = b'{"model":"m","model":"n","messages":[{}]}'
    assert "'model' stands twice in one object" in str(refused(twice))
    unknown = b'{"model":"m","messages":[{"role":"user","content":""}],"se\\u0063ret":1,"secret":2}'
    assert "secret" not in str(refused(unknown)), "what the client made up is not told back"
    assert "a number is out of range" in str(refused(b'{"model": NaN}'))


def test_an_idempotency_key_goes_on_as_one_of_this_tenant_and_request() -> None:
    once = read(CHAT, Idempotency_Key="try-1").idempotency_key
    assert once == read(CHAT, Idempotency_Key="try-1").idempotency_key
    assert re.fullmatch("[0-9a-f]{64}", once)
    assert once != read(CHAT, Idempotency_Key="try-2").idempotency_key
    assert once != read({**CHAT, "temperature": 1}, Idempotency_Key="try-1").idempotency_key
    assert read(CHAT).idempotency_key == ""
    for wrong in ("", "a b", "a" * 256, "schlüssel"):
        assert "Idempotency-Key must be" in str(refused(CHAT, Idempotency_Key=wrong))


def test_escaped_text_and_whole_surrogate_pairs_are_fine() -> None:
    ask = read(b'{"model":"m","messages":[{"role":"user","content":"\\u4f60\\ud83d\\ude00"}]}')
    assert ask.fields["messages"][0]["content"] == "你😀"


def test_content_that_talks_of_models_is_no_second_model() -> None:
    assert read({**CHAT, "messages": [{"role": "user", "content": '"model": "x", "model": "y"'}]}).model == "m"


@pytest.mark.parametrize("open_", ['{"a":', "["])
def test_depth_is_limited_exactly(open_: str) -> None:
    close = "}" if open_[0] == "{" else "]"
    inner = "0"
    fits = '{"x":' + open_ * (MAX_DEPTH - 1) + inner + close * (MAX_DEPTH - 1) + "}"
    assert parse_body(fits.encode())
    with pytest.raises(ApiError, match="nested deeper than 64"):
        parse_body(('{"x":' + open_ * MAX_DEPTH + inner + close * MAX_DEPTH + "}").encode())


def test_many_shallow_objects_are_not_deep() -> None:
    assert parse_body(json.dumps({"messages": [{"c": [{}]}] * 1000}).encode())


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/merge-patch+json", True),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
    ],
)
def test_content_type(kind: str, good: bool) -> None:
    if good:
        assert read(CHAT, Content_Type=kind).model == "m"
    else:
        assert refused(CHAT, Content_Type=kind).status == 415


def test_ladder_headers() -> None:
    ask = read(CHAT, X_Ladder_Refuse="retrieval, Generation,", X_Stream_Resume="yes")
    assert ask.refused == {Step.RETRIEVAL, Step.GENERATION}
    assert ask.resume
    assert not read(CHAT, X_Stream_Resume="no").resume
    assert "retrieval" in str(refused(CHAT, X_Ladder_Refuse="retreival"))


@pytest.mark.parametrize(
    ("control", "keep", "wish"),
    [
        ("", "", CacheWish()),
        ("no-cache", "", CacheWish(read=False)),
        ("no-store", "", CacheWish(write=False)),
        ("No-Store, no-cache", "", CacheWish(read=False, write=False)),
        ("max-age=60", "", CacheWish(max_age_s=60.0)),
        ('max-age="5", max-age=9', "", CacheWish(max_age_s=5.0)),
        ("max-age=x, max-age=-1, min-fresh=3", "", CacheWish()),
        ("only-if-cached", "", CacheWish(only_if_cached=True)),
        ("", "Keep", CacheWish(opted_in=True)),
    ],
)
def test_cache_wishes(control: str, keep: str, wish: CacheWish) -> None:
    assert read_cache_wish(control, keep) == wish


def test_cache_wish_comes_from_both_headers() -> None:
    assert read(CHAT, X_Cache="keep").cache == CacheWish(opted_in=True)
    assert read(CHAT, Cache_Control="no-cache").cache == CacheWish(read=False)
