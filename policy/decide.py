"""The decision: an ordered list of mirrors by fixed steps, each of which can be shown.

| step       | rule                                                                          | when nobody is left |
|------------|-------------------------------------------------------------------------------|---------------------|
| admin      | drained mirrors leave                                                         | all stay, said so   |
| up         | mirrors that are down from here leave (not yet known counts as up)            | all stay, said so   |
| content    | mirrors whose node says that it holds no content leave, whatever is asked     | all stay, said so   |
| fresh      | mirrors whose stamp is too old, too low or missing leave (if the service asks) | all stay, said so   |
| preference | higher local preference first                                                 |                     |
| capacity   | mirrors with a load above their limit, or busy taking in content, go behind   |                     |
| rtt        | lower score first (RTT + what proved loss costs); a difference below the margin is none |           |
| distance   | neither measured: the one nearer in the region tree first                     |                     |
| cost       | lower cost first                                                              |                     |
| order      | neither measured: the order of the configuration                              |                     |
| name       | exact tie                                                                     |                     |

Cost decides between two measured mirrors when their scores differ by less than half the margin.
The margin of two mirrors is the largest of `min_gain`, `min_gain_share` of the slower, and `confidence` standard errors of
their difference. The order before is where sorting starts, so a mirror passes another only with that margin. And the first
place changes on `rtt` or `cost` only when a challenger has stayed ahead for `dwell`, and ten times as long while its lead
is not clear, that is not above 4 standard errors by the paths' jitter. A clear lead over an incumbent that got worse than
it was at its best in this place acts at once: bad news acts at once, good news must last. A challenger that is known better
than before (live again after old or distant values) has brought knowledge, not news, and does not wait either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from core.config import Steering
from policy.evidence import Candidate
from policy.table import Quality


@dataclass(frozen=True, slots=True)
class Memory:
    """What one decision hands to the next: the order, since when the first is first, the best score it had since, and
    since when a challenger has been ahead of it (None: none is).

    `compared` tells of each mirror that was measured how well it was known.
    """

    order: tuple[str, ...] = ()
    since_s: float = -math.inf
    settled_s: float | None = None
    beaten_since_s: float | None = None
    switches: int = 0
    compared: Mapping[str, Quality] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """The order for one catchment: the first `eligible` mirrors may be answered, the rest were left out by a step.

    `decided_by` is the step that put the first before the second; `fail_open` the step that would have left nobody.
    """

    order: tuple[str, ...]
    eligible: int
    quality: Quality
    decided_by: str
    fail_open: str
    taken_s: float | None
    held: str
    memory: Memory


@dataclass(slots=True)
class Trace:
    """The reasons, kept when somebody asks: for each step the mirrors it left out, or why the first is first."""

    steps: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(step, remark, mirror -> reason)"""


_Reason = Callable[[Candidate], str]


def _votes(candidate: Candidate) -> str:
    return f"up for {candidate.up_votes} of {candidate.votes} vantages"


def _staleness(candidate: Candidate) -> str:
    return candidate.sync.why


_FILTERS: tuple[tuple[str, Callable[[Candidate], bool], _Reason], ...] = (
    ("admin", lambda c: not c.drained, lambda _c: "drained"),
    ("up", lambda c: c.up is not False, _votes),
    ("content", lambda c: not c.empty, _staleness),
    ("fresh", lambda c: c.fresh, _staleness),
)


def decide(
    candidates: Sequence[Candidate], memory: Memory, rules: Steering, now: float, trace: Trace | None = None
) -> Decision:
    """Order the candidates of one catchment. Pure: the same input gives the same decision; keep `memory` for the next."""
    remaining = list(candidates)
    left_out: list[Candidate] = []
    fail_open, decided_by = "", ""
    for step, stays, reason in _FILTERS:
        kept = [c for c in remaining if stays(c)]
        if len(kept) == len(remaining):
            if trace is not None:
                trace.steps.append((step, "all pass", {}))
            continue
        gone = [c for c in remaining if not stays(c)]
        if trace is not None:
            remark = f"{len(kept)} of {len(remaining)} pass" if kept else "nobody would be left: all stay (fail open)"
            trace.steps.append((step, remark, {c.name: reason(c) for c in gone}))
        if kept:
            left_out[:0] = gone
            remaining = kept
            decided_by = step
        else:
            fail_open = fail_open or step
    # An order that rested on no measurement is no reason to leave a better mirror behind.
    order = _sort(remaining, memory.order if memory.compared else (), rules)
    order, held, beaten_since_s = _hold_first(order, memory, rules, now)
    first = order[0]
    if len(order) > 1:
        decided_by = "dwell" if held else _compare(first, order[1], rules)[1]
    elif not decided_by:
        decided_by = "only"
    if trace is not None:
        _trace_order(trace, order, held, rules)
    names = tuple([c.name for c in order] + [c.name for c in left_out])
    return Decision(
        names,
        len(order),
        first.quality,
        decided_by,
        fail_open,
        first.taken_s,
        held,
        _remember(memory, names, candidates, beaten_since_s, now),
    )


