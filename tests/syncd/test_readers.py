"""What clients of a copy see while it publishes and is killed: whole files, and no index before what it names."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.syncd.fleet import Fleet

OPTIONS = {
    "live": {"indexes": ["index"]},
    "atomic": {"indexes": ["index"], "mode": "atomic", "grace": "60s"},
}


@dataclass
class Reader:
    """Reads the index of one tree and all it names, again and again. `faults`: what no client should ever see."""

    root: Path
    faults: list[str] = field(default_factory=list)
    indexes: set[bytes] = field(default_factory=set)
    files: int = 0

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(0.005):  # so that it does not keep the nodes from the processor
            try:
                top = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                self._read(top)
            finally:
                os.close(top)

    def _read(self, top: int) -> None:
        index = read_at(top, "index")
        if index is None:
            return
        self.indexes.add(index)
        for name in index.decode().split():
            content = read_at(top, f"pool/{name}")
            if content is None:
                # A name that the index does not have any more may go; then another one is there.
                if read_at(top, "index") == index:
                    self.faults.append(f"{name} is missing, and the index names it")
                return
            self.files += 1
            time.sleep(0.0005)
            if hashlib.sha256(content).hexdigest() != name:
                self.faults.append(f"{name} is not whole: {len(content)} bytes")


def read_at(directory: int, path: str) -> bytes | None:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=directory)) as file:
            return file.read()
    except FileNotFoundError:
        return None


@contextmanager
def reading(*readers: Reader) -> Iterator[None]:
    stop = threading.Event()
    threads = [threading.Thread(target=reader.run, args=(stop,)) for reader in readers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def publish(tree: Path, rng: random.Random) -> None:
    """A mirror's next state: new payload under names that are its hashes, then the index, then deletes.

    What goes is what this index and the one before do not name: files that go as soon as nothing names them any more are
    missing at every fetch of a busy time, and each that is missing holds the copy's index back.
    """
    before = set((tree / "index").read_text().split()) if (tree / "index").exists() else set()
    kept = set(rng.sample(sorted(before), len(before) // 2))
    for _ in range(rng.randrange(1, 12)):
        # Small ones come by one request, large ones by rsync.
        content = rng.randbytes(rng.choice([0, 100, 5_000, 150_000]) + rng.randrange(1000))
        name = hashlib.sha256(content).hexdigest()
        fresh = tree.parent / "fresh"
        fresh.write_bytes(content)
        fresh.rename(tree / "pool" / name)
        kept.add(name)
    fresh = tree.parent / "fresh"
    fresh.write_text("\n".join(sorted(kept)))
    fresh.rename(tree / "index")
    for path in (tree / "pool").iterdir():
        if path.name not in kept | before:
            path.unlink()


def test_no_reader_sees_part_of_a_file_or_an_index_before_what_it_names(tmp_path: Path) -> None:
    """Also not while the copy is killed again and again, between any two steps."""
    rng = random.Random(4)
    fleet = Fleet(tmp_path)
    no_guard = {"deletes": {"files": 1_000_000, "share": "100%", "floor": 1_000_000}}
    fleet.configure({tree: options | no_guard for tree, options in OPTIONS.items()})
    for tree in OPTIONS:
        (fleet.at(fleet.origin, tree) / "pool").mkdir()
    readers = [Reader(fleet.at(fleet.copy, tree)) for tree in OPTIONS]
    try:
        fleet.origin.start()
        fleet.copy.start()
        with reading(*readers):
            kills, seen_before, began_s = 0, 0, time.monotonic()
            killed_s, until_s = time.monotonic() + 0.5, time.monotonic() + 60.0
            while (kills < 2 or min(len(reader.indexes) for reader in readers) < 6) and time.monotonic() < until_s:
                for tree in OPTIONS:
                    publish(fleet.at(fleet.origin, tree), rng)
                # On a busy machine ever more slowly: an index that is replaced while it is fetched is not published.
                time.sleep(0.1 + rng.random() * 0.2 + max(0.0, time.monotonic() - began_s - 10.0) * 0.05)
                seen = sum(len(reader.indexes) for reader in readers)
                if time.monotonic() > killed_s and seen > seen_before + 2:
                    kills += 1
                    fleet.copy.stop(signal.SIGKILL)
                    fleet.copy.start()
                    killed_s, seen_before = time.monotonic() + rng.random(), seen
            for tree in OPTIONS:
                fleet.until_same(tree)
    finally:
        fleet.copy.stop(signal.SIGKILL)
        fleet.origin.stop(signal.SIGKILL)
    for reader in readers:
        assert reader.faults == []
        assert len(reader.indexes) > 5, "it was there while indexes changed"
        assert reader.files > 100
