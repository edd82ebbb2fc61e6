"""Prometheus metrics of the ladder: which moves did not answer and why, and what was shown to the lower steps unseen."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class LadderMetrics:
    """Label values are few fixed words. What did answer is counted by the gateway's front (`local_infer_requests`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.passed = Counter(
            "local_infer_ladder_passed", "Steps that were tried and did not answer, by why", ["step", "why"],
            registry=registry,
        )  # fmt: skip
        self.degraded = Counter(
            "local_infer_ladder_degraded", "Marked answers by step and by why no upstream answered", ["step", "reason"],
            registry=registry,
        )  # fmt: skip
        self.nothing = Counter(
            "local_infer_ladder_nothing", "Requests that no step answered, by why no upstream did", ["reason"],
            registry=registry,
        )  # fmt: skip
        self.shadowed = Counter(
            "local_infer_ladder_shadows", "Healthy answers shown to the lower steps, by outcome", ["outcome"],
            registry=registry,
        )  # fmt: skip
