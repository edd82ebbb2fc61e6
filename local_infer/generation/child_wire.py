"""Messages between the gateway and a process that generates: 4 bytes of length (big-endian), then JSON.

The gateway sends Load once, then Generate and Cancel; the child answers with Ready or Refused to Load, and to each
Generate with Pieces and then one Done or Refused. One generation is under way at a time; `id` tells late messages of a
cancelled one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

MOST_BYTES = 16 << 20
"""Of one message; a request's body is limited below that."""

_LENGTH = struct.Struct(">I")


class WireError(ValueError):
    """Bytes that are no message: one side is broken, and the connection is of no more use."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load and warm up the model in `folder`. `providers` are words of the configuration, in order."""

    folder: str
    providers: Sequence[str]
    threads: int
    context: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Loaded and warm. `context` is what is left of the configured tokens by the model's own limit."""

    provider: str
    context: int
    guidance: bool


@dataclass(frozen=True, slots=True)
class Generate:
    """One generation. `messages` for the chat template, or else `prompt` as it is; None: the folder's own choice."""

    id: int
    messages: Sequence[Mapping[str, str]] | None
    prompt: str | None
    max_tokens: int
    time_s: float
    stops: Sequence[str]
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    schema: str | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """End the generation `id`; its Done still comes."""

    id: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, of whole characters."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a generation. `finish` is `stop`, `length` or `cancelled`."""

    id: int
    finish: str
    prompt_tokens: int
    completion_tokens: int
    time_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Not done: `why` in one fixed word (`load`, `too long`, `template`, `schema`, `failed`), `what` for the log.

    `id` 0 is about Load.
    """

    id: int
    why: str
    what: str


Message = Load | Ready | Generate | Cancel | Piece | Done | Refused
_KINDS: Mapping[str, type[Any]] = {
    kind.__name__.lower(): kind for kind in (Load, Ready, Generate, Cancel, Piece, Done, Refused)
}


def pack(message: Message) -> bytes:
    """One message as bytes; WireError when it is too large."""
    text = json.dumps([type(message).__name__.lower(), asdict(message)], ensure_ascii=False, separators=(",", ":"))
    # A model may make half of a surrogate pair, which UTF-8 does not have.
    body = text.encode("utf-8", "replace")
    if len(body) > MOST_BYTES:
        raise WireError(f"a message of {len(body)} bytes; at most {MOST_BYTES}")
    return _LENGTH.pack(len(body)) + body


class Reader:
    """Bytes in as they come, whole messages out."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by `data`; WireError when they are none."""
        rest, messages, at = self._rest + data, [], 0
        while len(rest) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(rest, at)
            if length > MOST_BYTES:
                raise WireError(f"a message of {length} bytes; at most {MOST_BYTES}")
            end = at + _LENGTH.size + length
            if len(rest) < end:
                break
            messages.append(_read(rest[at + _LENGTH.size : end]))
            at = end
        self._rest = rest[at:]
        return messages


def _read(body: bytes) -> Message:
    try:
        kind, fields = json.loads(body)
        message: Message = _KINDS[kind](**fields)
        return message
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireError(f"no message: {error}") from None
