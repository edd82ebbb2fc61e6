"""The image: zones and the steering table joined for answering, frozen, replaced as a whole.

The zone part (which names exist, which of them are steered) changes with the files; the table part changes every second.
`with_table` keeps the zone part and is cheap, unless the set of steered names has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from core.errors import EX_CONFIG, NearpathError
from dnsd import names, records
from dnsd.records import Node
from dnsd.zone import Zone
from policy.table import SteeredService, SteeringTable

if TYPE_CHECKING:
    from dnsd.template import Shape, Template

MAX_NSID_BYTES = 64
"""So that the options of an answer always fit into 512 octets beside the longest question."""


class ImageError(NearpathError):
    """Zones and steered names that contradict each other; it names the steered name or the zone."""

    exit_status = EX_CONFIG


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """What the operator decides about answers: server identifier (RFC 5001) and largest UDP answer."""

    nsid: bytes = b""
    max_udp_size_bytes: int = 1232

    def __post_init__(self) -> None:
        if len(self.nsid) > MAX_NSID_BYTES:
            raise ImageError(f"dns.nsid is {len(self.nsid)} octets long", f"at most {MAX_NSID_BYTES} are allowed")


@dataclass(frozen=True, slots=True)
class Image:
    """All that an answer is made from. `memo` only remembers what `dnsd.template` computes from the rest."""

    generation: int
    zones: tuple[Zone, ...]
    served: Mapping[bytes, Zone]
    table: SteeringTable | None
    options: AnswerOptions
    memo: dict[Shape, Template] = field(default_factory=dict, compare=False, repr=False)

    def find_zone(self, name: bytes, *, above: bool = False) -> Zone | None:
        """The zone with the longest origin that holds `name`; `above`: of those that `name` is not the apex of."""
        served = self.served
        at = name
        if above and at != names.ROOT:
            at = at[1 + at[0] :]
        while True:
            zone = served.get(at)
            if zone is not None:
                return zone
            if at == names.ROOT:
                return None
            at = at[1 + at[0] :]

    def service(self, key: str) -> SteeredService | None:
        """The rows of a steered node."""
        return self.table.services.get(key) if self.table else None


def compile_image(
    zones: Sequence[Zone], table: SteeringTable | None, options: AnswerOptions | None = None, *, generation: int = 1
) -> Image:
    """Join zones and table (None: nothing is steered). ImageError when they contradict each other."""
    by_origin: dict[bytes, Zone] = {}
    for zone in zones:
        if zone.origin in by_origin:
            raise ImageError(f"zone {zone.name} is given twice", "remove one of the two")
        by_origin[zone.origin] = zone
    image = Image(generation, tuple(zones), by_origin, None, options or AnswerOptions())
    if table is None or not table.services:
        return replace(image, table=table, memo={})
    return replace(image, table=table, served=_steer(image, table.services), memo={})


def with_table(image: Image, table: SteeringTable | None, *, generation: int | None = None) -> Image:
    """`image` with a new table (and the next generation); ImageError when a steered name cannot be."""
    number = image.generation + 1 if generation is None else generation
    before = image.table.services.keys() if image.table else set()
    after = table.services.keys() if table else set()
    if before == after:
        return replace(image, generation=number, table=table, memo={})
    return compile_image(image.zones, table, image.options, generation=number)


def _steer(image: Image, owners: Iterable[str]) -> dict[bytes, Zone]:
    """The zones with the nodes of steered names put in."""
    changed: dict[bytes, dict[bytes, Node]] = {}
    seen: dict[bytes, str] = {}
    for owner in owners:
        try:
            name = names.from_text(owner)
        except ValueError as error:
            raise ImageError(f"service {owner}: {error}", "write it as a fully qualified name") from None
        if name in seen:
            raise ImageError(f"service {owner} and service {seen[name]} are the same name", "remove one of the two")
        seen[name] = owner
        zone = image.find_zone(name)
        if zone is None:
            raise ImageError(f"service {owner} is in none of the zones", "add its zone under `zones`")
        nodes = changed.setdefault(zone.origin, dict(zone.nodes))
        nodes[name] = _steered_node(owner, name, zone)
        at = name
        while at != zone.origin:
            at = names.parent(at)
            nodes.setdefault(at, Node())
    zones = dict(image.served)
    for origin, nodes in changed.items():
        zones[origin] = replace(zones[origin], nodes=nodes)
    return zones


def _steered_node(owner: str, name: bytes, zone: Zone) -> Node:
    what = f"service {owner} cannot be answered from zone {zone.name}"
    at = name
    while at not in zone.nodes:
        at = names.parent(at)
    above = zone.nodes[at]
    text = names.to_text(at)
    if above.cut:
        raise ImageError(f"{what}: {text} is delegated", "remove the delegation or steer a name outside of it")
    if records.DNAME in above.rrsets:
        raise ImageError(f"{what}: {text} has a DNAME", "remove the DNAME or steer a name outside of it")
    if at == name and records.CNAME in above.rrsets:
        raise ImageError(f"{what}: it has a CNAME in the zone file", "remove the CNAME: the service takes its place")
    kept = above.rrsets if at == name else {}
    addresses = (records.A, records.AAAA)
    return Node({t: s for t, s in kept.items() if t not in addresses}, steered=owner)
