"""What must change in a copy to be what its parent has: by comparing listings, and the names that are one file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from syncd.copy.io_copy import Copy
from syncd.model import Change, Op
from syncd.source.row import is_published, to_entry
from syncd.store.io_ledger import Ledger
from syncd.store.io_offer import Offer
from syncd.store.manifest import Comparison, Manifest, compare
from syncd.transfer.io_parent import Parent


async def compare_with(tree: str, offer: Offer, parent: Parent) -> Comparison:
    """What must change here, asked for level by level; within one snapshot of our own tree."""
    loop = asyncio.get_running_loop()

    def walk(ledger: Ledger) -> Comparison:
        # In the ledger's thread, which waits for the answers: our own children wait for it too, but not for long.
        with ledger.local() as local:
            return compare_in_thread(local, tree, parent, loop)

    return await offer.run(walk)


def compare_in_thread(local: Manifest, tree: str, parent: Parent, loop: asyncio.AbstractEventLoop) -> Comparison:
    """What must change in `local` to be what the parent has; in a thread beside `loop`, in which the parent is asked."""
    steps = compare(local)
    try:
        asked = next(steps)
        while True:
            answer = asyncio.run_coroutine_threadsafe(parent.listings(tree, asked), loop).result()
            asked = steps.send(answer)
    except StopIteration as done:
        found: Comparison = done.value
        return found


def link_changes(copy: Copy, groups: Iterable[tuple[bytes, ...]]) -> list[Change]:
    """Changes that make one file of each group of names, where the copy holds them as files of equal size and time.

    A listing does not tell hard links, since they would make the hash of a directory depend on others. In the thread that
    owns the copy.
    """
    changes: list[Change] = []
    for group in groups:
        first, *others = sorted(group)
        kept = copy.index.get(first)
        for other in others:
            child = copy.index.get(other)
            if kept is None or child is None or child.row.is_directory or child.row.inode == kept.row.inode:
                continue
            if not is_published(kept.row) or not is_published(child.row):
                continue
            if (child.row.size, child.row.mtime_ns, child.row.mode) == (
                kept.row.size,
                kept.row.mtime_ns,
                kept.row.mode,
            ):
                changes.append(Change(0, Op.UPSERT, other, to_entry(other, child.row), first))
    return changes
