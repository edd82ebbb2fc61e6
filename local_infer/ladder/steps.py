"""The ladder: upstream, kept answers, retrieval, generation, 503. Puts the parts in order and marks what they answer.

What to try is decided in `ladder_table.py`; here it is tried. Nothing is done here but awaiting the parts.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.errors import NearpathError
from local_infer.api.forms import mark_body, mark_events, to_whole
from local_infer.api.sse import ends_with_done
from local_infer.cache.cache_key import keys_of
from local_infer.fault import INVALID, RATE_LIMIT, UNAVAILABLE, ApiError, Busy, Unreachable, no_such_model
from local_infer.ladder.ladder_metrics import LadderMetrics
from local_infer.ladder.ladder_table import Move, allowed_steps, plan
from local_infer.model import (
    Abstained,
    Answer,
    Ask,
    Clock,
    Endpoint,
    ExactCache,
    Kept,
    LocalStep,
    ModelCard,
    Priority,
    Prover,
    Question,
    Step,
    Stream,
    Upstreams,
)
from local_infer.retrieval.question import question_of

if TYPE_CHECKING:
    from random import Random

LOCAL = "local/"
CACHED = "cache/"

MOST_SHADOWS = 8
"""Healthy answers shown to the lower steps at once; more are not sampled, so that proof never piles up work."""

# Why a local step may not answer now although it could at another time; other words are about the request itself.
_PASSING = frozenset({"crashed", "failed", "loading", "memory", "stopping"})

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Runs something in the background, such as `asyncio.create_task` with the task held."""


@dataclass(slots=True)
class _Run:
    """One request on its way down. `reason` says why no upstream answers, once that is known."""

    ask: Ask
    kept: Kept | None
    allowed: frozenset[Step]
    reason: str
    unreachable: Unreachable | None = None


def _say_nothing(_step: str, _error: Exception) -> None:
    pass


def _note_nothing(_step: str, _why: str) -> None:
    pass


