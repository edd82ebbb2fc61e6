"""When a copy of a tree that never rests asks its parent to prove what it sends, and for how long it goes without.

A tree at rest is held against the origin's signature anyway. While changes flow there is no such moment: then the copy asks
for a batch that ends where a signed root stands. An honest parent has one within seconds, since the wish goes up to the
origin at once. Times are seconds of any one clock.
"""

from __future__ import annotations

EVERY_S = 10.0
"""Changes that nothing proves are held against the signature after so long: a proof costs each tier a hash of them."""
BURST = 500
"""Changes in one batch that make a burst: hashing them takes time from fetching them, here and at the parent,"""
BURST_EVERY_S = 60.0
"""so it is done more rarely."""
WANTED_EVERY_S = 0.5
"""When children want one, not more often than this: all who wait get the same one."""
FIRST_WAIT_S = 2.0
MAX_WAIT_S = 20.0
"""A parent may hold its answer for so long until it has a root; longer each time that it had none. Meanwhile changes wait:
half a second is usual for three tiers, but large trees take seconds to be hashed."""
REST_RATIO = 2.0
"""After a question in vain the next one waits so many times as long as that one did: changes flow meanwhile."""
PATIENCE_S = 300.0
"""A parent that says that it is fresh, and for so long proves nothing of what it sends, is left: some eight questions."""
GAP_S = 10.0
"""Of a time without answers no more than this counts: nobody could prove anything then."""
STALE_S = 60.0
"""A parent that says itself that it is so far behind need not prove: it makes nothing look fresh."""


class Proofs:
    """See the module."""

    def __init__(self) -> None:
        self._unproved_since: float | None = None
        self._is_wanted = False
        self._is_burst = False
        self._earliest = float("-inf")
        self._wait_s = FIRST_WAIT_S
        self._unproved_s = 0.0
        self._told: float | None = None

    @property
    def wait_s(self) -> float:
        """How long the parent may hold its answer to the next question."""
        return self._wait_s

    def changed(self, now: float, changes: int = 1) -> None:
        """So many changes of one batch were published."""
        self._is_burst = changes >= BURST
        if self._unproved_since is None:
            self._unproved_since = now

    def want(self) -> None:
        """A child of ours wants a proof."""
        self._is_wanted = True

    def due_s(self) -> float | None:
        """When to ask for a proof; None: there is nothing to ask for."""
        if self._is_wanted:
            return self._earliest
        if self._unproved_since is None:
            return None
        return max(self._unproved_since + (BURST_EVERY_S if self._is_burst else EVERY_S), self._earliest)

    def told(self, now: float, lag_s: float) -> bool:
        """The parent sent changes, and says that it is `lag_s` behind: whether it owes a proof for too long."""
        since = now if self._told is None else self._told
        self._told = now
        if self._unproved_since is not None and lag_s < STALE_S:
            self._unproved_s += min(now - since, GAP_S)
        if self._unproved_s < PATIENCE_S:
            return False
        self._unproved_s = 0.0
        return True

    def missed(self, now: float) -> None:
        """A question was in vain, or what it proved is not what is here: the next one later, with more patience."""
        self._is_wanted = False
        self._earliest = now + REST_RATIO * self._wait_s
        self._wait_s = min(2 * self._wait_s, MAX_WAIT_S)

    def proved(self, now: float) -> None:
        """The copy is what the origin signed."""
        self._unproved_since = self._told = None
        self._is_wanted = False
        self._earliest, self._wait_s, self._unproved_s = now + WANTED_EVERY_S, FIRST_WAIT_S, 0.0
