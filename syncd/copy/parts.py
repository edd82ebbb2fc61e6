"""Changes from a comparison in parts, so that a tree that is brought up to another is published as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from syncd.model import Change, Kind, Op

PART = 10_000
"""Changes published at once when a whole tree is brought up to another: progress is kept, and memory stays bounded."""
PART_BYTES = 1 << 30
"""And as many bytes of files, about: what is published need not be fetched once more, whatever happens."""
PART_FILES = 4
"""But at least so many files: several streams have something to do then, and none waits long for the last one."""


def in_parts(
    changes: Sequence[Change], rank: Callable[[bytes], int], part_bytes: int | None = PART_BYTES
) -> list[tuple[Change, ...]]:
    """Changes from a comparison in parts that can be published one after the other: payload, indexes by rank, deletes.

    `part_bytes` None: however large the files are.
    """
    upserts = [change for change in changes if change.op is Op.UPSERT]
    deletes = tuple(change for change in changes if change.op is not Op.UPSERT)
    upserts.sort(key=lambda change: (rank(change.path) if change.path else 0, change.path))
    parts: list[tuple[Change, ...]] = []
    begin = files = size = 0
    for at, change in enumerate(upserts, 1):
        if change.entry is not None and change.entry.kind is Kind.FILE:
            files, size = files + 1, size + change.entry.size
        is_large = part_bytes is not None and size >= part_bytes and files >= PART_FILES
        if is_large or at - begin == PART or at == len(upserts):
            parts.append(tuple(upserts[begin:at]))
            begin, files, size = at, 0, 0
    if not parts:
        return [deletes] if deletes else []
    # What is replaced by something of another kind must go with its replacement: so deletes come with the last part.
    parts[-1] += deletes
    return parts


def weight(changes: Sequence[Change]) -> tuple[int, int]:
    """Files and bytes that changes bring."""
    files = [change.entry for change in changes if change.entry is not None and change.entry.kind is Kind.FILE]
    return len(files), sum(entry.size for entry in files)