def margin(a: Candidate, b: Candidate, rules: Steering) -> float:
    """Seconds by which two scores must differ to count as different."""
    slower = max(a.score_s or 0.0, b.score_s or 0.0)
    noise = rules.confidence * math.sqrt(a.se_s * a.se_s + b.se_s * b.se_s)
    return max(rules.min_gain, rules.min_gain_share * slower, noise)


CLEAR = 4.0
"""A lead is clear above this many standard errors by jitter: reached by chance about once in 30,000 independent looks."""

PATIENCE = 10
"""A lead that is not clear must last this many times `dwell`: ever so many estimates that share no sample must agree."""

_EQUAL_SHARE = 0.5
"""Cost decides only when the scores are within this share of the margin: at the margin's edge it would flutter."""


def _compare(a: Candidate, b: Candidate, rules: Steering) -> tuple[int, str]:
    """(sign, step): positive when `a` goes before `b`, zero when only the order before or the name could tell."""
    if a.preference != b.preference:
        return a.preference - b.preference, "preference"
    if a.full != b.full:
        return b.full - a.full, "capacity"
    if a.score_s is not None and b.score_s is not None:
        gain = b.score_s - a.score_s
        room = margin(a, b, rules)
        if abs(gain) > room:
            return (1 if gain > 0 else -1), "rtt"
        if abs(gain) <= room * _EQUAL_SHARE and a.mirror.cost != b.mirror.cost:
            return b.mirror.cost - a.mirror.cost, "cost"
        return 0, "rtt" if gain else "name"
    if a.score_s is not None or b.score_s is not None:
        return (1 if a.score_s is not None else -1), "rtt"
    if a.distance != b.distance:
        return (1 if _far(a) < _far(b) else -1), "distance"
    if a.mirror.cost != b.mirror.cost:
        return b.mirror.cost - a.mirror.cost, "cost"
    return b.position - a.position, "order"


def _far(candidate: Candidate) -> float:
    return math.inf if candidate.distance is None else candidate.distance


def _sort(candidates: list[Candidate], before: tuple[str, ...], rules: Steering) -> list[Candidate]:
    """Stable insertion from the order before: no mirror stays behind one that it is clearly better than."""
    rank = {name: i for i, name in enumerate(before)}
    min_gain, share = rules.min_gain, rules.min_gain_share
    order: list[Candidate] = []
    group: tuple[int, bool] | None = None
    start, slowest_s, dearest = 0, 0.0, 0
    for one in sorted(candidates, key=partial(_start_key, rank)):
        score_s, cost = one.score_s, one.mirror.cost
        if score_s is None:
            order.append(one)
            continue
        if group != (one.preference, one.full):
            group = (one.preference, one.full)
            start, slowest_s, dearest = len(order), score_s, cost
        # Most are in place already; this tells without comparing them with each other.
        ahead_s = slowest_s - score_s
        if (ahead_s <= min_gain or ahead_s <= share * slowest_s) and cost >= dearest:
            order.append(one)
        else:
            order.insert(_place(one, order, start, rules), one)
        slowest_s = score_s if score_s > slowest_s else slowest_s
        dearest = cost if cost > dearest else dearest
    return order


def _start_key(rank: Mapping[str, int], c: Candidate) -> tuple[object, ...]:
    if c.score_s is None:
        return -c.preference, c.full, True, _far(c), c.mirror.cost, c.position
    return -c.preference, c.full, False, rank.get(c.name, len(rank)), c.score_s, c.mirror.cost, c.name


def _place(one: Candidate, order: list[Candidate], start: int, rules: Steering) -> int:
    """Where `one` goes: before all that it beats, as far as none that beats it comes after.

    Those it can neither beat nor lose to are passed on the way: else a row of mirrors, each just within the margin of the
    next, would keep the best of them from the first place for ever.
    """
    at = len(order)
    for i in range(len(order) - 1, start - 1, -1):
        sign = _compare(one, order[i], rules)[0]
        if sign < 0:
            break
        if sign > 0:
            at = i
    return at


