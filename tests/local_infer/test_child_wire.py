"""Messages come out of the wire as they went in, however the bytes are cut; what is no message is said to be none."""

from __future__ import annotations

import json
import struct

import pytest

from local_infer.generation.child_wire import (
    MOST_BYTES,
    Cancel,
    Done,
    Generate,
    Load,
    Message,
    Piece,
    Reader,
    Ready,
    Refused,
    WireError,
    pack,
)

MESSAGES: list[Message] = [
    Load("模型", ["cuda", "cpu"], 2, 2048),
    Ready("cpu", 512, True),
    Generate(
        7, [{"role": "user", "content": "如何关闭?"}], None, 64, 60.0, ["\n\n"], 0.0, None, 3, '{"type":"object"}'
    ),
    Piece(7, "好\n\u2028\x00"),
    Cancel(7),
    Done(7, "stop", 12, 3, 0.25),
    Refused(8, "too long", "the prompt has 9 tokens"),
]


def test_whole_and_byte_by_byte_and_with_a_tail() -> None:
    data = b"".join(map(pack, MESSAGES))
    assert Reader().feed(data) == MESSAGES
    reader = Reader()
    assert [message for byte in data for message in reader.feed(bytes([byte]))] == MESSAGES
    for cut in range(len(data)):
        reader = Reader()
        assert reader.feed(data[:cut]) + reader.feed(data[cut:] + b"\0\0") == MESSAGES


def test_half_a_surrogate_pair_does_not_break_the_wire() -> None:
    assert Reader().feed(pack(Piece(1, "a\ud800b"))) == [Piece(1, "a?b")]


def framed(value: object) -> bytes:
    body = json.dumps(value).encode()
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", MOST_BYTES + 1),
        struct.pack(">I", 3) + b"{{{",
        struct.pack(">I", 2) + b"\xff\xff",
        framed(["nonsense", {}]),
        framed(["piece", {"id": 1}]),
        framed(["piece", {"id": 1, "text": "x", "more": 1}]),
        framed({"piece": 1}),
        framed(3),
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(WireError):
        Reader().feed(data)


def test_too_large_to_send() -> None:
    with pytest.raises(WireError, match="at most"):
        pack(Piece(1, "x" * MOST_BYTES))
