"""A pair of daemons in network namespaces of their own, with the lab's router between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.sync_nodes import Fleet, Launch, Pair, is_current, launch_here, wait_until
from tests.lab import netns
from tests.lab.wan import Node, Wan

PORT = 8730


@contextmanager
def wan_pair(top: Path, rtt_ms: float) -> Iterator[Pair | str]:
    """As `start_pair`, with `rtt_ms` between the two; or why that is not possible here."""
    if why := netns.why_not_here():
        yield f"no WAN here: {why}"
        return
    (top / "lab").mkdir()
    with Wan([Node("origin"), Node("child")], {}, default_rtt_ms=rtt_ms, directory=top / "lab") as wan:
        fleet = Fleet(top, launch={name: _launcher(wan, name) for name in ("origin", "child")})
        with fleet:
            origin = fleet.start("origin", children=["child"], host=wan.address("origin"), port=PORT)
            child = fleet.start("child", parents=[origin])
            wait_until(lambda: is_current(child), 60, "the child to be current")
            yield Pair(origin.path, child.path, origin, child, fleet)


def _launcher(wan: Wan, node: str) -> Launch:
    return lambda argv, log: launch_here(["ip", "netns", "exec", wan.namespace(node), *argv], log)
