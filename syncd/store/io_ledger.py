"""The ledger of a tree: what its store tells others, while its owner writes. Journal pages, listings, the root's hash.

A connection of its own, so that children never wait for the owner of the tree and the owner never for them. Each answer
is made within one snapshot of the store: hashes, listings and the journal's position belong together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from syncd.model import Entry
from syncd.source.row import to_entry
from syncd.store.io_index import Child, Index, Size
from syncd.store.io_journal import CompareManifests, Journal
from syncd.store.io_store import SEALED, fact, open_store, set_fact, transaction
from syncd.store.manifest import Manifest
from syncd.transfer import wire

MAX_FOLLOWED = 50_000
"""With more changes than this since the last look, all hashes are computed again: it takes less time and memory."""


class Ledger:
    """See the module. For one thread at a time; `store` is opened when first used, and must exist by then."""

    def __init__(self, store: Path) -> None:
        self._db = open_store(store, exclusive=False)
        self._index = Index(self._db)
        self._journal = Journal(self._db)
        self._manifest = Manifest(self._listing)
        self._known: tuple[int, int] | None = None
        self.journal_id = self._journal.journal_id

    def close(self) -> None:
        """Close the store."""
        self._db.close()

    def page(
        self, after: wire.Cursor, limit: int, lag_s: float, version: int, proof: wire.Proof | None = None
    ) -> wire.Batch | wire.Behind:
        """What came after the cursor `after`, at most up to where `proof` stands, and then with it; see `Journal.read`."""
        found = self._journal.read(after.journal, after.sequence, limit, None if proof is None else proof.sequence)
        if isinstance(found, CompareManifests):
            return wire.Behind(wire.Cursor(self.journal_id, found.cursor), found.why)
        root = proof.root if proof is not None and proof.sequence == found.cursor else b""
        return wire.Batch(found.changes, wire.Cursor(self.journal_id, found.cursor), found.last, lag_s, version, root)

    def last(self) -> int:
        """The newest sequence number."""
        return self._journal.last()

    def moved(self, node: str, sequence: int) -> None:
        """`node` has published everything up to `sequence`."""
        self._journal.move_cursor(node, sequence, time.time())

    def cursors(self) -> dict[str, tuple[int, float]]:
        """Children: (sequence, wall time when it was last heard of)."""
        return self._journal.cursors()

    def forget(self, node: str) -> bool:
        """Drop a child that is no more; False when it is not known."""
        return self._journal.forget(node)

    def trim(self) -> int:
        """Drop changes that nobody needs any more; how many."""
        return self._journal.trim(time.time())

    def get(self, path: bytes) -> Child | None:
        """What the index has at `path`."""
        return self._index.get(path)

    def size(self) -> Size:
        """How much the tree holds; see `Index.size`."""
        return self._index.size()

    def root_hash(self) -> tuple[bytes, int]:
        """(hash of the whole tree, sequence number that it stands for)."""
        with self._snapshot() as last:
            return self._manifest.root_hash(), last

    def listings(self, paths: Sequence[bytes]) -> list[bytes | None]:
        """Listings of the first so many of `paths` that an answer holds; None for what is no directory."""
        found: list[bytes | None] = []
        total = 0
        with self._snapshot():
            for path in paths:
                found.append(self._manifest.listing_bytes(path))
                total += len(found[-1] or b"")
                if total > wire.MAX_LISTINGS_BYTES:
                    break
        return found

    @contextmanager
    def local(self) -> Iterator[Manifest]:
        """The manifest within one snapshot, to compare with another node's."""
        with self._snapshot():
            yield self._manifest

    def links(self) -> list[tuple[bytes, ...]]:
        """The names of each file that has several, as far as an answer holds them."""
        found: list[tuple[bytes, ...]] = []
        total = 0
        with self._snapshot():
            for names in self._index.link_groups():
                total += sum(len(name) + 1 for name in names)
                if total > wire.MAX_LINKS_BYTES:
                    break
                found.append(names)
        return found

    def paths_below(self, path: bytes) -> list[bytes]:
        """`path` and every path below it."""
        self._index.rolled_back()
        return [entry.path for entry in self._index.entries(path)]

    def kept_root(self) -> bytes:
        """The signed root that was stored last; b"" when there is none."""
        found = fact(self._db, "signed_root")
        return found if isinstance(found, bytes) else b""

    def keep_root(self, blob: bytes) -> None:
        """Store a signed root."""
        with transaction(self._db):
            set_fact(self._db, "signed_root", blob)

    def kept(self, name: str) -> bytes:
        """What `keep` stored under a name of the caller's own; b"" when there is nothing."""
        found = fact(self._db, f"kept:{name}")
        return found if isinstance(found, bytes) else b""

    def keep(self, name: str, value: bytes) -> None:
        """Store something small with the tree."""
        with transaction(self._db):
            set_fact(self._db, f"kept:{name}", value)

    def is_sealed(self) -> bool:
        """Whether hashes cover contents: see `set_sealed`."""
        return bool(fact(self._db, SEALED))

    def set_sealed(self, sealed: bool) -> None:
        """From now on hashes cover contents, or do not."""
        if self.is_sealed() == sealed:
            return
        with transaction(self._db):
            set_fact(self._db, SEALED, int(sealed))

    @contextmanager
    def _snapshot(self) -> Iterator[int]:
        """A read transaction with the manifest brought up to it; the journal's last sequence number."""
        self._db.execute("BEGIN")
        try:
            self._index.rolled_back()
            yield self._follow()
        except BaseException:
            # Hashes may be half computed: nothing is known of them.
            self._known = None
            raise
        finally:
            self._db.execute("COMMIT")

    def _follow(self) -> int:
        last, looked = self._journal.last(), int(fact(self._db, "quiet_looks") or 0)
        sealed = self.is_sealed()
        if self._known is None or self._known[1] != looked or self._manifest.sealed != sealed:
            self._manifest.sealed = sealed
            self._manifest.forget(b"")
        elif self._known[0] != last:
            changes = self._journal.since(self._known[0], MAX_FOLLOWED)
            if changes is None:
                self._manifest.forget(b"")
            else:
                for change in changes:
                    self._manifest.apply(change)
        self._known = last, looked
        return last

    def _listing(self, path: bytes) -> Iterator[Entry]:
        if not path:
            top = self._index.get(b"")
            if top is not None:
                yield to_entry(b"", top.row)
        number = self._index.number(path)
        if number is None:
            return
        prefix = path + b"/" if path else b""
        for name, child in self._index.children(number).items():
            yield to_entry(prefix + name, child.row, child.digest)
