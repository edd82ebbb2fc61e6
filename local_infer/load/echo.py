"""The answer that belongs to a request: what the played upstream says, and what the load generator waits for.

A request carries a marker in its last user message; the answer is computed from the marker alone. So an answer that was
cut, doubled or given to somebody else shows, whichever step and whichever cache it came from.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

_MARKER_RE = re.compile(r"\bmk[0-9a-f]{12}\b")

_WORDS = (
    "mirror", "route", "续费", "answer", "密码", "packet", "如何", "region", "镜像", "second", "账户", "cache", "😀",
    "stream", "退款", "order", "网络", "upstream", "设置", "measure",
)  # fmt: skip
_FEWEST, _MOST = 8, 48
"""Words of an answer: 50 to 400 characters, one event of a stream each."""

DIMENSIONS = 32


def make_marker(number: int) -> str:
    """The marker of a number below 2^48."""
    return f"mk{number & (1 << 48) - 1:012x}"


def find_marker(text: str) -> str:
    """The last marker in a text; empty when there is none."""
    found = _MARKER_RE.findall(text)
    return found[-1] if found else ""


def text_for(marker: str) -> str:
    """The text that answers a marked question; it begins and ends with the marker."""
    seed = zlib.crc32(marker.encode())
    words = []
    for _ in range(_FEWEST + seed % (_MOST - _FEWEST)):
        # Numerical Recipes' generator (chapter 7.1): the same on both sides, whatever Python's random does.
        seed = (seed * 1664525 + 1013904223) & 0xFFFFFFFF
        words.append(_WORDS[(seed >> 16) % len(_WORDS)])
    return f"{marker} {' '.join(words)} end-{marker}"


def json_for(marker: str) -> str:
    """The short JSON answer to a marked piece of work that is to be graded."""
    score = zlib.crc32(marker.encode()) % 101
    return json.dumps({"work": marker, "score": score, "passed": score >= 60}, separators=(",", ":"))


def vector_for(text: str) -> list[float]:
    """The embedding of a text; eighths, so that they come back as the same numbers."""
    seed = zlib.crc32(text.encode())
    numbers = []
    for _ in range(DIMENSIONS):
        seed = (seed * 1664525 + 1013904223) & 0xFFFFFFFF
        numbers.append((seed >> 16) % 2001 / 8 - 125)
    return numbers


def answer_for(fields: Mapping[str, Any]) -> str:
    """The text that answers a chat request: of its last user message, less what an assistant message after it says."""
    messages = fields.get("messages")
    said, asked = "", ""
    for message in reversed(messages if isinstance(messages, list) else []):
        content = message.get("content")
        text = content if isinstance(content, str) else ""
        if message.get("role") == "user":
            asked = text
            break
        said = text + said
    marker = find_marker(asked)
    wanted = fields.get("response_format")
    is_json = isinstance(wanted, dict) and wanted.get("type") == "json_object"
    text = json_for(marker) if is_json else text_for(marker)
    # A cut stream that is continued (X-Stream-Resume): go on where it broke.
    return text[len(said) :] if said and text.startswith(said) else text


def inputs_of(fields: Mapping[str, Any]) -> Sequence[str]:
    """The texts of an embeddings request."""
    given = fields.get("input")
    return [given] if isinstance(given, str) else [one for one in given or [] if isinstance(one, str)]
