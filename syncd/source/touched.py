"""Which files may have been written to since they were last looked at, as far as events tell.

A rename moves the ctime of the file, and so does the loss of another name. A write just before that shows nowhere when size
and mtime are what they were (`touch -r`, `rsync --inplace --times` from a twin): only its event tells of it, and that may
even be read after the rename was found. So what is not known to be unwritten is told as written: a copy that is told in
vain compares one content, one that is not told keeps the wrong one for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

KEPT_S = 30.0
"""How long a write is remembered whose path is never looked at, and a rename whose file a late event may be of."""
MAX_PATHS = 250_000
"""About 40 MB. Beyond that all that is found renamed within KEPT_S counts as written."""
MAX_CARRIED = 1_000_000
"""So many paths are looked through for directories that moved, in one batch of events; likewise."""


class Touched:
    """See the module. All times are one clock's seconds."""

    def __init__(self) -> None:
        self._written: dict[bytes, float] = {}
        self._renamed: dict[bytes, float] = {}
        self._again: set[bytes] = set()
        self._all_until_s = 0.0
        self._now = 0.0

    def note(self, written: Iterable[bytes], moves: Iterable[tuple[bytes, bytes, bool]], now: float) -> None:
        """Events told of writes into the files `written`, and of `moves`: (from, to, whether it may be a directory).

        Their order is not known. So what was written under any name on the way counts, which is too much at the worst.
        """
        self._now = now
        for path in written:
            self._write(path)
        carried = 0
        for source, path, is_deep in moves:
            self._carry(source, path)
            if is_deep and (self._written or self._renamed):
                carried += len(self._written) + len(self._renamed)
                if carried > MAX_CARRIED:
                    self.doubt_all(now)
                else:
                    self._carry_below(source, path)
        for known in (self._written, self._renamed):
            for path in [path for path, _ in takewhile(lambda one: now - one[1] > KEPT_S, known.items())]:
                del known[path]
                self._again.discard(path)
        if len(self._written) > MAX_PATHS:
            self.doubt_all(now)

    def doubt_all(self, now: float) -> None:
        """Events were lost, or are too many: any file may have been written to."""
        self._now = now
        self._all_until_s = now + KEPT_S
        self._written.clear()

    def looked_at(self, paths: Iterable[bytes]) -> None:
        """What was written under these names until now is known by its new ctime."""
        for path in paths:
            self._written.pop(path, None)

    def is_doubtful(self, source: bytes, path: bytes) -> bool:
        """Whether the file that was `source`, and is `path` now, may have been written to in between.

        When not, its writes that are told of later count still: see `take_again`.
        """
        if self._now < self._all_until_s or source in self._written or path in self._written:
            return True
        if len(self._renamed) >= MAX_PATHS:
            return True
        _put(self._renamed, path, self._now)
        return False

    def is_any_doubtful(self, path: bytes) -> bool:
        """Whether the file `path`, or any below the directory `path`, may have been written to. O(what was written)."""
        if self._now < self._all_until_s or path in self._written:
            return True
        below = path + b"/"
        return any(written.startswith(below) for written in self._written)

    def take_again(self, path: bytes) -> bool:
        """Whether `path`, found renamed just before, was written to as one hears only now. Once."""
        if path not in self._again:
            return False
        self._again.discard(path)
        return True

    def _write(self, path: bytes) -> None:
        _put(self._written, path, self._now)
        if path in self._renamed:
            self._again.add(path)

    def _carry(self, source: bytes, path: bytes) -> None:
        if source in self._renamed:
            _put(self._renamed, path, self._now)
        if source in self._written:
            self._write(path)
        if source in self._again:
            self._again.add(path)

    def _carry_below(self, source: bytes, path: bytes) -> None:
        below = source + b"/"
        names = {name for known in (self._written, self._renamed) for name in known if name.startswith(below)}
        for name in names:
            self._carry(name, path + name[len(source) :])


def _put(known: dict[bytes, float], path: bytes, now: float) -> None:
    """Behind all others, so that the oldest are in front."""
    known.pop(path, None)
    known[path] = now
