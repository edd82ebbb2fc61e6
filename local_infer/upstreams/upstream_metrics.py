"""Metrics of the upstreams for Prometheus. Labels are upstreams' names and fixed words, so their number is bounded."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_TTFB_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.5, 6.0, 12.0, 30.0, 120.0)

STATES: Mapping[str, int] = {"closed": 0, "half-open": 1, "open": 2, "ejected": 3, "limited": 4, "down": 5}
"""Values of the state gauge."""


class UpstreamMetrics:
    """All metrics of the upstreams in one registry; children are looked up once for each label set."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._attempts = Counter(
            "local_infer_upstream_attempts",
            "Requests to an upstream by outcome: ok, or why it failed; left: the client went away or a hedge won; "
            "no room: its long answer had none here",
            ["upstream", "outcome"],
            registry=registry,
        )
        self._ttfb_s = Histogram(
            "local_infer_upstream_ttfb_seconds",
            "From the request to the first event of a stream, or to the first byte of another answer",
            ["upstream", "lane"],
            buckets=_TTFB_BUCKETS_S,
            registry=registry,
        )
        self._state = Gauge(
            "local_infer_upstream_state",
            "0 closed, 1 half-open, 2 open circuit, 3 ejected (slow), 4 rate limited, 5 down by probes and samples",
            ["upstream"],
            registry=registry,
        )
        self._in_flight = Gauge("local_infer_upstream_in_flight", "Requests under way", ["upstream"], registry=registry)
        self._probes = Counter(
            "local_infer_upstream_probes", "Probes by outcome", ["upstream", "outcome"], registry=registry
        )
        self._retries = Counter(
            "local_infer_upstream_retries",
            "Second tries: made, or refused by the budget",
            ["result"],
            registry=registry,
        )
        self._hedges = Counter(
            "local_infer_upstream_hedges",
            "Hedges: won, lost, or refused by the budget; requests beside an exploring one count too",
            ["result"],
            registry=registry,
        )
        self._explored = Counter(
            "local_infer_upstream_explored",
            "Requests to an upstream to know what it takes: ok, overtaken by the best, error, failed, left",
            ["upstream", "outcome"],
            registry=registry,
        )
        self._cuts = Counter(
            "local_infer_upstream_cut_streams",
            "Streams cut in the middle, by how they ended: error, resumed, complete; without_done: whole, [DONE] was ours",
            ["upstream", "ended"],
            registry=registry,
        )
        self._children: dict[tuple[str, ...], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}

    def attempted(self, upstream: str, outcome: str) -> None:
        """One attempt is over."""
        self._count(self._attempts, "attempt", upstream, outcome)

    def began(self, upstream: str, lane: str, ttfb_s: float) -> None:
        """An answer began after so many seconds."""
        child = self._histograms.get((upstream, lane))
        if child is None:
            child = self._histograms[upstream, lane] = self._ttfb_s.labels(upstream, lane)
        child.observe(ttfb_s)

    def probed(self, upstream: str, outcome: str) -> None:
        """One probe is over."""
        self._count(self._probes, "probe", upstream, outcome)

    def retried(self, result: str) -> None:
        """`made` or `refused`."""
        self._count(self._retries, "retry", result)

    def hedged(self, result: str) -> None:
        """`won`, `lost` or `refused`."""
        self._count(self._hedges, "hedge", result)

    def explored(self, upstream: str, outcome: str) -> None:
        """`ok`, `overtaken` (by the best), `error` or `failed` (the best was asked then), or `left` (by the client)."""
        self._count(self._explored, "explored", upstream, outcome)

    def cut(self, upstream: str, ended: str) -> None:
        """A stream was cut: `error`, `resumed` or `complete`; or `without_done`: it was whole, but did not say so."""
        self._count(self._cuts, "cut", upstream, ended)

    def set_state(self, upstream: str, state: str, in_flight: int) -> None:
        """The state by its word, and how many requests are under way."""
        self._state.labels(upstream).set(STATES[state])
        self._in_flight.labels(upstream).set(in_flight)

    def forget(self, upstream: str) -> None:
        """It is not configured any more."""
        self._state.remove_by_labels({"upstream": upstream})
        self._in_flight.remove_by_labels({"upstream": upstream})

    def _count(self, counter: Counter, kind: str, *labels: str) -> None:
        child = self._children.get((kind, *labels))
        if child is None:
            child = self._children[kind, *labels] = counter.labels(*labels)
        child.inc()
