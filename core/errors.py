"""Errors of nearpath: every one names the thing that is wrong and says what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EX_CONFIG = 78
"""Exit status for a wrong configuration (sysexits.h): no restart mends it, and the systemd units make none."""


class NearpathError(Exception):
    """An error an operator can act on: `what` is wrong and how to `fix` it."""

    exit_status = 1
    """Of a daemon that cannot start because of it."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}: {fix}" if fix else what)
        self.what = what
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one place of a configuration file (line is 1-based, 0 when unknown)."""

    file: str
    line: int
    path: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.what}" if self.path else f"{place}: {self.what}"


class ConfigError(NearpathError):
    """A configuration that cannot be used; `problems` holds every fault found, not only the first."""

    exit_status = EX_CONFIG

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class BusConflict(NearpathError):
    """A compare-and-set that lost: the value was changed by someone else since it was read."""


class BusUnavailable(NearpathError):
    """The bus could not store or read (disk full, database damaged, server away); nothing was acknowledged."""


class MessageError(NearpathError):
    """A message from the network that is not of its form; the sender is to blame."""
