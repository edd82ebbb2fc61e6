"""Where the time of a large batch goes: the stages from a write at the origin to the index of a child, one by one.

Run with `python -m bench.sync_stages [FILES]` (100,000 of 1 KB in directories of 100 by default). Every stage runs alone in
this process, over batches as the daemon makes them; what is printed is microseconds per file, and the sums of both ends.
A tool for whoever makes syncd faster; what users get is measured by `bench_sync`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from syncd.model import Entry, Op
from syncd.publish import io_steps
from syncd.publish.io_publish import Layout, begin, bring_whole, check_staged, finish, prepare, run, sweep
from syncd.publish.plan import make_plan
from syncd.publish.steps import Intent, Ranks, hold_back
from syncd.source.io_scan import Disk
from syncd.source.io_source import SourceTree
from syncd.source.row import to_entry
from syncd.store.io_index import Index
from syncd.store.io_journal import Draft, Journal, Page
from syncd.store.io_store import close_store, open_store, transaction
from syncd.transfer import wire
from syncd.transfer.io_rsync import own_ids, pull_all
from syncd.transfer.rsync import Connector, Options, daemon_command, daemon_config, rsh_argument
from syncd.transfer.streams import split

PER_DIRECTORY = 100
WRITE = """
import os, sys
root, files, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = b"x" * size
for i in range(files):
    if i % 100 == 0:
        above = f"{root}/p{i // 10000:03}/d{i // 100:05}"
        os.makedirs(above)
    fd = os.open(f"{above}/file-{i:07}.pkg", os.O_CREAT | os.O_WRONLY, 0o644); os.write(fd, data); os.close(fd)
