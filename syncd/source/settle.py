"""When a dirty path is quiet enough to be looked at: adaptive debounce over a trie of dirty paths.

A path is due `quiet_s` after its last hint, so one that is still being written is not looked at over and over; and
`longest_s` after its first hint at the latest, so one that is written for ever still comes out.
"""

from __future__ import annotations

import heapq

from syncd.source.trie import DirtyTrie, Mark

QUIET_S = 0.05
LONGEST_S = 2.0
MAX_MARKS = 250_000
"""About 60 MB of marks. Beyond that a new path is kept as "its directory, whole": less exact, never lost."""


class Settle:
    """Hints in, paths that have settled out. All times are one clock's seconds, and above 0."""

    def __init__(self, quiet_s: float = QUIET_S, longest_s: float = LONGEST_S, max_marks: int = MAX_MARKS) -> None:
        self._quiet_s = quiet_s
        self._longest_s = longest_s
        self._max_marks = max_marks
        self._trie = DirtyTrie()
        # One live heap item a mark; the item's time may be too early (a later hint moves only the mark's `last_s`).
        self._heap: list[tuple[float, int, Mark]] = []
        self._pushed = 0

    def __len__(self) -> int:
        """How many marks are waiting."""
        return len(self._trie)

    def hint(self, path: bytes, subtree: bool, now: float) -> None:
        """`path` may have changed; with `subtree`, so may anything below it."""
        if len(self._trie) >= self._max_marks and not self._trie.covers(path):
            path, subtree = path.rpartition(b"/")[0], True
        mark = self._trie.add(path, subtree)
        mark.last_s = now
        # A new mark that absorbed older ones has the first of their times already, but no item in the heap yet. A mark
        # that was put off is looked at now: something has changed.
        put_off = mark.first_s > now
        if not mark.first_s or put_off:
            mark.first_s = now
        if not mark.queued or put_off:
            self._push(self._due_s(mark), mark)

    def later(self, path: bytes, subtree: bool, at: float) -> None:
        """Look at `path` again at `at`, not before: for what could not be looked at now."""
        mark = self._trie.add(path, subtree)
        if not mark.queued:
            mark.first_s = mark.last_s = at
            self._push(at, mark)

    def due(self, now: float) -> float | None:
        """When something may be due (at or before `now`: at once); None when nothing waits."""
        self._trim(now)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float, limit: int = 10_000) -> list[tuple[bytes, bool]]:
        """The paths that are due, at most `limit`: (path, subtree), each handed out once per settling."""
        taken: list[tuple[bytes, bool]] = []
        while len(taken) < limit:
            self._trim(now)
            if not self._heap or self._heap[0][0] > now:
                break
            mark = heapq.heappop(self._heap)[2]
            taken.append((mark.path, mark.subtree))
            self._trie.remove(mark)
        return taken

    def _due_s(self, mark: Mark) -> float:
        return max(mark.first_s, min(mark.last_s + self._quiet_s, mark.first_s + self._longest_s))

    def _push(self, at: float, mark: Mark) -> None:
        self._pushed += 1
        mark.queued = True
        heapq.heappush(self._heap, (at, self._pushed, mark))

    def _trim(self, now: float) -> None:
        """Make the first item of the heap one that counts: drop absorbed marks, put off those hinted since."""
        while self._heap and self._heap[0][0] <= now:
            mark = self._heap[0][2]
            if not mark.dirty:
                heapq.heappop(self._heap)
            elif (at := self._due_s(mark)) > now:
                self._pushed += 1
                heapq.heapreplace(self._heap, (at, self._pushed, mark))
            else:
                return
