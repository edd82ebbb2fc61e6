"""How a copy stands to the origin: what its parents say, and what of that the origin's signature has proved."""

from __future__ import annotations

from dataclasses import dataclass, replace

UNKNOWN_LAG_S = 10 * 365 * 86400.0
"""Said of a copy of which nothing is known: behind everybody's limit."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The copy was current at `current_s` (of any clock; None: never yet) with what it had, of at least `version`."""

    current_s: float | None = None
    version: int = 0


class Knowledge:
    """`said` is what holds; it falls back to what was proved when a proof fails."""

    def __init__(self) -> None:
        self.said = Standing()
        self._proved = Standing()

    def tell(self, current_s: float, version: int = 0) -> None:
        """A parent's word."""
        self.said = Standing(current_s, max(version, self.said.version))

    def prove(self, version: int = 0) -> None:
        """A root of this version was signed by the origin, and is that of the copy."""
        self.said = self._proved = replace(self.said, version=max(version, self.said.version))

    def disprove(self) -> None:
        """What came since the last proof says nothing of how fresh the copy is."""
        self.said = self._proved

    def forget_versions(self) -> None:
        """The origin begins anew: its versions, and what it has proved, count no more."""
        self.said, self._proved = Standing(self.said.current_s), Standing()

    def forget(self) -> None:
        """The copy shows something else on purpose; what was proved before may be proved again."""
        self.said = Standing()

    def lag_s(self, now: float) -> float:
        """How far behind the copy is at most."""
        return UNKNOWN_LAG_S if self.said.current_s is None else max(0.0, now - self.said.current_s)