"""


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.s: dict[str, float] = defaultdict(float)
        self.wrapped: dict[tuple[int, str], Callable[..., Any]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.s[name] += time.perf_counter() - started

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Count what a method takes, as the stage `name`."""
        inner: Callable[..., Any] = getattr(owner, method)
        self.wrapped[id(owner), method] = inner

        def timed(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return inner(*arguments, **named)

        setattr(owner, method, timed)

    def unwrap(self, owner: Any, method: str) -> None:
        """Undo `wrap` of a module's function."""
        setattr(owner, method, self.wrapped.pop((id(owner), method)))

    def table(self, title: str, files: int) -> None:
        print(f"\n{title}")
        for name, seconds in self.s.items():
            print(f"  {name:34} {seconds * 1e6 / files:8.2f} us/file")


class Have:
    """What a child holds, for plans: its index."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def get(self, path: bytes) -> Entry | None:
        child = self._index.get(path)
        return to_entry(path, child.row) if child else None

    def below(self, path: bytes) -> Iterator[Entry]:
        entries = self._index.entries(path)
        next(entries, None)
        return entries


def origin(root: Path, store: Path, files: int, script: list[str], title: str) -> None:
    """One burst of changes at the origin, until all is in the journal."""
    clock = Clock()
    source = SourceTree(os.fsencode(root), store)
    source.start()
    sequence = source.status.sequence
    clock.wrap(source._watcher, "take", "take news")
    clock.wrap(source._settle, "hint", "  of which settle.hint")
    clock.wrap(source, "_take_news", "take news and hint")
    clock.wrap(source._settle, "take", "settle.take")
    clock.wrap(source._comparer, "check", "compare: check")
    clock.wrap(source._comparer, "walk", "compare: walk")
    clock.wrap(source._comparer, "settle_losses", "compare: losses")
    clock.wrap(source.journal, "append", "journal append")
    clock.wrap(source, "_in_transaction", "transactions, all in all")
    with subprocess.Popen(script) as process:
        started, cpu = time.monotonic(), time.process_time()
        while process.poll() is None:
            source.step(0.05)
        ended = time.monotonic()
        quiet = 0
        while quiet < 3:
            written = source.step(0.06)
            quiet = 0 if written or source.status.waiting or source.status.walking else quiet + 1
            if not quiet:
                last = time.monotonic()
    written = source.status.sequence - sequence
    clock.table(
        f"{title}: burst {ended - started:.2f} s, then {last - ended:.2f} s; {written} changes, "
        f"{time.process_time() - cpu:.2f} s of processor, {source.status.overflows} overflows",
        files,
    )
    source.close()


def child(origin_root: Path, store: Path, root: Path, work: Path, files: int, title: str, after: int) -> int:
    """A child that takes all after `after`; where it is then."""
    clock = Clock()
    db = open_store(store, exclusive=False)
    own = open_store(work / "child.db")
    journal, index, mine = Journal(db), Index(own), Journal(own)
    layout = Layout(os.fsencode(root), os.fsencode(work / "work"))
    prepare(layout)
    if index.is_empty():
        disk = Disk(layout.root)
        with transaction(own):
            row = disk.look(b"")
            assert row is not None
            index.put(b"", row)
        disk.close()
    config = work / "rsyncd.conf"
    config.write_text(daemon_config("tree", str(origin_root), owner=own_ids()))
    transport = Connector(("sh", "-c", "exec " + rsh_argument(daemon_command(str(config)))), "tree")
    ranks, have, number = Ranks([]), Have(index), 0
    clock.wrap(io_steps, "sync_file_system", "  of which syncfs")
    cpu = time.process_time()
    while True:
        with clock.stage("journal read, coalesced"):
            page = journal.read(journal.journal_id, after, wire.MAX_BATCH)
        assert isinstance(page, Page), page
        if not page.changes:
            break
        with clock.stage("encode_batch"):
            data = wire.encode_batch(wire.Batch(page.changes, wire.Cursor(journal.journal_id, page.cursor), page.last))
        with clock.stage("decode_batch"):
            batch = wire.decode_batch(data)
        with clock.stage("make_plan"):
            plan = make_plan(batch.changes, have, ranks)
        with clock.stage("split"):
            batches = split(plan.payload)
        with clock.stage("rsync (wall, no TLS)"):
            results = asyncio.run(pull_all(transport, Options(), os.fsdecode(layout.stage), batches)) if batches else []
        assert all(not result.failed for result in results), results
        with clock.stage("check_staged"):
            failed = check_staged(layout, plan.steps)
        with clock.stage("hold_back"):
            now, _ = hold_back(plan.steps, failed, ranks)
        with clock.stage("bring_whole"):
            now = bring_whole(layout, now, ranks)
        number += 1
        with clock.stage("publish: begin"):
            intent = Intent(number, now)
            begin(layout, intent)
        with clock.stage("publish: run durable"):
            run(layout, begun=intent)
        with clock.stage("index and journal"):
            record(clock, own, index, mine, layout, batch)
        with clock.stage("publish: finish"):
            finish(layout)
        with clock.stage("sweep"):
            sweep(layout)
        after = page.cursor
    clock.table(f"{title}: {number} batches, {time.process_time() - cpu:.2f} s of processor", files)
    print(f"  {'sum':34} {sum(s for name, s in clock.s.items() if name[0] != ' ') * 1e6 / files:8.2f} us/file")
    clock.unwrap(io_steps, "sync_file_system")
    close_store(own)
    db.close()
    return after


def record(clock: Clock, db: Any, index: Index, journal: Journal, layout: Layout, batch: wire.Batch) -> None:
    """What the child does once a batch is published."""
    disk = Disk(layout.root)
    upserts = [change.path for change in batch.changes if change.op is not Op.DELETE]
    with transaction(db):
        for change in batch.changes:
            if change.op is Op.DELETE:
                index.remove(change.path)
        with clock.stage("  of which lstat"):
            rows = list(disk.look_all(upserts))
        with clock.stage("  of which index"):
            index.put_all(rows)
        with clock.stage("  of which journal"):
            drafts = [Draft(Op.UPSERT, path, row) for path, row in rows]
            drafts += [Draft(Op.DELETE, change.path) for change in batch.changes if change.op is Op.DELETE]
            journal.append(drafts, time.time())
    disk.close()


def main() -> None:
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    top = Path(tempfile.mkdtemp(prefix="nearpath-stages-"))
    try:
        for name in ("origin", "child", "work", "plain"):
            (top / name).mkdir()
        tree, store = top / "origin", top / "origin.db"
        first = source_sequence(tree, store)
        origin(tree, store, files, [sys.executable, "-c", WRITE, str(tree), str(files), "1024"], "origin, create")
        started = time.monotonic()
        subprocess.run(["rsync", "-a", f"{tree}/", f"{top}/plain/"], check=True)
        print(f"\nrsync -a: {(time.monotonic() - started) * 1e6 / files:.2f} us/file")
        after = child(tree, store, top / "child", top / "work", files, "child, create", first)
        names = [str(tree / name) for name in os.listdir(tree)]
        origin(tree, store, files, ["rm", "-rf", *names], "origin, delete whole directories")
        child(tree, store, top / "child", top / "work", files, "child, delete", after)
    finally:
        shutil.rmtree(top)


def source_sequence(tree: Path, store: Path) -> int:
    """The first reading of the empty tree; the cursor behind it."""
    source = SourceTree(os.fsencode(tree), store)
    source.start()
    sequence = source.status.sequence
    source.close()
    return sequence


if __name__ == "__main__":
    main()
