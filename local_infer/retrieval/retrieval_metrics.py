"""Prometheus metrics of retrieval: asked, why it abstained, how near answers were, what shadow answers proved."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class RetrievalMetrics:
    """The counters; label values are few fixed words."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.answered = Counter(
            "local_infer_retrieval_answers",
            "Questions answered by retrieval",
            ["source", "language"],
            registry=registry,
        )
        self.abstained = Counter(
            "local_infer_retrieval_abstentions",
            "Questions left unanswered by retrieval",
            ["why", "language"],
            registry=registry,
        )
        self.similarity = Histogram(
            "local_infer_retrieval_similarity",
            "Similarity of the stored question that answered",
            buckets=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01),
            registry=registry,
        )
        self.proofs = Counter(
            "local_infer_retrieval_proofs",
            "Shadow answers by whether they agreed",
            ["source", "outcome"],
            registry=registry,
        )
        self.full = Gauge(
            "local_infer_retrieval_full_ratio",
            "How full what is bounded is, 0 to 1: verified (answers), wordings (of stored questions)",
            ["store"],
            registry=registry,
        )
        self.entries = Gauge("local_infer_retrieval_entries", "Stored questions", ["source"], registry=registry)
