"""What an upstream's response means: an answer, a reason to ask another one, or that this one is of no use now.

| response                                                  | verdict                                              |
|-----------------------------------------------------------|------------------------------------------------------|
| 2xx                                                       | an answer, unless its beginning is an error          |
| 4xx but those below                                       | an answer: the client's own fault                    |
| 408, 425, 5xx                                             | a failure: ask another                               |
| 429; 503 with Retry-After                                 | full until then: ask another, no failure of the path |
| 401, 403                                                  | our credentials' fault: a failure, nobody sees it    |
| 3xx                                                       | a failure: it would get to see the credentials       |
| 200 with HTML, or encoded although that was not asked for | a failure: not the API (a login page, say)           |
| 200, first event of the stream an error                   | by the code in it as above, else a failure           |

Pure. Sources: RFC 9110 15 and 10.2.3 (Retry-After), 6585 (429), 8470 (425); the API's error object.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from local_infer.api.forms import dump, to_events, to_whole, wants_usage
from local_infer.api.sse import MAX_EVENT_BYTES, data_of, split_events
from local_infer.model import Ask, Endpoint

MAX_ANSWER_BYTES = 64 << 20
"""Longest answer that is no stream: 2,048 embeddings of 3,072 numbers as text are about 60 MB."""

MAX_ERROR_BYTES = 1 << 20
"""Longest error answer that is read; what is longer is none."""

SMALL_ANSWER_BYTES = 4096
"""Whole answers up to this are a sample of the upstream's time to first byte; of longer ones, writing takes most of it."""

MAX_RETRY_AFTER_S = 3600.0
"""A word is believed for this long: after it the upstream is asked again anyway."""

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Verdict(Enum):
    """What to do with a response."""

    ANSWER = "answer"
    RETRY = "retry"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt without an answer. `reason` is one of a few fixed words; `status` of the error answer, if any;
    `body` is what an error within a 200 says.

    `of_path`: says something about the upstream's health. `stale_connection`: a kept connection that the upstream had
    closed just then, which says nothing. `retry_after_s` is what it asked for, `in_ms`: to the millisecond.
    """

    reason: str
    status: int | None = None
    body: bytes = b""
    retry_after_s: float | None = None
    in_ms: bool = False
    full: bool = False
    stale_connection: bool = False

    @property
    def of_path(self) -> bool:
        """Whether it counts as a loss."""
        return not self.full and not self.stale_connection


def judge(status: int, headers: Mapping[str, str]) -> Verdict:
    """What a status line and headers (lower-case names) mean."""
    if status == 429 or (status == 503 and "retry-after" in headers):
        return Verdict.FULL
    if status < 200 or 300 <= status < 400 or status >= 500 or status in (401, 403, 408, 425):
        return Verdict.RETRY
    return Verdict.ANSWER


def reason_of(status: int) -> str:
    """The word for a failing status, fit for metric labels and X-Degraded."""
    match status:
        case 429:
            return "rate limited"
        case 401 | 403:
            return "credentials"
        case _ if 300 <= status < 400:
            return "redirect"
        case _ if status in (408, 425, 500, 501, 502, 503, 504):
            return f"status {status}"
    return "status 5xx" if status >= 500 else "status 4xx"


def is_object(body: bytes) -> bool:
    """Whether a body has the borders of a JSON object. What lies between them is not read: forwarding must stay cheap."""
    return body[:64].lstrip(b" \t\r\n").startswith(b"{") and body[-64:].rstrip(b" \t\r\n").endswith(b"}")


def as_stream(body: bytes, ask: Ask) -> bytes | None:
    """A body that came whole where a stream was asked for, as the events it should have been; None: it is no answer.

    Some upstreams do not stream every model, some send events under another content type. None too for what is longer
    than an event may be: reading it stops everybody.
    """
    if len(body) > MAX_EVENT_BYTES:
        return None
    try:
        if body[:64].lstrip().startswith(b"{"):
            return to_events(body, wants_usage(ask))
        to_whole(body)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return body


def find_strange(status: int, headers: Mapping[str, str]) -> str:
    """Why a successful response (lower-case header names) is not one of the API; empty: it may be one."""
    if status >= 300:
        return ""
    if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        return "encoded"
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    return "not the API" if kind in ("text/html", "application/xhtml+xml") else ""


def is_event_stream(headers: Mapping[str, str]) -> bool:
    """Whether the body is a stream of events."""
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "text/event-stream"


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait: `retry-after-ms` as OpenAI sends it, else Retry-After as seconds or as a date; None without."""
    number = _number(headers.get("retry-after-ms", ""))
    if number is not None:
        return min(number / 1000, MAX_RETRY_AFTER_S)
    text = headers.get("retry-after", "").strip()
    number = _number(text)
    if number is None:
        date_s = _date_s(text)
        number = None if date_s is None else max(0.0, date_s - now)
    return None if number is None else min(number, MAX_RETRY_AFTER_S)


