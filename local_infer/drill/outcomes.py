"""What a recorded request wished for, and what a drill found: who would have answered it, and how often wrongly. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from local_infer.model import Abstained, Ask, Language, Step
from local_infer.retrieval.proof import Agreement
from local_infer.retrieval.question import language_of, question_of

NOBODY = "none"
"""The client would have got 503 (or 504, when it allowed nothing but the cache)."""

WOULD_GENERATE = "would_generate"
"""The local model would have been asked; a drill asks it only when it is told to."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One replayed request: `step` is who would have answered, `whys` why the steps before it did not.

    `agreement` compares what retrieval said with what the upstream had said; None when there is nothing to compare.
    """

    language: str
    step: str
    whys: tuple[str, ...] = ()
    agreement: Agreement | None = None


@dataclass(slots=True)
class Tally:
    """The sums of one language."""

    requests: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    whys: Counter[str] = field(default_factory=Counter)
    agreements: dict[str, Counter[str]] = field(default_factory=dict)


def wish_headers(ask: Ask) -> str:
    """The headers by which the client refused steps or asked something of the cache, as a JSON object; empty: none."""
    wish = ask.cache
    control = [
        *([] if wish.read else ["no-cache"]),
        *([] if wish.write else ["no-store"]),
        *(["only-if-cached"] if wish.only_if_cached else []),
        *([] if wish.max_age_s is None else [f"max-age={int(wish.max_age_s)}"]),
    ]
    headers = {
        "Cache-Control": ", ".join(control),
        "X-Cache": "keep" if wish.opted_in else "",
        "X-Ladder-Refuse": ", ".join(step.label for step in sorted(ask.refused)),
    }
    given = {name: value for name, value in headers.items() if value}
    return json.dumps(given) if given else ""


def read_wishes(headers: str) -> dict[str, str]:
    """What `wish_headers` wrote; none when it is of no such form."""
    try:
        given = json.loads(headers) if headers else {}
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in given.items()} if isinstance(given, dict) else {}


def language_asked(ask: Ask) -> Language:
    """The language of the question, also of one that the local steps may not look at (with tools, say)."""
    question = question_of(ask)
    if not isinstance(question, Abstained):
        return question.language
    asked: Any = ask.fields.get("prompt", ask.fields.get("input"))
    messages = ask.fields.get("messages")
    if isinstance(messages, list) and messages:
        users = [m for m in messages if isinstance(m, Mapping) and m.get("role") == "user"]
        asked = users[-1].get("content") if users else None
    parts = asked if isinstance(asked, list) else [asked]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return language_of(" ".join(text for text in texts if isinstance(text, str)))


def tally(outcomes: Sequence[Outcome]) -> dict[str, Tally]:
    """By language, and `all`."""
    found: dict[str, Tally] = {"all": Tally()}
    for outcome in outcomes:
        for name in (outcome.language, "all"):
            one = found.setdefault(name, Tally())
            one.requests += 1
            one.steps[outcome.step] += 1
            one.whys.update(outcome.whys)
            if outcome.agreement is not None:
                one.agreements.setdefault(outcome.step, Counter())[outcome.agreement] += 1
    return {name: found[name] for name in ("all", "zh", "en", "other") if name in found}


def step_names(generate: bool) -> list[str]:
    """The steps without upstreams, in order; `generate`: the local model was asked."""
    return ["cache", "stale", "retrieval", "generation" if generate else WOULD_GENERATE, NOBODY]


def step_of(step: Step, generate: bool) -> str:
    """The word for the step that answered."""
    return WOULD_GENERATE if step is Step.GENERATION and not generate else step.label


def false_hit_share(one: Tally, step: str = Step.RETRIEVAL.label) -> float | None:
    """Of the answers of `step` that could be judged, the share that said something else; None: none could be."""
    counts = one.agreements.get(step, Counter())
    judged = counts["agrees"] + counts["disagrees"]
    return counts["disagrees"] / judged if judged else None


def as_json(found: Mapping[str, Tally], generate: bool = False) -> dict[str, object]:
    """For `--json`: shares of requests by step, false hits, reasons."""
    return {
        name: {
            "requests": one.requests,
            "steps": {step: one.steps[step] / one.requests for step in step_names(generate)},
            "false_hits": {step: false_hit_share(one, step) for step in one.agreements},
            "unclear": {step: counts["unclear"] for step, counts in one.agreements.items()},
            "abstained": dict(one.whys.most_common()),
        }
        for name, one in found.items()
        if one.requests
    }
