"""What shadow answers prove of a stored entry: from which similarity on it may be trusted, or that it may not.

While upstreams are healthy, sampled questions are also looked up; the upstream's answer agrees with the entry's or not.
Pure; kept in SQLite by `io_verified.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from local_infer.retrieval.wording import read_wording

Agreement = Literal["agrees", "disagrees", "unclear"]

AGREE, DISAGREE = 0.6, 0.25
"""Dice coefficient of the content words (characters) of two answers. Rewordings of one answer have
0.6 and more, answers to other questions less than 0.25; what lies between teaches nothing."""

STEP_UP = 0.02
"""A disagreement at similarity s means: not below s + this."""

LOWEST = 0.25
"""No number of agreements brings a threshold below this."""

_LONGEST = 4096
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")


@dataclass(frozen=True, slots=True)
class Proof:
    """Shadow answers of one entry so far; similarities are of question to question, 0..1."""

    agreed: int = 0
    disagreed: int = 0
    lowest_agreed: float = 1.0
    highest_disagreed: float = 0.0

    def learn(self, similarity: float, agreement: Agreement) -> Proof:
        """With one more shadow answer."""
        if agreement == "agrees":
            return replace(self, agreed=self.agreed + 1, lowest_agreed=min(self.lowest_agreed, similarity))
        if agreement == "disagrees":
            highest = max(self.highest_disagreed, similarity)
            return replace(self, disagreed=self.disagreed + 1, highest_disagreed=highest)
        return self


def threshold_of(proof: Proof, default: float, needed: int) -> float:
    """Least similarity at which the entry may answer.

    `default` until proofs say otherwise; down to the lowest that agreed, once `needed` did (at least one); always above the
    highest that disagreed.
    """
    least = default
    if proof.agreed >= max(needed, 1):
        least = min(default, max(LOWEST, proof.lowest_agreed))
    if proof.disagreed:
        least = max(least, proof.highest_disagreed + STEP_UP)
    return least


def is_trusted(proof: Proof, needed: int) -> bool:
    """Whether the entry may answer at all: agreed with often enough, and not disagreed with as often."""
    return proof.agreed >= needed and (proof.disagreed == 0 or proof.agreed > proof.disagreed)


def compare_answers(kept: str, fresh: str) -> Agreement:
    """Whether two answers say the same, as far as it can be told without understanding them.

    Other numbers or another count of negations never agree: "within 7 days" is not "within 14 days".
    """
    if kept.strip() == fresh.strip():
        return "agrees"
    left, right = read_wording(kept[:_LONGEST]), read_wording(fresh[:_LONGEST])
    ours, theirs = Counter(left.content), Counter(right.content)
    size = ours.total() + theirs.total()
    if not ours or not theirs:
        return "unclear"
    common = 2 * (ours & theirs).total() / size
    if common <= DISAGREE:
        return "disagrees"
    same_numbers = Counter(_NUMBER.findall(kept)) == Counter(_NUMBER.findall(fresh))
    if common >= AGREE and same_numbers and left.negations % 2 == right.negations % 2 and left.polar == right.polar:
        return "agrees"
    return "disagrees" if common >= AGREE else "unclear"
