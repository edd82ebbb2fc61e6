"""What a node offers its children of its trees: the ledgers behind the one port, asked without blocking the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.exclude import NOTHING, Exclude
from syncd.store.io_ledger import Ledger
from syncd.store.io_signer import sign
from syncd.store.io_store import StoreError
from syncd.store.signed_root import Root
from syncd.transfer import wire

T = TypeVar("T")

CURSORS_EVERY_S = 5.0
"""How often the cursors of children are stored: what a crash loses of them, the next poll says again."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How the content of a node stands to the origin's: at most `lag_s` behind, and not older than `version`."""

    lag_s: float
    version: int


class Offer:
    """One tree as children see it. `freshness` and `path` are asked at each answer; `path` None: nothing to serve yet.

    `exclude`: what is served to nobody, though it lies in the tree. `can_prove`: whether a root may come soon.
    `why_not`: why nothing of the tree is served, though it is here; empty when it is.
    """

    def __init__(
        self,
        store: Path,
        freshness: Callable[[], Freshness],
        path: Callable[[], str | None],
        exclude: Exclude = NOTHING,
        can_prove: Callable[[], bool] = lambda: True,
        why_not: Callable[[], str] = lambda: "",
    ) -> None:
        self._store = store
        self._freshness = freshness
        self.path = path
        self.exclude = exclude
        self._can_prove = can_prove
        self.why_not = why_not
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._ledger: Ledger | None = None
        self._last = -1
        self._news = asyncio.Event()
        self._proof: wire.Proof | None = None
        """the newest root, and where in the journal it stands; None until one was made, or found equal, in this run"""
        self._proof_news = asyncio.Event()
        self.proof_wanted = asyncio.Event()
        """a child waits for a newer one: for the owner of the tree, who clears it when it sees to that"""
        self._moved: dict[str, int] = {}
        self._stored_s = time.monotonic()
        self.seen: dict[str, tuple[int, float]] = {}
        """child -> (sequence, wall time)"""

    async def run(self, work: Callable[[Ledger], T]) -> T:
        """`work` with the ledger, in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._with_ledger, work)

    def _with_ledger(self, work: Callable[[Ledger], T]) -> T:
        if self._ledger is None:
            self._ledger = Ledger(self._store)
            self.seen = self._ledger.cursors()
        return work(self._ledger)

    async def close(self) -> None:
        """Store what is known of the children, and close the store."""
        if self._moved:
            await self._store_cursors()
        await asyncio.get_running_loop().run_in_executor(self._worker, self._close)
        self._worker.shutdown()

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def announce(self, sequence: int) -> None:
        """The journal is at `sequence` now: answer those who wait."""
        if sequence != self._last:
            self._last = sequence
            self._news.set()
            self._news = asyncio.Event()

    @property
    def last(self) -> int:
        """The newest sequence number, as far as it is known here."""
        return max(0, self._last)

    async def forget(self, node: str) -> bool:
        """Drop a child that is no more, so that the journal is not kept for it; False when it is not known."""
        known = self.seen.pop(node, None) is not None
        self._moved.pop(node, None)
        return await self.run(lambda ledger: ledger.forget(node)) or known

    async def changed(self, sequence: int) -> None:
        """Return once the journal is beyond `sequence`."""
        while self._last <= sequence:
            await self._news.wait()

    def prove(self, sequence: int, root: bytes) -> None:
        """The tree as it is at `sequence` of the journal has this signed root: answer those who wait."""
        self._proof = wire.Proof(sequence, root)
        self.proof_wanted.clear()
        self._proof_news.set()
        self._proof_news = asyncio.Event()

    def forget_proof(self) -> None:
        """What was signed counts no more."""
        self._proof = None

    async def proved(self, sequence: int) -> wire.Proof | None:
        """Return the newest root once one is known to stand at `sequence` of the journal or beyond, having asked for one.

        None when none can come soon: who asks is not kept waiting for what it may have meanwhile.
        """
        while self._proof is None or self._proof.sequence < sequence:
            if not self._can_prove():
                return None
            self.proof_wanted.set()
            await self._proof_news.wait()
        return self._proof

    async def sign(self, tree: str, seed: bytes, last: Root | None) -> Root:
        """Sign the tree as it is now, where its origin is here; see `io_signer.sign`."""
        root, blob = await self.run(lambda ledger: (sign(ledger, tree, seed, last), ledger.kept_root()))
        # Right behind it: who is told of this root by another way is not given an older one here.
        self.prove(root.sequence, blob)
        return root

    async def journal(
        self, after: wire.Cursor, limit: int, proof: wire.Proof | None = None
    ) -> wire.Batch | wire.Behind | None:
        """What came after the cursor `after`, at most up to `proof`; None while there is nothing to serve."""
        if self.path() is None:
            return None
        now = self._freshness()
        answer = await self.run(lambda ledger: ledger.page(after, limit, now.lag_s, now.version, proof))
        if isinstance(answer, wire.Batch):
            self._last = max(self._last, answer.last)
        return answer

    async def moved(self, node: str, cursor: wire.Cursor) -> None:
        """`node` has everything up to `cursor`."""
        self._moved[node] = cursor.sequence
        self.seen[node] = cursor.sequence, time.time()
        if time.monotonic() - self._stored_s >= CURSORS_EVERY_S:
            self._stored_s = time.monotonic()
            await self._store_cursors()

    async def _store_cursors(self) -> None:
        moved, self._moved = self._moved, {}

        def store(ledger: Ledger) -> None:
            for node, sequence in moved.items():
                ledger.moved(node, sequence)

        try:
            await self.run(store)
        except StoreError:
            # A full disk: the next poll of each says it again.
            self._moved = moved | self._moved


class Catalogue:
    """All offers of a node, as `io_serve.Source` wants them."""

    def __init__(self, offers: Mapping[str, Offer]) -> None:
        self.offers = offers

    async def root(self, tree: str) -> bytes | None:
        """The signed root."""
        offer = self.offers.get(tree)
        return (await offer.run(lambda ledger: ledger.kept_root()) or None) if offer else None

    async def journal(
        self, tree: str, after: wire.Cursor, limit: int, proof: wire.Proof | None = None
    ) -> wire.Batch | wire.Behind | None:
        """What came after `after`, at most up to `proof`."""
        offer = self.offers.get(tree)
        return await offer.journal(after, limit, proof) if offer else None

    async def proved(self, tree: str, sequence: int) -> wire.Proof | None:
        """Return the newest root once one stands at `sequence` or beyond; None when none can come soon."""
        return await self.offers[tree].proved(sequence)

    async def changed(self, tree: str, sequence: int) -> None:
        """Return once the journal is beyond `sequence`."""
        await self.offers[tree].changed(sequence)

    async def moved(self, tree: str, node: str, cursor: wire.Cursor) -> None:
        """`node` has published everything up to `cursor`."""
        await self.offers[tree].moved(node, cursor)

    async def listings(self, tree: str, paths: Sequence[bytes]) -> Sequence[bytes | None] | None:
        """Listings of the first so many of `paths`."""
        offer = self.offers.get(tree)
        if offer is None or offer.path() is None:
            return None
        return await offer.run(lambda ledger: ledger.listings(paths))

    async def links(self, tree: str) -> Sequence[tuple[bytes, ...]] | None:
        """The names of each file that has several."""
        offer = self.offers.get(tree)
        return await offer.run(Ledger.links) if offer is not None and offer.path() is not None else None

    async def path(self, tree: str) -> str | None:
        """Where what is published lies."""
        offer = self.offers.get(tree)
        return offer.path() if offer else None

    def why_not(self, tree: str) -> str:
        """Why nothing of it is served, though it is here."""
        offer = self.offers.get(tree)
        return offer.why_not() if offer else ""

    def exclude(self, tree: str) -> Exclude:
        """What of it is served to nobody."""
        offer = self.offers.get(tree)
        return offer.exclude if offer else NOTHING
