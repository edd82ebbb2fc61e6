"""A tree at its origin: the thread that watches it, and the task that signs its root when it has come to rest."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

from core.config_sync import Tree
from core.errors import NearpathError
from core.exclude import Exclude
from core.io_log import get_logger
from syncd.source.io_fanotify import fanotify_problem
from syncd.source.io_scrub import Scrubber
from syncd.source.io_seal import Sealer
from syncd.source.io_source import SourceStatus, SourceTree, State
from syncd.store.io_offer import Freshness, Offer
from syncd.store.io_signer import read_key
from syncd.store.io_store import StoreBusy, StoreError
from syncd.store.signed_root import Root, public_key

REOPEN_S = 5.0
"""After a tree that could not be opened (not mounted, say) is tried again."""
REST_S = 0.3
"""A root is signed when nothing came for so long,"""
MAX_UNSIGNED_S = 2.0
"""or this long after the first change that it does not cover."""
BURST = 10_000
"""With so many changes that it does not cover, hashing them takes long, and from children who are fetching them:"""
BURST_REST_S = 3.0
MAX_BURST_UNSIGNED_S = 20.0
"""then it waits for a longer rest, and for longer."""
PROOF_GAP_S = 0.2
"""Between roots that children want at once: several that ask one after the other get the same one. Where hashing takes
longer than this, as much time as it took: half of the ledger's time is left for answers."""
MAX_AHEAD_S = 1.0
"""And where the versions, which are seconds, run ahead of the clock: one a second in the long run."""
TRIM_EVERY_S = 600.0

_log = get_logger("origin")


