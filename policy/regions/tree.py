"""The tree of regions below the implicit root `world`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.errors import Problem
from policy.regions.errors import RegionTreeError

ROOT = "world"
ROOT_ID = 0

MAX_REGIONS = 65_535
"""Ids are kept as 16-bit numbers; decisions are made per region, so more would be slow long before."""

MAX_DEPTH = 32
"""Levels below `world`: planet, continent, country, operator, province, city leave plenty."""


@dataclass(frozen=True, slots=True)
class RegionTree:
    """Regions, their parents and their integer ids (`world` is 0, the others follow in the order given).

    `parents` maps each name to its parent; None stands for `world`. RegionTreeError lists every unknown parent, every
    region that is its own ancestor or lies too deep, and a second `world`.
    """

    parents: Mapping[str, str | None]
    names: tuple[str, ...] = field(init=False)
    above: tuple[frozenset[int], ...] = field(init=False, repr=False)
    """ids of all ancestors, by id: `a in above[b]` tells that b lies below a."""
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)
    _chains: tuple[tuple[str, ...], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = self.parents
        if problems := _problems(given):
            raise RegionTreeError("the regions do not form a tree", problems)
        parents = {ROOT: None, **{name: parent or ROOT for name, parent in given.items() if name != ROOT}}
        names = tuple(parents)
        ids = {name: i for i, name in enumerate(names)}
        chains = tuple(_chain(name, parents) for name in names)
        set_field = object.__setattr__  # the class is frozen; this is the one moment its derived fields are made
        set_field(self, "parents", parents)
        set_field(self, "names", names)
        set_field(self, "above", tuple(frozenset(ids[name] for name in chain) for chain in chains))
        set_field(self, "_ids", ids)
        set_field(self, "_chains", chains)

    def __hash__(self) -> int:
        return hash(self.names)

    @property
    def root(self) -> str:
        """The implicit root, `world`."""
        return ROOT

    def id_of(self, name: str) -> int:
        """The id of a region; KeyError when there is none of this name."""
        return self._ids[name]

    def ancestors(self, name: str) -> tuple[str, ...]:
        """Parent, grandparent and so on up to `world`; empty for `world`."""
        return self._chains[self._ids[name]]

    def is_descendant(self, name: str, ancestor: str) -> bool:
        """Whether `name` lies below `ancestor` (no region lies below itself)."""
        return self._ids[ancestor] in self.above[self._ids[name]]

    def related(self, a: int, b: int) -> bool:
        """Whether two ids are the same region or one lies below the other."""
        return a == b or a in self.above[b] or b in self.above[a]

    def distance(self, a: str, b: str) -> int:
        """Steps from `a` up to the nearest common ancestor and down to `b`; 0 for the same region."""
        up_a, up_b = (a, *self.ancestors(a)), (b, *self.ancestors(b))
        shared = 0
        for x, y in zip(reversed(up_a), reversed(up_b), strict=False):
            if x != y:
                break
            shared += 1
        return len(up_a) + len(up_b) - 2 * shared


def _chain(name: str, parents: Mapping[str, str | None]) -> tuple[str, ...]:
    chain = []
    at = parents[name]
    while at is not None:
        chain.append(at)
        at = parents[at]
    return tuple(chain)


def _problems(parents: Mapping[str, str | None]) -> list[Problem]:
    found = []
    if len(parents) > MAX_REGIONS:
        what = f"{len(parents)} regions are more than the {MAX_REGIONS} that can be kept: match fewer labels"
        return [Problem("regions", 0, "", what)]
    for name, parent in parents.items():
        if name == ROOT:
            if parent is not None:
                what = "`world` is the built-in root and has no parent: give this region another name"
                found.append(Problem("regions", 0, name, what))
        elif parent is not None and parent != ROOT and parent not in parents:
            found.append(Problem("regions", 0, name, f"its parent {parent!r} is not defined: define it or correct it"))
        elif what := _chain_fault(name, parents):
            found.append(Problem("regions", 0, name, what))
    return found


def _chain_fault(name: str, parents: Mapping[str, str | None]) -> str:
    """What is wrong above `name`: a loop that it is part of, or too many levels; empty when nothing is."""
    walked = [name]
    at = parents[name]
    while at is not None and at != ROOT:
        if at == name:
            return f"it is its own ancestor ({' -> '.join([*walked, name])}): give one of them another parent"
        walked.append(at)
        if len(walked) > MAX_DEPTH:
            # A loop further up is reported at its own members.
            looped = len(set(walked)) < len(walked)
            return "" if looped else f"it lies more than {MAX_DEPTH} levels below `world`: make the tree flatter"
        at = parents.get(at)
    return ""
