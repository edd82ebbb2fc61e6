"""Continuing a stream that was cut: what the client has got so far, the request for the rest, and its chunks made to fit.

Only for clients that opted in (`X-Stream-Resume: yes`): another upstream, perhaps with another model behind the name,
goes on from the text so far, and the seam may show. Tool calls, several choices, log probabilities and JSON mode are
never continued: half of a JSON text and a new start of it are no JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from local_infer.api.forms import dump
from local_infer.api.sse import DONE, data_of, split_events, write_event
from local_infer.model import Ask, Endpoint

MAX_TEXT_CHARS = 1 << 20
"""Text kept for a continuation; a longer answer is not continued."""

_LIMITS = ("max_completion_tokens", "max_tokens")


def may_resume(ask: Ask) -> bool:
    """Whether a cut stream of this request can be continued at all."""
    fields = ask.fields
    if not ask.resume or not ask.stream or ask.endpoint is Endpoint.EMBEDDINGS:
        return False
    if (fields.get("n") or 1) != 1 or fields.get("logprobs") or fields.get("tools") or fields.get("functions"):
        return False
    if fields.get("response_format") not in (None, {"type": "text"}):
        return False
    if ask.endpoint is Endpoint.CHAT:
        return isinstance(fields.get("messages"), list)
    return isinstance(fields.get("prompt"), str) and not fields.get("echo") and not fields.get("suffix")


@dataclass(slots=True)
class Sofar:
    """What a client has been sent of one stream, over all upstreams that took part.

    `head` are the fields of the first chunk (id, created, model, ...), which later chunks get too.
    """

    endpoint: Endpoint
    text: list[str] = field(default_factory=list)
    length: int = 0
    pieces: int = 0
    head: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = False
    possible: bool = True

    def take(self, events: bytes) -> None:
        """Note what a run of whole events, as sent to the client, says."""
        for event in split_events(events):
            self._take(data_of(event))

    def _take(self, data: bytes) -> None:
        if not data or data == b"[DONE]":
            return
        chunk = _object(data)
        if chunk is None:
            self.possible = False
            return
        if not self.head:
            self.head = {key: value for key, value in chunk.items() if key not in ("choices", "usage")}
        for choice in _choices(chunk):
            text, other = _text_of(choice, self.endpoint)
            self.possible = self.possible and not other
            self.finished = self.finished or bool(choice.get("finish_reason"))
            if text:
                self.text.append(text)
                self.length += len(text)
                self.pieces += 1
        if self.length > MAX_TEXT_CHARS:
            self.possible = False
            self.text.clear()


def continuation(ask: Ask, sofar: Sofar) -> Ask | None:
    """The request for the rest; None when it cannot be continued, or nothing is left to say.

    A token limit is lowered by the pieces that came: most upstreams send a token a piece.
    """
    if not sofar.possible or sofar.finished:
        return None
    fields = dict(ask.fields)
    for name in _LIMITS:
        limit = fields.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool):
            if limit <= sofar.pieces:
                return None
            fields[name] = limit - sofar.pieces
    text = "".join(sofar.text)
    if text and ask.endpoint is Endpoint.CHAT:
        fields["messages"] = [*fields["messages"], {"role": "assistant", "content": text}]
    elif text:
        fields["prompt"] += text
    body = dump(fields)
    # Another request: under the same key an upstream might give its first answer again.
    return replace(ask, body=body, fields=fields, idempotency_key="")


def join(events: bytes, sofar: Sofar) -> bytes:
    """The events of a continuation as chunks of the first stream: its id, and no second announcement of the role."""
    joined = []
    for event in split_events(events):
        data = data_of(event)
        chunk = _object(data) if data and data != b"[DONE]" else None
        if chunk is None:
            joined.append(event)
            continue
        fitted = _fit(chunk, sofar)
        if fitted is not None:
            joined.append(write_event(dump(fitted)))
    return b"".join(joined)


def _fit(chunk: dict[str, Any], sofar: Sofar) -> dict[str, Any] | None:
    choices = _choices(chunk)
    for choice in choices:
        delta = choice.get("delta")
        # With nothing sent so far, the role still has to be announced.
        if sofar.head and isinstance(delta, dict):
            delta.pop("role", None)
            if not delta.get("content"):
                delta.pop("content", None)
    if sofar.head and choices and not any(_says_something(choice) for choice in choices):
        return None
    return {**chunk, **sofar.head}


def ending(sofar: Sofar) -> bytes:
    """What ends a stream that was cut after all had been said: only `[DONE]` was missing."""
    return DONE if sofar.finished else b""


def _says_something(choice: Mapping[str, Any]) -> bool:
    return bool(choice.get("delta") or choice.get("text") or choice.get("finish_reason"))


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _choices(chunk: Mapping[str, Any]) -> list[dict[str, Any]]:
    choices = chunk.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _text_of(choice: Mapping[str, Any], endpoint: Endpoint) -> tuple[str, bool]:
    """(text, whether there is something that cannot be continued)."""
    if endpoint is not Endpoint.CHAT:
        text = choice.get("text")
        return (text if isinstance(text, str) else ""), choice.get("index", 0) != 0
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return "", False
    text = delta.get("content")
    other = any(value for key, value in delta.items() if key not in ("role", "content"))
    return (text if isinstance(text, str) else ""), other or choice.get("index", 0) != 0
