"""Why a stored question must not stand for the one that was asked, however similar they are.

Similarity over n-grams cannot tell 开启 from 关闭, so it only proposes. Each veto here finds a difference that changes the
answer; the last one, `wording`, is the safe default: a word replaced by another that no list calls the same is a doubt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Literal

from local_infer.retrieval.antonyms import EXCLUDING
from local_infer.retrieval.wording import Wording

Why = Literal["negation", "antonym", "one-sided", "number", "identifier", "question word", "order", "wording"]

# Kinds of question that one answer can serve. Everything else must be asked with the same word.
_SAME_KIND = (
    frozenset({"how", "whether"}),
    frozenset({"what", "whether"}),
    frozenset({"what", "which"}),
    frozenset({"when", "howlong"}),
    frozenset({"how", "whereto"}),
    frozenset({"where", "whereto"}),
)
_AMOUNTS = frozenset({"=fee", "=limit", "=salary"})
_TROUBLES = frozenset({"=slow", "=fail", "=damaged", "=wrong", "=error", "=lost", "=delayed", "=timeout", "=expire"})
_ENDINGS = ("ment", "ation", "ition", "tion", "ion", "er", "ness", "ly", "able", "ible", "ance", "ence", "ity")
# What may be added without changing which question is asked; one of them for another does change it.
_LOOSE = frozenset(
    {"=method", "=use", "=set", "=view", "=obtain", "=requirement", "=apply", "=people", "=speed", "=support"}
)


def find_veto(asked: Wording, stored: Wording, *, doubts: bool = True) -> Why | None:
    """The first reason why the answer to `stored` may be wrong for `asked`; None when there is none. Symmetric.

    Without `doubts`, other words alone are no reason: only for a similarity that knows what words mean.
    """
    for why, differs in _VETOES if doubts else _VETOES[:-1]:
        if differs(asked, stored):
            return why
    return None


def _negation(one: Wording, other: Wording) -> bool:
    return one.negations % 2 != other.negations % 2


@cache
def _excluding() -> frozenset[frozenset[str]]:
    pairs: set[frozenset[str]] = set()
    for group in EXCLUDING.split():
        names = ["=" + name for name in group.split("/")]
        pairs.update(frozenset({a, b}) for a in names for b in names if a != b)
    return frozenset(pairs)


def _antonym(one: Wording, other: Wording) -> bool:
    return any(frozenset({a, b}) in _excluding() for a in one.polar - other.polar for b in other.polar - one.polar)


def _one_sided(one: Wording, other: Wording) -> bool:
    return one.polar != other.polar


def _number(one: Wording, other: Wording) -> bool:
    return one.numbers != other.numbers


def _identifier(one: Wording, other: Wording) -> bool:
    return not (one.identifiers <= other.latin | other.identifiers and other.identifiers <= one.latin | one.identifiers)


def _question_word(one: Wording, other: Wording) -> bool:
    asks, answers = _kinds(one), _kinds(other)
    if asks == answers:
        return False
    return not all(any(a == b or _compatible(a, b, one, other) for b in answers) for a in asks) or not all(
        any(a == b or _compatible(a, b, one, other) for a in asks) for b in answers
    )


def _kinds(wording: Wording) -> frozenset[str]:
    """The kinds of question in it, the loose one (whether) only when it is alone; a bare phrase asks how."""
    strict = wording.questions - {"whether", "what", "which"} or wording.questions - {"whether"}
    return strict or wording.questions or frozenset({"how"})


def _compatible(a: str, b: str, one: Wording, other: Wording) -> bool:
    pair = frozenset({a, b})
    if pair in _SAME_KIND:
        return True
    if pair == {"what", "howmuch"}:
        # What is the price of it: how much is it.
        return all(not _AMOUNTS.isdisjoint(w.content) for w in (one, other) if "what" in w.questions)
    # What does not work: why, and what to do, have one answer.
    return pair <= {"why", "how", "whether"} and _is_trouble(one) and _is_trouble(other)


def _is_trouble(wording: Wording) -> bool:
    return wording.negations > 0 or not _TROUBLES.isdisjoint(wording.content)


def _order(one: Wording, other: Wording) -> bool:
    """Whether things have changed places around something: A pays B, from A to B, A and B that exclude each other."""
    roles, others = _roles(one), _roles(other)
    if roles and others:
        return any(thing in others and others[thing] != role for thing, role in roles.items())
    return _reversed(one, other) or _parties_swapped(one, other)


def _roles(wording: Wording) -> dict[str, str]:
    """content -> the direction right before it; empty unless both ends are named."""
    content = wording.content
    if ">from" not in content or ">to" not in content:
        return {}
    return {b: a for a, b in pairwise(content) if a in (">from", ">to") and b[0] != ">"}


def _places(one: Wording, other: Wording) -> list[tuple[str, int]]:
    """What both say just once, in the order of `one`, with its place in `other`."""
    ours, theirs = Counter(one.content), Counter(other.content)
    return [(c, other.content.index(c)) for c in one.content if ours[c] == 1 and theirs[c] == 1]


def _reversed(one: Wording, other: Wording) -> bool:
    """Whether any three things stand in exactly the opposite order: a longest falling run of three (O(n^2))."""
    places = [place for _, place in _places(one, other)]
    runs: list[int] = []
    for i, place in enumerate(places):
        runs.append(1 + max((runs[j] for j in range(i) if places[j] > place), default=0))
    return max(runs, default=0) >= 3


def _parties_swapped(one: Wording, other: Wording) -> bool:
    """Whether both name two that exclude each other, in the other order: show hidden files, hide shown files."""
    places = _places(one, other)
    return any(
        p > q and frozenset({a, b}) in _excluding() for i, (a, p) in enumerate(places) for b, q in places[i + 1 :]
    )


def _wording(one: Wording, other: Wording) -> bool:
    """Whether one says something that the other does not: a word that no list calls the same, or one more word.

    Words that hardly change what is asked (`_LOOSE`) may be added, but not one put for another.
    """
    left, right = _unmatched(one, other)
    for word in list(left):
        twin = next((w for w in right if _same_stem(word, w)), None)
        if twin is not None:
            left.remove(word)
            right.remove(twin)
    return bool(left and right) or not _LOOSE.issuperset(left + right)


def _unmatched(one: Wording, other: Wording) -> tuple[list[str], list[str]]:
    """What only one of them says, directions left out; who asks how much need not say that it is a price."""
    ours, theirs = Counter(one.content), Counter(other.content)
    if "howmuch" in one.questions | other.questions:
        ours["=fee"] = theirs["=fee"] = 1
    return [c for c in ours - theirs if c[0] != ">"], [c for c in theirs - ours if c[0] != ">"]


def _same_stem(a: str, b: str) -> bool:
    """Whether one English word is the other with an ending: repay, repayment."""
    short, long = sorted((a, b), key=len)
    return len(short) >= 4 and long.startswith(short) and long[len(short) :] in _ENDINGS


_VETOES: tuple[tuple[Why, Callable[[Wording, Wording], bool]], ...] = (
    ("negation", _negation),
    ("antonym", _antonym),
    ("number", _number),
    ("identifier", _identifier),
    ("question word", _question_word),
    ("order", _order),
    ("one-sided", _one_sided),
    ("wording", _wording),
)
