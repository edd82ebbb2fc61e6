"""Publishing: the steps that turn what clients see from one state of a tree into the next, and their order.

| phase | steps | a client in the middle of it sees |
|---|---|---|
| 1 | directories made, moved; files about to be renamed linked at their new names | old files, some under two names |
| 2 | payload put in place, then symlinks | old indexes, and all files that old and new ones name |
| 3 | indexes put in place, by rank | a new index only when all it names is there |
| 4 | deletes | files that no index names any more going away |
| 5 | modes and times of directories | nothing |

Every step is one rename at its core, so it has happened or has not; `io_publish` notes which one it is at. A moved
*directory* leaves its old name in phase 1: who must not see that either publishes in mode `atomic`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from core.errors import NearpathError
from syncd.model import Change, Entry, Kind, Op, check_path


class PublishError(NearpathError):
    """A publish that cannot go on; what clients see is a state between two steps, with nothing partial in it."""


class Do(Enum):
    """What a step does. Whatever stands at `path` is replaced, unless said otherwise."""

    MAKE = "m"
    """an empty directory at `path`; with the mode of the entry, and writable for us until ATTR"""
    BRING = "b"
    """the directory staged at `path`, with all below it, now lies at `path`; it is there when staging does not have it"""
    MOVE = "v"
    """the directory at `source`, with all below it, now lies at `path`"""
    LINK = "k"
    """one more name, `path`, for the file or symlink at `source`"""
    PARK = "p"
    """what is at `source` goes out of sight into `slot` (a file or symlink keeps its name besides)"""
    UNPARK = "u"
    """what lies in `slot` comes to `path`"""
    PUT = "f"
    """the staged file of the entry comes to `path`"""
    SYMLINK = "l"
    """a symlink of the entry's target at `path`"""
    DELETE = "x"
    """`path`, with all below it, goes; nothing there is fine"""
    ATTR = "a"
    """mode, and mtime unless UNTOLD, of what is at `path`"""


class Step(NamedTuple):
    """One step of a publish; `source`, `slot` and `entry` as its `do` needs them."""

    do: Do
    path: bytes
    source: bytes = b""
    slot: int = -1
    entry: Entry | None = None


# --- indexes ------------------------------------------------------------------------------------------------------------


class Ranks:
    """Which paths are indexes, and which of them come last: the rank of a path is the last pattern it matches.

    Patterns are globs: `*`, `?` and `[...]` within one name, `**` across names. One that begins with `/` is anchored at
    the root of the tree, any other matches at any depth (`repodata/*`). Rank 0: no pattern matches, payload.
    Example for Debian: `/dists/**`, then `InRelease`, `Release`, `Release.gpg`, which must change last.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        self._compiled = [re.compile(_translate(pattern)) for pattern in patterns]

    def of(self, path: bytes) -> int:
        """The rank of a path: 0 for payload, else 1 + the position of the last pattern that matches."""
        for rank in range(len(self._compiled), 0, -1):
            if self._compiled[rank - 1].fullmatch(path):
                return rank
        return 0


def _translate(pattern: str) -> bytes:
    text = pattern.encode("utf-8", "surrogateescape")
    anchored = text.startswith(b"/")
    text = text.lstrip(b"/")
    if not text:
        raise NearpathError(f"index pattern {pattern!r} matches nothing", "write a glob such as repodata/*")
    out, at = [b"(?s)" if anchored else b"(?s)(?:.*/)?"], 0
    while at < len(text):
        char = text[at : at + 1]
        close = text.find(b"]", at + 2)
        if text.startswith(b"**/", at):
            out.append(b"(?:.*/)?")
            at += 3
        elif text.startswith(b"**", at):
            out.append(b".*")
            at += 2
        elif char == b"[" and close > 0:
            inner = text[at + 1 : close].replace(b"\\", b"\\\\").replace(b"[", b"\\[")
            if inner[:1] in (b"!", b"^"):
                inner = b"^/" + inner[1:]
            out.append(b"[" + inner + b"]")
            at = close + 1
        else:
            out.append({b"*": b"[^/]*", b"?": b"[^/]"}.get(char) or re.escape(char))
            at += 1
    return b"".join(out)


# --- symlinks -----------------------------------------------------------------------------------------------------------


def stays_inside(path: bytes, target: bytes) -> bool:
    """Whether a symlink at `path` cannot lead out of the tree, whatever else the tree holds.

    Relative; not more leading `..` than directories above it in the tree; and no `..` after a name, since that name
    may be a symlink itself, and what `..` means then depends on where it leads. With this rule for every symlink of a
    tree, following any of them stays inside, by induction over the names followed.
    """
    if not target or target.startswith(b"/") or b"\0" in target:
        return False
    up, down = 0, False
    for name in target.split(b"/"):
        if name == b"..":
            if down:
                return False
            up += 1
        elif name not in (b"", b"."):
            down = True
    return up <= path.count(b"/")


# --- what failed is held back -------------------------------------------------------------------------------------------


def hold_back(
    steps: Sequence[Step], failed: Mapping[bytes, str], ranks: Ranks
) -> tuple[tuple[Step, ...], tuple[Change, ...]]:
    """(steps to take now, changes to plan again later) when some files could not be fetched.

    Files that came are published. A missing payload file holds back every index and every delete of the tree, since an
    index may name it, and the old index may name what would be deleted; a missing index holds back those of its rank
    and above, and the deletes. The later changes are in terms of the tree after these steps; they must be stored
    before the cursor moves past them, and planned before newer changes. Deletes that come first of all are not held back:
    of symlinks that would lead out of the tree once the directory they are in has moved, which it does now.
    """
    missing = [ranks.of(step.path) for step in steps if step.do is Do.PUT and step.path in failed]
    if not missing:
        return tuple(steps), ()
    ceiling = min(missing)
    now: list[Step] = []
    later: list[Change] = []
    first = next((at for at, step in enumerate(steps) if step.do is not Do.DELETE), 0)
    for at, step in enumerate(steps):
        rank = max(ranks.of(step.path), ranks.of(step.source)) if step.do is Do.LINK else ranks.of(step.path)
        brings = step.do in (Do.PUT, Do.SYMLINK, Do.UNPARK, Do.LINK) and step.entry is not None
        if step.do is Do.DELETE and at >= first:
            later.append(Change(0, Op.DELETE, step.path))
        elif brings and (step.path in failed or step.source in failed or rank >= max(ceiling, 1)):
            later.append(Change(0, Op.UPSERT, step.path, step.entry))
        else:
            now.append(step)
    return tuple(now), tuple(later)


def touched(steps: Sequence[Step]) -> tuple[bytes, ...]:
    """Every path of the tree that these steps may have changed: what to look at again when one never finished."""
    paths = {step.path for step in steps} | {step.source for step in steps if step.source}
    return tuple(sorted(paths))


# --- the intent: what is about to be done, as bytes ---------------------------------------------------------------------

_INTENT_MAGIC = b"nearpath-publish-v1\n"
_STEP = struct.Struct(">cIqIB")
_ENTRY = struct.Struct(">cIQqI")
_DOS = {do.value.encode(): do for do in Do}
_KINDS = {kind.value.encode(): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Intent:
    """What one publish is about to do: its number, its steps, and a note of the caller's (a cursor, say)."""

    number: int
    steps: tuple[Step, ...]
    note: bytes = b""


