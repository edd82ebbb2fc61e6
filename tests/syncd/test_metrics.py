"""What /metrics shows of a node, and that it is what the snapshot says."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from syncd.io_metrics import families
from tests.syncd.nodes import Node, free_port, running


def values(text: str) -> dict[tuple[str, ...], float]:
    """(name, labels in order of their names) -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def text_of(snapshot: dict[str, Any], now_wall_s: float) -> str:
    class _Given(Collector):
        def collect(self) -> Any:
            return families(snapshot, now_wall_s)

    registry = CollectorRegistry()
    registry.register(_Given())
    return generate_latest(registry).decode()


COPY: dict[str, Any] = {
    "role": "copy",
    "state": "held",
    "lag_s": 12.5,
    "version": 1795441615,
    "entries": 7,
    "sequence": 40,
    "free_bytes": 1000,
    "bytes": 99,
    "left_out_entries": 13,
    "left_out_bytes": 1300,
    "behind": 3,
    "waiting": 2,
    "refused_paths": 1,
    "fetched_bytes": 500,
    "fetched_files": 5,
    "published": 6,
    "differences_found": 4,
    "held": {"what": "x", "token": "12345678"},
    "parent": "tokyo",
    "parents": [{"name": "tokyo", "srtt_ms": 12.0}, {"name": "osaka", "srtt_ms": None}],
    "scrub": {"files": 8, "bytes": 800, "found": 1, "wrong": [], "why": "", "passes": 1},
    "pushes": {"away": {"to": "rsync://m/t", "behind": 4, "pushed": 9, "error": "refused", "held": None}},
    "children": {"edge": {"sequence": 30, "behind": 10, "seen_wall_s": 995.0, "sent_bytes": 77, "streams": 2}},
}


def test_copy() -> None:
    snapshot = {"not_ready": [], "appliance": {"delivered_s_ago": 1.5}, "trees": {"t": COPY}}
    found = values(text_of(snapshot, 1000.0))
    assert found["syncd_ready",] == 1
    assert found["syncd_lag_seconds", "t"] == 12.5
    assert found["syncd_state", "held", "t"] == 1
    assert found["syncd_state", "current", "t"] == 0
    assert found["syncd_deletes_held", "t"] == 1
    assert found["syncd_behind_changes", "t"] == 3
    assert found["syncd_failed_paths", "t"] == 2
    assert found["syncd_fetched_bytes_total", "t"] == 500
    assert found["syncd_differences_total", "t"] == 4
    assert found["syncd_parent", "tokyo", "t"] == 1
    assert found["syncd_parent", "osaka", "t"] == 0
    assert found["syncd_parent_rtt_seconds", "tokyo", "t"] == 0.012
    assert ("syncd_parent_rtt_seconds", "osaka", "t") not in found
    assert found["syncd_child_behind_changes", "edge", "t"] == 10
    assert found["syncd_child_seen_age_seconds", "edge", "t"] == 5
    assert found["syncd_child_sent_bytes_total", "edge"] == 77
    assert found["syncd_scrub_wrong_files_total", "t"] == 1
    assert found["syncd_push_behind_changes", "away", "t"] == 4
    assert found["syncd_push_failed", "away", "t"] == 1
    assert found["syncd_stamps_age_seconds",] == 1.5


def test_what_is_not_known_is_absent() -> None:
    unknown = COPY | {"lag_s": 10 * 365 * 86400.0, "free_bytes": None}
    snapshot = {"not_ready": ["tree t"], "appliance": None, "trees": {"t": unknown}}
    found = values(text_of(snapshot, 1000.0))
    assert ("syncd_lag_seconds", "t") not in found
    assert ("syncd_free_bytes", "t") not in found
    assert ("syncd_stamps_age_seconds",) not in found
    assert found["syncd_ready",] == 0


def test_of_a_running_origin(tmp_path: Path) -> None:
    node, port = Node("one", tmp_path / "one"), free_port()
    node.configure(watch="inotify")
    file = node.home / "syncd.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"metrics": {"listen": [f"127.0.0.1:{port}"]}}))
    (node.tree / "below").mkdir(parents=True)
    with running(node):
        node.until(lambda: node.status()["entries"] == 2, "its root is signed")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            found = values(answer.read().decode())
    assert found["syncd_state", "ready", "t"] == 1
    assert found["syncd_watches", "t"] == 2
    assert found["syncd_entries", "t"] == 2
    assert found["syncd_overflows_total", "t"] == 0
    assert found["syncd_lag_seconds", "t"] == 0
