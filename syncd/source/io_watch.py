"""Watching: a thread that does nothing but move events from the kernel's small queue into a large one of ours; and inotify.

Everything else (decoding, keeping the map of watches, adding watches) is done by the one thread that owns the tree, so that
nothing here needs a lock, and nothing the owner does can make the kernel's queue overflow.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from inotify_simple import INotify  # type: ignore[import-untyped]

from core.errors import NearpathError
from syncd.source.inotify import (
    ATTRIB,
    CREATE,
    DELETE_SELF,
    DIRECTORY_MASK,
    IGNORED,
    ISDIR,
    MOVE_SELF,
    MOVED_FROM,
    MOVED_TO,
    Q_OVERFLOW,
    ROOT_MASK,
    UNMOUNT,
    WROTE,
    Decoder,
    Event,
    Moves,
)
from syncd.source.watch_tree import WatchTree

_SYSCTL_DIR = Path("/proc/sys/fs/inotify")
_READ_BYTES = 1 << 18
_BURST_BYTES = 4096
_BURST_PAUSE_S = 0.01
_FOREIGN_PAUSE_S = 0.005
MAX_WAITING_BYTES = 64 << 20
"""About two million events of inotify, or half a million of fanotify, not looked at yet. Beyond that a rescan is cheaper,
and memory stays bounded."""

LOOSE_S = 10.0
"""How long a watched directory without a place is kept before its watch is taken away; a scan re-adds it if need be."""


class WatchError(NearpathError):
    """Watching cannot start at all."""


@dataclass(slots=True)
class News:
    """What `Watcher.take` tells. Every hint says only "look there"."""

    hints: dict[bytes, bool] = field(default_factory=dict)
    """path -> whether anything below it may have changed too"""
    moves: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(from, to); both are among the hints"""
    written: list[bytes] = field(default_factory=list)
    """files that were written to, under the names that it was done by; they are among the hints too"""
    overflowed: bool = False
    """events were lost: anything may have changed"""
    root_lost: str = ""
    """why the root is not what it was: deleted, moved or unmounted; empty when it is"""


def watch_limit() -> int:
    """fs.inotify.max_user_watches, which all processes of our user share."""
    return int((_SYSCTL_DIR / "max_user_watches").read_text())


def limit_problem(directories: int, limit: int) -> str:
    """What to tell the operator when `limit` watches are too few for `directories`; empty when they are enough.

    A fifth is added for growth, and for other programs of the same user.
    """
    wanted = directories + directories // 5 + 1024
    if limit >= wanted:
        return ""
    return (
        f"fs.inotify.max_user_watches is {limit}, and the tree has {directories} directories: "
        f"set fs.inotify.max_user_watches={wanted} in /etc/sysctl.d/60-syncd.conf and run `sysctl --system`; "
        "until then the rest is found by scanning, later"
    )


class Kernel(Protocol):
    """What tells of changes: `Inotify` or `io_fanotify.Fanotify`. All but `concerns` is called in the owner's thread."""

    tree: WatchTree
    unwatched: dict[bytes, str]
    """Directories that could not be watched -> why; whoever owns the tree scans them from time to time."""

    @property
    def foreign(self) -> int:
        """How many events came that are not of the tree."""

    def concerns(self, data: bytes) -> bool:
        """Whether anything in `data`, read just now, is of the tree; if not, it is dropped. In the reading thread."""

    def fileno(self) -> int:
        """What the thread reads from; it never blocks."""

    def close(self) -> None:
        """Stop telling; the thread has ended."""

    def watch(self, fd: int, parent_wd: int | None, name: bytes, path: bytes) -> tuple[int | None, bool]:
        """Watch the open directory `fd`, which is `name` in `parent_wd` (None: it is the root).

        Returns its descriptor (None when it cannot be watched: see `unwatched`), and whether it was not watched before;
        then it has to be listed, from now on nothing in it is missed.
        """

    def unwatch(self, wd: int) -> None:
        """Tell no more of a directory, and forget it."""

    def take(self, data: bytes, news: News, now: float) -> int:
        """Add what `data` tells to `news`; how many events it was."""

    def all_taken(self, overflowed: bool, now: float) -> None:
        """Everything read so far was taken; with `overflowed`, some of it was lost."""


