"""Answers in the API's form: those we write ourselves, kept ones that get our marks, whole answers as streams and back.

What comes from an upstream while it is up never passes through here: its bytes go out as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from local_infer.api.sse import DONE, MAX_EVENT_BYTES, data_of, ends_with_done, split_events, write_event
from local_infer.model import Ask, Endpoint, ModelCard, Step

_WHOLE = {Endpoint.CHAT: "chat.completion", Endpoint.COMPLETIONS: "text_completion"}
_CHUNK = {Endpoint.CHAT: "chat.completion.chunk", Endpoint.COMPLETIONS: "text_completion"}
_PREFIX = {Endpoint.CHAT: "chatcmpl-", Endpoint.COMPLETIONS: "cmpl-"}


def fingerprint(step: Step, asked_model: str = "") -> str:
    """`system_fingerprint` of an answer of ours; who names a local model gets what was asked for, which is not degraded."""
    return f"{'local' if asked_model.startswith('local/') else 'degraded'}:{step.label}"


# -- our own answers


def write_answer(
    ask: Ask, text: str, model: str, step: Step, created_s: int, usage: Mapping[str, int], finish: str
) -> bytes:
    """A whole chat or text completion."""
    choice: dict[str, Any] = {"index": 0}
    if ask.endpoint is Endpoint.CHAT:
        choice["message"] = {"role": "assistant", "content": text, "refusal": None}
    else:
        choice["text"] = text
    choice |= {"logprobs": None, "finish_reason": finish}
    body = _base(ask, _WHOLE, model, step, created_s) | {"choices": [choice], "usage": dict(usage)}
    return dump(body)


def write_chunk(ask: Ask, text: str, model: str, step: Step, created_s: int, finish: str | None, first: bool) -> bytes:
    """One or two events of a stream: `text`, and the finish reason when there is one. `[DONE]` is the caller's."""
    base = _base(ask, _CHUNK, model, step, created_s)
    events = b""
    if ask.endpoint is Endpoint.CHAT:
        if text or first:
            delta = {"role": "assistant", "content": text} if first else {"content": text}
            events += _event(base, {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})
        if finish is not None:
            events += _event(base, {"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish})
    elif text or first or finish is not None:
        events += _event(base, {"index": 0, "text": text, "logprobs": None, "finish_reason": finish})
    return events


def write_usage(ask: Ask, model: str, step: Step, created_s: int, usage: Mapping[str, int]) -> bytes:
    """The last event before `[DONE]` for who asked for it by `stream_options.include_usage`; else nothing."""
    if not wants_usage(ask):
        return b""
    body = _base(ask, _CHUNK, model, step, created_s) | {"choices": [], "usage": dict(usage)}
    return write_event(dump(body))


def wants_usage(ask: Ask) -> bool:
    """Whether `stream_options.include_usage` is set."""
    options = ask.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def write_models(cards: Iterable[ModelCard], created_s: int) -> bytes:
    """The answer of `GET /v1/models`; the first card of an id counts."""
    seen: dict[str, dict[str, Any]] = {}
    for card in cards:
        seen.setdefault(card.id, _card(card, created_s))
    return dump({"object": "list", "data": list(seen.values())})


def write_model(card: ModelCard, created_s: int) -> bytes:
    """The answer of `GET /v1/models/ID`."""
    return dump(_card(card, created_s))


def _card(card: ModelCard, created_s: int) -> dict[str, Any]:
    return {"id": card.id, "object": "model", "created": created_s, "owned_by": card.owned_by, **card.extra}


def _base(ask: Ask, kinds: Mapping[Endpoint, str], model: str, step: Step, created_s: int) -> dict[str, Any]:
    return {
        "id": _PREFIX[ask.endpoint] + ask.id.removeprefix("req_"),
        "object": kinds[ask.endpoint],
        "created": created_s,
        "model": model,
        "system_fingerprint": fingerprint(step, ask.model),
    }


def _event(base: Mapping[str, Any], choice: Mapping[str, Any]) -> bytes:
    return write_event(dump({**base, "choices": [choice]}))


# -- marks on kept answers


@contextmanager
def _odd_is_none() -> Iterator[None]:
    """What an upstream sends may have anything in any place: a text for a message, a list for an index."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        raise ValueError(f"of no form of the API: {error}") from None


@_odd_is_none()
def mark_body(body: bytes, model_prefix: str, step: Step, prefix: str) -> bytes:
    """A kept whole answer, marked: `model_prefix` before its model, the step as fingerprint, `prefix` before its content.

    ValueError when it is no JSON object. Tool calls and refusals get no visible prefix.
    """
    fields = _loads_object(body)
    _mark(fields, model_prefix, step)
    for choice in _choices(fields):
        message = choice.get("message")
        place, name = (message, "content") if isinstance(message, dict) else (choice, "text")
        if prefix and isinstance(place.get(name), str) and not place.get("tool_calls"):
            place[name] = prefix + place[name]
    return dump(fields)


@_odd_is_none()
def mark_events(events: bytes, model_prefix: str, step: Step, prefix: str) -> bytes:
    """The same for a kept stream: every chunk is marked, the first content of each choice gets the visible prefix."""
    written, prefixed = [], set()
    for event in split_events(events):
        data = data_of(event)
        if not data or data == b"[DONE]":
            written.append(event)
            continue
        fields = _loads_object(data)
        _mark(fields, model_prefix, step)
        for choice in _choices(fields):
            index, delta = choice.get("index"), choice.get("delta")
            place, name = (delta, "content") if isinstance(delta, dict) else (choice, "text")
            if place.get("tool_calls"):
                prefixed.add(index)
            if prefix and index not in prefixed and isinstance(place.get(name), str) and place[name]:
                prefixed.add(index)
                place[name] = prefix + place[name]
        written.append(write_event(dump(fields)))
    return b"".join(written)


def _mark(fields: dict[str, Any], model_prefix: str, step: Step) -> None:
    if isinstance(fields.get("model"), str):
        fields["model"] = model_prefix + fields["model"]
    fields["system_fingerprint"] = fingerprint(step)


# -- whole <-> stream


def to_events(body: bytes, include_usage: bool = False) -> bytes:
    """A whole chat or text completion as the stream it would have been, `[DONE]` included; ValueError when it is none."""
    fields = _loads_object(body)
    choices = _choices(fields)
    if not choices:
        raise ValueError("no choices")
    chat = "message" in choices[0]
    base = {name: value for name, value in fields.items() if name not in ("choices", "usage")}
    base["object"] = "chat.completion.chunk" if chat else "text_completion"
    # Each event says it again: ten thousand empty choices beside a long field would become gigabytes.
    if len(dump(base)) * 2 * len(choices) > MAX_EVENT_BYTES + len(body):
        raise ValueError("too many choices")
    events = []
    for choice in choices:
        with _odd_is_none():
            events += _chat_events(base, choice) if chat else [_event(base, choice)]
    if include_usage and isinstance(fields.get("usage"), dict):
        events.append(write_event(dump({**base, "choices": [], "usage": fields["usage"]})))
    return b"".join([*events, DONE])


def _chat_events(base: Mapping[str, Any], choice: Mapping[str, Any]) -> list[bytes]:
    index = choice.get("index", 0)
    delta = {name: value for name, value in (choice.get("message") or {}).items() if value is not None}
    if isinstance(delta.get("tool_calls"), list):
        delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
    first = {"index": index, "delta": delta, "logprobs": choice.get("logprobs"), "finish_reason": None}
    last = {"index": index, "delta": {}, "logprobs": None, "finish_reason": choice.get("finish_reason")}
    return [_event(base, first), _event(base, last)]


def to_whole(events: bytes) -> bytes:
    """A whole stream as the answer it would have been; ValueError when it has no `[DONE]`, an error, or no choices."""
    if not ends_with_done(events):
        raise ValueError("the stream has no [DONE]")
    with _odd_is_none():
        return dump(_whole_of(events))


def _whole_of(events: bytes) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    usage: Any = None
    for event in split_events(events):
        data = data_of(event)
        if not data or data == b"[DONE]":
            continue
        fields = _loads_object(data)
        if fields.get("error"):
            raise ValueError("the stream holds an error")
        usage = fields.get("usage") or usage
        for name, value in fields.items():
            if name not in ("choices", "usage") and whole.get(name) is None:
                whole[name] = value
        for choice in _choices(fields):
            index = choice.get("index", 0)
            _add_choice(choices.setdefault(index, {"index": index, "logprobs": None, "finish_reason": None}), choice)
    if not choices:
        raise ValueError("the stream has no choices")
    chat = any("message" in choice for choice in choices.values())
    whole["object"] = "chat.completion" if chat else "text_completion"
    for choice in choices.values():
        _finish_message(choice)
    whole["choices"] = [choices[index] for index in sorted(choices)]
    if usage is not None:
        whole["usage"] = usage
    return whole


def _add_choice(choice: dict[str, Any], chunk: Mapping[str, Any]) -> None:
    if isinstance(delta := chunk.get("delta"), dict):
        _add_delta(choice.setdefault("message", {}), delta)
    if isinstance(text := chunk.get("text"), str):
        choice["text"] = choice.get("text", "") + text
    if isinstance(logprobs := chunk.get("logprobs"), dict):
        kept = choice["logprobs"] = choice["logprobs"] or {}
        for name, items in logprobs.items():
            # Not a new list each time: that costs the square of a long answer.
            if isinstance(items, list) and isinstance(before := kept.get(name), list):
                before.extend(items)
            else:
                kept[name] = items
    if chunk.get("finish_reason") is not None:
        choice["finish_reason"] = chunk["finish_reason"]


def _add_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for name, value in delta.items():
        before = message.get(name)
        if name == "tool_calls" and isinstance(value, list):
            calls = message.setdefault("tool_calls", {})
            for at, call in enumerate(value):
                _add_call(calls.setdefault(call.get("index", at), {}), call)
        elif name == "function_call" and isinstance(value, dict):
            _add_call(message.setdefault("function_call", {}), value)
        elif isinstance(value, str) and isinstance(before, str) and name != "role":
            message[name] = before + value
        elif value is not None or name not in message:
            message[name] = value


def _add_call(call: dict[str, Any], part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        if isinstance(value, dict):
            _add_call(call.setdefault(name, {}), value)
        elif name in ("arguments", "name", "input") and isinstance(call.get(name), str) and isinstance(value, str):
            call[name] += value
        elif name != "index" and value is not None:
            call[name] = value


def _finish_message(choice: dict[str, Any]) -> None:
    message = choice.get("message")
    if message is None:
        return
    message.setdefault("role", "assistant")
    message.setdefault("content", None)
    if isinstance(calls := message.get("tool_calls"), dict):
        message["tool_calls"] = [calls[index] for index in sorted(calls)]


def _choices(fields: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    choices = fields.get("choices")
    return [choice for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []


def _loads_object(data: bytes) -> dict[str, Any]:
    fields = json.loads(data)
    if not isinstance(fields, dict):
        raise ValueError("no JSON object")
    return fields


def dump(value: Any) -> bytes:
    """JSON in UTF-8; half of a surrogate pair, which UTF-8 cannot say, stays an escape: its rest may come yet."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
