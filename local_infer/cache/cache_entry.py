"""A kept answer: which answers of upstreams become one, its forms (whole or stream), and its record on disk."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from local_infer.api.forms import to_events, to_whole, wants_usage
from local_infer.api.sse import data_of, ends_with_done, split_events
from local_infer.cache.cache_key import KEY_BYTES
from local_infer.model import Answer, Ask, Endpoint, Step

Form = Literal["whole", "events", "usage"]
"""As it was asked for: whole, as a stream, as a stream with usage at its end."""

MAX_REQUEST_BYTES = 64 << 10
"""A longer request is not kept with its answer, and so never fetched ahead."""

OVERHEAD_BYTES = 1200
"""Memory of an entry besides its body and request: objects, key, headers, its place in the table (measured, rounded up)."""

# What describes the bytes. Processing times and the like were of that one request.
_KEPT_HEADERS = ("content-type", "content-language")
_FINISHED_RE = re.compile(rb'"finish_reason"\s*:\s*"[^"]')


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept answer. `name` is the upstream that gave it, `request` what it was asked (empty: too long to ask it again)."""

    key: bytes
    tenant: str
    endpoint: Endpoint
    model: str
    name: str
    form: Form
    born_s: float
    headers: tuple[tuple[str, str], ...]
    body: bytes
    request: bytes
    opted_in: bool = False

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        return len(self.body) + len(self.request) + OVERHEAD_BYTES


def form_of(ask: Ask) -> Form:
    """The form that a request asks for."""
    return "whole" if not ask.stream else "usage" if wants_usage(ask) else "events"


def make_entry(key: bytes, ask: Ask, answer: Answer, body: bytes, now: float, max_bytes: int) -> Entry | None:
    """The entry that an upstream's complete answer becomes; None when it must not be kept.

    Kept is only what is certainly a whole and good answer: status 200 of an upstream, no error in it, at its end.
    """
    if answer.status != 200 or answer.origin.step is not Step.UPSTREAM or answer.origin.degraded or not ask.cache.write:
        return None
    if len(body) > max_bytes or not (is_good_stream(body) if ask.stream else is_good_whole(ask.endpoint, body)):
        return None
    if ask.resume and ask.stream:
        return None  # it may be sewn together of two upstreams' answers; nobody but who asked for that should see it
    headers = tuple((name, answer.headers[name]) for name in _KEPT_HEADERS if name in answer.headers)
    request = ask.body if len(ask.body) <= MAX_REQUEST_BYTES else b""
    return Entry(
        key, ask.client.tenant, ask.endpoint, ask.model, answer.origin.name, form_of(ask), now, headers, body, request,
        ask.cache.opted_in,
    )  # fmt: skip


def is_good_whole(endpoint: Endpoint, body: bytes) -> bool:
    """Whether a body is a complete answer: JSON with choices (or data), and no error."""
    wanted = "data" if endpoint is Endpoint.EMBEDDINGS else "choices"
    try:
        fields = _check_json(body.decode())
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and not fields.get("error") and bool(fields.get(wanted))


# Numbers are not looked at: a megabyte of embeddings takes 3 ms of the event loop so, and 14 ms when they become floats.
_check_json = json.JSONDecoder(parse_float=len).decode


def is_good_stream(events: bytes) -> bool:
    """Whether events are a complete stream: it came to a finish and to `[DONE]`, and no event is an error."""
    if not ends_with_done(events) or not _FINISHED_RE.search(events):
        return False
    if b"error" not in events:
        return True
    return not any(is_error_event(event) for event in split_events(events) if b"error" in event)


def is_error_event(event: bytes) -> bool:
    """Whether an event is an error, by its name or by its data; data that cannot be read is one too."""
    if event.startswith(b"event:") and event.split(b"\n", 1)[0].removeprefix(b"event:").strip() == b"error":
        return True
    data = data_of(event)
    if not data or data == b"[DONE]":
        return False
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return True
    return not isinstance(fields, dict) or bool(fields.get("error"))


def fit(entry: Entry, form: Form) -> tuple[bytes, bool] | None:
    """The body in the form that is asked for, and whether nothing (usage) is missing in it; None: it cannot be had."""
    if form == entry.form:
        return entry.body, True
    try:
        if form == "whole":
            body = to_whole(entry.body)
            return body, bool(json.loads(body).get("usage"))
        if entry.form == "whole":
            return to_events(entry.body, form == "usage"), True
    except (ValueError, RecursionError):
        return None
    # Between streams: a usage event that was not asked for breaks clients that look into choices[0].
    return (_without_usage(entry.body), True) if form == "events" else (entry.body, False)


def _without_usage(events: bytes) -> bytes:
    return b"".join(event for event in split_events(events) if b'"usage"' not in event or not _is_usage(event))


def _is_usage(event: bytes) -> bool:
    try:
        fields = json.loads(data_of(event))
    except ValueError:
        return False
    return isinstance(fields, dict) and fields.get("choices") == [] and bool(fields.get("usage"))


# -- record


def pack(entry: Entry) -> bytes:
    """An entry as bytes: digest (16), length of the head (4), head as JSON, request, body."""
    head = json.dumps(
        {
            "tenant": entry.tenant, "endpoint": entry.endpoint.value, "model": entry.model, "name": entry.name,
            "form": entry.form, "born_s": entry.born_s, "headers": entry.headers, "opted_in": entry.opted_in,
            "request_bytes": len(entry.request),
        }
    ).encode()  # fmt: skip
    rest = len(head).to_bytes(4, "big") + head + entry.request + entry.body
    return _check(entry.key, rest) + rest


def unpack(key: bytes, record: bytes) -> Entry | None:
    """The entry in a record; None when it is damaged or of another key: a digest tells, as SQLite checks no content."""
    if not isinstance(record, bytes) or len(key) != KEY_BYTES or record[:16] != _check(key, record[16:]):
        return None
    rest = record[16:]
    at = 4 + int.from_bytes(rest[:4], "big")
    try:
        head: Mapping[str, Any] = json.loads(rest[4:at])
        until = at + head["request_bytes"]
        entry = Entry(
            key, head["tenant"], Endpoint(head["endpoint"]), head["model"], head["name"], head["form"],
            float(head["born_s"]), tuple((str(name), str(value)) for name, value in head["headers"]), rest[until:],
            rest[at:until], head["opted_in"] is True,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None  # of another version
    words = (entry.tenant, entry.model, entry.name)
    # The digest is no secret: who can write here can write a whole record, and must not break who reads it.
    sound = math.isfinite(entry.born_s) and all(isinstance(word, str) for word in words) and 0 <= at <= until
    return entry if sound and entry.form in ("whole", "events", "usage") else None


def _check(key: bytes, rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=16, key=key, person=b"nearpath-entry-1").digest()
