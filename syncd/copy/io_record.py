"""Recording what a large batch brought: the index brought up to the disk for many paths at once, and the drafts of it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from syncd.model import Op
from syncd.publish.steps import Do, Step
from syncd.source.io_scan import Disk
from syncd.source.row import Row, Written, as_sure
from syncd.store.io_index import Index
from syncd.store.io_journal import Draft


def brought(steps: Iterable[Step], staged: Written) -> dict[bytes, Row]:
    """What is known, without a look, of the files in directories that the steps bring whole; to be called before they do.

    The rename of a directory changes nothing of what is in it; that of a file moves its ctime.
    """
    whole = {step.path for step in steps if step.do is Do.BRING}
    now_ns = time.time_ns()
    return {
        path: as_sure(row, now_ns)
        for path, row in staged.items()
        if row is not None and path.rpartition(b"/")[0] in whole
    }


def record_upserts(index: Index, disk: Disk, paths: Sequence[bytes], known: Mapping[bytes, Row]) -> list[Draft] | None:
    """Index what is at `paths` now, each once, directories before what is in them; the drafts of the same.

    The disk is asked about all but what is `known`. None when a directory above one of them is not indexed: then they are
    to be done one by one, in the same transaction. Where nothing is, nothing is done.
    """
    rows = list(disk.look_all([path for path in paths if path not in known]))
    if known:
        found = {**dict(rows), **known}
        rows = [(path, found[path]) for path in paths if path in found]
    try:
        index.put_all(rows)
    except KeyError:
        return None
    return [Draft(Op.UPSERT, path, row) for path, row in rows]
