"""Planning: from a batch of changes, and what this node holds, to what is fetched and the steps that publish it.

`final_tree` tells what is left of a batch of changes. The difference between it and the old tree becomes steps: what is
moved is brought to its place before anything is put over it, through a slot out of sight where moves block each other
(swaps, cycles, a directory and its own content exchanging places). Then come puts, deletes and attributes, in the
phases of `publish`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from syncd.model import UNTOLD, Change, Entry, Kind, join
from syncd.publish.final_tree import FinalTree, Have, Node
from syncd.publish.steps import Do, Ranks, Step, stays_inside


class Fetch(NamedTuple):
    """A file to bring into staging. `exact`: what lies at its path now has its size and mtime: only contents can tell."""

    entry: Entry
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a batch comes to. Payload is fetched whole before the first index, so that no index is newer than it."""

    payload: tuple[Fetch, ...]
    indexes: tuple[Fetch, ...]
    steps: tuple[Step, ...]
    refused: tuple[tuple[bytes, str], ...]
    """paths that are not published, and why"""
    lacking: tuple[bytes, ...]
    """directories moved at the parent from where this node has nothing: compare manifests below them, plan again"""
    deletes: tuple[bytes, ...]
    deleted_entries: int
    """entries that go, all below the deletes counted, and files that are emptied; what only moves is not"""
    emptied: tuple[bytes, ...] = ()
    """files with content that are to have none: as much lost as if they were deleted"""
    replaced_entries: int = 0
    """those of `deleted_entries` that go even when deletes have to wait: emptied, or something else takes their place"""

    @property
    def fetch_bytes(self) -> int:
        """Upper bound of what is transferred, and of the space that staging takes."""
        return sum(fetch.entry.size for fetch in (*self.payload, *self.indexes))


def make_plan(changes: Iterable[Change], have: Have, ranks: Ranks, keeps_more: bool = False) -> Plan:
    """The plan of a batch of changes in journal order. PathError when a change cannot be of any real tree.

    `keeps_more`: attributes are kept of which no entry tells, see `FinalTree`.
    """
    asked = _Asked(have)
    tree = FinalTree(asked, keeps_more)
    for change in changes:
        tree.play(change)
    return _Steps(tree, asked, ranks).plan()


class _Asked:
    """What this node holds, each path asked for once; in a directory that is not there, nothing is asked for at all."""

    def __init__(self, have: Have) -> None:
        self._have = have
        self._known: dict[bytes, Entry | None] = {}

    def get(self, path: bytes) -> Entry | None:
        known = self._known
        if path in known:
            return known[path]
        above = path.rpartition(b"/")[0]
        if above and above not in known:
            known[above] = self._have.get(above)
        found = known[path] = None if above and known[above] is None else self._have.get(path)
        return found

    def below(self, path: bytes) -> Iterable[Entry]:
        return self._have.below(path)


# --- the steps ----------------------------------------------------------------------------------------------------------


class _Job:
    """Something brought to `path` in phase 1: a directory made, or something of the old tree moved there."""

    __slots__ = (
        "entry",
        "extracted",
        "parked",
        "path",
        "place_waits",
        "placed",
        "slot",
        "source",
        "source_waits",
        "wakes",
    )

    def __init__(self, path: bytes, source: bytes | None, entry: Entry) -> None:
        self.path = path
        self.source = source
        self.entry = entry
        self.source_waits = 0
        """moves out of the source that come first"""
        self.place_waits = 0
        """what must come first at `path`: the directory above it, and whatever leaves what stands there"""
        self.wakes: list[_Job] = []
        """jobs whose directory this one makes"""
        self.extracted = source is None
        self.parked = False
        self.placed = False
        self.slot = -1

    @property
    def is_directory(self) -> bool:
        return self.entry.kind is Kind.DIRECTORY


