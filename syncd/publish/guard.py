"""Guards: what stops a change before it does harm that no later change can undo. Each answers in an operator's words.

A guard returns objections. A *hold* waits for a person (`syncd approve TREE TOKEN`); a *stop* waits for the fault to go
away by itself or by hand.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

TOKEN_LEN = 8
"""Hex digits: enough to name one change set of one tree, short enough to be typed. It is no secret."""
EXAMPLES = 3
WINDOW_S = 600.0
"""Deletes are counted together over ten minutes: an `rm -r` of a large tree takes no longer, and a person looks in."""


class Weight(Enum):
    """What an objection asks for."""

    HOLD = "hold"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Objection:
    """Why something is not done now. `token` approves a hold, and only what was held when it was given out."""

    weight: Weight
    what: str
    fix: str
    token: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.fix}"


# --- mass deletes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeleteLimits:
    """More than `files` entries, or more than `ratio` of the tree, at once are held. `floor`: never held up to so many."""

    files: int = 10_000
    ratio: float = 0.2
    floor: int = 20


def check_deletes(
    tree: str,
    deletes: Sequence[bytes],
    deleted_entries: int,
    tree_entries: int,
    limits: DeleteLimits,
    approved: str = "",
    recent: int = 0,
    place: str = "",
) -> Objection | None:
    """A hold when a batch deletes too much, unless `approved` is the token of just these deletes.

    `deletes`: the paths, each with all below it; `deleted_entries`: all of that counted, as `plan.deleted_entries`;
    `tree_entries`: what the tree holds before; `recent`: entries that were deleted in the last minutes without anybody's
    word, since a slow `rm -r` comes in many small batches; `place`: where, if not here.
    """
    if not deleted_entries:
        return None
    total = deleted_entries + recent
    ratio = total / (tree_entries + recent) if tree_entries + recent else 0.0
    if total <= limits.floor or (total <= limits.files and ratio <= limits.ratio):
        return None
    token = change_token(tree, deletes, deleted_entries)
    if hmac.compare_digest(token, approved.strip().lower()):
        return None
    return Objection(
        Weight.HOLD,
        f"tree {tree}: {deleted_entries:,} of {tree_entries:,} entries would be deleted or emptied"
        f"{f' at {place}' if place else ''}, "
        f"such as {_examples(deletes)}"
        + (f", after {recent:,} in the last minutes" if recent else "")
        + f" ({ratio:.0%} of the tree)",
        f"if that is meant: `syncd approve {tree} {token}`; other changes of the tree wait with it",
        token,
    )


class RecentDeletes:
    """How many entries were deleted in the last `window_s`, but for those that were approved.

    `kept`: what an earlier one had, stored with what was deleted, since a daemon that is restarted again and again must
    not begin to count anew each time. So `now` is of a wall clock, and what was deleted later than it is taken for now.
    """

    def __init__(self, window_s: float = WINDOW_S, kept: Iterable[tuple[float, int]] = ()) -> None:
        self._window_s = window_s
        self._deleted: deque[tuple[float, int]] = deque(kept)

    @property
    def kept(self) -> tuple[tuple[float, int], ...]:
        """(when, entries) of the deletes that count."""
        return tuple(self._deleted)

    def count(self, now: float) -> int:
        """Entries deleted since `now` less the window."""
        self._deleted = deque((min(at, now), count) for at, count in self._deleted)
        while self._deleted and self._deleted[0][0] <= now - self._window_s:
            self._deleted.popleft()
        return sum(count for _, count in self._deleted)

    def add(self, now: float, count: int) -> None:
        """So many entries were deleted now."""
        if count:
            self._deleted.append((now, count))

    def approve(self) -> None:
        """A person has looked: what was deleted so far is meant."""
        self._deleted.clear()


def change_token(tree: str, deletes: Iterable[bytes], deleted_entries: int) -> str:
    """A name for one set of deletes; any other set has another, so that an approval never covers what came later."""
    digest = hashlib.blake2b(digest_size=16, person=b"nearpath-hold")
    for part in (tree.encode(), b"%d" % deleted_entries, *sorted(deletes)):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.hexdigest()[:TOKEN_LEN]


# --- the disk -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Space:
    """Free space for us on the tree's file system, from statvfs (f_bavail, f_favail; `total_inodes` 0: not counted)."""

    free_bytes: int
    total_bytes: int
    free_inodes: int
    total_inodes: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """What must stay free: the larger of the two."""

    bytes_: int = 1 << 30
    ratio: float = 0.02


def check_space(root: str, need_bytes: int, need_inodes: int, space: Space, reserve: Reserve) -> Objection | None:
    """A stop when a batch does not fit, before its first byte is fetched. It is looked at again by itself.

    Staged files count in full beside those they replace: both are there until the rename.
    """
    keep = max(reserve.bytes_, int(space.total_bytes * reserve.ratio))
    if need_bytes and need_bytes + keep > space.free_bytes:
        return Objection(
            Weight.STOP,
            f"{root}: {size_text(need_bytes)} are to be fetched, {size_text(space.free_bytes)} are free, "
            f"of which {size_text(keep)} are kept in reserve",
            f"make {size_text(need_bytes + keep - space.free_bytes)} of space; syncd goes on by itself",
        )
    if space.total_inodes and need_inodes + int(space.total_inodes * reserve.ratio) > space.free_inodes:
        return Objection(
            Weight.STOP,
            f"{root}: {need_inodes:,} inodes are needed, {space.free_inodes:,} are free",
            "the file system has too few inodes: delete small files, or make it anew with more; syncd goes on by itself",
        )
    return None


def size_text(size: int) -> str:
    """A size for people: 512 B, 1.5 KiB, 20.0 GiB."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _examples(paths: Sequence[bytes]) -> str:
    shown = ", ".join(repr(path)[1:] for path in paths[:EXAMPLES])
    return shown + (f" and {len(paths) - EXAMPLES:,} more" if len(paths) > EXAMPLES else "")
