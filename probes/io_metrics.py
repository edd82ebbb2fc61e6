"""The agent's metrics for Prometheus; no label names a mirror, so their number does not grow with the service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_RTT_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0)
_LAG_BUCKETS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class AgentMetrics:
    """All metrics of one agent in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.probes = Counter(
            "nearpath_probe", "Probes by outcome: ok, lost, local (this host could not make it)", ["kind", "result"],
            registry=registry,
        )  # fmt: skip
        self.rtt_s = Histogram(
            "nearpath_probe_rtt_seconds", "RTT of answered probes", ["kind"], buckets=_RTT_BUCKETS_S, registry=registry
        )
        self.start_lag_s = Histogram(
            "nearpath_probe_start_lag_seconds",
            "How late probes started; above 0.1 s raise `concurrency`",
            buckets=_LAG_BUCKETS_S,
            registry=registry,
        )
        self.targets = Gauge("nearpath_agent_targets", "Targets to probe", registry=registry)
        self.spooled = Gauge("nearpath_agent_spool_samples", "Samples not yet with the appliance", registry=registry)
        self.dropped = Gauge(
            "nearpath_agent_spool_dropped_samples", "Samples given up since the spool was made", registry=registry
        )
        self.spool_works = Gauge("nearpath_agent_spool_works", "1 while the spool can be written", registry=registry)
        self.delivered = Counter("nearpath_agent_delivered_samples", "Samples acknowledged", registry=registry)
        self.failures = Counter(
            "nearpath_agent_appliance_failures", "Failed calls to the appliance", ["call", "reason"], registry=registry
        )
        self.delivery_age_s = Gauge(
            "nearpath_agent_last_delivery_age_seconds", "Time since samples were acknowledged", registry=registry
        )
        self.targets_age_s = Gauge(
            "nearpath_agent_targets_age_seconds", "Time since the appliance confirmed the targets", registry=registry
        )
