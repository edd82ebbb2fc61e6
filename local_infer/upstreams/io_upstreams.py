"""The upstreams at work: who is asked in which order, second tries, hedges, the relay of streams, and reloads.

A request costs one choice (`ranking`), one attempt (`io_attempt`) and, for a stream, a generator that hands on runs of
whole events. Retries and hedges happen only before anything was sent to the client. Cancelling `ask`, or closing the
stream that it gave, cancels the upstream at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.io_log import get_logger
from local_infer.api.headers import visible_headers
from local_infer.api.sse import DONE, write_event
from local_infer.fault import UNAVAILABLE, ApiError, Unreachable
from local_infer.model import Answer, Ask, Clock, ModelCard, Origin, Step, Stream
from local_infer.room import Room
from local_infer.telemetry.call import Call, begin_call
from local_infer.upstreams.attempt import Failure, body_for, lane_of
from local_infer.upstreams.circuit import HEDGE_WINDOW_S, RETRY_FLOOR, RETRY_WINDOW_S, Budget, Ticket, hedge_after_s
from local_infer.upstreams.io_attempt import AttemptFailed, Begun, Broken, Reply, begin, events_of, hold_first
from local_infer.upstreams.io_probing import Link, Probing, open_link
from local_infer.upstreams.member import Lane, Member
from local_infer.upstreams.passing import Passing
from local_infer.upstreams.ranking import Choice, Ranking
from local_infer.upstreams.resume import Sofar, continuation, ending, may_resume
from local_infer.upstreams.run import Run
from local_infer.upstreams.upstream_metrics import UpstreamMetrics

log = get_logger("upstreams")

_DRAIN_S = 1.0
"""After `[DONE]` the end of the response is waited for so long, behind, so that the connection can be used again."""

_CUT = write_event(
    ApiError(503, UNAVAILABLE, "the answer was cut before its end", "ask again", code="stream_cut").body()
)


@dataclass(slots=True)
class _Won:
    """An answer that has begun, and who gives it."""

    begun: Begun
    member: Member
    link: Link
    ticket: Ticket
    call: Call
    lane: Lane
    unnoted: bool = True
    """A stream whose beginning is noted once its first event is on its way."""


@dataclass(slots=True)
class _Relay:
    """A stream on its way to the client. `held`: who gives it now; `tried`: who gave a part of it, and broke.

    `over`: nothing more comes. `noted`: how it ended is noted of who gave it.
    """

    ask: Ask
    held: _Won | None
    passing: Passing
    deadline_s: float
    tried: list[str] = field(default_factory=list)
    over: bool = False
    noted: bool = False


class IoUpstreams:
    """The APIs that requests are forwarded to; see `model.Upstreams`."""

    def __init__(
        self, config: InferConfig, clock: Clock, rng: Random, registry: CollectorRegistry, room: Room | None = None
    ) -> None:
        self._config = config
        self._room = room or Room(config.limits)
        self._clock = clock
        self._metrics = UpstreamMetrics(registry)
        self._ranking = Ranking(config)
        self._links: dict[str, Link] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._set_budgets()
        self._probing = Probing(self._ranking, self._links, self._metrics, clock, rng)

    @classmethod
    async def start(
        cls, config: InferConfig, clock: Clock, rng: Random, registry: CollectorRegistry, room: Room | None = None
    ) -> IoUpstreams:
        """Open the pools, and probe each upstream once, for a second at most. `room` is for whole answers as they come.

        NearpathError when a key or a certificate is no good.
        """
        upstreams = cls(config, clock, rng, registry, room)
        upstreams._links.update(await upstreams._open_links(config))
        await upstreams._probing.start(config)
        return upstreams

    async def reconfigure(self, config: InferConfig) -> None:
        """Take over a new configuration. Unchanged upstreams keep connections and estimates; answers under way go on."""
        links = await self._open_links(config)
        gone = [link for name, link in self._links.items() if links.get(name) is not link]
        for name in self._links.keys() - links.keys():
            self._metrics.forget(name)
        self._links.clear()
        self._links.update(links)
        self._config = config
        self._set_budgets()
        self._ranking.reconfigure(config)
        await self._probing.start(config)
        for link in gone:
            link.retire(self._spawn)

    async def close(self) -> None:
        """Stop probing and close all connections; answers under way are cut."""
        await self._probing.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in self._links.values():
            await link.transport.close()

    async def _open_links(self, config: InferConfig) -> dict[str, Link]:
        links: dict[str, Link] = {}
        try:
            for name, one in config.upstreams.items():
                links[name] = open_link(name, one, config.routing, self._links.get(name))
        except BaseException:
            for name, link in links.items():
                if self._links.get(name) is not link:
                    await link.transport.close()
            raise
        return links

    def _set_budgets(self) -> None:
        routing = self._config.routing
        self._retries = Budget(routing.retry_budget, RETRY_WINDOW_S, RETRY_FLOOR)
        self._hedges = Budget(routing.hedge, HEDGE_WINDOW_S)

    # -- model.Upstreams

    def down_reason(self, model: str) -> str:
        """Why no upstream can be asked for `model` now; empty: there is one."""
        return self._ranking.down_reason(model, self._clock())

    def down_reasons(self, model: str) -> Mapping[str, str]:
        """Each upstream of `model` and why it cannot be asked now; empty: one can."""
        return self._ranking.down_reasons(model, self._clock())

    def models(self) -> Sequence[ModelCard]:
        """The models of the configuration, and those that upstreams which serve every model have listed."""
        return self._probing.cards()

    async def ask(self, ask: Ask, deadline_s: float) -> Answer:
        """The best upstream's answer. An upstream must be reached within `give_up`; once it has the request, it may think
        for `first_byte` or `whole`, but not past `deadline_s`. Unreachable when none begins an answer.
        """
        won = await self._win(ask, deadline_s)
        begun, member = won.begun, won.member
        origin = Origin(Step.UPSTREAM, member.name)
        headers = visible_headers(begun.headers)
        if begun.body is not None:
            return Answer(begun.status, headers, begun.body, origin)
        passing = Passing(ask, Sofar(ask.endpoint) if may_resume(ask) else None)
        stream = self._relay(_Relay(ask, won, passing, deadline_s))
        # Begun here, so that closing it always reaches its `finally`, also when nobody takes the first event.
        await anext(stream)
        return Answer(begun.status, headers, stream, origin)

    # -- attempts

    async def _win(self, ask: Ask, deadline_s: float, tried: Sequence[str] = ()) -> _Won:
        routing = self._config.routing
        now = self._clock()
        run = Run(ask, (ask.model, lane_of(ask)), now + routing.give_up, deadline_s, list(tried))
        self._retries.count_request(now)
        if routing.hedge:
            self._hedges.count_request(now)
        attempts, again = 0, False
        while attempts < routing.attempts:
            now = self._clock()
            if now >= min(run.give_up_s, deadline_s):
                break
            choice = self._ranking.choose(run.lane, run.tried, now)
            if choice.member is None:
                if not await self._wait(choice, run, now):
                    break
                continue
            if choice.explores:
                won = await self._explore(choice, run)
                if won is not None:
                    return won
                continue
            if attempts and not again and not self._afford(choice):
                break
            attempts += 0 if again else 1
            again = False
            try:
                return await self._race(choice, run)
            except AttemptFailed as failed:
                # A kept connection that was closed just then says nothing: once more, to whom is best now.
                again = failed.failure.stale_connection and not again
                if again:
                    run.tried.pop()
        raise self._unreachable(run)

    async def _explore(self, choice: Choice, run: Run) -> _Won | None:
        """A rival's answer, or that of the best, if it was asked beside; None: ask as ever.

        An error answer of the rival is none: it may be about what only this one lacks, such as the model.
        """
        assert choice.member is not None
        outcome, started_s = "failed", self._clock()
        try:
            won = await self._race(choice, run)
            outcome = "overtaken" if won.member is not choice.member else "error" if won.begun.status >= 400 else "ok"
            return won if outcome != "error" else None
        except AttemptFailed:
            return None
        except asyncio.CancelledError:
            outcome = "left"
            raise
        finally:
            self._ranking.explored(choice.member, run.lane, outcome, started_s, self._clock())
            self._metrics.explored(choice.member.name, outcome)

    def _afford(self, choice: Choice) -> bool:
        """Whether a second try is within the budget; if not, the leave to ask is given back."""
        afforded = self._retries.take(self._clock())
        self._metrics.retried("made" if afforded else "refused")
        if not afforded and choice.member is not None and choice.ticket is not None:
            choice.member.circuit.abandoned(choice.ticket)
        return afforded

    async def _wait(self, choice: Choice, run: Run, now: float) -> bool:
        """Wait for a rate limit that is over soon; False when there is nothing to wait for."""
        run.why = choice.why
        run.wait_s = choice.wait_s
        longest_s = min(self._config.routing.longest_retry_after, run.give_up_s - now, run.deadline_s - now)
        if choice.wait_s is None or choice.wait_s > longest_s:
            return False
        # It asked to be asked again: that is not asking the same one twice in a row.
        run.tried.clear()
        await asyncio.sleep(choice.wait_s + 0.001)
        return True

    async def _race(self, choice: Choice, run: Run) -> _Won:
        """One attempt, and a second one beside it when it is slow.

        That is: slower than nearly all before it, within the budget; or a rival that is slower than the best.
        """
        member, ticket = choice.member, choice.ticket
        assert member is not None
        assert ticket is not None
        hedge_s = None
        # A trial is never hedged: cancelled before its first step, a task would keep the leave for ever.
        if self._config.routing.hedge and run.lane in member.lanes and not ticket.trial:
            p95_s = member.lanes[run.lane].spread.p95_s()
            hedge_s = hedge_after_s(p95_s, 0.0, run.give_up_s - self._clock())
        if choice.beside_s is not None:
            hedge_s = choice.beside_s
        if hedge_s is None:
            return await self._attempt(member, ticket, run)
        first = asyncio.ensure_future(self._attempt(member, ticket, run))
        racers: list[asyncio.Future[_Won]] = [first]
        try:
            await asyncio.wait(racers, timeout=hedge_s)
            if not first.done():
                second = self._hedge(run, within_budget=not choice.explores)
                if second is not None:
                    racers.append(second)
            return await self._first_of(racers)
        finally:
            await self._stop(racers)

    def _hedge(self, run: Run, *, within_budget: bool) -> asyncio.Future[_Won] | None:
        choice = self._ranking.choose(run.lane, run.tried, self._clock())
        if choice.member is None or choice.ticket is None:
            return None
        fresh = choice.member.name not in run.tried and not choice.ticket.trial
        if not fresh or (within_budget and not self._hedges.take(self._clock())):
            choice.member.circuit.abandoned(choice.ticket)
            self._metrics.hedged("refused")
            return None
        return asyncio.ensure_future(self._attempt(choice.member, choice.ticket, run))

    async def _first_of(self, racers: list[asyncio.Future[_Won]]) -> _Won:
        waiting = set(racers)
        while True:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            good = [racer for racer in racers if racer in done and racer.exception() is None]
            if good:
                if len(racers) > 1:
                    self._metrics.hedged("lost" if good[0] is racers[0] else "won")
                winner = good[0]
                racers.remove(winner)
                return winner.result()
            if not waiting:
                return racers[0].result()  # raises

    async def _stop(self, racers: Sequence[asyncio.Future[_Won]]) -> None:
        """Cancel attempts that are not wanted any more, and close what they may have begun in between."""
        for racer in racers:
            racer.cancel()
        for outcome in await asyncio.gather(*racers, return_exceptions=True):
            if isinstance(outcome, _Won):
                self._note_begun(outcome, self._clock())
                if outcome.begun.reply is not None:
                    await outcome.begun.reply.close()
                    outcome.call.end("left", outcome.call.started_s + outcome.begun.ttfb_s)
                    outcome.link.leave(outcome.member)

    async def _attempt(self, member: Member, ticket: Ticket, run: Run) -> _Won:
        routing = self._config.routing
        link = self._links.get(member.name)
        if link is None:  # gone with a reload while we waited
            member.circuit.abandoned(ticket)
            raise AttemptFailed(Failure("no upstream", stale_connection=True))
        started_s = member.asked_s = self._clock()
        ask = run.ask
        begin_s = min(routing.first_byte if ask.stream else routing.whole, max(0.001, run.deadline_s - started_s))
        connect_s = min(routing.connect, max(0.001, run.give_up_s - started_s))
        model = member.config.models.get(ask.model, ask.model)
        body = body_for(ask, model)
        call = begin_call(ask, model, member.name, member.config.url, started_s)
        run.tried.append(member.name)
        link.enter(member)
        outcome, kept = "left", False
        try:
            begun = await begin(
                link.transport, ask, body, connect_s, begin_s, link.secret, self._clock, self._room, call.headers
            )
            outcome, kept = "ok", begun.reply is not None
            call.status, call.first_s = begun.status, started_s + begun.ttfb_s
        except AttemptFailed as failed:
            outcome, call.status = failed.failure.reason, failed.failure.status or 0
            self._note_failure(member, failed.failure, ticket, run)
            raise
        except ApiError:  # no room for the answer here, which says nothing of the upstream
            outcome = "no room"
            member.circuit.abandoned(ticket)
            raise
        finally:
            now = self._clock()
            if outcome == "left":
                self._ranking.left(member, run.lane, ticket, now - started_s, now)
            if not kept:
                link.leave(member)
                call.end(outcome, now)
            if outcome != "ok":
                self._metrics.attempted(member.name, outcome)
        won = _Won(begun, member, link, ticket, call, run.lane)
        if begun.reply is None or ticket.trial:
            self._note_begun(won, now)
        return won

    def _note_begun(self, won: _Won, now: float) -> None:
        """What the beginning of an answer says of its upstream. The first event of a stream does not wait for it."""
        if won.unnoted:
            won.unnoted = False
            begun, member, lane = won.begun, won.member, won.lane
            whole = begun.reply is None
            self._ranking.began(member, lane, begun.ttfb_s, won.ticket, now, whole=whole, sample=begun.sample)
            self._metrics.attempted(member.name, "ok")
            self._metrics.began(member.name, lane[1], begun.ttfb_s)

    def _note_failure(self, member: Member, failure: Failure, ticket: Ticket, run: Run) -> None:
        self._ranking.failed(member, failure, ticket, self._clock())
        run.failed(member.name, failure)
        if failure.reason == "credentials":
            fix = "look at its key_file: clients cannot mend this"
            log.error("upstream_refuses_our_key", upstream=member.name, status=failure.status, fix=fix)
        elif not failure.stale_connection:
            # At worst thousands a second; changes of state are told by the probing.
            log.debug("attempt_failed", upstream=member.name, reason=failure.reason, request=run.ask.id)

    def _unreachable(self, run: Run) -> Unreachable:
        limit = None if run.other else self._ranking.rate_limit(run.ask.model, run.reasons, self._clock())
        return run.unreachable(limit)

    # -- streams

    async def _relay(self, relay: _Relay) -> Stream:
        """The events of a stream as they come; what to do when it is cut is in docs/local_infer-design.md, Upstreams."""
        passing, place = relay.passing, self._room.answer_place()
        try:
            if relay.held is not None:
                # Before the client is told that there is an answer: later nobody could tell it 429.
                hold_first(relay.held.begun, place)
            yield b""  # taken by `ask`, see there
            while (held := relay.held) is not None and not relay.over:
                secret = held.link.secret
                async for events in events_of(held.begun, self._config.routing.between_chunks, place):
                    passed = passing.take(events, secret)
                    if passed:
                        yield passed
                    if held.unnoted:
                        self._note_begun(held, self._clock())
                    if passing.reason:
                        break
                rest = await self._end_of(relay, held)
                if rest:
                    yield rest
        finally:
            place.resize(0)
            if relay.held is not None:
                self._note_begun(relay.held, self._clock())
                if not relay.noted:
                    self._ranking.ended(relay.held.member, relay.held.ticket, self._clock())
                await self._give_up(relay.held)

    async def _end_of(self, relay: _Relay, held: _Won) -> bytes:
        """What the client gets after the end of what `held` gave; `relay` tells who goes on, or that it is over."""
        passing, name, now = relay.passing, held.member.name, self._clock()
        reason = passing.reason or held.begun.reason
        if not reason and passing.is_whole:
            relay.over = True
            held.call.end("ok", now)
            if passing.said_done:
                return b""
            # Some never send it, and clients wait for it; all was said, and HTTP came to its proper end.
            self._metrics.cut(name, "without_done")
            return DONE
        reason = reason or "cut"
        held.call.end(reason, now)
        self._ranking.cut(held.member, reason, held.ticket, now)
        if passing.told:
            # It has told the client itself what went wrong; a `[DONE]` after that would call it whole.
            relay.over = relay.noted = True
            self._metrics.cut(name, "error")
            return b""
        log.warning("stream_cut", upstream=name, reason=reason, request=relay.ask.id)
        relay.tried.append(name)
        await self._give_up(held)
        relay.held = None
        end = b""
        if passing.sofar is not None:
            relay.held = await self._resume(relay, passing.sofar, name)
            passing.go_on()
            if relay.held is not None:
                self._metrics.cut(name, "resumed")
                return b""
            end = ending(passing.sofar)
        self._metrics.cut(name, "complete" if end else "error")
        return end or _CUT

    async def _resume(self, relay: _Relay, sofar: Sofar, name: str) -> _Won | None:
        rest = continuation(relay.ask, sofar)
        if rest is None or len(relay.tried) >= self._config.routing.attempts:
            return None
        if not self._retries.take(self._clock()):
            self._metrics.retried("refused")
            return None
        self._metrics.retried("made")
        try:
            won = await self._win(rest, relay.deadline_s, [name])
        except (Unreachable, ApiError):  # nobody answers, or there is no room here for what one answers
            return None
        return won if won.begun.reply is not None else None  # an error answer, or no stream

    async def _give_up(self, won: _Won) -> None:
        """The stream is over, or nobody wants it: close it, unless its end is just on the way."""
        reply = won.begun.reply
        assert reply is not None
        won.call.end("ok" if won.begun.ended else "left", self._clock())
        if reply.at_end or not won.begun.ended:
            await reply.close()
            won.link.leave(won.member)
        else:
            self._spawn(self._drain(reply, won))

    async def _drain(self, reply: Reply, won: _Won) -> None:
        try:
            with suppress(Broken, TimeoutError):
                async with asyncio.timeout(_DRAIN_S):
                    while await reply.read():
                        pass
        finally:
            await reply.close()
            won.link.leave(won.member)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
