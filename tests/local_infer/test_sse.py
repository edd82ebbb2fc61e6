"""Events are cut at blank lines wherever the chunks were, and nothing is added, lost or decoded."""

from __future__ import annotations

import pytest

from local_infer.api.sse import (
    DONE,
    MAX_EVENT_BYTES,
    Overlong,
    Splitter,
    data_of,
    ends_with_done,
    split_events,
    write_event,
)

EVENTS = {
    "lf": [b'data: {"c":"\xe4\xbd\xa0\xe5\xa5\xbd"}\n\n', b": ping\n\n", b"event: x\ndata: 1\ndata: 2\n\n", DONE],
    "crlf": [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n", b"data: [DONE]\r\n\r\n"],
    "cr": [b"data: 1\r\r", b"data: 2\r\r", b"data: [DONE]\r\r"],
    "mixed": [b"data: 1\r\n\r\n", b"data: 2\n\n", b"data: 3\r\n\r\n"],
}


@pytest.mark.parametrize("form", EVENTS)
def test_whole_split_anywhere_and_byte_by_byte(form: str) -> None:
    whole = b"".join(EVENTS[form])
    borders = {0}
    for event in EVENTS[form]:
        borders.add(max(borders) + len(event))
    assert split_events(whole) == EVENTS[form]
    for at in range(len(whole) + 1):
        splitter = Splitter()
        first = splitter.feed(whole[:at])
        assert len(first) in borders
        assert first + splitter.feed(whole[at:]) == whole
        assert splitter.rest == b""
    splitter = Splitter()
    runs = [splitter.feed(whole[i : i + 1]) for i in range(len(whole))]
    assert [run for run in runs if run] == EVENTS[form]


def test_a_cut_event_stays_as_rest() -> None:
    splitter = Splitter()
    assert splitter.feed(b'data: 1\n\ndata: {"half') == b"data: 1\n\n"
    assert splitter.rest == b'data: {"half'


def test_an_event_without_an_end_is_refused() -> None:
    splitter = Splitter()
    with pytest.raises(Overlong):
        splitter.feed(b"data: " + b"x" * MAX_EVENT_BYTES)


def test_data() -> None:
    assert [data_of(event) for event in EVENTS["lf"]] == ['{"c":"你好"}'.encode(), b"", b"1\n2", b"[DONE]"]
    assert data_of(write_event(b'{"a":1}')) == b'{"a":1}'
    assert data_of(b"data:1\r\n\r\n") == b"1"
    assert data_of(b"database: 1\n\n") == b""


def test_done() -> None:
    assert ends_with_done(b"data: 1\n\n" + DONE)
    assert ends_with_done(b"data: [DONE]\r\n\r\n")
    assert not ends_with_done(b"data: 1\n\n")
    assert not ends_with_done(b'data: {"content":"[DONE]"}\n\n')
