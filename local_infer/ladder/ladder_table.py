"""The ladder as a table: what to try, in order, by what is kept and whether an upstream can be asked.

Pure: nothing is asked here. `steps.py` goes through the moves until one of them answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

from local_infer.model import Age, Ask, Endpoint, Step


class Move(Enum):
    """One thing to try, and the step that it belongs to: it is left out where that step is off or refused."""

    KEPT = Step.CACHE
    """Serve what is kept; nobody is asked."""
    ASK = Step.UPSTREAM
    """Ask the upstreams."""
    STALE = Step.STALE
    """Serve what is kept, whatever its age, marked."""
    RETRIEVE = Step.RETRIEVAL
    GENERATE = Step.GENERATION

    @property
    def step(self) -> Step:
        """The step this move belongs to."""
        return self.value


_KEPT, _ASK, _STALE, _LOCAL = Move.KEPT, Move.ASK, Move.STALE, (Move.RETRIEVE, Move.GENERATE)

TABLE: Mapping[tuple[Age | None, bool], tuple[Move, ...]] = {
    # (what is kept, every upstream is known to be down): moves
    (None, False): (_ASK, *_LOCAL),
    (None, True): (_ASK, *_LOCAL),
    ("fresh", False): (_KEPT, _ASK, _STALE, *_LOCAL),
    ("fresh", True): (_KEPT, _ASK, _STALE, *_LOCAL),
    # Good enough to be served while it is refreshed behind; when that cannot be, it is an old answer and is marked as such.
    ("revalidate", False): (_KEPT, _ASK, _STALE, *_LOCAL),
    ("revalidate", True): (_STALE, _ASK, *_LOCAL),
    ("stale", False): (_ASK, _STALE, *_LOCAL),
    ("stale", True): (_ASK, _STALE, *_LOCAL),
}
"""An upstream that is known to be down is asked all the same when nothing fresh is kept: it says so at once, or is the one
that is on trial. A fresh answer behind `ASK` is for who switched `cache` off but not `stale`."""

_EMBEDDINGS = frozenset({Step.UPSTREAM, Step.CACHE, Step.STALE})
_CACHES = frozenset({Step.CACHE, Step.STALE})


def allowed_steps(configured: Iterable[Step], ask: Ask) -> frozenset[Step]:
    """The steps that may answer this request."""
    allowed = frozenset(configured) - ask.refused
    if ask.endpoint is Endpoint.EMBEDDINGS:
        # Another model's vectors are no substitute: they lie in another space.
        allowed &= _EMBEDDINGS
    if ask.cache.only_if_cached:
        allowed &= _CACHES
    return allowed


def plan(kept: Age | None, down: bool, allowed: frozenset[Step], only_if_cached: bool) -> tuple[Move, ...]:
    """What to try, in order; `allowed` from `allowed_steps`."""
    if only_if_cached and not down:
        # RFC 9111 4.2.4: a cache MUST NOT generate a stale response unless it is disconnected; nobody was asked here.
        allowed -= {Step.STALE}
    return tuple(move for move in TABLE[kept, down] if move.step in allowed)
