"""Texts that somebody made to be hard to read: they cost no more than others of their length."""

from __future__ import annotations

import time

import pytest

from local_infer.retrieval.wording import read_wording


@pytest.mark.parametrize("piece", ["a-", "aB-", "1--"])
def test_reading_a_text_costs_no_square_of_its_length(piece: str) -> None:
    def cost_s(length: int) -> float:
        text = (piece * length)[:length]
        began_s = time.process_time()
        read_wording(text)
        return time.process_time() - began_s

    read_wording("")  # which reads the word lists
    # 8 times as long; before, "a-" cost 50 times as much.
    assert min(cost_s(8192) for _ in range(2)) < 25 * min(cost_s(1024) for _ in range(4))