class Ladder:
    """Answers every request, or raises ApiError.

    `spawn` runs shadows in the background; `tell` hears which step failed, and of what; `note` which one
    did not answer, and why.
    """

    def __init__(
        self,
        config: InferConfig,
        upstreams: Upstreams,
        cache: ExactCache,
        steps: Sequence[LocalStep],
        prover: Prover | None,
        clock: Clock,
        rng: Random,
        registry: CollectorRegistry,
        *,
        spawn: Spawn,
        tell: Callable[[str, Exception], None] = _say_nothing,
        note: Callable[[str, str], None] = _note_nothing,
    ) -> None:
        self._upstreams, self._cache, self._prover = upstreams, cache, prover
        self._steps = {step.step: step for step in steps}
        self._clock, self._rng, self._spawn, self._tell, self._note = clock, rng, spawn, tell, note
        self._metrics = LadderMetrics(registry)
        self._shadows = 0
        self.reconfigure(config)

    def reconfigure(self, config: InferConfig) -> None:
        """Take over steps, prefixes and times."""
        self._config = config
        self._configured = frozenset(step for step in Step if step.label in config.ladder.steps)

    def cards(self) -> list[ModelCard]:
        """For `/v1/models`: what the upstreams and the local steps offer."""
        local = [card for step in self._steps.values() if step.step in self._configured for card in step.cards()]
        return [*self._upstreams.models(), *local]

    async def fetch(self, ask: Ask) -> Answer:
        """The upstreams' answer, for what the cache fetches by itself; Unreachable."""
        return await self._upstreams.ask(ask, ask.arrived_s + self._config.limits.total)

    async def answer(self, ask: Ask) -> Answer:
        """The answer of the best step that has one; ApiError (503, 429, with Retry-After) when none has. Cancel to stop."""
        if ask.model.startswith(LOCAL):
            return await self._answer_by_name(ask)
        if self._nobody_serves(ask.model):
            # A typing error, or a model that is gone: no outage, so nothing of the box stands in for it.
            raise no_such_model(ask.model)
        allowed = allowed_steps(self._configured, ask)
        kept = await self._cache.find(ask, self._clock()) if allowed & {Step.CACHE, Step.STALE} else None
        down = self._upstreams.down_reason(ask.model)
        run = _Run(ask, kept, allowed, down or self._why_not_asked(ask))
        for move in plan(kept.age if kept else None, bool(down), allowed, ask.cache.only_if_cached):
            answer = await self._try(move, run, bool(down))
            if answer is not None:
                if answer.origin.degraded:
                    self._metrics.degraded.labels(answer.origin.step.label, answer.origin.reason).inc()
                return answer
        raise self._nothing(run)

    def _nobody_serves(self, model: str) -> bool:
        """Whether every upstream names its models (`models`), and none of them names this one."""
        upstreams = self._config.upstreams.values()
        asked = bool(upstreams) and Step.UPSTREAM in self._configured
        return asked and all(one.models and model not in one.models for one in upstreams)

    def _why_not_asked(self, ask: Ask) -> str:
        """The reason that stands until an upstream was asked."""
        return "refused" if Step.UPSTREAM in ask.refused else "not asked"

    def _passed(self, step: Step, why: str) -> None:
        self._metrics.passed.labels(step.label, why).inc()
        self._note(step.label, why)

    async def _try(self, move: Move, run: _Run, down: bool) -> Answer | None:
        if move is Move.ASK:
            return await self._ask(run)
        if move is Move.KEPT:
            assert run.kept is not None
            if down:
                return self._marked(run, Step.CACHE)
            if run.kept.age == "revalidate":
                self._cache.refresh(run.ask, self.fetch)
            return run.kept.answer
        if move is Move.STALE:
            return self._marked(run, Step.STALE)
        return await self._ask_step(move.step, run)

    # -- upstreams and cache

    async def _ask(self, run: _Run) -> Answer | None:
        ask = run.ask
        if Step.CACHE not in run.allowed:
            # Otherwise the cache may answer with what came to be kept a moment ago.
            ask = replace(ask, cache=replace(ask.cache, read=False))
        try:
            answer = await self._cache.fetch(ask, self.fetch)
        except Unreachable as error:
            # Its traceback holds this frame, and so this request: a ring that only the cycle collector would free, late.
            run.reason, run.unreachable = error.reason, error.with_traceback(None)
            self._passed(Step.UPSTREAM, error.reason)
            return None
        return await self._shadow(run.ask, answer)

    def _marked(self, run: _Run, step: Step) -> Answer | None:
        """What is kept, said to be that; None when it is of no form that could be marked."""
        assert run.kept is not None
        answer = run.kept.answer
        assert isinstance(answer.body, bytes)
        mark = mark_events if run.ask.stream else mark_body
        try:
            body = mark(answer.body, CACHED, step, self._prefix(run.ask, step))
        except ValueError:
            self._passed(step, "form")
            return None
        origin = replace(answer.origin, step=step, reason=run.reason)
        return replace(answer, body=body, origin=origin)

    def _prefix(self, ask: Ask, step: Step) -> str:
        """The visible text before a kept or stored answer (generation puts its own before what it says).

        None in JSON mode, where it would break what the client reads.
        """
        wanted = ask.fields.get("response_format")
        plain = wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text")
        texts = {str(label): text for label, text in self._config.ladder.prefix.items()}
        return texts.get(step.label, "") if plain else ""

    # -- local steps

    async def _ask_step(self, name: Step, run: _Run) -> Answer | None:
        got = await self._step_answer(name, run.ask)
        if isinstance(got, Abstained):
            self._passed(name, got.why)
            return None
        if name is Step.RETRIEVAL and isinstance(got.body, bytes) and (prefix := self._prefix(run.ask, name)):
            mark = mark_events if run.ask.stream else mark_body
            got = replace(got, body=mark(got.body, "", name, prefix))
        return replace(got, origin=replace(got.origin, step=name, reason=run.reason))

    async def _step_answer(self, name: Step, ask: Ask) -> Answer | Abstained:
        step = self._steps.get(name)
        if step is None:
            return Abstained("none")
        question = question_of(ask)
        now = self._clock()
        deadline_s = ask.arrived_s + self._config.limits.total
        if isinstance(question, Abstained):
            if name is Step.RETRIEVAL:
                return question
            # Generation reads the whole request, and knows itself what of it it cannot do.
            question = Question(ask.client.tenant, "", "other")
        elif name is Step.RETRIEVAL:
            deadline_s = min(deadline_s, now + self._config.routing.give_up)
        try:
            return await step.answer(ask, question, ask.client.priority, deadline_s)
        except Busy:
            return Abstained("busy")
        except Exception as error:
            # A step that fails must not take with it the steps below, nor the honest 503 at the end.
            self._tell(name.label, error)
            return Abstained("failed")

    async def _answer_by_name(self, ask: Ask) -> Answer:
        """A local model that was asked for by its name: no degradation, and no other step would do."""
        named = (s for s in self._steps.values() if any(card.id == ask.model for card in s.cards()))
        step = next((s.step for s in named if s.step in self._configured - ask.refused), None)
        if step is None:
            raise no_such_model(ask.model)
        if ask.endpoint is Endpoint.EMBEDDINGS:
            raise ApiError(400, INVALID, f"the model '{ask.model}' makes no embeddings", param="model")
        got = await self._step_answer(step, ask)
        if not isinstance(got, Abstained):
            return got
        self._passed(step, got.why)
        if got.why == "busy":
            raise ApiError(
                429, RATE_LIMIT, "the local model has no room for one more request", "try again soon",
                code="overloaded", retry_after_s=self._config.ladder.retry_after,
            )  # fmt: skip
        if got.why in _PASSING:
            raise ApiError(
                503, UNAVAILABLE, f"the local model cannot answer now ({got.why})", "try again later",
                code="local_model", retry_after_s=self._config.ladder.retry_after,
            )  # fmt: skip
        why = got.what or got.why
        raise ApiError(400, INVALID, f"the local model cannot answer this request ({why})", code="not_supported")

    def _nothing(self, run: _Run) -> ApiError:
        if run.ask.cache.only_if_cached:
            # RFC 9111 5.2.1.7: "SHOULD respond with [...] a 504 (Gateway Timeout) status code".
            what = "nothing is kept for this request, and nobody may be asked"
            return ApiError(504, UNAVAILABLE, what, code="only_if_cached")
        self._metrics.nothing.labels(run.reason).inc()
        headers = {"X-Degraded": f"none; {run.reason}; 0"}
        told = run.unreachable
        wait_s = self._config.ladder.retry_after if told is None or told.retry_after_s is None else told.retry_after_s
        if told is not None and told.limited:
            # Clients slow down at a 429, and try elsewhere at a 503. In our words: an upstream's name its account.
            if told.in_ms:
                headers["retry-after-ms"] = str(math.ceil(wait_s * 1000))
            return ApiError(
                429, RATE_LIMIT, "the rate limit of the upstreams is reached, and nothing else could answer",
                "try again later", code="rate_limit_exceeded", retry_after_s=max(1.0, wait_s), headers=headers,
                why=run.reason,
            )  # fmt: skip
        what = f"no upstream answers ({run.reason}), and nothing else could"
        if Step.UPSTREAM in run.ask.refused:
            what = "you refused the upstreams (X-Ladder-Refuse), and nothing else could answer"
        elif Step.UPSTREAM not in run.allowed:
            what = "upstreams are not asked here (ladder.steps), and nothing else could answer"
        return ApiError(
            503, UNAVAILABLE, what, "try again later", code="no_step", retry_after_s=max(1.0, wait_s), headers=headers,
            why=run.reason,
        )  # fmt: skip

    # -- proof before use

    async def _shadow(self, ask: Ask, answer: Answer) -> Answer:
        """The same answer; sampled ones are shown to the prover once they are whole, and nobody waits for that."""
        sampled = (
            self._prover is not None
            and self._rng.random() < self._config.ladder.shadow
            and answer.status == 200
            and answer.origin.step is Step.UPSTREAM
            and ask.client.priority <= Priority.BACKGROUND
        )
        # What can be read in two ways teaches nothing: the upstream may have answered the other one.
        question = question_of(ask) if sampled and keys_of(ask) is not None else None
        if not isinstance(question, Question):
            return answer
        if isinstance(answer.body, bytes):
            self._observe(ask, question, answer)
            return answer
        return replace(answer, body=await _begin(self._watch(ask, question, answer, answer.body)))

    async def _watch(self, ask: Ask, question: Question, answer: Answer, stream: Stream) -> AsyncGenerator[bytes, None]:
        """The stream, handed on as it comes, and remembered up to the size of a kept entry."""
        seen, whole = bytearray(), True
        try:
            yield b""
            async for events in stream:
                if whole and len(seen) + len(events) <= self._config.cache.max_entry:
                    seen += events
                else:
                    whole = False
                yield events
        finally:
            await stream.aclose()
        if whole and ends_with_done(bytes(seen[-64:])):
            try:
                body = to_whole(bytes(seen))
            except ValueError:
                return
            self._observe(ask, question, replace(answer, body=body))

    def _observe(self, ask: Ask, question: Question, answer: Answer) -> None:
        if self._shadows >= MOST_SHADOWS:
            self._metrics.shadowed.labels("skipped").inc()
            return
        self._shadows += 1
        self._spawn(self._prove(ask, question, answer))

    async def _prove(self, ask: Ask, question: Question, answer: Answer) -> None:
        outcome = "failed"
        try:
            assert self._prover is not None
            await self._prover.observe(ask, question, answer)
            outcome = "observed"
        except NearpathError:
            outcome = "busy"
        except Exception as error:
            self._tell("shadow", error)
        finally:
            self._shadows -= 1
            self._metrics.shadowed.labels(outcome).inc()


async def _begin(stream: AsyncGenerator[bytes, None]) -> Stream:
    """The generator, run up to its first (empty) item: closing one that never ran would not reach its `finally`."""
    await anext(stream)
    return stream
