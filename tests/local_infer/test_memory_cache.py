"""The cache in memory: accounting against a model, what goes first, what is hot; the filter."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from local_infer.cache.cache_entry import OVERHEAD_BYTES, Entry
from local_infer.cache.memory_cache import KeyFilter, MemoryCache
from local_infer.model import Endpoint
from tests.local_infer.cache_asks import cache_config


def key(n: int) -> bytes:
    return hashlib.blake2b(b"%d" % n, digest_size=32).digest()


def entry(n: int, body: bytes = b"", *, tenant: str = "t", born_s: float = 0.0, request: bytes = b"{}") -> Entry:
    return Entry(key(n), tenant, Endpoint.CHAT, "m", "east", "whole", born_s, (), body, request)


LIMIT = 4 * OVERHEAD_BYTES + 1000

steps = st.lists(st.tuples(st.sampled_from(["put", "hit", "drop"]), st.integers(0, 7), st.integers(0, 2 * LIMIT // 3)))


@given(steps)
def test_against_a_model(script: list[tuple[str, int, int]]) -> None:
    cache = MemoryCache(LIMIT)
    model: OrderedDict[bytes, Entry] = OrderedDict()
    for what, n, size in script:
        if what == "put":
            new = entry(n, bytes(size))
            kept = cache.put(new)
            model.pop(new.key, None)
            assert kept == (new.size_bytes <= LIMIT)
            if kept:
                model[new.key] = new
            while sum(each.size_bytes for each in model.values()) > LIMIT:
                model.popitem(last=False)
        elif what == "hit":
            slot = cache.hit(key(n), "t")
            assert (slot and slot.entry) == model.get(key(n))
            if slot:
                model.move_to_end(key(n))
        else:
            cache.drop(key(n))
            model.pop(key(n), None)
        assert cache.used_bytes == sum(each.size_bytes for each in model.values()) <= LIMIT
        assert len(cache) == len(model)


def test_another_tenant_gets_nothing_even_with_the_key() -> None:
    cache = MemoryCache(LIMIT)
    cache.put(entry(1, tenant="a"))
    assert cache.hit(key(1), "b") is None
    assert cache.hit(key(1), "a") is not None


def test_what_is_counted_is_what_it_takes() -> None:
    """The bytes counted are not fewer than those allocated, and not many more, for short answers as they are."""
    cache = MemoryCache(1 << 30)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(3000):
            text = f"{n:06d}"
            headers = ((f"content-type-{text}"[:12], f"application/json;{text}"), ("content-language", f"zh-{text}"))
            made = Entry(
                key(n), f"tenant-{text}", Endpoint.CHAT, f"model-{text}", f"east-{text}", "whole", n + 0.5, headers,
                b"x" * 400 + text.encode(), b"y" * 300 + text.encode(),
            )  # fmt: skip
            cache.put(made)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.5 * cache.used_bytes < taken <= cache.used_bytes


def test_hottest_of_a_tenant() -> None:
    cache = MemoryCache(1 << 20)
    for n in range(6):
        cache.put(entry(n, tenant="ab"[n % 2], request=b"" if n == 4 else b"{}"))
        for _ in range(n):
            cache.hit(key(n), "ab"[n % 2])
    assert [each.key for each in cache.hottest("a", 5)] == [key(2), key(0)]  # 4 is too long to be asked again
    assert [each.key for each in cache.hottest("b", 2)] == [key(5), key(3)]
    assert cache.hottest("c", 2) == []


def test_only_hot_entries_near_their_end_are_due_and_the_hottest_first() -> None:
    config = cache_config()  # fresh for 100 s
    cache = MemoryCache(1 << 20)
    for n, (hits, born_s) in enumerate([(5, 5.0), (1, 5.0), (9, 50.0), (7, 3.0), (8, -20.0)]):
        cache.put(entry(n, born_s=born_s))
        for _ in range(hits):
            cache.hit(key(n), "t")
    due = cache.due(100.0, config)
    assert due is not None
    assert due.key == key(3)
    cache.put(entry(3, born_s=100.0))  # refreshed: half of its hits stay, but it is not due
    due = cache.due(100.0, config)
    assert due is not None
    assert due.key == key(0)
    assert cache.hottest("t", 3)[2].key == key(0)


@given(st.sets(st.integers(0, 1000)))
def test_filter_never_denies_what_was_added(numbers: set[int]) -> None:
    keys = KeyFilter()
    keys.add(map(key, numbers))
    assert all(key(n) in keys for n in numbers)


def test_filter_denies_nearly_all_others() -> None:
    keys = KeyFilter()
    keys.add(map(key, range(20_000)))
    assert sum(key(n) in keys for n in range(20_000, 30_000)) <= 5
