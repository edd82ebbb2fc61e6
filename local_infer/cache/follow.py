"""What is asked next: transitions between the requests of a conversation, learned, and the budget for fetching ahead.

A request of a conversation holds all that went before it, so its predecessor needs no session: it is the same request
without the last answer and question (`cache_key.Keys.previous`). Where many people walk the same way (suggested questions,
grading in steps), the next request is known to the byte, because at temperature 0 the answer in between is the kept one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from local_infer.model import Endpoint

MAX_PLACES = 4096
MAX_BYTES = 8 << 20
MAX_NEXT = 4
"""Continuations remembered for one request."""

LEAST_SEEN = 2
LEAST_SHARE = 0.2
"""A continuation is likely when it was seen so often, and after so many of the visits to its place."""

_PLACE_BYTES = 500


@dataclass(frozen=True, slots=True)
class Recipe:
    """A request that can be made again."""

    key: bytes
    tenant: str
    endpoint: Endpoint
    model: str
    request: bytes
    opted_in: bool = False


class _Place:
    __slots__ = ("next", "visits")

    def __init__(self) -> None:
        self.visits = 0
        self.next: dict[bytes, tuple[Recipe, int]] = {}


class Follow:
    """Places (requests by key) and what followed them; bounded in number and bytes, least recently visited go first."""

    def __init__(self) -> None:
        self._places: OrderedDict[bytes, _Place] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def full_ratio(self) -> float:
        """How much of what it may take it takes, 0 to 1."""
        return max(len(self._places) / MAX_PLACES, self.used_bytes / MAX_BYTES)

    def visit(self, key: bytes) -> list[Recipe]:
        """Note that the request of `key` was made; what likely follows it, most likely first."""
        place = self._places.get(key)
        if place is None:
            return []
        place.visits += 1
        self._places.move_to_end(key)
        ranked = sorted(place.next.values(), key=lambda pair: -pair[1])
        return [recipe for recipe, seen in ranked if seen >= LEAST_SEEN and seen >= LEAST_SHARE * place.visits]

    def learn(self, previous: bytes, recipe: Recipe) -> None:
        """Note that `recipe` was asked after the request of key `previous`, whose tenant is the same by construction."""
        place = self._places.get(previous)
        if place is None:
            place = self._places[previous] = _Place()
            place.visits = 1  # the visit itself was before there was anything to remember
            self.used_bytes += _PLACE_BYTES
        _, seen = place.next.get(recipe.key, (recipe, 0))
        if not seen:
            if len(place.next) >= MAX_NEXT:
                self._age(place)
            if len(place.next) >= MAX_NEXT:
                return
            self.used_bytes += len(recipe.request) + _PLACE_BYTES
        place.next[recipe.key] = (recipe if not seen else place.next[recipe.key][0], seen + 1)
        while len(self._places) > MAX_PLACES or self.used_bytes > MAX_BYTES:
            _, gone = self._places.popitem(last=False)
            self.used_bytes -= _PLACE_BYTES
            self._forget(gone, list(gone.next))

    def _age(self, place: _Place) -> None:
        """Halve what was counted; what was seen once makes room."""
        place.visits //= 2
        place.next = {key: (recipe, seen // 2) for key, (recipe, seen) in place.next.items()}
        self._forget(place, [key for key, (_, seen) in place.next.items() if not seen])

    def _forget(self, place: _Place, keys: list[bytes]) -> None:
        for key in keys:
            recipe, _ = place.next.pop(key)
            self.used_bytes -= len(recipe.request) + _PLACE_BYTES


class Budget:
    """How many requests may be made ahead: a share of those that clients caused."""

    MOST = 20.0
    """Saved up at most: an hour of traffic must not become a burst."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._tokens = 0.0

    def earn(self) -> None:
        """A client's request went to an upstream."""
        self._tokens = min(self.MOST, self._tokens + self.share)

    def has(self) -> bool:
        """Whether one may be made."""
        return self._tokens >= 1.0

    def take(self) -> bool:
        """Use one up, if there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
