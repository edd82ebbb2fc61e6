"""The retrieval step: answers from the operator's FAQ and from verified earlier answers, or abstains; learns in shadow.

Looking up runs in the model queue's threads; judging (vetoes, threshold, margin) is pure and short, and runs here.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.config_infer import Retrieval as RetrievalConfig
from core.errors import NearpathError
from core.io_log import get_logger
from local_infer.api.forms import to_whole, write_answer, write_chunk, write_usage
from local_infer.fault import Busy
from local_infer.model import (
    Abstained,
    Answer,
    Ask,
    Clock,
    ModelCard,
    ModelPart,
    ModelQueue,
    Origin,
    Priority,
    Question,
    Step,
)
from local_infer.retrieval.io_embedder import Embedder, Vector, embedder_digest
from local_infer.retrieval.io_faq_index import FaqIndex, words_digest
from local_infer.retrieval.io_sayings import shipped_sayings
from local_infer.retrieval.io_verified import LONGEST_ANSWER, Kept, VerifiedIndex, VerifiedStore
from local_infer.retrieval.ngrams import code_points, normalise
from local_infer.retrieval.proof import Agreement, Proof, compare_answers, is_trusted, threshold_of
from local_infer.retrieval.retrieval_metrics import RetrievalMetrics
from local_infer.retrieval.sayings import gram_text
from local_infer.retrieval.verdict import Found, Look, admissible, choose, wordings_full_ratio
from local_infer.retrieval.vetoes import is_said_anew
from local_infer.retrieval.wording import Wording, read_wording

STATE_FILE = "retrieval.sqlite"
SAME = 0.98
"""From this similarity on it is the same question in other letters; there the operator's word needs no proof."""