class _Steps:
    def __init__(self, tree: FinalTree, have: Have, ranks: Ranks) -> None:
        self.have = have
        self.ranks = ranks
        self.tree = tree
        self.jobs: list[_Job] = []
        self.by_place: dict[bytes, _Job] = {}
        """jobs by the old path of what stands at their place"""
        self.fetches: dict[int, list[Fetch]] = {}
        self.puts: list[tuple[int, int, Step]] = []
        """(rank, order within it, step) of phases 2 and 3"""
        self.leaving: dict[bytes, bytes] = {}
        """final path -> old path of what is to be deleted there"""
        self.attributes: list[Step] = []
        self.refused: list[tuple[bytes, str]] = []
        self.final_paths: dict[int, bytes] = {}
        self.replaced: list[bytes] = []
        """old directories and files that something of another kind, or another directory, takes the place of"""
        self.emptied: list[bytes] = []
        self.slots = 0
        self._touches = 0
        """counts what changes a directory's listing, and so its mtime"""

    def plan(self) -> Plan:
        self._walk()
        early = self._refuse_moved()
        moves = self._order()
        deletes = self._deletes()
        self.puts.sort(key=lambda row: (row[0], row[1], row[2].path))
        # Deepest first, and the root last: in mode atomic the attributes of a file move the mtime of its directory.
        self.attributes.sort(key=lambda step: (-step.path.count(b"/") if step.path else 1, step.path))
        gone = [Step(Do.DELETE, path) for path in deletes]
        indexes = [fetch for rank in sorted(self.fetches) if rank for fetch in self.fetches[rank]]
        return Plan(
            payload=tuple(self.fetches.get(0, ())),
            indexes=tuple(indexes),
            steps=(*early, *moves, *(row[2] for row in self.puts), *gone, *self.attributes),
            refused=tuple(self.refused),
            lacking=tuple(self.tree.lacking),
            deletes=deletes,
            deleted_entries=self._count_deleted(deletes) + len(self.emptied),
            emptied=tuple(self.emptied),
            replaced_entries=self._count_deleted(()) + len(self.emptied),
        )

    # what is where -----------------------------------------------------------------------------------------------------

    def _walk(self) -> None:
        """Sort every node of the final tree into what has to be done for it, parents before their children."""
        linked: list[tuple[bytes, Node]] = []
        stack: list[tuple[bytes, Node, _Job | None]] = [(b"", self.tree.root, None)]
        while stack:
            path, node, above = stack.pop()
            old = node.known.path if node.known is not None else None
            before = self._touches
            for name, kid in sorted(node.kids.items(), reverse=True):
                place, job = join(path, name), above
                standing = self.have.get(join(old, name)) if old is not None else None
                if kid is None:
                    if standing is not None:
                        self._touches += 1
                        self.leaving[place] = standing.path
                    continue
                if kid.link_of is not None:
                    self._touches += 1
                    linked.append((place, kid))
                else:
                    self.final_paths[id(kid)] = place
                    job = self._sort(place, kid, standing, above)
                if kid.is_directory:
                    stack.append((place, kid, job))
            is_other = node.entry is not None and (self.tree.keeps_more or not _has_attributes(node.known, node.entry))
            if self._touches > before or is_other:
                self._set_attributes(path, node)
        for place, kid in linked:
            self._link(place, kid)

    def _sort(self, place: bytes, node: Node, standing: Entry | None, above: _Job | None) -> _Job | None:
        entry = node.entry or node.known
        assert entry is not None
        if standing is not None and standing.kind is not entry.kind and standing.kind is not Kind.SYMLINK:
            self.replaced.append(standing.path)
        if node.fetch:
            self._fetch(place, node, entry, standing)
            return above
        if entry.kind is Kind.SYMLINK and not self._may_link(place, entry, standing):
            return above
        source = node.known.path if node.known is not None else None
        if source is not None and standing is not None and source == standing.path:
            return above
        if standing is not None and standing.kind is Kind.DIRECTORY and node.is_directory:
            self.replaced.append(standing.path)
        self._touches += 1
        job = _Job(place, source, _at(entry, place))
        self.jobs.append(job)
        if standing is not None:
            self.by_place[standing.path] = job
        if above is not None:
            above.wakes.append(job)
            job.place_waits += 1
        return job

    def _set_attributes(self, path: bytes, node: Node) -> None:
        """Mode and mtime of a directory: what is put into it, or taken out, moves its mtime as the parent's did not."""
        entry = node.entry or node.known
        if entry is not None and (node.entry is not None or entry.mtime_ns != UNTOLD):
            self.attributes.append(Step(Do.ATTR, path, entry=_at(entry, path)))

    def _fetch(self, place: bytes, node: Node, entry: Entry, standing: Entry | None) -> None:
        self._touches += 1
        entry = _at(entry, place)
        rank = self.ranks.of(place)
        if entry.kind is Kind.SYMLINK:
            if self._may_link(place, entry, standing):
                self.puts.append((rank, 3, Step(Do.SYMLINK, place, entry=entry)))
            return
        known = node.known
        is_here = known is not None and known.path == place and _is_same_content(known, entry)
        if is_here and not self.tree.keeps_more:
            self.attributes.append(Step(Do.ATTR, place, entry=entry))
            return
        if not entry.size and standing is not None and standing.kind is Kind.FILE and standing.size:
            self.emptied.append(place)
        # What rsync compares with is what lies at this path now, wherever the new content comes from.
        basis = self.have.get(place)
        alike = basis is not None and (basis.kind, basis.size, basis.mtime_ns) == (
            Kind.FILE,
            entry.size,
            entry.mtime_ns,
        )
        exact = alike and not (basis is not None and _is_same_content(basis, entry))
        self.fetches.setdefault(rank, []).append(Fetch(entry, exact))
        self.puts.append((rank, 0, Step(Do.PUT, place, entry=entry)))

    def _link(self, place: bytes, node: Node) -> None:
        """A further name of a file; it is fetched instead when the name it was linked to is no longer there."""
        assert node.link_of is not None
        assert node.entry is not None
        first = self.final_paths.get(id(node.link_of))
        if first is None:
            self.final_paths[id(node.link_of)] = place
            self._fetch(place, node, node.entry, None)
            return
        rank = max(self.ranks.of(place), self.ranks.of(first))
        step = Step(Do.LINK, place, source=first, entry=_at(node.entry, place))
        self.puts.append((rank, 2, step))

    def _may_link(self, place: bytes, entry: Entry, standing: Entry | None) -> bool:
        if stays_inside(place, entry.target):
            return True
        self.refused.append((place, f"symlink to {entry.target!r}, which leads out of the tree"))
        if standing is not None:
            self._touches += 1
            self.leaving[place] = standing.path
        return False

    def _refuse_moved(self) -> list[Step]:
        """Symlinks that begin to lead out of the tree when their directory moves up: they go before it moves."""
        sources = {job.source for job in self.jobs}
        early: list[Step] = []
        homes: dict[bytes, bytes] = {}
        """directories that lose something: final path -> old path"""
        for job in self.jobs:
            if job.source is None or not job.is_directory or job.path.count(b"/") >= job.source.count(b"/"):
                continue
            for entry in self.have.below(job.source):
                new = job.path + entry.path[len(job.source) :]
                if entry.kind is not Kind.SYMLINK or stays_inside(new, entry.target) or entry.path in sources:
                    continue
                # Parts that move elsewhere are looked at with the part.
                if next(above for above in ancestors(entry.path) if above in sources) == job.source:
                    self.refused.append((new, f"symlink to {entry.target!r}, which leads out of the tree from there"))
                    early.append(Step(Do.DELETE, entry.path))
                    homes[new.rpartition(b"/")[0]] = entry.path.rpartition(b"/")[0]
        told = {step.path for step in self.attributes}
        for place, old in homes.items():
            node = self.tree.find(place)
            if place not in told and node is not None and node.known is not None and node.known.path == old:
                self._set_attributes(place, node)
        return early

    # the order of phase 1 ----------------------------------------------------------------------------------------------

    def _order(self) -> list[Step]:
        """Steps of phase 1: each job as soon as nothing blocks it; what blocks in a circle is parked."""
        sources = {job.source: job for job in self.jobs if job.source is not None}
        waiting: dict[int, list[tuple[_Job, bool]]] = {}
        for job in sources.values():
            assert job.source is not None
            mover, taker = None, self.by_place.get(job.source)
            for above in ancestors(job.source):
                mover = mover or sources.get(above)
                taker = taker or self.by_place.get(above)
            if mover is not None:
                waiting.setdefault(id(job), []).append((mover, True))
                mover.source_waits += 1
            # That may be the job itself: what lies inside the thing whose place it takes must be parked.
            if taker is not None:
                waiting.setdefault(id(job), []).append((taker, False))
                taker.place_waits += 1
        steps: list[Step] = []
        ready = deque(self.jobs)
        # Deepest first: what lies inside something else leaves before it does.
        blocked = deque(sorted(sources.values(), key=lambda job: -(job.source or b"").count(b"/")))
        while ready or blocked:
            while ready:
                self._run(ready.popleft(), waiting, ready, steps)
            while blocked and (blocked[0].extracted or blocked[0].source_waits):
                job = blocked.popleft()
                if not job.extracted:
                    blocked.append(job)
            if blocked:
                self._park(blocked.popleft(), waiting, ready, steps)
        return steps

    def _run(
        self, job: _Job, waiting: dict[int, list[tuple[_Job, bool]]], ready: deque[_Job], steps: list[Step]
    ) -> None:
        """Do `job` if it can be done now; note whom that frees."""
        if job.placed:
            return
        rank = 0 if job.is_directory else self.ranks.of(job.path)
        if rank and not job.extracted:
            self._park(job, waiting, ready, steps)
        if job.place_waits or (not job.extracted and job.source_waits):
            return
        job.placed = True
        if job.parked:
            step = Step(Do.UNPARK, job.path, slot=job.slot, entry=None if job.is_directory else job.entry)
            if rank:
                self.puts.append((rank, 1, step))
            else:
                steps.append(step)
        elif job.source is None:
            steps.append(Step(Do.MAKE, job.path, entry=job.entry))
        else:
            steps.append(Step(Do.MOVE if job.is_directory else Do.LINK, job.path, job.source, entry=job.entry))
            self._extract(job, waiting, ready)
        for freed in job.wakes:
            freed.place_waits -= 1
            ready.append(freed)

    def _park(
        self, job: _Job, waiting: dict[int, list[tuple[_Job, bool]]], ready: deque[_Job], steps: list[Step]
    ) -> None:
        assert job.source is not None
        job.slot, job.parked = self.slots, True
        self.slots += 1
        steps.append(Step(Do.PARK, job.path, job.source, job.slot))
        self._extract(job, waiting, ready)
        ready.append(job)

    def _extract(self, job: _Job, waiting: dict[int, list[tuple[_Job, bool]]], ready: deque[_Job]) -> None:
        job.extracted = True
        for other, is_source in waiting.pop(id(job), ()):
            if is_source:
                other.source_waits -= 1
            else:
                other.place_waits -= 1
            ready.append(other)

    # what goes ---------------------------------------------------------------------------------------------------------

    def _deletes(self) -> tuple[bytes, ...]:
        """Final paths to delete, indexes before the payload they name; a moved directory has left already."""
        moved = {job.source for job in self.jobs if job.is_directory}
        left = [path for path, old in self.leaving.items() if old not in moved]
        return tuple(sorted(left, key=lambda path: (not self.ranks.of(path), path)))

    def _count_deleted(self, deletes: Sequence[bytes]) -> int:
        moved = {job.source for job in self.jobs if job.source}
        gone = {self.leaving[path] for path in deletes} | set(self.replaced)
        total = sum(self._weight(path) for path in gone if path not in moved)
        for source in moved:
            if any(above in gone for above in ancestors(source)) and not any(a in moved for a in ancestors(source)):
                total -= self._weight(source)
        return total

    def _weight(self, path: bytes) -> int:
        entry = self.have.get(path)
        if entry is None or entry.kind is not Kind.DIRECTORY:
            return int(entry is not None)
        return 1 + sum(1 for _ in self.have.below(path))


def _at(entry: Entry, path: bytes) -> Entry:
    return entry if entry.path == path else entry._replace(path=path)


def _is_same_content(known: Entry, entry: Entry) -> bool:
    """Whether a file needs no transfer, its digest being known at both ends, and its time, which rsync would look at."""
    return (
        known.kind is Kind.FILE
        and (known.size, known.mtime_ns) == (entry.size, entry.mtime_ns)
        and known.digest is not None
        and known.digest == entry.digest
    )


def _has_attributes(known: Entry | None, entry: Entry) -> bool:
    """Whether a directory has its mode and time already; one that is made here has not."""
    return known is not None and (known.mode, known.mtime_ns) == (entry.mode, entry.mtime_ns)


def ancestors(path: bytes) -> Iterator[bytes]:
    """The directories above `path`, nearest first, without the root."""
    while (path := path.rpartition(b"/")[0]) != b"":
        yield path
