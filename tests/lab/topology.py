"""Who is in the lab WAN: nodes, their sites and addresses, and the RTT between any two of them. Pure, no IO.

Address plan (all of it inside the lab's own namespaces, so nothing can clash with the machine):

| who | IPv4 | IPv6 |
|---|---|---|
| nodes of the k-th region (agents, clients) | 10.k.0.0/16 | fd00:k::/32 |
| the k-th node without a region (mirrors, appliance) | 172.16.k.0/24 | fd01:k::/32 |

k counts from 1 in the order of first mention (in hexadecimal digits for IPv6). `region_prefixes` replaces a region's
prefixes, say by real ones of an operator; `Node.ipv4` and `.ipv6` replace one node's address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SAME_SITE_RTT_MS = 0.2
MAX_NODES = 200  # the router waits with select(), which ends at 1024 descriptors; and k above is one byte


class LabError(Exception):
    """The lab cannot do what the scenario asks; the message says what and which name."""


@dataclass(frozen=True)
class Node:
    """One host of the WAN. `site` (default: the region, else the node itself): nodes of one site share their paths."""

    name: str
    region: str | None = None
    site: str | None = None
    ipv4: str | None = None
    ipv6: str | None = None
    extra_addresses: tuple[str, ...] = ()  # more addresses of either family, to be used as source (dig -b)

    @property
    def place(self) -> str:
        """The site this node stands in."""
        return self.site or self.region or self.name


@dataclass(frozen=True)
class Topology:
    """Nodes with their addresses and round-trip times; built by `plan`."""

    nodes: tuple[Node, ...]
    addresses: Mapping[str, tuple[str, ...]]  # node -> IPv4, IPv6, extra ones
    prefixes: Mapping[str, tuple[str, str]]  # region, or node without one -> IPv4 and IPv6 prefix
    rtt_ms: tuple[tuple[float, ...], ...]
    index: Mapping[str, int] = field(default_factory=dict)

    def members(self, name: str) -> tuple[int, ...]:
        """Numbers of the nodes that a node's or a site's name means. LabError for an unknown one."""
        if name in self.index:
            return (self.index[name],)
        found = tuple(i for i, node in enumerate(self.nodes) if node.place == name)
        if not found:
            sites = sorted({node.place for node in self.nodes} - set(self.index))
            raise LabError(f"the lab has no node or site {name!r}; nodes: {', '.join(self.index)}; sites: {sites}")
        return found

    def pairs(self, a: str, b: str) -> list[tuple[int, int]]:
        """Directed pairs (from, to) of different nodes from `a` to `b`."""
        found = [(i, j) for i in self.members(a) for j in self.members(b) if i != j]
        if not found:
            raise LabError(f"there is no path from {a!r} to {b!r}: they are the same node")
        return found

    def address(self, name: str, family: int = 4) -> str:
        """The node's first address of the family (4 or 6)."""
        if name not in self.index:
            raise LabError(f"the lab has no node {name!r}; nodes: {', '.join(self.index)}")
        return self.addresses[name][{4: 0, 6: 1}[family]]


def plan(
    nodes: Sequence[Node],
    rtt_ms: Mapping[tuple[str, str], float],
    default_rtt_ms: float | None = None,
    region_prefixes: Mapping[str, tuple[str, str]] | None = None,
) -> Topology:
    """Give every node its addresses and every pair its RTT.

    `rtt_ms` is keyed by two names in any order, each a node or a site; the more specific wins (node-node, node-site,
    site-site). A pair of different sites without RTT takes `default_rtt_ms`, or is a LabError without one.
    """
    _check_names(nodes, rtt_ms)
    prefixes = _prefixes(nodes, region_prefixes or {})
    addresses = _addresses(nodes, prefixes)
    index = {node.name: i for i, node in enumerate(nodes)}
    matrix = tuple(tuple(_pair_rtt_ms(a, b, rtt_ms, default_rtt_ms) for b in nodes) for a in nodes)
    return Topology(tuple(nodes), addresses, prefixes, matrix, index)


def _check_names(nodes: Sequence[Node], rtt_ms: Mapping[tuple[str, str], float]) -> None:
    names = [node.name for node in nodes]
    if not 1 <= len(nodes) <= MAX_NODES:
        raise LabError(f"the lab takes 1 to {MAX_NODES} nodes, not {len(nodes)}")
    for name in names:
        if names.count(name) > 1:
            raise LabError(f"two nodes are called {name!r}")
        if not name or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name) or len(name) > 60:
            raise LabError(f"{name!r} cannot be a node's name: use up to 60 letters, digits, '-', '_' and '.'")
    for node in nodes:
        if node.place in names and node.place != node.name:
            raise LabError(f"{node.place!r} is a node and also the site of {node.name!r}; rename one of them")
    known = set(names) | {node.place for node in nodes}
    for pair, value in rtt_ms.items():
        unknown = [name for name in pair if name not in known]
        if unknown:
            raise LabError(f"rtt_ms names {unknown[0]!r}, which is no node and no site of this lab")
        if not 0 <= value <= 60_000:
            raise LabError(f"rtt_ms of {pair} is {value}; it must be 0 to 60000 ms")


def _prefixes(nodes: Sequence[Node], given: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    regions = list(dict.fromkeys(node.region for node in nodes if node.region))
    unknown = set(given) - set(regions)
    if unknown:
        raise LabError(f"region_prefixes names {sorted(unknown)}, but no node is in that region")
    prefixes = {
        region: given.get(region, (f"10.{k}.0.0/16", f"fd00:{k:x}::/32")) for k, region in enumerate(regions, start=1)
    }
    alone = [node.name for node in nodes if not node.region]
    for k, name in enumerate(alone, start=1):
        if name in prefixes:
            raise LabError(f"{name!r} is a region and also a node without one; rename one of them")
        prefixes[name] = (f"172.16.{k}.0/24", f"fd01:{k:x}::/32")
    return prefixes


def _addresses(nodes: Sequence[Node], prefixes: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    taken: dict[str, str] = {}
    result: dict[str, tuple[str, ...]] = {}
    members: dict[str, int] = {}
    for node in nodes:
        home = node.region or node.name
        members[home] = host = members.get(home, 0) + 1
        net4, net6 = (ipaddress.ip_network(prefix) for prefix in prefixes[home])
        four = ipaddress.IPv4Address(node.ipv4) if node.ipv4 else net4[host]
        six = ipaddress.IPv6Address(node.ipv6) if node.ipv6 else net6[host]
        extra = (ipaddress.ip_address(address) for address in node.extra_addresses)
        result[node.name] = tuple(str(address) for address in (four, six, *extra))
        for address in result[node.name]:
            if address in taken:
                raise LabError(f"{node.name!r} and {taken[address]!r} have the same address {address}")
            taken[address] = node.name
    return result


def _pair_rtt_ms(a: Node, b: Node, rtt_ms: Mapping[tuple[str, str], float], default: float | None) -> float:
    if a.name == b.name:
        return 0.0
    for x, y in ((a.name, b.name), (a.name, b.place), (a.place, b.name), (a.place, b.place)):
        if (x, y) in rtt_ms:
            return rtt_ms[x, y]
        if (y, x) in rtt_ms:
            return rtt_ms[y, x]
    if a.place == b.place:
        return SAME_SITE_RTT_MS
    if default is None:
        raise LabError(f"rtt_ms has no entry for {a.place!r} and {b.place!r}, and there is no default_rtt_ms")
    return default
