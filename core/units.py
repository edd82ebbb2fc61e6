"""Times, sizes and shares with a unit: a bare number is refused, so nobody has to guess what `5` meant."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_DURATION_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_SIZE_BYTES = {"B": 1, "kB": 1000, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# [0-9], not \d: that takes the digits of every script, which no JSON schema and no reader would.
_DURATION_RE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d|w)")
_SIZE_RE = re.compile(r"([0-9]+(?:\.[0-9]+)?)(B|kB|MB|GB|KiB|MiB|GiB)")
_SHARE_RE = re.compile(r"([0-9]+(?:\.[0-9]+)?)%")

_MAX_TEXT_LEN = 64
"""Longer texts are refused: 64 digits are beyond any use, and cannot overflow a float into infinity."""


def parse_duration(text: Any) -> float:
    """Seconds of a text such as `250ms`, `30s` or `1h30m`; ValueError when there is no unit."""
    if isinstance(text, str) and 0 < len(text) <= _MAX_TEXT_LEN:
        total_s, end = 0.0, 0
        for match in _DURATION_RE.finditer(text):
            if match.start() != end:
                break
            total_s += float(match[1]) * _DURATION_S[match[2]]
            end = match.end()
        if end == len(text):
            return total_s
    raise ValueError(
        f"{_shown(text)} is not a time: write a number with a unit (us, ms, s, m, h, d, w), such as 30s or 1h30m"
    )


def parse_size(text: Any) -> int:
    """Bytes of a text such as `64MiB`; ValueError when there is no unit or it is no whole number of bytes."""
    if isinstance(text, str) and len(text) <= _MAX_TEXT_LEN and (match := _SIZE_RE.fullmatch(text)):
        size_bytes = Decimal(match[1]) * _SIZE_BYTES[match[2]]
        if size_bytes == int(size_bytes):
            return int(size_bytes)
        raise ValueError(f"{_shown(text)} is not a size: write a whole number of bytes")
    raise ValueError(
        f"{_shown(text)} is not a size: write a number with a unit (B, kB, MB, GB, KiB, MiB, GiB), such as 64MiB"
    )


def parse_share(text: Any) -> float:
    """Ratio 0..1 of a percentage such as `10%`; ValueError when the sign is missing or it is over 100%."""
    if isinstance(text, str) and len(text) <= _MAX_TEXT_LEN and (match := _SHARE_RE.fullmatch(text)):
        ratio = Decimal(match[1]).scaleb(-2)
        if ratio <= 1:
            return float(ratio)
    raise ValueError(f"{_shown(text)} is not a share: write a percentage from 0% to 100%, such as 10%")


def _shown(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= _MAX_TEXT_LEN else f"{shown[:_MAX_TEXT_LEN]}..."


def format_duration(seconds: float) -> str:
    """A short text for a time in seconds, for people: `0.8 ms`, `12.3 s`, `4 m 5 s`, `3 h 2 m`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _plain(value: Decimal) -> str:
    """All digits of a number, without an exponent: `%g` would keep six, and 4 MiB has seven."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _text_of(unit: str) -> PlainSerializer:
    return PlainSerializer(
        lambda value: _plain(Decimal(repr(value))) + unit if isinstance(value, int | float) else value, return_type=str
    )


Duration = Annotated[
    float,
    BeforeValidator(parse_duration),
    _text_of("s"),
    WithJsonSchema(
        {"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d|w))+$", "examples": ["250ms", "30s"]}
    ),
]
Size = Annotated[
    int,
    BeforeValidator(parse_size),
    _text_of("B"),
    WithJsonSchema(
        {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(B|kB|MB|GB|KiB|MiB|GiB)$", "examples": ["64MiB"]},
    ),
]
Share = Annotated[
    float,
    BeforeValidator(parse_share),
    PlainSerializer(lambda value: _plain(Decimal(repr(value)).scaleb(2)) + "%", return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?%$", "examples": ["10%"]}),
]
