"""What the origin signed, as a copy was told by its parents, and whether the copy is that.

The newest signed root that was accepted is never gone back from. Whether it covers contents decides how the copy's own hash
is made, and that of what it serves.
"""

from __future__ import annotations

import time
from contextlib import suppress

from core.config_sync import Tree
from syncd.copy.doubt import Doubt
from syncd.copy.io_board import Board
from syncd.copy.unsigned import Unsigned, unsigned_tree
from syncd.store.io_ledger import Ledger
from syncd.store.io_offer import Offer
from syncd.store.manifest import ManifestError
from syncd.store.signed_root import Root, verify_root
from syncd.transfer.io_parent import Parent, ParentError

QUIET_POLLS = 2
"""Polls without news after which a hash that is not the signed one is taken for drift, not for a root still to come."""


class Signature:
    """See the module. `matched`: the root that the copy was last found equal to."""

    def __init__(self, name: str, tree: Tree, offer: Offer, board: Board) -> None:
        self.matched: Root | None = None
        self._name = name
        self._key = bytes.fromhex(tree.public_key or "")
        self._offer = offer
        self._board = board
        self._root: Root | None = None
        self._blob = b""
        self._quiet_polls = 0
        self._doubt = Doubt()
        self._unsigned = Unsigned()
        self._equal_at = 0
        """the sequence of the copy's own journal at which it was last found equal to a root"""

    @property
    def is_missing(self) -> bool:
        """Whether the parent has what the origin did not sign, as far as is known; or nothing was ever proved here."""
        return self.matched is None or self._unsigned.since_s is not None

    def news(self) -> None:
        """Changes came: what was unequal before says nothing."""
        self._quiet_polls = 0

    async def forget(self) -> None:
        """Accept any root that the origin signed, an older one too."""
        self._root = self.matched = None
        self._offer.forget_proof()
        await self._offer.run(lambda ledger: ledger.keep_root(b""))

    async def ask(self, parent: Parent) -> Root:
        """The parent's signed root; ManifestError when the origin did not sign it, or it is older than one before."""
        return await self._accept(await parent.root(self._name))

    async def _accept(self, blob: bytes) -> Root:
        last = self._root
        if last is None and (kept := await self._offer.run(Ledger.kept_root)):
            with suppress(ManifestError):
                last = verify_root(kept, self._key, self._name, None)
                self.matched = last
        root = verify_root(blob, self._key, self._name, last)
        if self._root is None or self._root.sealed != root.sealed:
            await self._offer.run(lambda ledger: ledger.set_sealed(root.sealed))
        self._root, self._blob = root, blob
        return root

    async def demand(self, parent: Parent) -> None:
        """`ask`, before anything is taken of this parent. One that has no root yet itself may begin a first sync."""
        try:
            await self.ask(parent)
        except ParentError:
            if await self.was_told():
                raise

    async def check(self, parent: Parent, quiet: bool, lag_s: float, tries: int) -> tuple[Root | None, bool]:
        """Compare hashes with the parent's signed root: (the root when the copy is that, whether something drifted).

        Twice unequal while nothing changes (`quiet`) is drift. `tries`: of the file that was tried most often, for which
        changes wait. ManifestError when the parent itself has what the origin did not sign.
        """
        root = await self.ask(parent)
        is_equal = await self._is_equal(root)
        if not quiet or not self._seems_drifted(is_equal, tries):
            return (root if is_equal else None), False
        differences = self._board.status.differences
        is_explained = bool(differences and self._board.status.waiting)  # by files that do not come
        if not is_equal and not is_explained and self._unsigned.compared(time.monotonic(), differences, lag_s):
            raise unsigned_tree(self._name, parent.url)
        return (root if is_equal else None), True

    async def prove(self, parent: Parent, blob: bytes, lag_s: float) -> Root | None:
        """Compare hashes with the root that stands, by the parent's word, for just what the copy has; None: it is another.

        ManifestError when the origin did not sign the root, or the parent's tree is for too long not what it signed.
        """
        root = await self._accept(blob)
        if await self._is_equal(root):
            return root
        if self._unsigned.compared(time.monotonic(), self._board.status.differences, lag_s):
            raise unsigned_tree(self._name, parent.url)
        return None

    def doubts(self, tries: int) -> bool:
        """Whether files that do not come may be gone at the parent; `tries`: of the one that was tried most often."""
        return self._doubt.arises(tries, time.monotonic())

    def distrust(self) -> None:
        """The parent is to prove what it sends before the copy is fresh again."""
        self._unsigned.since_s = time.monotonic()

    async def keep(self, root: Root) -> bool:
        """The copy is what the origin signed: our children may be told so. False when they are already."""
        blob = self._blob
        is_news = self.matched != root or self._board.status.root_hash != root.root_hash.hex()
        if is_news:
            await self._offer.run(lambda ledger: ledger.keep_root(blob))
            self.matched = root
            self._board.update(root_hash=root.root_hash.hex(), version=root.version)
        # Right behind it: who is told of this root by another way is not given an older one here.
        self._offer.prove(self._equal_at, blob)
        return is_news

    async def _is_equal(self, root: Root) -> bool:
        mine, sequence = await self._offer.run(Ledger.root_hash)
        if mine != root.root_hash:
            return False
        self._equal_at = sequence
        self._quiet_polls = 0
        self._unsigned.proved()
        return True

    async def was_told(self) -> bool:
        """Whether any root was accepted, in this run or before."""
        return self._root is not None or await self._offer.run(Ledger.kept_root) != b""

    def _seems_drifted(self, is_equal: bool, tries: int) -> bool:
        if self._board.status.waiting:
            return self.doubts(tries)
        if is_equal:
            return False
        self._quiet_polls = (self._quiet_polls + 1) % QUIET_POLLS
        return self._quiet_polls == 0
