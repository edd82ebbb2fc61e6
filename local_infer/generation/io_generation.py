"""Generation, the last step of the ladder: a local model answers, in the API's form, whole or as a stream."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_log import get_logger
from local_infer.api.forms import write_answer, write_chunk, write_usage
from local_infer.api.sse import DONE
from local_infer.fault import SERVER, ApiError, Busy
from local_infer.generation.child_wire import Done, Generate, Piece, Refused
from local_infer.generation.io_generator_process import Crashed
from local_infer.generation.io_generator_slots import GeneratorSlots, Job
from local_infer.generation.io_model_queue import LocalQueue
from local_infer.generation.model_metrics import GenerationMetrics
from local_infer.generation.prompt import ANY_OBJECT, Prompt, read_prompt
from local_infer.generation.schema_blame import CANCEL, CRASH, Blame
from local_infer.model import Abstained, Answer, Ask, Clock, ModelCard, Origin, Priority, Question, Step

_JSON = {"content-type": "application/json"}
_SSE = {"content-type": "text/event-stream; charset=utf-8"}
_log = get_logger("generation")


class Generation:
    """The LocalStep; only made when `config.generation` is there. `start` it before it is asked, `close` it in the end."""

    def __init__(self, config: InferConfig, queue: LocalQueue, clock: Clock, registry: CollectorRegistry) -> None:
        assert config.generation is not None
        self._config, self._clock = config.generation, clock
        self._metrics = GenerationMetrics(registry)
        self._slots = GeneratorSlots(config, queue, clock, self._metrics)
        self._blame = Blame()
        self._model = f"local/{config.generation.name}"
        self.reconfigure(config)

    def reconfigure(self, config: InferConfig) -> None:
        """Take over the visible prefix; all else of the section needs a restart."""
        self._prefix = config.ladder.prefix.get("generation", "")

    async def start(self) -> None:
        """Load the model if it is to be preloaded; NearpathError when the folder cannot be used."""
        await self._slots.start()

    async def close(self) -> None:
        """End the processes."""
        await self._slots.close()

    @property
    def slots(self) -> GeneratorSlots:
        """The processes, for readiness and status."""
        return self._slots

    @property
    def step(self) -> Step:
        """GENERATION."""
        return Step.GENERATION

    def cards(self) -> Sequence[ModelCard]:
        """The model, with the execution provider that is really in use (empty while nothing was loaded yet)."""
        about = self._slots.about
        extra = {
            "provider": about.provider if about else "",
            "context_length": about.context if about else self._config.context,
            "loaded": self._slots.loaded,
        }
        return [ModelCard(self._model, "local", extra)]

    async def answer(self, ask: Ask, question: Question, priority: Priority, deadline_s: float) -> Answer | Abstained:
        """The model's answer, begun; Abstained with why. Cancel, or close the stream, to end it within a second."""
        prompt = read_prompt(ask, self._config)
        if isinstance(prompt, Abstained):
            return self._abstain(prompt.why, prompt.what)
        client, now = ask.client.name, self._clock()
        # What is ours is no client's fault.
        schema = prompt.schema if prompt.schema != ANY_OBJECT else None
        if schema is not None and (refused_s := self._blame.refused_s(client, schema, now)):
            return self._abstain("schema", f"such a schema of yours made it fail; refused for {math.ceil(refused_s)} s")
        lost = partial(self._lost, client, schema)
        try:
            job = await self._slots.begin(
                self._request(prompt), priority, min(deadline_s, now + self._config.wait), lost
            )
        except Busy as busy:
            _log.debug("generation_busy", id=ask.id, why=busy.what)
            return self._abstain("busy")
        except NearpathError as error:
            return self._abstain("crashed" if isinstance(error, Crashed) else "failed")
        try:
            return await (self._begin_stream(ask, job) if ask.stream else self._whole(ask, job))
        except Crashed:
            return self._abstain("crashed")
        except BaseException:
            self._slots.cancel(job)
            raise

    def _request(self, prompt: Prompt) -> Generate:
        return Generate(
            0, prompt.messages, prompt.text, prompt.max_tokens, self._config.time, prompt.stops,
            prompt.temperature, prompt.top_p, prompt.seed, prompt.schema,
        )  # fmt: skip

    def _lost(self, client: str, schema: str | None, why: str) -> None:
        """A request cost a slot its process: if it had a schema, that is the likely cause."""
        if schema is not None:
            self._blame.note(client, schema, CANCEL if why == "cancel" else CRASH, self._clock())
            _log.warning("schema_blamed", client=client, why=why)

    def _abstain(self, why: str, what: str = "") -> Abstained:
        self._metrics.abstained.labels(why).inc()
        return Abstained(why, what)

    def _refused(self, ask: Ask, refused: Refused) -> Abstained:
        _log.info("generation_refused", id=ask.id, why=refused.why, what=refused.what)
        return self._abstain(refused.why)

    # -- forms of an answer

    async def _whole(self, ask: Ask, job: Job) -> Answer | Abstained:
        began_s = self._clock()
        pieces: list[str] = []
        while isinstance(message := await job.next(), Piece):
            if not pieces:
                self._metrics.first_s.observe(max(0.0, self._clock() - began_s))
            pieces.append(message.text)
        if isinstance(message, Refused):
            return self._refused(ask, message)
        if not pieces:
            return self._abstain("empty")
        text, now = self._prefix_for(ask) + "".join(pieces), self._clock()
        body = write_answer(ask, text, self._model, self.step, int(now), _usage(message), message.finish)
        return Answer(200, _JSON, body, Origin(self.step, self._config.name))

    async def _begin_stream(self, ask: Ask, job: Job) -> Answer | Abstained:
        began_s = self._clock()
        first = await job.next()
        if isinstance(first, Refused):
            return self._refused(ask, first)
        if isinstance(first, Done):
            return self._abstain("empty")
        self._metrics.first_s.observe(max(0.0, self._clock() - began_s))
        stream = self._stream(ask, job, replace(first, text=self._prefix_for(ask) + first.text))
        # Begun here: closing a generator that never ran would not reach its `finally`, and the job would go on.
        await anext(stream)
        return Answer(200, _SSE, stream, Origin(self.step, self._config.name))

    async def _stream(self, ask: Ask, job: Job, first: Piece) -> AsyncGenerator[bytes, None]:
        created_s, is_first = int(self._clock()), True
        message: Piece | Done | Refused = first
        try:
            yield b""
            while isinstance(message, Piece):
                # What came while the client was slow goes out as one event.
                text, following = message.text, None
                while job.has_next() and isinstance(following := await self._next(ask, job), Piece):
                    text, following = text + following.text, None
                yield write_chunk(ask, text, self._model, self.step, created_s, None, is_first)
                is_first = False
                message = following or await self._next(ask, job)
            if isinstance(message, Refused):
                raise self._cut(ask, message.why)
            last = write_chunk(ask, "", self._model, self.step, created_s, message.finish, False)
            yield last + write_usage(ask, self._model, self.step, created_s, _usage(message)) + DONE
        finally:
            self._slots.cancel(job)

    def _prefix_for(self, ask: Ask) -> str:
        """The visible text; not for who asked for this model, and not in JSON mode, where nobody could read the rest."""
        wanted = ask.fields.get("response_format")
        plain = wanted is None or (isinstance(wanted, dict) and wanted.get("type") == "text")
        return self._prefix if plain and ask.model != self._model else ""

    async def _next(self, ask: Ask, job: Job) -> Piece | Done | Refused:
        try:
            return await job.next()
        except Crashed:
            raise self._cut(ask, "crashed") from None

    def _cut(self, ask: Ask, why: str) -> ApiError:
        """A stream that cannot be ended well is ended with an error event, without `[DONE]`."""
        _log.error("generation_cut", id=ask.id, why=why)
        return ApiError(
            500, SERVER, "the local model failed in the middle of its answer", "ask again", code="local_model"
        )


def _usage(done: Done) -> dict[str, int]:
    prompt, completion = done.prompt_tokens, done.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
