"""What requests and long answers take of the gateway's memory, and when there is none left."""

from __future__ import annotations

import pytest

from core.config_infer import GatewayLimits
from local_infer.fault import ApiError
from local_infer.room import UNCOUNTED_BYTES, Room

MIB = 1 << 20


def make_room() -> Room:
    return Room(GatewayLimits.model_validate({"requests": 4, "body": "1KiB"}))


def test_an_answer_alone_always_fits_and_a_second_one_only_where_there_is_room() -> None:
    room = make_room()
    with room.place(1000), room.answer_place() as first:
        first.resize(100 * MIB)
        with room.answer_place() as second:
            with pytest.raises(ApiError) as caught:
                second.resize(1)
            assert (caught.value.status, caught.value.code) == (429, "overloaded")
            first.resize(3 * MIB)
            second.resize(MIB - 1000)
            with pytest.raises(ApiError):
                second.resize(MIB - 999)
        with pytest.raises(ApiError), room.place(2 * MIB):
            pass
    assert (room.held_bytes, room.answer_bytes) == (0, 0)


def test_one_answer_that_many_get_is_counted_once() -> None:
    room, kept = make_room(), bytes(3 * MIB)
    with room.sending(kept):
        with room.sending(kept):
            assert room.held_bytes == 3 * MIB
            with pytest.raises(ApiError), room.sending(bytes(2 * MIB)):
                pass
        assert room.held_bytes == 3 * MIB
    assert (room.held_bytes, room._sent) == (0, {})


def test_requests_are_refused_while_answers_take_all() -> None:
    room = make_room()
    with room.sending(bytes(5 * MIB)), pytest.raises(ApiError), room.place(UNCOUNTED_BYTES):
        pass
    assert room.held_bytes == 0
