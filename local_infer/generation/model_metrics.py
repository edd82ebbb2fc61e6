"""Prometheus metrics of the local models: queue, batches, loads, memory; generations and their speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from local_infer.generation.child_wire import Done
from local_infer.model import Priority

_LOAD_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_RUN_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0)
_WAIT_BUCKETS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_SPEED_BUCKETS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class QueueMetrics:
    """Of the queue and the models behind it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.waiting = Gauge("local_infer_queue_waiting", "Waiting for a model", ["priority"], registry=registry)
        self.left = Counter(
            "local_infer_queue_left",
            "Waited in vain, by why (late, full, memory, load)",
            ["part", "why"],
            registry=registry,
        )
        self.wait_s = Histogram(
            "local_infer_queue_wait_seconds", "Time in the queue", ["part"], buckets=_WAIT_BUCKETS_S, registry=registry
        )
        self.batch = Histogram(
            "local_infer_model_batch",
            "Items of one model run",
            ["part"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.run_s = Histogram(
            "local_infer_model_run_seconds",
            "Time of one model run",
            ["part"],
            buckets=_RUN_BUCKETS_S,
            registry=registry,
        )
        self.loads = Counter(
            "local_infer_model_loads", "Models loaded, by outcome", ["part", "outcome"], registry=registry
        )
        self.load_s = Histogram(
            "local_infer_model_load_seconds",
            "Time to load and warm up",
            ["part"],
            buckets=_LOAD_BUCKETS_S,
            registry=registry,
        )
        self.unloads = Counter(
            "local_infer_model_unloads",
            "Models unloaded, by why (memory, idle, stop)",
            ["part", "why"],
            registry=registry,
        )
        self.loaded = Gauge("local_infer_model_loaded", "1: the model is in memory", ["part"], registry=registry)
        self.available = Gauge(
            "local_infer_memory_available_bytes", "Memory to be had, by host and cgroup", registry=registry
        )

    def watch(self, waiting: Callable[[Priority], int]) -> None:
        """Where the length of the queue is read at a scrape."""
        for priority in Priority:
            self.waiting.labels(priority.name.lower()).set_function(partial(waiting, priority))


class GenerationMetrics:
    """Of the processes that generate."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = Counter(
            "local_infer_generations", "Generations by how they ended (stop, length, cancelled, crashed, ...)",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.abstained = Counter(
            "local_infer_generation_abstentions",
            "Requests that were not generated for, by why",
            ["why"],
            registry=registry,
        )
        self.tokens = Counter("local_infer_generation_tokens", "Tokens read and written", ["kind"], registry=registry)
        self.speed = Histogram(
            "local_infer_generation_tokens_per_second", "Tokens written per second of a generation",
            buckets=_SPEED_BUCKETS, registry=registry,
        )  # fmt: skip
        self.first_s = Histogram(
            "local_infer_generation_first_piece_seconds", "From a slot to the first text", buckets=_WAIT_BUCKETS_S,
            registry=registry,
        )  # fmt: skip
        self.wait_s = Histogram(
            "local_infer_generation_wait_seconds",
            "Time until a slot was free",
            buckets=_WAIT_BUCKETS_S,
            registry=registry,
        )
        self.waiting = Gauge("local_infer_generation_waiting", "Waiting for a slot", registry=registry)
        self.busy = Gauge("local_infer_generation_busy", "Slots that generate", registry=registry)
        self.starts = Counter(
            "local_infer_generation_processes", "Processes started, by outcome (ready, refused, crashed)", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.kills = Counter(
            "local_infer_generation_kills",
            "Processes ended by force, by why (cancel, late)",
            ["why"],
            registry=registry,
        )

    def over(self, outcome: str) -> None:
        """A generation that ended without a Done."""
        self.ended.labels(outcome).inc()

    def done(self, done: Done) -> None:
        """A generation that came to its end, or was cancelled."""
        self.ended.labels(done.finish).inc()
        self.tokens.labels("prompt").inc(done.prompt_tokens)
        self.tokens.labels("completion").inc(done.completion_tokens)
        if done.time_s > 0 and done.completion_tokens:
            self.speed.observe(done.completion_tokens / done.time_s)
