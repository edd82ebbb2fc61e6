"""What a drill found: which step would have answered, by language, and how often wrongly. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from local_infer.retrieval.proof import Agreement

NOBODY = "none"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One replayed request: `step` is who would have answered (`none`: nobody), `why` why a step before it did not.

    `agreement` compares with what the upstream had said; None when there is nothing to compare.
    """

    language: str
    step: str
    why: str = ""
    agreement: Agreement | None = None


@dataclass(slots=True)
class Tally:
    """The sums of one language."""

    requests: int = 0
    steps: Counter[str] = field(default_factory=Counter)
    whys: Counter[str] = field(default_factory=Counter)
    agreements: dict[str, Counter[str]] = field(default_factory=dict)


def tally(outcomes: Sequence[Outcome]) -> dict[str, Tally]:
    """By language, and `all`."""
    found: dict[str, Tally] = {"all": Tally()}
    for outcome in outcomes:
        for name in (outcome.language, "all"):
            one = found.setdefault(name, Tally())
            one.requests += 1
            one.steps[outcome.step] += 1
            if outcome.why:
                one.whys[outcome.why] += 1
            if outcome.agreement is not None:
                one.agreements.setdefault(outcome.step, Counter())[outcome.agreement] += 1
    return found


def false_hit_share(one: Tally, step: str) -> float | None:
    """Of the answers of `step` that could be judged, the share that said something else; None: none could be."""
    counts = one.agreements.get(step, Counter())
    judged = counts["agrees"] + counts["disagrees"]
    return counts["disagrees"] / judged if judged else None


def as_json(found: dict[str, Tally]) -> dict[str, object]:
    """For `--json`: shares of requests by step, false hits, reasons."""
    return {
        name: {
            "requests": one.requests,
            "steps": {step: count / one.requests for step, count in one.steps.most_common()},
            "false_hits": {step: false_hit_share(one, step) for step in one.agreements},
            "unclear": {step: counts["unclear"] for step, counts in one.agreements.items()},
            "abstained": dict(one.whys.most_common()),
        }
        for name, one in found.items()
        if one.requests
    }
