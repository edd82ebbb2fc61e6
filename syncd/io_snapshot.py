"""The state of a daemon as plain values, for `syncd status`, its control socket and metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from syncd.copy.child_status import ChildStatus, Rate
from syncd.copy.io_child import Follower
from syncd.node_status import is_busy, stamp_state
from syncd.source.io_origin import Origin
from syncd.transfer.io_lineage import shown
from syncd.transfer.io_push import PUSHED

if TYPE_CHECKING:
    from syncd.io_daemon import Daemon


def make_snapshot(daemon: Daemon) -> dict[str, Any]:
    """JSON-able values; times in seconds, sizes in bytes, paths as text."""
    trees: dict[str, Any] = {}
    for name, origin in daemon.origins.items():
        trees[name] = _origin(origin) | _around(daemon, origin)
    for name, follower in daemon.followers.items():
        trees[name] = _follower(daemon, name, follower) | _around(daemon, follower)
    return {
        "node": daemon.config.node,
        "config": str(daemon.file),
        "addresses": daemon.addresses,
        "up_s": round(time.time() - daemon.started_wall_s, 1),
        "trees": dict(sorted(trees.items())),
        "reload_error": daemon.reload_error,
        "appliance": daemon.appliance_status(),
        "not_ready": daemon.not_ready(),
    }


def _origin(origin: Origin) -> dict[str, Any]:
    status = origin.status
    return {
        "role": "origin",
        "path": origin.tree.path,
        "state": status.state.value,
        "why": status.why,
        "entries": origin.entries,
        "sequence": status.sequence,
        "waiting": status.waiting,
        "walking": status.walking,
        "watch": origin.watch,
        "watches": status.watches,
        "unwatched": status.unwatched,
        "unwatched_paths": _named(status.unwatched_paths),
        "skipped": status.skipped,
        "skipped_paths": _named(status.skipped_paths),
        "unreadable": status.unreadable,
        "unreadable_paths": _named(status.unreadable_paths),
        "overflows": status.overflows,
        "watch_limit_problem": status.watch_limit_problem,
        "troubles": list(status.troubles[:20]),
        "version": origin.root.version if origin.root else 0,
        "root_hash": origin.root.root_hash.hex() if origin.root else "",
        "sealed": bool(origin.root and origin.root.sealed),
        "sealing": _sealing(origin),
        "lag_s": round(origin.freshness().lag_s, 1),
        "public_key": origin.public_key(),
    }


def _named(paths: Iterable[tuple[bytes, str]]) -> list[dict[str, str]]:
    return [{"path": os.fsdecode(path) or ".", "why": why} for path, why in paths]


def _sealing(origin: Origin) -> dict[str, Any] | None:
    """How far the contents of a tree are read that its signature is to cover; None where it is not to."""
    if origin.sealer is None:
        return None
    status = origin.sealer.status
    return {"share": status.share, "unreadable": status.unreadable, "why": status.why}


def _follower(daemon: Daemon, name: str, follower: Follower) -> dict[str, Any]:
    status, fresh = follower.status, follower.freshness()
    return {
        "role": "copy",
        "path": follower.tree.path,
        "mode": follower.tree.mode,
        "state": status.activity.value,
        "stamp": stamp_state(status),
        "busy": is_busy(status),
        "why": status.why,
        "parent": status.parent,
        "parents": shown(daemon.lineage.standings.get(name, {})),
        "entries": status.entries,
        "bytes": status.bytes_,
        "left_out_entries": status.left_out[0],
        "left_out_bytes": status.left_out[1],
        "not_served": follower.why_not_served(),
        "behind": status.behind,
        "waiting": status.waiting,
        "published": status.published,
        "version": fresh.version,
        "root_hash": status.root_hash,
        "sealed": follower.is_sealed,
        "sequence": follower.offer.last,
        "lag_s": round(fresh.lag_s, 1) if status.has_content else None,
        "pinned": follower.pinned,
        "held": {"what": status.held.what, "token": status.held.token} if status.held else None,
        "fetching": _fetching(status, follower.totals.rate),
        "fetched_files": follower.totals.fetched_files,
        "fetched_bytes": follower.totals.fetched_bytes,
        "differences_found": follower.totals.differences,
        "current_asked_s": follower.current_asked_s,
        "troubles": [{"path": path, "why": why, "tries": tries} for path, why, tries in status.troubles],
        "refused": [{"path": os.fsdecode(path), "why": why} for path, why in status.refused_paths],
        "refused_paths": status.refused,
        "differences": status.differences,
        "compared_wall_s": status.compared_wall_s or None,
        "hook_failed": status.hook_failed,
    }


def _free_bytes(path: str) -> int | None:
    """What the file system of a tree has left for this user; None when it cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def _fetching(status: ChildStatus, rate: Rate) -> dict[str, Any] | None:
    """How far a batch is, or the whole of a first sync; None while nothing is fetched."""
    part, whole = status.fetching, status.whole
    shown = whole or part
    if shown is None:
        return None
    done_files, done_bytes = shown.done_files, shown.seen_bytes
    if whole is not None and part is not None:
        done_files, done_bytes = done_files + part.done_files, done_bytes + part.seen_bytes
    now = time.monotonic()
    rate_bytes_s = rate.bytes_s(now)
    left_s = max(0, shown.size - done_bytes) / rate_bytes_s if rate_bytes_s >= 1.0 else None
    return {
        "files": shown.files,
        "done_files": min(done_files, shown.files),
        "bytes": shown.size,
        "done_bytes": min(done_bytes, shown.size),
        "for_s": round(now - shown.since_s, 1),
        "rate_bytes_s": round(rate_bytes_s),
        "left_s": round(left_s, 1) if left_s is not None else None,
    }


def _scrub(part: Origin | Follower) -> dict[str, Any]:
    """What the slow reading of all contents did and found since the start."""
    status = part.scrubber.status
    return {
        "passes": status.passes,
        "first": status.first,
        "files": status.files,
        "bytes": status.bytes_,
        "found": status.found,
        "wrong": [{"path": os.fsdecode(path), "what": what} for path, what in status.wrong],
        "why": status.why,
    }


def _around(daemon: Daemon, part: Origin | Follower) -> dict[str, Any]:
    server = daemon.server
    return {
        "free_bytes": _free_bytes(part.tree.path),
        "scrub": _scrub(part),
        "pushes": {
            pusher.name: {
                "to": pusher.target.to,
                "pushed": pusher.pushed,
                "behind": max(0, part.offer.last - part.offer.seen.get(f"{PUSHED}{pusher.name}", (0, 0.0))[0]),
                "error": pusher.error,
                "held": {"what": pusher.held.what, "token": pusher.held.token} if pusher.held else None,
            }
            for pusher in daemon.pushers.get(part.name, ())
        },
        "children": {
            node: {
                "sequence": sequence,
                "behind": max(0, part.offer.last - sequence),
                "seen_wall_s": seen_s,
                "sent_bytes": server.sent_bytes[node] if server else 0,
                "streams": server.streams[node] if server else 0,
            }
            for node, (sequence, seen_s) in part.offer.seen.items()
            if not node.startswith(PUSHED)
        },
    }
