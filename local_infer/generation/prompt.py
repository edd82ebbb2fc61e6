"""What of a request the local model is asked, or in one word why it cannot be: it reads and writes plain text, once.

What a client's program relies on (tools, several answers, log-probabilities) is never left out silently: then the model
is not asked. What only shapes the style (penalties, say) may be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.config_infer import Generation
from local_infer.generation.schema_limits import find_excess
from local_infer.generation.stopping import LONGEST_STOP, MOST_STOPS
from local_infer.model import Abstained, Ask, Endpoint
from local_infer.plain import more_than_plain

# What a prompt, or the reading of it, has a place for.
_CAN = frozenset({"tool_choice", "function_call", "response_format", "text_format", "stop"})

MOST_CHARACTERS = 32
"""For each token that fits. Words have up to 16 or so; what is longer is not worth the time of cutting it into tokens."""

ANY_OBJECT = '{"type":"object"}'
"""The schema of `response_format: json_object`."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Prompt:
    """`messages` for the chat template, or else `text` as it is; None: the model folder's own choice."""

    messages: Sequence[Mapping[str, str]] | None
    text: str | None
    max_tokens: int
    stops: Sequence[str]
    temperature: float | None
    top_p: float | None
    seed: int | None
    schema: str | None


class _No(Exception):
    """Not for the local model, because of `why`; `what` says more."""

    def __init__(self, why: str, what: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.what = what


def read_prompt(ask: Ask, config: Generation) -> Prompt | Abstained:
    """What to generate from; Abstained with one fixed word when the local model must leave it."""
    try:
        return _read(ask, config)
    except _No as no:
        return Abstained(no.why, no.what)


def _read(ask: Ask, config: Generation) -> Prompt:
    fields = ask.fields
    if ask.endpoint is Endpoint.EMBEDDINGS:
        raise _No("endpoint")
    if why := more_than_plain(fields, _CAN):
        raise _No(why)
    chat = ask.endpoint is Endpoint.CHAT
    text = None if chat else fields.get("prompt")
    if not chat and not (isinstance(text, str) and text):
        raise _No("prompt")
    messages = _messages(fields.get("messages")) if chat else None
    texts = [message["content"] for message in messages or []] or [text or ""]
    if sum(map(len, texts)) > MOST_CHARACTERS * config.context:
        raise _No("too long")
    return Prompt(
        messages=messages,
        text=text,
        max_tokens=_max_tokens(fields, config),
        stops=_stops(fields.get("stop")),
        temperature=_number(fields, "temperature", 0, 2),
        top_p=_number(fields, "top_p", 0, 1),
        seed=_seed(fields.get("seed")),
        schema=_schema(fields.get("response_format")),
    )


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _No("messages")
    messages = []
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("tool", "function") or (role == "assistant" and message.get("tool_calls")):
            raise _No("tools")
        if role not in _ROLES:
            raise _No("messages")
        messages.append({"role": _ROLES[role], "content": _plain_text(message.get("content"))})
    return messages


def _plain_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise _No("content")
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    plain = [text for text in texts if isinstance(text, str)]
    if len(plain) != len(content):
        raise _No("content")
    return "\n".join(plain)


def _max_tokens(fields: Mapping[str, Any], config: Generation) -> int:
    most = config.max_tokens
    for name in ("max_tokens", "max_completion_tokens"):
        wanted = fields.get(name)
        if wanted is None:
            continue
        if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
            raise _No("max_tokens")
        most = min(most, wanted)
    return most


def _stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise _No("stop")
    if any(not isinstance(stop, str) or len(stop) > LONGEST_STOP for stop in stops):
        raise _No("stop")
    return [stop for stop in stops if stop]


def _number(fields: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise _No(name)
    return float(value)


def _seed(value: Any) -> int | None:
    # The library takes 32 bits; any other whole number only has to give the same text again.
    return value % (1 << 31) if isinstance(value, int) and not isinstance(value, bool) else None


def _schema(wanted: Any) -> str | None:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    described = wanted.get("json_schema") if kind == "json_schema" else None
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(schema, dict):
        raise _No("response_format")
    text = json.dumps(schema, ensure_ascii=False)
    if excess := find_excess(schema, text):
        raise _No("schema", f"the schema in 'response_format' is too much for it: {excess}")
    return text
