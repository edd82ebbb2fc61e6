"""Guards: what stops a change before it does harm that no later change can undo. Each answers in an operator's words.

A guard returns objections. A *hold* waits for a person (`syncd approve TREE TOKEN`); a *stop* waits for the fault to go
away by itself or by hand. Nothing here decides from an age or an order of clocks whether something changed.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from syncd.model import Entry, Kind

TOKEN_LEN = 8
"""Hex digits: enough to name one change set of one tree, short enough to be typed. It is no secret."""
SKEW_S = 2.0
"""An mtime later than this before `now` is no proof that a file is as it was: FAT keeps times to 2 s, NFS servers and
coarse kernel clocks round as well."""
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
) -> Objection | None:
    """A hold when a batch deletes too much, unless `approved` is the token of just these deletes.

    `deletes`: the paths, each with all below it; `deleted_entries`: all of that counted, as `plan.deleted_entries`;
    `tree_entries`: what the tree holds before; `recent`: entries that were deleted in the last minutes without anybody's
    word, since a slow `rm -r` comes in many small batches.
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
        f"tree {tree}: {deleted_entries:,} of {tree_entries:,} entries would be deleted, such as {_examples(deletes)}"
        + (f", after {recent:,} in the last minutes" if recent else "")
        + f" ({ratio:.0%} of the tree)",
        f"if that is meant: `syncd approve {tree} {token}`; other changes of the tree wait with it",
        token,
    )


class RecentDeletes:
    """How many entries were deleted in the last `window_s`, but for those that were approved."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._deleted: deque[tuple[float, int]] = deque()

    def count(self, now: float) -> int:
        """Entries deleted since `now` less the window."""
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


# --- the source ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceView:
    """What was seen of an origin's tree. `failed`: (directory, errno text) of listings that failed in this look.

    `device`, `known_device`: st_dev of the root now and when the tree was last good (None: never yet).
    `marker`: name of a file that must be there, b"" when none is asked for.
    """

    root: str
    exists: bool
    device: int
    known_device: int | None
    entries: int
    known_entries: int
    marker: str = ""
    marker_found: bool = False
    failed: tuple[tuple[bytes, str], ...] = ()


def check_source(view: SourceView) -> tuple[Objection, ...]:
    """Stops when what was seen may not be the tree: no change is told to any child while one of them stands."""
    if not view.exists:
        return (Objection(Weight.STOP, f"{view.root} is not there", "mount it, or correct the tree's path"),)
    found: list[Objection] = []
    if view.known_device is not None and view.device != view.known_device:
        found.append(
            Objection(
                Weight.STOP,
                f"{view.root} is on another file system than before (device {view.known_device:#x}, now {view.device:#x})",
                "its disk is not mounted, or another one is: mount the right one; if it was moved, `syncd rescan --accept`",
            )
        )
    if view.marker and not view.marker_found:
        found.append(
            Objection(
                Weight.STOP,
                f"{view.root} has no {view.marker}, which marks the real tree",
                f"mount the right disk; if this is the tree, create the file {view.marker} in it",
            )
        )
    if not view.entries and view.known_entries and not view.failed:
        found.append(
            Objection(
                Weight.STOP,
                f"{view.root} is empty, and held {view.known_entries:,} entries",
                "its disk is not mounted, perhaps; if the tree was emptied on purpose: `syncd rescan --accept`",
            )
        )
    if view.failed:
        path, why = view.failed[0]
        found.append(
            Objection(
                Weight.STOP,
                f"{view.root}: {len(view.failed):,} directories could not be read, such as {path!r} ({why})",
                "nothing below them is taken for deleted; see their owner and mode, and the kernel's log for the disk",
            )
        )
    return tuple(found)


def below_failed(path: bytes, failed: Iterable[bytes]) -> bool:
    """Whether `path` is, or lies below, a directory whose listing failed: what is missing there is not known to be gone."""
    return any(path == top or not top or path.startswith(top + b"/") for top in failed)


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


# --- clocks -------------------------------------------------------------------------------------------------------------


def is_changed(old: Entry, new: Entry) -> bool:
    """Whether what lstat tells differs in anything: never "newer", since a clock may run late or be set back."""
    return (
        old.kind is not new.kind
        or old.mode != new.mode
        or old.size != new.size
        or old.mtime_ns != new.mtime_ns
        or old.target != new.target
        or old.ctime_ns != new.ctime_ns
        or old.inode != new.inode
    )


def is_settled(entry: Entry, looked_wall_s: float) -> bool:
    """Whether an unchanged lstat proves an unchanged file, for one that was looked at when the wall clock said this.

    Not if its mtime or ctime is in the same tick, or in the future, of the look: a second write may have left, or may
    yet leave, the same time. Such an entry is looked at again later, and by content when in doubt.
    """
    horizon_ns = int((looked_wall_s - SKEW_S) * 1e9)
    return entry.kind is not Kind.FILE or max(entry.mtime_ns, entry.ctime_ns) < horizon_ns


def check_clock(tree: str, entries: Iterable[Entry], wall_s: float) -> str:
    """What to tell the operator about files from the future; "" when there are none. Nothing is held because of them."""
    late = [entry for entry in entries if entry.kind is Kind.FILE and entry.mtime_ns > (wall_s + SKEW_S) * 1e9]
    if not late:
        return ""
    worst = max(late, key=lambda entry: entry.mtime_ns)
    return (
        f"tree {tree}: {len(late):,} files have an mtime in the future, {worst.path!r} by "
        f"{worst.mtime_ns / 1e9 - wall_s:,.0f} s: their changes are told by content; check the clock of who writes them"
    )


def _examples(paths: Sequence[bytes]) -> str:
    shown = ", ".join(repr(path)[1:] for path in paths[:EXAMPLES])
    return shown + (f" and {len(paths) - EXAMPLES:,} more" if len(paths) > EXAMPLES else "")
