"""From what was found to what may be said: vetoes, the entry's threshold, the margin; any doubt is abstention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from local_infer.model import Abstained, Language
from local_infer.retrieval.sayings import NO_SAYINGS, Sayings
from local_infer.retrieval.vetoes import find_veto
from local_infer.retrieval.wording import Wording, read_wording

FLOOR = 0.2
"""Below this nothing is looked at: a chance resemblance."""

Source = Literal["faq", "verified"]


@dataclass(frozen=True, slots=True)
class Look:
    """What is looked up: `key` is the graph's input (code points, or an embedder's vector)."""

    key: object
    tenant: str
    context: bytes
    language: Language


@dataclass(frozen=True, slots=True)
class Found:
    """A stored question near to the one asked. `entry` names what was learned of it."""

    similarity: float
    entry: str
    question: str
    answer: str
    source: Source
    made_s: float


_KNOWN_WORDINGS = 4096

# Wordings are too large to keep of every stored question, and the same few questions are asked most.
stored_wording = lru_cache(maxsize=_KNOWN_WORDINGS)(read_wording)


def wordings_full_ratio() -> float:
    """How many of the wordings of stored questions that may be kept are, 0 to 1."""
    return stored_wording.cache_info().currsize / _KNOWN_WORDINGS


def doubt_everything(_: Found) -> bool:
    """For n-grams, which do not know what words mean."""
    return True


def admissible(
    asked: Wording,
    found: Sequence[Found],
    doubts: Callable[[Found], bool] = doubt_everything,
    sayings: Sayings = NO_SAYINGS,
) -> tuple[list[Found], str]:
    """Those that nothing vetoes, best first (the operator's before verified ones), and the veto on the nearest one.

    `doubts(found)` says whether other words alone are a veto (`find_veto`).
    """
    near = sorted((f for f in found if f.similarity >= FLOOR), key=lambda f: -f.similarity)
    first_veto = ""
    left = []
    for one in near:
        why = find_veto(asked, stored_wording(one.question), sayings, doubts=doubts(one))
        if why is None:
            left.append(one)
        elif not first_veto:
            first_veto = why
    return sorted(left, key=lambda f: (f.source != "faq", -f.similarity)), first_veto


def choose(
    asked: Wording,
    found: Sequence[Found],
    threshold: Callable[[Found], float | None],
    margin: float,
    doubts: Callable[[Found], bool] = doubt_everything,
    sayings: Sayings = NO_SAYINGS,
) -> Found | Abstained:
    """The one that may answer. `threshold(found)` is the least similarity of its entry, None when it may not answer yet."""
    left, veto = admissible(asked, found, doubts, sayings)
    if not left:
        return Abstained(f"veto: {veto}" if veto else "nothing similar")
    why = "similarity"
    for one in left:
        least = threshold(one)
        if least is None:
            why = "not proved"
        elif one.similarity >= least:
            return Abstained("margin") if _is_rivalled(one, left, margin) else one
    return Abstained(why)


def _is_rivalled(best: Found, left: Sequence[Found], margin: float) -> bool:
    """Whether another answer of the same source is as near: then which of them is meant cannot be told."""
    return any(
        f.source == best.source and f.answer != best.answer and f.similarity > best.similarity - margin for f in left
    )
