"""Which request the local steps may look at: plain text in, plain text out, one answer; and what it asks.

Whatever asks for more than that (tools, images, a schema, several answers, log-probabilities) is left to a real model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from local_infer.model import Abstained, Ask, Endpoint, Language, Question
from local_infer.plain import more_than_plain

LONGEST = 65_536
"""Characters of a question; the steps have smaller limits of their own (`retrieval.longest`)."""

_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0002ffff]")
_LATIN = re.compile(r"[A-Za-z]")


def question_of(ask: Ask) -> Question | Abstained:
    """What `ask` asks, or in one fixed word why the local steps must leave it alone."""
    if ask.endpoint is Endpoint.EMBEDDINGS:
        return Abstained("endpoint")
    if why := more_than_plain(ask.fields):
        return Abstained(why)
    if ask.endpoint is Endpoint.COMPLETIONS:
        prompt = ask.fields.get("prompt")
        return _question(ask, prompt, []) if isinstance(prompt, str) else Abstained("prompt")
    messages = ask.fields.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return Abstained("messages")
    last = messages[-1]
    if last.get("role") != "user":
        return Abstained("last message")
    text = _plain_text(last.get("content"))
    return Abstained("content") if text is None else _question(ask, text, messages[:-1])


def _question(ask: Ask, text: str, before: Sequence[Mapping[str, Any]]) -> Question | Abstained:
    if not text.strip():
        return Abstained("empty")
    if len(text) > LONGEST:
        return Abstained("too long")
    return Question(ask.client.tenant, text, language_of(text), context_of(before))


def _plain_text(content: Any) -> str | None:
    """The text of a message; None when there is anything else in it (an image, a file, audio)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if len(texts) == len(content) else None


def context_of(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """A digest of the messages before the question; empty when there are none.

    Text given as one part is the same as text given as a string; nothing else is taken as equal.
    """
    if not messages:
        return b""
    canonical = [{**m, "content": _whole(m.get("content"))} for m in messages]
    text = json.dumps(canonical, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()


def _whole(content: Any) -> Any:
    text = _plain_text(content)
    return content if text is None else text


def system_context(system: str) -> bytes:
    """`context_of` a request with this system prompt and no history."""
    return context_of([{"role": "system", "content": system}])


def language_of(text: str) -> Language:
    """`zh` with any Chinese character, else `en` with any Latin letter."""
    if _HAN.search(text):
        return "zh"
    return "en" if _LATIN.search(text) else "other"
