"""Bringing files from a parent into the stage: small ones by request, others by rsync, as fast as it is allowed now."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from core.config_sync import Tree
from core.errors import NearpathError
from core.io_log import get_logger
from syncd.copy.child_status import Fetching, Rate
from syncd.copy.io_copy import Copy
from syncd.copy.io_prove import prove_staged
from syncd.model import Entry
from syncd.publish.io_publish import DiskFull
from syncd.publish.plan import Fetch
from syncd.source.row import Written
from syncd.transfer.io_pace import Pace
from syncd.transfer.io_parent import ParentError, ParentRefuses
from syncd.transfer.io_rsync import Watcher, pull_all
from syncd.transfer.rsync import Arrived, Connector, Options, Progress, Result, Transport, Verdict
from syncd.transfer.small import divide
from syncd.transfer.streams import split

ASKED_BYTES = 8 << 20
"""Of small files that are asked for before it is looked again at what the limit is, where there is one at some time."""

PROBE_BYTES = 64 << 20
"""Of a disk that is said to be full, and by its numbers is not, so much is taken for a moment: there are quotas."""

_log = get_logger("intake")


class Files(Protocol):
    """Bring small files into the directory `stage`, and add what was written to `written`; what did not come, and why."""

    async def __call__(
        self, tree: str, entries: Sequence[Entry], stage: bytes, hard_links: bool, written: Written
    ) -> dict[bytes, str]: ...


class Supplier(Protocol):
    """Where the contents of files come from."""

    where: str
    """its address, for people"""

    @property
    def files(self) -> Files | None:
        """How small files are asked for; None where all come by rsync."""

    def connector(self, tree: str) -> Transport:
        """How rsync reaches the tree."""


class Bringer:
    """See the module: for one tree."""

    def __init__(self, name: str, tree: Tree, rate: Rate) -> None:
        self.name = name
        self.tree = tree
        self.pace = Pace(tree.bandwidth)
        self._rate = rate

    def options(self, copy: Copy) -> Options:
        """What rsync is to keep, to compare with, and to be limited to."""
        return replace(
            Options.keeping(self.tree.keep),
            compress=self.tree.compress,
            basis=os.fsdecode(copy.root),
            partial=copy.partial,
            limit_bytes_s=self.pace.now(),
        )

    async def bring(
        self, copy: Copy, parent: Supplier, fetches: Sequence[Fetch], fetching: Fetching, staged: Written
    ) -> dict[bytes, str]:
        """Bring these files into the stage; those that did not come, with the reason. Small ones are added to `staged`."""
        options = self.options(copy)
        files = parent.files
        small, large = divide(fetches, options) if files is not None else ((), tuple(fetches))
        failed: dict[bytes, str] = {}
        while small and files is not None:
            asked, small = self._first(small)
            entries = [fetch.entry for fetch in asked]
            try:
                failed |= await files(self.name, entries, copy.layout.stage, options.hard_links, staged)
                self._took(fetching, len(entries), sum(entry.size for entry in entries))
            except ParentRefuses:
                raise
            except ParentError as error:
                # An older parent, or one that serves under another user: rsync can do it all the same.
                _log.info("files_by_rsync", tree=self.name, why=str(error))
                for fetch in asked:
                    staged.pop(fetch.entry.path, None)
                small, large = (), (*asked, *small, *large)
            if small:
                small, more = divide(small, self.options(copy))
                large = (*large, *more)
        if large:
            failed |= await self._bring_large(copy, parent, large, fetching)
        return failed

    def _first(self, small: tuple[Fetch, ...]) -> tuple[tuple[Fetch, ...], tuple[Fetch, ...]]:
        """(small files to ask for now, those to ask for then): all at once, unless they may have to be slower then."""
        if self.pace:
            size = 0
            for at, fetch in enumerate(small, 1):
                size += fetch.entry.size
                if size >= ASKED_BYTES:
                    return small[:at], small[at:]
        return small, ()

    async def _bring_large(
        self, copy: Copy, parent: Supplier, large: Sequence[Fetch], fetching: Fetching
    ) -> dict[bytes, str]:
        whole: set[bytes] = set()

        def watch() -> Watcher:
            return _Meter(self._rate, fetching, whole)

        try:
            results = await self._pull(copy, parent.connector(self.name), large, watch)
        finally:
            fetching.under_way.clear()
        full = [result.text for result in results if result.verdict is Verdict.LOCAL]
        if full:
            has_room = await asyncio.to_thread(_has_room, copy, sum(fetch.entry.size for fetch in large))
            if has_room:
                what = f"rsync of tree {self.name} from {parent.where}: {full[0]}"
                raise ParentError(what, "there is room here: tried again")
        failed: dict[bytes, str] = {}
        for result in results:
            failed |= self.judge(result)
        proved = [f.entry for f in large if f.entry.digest is not None and f.entry.path not in failed]
        if proved:
            failed |= await asyncio.to_thread(prove_staged, copy.layout.stage, proved)
        return failed

    async def _pull(
        self, copy: Copy, where: Transport, large: Sequence[Fetch], watch: Callable[[], Watcher]
    ) -> list[Result]:
        """`pull_all`, no faster than is allowed at any moment of it."""
        options = self.options(copy)
        stage, batches, streams = os.fsdecode(copy.layout.stage), split(large, self.tree.streams), self.tree.streams
        if not self.pace:
            return await pull_all(where, options, stage, batches, watch, streams)
        if isinstance(where, Connector):
            file = os.path.join(copy.layout.work, b"purse")
            options = replace(options, limit_bytes_s=self.pace.slowest(), purse=os.fsdecode(file))
            async with self.pace.purse(file):
                return await pull_all(where, options, stage, batches, watch, streams)
        while True:
            limit = self.pace.now()
            options = replace(options, limit_bytes_s=limit)
            pulling = asyncio.create_task(pull_all(where, options, stage, batches, watch, streams))
            border = asyncio.create_task(self.pace.until_changed(limit))
            try:
                await asyncio.wait((pulling, border), return_when=asyncio.FIRST_COMPLETED)
                if pulling.done():
                    return pulling.result()
                # What is whole stays in the stage, what is not in rsync's partial directory: it goes on from there.
                _log.info("limit_changes", tree=self.name, before=limit, now=self.pace.now())
            finally:
                for task in (pulling, border):
                    task.cancel()
                    with suppress(asyncio.CancelledError, NearpathError):
                        await task

    def judge(self, result: Result) -> dict[bytes, str]:
        """Files that did not come, each with the reason; raises what is not about one file."""
        if result.verdict is Verdict.LOCAL:
            raise DiskFull(f"{self.tree.path}: {result.text}", "make space; syncd goes on by itself")
        if result.verdict is Verdict.FATAL:
            raise NearpathError(f"rsync of tree {self.name}: {result.text}", "see both nodes' rsync and configuration")
        if result.verdict is Verdict.AGAIN and not result.arrived:
            raise ParentError(f"rsync of tree {self.name}: {result.text}", "tried again")
        return result.failed | dict.fromkeys(result.vanished, "it vanished at the parent")

    def _took(self, fetching: Fetching, files: int, size: int) -> None:
        fetching.took(files, size)
        self._rate.add(size, time.monotonic())


def _has_room(copy: Copy, size: int) -> bool:
    """Whether the disk takes so many bytes, whatever rsync says: what a parent says comes out among its own words."""
    if copy.space().free_bytes < size:
        return False
    try:
        with tempfile.TemporaryFile(dir=copy.layout.work) as file:
            os.posix_fallocate(file.fileno(), 0, max(1, min(size, PROBE_BYTES)))
    except OSError:
        return False
    return True


class _Meter:
    """Counts what one rsync tells. Whole files once, though another rsync may tell of them again."""

    def __init__(self, rate: Rate, fetching: Fetching, whole: set[bytes]) -> None:
        self._rate = rate
        self._fetching = fetching
        self._whole = whole
        self._transferred = 0
        """bytes of whole files that count in what rsync calls the progress"""
        fetching.under_way[id(self)] = 0

    def __call__(self, what: Arrived | Progress) -> None:
        before = self._fetching.seen_bytes
        if isinstance(what, Arrived):
            if what.sent_bytes:
                self._transferred += what.size
                self._fetching.under_way[id(self)] = 0
            if what.path not in self._whole:
                self._whole.add(what.path)
                self._fetching.took(1, what.size)
        else:
            self._fetching.under_way[id(self)] = max(0, what.done_bytes - self._transferred)
        self._rate.add(self._fetching.seen_bytes - before, time.monotonic())