# The form to send, and the two obsolete ones that must be understood (RFC 9110 5.6.7).
_DATE_FORMS = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")


def _date_s(text: str) -> float | None:
    for form in _DATE_FORMS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except (ValueError, OverflowError):
            continue
    return None


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def pause_s(times: int) -> float:
    """How long an upstream that is full, and does not say for how long, is left alone: 1 s, doubled up to 60 s."""
    return float(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(max(times - 1, 0), 16)))


def fault_of_body(body: bytes) -> Failure | None:
    """The failure that a whole 200 body tells of; None: it is an answer."""
    # Only what begins like an error object is looked into: parsing each answer would cost more than forwarding it.
    if not body[:64].lstrip().replace(b" ", b"").startswith(b'{"error":'):
        return None
    return _fault_of(body)


def fault_of_event(event: bytes) -> Failure | None:
    """The failure that the first event of a stream tells of; None: the stream has begun well.

    `status` is set when the error carries one (an int in `code` or `status`, as vLLM and OpenRouter send it).
    """
    named = b"event:error" in event[:64].replace(b" ", b"")
    if not named and b'"error"' not in event:
        return None
    return _fault_of(data_of(event)) or (Failure("error in stream") if named else None)


def before_error(events: bytes) -> tuple[bytes, str]:
    """(the events before one that tells of an error, what to call it); all of them, and empty, when there is none."""
    if b"error" in events:
        at = 0
        for event in split_events(events):
            if fault_of_event(event) is not None:
                return events[:at], "error in stream"
            at += len(event)
    return events, ""


def up_to_error(events: bytes) -> tuple[bytes, str]:
    """(the events up to and with the first that tells of an error, what to call it); all of them, and empty, without."""
    before, reason = before_error(events)
    return (before + split_events(events[len(before) :])[0], reason) if reason else (events, "")


def _fault_of(data: bytes) -> Failure | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    error = value.get("error") if isinstance(value, dict) else None
    if not error:
        return None
    status = _status_in(error) or _status_in(value)
    body = dump({"error": error})
    if status is None:
        return Failure("error in stream", body=body)
    return Failure(reason_of(status), status, body, full=status == 429)


def _status_in(value: Any) -> int | None:
    if not isinstance(value, dict):
        return None
    for name in ("code", "status"):
        code = value.get(name)
        if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
            code = int(code)
        if isinstance(code, int) and 400 <= code <= 599:
            return code
    return None


def first_event(events: bytes) -> bytes:
    """The first event of a run that carries data; empty: what only keeps a connection alive (comments, say) has none."""
    if events.startswith(b"data: {"):  # nearly always
        end = events.find(b"\n\n") + 2
        if end > 1 and events.find(b"\r", 0, end) < 0:
            return events[:end]
    elif not (events.startswith(b"data:") or b"\ndata:" in events or b"\rdata:" in events):
        return b""
    return next((event for event in split_events(events) if data_of(event)), b"")


def tells_end(events: bytes) -> bool:
    """Whether a choice may come to its end in these events: cheap, for each run of a stream."""
    return b'"finish_reason":"' in events or b'"finish_reason": "' in events


def is_finished(endings: bytes, ask: Ask) -> bool:
    """Whether all that was asked for has come to its end, though `[DONE]` did not come.

    `endings` are the events of the stream of which `tells_end` holds.
    """
    finished = set()
    for event in split_events(endings):
        try:
            choices = json.loads(data_of(event))["choices"]
            finished |= {choice.get("index", 0) for choice in choices if choice.get("finish_reason")}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return len(finished) >= _choices_asked(ask)


def _choices_asked(ask: Ask) -> int:
    """How many choices an answer has: `n` of each prompt, where one may be text or a list of tokens."""
    count, prompt = ask.fields.get("n"), ask.fields.get("prompt")
    prompts = len(prompt) if ask.endpoint is Endpoint.COMPLETIONS and isinstance(prompt, list) and prompt else 1
    if prompts > 1 and isinstance(prompt, list) and isinstance(prompt[0], int):
        prompts = 1
    return prompts * (count if isinstance(count, int) and count > 0 else 1)


def body_for(ask: Ask, model_there: str) -> bytes:
    """The request's bytes as they came, or with the upstream's own name of the model."""
    if model_there == ask.model:
        return ask.body
    return json.dumps({**ask.fields, "model": model_there}, ensure_ascii=False, separators=(",", ":")).encode()


def lane_of(ask: Ask) -> str:
    """What times may be compared with each other: streams, whole answers and embeddings differ by far."""
    if ask.endpoint is Endpoint.EMBEDDINGS:
        return "embeddings"
    return "stream" if ask.stream else "whole"


def without_secret(body: bytes, secret: bytes) -> bytes:
    """An error text in which the credential, if it repeats it, is hidden."""
    return body.replace(secret, b"[hidden]") if len(secret) >= 4 and secret in body else body
