"""A finding of `nearpath doctor`: what was looked at, how it is, and what to do when it is not good."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["good", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`bad` keeps clients from right answers or soon will; `note` is worth knowing; `fix` says what to do."""

    level: Level
    what: str
    fix: str = ""
    area: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Area:
    """Makes findings of one area, such as `ports`."""

    name: str

    def good(self, what: str) -> Finding:
        """All is well with it."""
        return Finding("good", what, "", self.name)

    def note(self, what: str, fix: str = "") -> Finding:
        """Worth knowing, or could not be found out."""
        return Finding("note", what, fix, self.name)

    def bad(self, what: str, fix: str) -> Finding:
        """To be mended, and how."""
        return Finding("bad", what, fix, self.name)


def some(names: list[str], limit: int = 5) -> str:
    """`a, b, c and 4 more`: a list short enough for one line."""
    shown = ", ".join(names[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown
