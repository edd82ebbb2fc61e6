"""Whether a parent serves a tree that the origin did not sign: said of it only when nothing else explains it.

A copy that has just what its parent has, and not what the origin signed, waits: the signature may be on the way. Meanwhile
it does not say that it is fresh, so its age grows until DNS leaves it out.
"""

from __future__ import annotations

from core.errors import NearpathError
from syncd.store.manifest import ManifestError

UNSIGNED_S = 60.0
"""A parent whose tree is for so long not what the origin signed is left, unless it says itself that it is behind."""


class Unsigned:
    """See the module. `since_s`: since when (monotonic) the parent has what the origin did not sign; None: it has not."""

    def __init__(self) -> None:
        self.since_s: float | None = None

    def compared(self, now: float, differences: int, lag_s: float) -> bool:
        """The last comparison found so many differences, the hash is not the signed one: whether that is for too long."""
        if differences or lag_s >= UNSIGNED_S:
            self.since_s = None
            return False
        if self.since_s is None:
            self.since_s = now
        if now - self.since_s < UNSIGNED_S:
            return False
        self.since_s = now
        return True


def unsigned_tree(tree: str, url: str) -> NearpathError:
    """What is said of such a parent."""
    what = f"{url} serves a tree {tree} that its origin did not sign, and this copy holds it"
    return ManifestError(what, "see that node and its parents; another parent mends the copy")
