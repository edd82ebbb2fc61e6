"""Counters of one serving thread: plain integers that only this thread writes, read by the metrics collector."""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

from dnsd.answer import Reply

LATENCY_BOUNDS_S = (20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3)

SAMPLE_EVERY = 16
"""One query in this many is timed; a power of two, so that the choice is one AND."""


class Key(NamedTuple):
    """What answers are counted by."""

    rcode: int
    quality: int
    ecs: bool
    truncated: bool


class Tally:
    """What one thread has done since it started."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.answers: dict[Key, int] = {}
        self.received = 0
        self.silent = 0
        """Queries that get no answer: too short, or responses themselves."""
        self.errors = 0
        """Queries that raised inside the server."""
        self.send_errors = 0
        self.connections = 0
        """TCP: accepted."""
        self.connections_open = 0
        self.connections_shed = 0
        """TCP: closed to make room for a new one."""
        self.timeouts = 0
        """TCP: closed because no whole query came, or an answer was not taken, in time."""
        self.latency_counts = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self.latency_sum_s = 0.0

    def count(self, reply: Reply) -> None:
        """Count one answer sent."""
        key = Key(reply.rcode, reply.quality, reply.ecs, reply.truncated)
        self.answers[key] = self.answers.get(key, 0) + 1

    def time(self, elapsed_s: float) -> None:
        """Count one timed query."""
        self.latency_counts[bisect_left(LATENCY_BOUNDS_S, elapsed_s)] += 1
        self.latency_sum_s += elapsed_s
