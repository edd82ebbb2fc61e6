"""Which answers are kept, in which forms they can be given, and their record."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_infer.api.sse import DONE, write_event
from local_infer.cache.cache_entry import MAX_REQUEST_BYTES, Entry, fit, make_entry, pack, unpack
from local_infer.fault import SERVER, ApiError
from local_infer.model import Answer, Endpoint, Step
from tests.local_infer.cache_asks import answered, chat, chunks, make_ask, text_of, whole

KEY = bytes(range(32))
ERROR = write_event(ApiError(500, SERVER, "it broke").body())


def made(body: bytes, *, stream: bool = False, answer: Answer | None = None, **fields: object) -> Entry | None:
    ask = make_ask(chat(stream=stream, **fields))
    return make_entry(KEY, ask, answer or answered(body), body, 5.0, 1 << 20)


def test_a_good_whole_answer_is_kept_without_what_belongs_to_its_request_alone() -> None:
    entry = made(whole())
    assert entry is not None
    assert entry.headers == (("content-type", "application/json"),)
    assert (entry.tenant, entry.name, entry.form, entry.born_s, entry.body) == ("t", "east", "whole", 5.0, whole())


BAD_WHOLE = {
    "cut": whole()[:-1],
    "error in a 200": b'{"error":{"message":"x"}}',
    "error beside choices": whole(error={"message": "x"}),
    "no choices": whole(choices=[]),
    "a list": b"[]",
    "text": b"<html>",
    "empty": b"",
    "long and cut": whole("x" * 200_000)[:-1],
    "long with an error": whole("x" * 200_000, error={"message": "x"}),
}


@pytest.mark.parametrize("body", BAD_WHOLE.values(), ids=BAD_WHOLE.keys())
def test_bad_whole_answers_are_not_kept(body: bytes) -> None:
    assert made(body) is None


def test_an_answer_about_errors_is_no_error() -> None:
    assert made(whole('say {"error": {"message": "x"}}')) is not None
    assert made(whole('say {"error": "x"} ' * 10_000)) is not None
    assert made(b"".join(chunks('"error": {}')), stream=True) is not None
    assert made(whole(error=None)) is not None


GOOD = chunks("hi")
BAD_STREAM = {
    "cut": GOOD[:-1],
    "only DONE": [DONE],
    "no finish": [event for event in GOOD if b'"stop"' not in event],
    "error instead of the rest": [*GOOD[:2], ERROR],
    "error and DONE": [*GOOD[:-1], ERROR, DONE],
    "error event by name": [*GOOD[:-1], b'event: error\ndata: {"message":"x"}\n\n', DONE],
    "unreadable error": [*GOOD[:-1], b'data: {"error":\n\n', DONE],
    "DONE in the middle": [*GOOD, GOOD[0]],
}


@pytest.mark.parametrize("events", BAD_STREAM.values(), ids=BAD_STREAM.keys())
def test_bad_streams_are_not_kept(events: list[bytes]) -> None:
    assert made(b"".join(GOOD), stream=True) is not None
    assert made(b"".join(events), stream=True) is None


def test_only_upstreams_own_answers_are_kept() -> None:
    body = whole()
    assert made(body, answer=answered(body, status=429)) is None
    assert made(body, answer=answered(body, status=201)) is None
    assert made(body, answer=answered(body, step=Step.GENERATION)) is None
    good = answered(body)
    assert made(body, answer=replace(good, origin=replace(good.origin, reason="timeout"))) is None
    assert make_entry(KEY, make_ask(headers={"Cache-Control": "no-store"}), good, body, 5.0, 1 << 20) is None
    assert make_entry(KEY, make_ask(), good, body, 5.0, len(body)) is not None
    assert make_entry(KEY, make_ask(), good, body, 5.0, len(body) - 1) is None
    resumed = make_ask(chat(stream=True), headers={"X-Stream-Resume": "yes"})
    assert make_entry(KEY, resumed, good, b"".join(GOOD), 5.0, 1 << 20) is None
    long = make_ask(chat("x" * MAX_REQUEST_BYTES))
    entry = make_entry(KEY, long, good, body, 5.0, 1 << 20)
    assert entry is not None
    assert entry.request == b""


def test_forms() -> None:
    stored = whole("hi")
    streamed = b"".join(chunks("hi"))
    counted = b"".join(chunks("hi", usage=True))
    one, two = made(stored), made(streamed, stream=True)
    three = made(counted, stream=True, stream_options={"include_usage": True})
    assert one is not None
    assert two is not None
    assert three is not None
    assert fit(one, "whole") == (stored, True)
    assert fit(two, "events") == (streamed, True)
    assert fit(three, "usage") == (counted, True)
    # A usage event breaks clients that did not ask for it; one that is missing breaks who counts on it.
    assert fit(three, "events") == (streamed, True)
    assert fit(two, "usage") == (streamed, False)
    for entry, complete in ((two, False), (three, True)):
        fitted = fit(entry, "whole")
        assert fitted is not None
        assert fitted[1] is complete
        assert text_of(fitted[0]) == "hi"
    for form, usage in (("events", False), ("usage", True)):
        fitted = fit(one, form)  # type: ignore[arg-type]
        assert fitted is not None
        assert fitted[1]
        assert text_of(fitted[0]) == "hi"
        assert (b'"usage"' in fitted[0]) is usage
        assert fitted[0].endswith(DONE)
    assert fit(replace(one, body=b"{}"), "events") is None


entries = st.builds(
    Entry, st.just(KEY), st.text(max_size=9), st.sampled_from(Endpoint), st.text(max_size=9), st.text(max_size=9),
    st.sampled_from(["whole", "events", "usage"]), st.floats(0, 2e9),
    st.lists(st.tuples(st.text(max_size=9), st.text(max_size=9)), max_size=3).map(tuple),
    st.binary(max_size=50), st.binary(max_size=50), st.booleans(),
)  # fmt: skip


@given(entries)
def test_a_record_comes_back_as_it_was(entry: Entry) -> None:
    assert unpack(KEY, pack(entry)) == entry


@given(entries, st.data())
def test_any_damage_of_a_record_is_found(entry: Entry, data: st.DataObject) -> None:
    record = pack(entry)
    at = data.draw(st.integers(0, len(record) - 1))
    bit = data.draw(st.integers(0, 7))
    assert unpack(KEY, record[:at] + bytes([record[at] ^ 1 << bit]) + record[at + 1 :]) is None
    assert unpack(KEY, record[:at]) is None
    assert unpack(KEY[::-1], record) is None  # under another key it is another's answer


def test_a_record_of_another_version_is_none() -> None:
    entry = made(whole())
    assert entry is not None
    record = pack(replace(entry, endpoint=Endpoint.CHAT))
    assert json.loads(record[20 : 20 + int.from_bytes(record[16:20], "big")])["endpoint"] == "/chat/completions"
