"""Kept answers in memory: limited by bytes, least recently used go first, hits counted; and a filter of keys on disk."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

from core.config_infer import Cache
from local_infer.cache.cache_entry import Entry
from local_infer.cache.freshness import refresh_due

Ahead = Literal["", "refresh", "follow"]
"""Why an entry was fetched before anybody asked for it."""

HOT_HITS = 2
"""Hits since it was fetched that make an entry worth a refresh ahead."""

_LOOKED_AT = 1000
"""Most recently used entries that are looked at for refreshes: an entry with hits is among them, and the loop goes on."""


class Slot:
    """An entry and what is counted of it; `ahead` is cleared by the first hit."""

    __slots__ = ("ahead", "entry", "hits")

    def __init__(self, entry: Entry, hits: int, ahead: Ahead) -> None:
        self.entry = entry
        self.hits = hits
        self.ahead = ahead


class MemoryCache:
    """Entries by key. `used_bytes` never exceeds `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._slots: OrderedDict[bytes, Slot] = OrderedDict()
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._slots)

    def hit(self, key: bytes, tenant: str) -> Slot | None:
        """The entry of `key`, counted and now the most recently used."""
        slot = self._slots.get(key)
        if slot is None or slot.entry.tenant != tenant:
            return None
        slot.hits += 1
        self._slots.move_to_end(key)
        return slot

    def peek(self, key: bytes) -> Entry | None:
        """The entry of `key`, not counted."""
        slot = self._slots.get(key)
        return None if slot is None else slot.entry

    def put(self, entry: Entry, ahead: Ahead = "") -> bool:
        """Keep an entry in place of an older one of its key; False when it is larger than all there is room for.

        Half of the hits of the older one stay: what was hot yesterday must show it again.
        """
        hits = self.drop(entry.key)
        if entry.size_bytes > self.limit_bytes:
            return False
        self._slots[entry.key] = Slot(entry, hits // 2, ahead)
        self.used_bytes += entry.size_bytes
        self._shrink()
        return True

    def drop(self, key: bytes) -> int:
        """Forget an entry; its hits."""
        slot = self._slots.pop(key, None)
        if slot is None:
            return 0
        self.used_bytes -= slot.entry.size_bytes
        return slot.hits

    def _shrink(self) -> None:
        while self.used_bytes > self.limit_bytes:
            _, slot = self._slots.popitem(last=False)
            self.used_bytes -= slot.entry.size_bytes
            self.evicted += 1

    def hottest(self, tenant: str, count: int) -> list[Entry]:
        """Entries of a tenant that can be asked for again, most hits first."""
        own = ((slot.hits, slot.entry) for slot in self._slots.values() if slot.entry.tenant == tenant)
        best = heapq.nlargest(count, ((hits, entry.key, entry) for hits, entry in own if entry.request))
        return [entry for _, _, entry in best]

    def due(self, now: float, config: Cache) -> Entry | None:
        """The hottest entry that will soon not be fresh any more, and can be asked for again."""
        best: Slot | None = None
        for _, (_, slot) in zip(range(_LOOKED_AT), reversed(self._slots.items()), strict=False):
            if slot.hits < HOT_HITS or not slot.entry.request or (best is not None and slot.hits <= best.hits):
                continue
            if refresh_due(slot.entry.born_s, now, config):
                best = slot
        return None if best is None else best.entry


class KeyFilter:
    """Which keys may be on disk: a Bloom filter of fixed size, so that most requests need no look-up there.

    Keys are digests, so four pieces of them serve as four hash functions. With 500,000 keys 0.2% are taken for kept.
    """

    _BITS = 1 << 23

    def __init__(self) -> None:
        self._bits = bytearray(self._BITS // 8)

    def add(self, keys: Iterable[bytes]) -> None:
        """Take keys in; they are never taken out."""
        bits = self._bits
        for key in keys:
            for at in self._places(key):
                bits[at >> 3] |= 1 << (at & 7)

    def __contains__(self, key: bytes) -> bool:
        """Whether a key may have been taken in; False: it was not."""
        bits = self._bits
        return all(bits[at >> 3] & (1 << (at & 7)) for at in self._places(key))

    def _places(self, key: bytes) -> tuple[int, int, int, int]:
        n = int.from_bytes(key[:16], "big")
        mask = self._BITS - 1
        return n & mask, n >> 32 & mask, n >> 64 & mask, n >> 96 & mask
