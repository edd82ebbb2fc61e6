"""From what was found to what is said: threshold, margin, the operator first, abstention on any doubt."""

from __future__ import annotations

from local_infer.model import Abstained
from local_infer.retrieval.verdict import Found, choose
from local_infer.retrieval.wording import read_wording

ASKED = read_wording("How do I cancel my order?")


def found(similarity: float, question: str, answer: str, source: str = "faq") -> Found:
    return Found(similarity, f"{source}:{answer}", question, answer, source, 0.0)  # type: ignore[arg-type]


def pick(*stored: Found, least: float | None = 0.5, margin: float = 0.05) -> Found | Abstained:
    return choose(ASKED, stored, lambda _: least, margin)


SAME, OPPOSITE = "how can i cancel an order", "How do I place my order?"


def test_nothing_similar() -> None:
    assert pick() == Abstained("nothing similar")
    assert pick(found(0.19, SAME, "a")) == Abstained("nothing similar")


def test_veto_names_the_reason_of_the_nearest() -> None:
    not_it = found(0.9, "How do I not cancel my order?", "a")
    assert pick(not_it, found(0.8, OPPOSITE, "b")) == Abstained("veto: negation")


def test_similarity_and_proof() -> None:
    assert pick(found(0.49, SAME, "a")) == Abstained("similarity")
    assert pick(found(0.9, SAME, "a"), least=None) == Abstained("not proved")
    assert pick(found(0.5, SAME, "a")) == found(0.5, SAME, "a")


def test_a_near_rival_with_another_answer_is_a_doubt() -> None:
    best = found(0.9, SAME, "a")
    assert pick(best, found(0.86, "cancel my order", "b")) == Abstained("margin")
    assert pick(best, found(0.85, "cancel my order", "b")) == best
    assert pick(best, found(0.89, "cancel my order", "a")) == best
    assert pick(best, found(0.89, OPPOSITE, "b")) == best  # vetoed: it is not meant


def test_the_operator_goes_before_verified_answers() -> None:
    operator = found(0.7, SAME, "a")
    assert pick(found(0.95, SAME, "b", "verified"), operator) == operator
    weak = found(0.4, SAME, "a")
    verified = found(0.95, SAME, "b", "verified")
    assert pick(weak, verified) == verified
