"""What a push would take away from a plain mirror: a dry run says it before anything is deleted or emptied there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from syncd.transfer.plain import LINE, relative


@dataclass(slots=True)
class Loss:
    """Paths that a push would delete at the mirror, each by itself, and files that it would empty."""

    deleted: list[bytes] = field(default_factory=list)
    emptied: list[bytes] = field(default_factory=list)

    def take(self, line: bytes) -> None:
        """A line of a dry run with `plain.LOOK_FORMAT`."""
        found = LINE.fullmatch(line)
        if found is None:
            return
        item, size, _, _, name = found.groups()
        if item == b"*deleting":
            self.deleted.append(relative(name))
        elif re.match(rb"[<>]f.s", item) and int(size) == 0:
            self.emptied.append(relative(name))


def old_paths(now: Iterable[bytes], renames: Sequence[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Where what lies at the paths `now` was before; `renames`: (old, new) in the order in which they were done.

    What only has another name is brought under it first, and then no loss under the old one.
    """
    found: set[bytes] = set()
    for path in now:
        old = path
        for source, target in reversed(renames):
            if old == target or old.startswith(target + b"/"):
                old = source + old[len(target) :]
        found.add(old)
    return frozenset(found)
