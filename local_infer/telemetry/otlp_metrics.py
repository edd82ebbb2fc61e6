"""What became of what was to be told to the collector, for our own /metrics."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge


class OtlpMetrics:
    """Counters of the gateway's side and of the process that tells the collector."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.told = Counter(
            "local_infer_otlp_spans", "Spans by what became of them: exported, failed (collector), dropped (queue full)",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.metrics = Counter(
            "local_infer_otlp_metric_exports", "Metric exports to the collector by outcome: exported, failed",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.lost = Counter(
            "local_infer_otlp_lost_records",
            "Requests and attempts that are in no trace and no metric",
            registry=registry,
        )
        self.running = Gauge(
            "local_infer_otlp_running", "1: the process that tells the collector runs", registry=registry
        )

    def take(self, counts: Mapping[str, int]) -> None:
        """Add what the process counted since it last said so."""
        for outcome in ("exported", "failed", "dropped"):
            self.told.labels(outcome).inc(counts.get(f"spans_{outcome}", 0))
        for outcome in ("exported", "failed"):
            self.metrics.labels(outcome).inc(counts.get(f"metrics_{outcome}", 0))
