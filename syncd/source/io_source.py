"""One tree at its source: watched, settled, compared with the index, and written to the journal.

One thread owns all of it and calls `step` for ever; only the watching thread runs beside it. Whatever is slow (a new
subtree, a rescan after an overflow, the check at start) is done in slices, between which hints are taken, so that a
small change never waits behind a large one for longer than a slice.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Literal

from core.errors import NearpathError
from core.exclude import NOTHING, Exclude
from syncd.source.io_compare import Comparer, Depth
from syncd.source.io_contents import Contents
from syncd.source.io_fanotify import Fanotify
from syncd.source.io_left_out import LeftOut
from syncd.source.io_scan import MOUNTED, Disk
from syncd.source.io_watch import Watcher, limit_problem, watch_limit
from syncd.source.settle import Settle
from syncd.source.touched import Touched
from syncd.store.io_index import Index
from syncd.store.io_journal import Journal
from syncd.store.io_store import (
    SEALED,
    StoreError,
    close_store,
    fact,
    hold_directory,
    open_store,
    set_fact,
    transaction,
)

SLICE_S = 0.1
SWEEP_SLICE_S = 0.05
SWEEP_PAUSE_S = 0.2
"""The slow sweep takes a fifth of one processor at most."""

RETRY_S = 10.0
"""After what could not be looked at, or not be stored, is tried again."""

POLL_UNWATCHED_S = 10.0
RESCAN_PAUSE_S = 0.5
MAX_RESCAN_PAUSE_S = 60.0
"""Before a rescan after an overflow; doubled each time that another overflow comes soon after it."""

ROOT_CHECK_S = 5.0
_MAX_BATCH = 5_000
_MAX_TROUBLES = 100
_MAX_MOVES = 100_000
_MAX_NAMED = 20
"""Paths of one kind in a status."""

Paths = tuple[tuple[bytes, str], ...]
"""(path, why) of the first of many."""


class SourceError(NearpathError):
    """The tree cannot be taken as it is: another directory than before, or empty."""


class State(Enum):
    """What the source is doing."""

    STARTING = "starting"
    """the check at start is not through yet"""
    READY = "ready"
    ROOT_LOST = "root-lost"
    """the root was deleted, moved or unmounted; nothing is concluded until it is back"""
    STORE_FAILED = "store-failed"
    """the index cannot be written (disk full, say); it is tried again"""


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A snapshot for metrics and `syncd status`."""

    state: State = State.STARTING
    why: str = ""
    sequence: int = 0
    waiting: int = 0
    """dirty paths that have not settled"""
    walking: int = 0
    """directories still to be walked"""
    watches: int = 0
    unwatched: int = 0
    unwatched_paths: Paths = ()
    overflows: int = 0
    skipped: int = 0
    """names that are not replicated"""
    skipped_paths: Paths = ()
    unreadable: int = 0
    """files that are in the tree, and cannot be read for the children"""
    unreadable_paths: Paths = ()
    troubles: tuple[str, ...] = ()
    """the newest first"""
    watch_limit_problem: str = ""


