"""What a trace found: each hop's answers and losses, and what may be concluded from them.

The conclusions are the point. A router that answers few probes, or late, only spares itself: it forwards all the same. So
loss and delay count only from a hop on if all later ones, up to the target, show them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from probes.trace.packets import What

ARRIVED: frozenset[What] = frozenset({"open", "closed", "echo"})
STOPPED: frozenset[What] = frozenset({"unreachable", "prohibited"})

STEP_S = 0.010
STEP_SHARE = 0.3
"""A hop that adds so much, and so much of the whole, is worth naming."""
LOSS = 0.05
"""Less than this of few probes says nothing."""


@dataclass(slots=True)
class Hop:
    """What came back of the probes that were to die at `ttl`. `rtts_s`: by the address that answered."""

    ttl: int
    sent: int = 0
    rtts_s: dict[str, list[float]] = field(default_factory=dict)
    whats: dict[str, What] = field(default_factory=dict)
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, address: str, what: What, rtt_s: float, labels: tuple[int, ...] = ()) -> None:
        """Note one answer."""
        self.rtts_s.setdefault(address, []).append(rtt_s)
        self.whats[address] = what
        if labels:
            self.labels[address] = labels

    @property
    def all_s(self) -> list[float]:
        """Every RTT of this hop in seconds."""
        return [rtt_s for rtts_s in self.rtts_s.values() for rtt_s in rtts_s]

    @property
    def loss_ratio(self) -> float:
        """The share of probes that nothing came back of, 0..1."""
        return 1 - min(1.0, len(self.all_s) / self.sent) if self.sent else 0.0

    @property
    def is_target(self) -> bool:
        """Whether the target itself answered here."""
        return any(what in ARRIVED for what in self.whats.values())

    @property
    def is_end(self) -> bool:
        """Whether nothing can come from further away: the target, or a router that says no."""
        return self.is_target or any(what in STOPPED for what in self.whats.values())


@dataclass(frozen=True, slots=True)
class PathMtu:
    """The largest packet that arrives whole, in bytes, and the router that said so ("" when none had to).

    `silent`: larger ones vanish and nobody says why, which breaks connections in the middle (RFC 2923 2.1).
    """

    size_bytes: int
    said_by: str = ""
    silent: bool = False


@dataclass(frozen=True, slots=True)
class Trace:
    """A finished trace; `hops` in order of distance. `mtu` is None when it was not asked for or cannot be told."""

    kind: Literal["tcp", "icmp"]
    source: str
    target: str
    port: int
    hops: tuple[Hop, ...]
    mtu: PathMtu | None = None
    mtu_why_not: str = ""


def ended(hops: list[Hop]) -> list[Hop]:
    """`hops` up to where the path ends; without an end, up to the one behind the last that answered."""
    end = next((i for i, hop in enumerate(hops) if hop.is_end), None)
    if end is not None:
        return hops[: end + 1]
    last = max((i for i, hop in enumerate(hops) if hop.rtts_s), default=-1)
    return hops[: last + 2]


def findings(trace: Trace) -> Iterator[str]:
    """What the trace says, a sentence each, the most important first."""
    hops = trace.hops
    target = hops[-1] if hops and hops[-1].is_target else None
    if target is None:
        yield _no_answer(trace)
    else:
        yield _arrived(trace, target)
        yield from _losses(hops)
    yield from _steps(hops)
    branches = [hop for hop in hops if len(hop.rtts_s) > 1]
    if branches:
        yield f"{_hops(branches)} answered from several addresses: the path is balanced over links, or moved meanwhile"
    yield from _mtu(trace)


def _arrived(trace: Trace, target: Hop) -> str:
    what = next(what for what in target.whats.values() if what in ARRIVED)
    words = {"open": f"port {trace.port} is open", "closed": f"port {trace.port} is closed", "echo": "it answers pings"}
    rtt = f"{_ms(min(target.all_s))} ms at the least, {_ms(median(target.all_s))} ms in the median"
    away = "1 hop" if target.ttl == 1 else f"{target.ttl} hops"
    return f"{trace.target} is {away} away, {rtt}; {words[what]}"


def _no_answer(trace: Trace) -> str:
    answering = [hop for hop in trace.hops if hop.rtts_s]
    if not answering:
        return f"nothing answers, not even the first router: is there a route to {trace.target}, or a firewall here?"
    last = answering[-1]
    address = next(iter(last.rtts_s))
    no = next((what for what in last.whats.values() if what in STOPPED), None)
    if no:
        return f"{address} (hop {last.ttl}) says that {trace.target} is {no}"
    other = "--icmp" if trace.kind == "tcp" else "--port 443"
    return f"nothing beyond hop {last.ttl} ({address}) answers: it ends there, or a firewall drops probes (try {other})"


def _losses(hops: tuple[Hop, ...]) -> Iterator[str]:
    at_target = hops[-1].loss_ratio
    if at_target < LOSS:
        if any(hop.loss_ratio >= LOSS and hop.rtts_s for hop in hops[:-1]):
            yield "hops on the way that answer not every probe spare themselves: the target loses none"
        return
    start = len(hops) - 1
    while start and (hops[start - 1].loss_ratio >= at_target / 2 or not hops[start - 1].rtts_s):
        start -= 1
    while not hops[start].rtts_s:
        start += 1
    yield f"{at_target:.0%} of the probes to the target are lost; the loss begins at or before hop {hops[start].ttl}"


def _steps(hops: tuple[Hop, ...]) -> Iterator[str]:
    """The hop that adds most: by the least RTT of it and all later ones, which no spared answer can raise."""
    known = [hop for hop in hops if hop.rtts_s]
    least = [min(min(later.all_s) for later in known[i:]) for i in range(len(known))]
    steps = [(b - a, one, other) for a, b, one, other in zip(least, least[1:], known, known[1:], strict=False)]
    added_s, one, other = max(steps, key=lambda step: step[0], default=(0.0, None, None))
    if one and other and added_s >= max(STEP_S, STEP_SHARE * least[-1]):
        yield (
            f"{_ms(added_s)} of {_ms(least[-1])} ms come between hop {one.ttl} ({next(iter(one.rtts_s))}) "
            f"and hop {other.ttl} ({next(iter(other.rtts_s))})"
        )


def _mtu(trace: Trace) -> Iterator[str]:
    mtu = trace.mtu
    if mtu is None:
        if trace.mtu_why_not:
            yield f"the path MTU is not known: {trace.mtu_why_not}"
    elif mtu.silent:
        segment_bytes = mtu.size_bytes - (60 if ":" in trace.target else 40)
        yield (
            f"packets above {mtu.size_bytes:,} bytes vanish and no router says so: downloads will hang. Let the mirror's "
            f"network pass ICMP 'too big', or clamp the MSS there to {segment_bytes:,}"
        )
    elif mtu.said_by:
        yield f"path MTU {mtu.size_bytes:,} bytes, as {mtu.said_by} says"
    else:
        yield f"path MTU {mtu.size_bytes:,} bytes, as this host's link"


def _hops(hops: list[Hop]) -> str:
    return ("hop " if len(hops) == 1 else "hops ") + ", ".join(str(hop.ttl) for hop in hops)


def _ms(seconds: float) -> str:
    """Milliseconds with a digit that means something."""
    return f"{seconds * 1000:.1f}"


def lines(trace: Trace) -> Iterator[str]:
    """The table and the findings, for a terminal."""
    port = f" port {trace.port}" if trace.kind == "tcp" else ""
    yield f"{trace.kind} from {trace.source} to {trace.target}{port}"
    rows = [("hop", "address", "lost", "RTT min", "median", "max", "")]
    for hop in trace.hops:
        number, lost = str(hop.ttl), f"{hop.loss_ratio:.0%}"
        for address, rtts_s in hop.rtts_s.items():
            said = hop.whats[address]
            words: list[str] = [] if said == "hop" else [said]
            words += [f"MPLS {'/'.join(map(str, hop.labels[address]))}"] if address in hop.labels else []
            rows.append(
                (number, address, lost, _ms(min(rtts_s)), _ms(median(rtts_s)), _ms(max(rtts_s)), ", ".join(words))
            )
            number = lost = ""
        if not hop.rtts_s:
            rows.append((number, "*", lost, "", "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    for row in rows:
        address = row[1].ljust(widths[1])
        numbers = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([numbers[0], address, *numbers[2:], row[6]]).rstrip()
    yield from (f"- {finding}" for finding in findings(trace))


def as_json(trace: Trace) -> dict[str, object]:
    """The trace for programs; times in ms."""
    return {
        "kind": trace.kind,
        "source": trace.source,
        "target": trace.target,
        "port": trace.port if trace.kind == "tcp" else None,
        "hops": [
            {
                "ttl": hop.ttl,
                "sent": hop.sent,
                "loss_ratio": round(hop.loss_ratio, 3),
                "answers": [
                    {
                        "address": address,
                        "what": hop.whats[address],
                        "rtt_ms": [round(rtt_s * 1000, 3) for rtt_s in rtts_s],
                        "mpls_labels": list(hop.labels.get(address, ())),
                    }
                    for address, rtts_s in hop.rtts_s.items()
                ],
            }
            for hop in trace.hops
        ],
        "path_mtu": None
        if trace.mtu is None
        else {"size_bytes": trace.mtu.size_bytes, "said_by": trace.mtu.said_by, "silent": trace.mtu.silent},
        "findings": list(findings(trace)),
    }
