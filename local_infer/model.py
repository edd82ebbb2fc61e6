"""What crosses the borders between the parts of the gateway: a request, an answer, and what each part offers the others.

Pure: nothing here does anything. A part takes the others as these protocols, so each can be built and tested alone; the one
place that puts them together is `io_daemon.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any, Literal, Protocol, TypeVar

from local_infer.telemetry.trace_context import Trace


class Endpoint(Enum):
    """The paths that are forwarded, below `/v1`."""

    CHAT = "/chat/completions"
    COMPLETIONS = "/completions"
    EMBEDDINGS = "/embeddings"


class Step(IntEnum):
    """The ladder, best first."""

    UPSTREAM = 0
    CACHE = 1
    STALE = 2
    RETRIEVAL = 3
    GENERATION = 4

    @property
    def label(self) -> str:
        """The word used in configuration, headers, `system_fingerprint` and metrics."""
        return self.name.lower()


class Priority(IntEnum):
    """Who goes first at the local models."""

    INTERACTIVE = 0
    BACKGROUND = 1
    SHADOW = 2
    PREFETCH = 3


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: `tenant` is whose kept answers may be seen."""

    name: str
    tenant: str
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True, slots=True)
class CacheWish:
    """What the client's Cache-Control (RFC 9111 5.2.1) and `X-Cache` ask of the cache.

    `opted_in` keeps an answer although temperature is above 0. `max_age_s` None: any age that the configuration allows.
    """

    read: bool = True
    write: bool = True
    opted_in: bool = False
    only_if_cached: bool = False
    max_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, parsed once. `body` are the bytes as they came and are what an upstream gets; `fields` is their JSON.

    `refused` are the steps that the client does not want (`X-Ladder-Refuse`), `resume` (`X-Stream-Resume`) says that a cut
    stream may be continued by another upstream. `arrived_s` is on the anchored clock. `trace` is its span, with telemetry.
    `idempotency_key` is what upstreams get in place of the client's: no other tenant and no other request has it.
    """

    id: str
    endpoint: Endpoint
    body: bytes
    fields: Mapping[str, Any]
    model: str
    stream: bool
    client: Client
    arrived_s: float
    cache: CacheWish = CacheWish()
    refused: frozenset[Step] = frozenset()
    resume: bool = False
    trace: Trace | None = None
    idempotency_key: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an answer comes from, for headers, log and metrics.

    `name` is the upstream, or what follows `local/`. `reason` says why no upstream answered; empty: not degraded.
    `cache_status` are the parameters of our member in Cache-Status (RFC 9211), such as `hit; ttl=30`; empty: no member.
    """

    step: Step
    name: str
    reason: str = ""
    age_s: float = 0.0
    cache_status: str = ""

    @property
    def degraded(self) -> bool:
        """Whether the answer must be marked."""
        return bool(self.reason)


Stream = AsyncGenerator[bytes, None]
"""Each item is one or more whole SSE events, blank lines included, to be sent at once. `aclose()` cancels what makes it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to forward. `headers` have lower-case names, only those the client may see. An error of an upstream that is
    the client's own fault (4xx) is an answer too. A `Stream` was begun: its first event has been seen and was no error.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes | Stream
    origin: Origin


@dataclass(frozen=True, slots=True)
class Abstained:
    """A local step does not answer: `why` in a few fixed words, fit for a metric label; `what` for who asked."""

    why: str
    what: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One entry of `/v1/models`; `extra` is shown as it is (the effective execution provider of a local model, say)."""

    id: str
    owned_by: str
    extra: Mapping[str, Any] = field(default_factory=dict)


# -- upstreams (WP2)


class Upstreams(Protocol):
    """The APIs that requests are forwarded to."""

    def down_reason(self, model: str) -> str:
        """Why no upstream can be asked for `model` now, without asking one; empty: there is one."""
        ...

    async def ask(self, ask: Ask, deadline_s: float) -> Answer:
        """The answer of the best upstream, begun before `deadline_s`; Unreachable when none begins one. Cancel to stop."""
        ...

    def models(self) -> Sequence[ModelCard]:
        """What can be asked for, as last listed by the upstreams."""
        ...


# -- cache (WP3)

Age = Literal["fresh", "revalidate", "stale"]
Fetch = Callable[[Ask], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer found in the cache, in the form (stream or not) of the request; `age` says what it is good for.

    Its body is whole: of a stream, all events up to and with `[DONE]`. `answer.origin` is not marked as degraded.
    """

    answer: Answer
    age: Age


class ExactCache(Protocol):
    """Answers to exactly the same request of the same tenant."""

    async def find(self, ask: Ask, now: float) -> Kept | None:
        """What is kept, of whatever age; None also when the request must not be answered from a cache."""
        ...

    async def fetch(self, ask: Ask, fetch: Fetch) -> Answer:
        """`fetch(ask)`, made once for equal requests under way (streams are shared from their start), and kept if allowed.

        Raises what `fetch` raises, in every waiter. The fetch goes on while one waiter is left.
        """
        ...

    def refresh(self, ask: Ask, fetch: Fetch) -> None:
        """Fetch and keep in the background, once for equal requests; failures are counted only."""
        ...


# -- local steps (WP4, WP5)

Language = Literal["zh", "en", "other"]


@dataclass(frozen=True, slots=True)
class Question:
    """What the local steps look at: the last user message. `context` is a digest of everything before it (system prompt and
    history, canonical; empty bytes when there is nothing), which must match that of a kept answer.
    """

    tenant: str
    text: str
    language: Language
    context: bytes = b""


class LocalStep(Protocol):
    """Retrieval or generation."""

    @property
    def step(self) -> Step:
        """Which of the two."""
        ...

    async def answer(self, ask: Ask, question: Question, priority: Priority, deadline_s: float) -> Answer | Abstained:
        """A whole or streamed answer with its origin's name and age set (the ladder sets the reason), or why not."""
        ...

    def cards(self) -> Sequence[ModelCard]:
        """For `/v1/models`."""
        ...


class Prover(Protocol):
    """Learns from healthy traffic what the lower steps may be trusted with."""

    async def observe(self, ask: Ask, question: Question, answer: Answer) -> None:
        """An upstream gave this (whole) answer: try the lower steps on the question, unseen, and learn."""
        ...


# -- the queue in front of the models (WP5)

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)


class ModelPart(Protocol[In, Out]):
    """A model that can be loaded and unloaded apart from the others. All but `name` and `loaded` block: only in threads."""

    @property
    def name(self) -> str:
        """For logs and metrics."""
        ...

    @property
    def loaded(self) -> bool:
        """Whether it holds memory."""
        ...

    def load(self) -> None:
        """Load and warm up; NearpathError when it cannot."""
        ...

    def unload(self) -> None:
        """Give the memory back; harmless when nothing is loaded."""
        ...

    def run(self, items: Sequence[In]) -> Sequence[Out]:
        """The results of one batch, in order. Called by one thread at a time, only when loaded."""
        ...


I2 = TypeVar("I2")
O2 = TypeVar("O2")


class ModelQueue(Protocol):
    """One queue for all parts: interactive before background before shadow before prefetch; loads what is asked for."""

    async def run(self, part: ModelPart[I2, O2], item: I2, priority: Priority, deadline_s: float) -> O2:
        """The result for one item, batched with others; Busy when it cannot be had before `deadline_s`."""
        ...


Clock = Callable[[], float]
"""`core.io_clock.AnchoredClock.now`, or a script."""