class SourceTree:
    """See the module. `root` is the tree, `store` the file of its index and journal."""

    def __init__(
        self,
        root: bytes,
        store: Path,
        *,
        cross_mounts: bool = False,
        settle: Settle | None = None,
        accept_root: bool = False,
        watch: Literal["inotify", "fanotify"] = "inotify",
        keep_links: bool = False,
        signed_contents: bool = False,
        exclude: Exclude = NOTHING,
        name: str = "TREE",
    ) -> None:
        """`name`: of the tree, for what an operator has to type.

        `signed_contents`: the digest of each content is told with it, see `io_contents`; `io_seal` reads the others.

        SourceError when `root` is not what it was at the last run; `accept_root` takes it all the same.

        WatchError when `watch` cannot be had; for fanotify, `fanotify_problem` tells why beforehand.
        """
        self._root = root
        self._name = name
        self._left_out = LeftOut()
        self._keep_links = keep_links
        self._contents = Contents(root, self.wake) if signed_contents else None
        self._watch = watch
        self._cross_mounts = cross_mounts
        self._exclude = exclude
        self._settle = settle or Settle()
        self._wake = threading.Event()
        self._db = open_store(store)
        self.index = Index(self._db)
        self.journal = Journal(self._db)
        self._first: deque[tuple[bytes, Depth]] = deque()
        """a stack: new subtrees, and the check at start"""
        self._sweep: deque[tuple[bytes, Depth]] = deque()
        """a stack: what can wait"""
        self._sweep_at_s = 0.0
        self._rescan_at_s: float | None = None
        self._rescan_pause_s = RESCAN_PAUSE_S
        self._poll_at_s = 0.0
        self._unpolled: deque[tuple[bytes, Depth]] = deque()
        self._store_retry_s = 0.0
        self._rescanned_at_s = -MAX_RESCAN_PAUSE_S
        self._root_check_at_s = 0.0
        self._moved_to: dict[bytes, bytes] = {}
        self._touched = Touched()
        self._troubles: deque[str] = deque(maxlen=_MAX_TROUBLES)
        self.status = SourceStatus(sequence=self.journal.last())
        self._lock = -1
        self._accepted = False
        try:
            if not signed_contents and fact(self._db, SEALED):
                with transaction(self._db):
                    set_fact(self._db, SEALED, 0)
            self._open_root(accept_root)
        except BaseException:
            self._let_go()
            close_store(self._db)
            raise

    def close(self) -> None:
        """Stop watching, close the store."""
        self._watcher.close()
        if self._contents is not None:
            self._contents.close()
        self._disk.close()
        self._let_go()
        close_store(self._db)

    def start(self, stop: threading.Event | None = None) -> None:
        """Step until the check at start is through: everything that changed while nobody watched is in the journal."""
        while self.status.state is not State.READY and not (stop and stop.is_set()):
            self.step(1.0)

    def run(self, stop: threading.Event) -> None:
        """Step until `stop` is set; then `wake` makes it notice at once."""
        while not stop.is_set():
            self.step(60.0)

    def wake(self) -> None:
        """End a waiting `step`; from any thread."""
        self._wake.set()

    def sweep(self) -> None:
        """Look at every name in the tree, slowly; for now and then, since a write through mmap makes no event."""
        self._sweep.appendleft((b"", Depth.ALL))

    def accept(self) -> None:
        """Take what is at the root now for the tree, though it is another directory, or empty; from any thread.

        Only while the root is lost: said beforehand, it would let the next wrong disk through.
        """
        self._accepted = self.status.state is State.ROOT_LOST
        self._root_check_at_s = 0.0
        self._wake.set()

    def step(self, timeout_s: float) -> int:
        """Wait for something to do, at most `timeout_s`; do a part of it; how many changes were written."""
        now = time.monotonic()
        wait_s = min(timeout_s, self._next_s(now) - now)
        if wait_s > 0:
            self._wake.wait(wait_s)
        self._wake.clear()
        now = time.monotonic()
        self._take_news(now)
        written = 0
        is_waiting = self.status.state is State.STORE_FAILED and now < self._store_retry_s
        if not is_waiting and self._root_is_there(now):
            self._plan_slow_work(now)
            written = self._check_settled(now)
            if self.status.state is not State.STORE_FAILED or now >= self._store_retry_s:
                written += self._walk_slice(now)
            self._disk.rest()
        self._publish()
        return written

    # -- the root

    def _open_root(self, accept: bool) -> None:
        try:
            disk = Disk(self._root, cross_mounts=self._cross_mounts, left_out=self._left_out, exclude=self._exclude)
        except OSError as error:
            raise SourceError(
                f"{os.fsdecode(self._root)} cannot be opened: {error.strerror}",
                "mount its disk, or bring the directory back, and it goes on by itself; if another one takes its place: "
                f"`syncd accept {self._name}`; is `path` right?",
            ) from error
        try:
            self._check_identity(disk, accept)
            self._let_go()
            self._lock = hold_directory(self._root)
            # The watcher of a root that was lost goes only once there is another.
            kernel = Fanotify(self._root) if self._watch == "fanotify" else None
            self._watcher = watcher = Watcher(self._wake.set, kernel=kernel)
        except BaseException:
            disk.close()
            raise
        disk.watch = watcher.watch
        self._disk = disk
        self._comparer = Comparer(disk, self.index, self._touched)
        self._comparer.keep_links = self._keep_links
        self._comparer.contents = self._contents
        self._comparer.quiet = not fact(self._db, "was_read")
        self._first.clear()
        self._sweep.clear()
        self._first.append((b"", Depth.ALL))
        directories = self.index.size().directories
        limit = limit_problem(directories, watch_limit()) if self._watch == "inotify" else ""
        self.status = replace(self.status, state=State.STARTING, why="", watch_limit_problem=limit)

    def _let_go(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _check_identity(self, disk: Disk, accept: bool) -> None:
        """The inode of the root tells an unmounted disk from an emptied one; its device number may change at a reboot."""
        known = fact(self._db, "root_inode")
        inode = disk.root_identity()[1]
        if known is not None and not accept:
            name = os.fsdecode(self._root)
            if known != inode:
                raise SourceError(
                    f"{name} is another directory than at the last run",
                    f"mount the right one; if it is meant to be this one: `syncd accept {self._name}`",
                )
            if self.index.size().entries > 1 and not os.listdir(self._root):
                raise SourceError(
                    f"{name} is empty, and was not at the last run",
                    f"mount its disk; if it is meant to be empty: `syncd accept {self._name}`",
                )
        if known != inode:
            with transaction(self._db):
                set_fact(self._db, "root_inode", inode)

    def _root_is_there(self, now: float) -> bool:
        """Checked before anything is concluded from what is below it; a root that is back is taken up again."""
        if self.status.state is State.ROOT_LOST:
            if now < self._root_check_at_s:
                return False
            self._root_check_at_s = now + ROOT_CHECK_S
            old_watcher, old_disk = self._watcher, self._disk
            try:
                self._open_root(accept=self._accepted)
                self._accepted = False
            except NearpathError as error:
                self.status = replace(self.status, why=str(error))
                return False
            old_watcher.close()
            old_disk.close()
            return True
        if why := self._disk.root_moved():
            self._lose_root(why, now)
            return False
        return True

    def _lose_root(self, why: str, now: float) -> None:
        self._accepted = False
        self._root_check_at_s = now + ROOT_CHECK_S
        fix = "mount its disk, or bring it back, and all goes on by itself; if another one takes its place"
        text = f"{os.fsdecode(self._root)}: {why}: {fix}: `syncd accept {self._name}`"
        self.status = replace(self.status, state=State.ROOT_LOST, why=text)

    # -- hints

    def _take_news(self, now: float) -> None:
        news = self._watcher.take(now)
        for path, subtree in news.hints.items():
            self._settle.hint(path, subtree, now)
        self._touched.note(news.written, ((a, b, news.hints.get(b, True)) for a, b in news.moves), now)
        if news.overflowed:
            self._touched.doubt_all(now)
        for source, path in news.moves:
            self._moved_to[source] = path
        if len(self._moved_to) > _MAX_MOVES:
            # They only save transfers.
            self._moved_to.clear()
        if self._contents is not None:
            for path, wait_s in self._contents.take_again():
                self._settle.later(path, False, now + wait_s)
        if news.overflowed and self._rescan_at_s is None:
            # Another overflow soon after the last rescan: rescanning at once, again and again, would only keep us from
            # reading events.
            is_soon = now - self._rescanned_at_s < 2 * self._rescan_pause_s + 10.0
            self._rescan_pause_s = min(self._rescan_pause_s * 2, MAX_RESCAN_PAUSE_S) if is_soon else RESCAN_PAUSE_S
            self._rescan_at_s = now + self._rescan_pause_s
        if news.root_lost and (why := self._disk.root_moved()):
            self._lose_root(why, now)

    def _check_settled(self, now: float) -> int:
        marks = dict(self._settle.take(now, _MAX_BATCH))
        if not marks:
            if not len(self._settle):
                self._moved_to.clear()
            return 0
        # Both ends of a move are looked at together, or the file would be deleted here and sent anew there.
        for path in list(marks):
            while (path := self._moved_to.pop(path, b"")) and path not in marks:
                marks[path] = False
        written = self._in_transaction(lambda: self._comparer.check(marks.items()), now)
        self._touched.looked_at(marks)
        return written

    # -- walks

    def _plan_slow_work(self, now: float) -> None:
        if self._rescan_at_s is not None and now >= self._rescan_at_s:
            self._rescan_at_s = None
            # First what came, went and moved, then everything: a write in place does not show in any directory.
            self._sweep.clear()
            self._sweep.extend([(b"", Depth.ALL), (b"", Depth.MOVED)])
            self._sweep_at_s = now
            self._rescanned_at_s = now
        if now >= self._poll_at_s:
            self._poll_at_s = now + POLL_UNWATCHED_S
            self._left_out.look_again(self._root)
            if not self._unpolled:
                self._unpolled.extend((path, Depth.ONE) for path in self._watcher.unwatched)

    def _walk_slice(self, now: float) -> int:
        if self._first:
            return self._in_transaction(lambda: self._walk(self._first, SLICE_S), now)
        if self.status.state is not State.READY:
            self._finish_start(now)
        stack = self._unpolled or self._sweep
        if not stack or now < self._sweep_at_s:
            return 0
        # The quick half of a rescan is not slowed down: until it is through, changes are missing.
        is_slow = stack[-1][1] is not Depth.MOVED
        written = self._in_transaction(lambda: self._walk(stack, SWEEP_SLICE_S), now)
        self._sweep_at_s = time.monotonic() + (SWEEP_PAUSE_S if is_slow else 0.0)
        return written

    def _walk(self, stack: deque[tuple[bytes, Depth]], budget_s: float) -> None:
        until = time.monotonic() + budget_s
        while stack and time.monotonic() < until:
            path, depth = stack.pop()
            self._comparer.walk(path, depth)
            # What is below comes next, so that a path is opened from its neighbour.
            stack.extend(self._comparer.take_walks())
        if not stack:
            self._comparer.settle_losses()

    def _finish_start(self, now: float) -> None:
        if self._comparer.quiet:
            try:
                with transaction(self._db):
                    set_fact(self._db, "was_read", 1)
                    self.journal.append_baseline()
            except StoreError as error:
                self._fail_store(error, now)
                return
            self._comparer.quiet = False
        self.status = replace(self.status, state=State.READY, why="")

    # -- writing down

    def _in_transaction(self, work: Callable[[], None], now: float) -> int:
        """Run `work`, append what it drafted, commit. If the store fails, the whole tree is looked at again later."""
        try:
            with transaction(self._db):
                work()
                found = self._comparer.take()
                if found.drafts:
                    self.journal.append(found.drafts, time.time())
        except StoreError as error:
            self._comparer.take()
            self.index.rolled_back()
            self._fail_store(error, now)
            self._first.clear()
            self._first.append((b"", Depth.ALL))
            return 0
        self._first.extend(found.to_walk)
        for trouble in found.troubles:
            text = str(trouble)
            if text not in self._troubles:
                self._troubles.appendleft(text)
            if trouble.why != MOUNTED:
                self._settle.later(trouble.path, True, now + RETRY_S)
        return len(found.drafts)

    def _fail_store(self, error: StoreError, now: float) -> None:
        self._store_retry_s = now + RETRY_S
        self.status = replace(self.status, state=State.STORE_FAILED, why=str(error))

    def _next_s(self, now: float) -> float:
        """When `step` has something to do by itself."""
        if self.status.state is State.ROOT_LOST:
            return self._root_check_at_s
        if self.status.state is State.STORE_FAILED and now < self._store_retry_s:
            return self._store_retry_s
        times = [now + 3600.0]
        if self._first or self.status.state is not State.READY:
            times.append(now)
        if self._sweep or self._unpolled:
            times.append(self._sweep_at_s)
        if self._watcher.unwatched or self._left_out:
            times.append(self._poll_at_s)
        if self._rescan_at_s is not None:
            times.append(self._rescan_at_s)
        if (due_s := self._settle.due(now)) is not None:
            times.append(due_s)
        return min(times)

    def _publish(self) -> None:
        self.status = replace(
            self.status,
            sequence=self.journal.last(),
            waiting=len(self._settle) + (self._contents.waiting if self._contents is not None else 0),
            walking=len(self._first) + len(self._sweep),
            watches=len(self._watcher.tree),
            unwatched=len(self._watcher.unwatched),
            unwatched_paths=_first(self._watcher.unwatched),
            overflows=self._watcher.overflows,
            skipped=len(self._left_out.skipped),
            skipped_paths=_first(self._left_out.skipped),
            unreadable=len(self._left_out.unreadable),
            unreadable_paths=_first(self._left_out.unreadable),
            troubles=tuple(self._troubles),
        )


def _first(paths: dict[bytes, str]) -> Paths:
    return tuple(islice(paths.items(), _MAX_NAMED))
