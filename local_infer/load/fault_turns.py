"""How a played upstream misbehaves: one fault after the other, with good times in between, as a function of the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FaultKind = Literal[
    "slow first byte", "stall", "reset", "cut", "short", "error frame", "late error", "429", "500", "refused"
]

FAULT_S = 12.0
GOOD_S = 8.0
"""Long enough for a circuit to open, and for upstreams to be found again."""


@dataclass(frozen=True, slots=True)
class Turn:
    """For FAULT_S `share` of the requests to the upstreams in `places` meet `kind`; then all is well for GOOD_S."""

    kind: FaultKind
    share: float
    places: tuple[int, ...]


TURNS: Sequence[Turn] = (
    Turn("slow first byte", 0.3, (0,)),
    Turn("stall", 0.2, (1,)),
    Turn("reset", 0.3, (0, 1)),
    Turn("cut", 0.3, (0,)),
    Turn("short", 0.3, (1,)),
    Turn("error frame", 0.3, (0, 1)),
    Turn("late error", 0.3, (0, 1)),
    Turn("429", 0.3, (0,)),
    Turn("500", 0.5, (1,)),
    Turn("refused", 1.0, (0,)),
    Turn("500", 1.0, (0, 1)),
    Turn("refused", 1.0, (0, 1)),
)
ROUND_S = len(TURNS) * (FAULT_S + GOOD_S)


def turn_at(elapsed_s: float) -> Turn | None:
    """The fault that is on, so long after the start; None in good times. It begins with one of them."""
    place, within_s = divmod(elapsed_s % ROUND_S, FAULT_S + GOOD_S)
    return TURNS[int(place)] if within_s >= GOOD_S else None