class Watcher:
    """One `Kernel`, inotify by default. `wake` is called from the reading thread whenever there is something to take."""

    def __init__(
        self, wake: Callable[[], None], max_waiting_bytes: int = MAX_WAITING_BYTES, kernel: Kernel | None = None
    ) -> None:
        self._kernel = kernel or Inotify()
        self._wake = wake
        self._max_waiting_bytes = max_waiting_bytes
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._spilled = False
        self._lock = threading.Lock()
        self._loose_since: dict[int, float] = {}
        self.tree = self._kernel.tree
        self.unwatched = self._kernel.unwatched
        self.watch = self._kernel.watch
        self.overflows = 0
        self.events = 0
        self._thread = threading.Thread(target=self._read_forever, name="syncd-watch", daemon=True)
        self._thread.start()

    @property
    def foreign(self) -> int:
        """How many events were not of the tree."""
        return self._kernel.foreign

    def close(self) -> None:
        """Stop the thread, drop all watches."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        self._kernel.close()
        os.close(self._stop_fd)

    def take(self, now: float) -> News:
        """Everything that has happened since the last call."""
        news = News()
        with self._lock:
            buffers, self._waiting = self._waiting, deque()
            self._waiting_bytes = 0
            spilled, self._spilled = self._spilled, False
        for data in buffers:
            self.events += self._kernel.take(data, news, now)
        if spilled:
            news.overflowed = True
        if news.overflowed:
            self.overflows += 1
        self._kernel.all_taken(news.overflowed, now)
        self._drop_loose(now)
        return news

    # -- the owner's side

    def _drop_loose(self, now: float) -> None:
        """Take away the watches of directories that have had no place for LOOSE_S: moved out of the tree."""
        loose = self.tree.loose()
        if not loose and not self._loose_since:
            return
        self._loose_since = {wd: self._loose_since.get(wd, now) for wd in loose}
        for wd, since_s in self._loose_since.items():
            if now - since_s > LOOSE_S:
                for below in list(self.tree.below(wd)):
                    self._kernel.unwatch(below)

    # -- the reading thread's side

    def _read_forever(self) -> None:
        poll = select.poll()
        fd = self._kernel.fileno()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        while True:
            ready = {ready_fd for ready_fd, _ in poll.poll()}
            if self._stop_fd in ready:
                return
            try:
                data = os.read(fd, _READ_BYTES)
            except BlockingIOError:
                continue
            if not self._kernel.concerns(data):
                # Others are busy in the same file system, which is no reason to be it too.
                time.sleep(_FOREIGN_PAUSE_S)
                continue
            if len(data) > _BURST_BYTES:
                # The kernel's queue takes 80 ms of the fastest burst. Meanwhile it merges equal events, and the owner
                # gets the interpreter instead of being woken for every one.
                time.sleep(_BURST_PAUSE_S)
            with self._lock:
                if self._waiting_bytes + len(data) > self._max_waiting_bytes:
                    self._waiting.clear()
                    self._waiting_bytes = 0
                    self._spilled = True
                else:
                    self._waiting.append(data)
                    self._waiting_bytes += len(data)
            self._wake()


class Inotify:
    """One inotify instance with a watch per directory: see `Kernel`."""

    def __init__(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise WatchError(
                    "no inotify instance is left for this user", "raise the sysctl fs.inotify.max_user_instances"
                ) from error
            raise WatchError(f"inotify cannot be used ({error.strerror})", "check the kernel and the unit") from error
        self._decoder = Decoder()
        self._moves = Moves()
        self._detached: dict[int, int] = {}
        self.tree = WatchTree()
        self.unwatched: dict[bytes, str] = {}

    @property
    def foreign(self) -> int:
        """None: only what is in the tree is watched."""
        return 0

    def concerns(self, data: bytes) -> bool:
        """See `Kernel`."""
        return True

    def fileno(self) -> int:
        """See `Kernel`."""
        return int(self._inotify.fileno())

    def close(self) -> None:
        """Drop all watches."""
        self._inotify.close()

    def watch(self, fd: int, parent_wd: int | None, name: bytes, path: bytes) -> tuple[int | None, bool]:
        """See `Kernel`."""
        mask = ROOT_MASK if not path else DIRECTORY_MASK
        try:
            # By descriptor, so that it is the very directory that was opened, whatever its name leads to by now.
            wd: int = self._inotify.add_watch(f"/proc/self/fd/{fd}", mask)
        except OSError as error:
            sysctl = "fs.inotify.max_user_watches is used up" if error.errno == errno.ENOSPC else ""
            self.unwatched[path] = sysctl or os.strerror(error.errno or 0)
            return None, False
        if self.unwatched:
            self.unwatched.pop(path, None)
        fresh = wd not in self.tree
        if not path:
            self.tree.place_root(wd)
        elif parent_wd is not None:
            self.tree.place(wd, parent_wd, name)
        elif fresh:
            # Its parent could not be watched, so it has no place and no events of it would be understood.
            self.unwatch(wd)
            self.unwatched[path] = "its parent directory is not watched"
            return None, False
        return wd, fresh

    def unwatch(self, wd: int) -> None:
        """See `Kernel`."""
        self.tree.forget(wd)
        try:
            self._inotify.rm_watch(wd)
        except OSError as error:
            # EINVAL: the kernel dropped it by itself meanwhile, its IGNORED is on the way.
            if error.errno != errno.EINVAL:
                raise

    def take(self, data: bytes, news: News, now: float) -> int:
        """See `Kernel`."""
        events = self._decoder.feed(data)
        paths: dict[int, bytes | None] = {}
        for event in events:
            self._take_event(event, news, paths, now)
        return len(events)

    def all_taken(self, overflowed: bool, now: float) -> None:
        """See `Kernel`."""
        if overflowed:
            self._moves.forget()
        for event in self._moves.expired(now):
            self._detached.pop(event.cookie, None)

    def _take_event(self, event: Event, news: News, paths: dict[int, bytes | None], now: float) -> None:
        wd, mask, _, name = event
        if mask & (Q_OVERFLOW | IGNORED | UNMOUNT | DELETE_SELF | MOVE_SELF) or not name:
            self._take_special(event, news, paths)
            return
        above = paths.get(wd, b"/")
        if above == b"/":
            above = paths[wd] = self.tree.path(wd)
        if above is None:
            if mask & MOVED_TO:
                self._moves.moved_to(event, now)
            if mask & MOVED_FROM:
                self._moves.moved_from(event, now)
            return
        path = above + b"/" + name if above else name
        if mask & MOVED_FROM:
            self._moves.moved_from(event, now)
            if mask & ISDIR:
                self._loosen(event)
                paths.clear()
        elif mask & MOVED_TO:
            move = self._moves.moved_to(event, now)
            if move is not None and (source := self.tree.path(move.from_wd)) is not None:
                news.moves.append((source + b"/" + move.from_name if source else move.from_name, path))
            if mask & ISDIR:
                child_wd = self._detached.pop(event.cookie, None)
                if child_wd is not None and child_wd in self.tree:
                    self.tree.place(child_wd, wd, name)
                paths.clear()
        if mask & WROTE and not mask & ISDIR:
            news.written.append(path)
        if mask & ISDIR and mask & (MOVED_TO | CREATE):
            news.hints[path] = True
        else:
            news.hints.setdefault(path, False)

    def _take_special(self, event: Event, news: News, paths: dict[int, bytes | None]) -> None:
        wd, mask, _, _ = event
        is_root = wd == self.tree.root_wd
        if mask & Q_OVERFLOW:
            news.overflowed = True
        elif mask & (DELETE_SELF | MOVE_SELF | UNMOUNT | IGNORED) and is_root:
            what = "unmounted" if mask & UNMOUNT else "moved away" if mask & MOVE_SELF else "deleted"
            news.root_lost = news.root_lost or what
        if mask & IGNORED:
            self.tree.forget(wd)
            paths.clear()
        elif mask & ATTRIB and is_root:
            news.hints.setdefault(b"", False)

    def _loosen(self, event: Event) -> None:
        child_wd = self.tree.child(event.wd, event.name)
        if child_wd is not None:
            self.tree.loosen(child_wd)
            self._detached[event.cookie] = child_wd
