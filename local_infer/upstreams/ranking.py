"""Which upstream is asked: what real requests and probes say of each goes through policy's estimator and decision code.

For each upstream there is one estimate of its health (every outcome), one of its probes' RTT, and one of TTFB for each
(model, lane): a big model is not an upstream further away, and a whole answer is not a slow stream. An upstream that has
not been asked for a model yet is expected to take its probe's RTT and as long to think as the others did for it at their
best: that they are slow just now is their matter. A small share of requests finds out what it takes (`exploring`).

Pure: time is an argument. Nothing here grows with what clients send: model names are kept by last use.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.config_infer import InferConfig
from core.messages import MAX_RTT_S, PathSample
from local_infer.upstreams.attempt import Failure, pause_s, reason_of
from local_infer.upstreams.circuit import Ticket, find_outliers
from local_infer.upstreams.exploring import BESIDE_S, LEAST_SAMPLES, PAUSE_S, Exploration, is_much_slower
from local_infer.upstreams.member import MAX_LANES, Lane, Member
from policy.decide import Decision, Memory, decide
from policy.estimate import PathState
from policy.evidence import Candidate
from policy.table import Quality

DECIDE_EVERY_S = 0.05
"""An order rests on estimates over many samples: it is made anew this often, and at once when an upstream fails."""

_OUTLIERS_EVERY_S = 1.0

SAMPLE_EVERY_S = 0.02
"""Outcomes closer to the last one taken are left out, good or bad: estimates rest on 9 to 64 samples, which a busy upstream
would fill within milliseconds, and each costs 10 us."""

_KNOWN_FOR = 10
"""Times `live_for`. A rival is measured now and then: were it taken for unknown in between, each measurement would be new
knowledge, on which the decision acts without a dwell, and a lucky one would make it first."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom to ask now. Without a `member`: `why` not, and `wait_s` when a rate limit is over by then.

    `beside_s` is set when a rival is explored: the best is asked beside it when it has not begun to answer by then.
    """

    member: Member | None
    ticket: Ticket | None = None
    why: str = ""
    wait_s: float | None = None
    beside_s: float | None = None

    @property
    def explores(self) -> bool:
        """Whether it is a rival of the best, asked to know what it takes."""
        return self.beside_s is not None


@dataclass(frozen=True, slots=True)
class RateLimit:
    """No upstream takes a request for so long; `in_ms`: the one that does first told it to the millisecond."""

    wait_s: float
    in_ms: bool


@dataclass(slots=True)
class _Ranked:
    decision: Decision
    at_s: float
    generation: int
    exploration: Exploration = field(default_factory=Exploration)


class Ranking:
    """All upstreams, ordered for each (model, lane)."""

    def __init__(self, config: InferConfig) -> None:
        self.members: dict[str, Member] = {}
        self._routing = config.routing
        self._ranked: OrderedDict[Lane, _Ranked] = OrderedDict()
        self._generation = 0
        self._outliers_s = 0.0
        self.reconfigure(config)

    def reconfigure(self, config: InferConfig) -> None:
        """Take over a new configuration; an upstream whose section and rules did not change keeps what is known of it."""
        same_rules = config.routing == self._routing
        self._routing = config.routing
        members = {}
        for position, (name, upstream) in enumerate(config.upstreams.items()):
            member = self.members.get(name)
            if not same_rules or member is None or member.config != upstream or member.position != position:
                member = Member(name, upstream, config.routing, position)
            members[name] = member
        self.members = members
        self._ranked.clear()
        self._generation += 1

    # -- what happens

    def began(
        self, member: Member, lane: Lane, ttfb_s: float, ticket: Ticket, now: float, *, whole: bool, sample: bool = True
    ) -> None:
        """An answer began after `ttfb_s`; `sample` False: it is no measure of the upstream (a long whole answer).

        Of a stream (`whole` False) the breaker counts the end, or one that always cuts its streams would look half good.
        """
        was = member.health.state
        if whole or ticket.trial:
            member.circuit.succeeded(ticket, now)
        member.limits = 0
        member.unreached = False
        times = member.times(lane)
        times.spread.add(ttfb_s)
        if now - member.health.taken_s >= SAMPLE_EVERY_S:
            member.health.take(_sample(member.name, "ttfb", ttfb_s, now))
        if sample and (now - times.ttfb.taken_s >= SAMPLE_EVERY_S or times.ttfb.count < LEAST_SAMPLES):
            times.take(_sample(member.name, "ttfb", ttfb_s, now))
            if times.ttfb.count <= LEAST_SAMPLES or is_much_slower(ttfb_s, times.best_s or 0.0, 0.0):
                self._generation += 1  # news, not one more of many: the next request may go elsewhere
        if ticket.trial or member.health.state is not was:
            self._generation += 1

    def failed(self, member: Member, failure: Failure, ticket: Ticket, now: float) -> None:
        """An attempt failed."""
        if failure.full:
            member.circuit.abandoned(ticket)
            member.limits += 1
            pause = pause_s(member.limits) if failure.retry_after_s is None else failure.retry_after_s
            if now + pause >= member.limited_until_s:
                member.limited_until_s = now + pause
                member.limited_by = replace(failure, body=b"")  # which may be long
        elif failure.of_path:
            self._lost(member, failure, ticket, now)
        else:
            member.circuit.abandoned(ticket)
        self._generation += 1

    def left(self, member: Member, lane: Lane, ticket: Ticket, waited_s: float, now: float) -> None:
        """An attempt was given up from our side: the client went away, or a hedge was faster.

        That it took longer than it usually does is still known; else who is always overtaken would never look slow.
        """
        member.circuit.abandoned(ticket)
        times = member.times(lane)
        if times.ttfb.rtt_s is not None and waited_s > times.ttfb.rtt_s:
            times.take(_sample(member.name, "ttfb", waited_s, now))

    def probed(self, member: Member, rtt_s: float | None, failure: Failure | None, now: float) -> None:
        """A probe is over: with a `failure`, or with an RTT (None: it had to connect first, which says nothing of RTT)."""
        was = member.health.state
        if failure is not None:
            if failure.of_path:
                # Each counts, however close: those of a suspect are few, and fail together when the way is gone.
                self._lost(member, failure, self._ticket(member, now), now, always=True)
        else:
            # Good probes heal the estimate of health; into the breaker's count they do not go: `/models` may well work
            # while every real request fails.
            word = _sample(member.name, "probe", rtt_s if rtt_s is not None else 0.0, now)
            member.health.take(word)
            if rtt_s is not None:
                member.probe.take(word)
            if member.unreached and member.health.state is PathState.UP:
                member.circuit.retry_now(now)
        if member.health.state is not was:
            self._generation += 1

    def _lost(self, member: Member, failure: Failure, ticket: Ticket, now: float, *, always: bool = False) -> None:
        member.lost_by = failure.reason
        member.unreached = failure.status is None and failure.reason != "error in stream"
        member.circuit.failed(ticket, now)
        if always or now - member.health.taken_s >= SAMPLE_EVERY_S:
            member.health.take(_sample(member.name, "ttfb", None, now, failure.reason))

    def ended(self, member: Member, ticket: Ticket, now: float) -> None:
        """A stream that had begun ended as it should, or its client left."""
        if not ticket.trial:
            member.circuit.succeeded(ticket, now)

    def cut(self, member: Member, reason: str, ticket: Ticket, now: float) -> None:
        """A stream that had begun was cut."""
        # A trial's ticket was used up when it began.
        self._lost(member, Failure(reason), ticket if not ticket.trial else self._ticket(member, now), now, always=True)
        self._generation += 1

    def _ticket(self, member: Member, now: float) -> Ticket:
        """For an outcome without leave; one that moves nothing while the circuit is open."""
        return member.circuit.admit(now) or Ticket(-1)

    # -- what follows

    def order(self, lane: Lane, now: float) -> Decision | None:
        """The decision for a lane; None when no upstream serves the model."""
        ranked = self._ranked.get(lane)
        if ranked is not None and ranked.generation == self._generation and now - ranked.at_s < DECIDE_EVERY_S:
            return ranked.decision
        serving = [member for member in self.members.values() if member.serves(lane[0])]
        if not serving:
            return None
        if now - self._outliers_s >= _OUTLIERS_EVERY_S:
            self._outliers_s = now
            if ranked is not None:
                self._eject(serving, lane, ranked.decision.order[0], now)
        memory = ranked.decision.memory if ranked is not None else Memory()
        think_s = self._think_s(serving, lane, now)
        candidates = [self._candidate(member, lane, think_s, now) for member in serving]
        decision = decide(candidates, memory, self._routing.steering, now)
        exploration = ranked.exploration if ranked is not None else Exploration()
        self._ranked[lane] = _Ranked(decision, now, self._generation, exploration)
        self._ranked.move_to_end(lane)
        if len(self._ranked) > MAX_LANES:
            self._ranked.popitem(last=False)
        return decision

    def choose(self, lane: Lane, tried: Sequence[str], now: float) -> Choice:
        """The next upstream to ask, never the one tried last, those not tried before the others."""
        decision = self.order(lane, now)
        if decision is None:
            return Choice(None, why="no upstream")
        rival = None if tried else self._rival(lane, decision, now)
        if rival is not None:
            return rival
        asked = [self.members[name] for name in self._worth_asking(decision, now)]
        last = tried[-1] if tried else ""
        for again in (False, True):
            for member in asked:
                if member.name == last or (member.name in tried) is not again or now < member.limited_until_s:
                    continue
                ticket = member.circuit.admit(now)
                if ticket is not None:
                    return Choice(member, ticket)
        limited = [m.limited_until_s - now for m in asked if m.limited_until_s > now and m.circuit.would_admit(now)]
        if limited:
            return Choice(None, why="rate limited", wait_s=min(limited))
        return Choice(None, why="" if last else self.down_reason(lane[0], now) or "open circuit")

    def _rival(self, lane: Lane, decision: Decision, now: float) -> Choice | None:
        """A rival of the first to explore with the request that just came; None: it goes to whom it would."""
        routing = self._routing
        if not routing.explore or decision.eligible < 2 or routing.attempts < 2 or not routing.retry_budget:
            return None
        exploration = self._ranked[lane].exploration
        exploration.earn(routing.explore)
        first = self.members[decision.order[0]]
        times = first.lanes.get(lane)
        if times is None or times.ttfb.rtt_s is None or times.best_s is None or times.ttfb.count < LEAST_SAMPLES:
            return None
        if not exploration.may(now, urgent=is_much_slower(times.ttfb.rtt_s, times.best_s, times.ttfb.jitter_se_s)):
            return None
        unknown = [
            member
            for member in map(self.members.__getitem__, decision.order[1 : decision.eligible])
            if self._is_unknown(member, lane, now)
            and member.config.preference == first.config.preference
            and exploration.may_ask(member.name, now)
            and member.rival.may_ask(now)
        ]
        if not unknown:
            exploration.rest(now)
            return None
        rival = min(unknown, key=lambda member: member.lanes[lane].ttfb.taken_s if lane in member.lanes else -math.inf)
        exploration.begin(rival.name, now, routing.first_byte if lane[1] == "stream" else routing.whole)
        usual_s = times.spread.p95_s() or 2 * times.ttfb.rtt_s
        return Choice(rival, rival.circuit.admit(now), beside_s=max(2 * usual_s, usual_s + BESIDE_S))

    def _is_unknown(self, member: Member, lane: Lane, now: float) -> bool:
        """Whether it is well, has room, and its times are missing or old."""
        full = now < member.limited_until_s or member.in_flight >= member.config.connections
        if full or member.is_up is False or member.state(now) != "closed":
            return False
        times = member.lanes.get(lane)
        if times is None or times.ttfb.rtt_s is None or times.ttfb.count < LEAST_SAMPLES:
            return True
        return times.ttfb.taken_s < now - self._routing.steering.live_for

    def explored(self, member: Member, lane: Lane, outcome: str, started_s: float, now: float) -> None:
        """The exploring request to a rival is over: `ok`, `overtaken` by the best, `error`, `failed` or `left`."""
        times = member.times(lane)
        if outcome == "overtaken" and (times.ttfb.rtt_s is None or now - started_s > times.ttfb.rtt_s):
            # Cut off by who was faster: it takes longer than this.
            times.take(_sample(member.name, "ttfb", now - started_s, now))
        member.rival.end(outcome, now, self._routing.steering.live_for)
        ranked = self._ranked.get(lane)
        if ranked is not None:
            in_vain = outcome in ("error", "failed")
            pause_s = 2 * self._routing.steering.live_for if in_vain else PAUSE_S
            ranked.exploration.end(member.name, now, pause_s)

    def down_reason(self, model: str, now: float) -> str:
        """Why nobody can be asked for `model` now, our key's fault first: no client mends it; empty: somebody can."""
        reasons = self.down_reasons(model, now)
        return "credentials" if "credentials" in reasons.values() else next(reversed(reasons.values()), "")

    def down_reasons(self, model: str, now: float) -> dict[str, str]:
        """Each upstream of `model` and why it cannot be asked now; empty: one can.

        It is the last failure of one whose circuit is open, or who is down.
        """
        reasons: dict[str, str] = {}
        for member in self.members.values():
            if not member.serves(model):
                continue
            if not member.circuit.would_admit(now):
                reasons[member.name] = member.lost_by or "open circuit"
            elif member.limited_until_s - now > self._routing.longest_retry_after:
                reasons[member.name] = "rate limited"
            elif member.health.state is PathState.DOWN:
                reasons[member.name] = member.lost_by or "down"
            else:
                return {}
        return reasons or {"": "no upstream"}

    def rate_limit(self, model: str, reasons: Mapping[str, str], now: float) -> RateLimit | None:
        """How long to wait when every upstream that could be asked for `model` said 429; None: one said something else.

        `reasons` is what went wrong with those that were asked just now; who could not be reached could not be asked.
        """
        limits = []
        for member in self.members.values():
            if not member.serves(model):
                continue
            why = reasons.get(member.name)
            if why is None and member.circuit.would_admit(now) and member.is_up is not False:
                if now >= member.limited_until_s or member.limited_by.status != 429:
                    return None
                why = member.limited_by.reason
            if why == reason_of(429):
                limits.append((max(0.0, member.limited_until_s - now), not member.limited_by.in_ms))
        return RateLimit(min(limits)[0], not min(limits)[1]) if limits else None

    def _worth_asking(self, decision: Decision, now: float) -> Iterator[str]:
        """Those that the decision left in, then those only left out for being slow."""
        yield from decision.order[: decision.eligible]
        for name in decision.order[decision.eligible :]:
            member = self.members[name]
            if member.circuit.is_ejected(now) and member.is_up is not False:
                yield name

    def _candidate(self, member: Member, lane: Lane, think_s: float | None, now: float) -> Candidate:
        rules = self._routing.steering
        one = Candidate(member.plan)
        one.drained = member.circuit.is_ejected(now) or not member.circuit.would_admit(now)
        one.up = member.is_up
        one.votes, one.up_votes = 1, int(one.up is not False)
        one.full = now < member.limited_until_s or member.in_flight >= member.config.connections
        one.loss_cost_s = member.health.loss_cost_s
        times = member.lanes.get(lane)
        ttfb = times.ttfb if times is not None else None
        if ttfb is not None and ttfb.rtt_s is not None and ttfb.taken_s >= now - rules.stale_for:
            one.rtt_s, one.se_s, one.jitter_se_s = ttfb.rtt_s, ttfb.se_s, ttfb.jitter_se_s
            one.taken_s = ttfb.taken_s
            one.quality = Quality.LIVE if ttfb.taken_s >= now - _KNOWN_FOR * rules.live_for else Quality.STALE
        elif member.probe.rtt_s is not None and member.probe.taken_s >= now - rules.stale_for:
            one.rtt_s = member.probe.rtt_s + (think_s or 0.0)
            one.se_s = max(member.probe.se_s, one.rtt_s / 5) if think_s is not None else member.probe.se_s
            one.jitter_se_s = member.probe.jitter_se_s
            one.taken_s = member.probe.taken_s
            one.quality = Quality.PREDICTED
        if one.rtt_s is not None:
            one.score_s = one.rtt_s + one.loss_cost_s
        return one

    def _think_s(self, serving: Sequence[Member], lane: Lane, now: float) -> float | None:
        """How long the upstreams that were asked took at their best beyond the way there; None: none was asked.

        At their best: a rival predicted by how slow the first is now would never be better than it.
        """
        oldest = now - self._routing.steering.stale_for
        known = []
        for member in serving:
            times = member.lanes.get(lane)
            if times is not None and times.best_s is not None and times.ttfb.taken_s >= oldest:
                known.append(max(0.0, times.best_s - (member.probe.rtt_s or 0.0)))
        return statistics.median(known) if known else None

    def _eject(self, serving: Sequence[Member], lane: Lane, first: str, now: float) -> None:
        """Eject the first in the order if it is an outlier: who is behind anyway does no harm."""
        rules = self._routing.breaker
        live = now - self._routing.steering.live_for
        times_s = {}
        for member in serving:
            times = member.lanes.get(lane)
            if times is None or times.ttfb.taken_s < live or member.is_up is False:
                continue
            healthy = member.circuit.would_admit(now) and not member.circuit.is_ejected(now)
            if healthy and times.ttfb.rtt_s is not None and times.ttfb.count >= rules.least:
                times_s[member.name] = times.ttfb.rtt_s
        if first in find_outliers(times_s, rules.slow_factor):
            self.members[first].circuit.eject(now)
            # It is judged afresh when it is back.
            self.members[first].lanes.pop(lane, None)


def _sample(name: str, check: str, rtt_s: float | None, now: float, loss: str = "") -> PathSample:
    if rtt_s is not None:
        rtt_s = min(max(0.0, rtt_s), MAX_RTT_S)
    return PathSample("self", "local", name, check, 4, 0, rtt_s, now, loss)
