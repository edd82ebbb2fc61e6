"""What a node tells the appliance of its trees: the stamp's words for what the node's own parts say of themselves."""

from __future__ import annotations

from core.messages import MAX_AGE_S, ReportedStamp, SyncState
from syncd.copy.child_status import Activity, ChildStatus
from syncd.store.signed_root import Root

BUSY_BYTES = 256 * 1024 * 1024
BUSY_FILES = 20_000
"""A batch with more than this still to come keeps disk and line busy: such a node should get fewer clients meanwhile."""

_SYNCING = frozenset({Activity.READING, Activity.RETRYING, Activity.FETCHING, Activity.PUBLISHING, Activity.COMPARING})


def origin_stamp(tree: str, is_ready: bool, root: Root | None, lag_s: float) -> ReportedStamp:
    """The stamp of a tree at its origin, which is behind only while it cannot be looked at."""
    state: SyncState = "fresh" if is_ready else "stalled" if root else "empty"
    return ReportedStamp(
        tree=tree,
        version=root.version if root else 0,
        root_hash=root.root_hash.hex() if root else "",
        lag_s=min(lag_s, MAX_AGE_S),
        state=state,
        busy=False,
        age_s=0.0,
    )


def child_stamp(tree: str, status: ChildStatus, lag_s: float, version: int) -> ReportedStamp:
    """The stamp of a copy, with at least `version` of the content and at most `lag_s` behind the origin."""
    return ReportedStamp(
        tree=tree,
        version=version,
        root_hash=status.root_hash,
        lag_s=min(lag_s, MAX_AGE_S),
        state=stamp_state(status),
        busy=is_busy(status),
        age_s=0.0,
    )


def stamp_state(status: ChildStatus) -> SyncState:
    """The state of a copy in a stamp."""
    if not status.has_content:
        return "empty"
    if status.activity is Activity.CURRENT:
        return "fresh"
    return "syncing" if status.activity in _SYNCING else "stalled"


def is_busy(status: ChildStatus) -> bool:
    """Whether the node takes in so much that it should get fewer clients."""
    now = status.fetching
    return now is not None and (now.size - now.done_bytes > BUSY_BYTES or now.files - now.done_files > BUSY_FILES)
