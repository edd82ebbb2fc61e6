"""The table of the ladder: every case has a row, and no row breaks the order of the steps."""

from __future__ import annotations

from itertools import chain, combinations, product
from typing import get_args

import pytest

from local_infer.ladder.ladder_table import TABLE, Move, allowed_steps, plan
from local_infer.model import Age, Ask, CacheWish, Client, Endpoint, Step

ALL = frozenset(Step)
KEPT, ASK, STALE, RETRIEVE, GENERATE = Move.KEPT, Move.ASK, Move.STALE, Move.RETRIEVE, Move.GENERATE


def ask_of(endpoint: Endpoint = Endpoint.CHAT, *refused: Step, only_if_cached: bool = False) -> Ask:
    wish = CacheWish(only_if_cached=only_if_cached)
    return Ask("req_1", endpoint, b"", {}, "m", False, Client("a", "a"), 0.0, wish, frozenset(refused))


def test_every_case_has_a_row() -> None:
    assert set(TABLE) == set(product([None, *get_args(Age)], [False, True]))


def test_laws_of_every_row() -> None:
    for (kept, _down), moves in TABLE.items():
        assert len(set(moves)) == len(moves)
        assert ASK in moves
        assert moves[-2:] == (RETRIEVE, GENERATE)
        assert (STALE in moves) == (kept is not None)
        assert (KEPT in moves) == (kept in ("fresh", "revalidate")) or moves[0] is STALE


@pytest.mark.parametrize(
    ("kept", "down", "moves"),
    [
        (None, False, [ASK, RETRIEVE, GENERATE]),
        ("fresh", False, [KEPT, ASK, STALE, RETRIEVE, GENERATE]),
        ("revalidate", False, [KEPT, ASK, STALE, RETRIEVE, GENERATE]),
        ("stale", False, [ASK, STALE, RETRIEVE, GENERATE]),
        ("fresh", True, [KEPT, ASK, STALE, RETRIEVE, GENERATE]),
        ("revalidate", True, [STALE, ASK, RETRIEVE, GENERATE]),
        ("stale", True, [ASK, STALE, RETRIEVE, GENERATE]),
    ],
)
def test_all_steps_allowed(kept: Age | None, down: bool, moves: list[Move]) -> None:
    assert list(plan(kept, down, ALL, False)) == moves


def test_refused_and_unconfigured_steps_are_never_tried() -> None:
    for allowed in map(frozenset, chain.from_iterable(combinations(Step, n) for n in range(6))):
        for kept, down in TABLE:
            whole = TABLE[kept, down]
            assert list(plan(kept, down, allowed, False)) == [move for move in whole if move.step in allowed]


def test_configured_refused_and_endpoint() -> None:
    assert allowed_steps(ALL, ask_of()) == ALL
    assert allowed_steps(ALL - {Step.STALE}, ask_of(Endpoint.CHAT, Step.GENERATION)) == {
        Step.UPSTREAM, Step.CACHE, Step.RETRIEVAL,
    }  # fmt: skip
    assert allowed_steps(ALL, ask_of(Endpoint.EMBEDDINGS)) == {Step.UPSTREAM, Step.CACHE, Step.STALE}
    assert allowed_steps(ALL, ask_of(only_if_cached=True)) == {Step.CACHE, Step.STALE}


def test_only_if_cached_gets_stale_answers_only_when_disconnected() -> None:
    allowed = allowed_steps(ALL, ask_of(only_if_cached=True))
    assert plan("fresh", False, allowed, True) == (KEPT,)
    assert plan("revalidate", False, allowed, True) == (KEPT,)
    assert plan("stale", False, allowed, True) == ()
    assert plan("stale", True, allowed, True) == (STALE,)
    assert plan(None, True, allowed, True) == ()
