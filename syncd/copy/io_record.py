"""Recording what a large batch brought: the index brought up to the disk for many paths at once, and the drafts of it."""

from __future__ import annotations

from collections.abc import Sequence

from syncd.model import Op
from syncd.source.io_scan import Disk
from syncd.store.io_index import Index
from syncd.store.io_journal import Draft


def record_upserts(index: Index, disk: Disk, paths: Sequence[bytes]) -> list[Draft] | None:
    """Index what is at `paths` now, each once, directories before what is in them; the drafts of the same.

    None when a directory above one of them is not indexed: then they are to be done one by one, in the same transaction.
    Where nothing is, nothing is done.
    """
    rows = list(disk.look_all(paths))
    try:
        index.put_all(rows)
    except KeyError:
        return None
    return [Draft(Op.UPSERT, path, row) for path, row in rows]
