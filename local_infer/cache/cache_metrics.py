"""Prometheus metrics of the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from local_infer.cache.memory_cache import Ahead


class CacheMetrics:
    """Counters, looked up once for each set of labels; gauges are read at the scrape from `read` (see `watch`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lookups = Counter(
            "local_infer_cache_lookups",
            "Look-ups by what was found: fresh, revalidate, stale, miss, or why none was made (skipped)",
            ["found"],
            registry=registry,
        )
        self._forwards = Counter(
            "local_infer_cache_forwards",
            "Requests that went on to upstreams, by why (miss, stale, request, bypass)",
            ["why"],
            registry=registry,
        )
        self._ahead = Counter(
            "local_infer_cache_ahead",
            "Entries fetched ahead, by kind (refresh, follow, warm, behind: revalidation) and outcome: kept, not_kept, "
            "failed, skipped (too many at once); used: the first hit of one fetched ahead. Hit rate of prefetching: "
            "used / kept",
            ["kind", "outcome"],
            registry=registry,
        )
        self.coalesced = Counter(
            "local_infer_cache_coalesced", "Requests that shared one already under way", registry=registry
        )
        self._stored = Counter(
            "local_infer_cache_stored", "Complete answers: kept, or not", ["kept"], registry=registry
        )
        self.doubtful = Counter(
            "local_infer_cache_doubtful", "Requests not looked up: a name stands twice in them", registry=registry
        )
        self._gauges = {
            name.removeprefix("local_infer_cache_"): Gauge(name, text, registry=registry)
            for name, text in (
                ("local_infer_cache_memory_bytes", "Bytes of kept answers in memory"),
                ("local_infer_cache_entries", "Kept answers in memory"),
                ("local_infer_cache_evicted", "Answers that made room in memory since the start"),
                ("local_infer_cache_flights", "Requests under way that can be shared"),
                ("local_infer_cache_flight_bytes", "Bytes buffered for them"),
                ("local_infer_cache_disk_ok", "1: the disk or Redis works, 0: it does not"),
                ("local_infer_cache_disk_dropped", "Answers not written, because the disk was too slow or failed"),
                ("local_infer_cache_follow_places", "Requests whose continuations are remembered"),
            )
        }
        self._full = Gauge(
            "local_infer_cache_full_ratio",
            "How full what is bounded is, 0 to 1: memory, disk (as last written), keys (of requests known by their "
            "bytes), follow (what is remembered of continuations)",
            ["store"],
            registry=registry,
        )
        self._lookup_of = {
            found: self._lookups.labels(found) for found in ("fresh", "revalidate", "stale", "miss", "skipped")
        }
        self._forward_of = {why: self._forwards.labels(why) for why in ("miss", "stale", "request", "bypass")}

    def watch(self, read: Mapping[str, Callable[[], float]]) -> None:
        """Where each gauge is read."""
        for name, function in read.items():
            self._gauges[name].set_function(function)

    def watch_full(self, read: Mapping[str, Callable[[], float]]) -> None:
        """Where it is read how full each store is."""
        for store, function in read.items():
            self._full.labels(store).set_function(function)

    def looked_up(self, found: str) -> None:
        """A look-up."""
        self._lookup_of[found].inc()

    def forwarded(self, why: str) -> None:
        """A request that was not answered here."""
        self._forward_of[why].inc()

    def stored(self, kept: bool) -> None:
        """A complete answer that could have been kept."""
        self._stored.labels("yes" if kept else "no").inc()

    def ahead(self, kind: Ahead | str, outcome: str) -> None:
        """Something fetched ahead."""
        self._ahead.labels(kind, outcome).inc()