def _hold_first(
    order: list[Candidate], memory: Memory, rules: Steering, now: float
) -> tuple[list[Candidate], str, float | None]:
    """Keep the incumbent first while its challenger has not lasted; returns (order, challenger held back, since when)."""
    first = order[0]
    incumbent = next((c for c in order if memory.order and c.name == memory.order[0]), None)
    if incumbent is None or incumbent is first:
        return order, "", None
    _sign, step = _compare(first, incumbent, rules)
    since_s = memory.beaten_since_s if memory.beaten_since_s is not None else now
    if step not in ("rtt", "cost") or incumbent.score_s is None or first.score_s is None:
        return order, "", None
    known = memory.compared.get(first.name)
    if memory.settled_s is None or (known is None and now - memory.since_s < rules.dwell):
        # A cold start: the incumbent was put first before anybody had measured both, and has not lasted itself.
        return order, "", None
    if known is not None and first.quality < known:
        # The challenger did not get better, it is known better: the region's own vantages are back, say.
        return order, "", None
    if now - since_s >= _patience_s(first, incumbent, rules):
        return order, "", None
    if _is_clear(first, incumbent) and _got_worse(incumbent, memory, rules):
        return order, "", None
    return [incumbent, *(c for c in order if c is not incumbent)], first.name, since_s


def _is_clear(first: Candidate, incumbent: Candidate) -> bool:
    gain_s = (incumbent.score_s or 0.0) - (first.score_s or 0.0)
    return gain_s > CLEAR * math.hypot(first.jitter_se_s, incumbent.jitter_se_s)


def _patience_s(first: Candidate, incumbent: Candidate, rules: Steering) -> float:
    return rules.dwell if _is_clear(first, incumbent) else PATIENCE * rules.dwell


def _got_worse(incumbent: Candidate, memory: Memory, rules: Steering) -> bool:
    if memory.settled_s is None or incumbent.score_s is None:
        return False
    return incumbent.score_s - memory.settled_s > max(2 * rules.min_gain, 0.25 * memory.settled_s, 3 * incumbent.se_s)


def _remember(
    memory: Memory, order: tuple[str, ...], candidates: Sequence[Candidate], beaten_since_s: float | None, now: float
) -> Memory:
    score_s = next(c.score_s for c in candidates if c.name == order[0])
    known = memory.compared
    news = {c.name: c.quality for c in candidates if c.score_s is not None and known.get(c.name) is not c.quality}
    compared = {**known, **news} if news else known
    if not memory.order or memory.order[0] != order[0]:
        switches = memory.switches + (1 if memory.order else 0)
        return Memory(order, now, score_s, None, switches, compared)
    settled_s = memory.settled_s
    if score_s is not None:
        settled_s = score_s if settled_s is None else min(score_s, settled_s)
    return Memory(order, memory.since_s, settled_s, beaten_since_s, memory.switches, compared)


def _trace_order(trace: Trace, order: list[Candidate], held: str, rules: Steering) -> None:
    first = order[0]
    reasons: dict[str, str] = {}
    for other in order[1:]:
        _sign, step = _compare(first, other, rules)
        reasons[other.name] = _why_behind(first, other, step, rules)
    trace.steps.append(("rank", f"{first.name} first", reasons))
    if held:
        challenger = next(c for c in order if c.name == held)
        lead = "clearly" if _is_clear(challenger, first) else "within what its jitter could do"
        need_s = _patience_s(challenger, first, rules)
        trace.steps.append(
            ("dwell", f"{held} is ahead, {lead}, but not for {need_s:g} s yet: {first.name} stays first", {})
        )


def _why_behind(first: Candidate, other: Candidate, step: str, rules: Steering) -> str:
    match step:
        case "preference":
            return f"preference {other.preference}, {first.name} has {first.preference}"
        case "capacity":
            return "busy taking in new content" if other.busy else "reports a load above its limit"
        case "rtt" if first.score_s is not None and other.score_s is not None:
            gap_ms = (other.score_s - first.score_s) * 1000
            need_ms = margin(first, other, rules) * 1000
            if gap_ms > need_ms:
                return f"slower by {gap_ms:.1f} ms"
            if gap_ms < -need_ms:
                return f"ahead by {-gap_ms:.1f} ms, but not for long enough"
            return f"within the margin of {need_ms:.1f} ms ({gap_ms:+.1f} ms): the order stays"
        case "rtt":
            return "not measured from here"
        case "distance":
            return "further away in the region tree"
        case "cost":
            return f"cost {other.mirror.cost}, {first.name} has {first.mirror.cost}"
        case "order":
            return "later in the configuration"
        case _:
            return "exact tie, later by name"