def encode_intent(intent: Intent) -> bytes:
    """Bytes of an intent, whole or not at all: the number of steps comes first, an end mark last."""
    parts = [_INTENT_MAGIC, struct.pack(">QII", intent.number, len(intent.steps), len(intent.note)), intent.note]
    for step in intent.steps:
        parts.append(
            _STEP.pack(step.do.value.encode(), len(step.path), step.slot, len(step.source), step.entry is not None)
        )
        parts += [step.path, step.source]
        if (entry := step.entry) is not None:
            head = _ENTRY.pack(entry.kind.value.encode(), entry.mode, entry.size, entry.mtime_ns, len(entry.target))
            parts += [head, entry.target]
    return b"".join([*parts, b"end\n"])


def decode_intent(data: bytes) -> Intent:
    """The intent in `data`; PublishError when it is damaged. Paths are checked as if they came from another node."""
    try:
        return _decode_intent(data)
    except (struct.error, ValueError, KeyError, NearpathError) as error:
        raise PublishError(
            "the note of a publish under way is damaged", "the disk is read anew, and what is undone is done again"
        ) from error


def _decode_intent(data: bytes) -> Intent:
    if not data.startswith(_INTENT_MAGIC) or not data.endswith(b"end\n"):
        raise ValueError("not an intent")
    at = len(_INTENT_MAGIC)
    number, count, note_len = struct.unpack_from(">QII", data, at)
    at += 16
    note = data[at : at + note_len]
    at += note_len
    steps: list[Step] = []
    for _ in range(count):
        code, path_len, slot, source_len, has_entry = _STEP.unpack_from(data, at)
        at += _STEP.size
        path, source = data[at : at + path_len], data[at + path_len : at + path_len + source_len]
        at += path_len + source_len
        entry = None
        if has_entry:
            kind, mode, size, mtime_ns, target_len = _ENTRY.unpack_from(data, at)
            at += _ENTRY.size
            target = data[at : at + target_len]
            at += target_len
            entry = Entry(path, _KINDS[kind], mode, size, mtime_ns, target)
        steps.append(Step(_DOS[code], check_path(path), check_path(source), slot, entry))
    if at != len(data) - 4:
        raise ValueError("an intent of the wrong length")
    return Intent(number, tuple(steps), note)
