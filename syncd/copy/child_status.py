"""What a copy of a tree says of itself, for `syncd status`, metrics and stamps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from syncd.publish.guard import Objection


class Activity(Enum):
    """What a follower is doing, or waiting for."""

    READING = "reading"
    """what lies on the disk is opened or read"""
    CURRENT = "current"
    """everything the parent has is published"""
    RETRYING = "retrying"
    """some files could not be fetched and are tried again; the others are published"""
    FETCHING = "fetching"
    PUBLISHING = "publishing"
    COMPARING = "comparing"
    HELD = "held"
    """a guard wants a person's word"""
    DISK_FULL = "disk-full"
    NO_PARENT = "no-parent"
    STOPPED = "stopped"
    """the disk of the copy is not there, or is another one"""
    FAILED = "failed"


FOLLOWING = frozenset({Activity.CURRENT, Activity.FETCHING, Activity.PUBLISHING})
"""It takes what its parent sends, as it comes."""


@dataclass(slots=True)
class Fetching:
    """How far a batch is: files and bytes of it, and those that are here."""

    files: int
    size: int
    since_s: float
    done_files: int = 0
    done_bytes: int = 0
    """of whole files"""
    under_way: dict[int, int] = field(default_factory=dict)
    """bytes of the file that a stream is at, by stream"""

    def took(self, files: int, size: int) -> None:
        """So much more is here."""
        self.done_files += files
        self.done_bytes += size

    @property
    def seen_bytes(self) -> int:
        """Bytes that are here, of files that are not whole too."""
        return self.done_bytes + sum(self.under_way.values())


RATE_S = 20.0
"""The rate of a transfer is that of so long."""


class Rate:
    """How fast bytes came lately. Times are monotonic."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, size: int, now: float) -> None:
        """So much came up to now."""
        if not self._marks or now - self._marks[-1][0] > RATE_S:
            self._marks.clear()
            self._marks.append((now - 1.0, self._total))  # it took some time, and that was not looked at
        self._total += max(0, size)
        if now - self._marks[-1][0] >= 0.5:
            self._marks.append((now, self._total))
        while len(self._marks) > 2 and now - self._marks[1][0] >= RATE_S:
            self._marks.popleft()

    def bytes_s(self, now: float) -> float:
        """Bytes a second; 0 when nothing came for long."""
        if not self._marks or now - self._marks[-1][0] > RATE_S:
            return 0.0
        at_s, size = self._marks[0]
        return (self._total - size) / max(0.5, now - at_s)


@dataclass(slots=True)
class Totals:
    """Counted since the start."""

    fetched_files: int = 0
    fetched_bytes: int = 0
    differences: int = 0
    """found by comparisons with the parent"""
    rate: Rate = field(default_factory=Rate)


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A snapshot. `behind`: changes of the parent's journal that are not published; `waiting`: those that were put off."""

    activity: Activity = Activity.READING
    why: str = ""
    parent: str = ""
    has_content: bool = False
    entries: int = 0
    bytes_: int = 0
    left_out: tuple[int, int] = (0, 0)
    """(entries, bytes of files) that the origin has, and the patterns of this copy leave out"""
    behind: int = 0
    waiting: int = 0
    published: int = 0
    """steps since the start"""
    version: int = 0
    root_hash: str = ""
    """of the newest signed root that the copy was found equal to"""
    held: Objection | None = None
    fetching: Fetching | None = None
    whole: Fetching | None = None
    """of a first sync or a repair, of which `fetching` is one part"""
    troubles: tuple[tuple[str, str, int], ...] = ()
    """(path, why, tries) of files that could not be fetched"""
    refused: int = 0
    refused_paths: tuple[tuple[bytes, str], ...] = ()
    differences: int = 0
    """that the last comparison found"""
    compared_wall_s: float = 0.0
    hook_failed: str = ""
