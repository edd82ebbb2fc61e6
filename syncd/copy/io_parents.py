"""The parents of a node as the follower of one tree sees them; what it is given is `io_lineage.Lineage`."""

from __future__ import annotations

from typing import Protocol

from syncd.transfer.io_parent import Parent
from syncd.transfer.io_plain import PlainParent


class Lineage(Protocol):
    """Which parent to follow, and what became of it."""

    def choose(self, tree: str) -> tuple[str, Parent | PlainParent] | None:
        """(name, parent) of the best parent for a tree now; None when none answers."""

    def wake(self, tree: str) -> None:
        """Parents that rest after failures may be asked again."""

    def worked(self, name: str, tree: str, lag_s: float) -> None:
        """The parent answered, with content that is so far behind."""

    def failed(self, name: str, tree: str, why: str) -> None:
        """The parent did not answer as it must."""
