"""Prometheus metrics of syncd, collected from a snapshot when they are asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syncd.copy.child_status import Activity
from syncd.source.io_source import State

if TYPE_CHECKING:
    from syncd.io_daemon import Daemon

STATES = tuple(dict.fromkeys([state.value for state in State] + [activity.value for activity in Activity]))

_OF_ALL = (
    ("syncd_lag_seconds", "how far the tree is behind its origin at most; absent while that is not known", "lag_s"),
    ("syncd_version", "version of the content, in seconds since 1970", "version"),
    ("syncd_entries", "entries of the tree", "entries"),
    ("syncd_sequence", "last number of the tree's journal here", "sequence"),
    ("syncd_free_bytes", "free space of the tree's file system", "free_bytes"),
)
_OF_COPIES = (
    ("syncd_bytes", "bytes of the files of a copy", "bytes"),
    ("syncd_left_out_entries", "entries that the origin has and `exclude` leaves out here", "left_out_entries"),
    ("syncd_left_out_bytes", "bytes of the files that `exclude` leaves out here", "left_out_bytes"),
    ("syncd_behind_changes", "changes at the parent that are not published here", "behind"),
    ("syncd_failed_paths", "changes that wait because a file could not be fetched", "waiting"),
    ("syncd_refused_paths", "paths that are not published, such as symlinks that leave the tree", "refused_paths"),
)
_OF_ORIGINS = (
    ("syncd_watches", "directories watched", "watches"),
    ("syncd_unwatched", "directories that cannot be watched and are read from time to time", "unwatched"),
    ("syncd_unreadable_files", "files of the tree that cannot be read for the children, at most 1,000", "unreadable"),
    ("syncd_skipped_paths", "names that are not replicated: devices, sockets, fifos, at most 1,000", "skipped"),
    ("syncd_settling_paths", "paths that changed just now, before they are looked at", "waiting"),
)
_COUNTED_OF_COPIES = (
    ("syncd_fetched_bytes_total", "bytes of files fetched", "fetched_bytes"),
    ("syncd_fetched_files_total", "files fetched", "fetched_files"),
    ("syncd_published_steps_total", "steps published: files put, moved, deleted", "published"),
    ("syncd_differences_total", "differences found by comparisons with the parent", "differences_found"),
)
_COUNTED_OF_ORIGINS = (("syncd_overflows_total", "overflows of the kernel's queue of events", "overflows"),)
_SCRUBBED = (
    ("syncd_scrubbed_bytes_total", "bytes of contents read again", "bytes"),
    ("syncd_scrubbed_files_total", "files whose contents were read again", "files"),
    ("syncd_scrub_wrong_files_total", "files whose content was not what it had been", "found"),
)
_UNKNOWN_S = 5 * 365 * 86400.0


def make_registry(daemon: Daemon) -> CollectorRegistry:
    """A registry with everything that is worth a graph or an alert."""
    registry = CollectorRegistry()
    registry.register(_Collector(daemon))
    return registry


class _Collector(Collector):
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect during the start."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        return families(self._daemon.snapshot(), time.time())


def families(snapshot: dict[str, Any], now_wall_s: float) -> Iterator[Metric]:
    """The metrics of a snapshot; `now_wall_s` for the ages of children."""
    trees: dict[str, dict[str, Any]] = snapshot["trees"]
    copies = {name: tree for name, tree in trees.items() if tree["role"] == "copy"}
    origins = {name: tree for name, tree in trees.items() if tree["role"] == "origin"}
    yield GaugeMetricFamily("syncd_ready", "1 when every tree can be served", value=int(not snapshot["not_ready"]))
    for which, kind, rows in (
        (trees, GaugeMetricFamily, _OF_ALL),
        (copies, GaugeMetricFamily, _OF_COPIES),
        (origins, GaugeMetricFamily, _OF_ORIGINS),
        (copies, CounterMetricFamily, _COUNTED_OF_COPIES),
        (origins, CounterMetricFamily, _COUNTED_OF_ORIGINS),
    ):
        for name, text, key in rows:
            yield _family(kind(name, text, labels=["tree"]), which, key)
    scrubs = {name: tree["scrub"] for name, tree in trees.items()}
    for name, text, key in _SCRUBBED:
        yield _family(CounterMetricFamily(name, text, labels=["tree"]), scrubs, key)
    yield from _states(trees, copies)
    yield from _children(trees, now_wall_s)
    yield from _pushes(trees)
    appliance = snapshot["appliance"]
    if appliance is not None and appliance["delivered_s_ago"] is not None:
        yield GaugeMetricFamily(
            "syncd_stamps_age_seconds",
            "since the appliance took this node's stamps",
            value=appliance["delivered_s_ago"],
        )


def _family(
    family: GaugeMetricFamily | CounterMetricFamily, trees: dict[str, dict[str, Any]], key: str
) -> GaugeMetricFamily | CounterMetricFamily:
    for name, tree in trees.items():
        value = tree[key]
        if value is not None and not (key == "lag_s" and value > _UNKNOWN_S):
            family.add_metric([name], value)
    return family


def _states(trees: dict[str, dict[str, Any]], copies: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    state = GaugeMetricFamily("syncd_state", "1 for the state a tree is in", labels=["tree", "state"])
    for name, tree in trees.items():
        for word in STATES:
            state.add_metric([name, word], int(tree["state"] == word))
    yield state
    held = GaugeMetricFamily("syncd_deletes_held", "1 while deletes wait for `syncd approve`", labels=["tree"])
    parent = GaugeMetricFamily("syncd_parent", "1 for the parent that is followed", labels=["tree", "parent"])
    rtt = GaugeMetricFamily(
        "syncd_parent_rtt_seconds", "RTT to a parent, where there are several", labels=["tree", "parent"]
    )
    for name, tree in trees.items():
        pushes = [told["held"] for told in tree["pushes"].values()]
        if name in copies or pushes:
            held.add_metric([name], int(any([tree.get("held"), *pushes])))
    for name, tree in copies.items():
        for told in tree["parents"]:
            parent.add_metric([name, told["name"]], int(told["name"] == tree["parent"]))
            if told["srtt_ms"] is not None:
                rtt.add_metric([name, told["name"]], told["srtt_ms"] / 1000)
    yield from (held, parent, rtt)


def _pushes(trees: dict[str, dict[str, Any]]) -> Iterator[Metric]:
    labels = ["tree", "push"]
    behind = GaugeMetricFamily("syncd_push_behind_changes", "changes that a plain mirror has not got", labels=labels)
    failed = GaugeMetricFamily("syncd_push_failed", "1 while a plain mirror cannot be pushed to", labels=labels)
    for name, tree in trees.items():
        for push, told in tree["pushes"].items():
            behind.add_metric([name, push], told["behind"])
            failed.add_metric([name, push], int(bool(told["error"])))
    yield from (behind, failed)


def _children(trees: dict[str, dict[str, Any]], now_wall_s: float) -> Iterator[Metric]:
    labels = ["tree", "child"]
    behind = GaugeMetricFamily("syncd_child_behind_changes", "changes that a child has not published", labels=labels)
    seen = GaugeMetricFamily("syncd_child_seen_age_seconds", "since a child asked", labels=labels)
    sent = CounterMetricFamily("syncd_child_sent_bytes_total", "bytes of files sent to a child", labels=["child"])
    streams = GaugeMetricFamily("syncd_child_streams", "rsyncs that run for a child", labels=["child"])
    whole: dict[str, dict[str, Any]] = {}
    for name, tree in trees.items():
        for child, told in tree["children"].items():
            behind.add_metric([name, child], told["behind"])
            seen.add_metric([name, child], max(0.0, now_wall_s - told["seen_wall_s"]))
            whole[child] = told  # bytes and streams are of the child, whatever the tree
    for child, told in whole.items():
        sent.add_metric([child], told["sent_bytes"])
        streams.add_metric([child], told["streams"])
    yield from (behind, seen, sent, streams)