class Origin:
    """See the module. `start` raises NearpathError only for what will not mend itself; the rest shows in `status`."""

    def __init__(self, name: str, tree: Tree, store: Path, key_file: Path) -> None:
        self.name = name
        self.tree = tree
        self.status = SourceStatus()
        self.root: Root | None = None
        self.entries = 0
        self.watch: Literal["inotify", "fanotify"] = "inotify"
        self._exclude = Exclude(tree.exclude)
        self.offer = Offer(store, self.freshness, self._served_path, self._exclude)
        self._store = store
        self._seed = read_key(key_file)
        self._stop = threading.Event()
        self._source: SourceTree | None = None
        self._accept = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name=f"origin-{name}", daemon=True)
        self._changed = asyncio.Event()
        self._signer: asyncio.Task[None] | None = None
        self._ready_s = time.monotonic()
        self._was_ready = False
        self._signed = 0
        """the sequence number up to which a root was signed"""
        self._signed_s = -PROOF_GAP_S
        self._gap_s = PROOF_GAP_S
        self.sealer = Sealer(name, store, self._scrubbed, self._on_sealed) if tree.contents == "signed" else None
        # Wrong content here is only told: nobody knows better.
        self.scrubber = Scrubber(name, store, self._scrubbed, tree.scrub, lambda _path: None, by_inode=False)

    async def start(self) -> None:
        """Begin to watch. StoreBusy when another daemon has the tree."""
        opened = self._loop.create_future()
        self._opened = opened
        self._thread.start()
        await opened
        self._signer = asyncio.create_task(self._sign_on_change(), name=f"sign-{self.name}")
        self.scrubber.start()
        if self.sealer is not None:
            self.sealer.start()

    async def stop(self) -> None:
        """Stop watching; everything that was noticed and has settled is in the journal."""
        await asyncio.to_thread(self.scrubber.stop)
        if self.sealer is not None:
            await asyncio.to_thread(self.sealer.stop)
        if self._signer is not None:
            self._signer.cancel()
            await asyncio.gather(self._signer, return_exceptions=True)
        self._stop.set()
        if self._source is not None:
            self._source.wake()
        await asyncio.to_thread(self._thread.join)
        await self.offer.close()

    def accept(self) -> None:
        """Take what is there now for the tree, though it is another directory, or empty; NearpathError if it is well."""
        if self.status.state is not State.ROOT_LOST:
            raise NearpathError(
                f"there is nothing to accept: tree {self.name} has its directory",
                "`syncd status` says what it waits for",
            )
        if (source := self._source) is not None:
            source.accept()
        else:
            self._accept.set()

    def sweep(self) -> None:
        """Look at every name."""
        if self._source is not None:
            self._source.sweep()
            self._source.wake()

    @property
    def is_ready(self) -> bool:
        """Whether the journal tells all that the tree holds, and whatever comes."""
        return self.status.state is State.READY

    def freshness(self) -> Freshness:
        """An origin is behind only while it cannot look at its own tree."""
        if self.is_ready:
            self._ready_s = time.monotonic()
        return Freshness(
            0.0 if self.is_ready else time.monotonic() - self._ready_s, self.root.version if self.root else 0
        )

    def public_key(self) -> str:
        """What children have to put into their configuration."""
        return public_key(self._seed).hex()

    def _on_sealed(self) -> None:
        """From the sealer's thread: the journal has grown without the owner of the tree."""
        if (source := self._source) is not None:
            source.wake()

    def _scrubbed(self) -> str | None:
        return self.tree.path if self.is_ready else None

    def _served_path(self) -> str | None:
        # Before the first reading is through, children would take what is not indexed yet for deleted.
        return self.tree.path if self._was_ready else None

    # -- the watching thread

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                source = SourceTree(
                    os.fsencode(self.tree.path),
                    self._store,
                    cross_mounts=self.tree.cross_mounts,
                    accept_root=self._accept.is_set(),
                    watch=self._choose_watch(),
                    keep_links="hard-links" in self.tree.keep,
                    signed_contents=self.tree.contents == "signed",
                    exclude=self._exclude,
                    name=self.name,
                )
            except StoreBusy as error:
                self._tell_opened(error)
                return
            except Exception as error:
                # Whatever it was: a thread that ended would leave a tree that looks well and tells of nothing.
                if not isinstance(error, NearpathError):
                    _log.exception("watch_failed", tree=self.name, doing="it is opened again")
                state = State.STORE_FAILED if isinstance(error, StoreError) else State.ROOT_LOST
                self.status = SourceStatus(state, str(error))
                self._tell_opened(None)
                self._stop.wait(REOPEN_S)
                continue
            self._accept.clear()
            self._source = source
            self._tell_opened(None)
            try:
                self._own(source)
            except Exception:
                # Whatever it was: the journal is consistent, and a new start looks at everything.
                _log.exception("watch_failed", tree=self.name, doing="the tree is looked at anew")
                self._stop.wait(REOPEN_S)
            finally:
                self._source = None
                source.close()

    def _choose_watch(self) -> Literal["inotify", "fanotify"]:
        """fanotify where it is asked for, or to be had; why not is shown. It sees one file system only."""
        if self.tree.watch == "inotify" or (self.tree.watch == "auto" and self.tree.cross_mounts):
            return "inotify"
        problem = fanotify_problem(os.fsencode(self.tree.path))
        if problem and self.tree.watch == "fanotify":
            _log.warning("no_fanotify", tree=self.name, why=problem, doing="inotify is used")
        self.watch = "inotify" if problem else "fanotify"
        return self.watch

    def _own(self, source: SourceTree) -> None:
        swept_s = trimmed_s = time.monotonic()
        before: tuple[State, int] | None = None
        while not self._stop.is_set():
            source.step(1.0 if source.status.state is not State.READY else 30.0)
            told, self.status = self.status, source.status
            status = self.status
            self._log_trouble(told, status)
            if before != (now := (status.state, status.sequence)):
                before = now
                self._loop.call_soon_threadsafe(self._on_change, status)
            if time.monotonic() - swept_s > self.tree.sweep:
                swept_s = time.monotonic()
                source.sweep()
            if time.monotonic() - trimmed_s > TRIM_EVERY_S:
                trimmed_s = time.monotonic()
                with suppress(StoreError):
                    source.journal.trim(time.time())

    def _log_trouble(self, before: SourceStatus, status: SourceStatus) -> None:
        """What an operator should see without asking: once when it begins, with the first of many paths."""
        if status.unwatched and not before.unwatched:
            path, why = status.unwatched_paths[0]
            _log.warning("unwatched", tree=self.name, count=status.unwatched, first=os.fsdecode(path) or ".", why=why)
        if status.unreadable and not before.unreadable:
            path, why = status.unreadable_paths[0]
            _log.warning("unreadable", tree=self.name, count=status.unreadable, first=os.fsdecode(path), why=why)
        if status.state is State.ROOT_LOST and before.state is not State.ROOT_LOST:
            _log.error("root_lost", tree=self.name, why=status.why)

    def _tell_opened(self, error: NearpathError | None) -> None:
        def tell() -> None:
            if not self._opened.done():
                if error is not None:
                    self._opened.set_exception(error)
                else:
                    self._opened.set_result(None)

        self._loop.call_soon_threadsafe(tell)

    # -- on the event loop

    def _on_change(self, status: SourceStatus) -> None:
        if status.state is State.READY and not self._was_ready:
            self._was_ready = True
            _log.info("tree_ready", tree=self.name, sequence=status.sequence, watches=status.watches)
        self.offer.announce(status.sequence)
        self._changed.set()

    async def _sign_on_change(self) -> None:
        while True:
            await self._changed.wait()
            await self._rest()
            if self._was_ready:
                self._signed = self.status.sequence
                began_s = time.monotonic()
                try:
                    self.root = await self.offer.sign(self.name, self._seed, self.root)
                    self.entries = (await self.offer.run(lambda ledger: ledger.size())).entries
                except Exception as error:
                    # SQLite's too: were this to end, copies would go on and age without a word here.
                    _log.error("root_not_signed", tree=self.name, why=str(error) or repr(error))
                    await asyncio.sleep(REOPEN_S)
                    self._changed.set()
                self._signed_s = time.monotonic()
                ahead_s = self.root.version - time.time() if self.root is not None else 0.0
                self._gap_s = max(PROOF_GAP_S, self._signed_s - began_s, min(ahead_s, MAX_AHEAD_S))

    async def _rest(self) -> None:
        """Wait until a root is worth its while: for quiet, but not for too long; for a child that wants one hardly."""
        began_s = time.monotonic()
        wanted = self.offer.proof_wanted
        while not wanted.is_set():
            is_burst = self._was_ready and self.status.sequence - self._signed >= BURST
            if time.monotonic() - began_s >= (MAX_BURST_UNSIGNED_S if is_burst else MAX_UNSIGNED_S):
                return
            self._changed.clear()
            if not await _either(self._changed, wanted, BURST_REST_S if is_burst else REST_S):
                return
        await asyncio.sleep(max(0.0, self._signed_s + self._gap_s - time.monotonic()))
        self._changed.clear()


async def _either(first: asyncio.Event, second: asyncio.Event, within_s: float) -> bool:
    """Wait until one of both is set; False when none is in time."""
    tasks = [asyncio.ensure_future(event.wait()) for event in (first, second)]
    try:
        done, _ = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return bool(done)
