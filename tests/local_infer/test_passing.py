"""What of an upstream's stream a client gets, and when it was whole."""

from __future__ import annotations

import json

import pytest

from local_infer.api.sse import DONE
from local_infer.model import Ask, Client, Endpoint
from local_infer.upstreams.passing import Passing
from local_infer.upstreams.resume import Sofar

SECRET = b"sk-secret"
ERROR = b'data: {"error":{"message":"sk-secret is dead"}}\n\n'


def chunk(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "1", "choices": [choice]}, separators=(",", ":")).encode() + b"\n\n"


def passing(*, resume: bool = False) -> Passing:
    ask = Ask("r", Endpoint.CHAT, b"", {}, "m", True, Client("c", "t"), 0.0)
    return Passing(ask, Sofar(Endpoint.CHAT) if resume else None)


def test_what_is_whole_with_and_without_done() -> None:
    one = passing()
    assert one.take(chunk("a"), SECRET) == chunk("a")
    assert not one.is_whole
    one.take(chunk("", "stop"), SECRET)
    assert one.is_whole
    assert not one.said_done
    one.take(DONE, SECRET)
    assert one.said_done


def test_an_error_is_told_without_the_credential_and_ends_it() -> None:
    one = passing()
    assert one.take(chunk("a") + ERROR + chunk("b"), SECRET) == chunk("a") + ERROR.replace(SECRET, b"[hidden]")
    assert (one.reason, one.told) == ("error in stream", True)


@pytest.mark.parametrize("resume", [False, True])
def test_an_error_that_is_glued_to_half_an_event_has_no_credential_either(resume: bool) -> None:
    half = chunk("a")[:-9]
    assert passing(resume=resume).take(half + ERROR, SECRET) == half + ERROR.replace(SECRET, b"[hidden]")


def test_an_error_is_kept_back_where_another_may_go_on() -> None:
    one = passing(resume=True)
    assert one.take(chunk("a") + ERROR, SECRET) == chunk("a")
    assert (one.reason, one.told) == ("error in stream", False)
    one.go_on()
    assert not one.reason
    assert b"b" in one.take(chunk("b", "stop") + DONE, SECRET)
    assert one.is_whole
    assert one.sofar is not None
    assert one.sofar.text == ["a", "b"]
