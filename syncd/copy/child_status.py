"""What a copy of a tree says of itself, for `syncd status`, metrics and stamps."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(slots=True)
class Fetching:
    """How far a batch is: files and bytes of it, and those that are here."""

    files: int
    size: int
    since_s: float
    done_files: int = 0
    done_bytes: int = 0

    def took(self, files: int, size: int) -> None:
        """So much more is here."""
        self.done_files += files
        self.done_bytes += size


@dataclass(slots=True)
class Totals:
    """Counted since the start."""

    fetched_files: int = 0
    fetched_bytes: int = 0
    differences: int = 0
    """found by comparisons with the parent"""


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A snapshot. `behind`: changes of the parent's journal that are not published; `waiting`: those that were put off."""

    activity: Activity = Activity.READING
    why: str = ""
    parent: str = ""
    has_content: bool = False
    entries: int = 0
    bytes_: int = 0
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
