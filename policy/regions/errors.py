"""Errors of region sources: each names the table or region, the line and the offending text."""

from __future__ import annotations

from collections.abc import Sequence

from core.errors import EX_CONFIG, NearpathError, Problem

MAX_SHOWN = 20
"""Problems kept of one table: enough to see the pattern, few enough to read."""

MAX_QUOTED = 80
"""Characters of foreign text quoted in a message."""


class RegionError(NearpathError):
    """Region sources that cannot be used; `problems` holds the first MAX_SHOWN, `count` tells how many there are."""

    exit_status = EX_CONFIG

    def __init__(self, what: str, problems: Sequence[Problem], count: int | None = None, fix: str = "") -> None:
        self.count = len(problems) if count is None else count
        self.problems = tuple(problems[:MAX_SHOWN])
        lines = [what, *(f"  {problem}" for problem in self.problems)]
        if self.count > len(self.problems):
            lines.append(f"  and {self.count - len(self.problems)} more")
        super().__init__("\n".join(lines), fix)


class RegionTreeError(RegionError):
    """Regions that do not form a tree below `world`."""


class RegionTableError(RegionError):
    """A table, or an inline prefix, that cannot be read."""


def quote(text: str) -> str:
    """Foreign text for a message: escaped, cut to MAX_QUOTED characters."""
    return repr(text) if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]!r}... ({len(text)} characters)"


def table_error(file: str, what: str, *, line: int = 0, fix: str = "") -> RegionTableError:
    """The error for one single problem of a table."""
    return RegionTableError(f"region table {file} cannot be read", [Problem(file, line, "", what)], fix=fix)
