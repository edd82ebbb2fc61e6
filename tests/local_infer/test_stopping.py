"""Stop words are found wherever they lie over pieces, are never shown, and hold back no more than they must."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_infer.generation.stopping import LONGEST_STOP, MOST_STOPS, Stopper


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    stopper = Stopper(stops)
    text = "".join(stopper.feed(piece) for piece in pieces)
    return text + stopper.end(), stopper.stopped


@pytest.mark.parametrize(
    ("stops", "text", "shown", "stopped"),
    [
        ([], "一二三", "一二三", False),
        (["停"], "走停走", "走", True),
        (["\n\nUser:"], "hello\n\nUser: more", "hello", True),
        (["\n\nUser:"], "hello\n\nUse", "hello\n\nUse", False),
        (["aab"], "aaab", "a", True),  # the first `a` is not part of it
        (["bc", "abcd"], "xabcd", "xa", True),  # what is complete first counts
        (["本机", "回答"], "这是本机的回答", "这是", True),
        (["END"], "END", "", True),
    ],
)
def test_stop_words_whole_and_by_character(stops: list[str], text: str, shown: str, stopped: bool) -> None:
    assert run(stops, list(text)) == (shown, stopped)
    for cut in range(len(text) + 1):
        assert run(stops, [text[:cut], text[cut:]]) == (shown, stopped)


@given(
    st.text("ab停", max_size=12),
    st.lists(st.text("ab停", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 12)),
)
def test_how_the_text_is_cut_does_not_matter(text: str, stops: list[str], cuts: list[int]) -> None:
    ends = [end for end in range(len(text) + 1) for stop in stops if text[:end].endswith(stop)]
    begins = [min(ends) - len(stop) for stop in stops if ends and text[: min(ends)].endswith(stop)]
    at = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(at)]
    assert run(stops, pieces) == (text[: min(begins)] if begins else text, bool(ends))


def test_text_goes_out_as_soon_as_it_is_certain() -> None:
    stopper = Stopper(["<end>"])
    assert stopper.feed("abc") == "abc"
    assert stopper.feed("d<e") == "d"
    assert stopper.feed("n") == ""
    assert stopper.feed("x") == "<enx"
    assert stopper.feed("<end>tail") == ""
    assert stopper.stopped
    assert stopper.feed("more") == ""
    assert stopper.end() == ""


def test_half_characters_are_held_back() -> None:
    stopper = Stopper([])
    assert stopper.feed("好\ufffd") == "好"
    assert stopper.feed("的") == "\ufffd的"  # it really was no character
    assert stopper.feed("\ufffd\ufffd") == ""
    assert stopper.end() == ""


@pytest.mark.parametrize("stops", [[""], ["x"] * (MOST_STOPS + 1), ["x" * (LONGEST_STOP + 1)]])
def test_limits(stops: list[str]) -> None:
    with pytest.raises(ValueError, match="stop words"):
        Stopper(stops)