_SHADOW_TIME_S = 30.0
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look-up saw: the question read, and what is stored near it."""

    wording: Wording
    found: list[Found]
    vector: Vector | None


class Retrieval:
    """`LocalStep` and `Prover`. Made only when the configuration has `retrieval`; opens its SQLite file at once."""

    def __init__(self, config: InferConfig, queue: ModelQueue, clock: Clock, registry: CollectorRegistry) -> None:
        if config.retrieval is None:
            raise NearpathError("there is no section `retrieval`", "add it, or do not make this step")
        self._config: RetrievalConfig = config.retrieval
        self._queue, self._clock = queue, clock
        self._metrics = RetrievalMetrics(registry)
        self._log = get_logger("retrieval")
        providers, threads = list(config.models.providers), config.models.threads
        folder = Path(self._config.embedder) if self._config.embedder else None
        digest = embedder_digest(folder) if folder else ""
        self._embedder = Embedder(folder, providers, threads) if folder else None
        self._sayings = shipped_sayings()
        self._faq = FaqIndex(Path(self._config.index), words_digest(), digest, providers, threads)
        self._store = VerifiedStore(Path(config.state_dir) / STATE_FILE, digest)
        self._kept = VerifiedIndex(self._store, Path(config.state_dir), providers, threads)
        self._metrics.entries.labels("verified").set_function(lambda: len(self._store.kept))
        self._metrics.entries.labels("faq").set_function(lambda: self._faq.questions)
        self._metrics.full.labels("verified").set_function(lambda: len(self._store.kept) / max(1, self._config.keep))
        self._metrics.full.labels("wordings").set_function(wordings_full_ratio)

    @property
    def step(self) -> Step:
        """Retrieval."""
        return Step.RETRIEVAL

    def parts(self) -> Sequence[ModelPart[Any, Any]]:
        """What the queue loads, apart from each other: the embedder (if any), the FAQ, the verified answers."""
        parts: list[ModelPart[Any, Any]] = [self._faq, self._kept]
        return [self._embedder, *parts] if self._embedder else parts

    def cards(self) -> Sequence[ModelCard]:
        """`local/faq` and `local/verified`."""
        return [ModelCard("local/faq", "local"), ModelCard("local/verified", "local")]

    def close(self) -> None:
        """Close the file; blocks shortly."""
        self._store.close()

    # -- answering

    async def answer(self, ask: Ask, question: Question, priority: Priority, deadline_s: float) -> Answer | Abstained:
        """The stored answer that is surely meant, or why there is none. Busy when the queue has no room or no time."""
        chosen = await self.choose(question, priority, deadline_s)
        if isinstance(chosen, Abstained):
            self._metrics.abstained.labels(chosen.why, question.language).inc()
            return chosen
        self._metrics.answered.labels(chosen.source, question.language).inc()
        self._metrics.similarity.observe(chosen.similarity)
        return self._write(ask, chosen)

    async def choose(self, question: Question, priority: Priority, deadline_s: float) -> Found | Abstained:
        """The same without the answer's form and the metrics, for drill."""
        seen = await self._see(question, priority, deadline_s)
        if isinstance(seen, Abstained):
            return seen

        def doubts(found: Found) -> bool:
            return self._doubts(question.text, found)

        return choose(seen.wording, seen.found, self._threshold, self._config.margin, doubts, self._sayings)

    async def _see(self, question: Question, priority: Priority, deadline_s: float) -> Sight | Abstained:
        if len(question.text) > self._config.longest:
            return Abstained("too long")
        wording = read_wording(question.text)
        if not wording.content:
            return Abstained("nothing to look up")
        vector: Vector | None = None
        key: object = code_points(gram_text(wording, self._sayings))
        if self._embedder is not None:
            vector = await self._queue.run(self._embedder, question.text, priority, deadline_s)
            key = vector
        look = Look(key, question.tenant, question.context, question.language)
        found = await self._queue.run(self._faq, look, priority, deadline_s)
        if self._config.keep and self._store.kept:
            found = [*found, *await self._queue.run(self._kept, look, priority, deadline_s)]
        return Sight(wording, found, vector)

    def _threshold(self, found: Found) -> float | None:
        proof = self._store.proofs.get(found.entry, Proof())
        least = threshold_of(proof, self._config.threshold, self._config.proofs)
        if found.source == "faq":
            return min(least, SAME)
        return least if is_trusted(proof, self._config.proofs) else None

    def _doubts(self, asked: str, found: Found) -> bool:
        """Other words than stored are a doubt, until the embedder's similarity was proved for this very entry."""
        proof = self._store.proofs.get(found.entry, Proof())
        proved = proof.agreed >= max(self._config.proofs, 1) and is_trusted(proof, self._config.proofs)
        return not proved or found.similarity < proof.lowest_agreed or not self._may_try(asked, found)

    def _may_try(self, asked: str, found: Found) -> bool:
        """Whether an embedder may be tried beyond the words, or it could never be proved there; never on a near miss."""
        return self._embedder is not None and is_said_anew(asked, found.question)

    def _write(self, ask: Ask, chosen: Found) -> Answer:
        now = self._clock()
        model, text = f"local/{chosen.source}", chosen.answer
        origin = Origin(Step.RETRIEVAL, chosen.source, age_s=max(0.0, now - chosen.made_s))
        if ask.stream:
            kind = {"content-type": "text/event-stream; charset=utf-8"}
            return Answer(200, kind, _events(ask, text, model, int(now)), origin)
        body = write_answer(ask, text, model, Step.RETRIEVAL, int(now), _USAGE, "stop")
        return Answer(200, {"content-type": "application/json"}, body, origin)

    # -- learning

    async def observe(self, ask: Ask, question: Question, answer: Answer) -> None:
        """Compare an upstream's whole answer with what would have been said, learn from it, and keep it for later.

        Answers that were cut, refused or are not text teach nothing. Never raises for want of room in the queue.
        """
        fresh = text_of(answer)
        if fresh is None:
            return
        try:
            seen = await self._see(question, Priority.SHADOW, self._clock() + _SHADOW_TIME_S)
        except Busy:
            return
        if isinstance(seen, Abstained):
            return
        try:
            await asyncio.to_thread(self._learn, question, seen, fresh)
        except sqlite3.Error as error:
            # Serving goes on with what was learned before: a full disk is told, not passed on to a client's request.
            self._log.warning("not_learned", error=str(error))
            return
        if self._kept.is_outgrown():
            await asyncio.to_thread(self._kept.load)

    def _learn(self, question: Question, seen: Sight, fresh: str) -> None:
        text = normalise(question.text, fold=False)
        exact = self._store.find(question.tenant, question.context, text)
        left, _ = admissible(
            seen.wording, seen.found, lambda found: not self._may_try(question.text, found), self._sayings
        )
        near = [found for found in left if exact is None or found.entry != exact.entry]
        for source in ("faq", "verified"):
            first = next((found for found in near if found.source == source), None)
            if first is not None:
                self._prove(first.entry, first.source, first.similarity, compare_answers(first.answer, fresh))
        if exact is not None:
            agreement = compare_answers(exact.answer, fresh)
            self._prove(exact.entry, "verified", 1.0, agreement)
            if agreement != "disagrees" or is_trusted(
                self._store.proofs.get(exact.entry, Proof()), self._config.proofs
            ):
                return
        if self._config.keep and len(fresh) <= LONGEST_ANSWER:
            new = Kept(
                *(0, question.tenant, question.context, question.language, text, fresh, self._clock()),
                vector=seen.vector,
            )
            self._store.keep(new, self._config.keep)

    def _prove(self, entry: str, source: str, similarity: float, agreement: Agreement) -> None:
        self._metrics.proofs.labels(source, agreement).inc()
        if agreement == "unclear" or (source == "faq" and agreement == "disagrees" and similarity >= SAME):
            return  # the model does not know the FAQ: about the very question the operator is right
        self._store.learn(entry, similarity, agreement)


async def _events(ask: Ask, text: str, model: str, created_s: int) -> AsyncGenerator[bytes, None]:
    events = write_chunk(ask, text, model, Step.RETRIEVAL, created_s, None, True)
    events += write_chunk(ask, "", model, Step.RETRIEVAL, created_s, "stop", False)
    yield events + write_usage(ask, model, Step.RETRIEVAL, created_s, _USAGE) + b"data: [DONE]\n\n"


def text_of(answer: Answer) -> str | None:
    """The text of a whole, finished answer of one choice; None when it is anything else."""
    if answer.status != 200 or not isinstance(answer.body, bytes):
        return None
    try:
        body = to_whole(answer.body) if answer.body.lstrip()[:1] != b"{" else answer.body
        fields = json.loads(body)
        (choice,) = fields["choices"]
        message: Mapping[str, Any] = choice.get("message") or {}
        text = message.get("content", choice.get("text"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if choice.get("finish_reason") != "stop" or message.get("tool_calls") or message.get("refusal"):
        return None
    return text if isinstance(text, str) and text.strip() else None
