"""Why a stored question must not stand for the one that was asked, however similar they are.

Similarity over n-grams cannot tell 开启 from 关闭, so it only proposes. Each veto here finds a difference that changes the
answer; the last one, `wording`, is the safe default: a word replaced by another that no list calls the same is a doubt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from local_infer.retrieval.lexicon import excluding
from local_infer.retrieval.ngrams import normalise
from local_infer.retrieval.sayings import NO_SAYINGS, Sayings, leave_out_shared
from local_infer.retrieval.situations import implied, near
from local_infer.retrieval.wording import TROUBLES, Wording

Why = Literal["negation", "antonym", "one-sided", "number", "identifier", "question word", "order", "wording"]

# Kinds of question that one answer can serve. Everything else must be asked with the same word.
_SAME_KIND = (
    frozenset({"how", "can"}),
    frozenset({"whether", "can"}),
    frozenset({"whether", "will"}),
    frozenset({"state", "outcome"}),
    frozenset({"what", "which"}),
    frozenset({"define", "whatis"}),
    frozenset({"how", "whereto"}),
    frozenset({"where", "whereto"}),
    frozenset({"remedy", "state"}),
    frozenset({"state", "why"}),
)
# Kinds that are one kind when what is asked of is of this sort, on both sides.
_SAME_KIND_OF = {
    frozenset({"when", "howlong"}): frozenset(
        {"=arrive", "=ship", "=refund", "=receive", "=expire", "=process_", "=exchange", "=result", "=warranty"}
        | {"=transfer", "=withdraw", "=deposit", "=dispatch", "=reissue"}
    ),
    frozenset({"whatis", "howmuch"}): frozenset(
        {"=fee", "=limit", "=salary", "=rent", "=tuition", "=penalty", "=interest", "=deposit_", "=balance", "=bonus"}
        | {"=compensate", "=points", "=exchangerate", "=creditlimit"}
    ),
    frozenset({"whatis", "howlong"}): frozenset(
        {"=warranty", "=trial", "=expire", "=probation", "=semester", "=deadline", "=vacation", "=batterylife"}
    ),
    frozenset({"howlong", "howlongfor"}): frozenset({"=vacation", "=sick", "=leave_", "=warranty", "=trial"}),
    frozenset({"howlong", "howmuch"}): frozenset({"=vacation", "=sick", "=leave_"}),
    frozenset({"howlong", "howmany"}): frozenset({"=vacation", "=sick", "=leave_"}),
    frozenset({"howmuch", "howmany"}): frozenset({"=vacation", "=sick", "=leave_"}),
    frozenset({"howmany", "whatis"}): frozenset({"=limit"}),
    frozenset({"whatis", "when"}): frozenset(
        {"=hours", "=location_open", "=deadline", "=payday", "=expire", "=worktime", "=checkin", "=checkout"}
    ),
    frozenset({"whatis", "whether"}): frozenset({"=discount", "=requirement"}),
    frozenset({"what", "how"}): frozenset({"=compensate"}),
}
_GOES_WITHOUT_SAYING = (
    *(("howmuch", "=fee"), ("howmany", "=limit"), ("when", "=time"), ("howlong", "=time"), ("howlong", "tak")),
    *(("remedy", "=after"), ("outcome", "=after")),
)
"""Who asks how much need not say that it is a price, what to do now not that it is after something."""
_ENDING_LIST = "ment ation ition tion ion er ness ly able ible ance ence ity al age or"
_ENDINGS = frozenset(_ENDING_LIST.split())
# What may be added without changing which question is asked; one of them for another does change it.
_PRECISE_LIST = "when howlong howlongfor howmuch howmany howoften who why must outcome"
_PRECISE = frozenset(_PRECISE_LIST.split())
"""Asked of an action, so that none may be left out: when one applies is not when one gets it."""
_HELP = frozenset({"how", "where", "whereto", "whether", "can", "state", "remedy", "which", "what"})
"""Kinds that two questions may ask in which say the same in quite other words; in the same words another kind is meant."""
_LOOSE = frozenset({"=obtain", "=apply", "=support", "=use", "tak"})

ANEW = 0.2
"""At most so much of what either says is in both, letter by letter, where one is the other said anew. Near misses are said
alike: of 537 English pairs that were fitted on, an embedder's similarity of 60% let 126 pass without this, 1 with it.
"""
_HAN = r"\u3400-\u9fff\U00020000-\U0002ffff"
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")


def find_veto(asked: Wording, stored: Wording, sayings: Sayings = NO_SAYINGS, *, doubts: bool = True) -> Why | None:
    """The first reason why the answer to `stored` may be wrong for `asked`; None when there is none. Symmetric.

    What both say in different ways of one line of `sayings` is no difference. Without `doubts`, other words alone are
    no reason: only for a similarity that knows what words mean.
    """
    asked, stored, is_reworded = leave_out_shared(asked, stored, sayings)
    for why, differs in _VETOES if doubts else _VETOES[:-1]:
        if differs(asked, stored) and not (is_reworded and differs is _question_word and _asks_for_help(asked, stored)):
            return why
    return None


def is_said_anew(one: str, other: str) -> bool:
    """Whether two questions share hardly a word (Chinese: a character): only then may an embedder say that they are one."""
    ours, theirs = (set(_WORD.findall(normalise(text))) for text in (one, other))
    return bool(ours and theirs) and len(ours & theirs) <= ANEW * len(ours | theirs)


def _asks_for_help(one: Wording, other: Wording) -> bool:
    """Whether both ask how to do something, or tell what is wrong, and of the same thing: can I, where do I, how do I."""
    return _kinds(one) | _kinds(other) <= _HELP and not any(_unmatched(one, other))


def _negation(one: Wording, other: Wording) -> bool:
    return one.negations % 2 != other.negations % 2


def _antonym(one: Wording, other: Wording) -> bool:
    return any(frozenset({a, b}) in excluding() for a in one.polar - other.polar for b in other.polar - one.polar)


def _one_sided(one: Wording, other: Wording) -> bool:
    left, right = _unmatched(one, other)
    return not one.polar.union(other.polar).isdisjoint([*left, *right])


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
    """The kinds of question in it, the loose one (whether) only when alone; a bare phrase asks how, or tells of trouble."""
    strict = wording.questions - {"whether", "can", "what", "which", "whatis"}
    strict = strict or wording.questions - {"whether", "can"} or wording.questions - {"whether"}
    return strict or wording.questions or frozenset({"state" if _is_trouble(wording) else "how"})


def _compatible(a: str, b: str, one: Wording, other: Wording) -> bool:
    pair = frozenset({a, b})
    if pair in _SAME_KIND:
        return True
    if pair == {"what", "howmuch"}:
        pair = frozenset({"whatis", "howmuch"})
    if pair in _SAME_KIND_OF and "whatis" in pair:
        # What is the price of it: how much is it. What are the hours: when is it open.
        return all(
            not _SAME_KIND_OF[pair].isdisjoint(w.content) for w in (one, other) if w.questions & {"whatis", "what"}
        )
    if pair in _SAME_KIND_OF:
        return all(not _SAME_KIND_OF[pair].isdisjoint(w.content) for w in (one, other))
    # What does not work: why, and what to do, have one answer.
    # But how to do what went wrong is not what to do about it: how to lose, what to do when lost.
    return (
        pair <= {"why", "how", "whether", "remedy", "state"}
        and pair != {"how", "remedy"}
        and _is_trouble(one)
        and _is_trouble(other)
    )


def _is_trouble(wording: Wording) -> bool:
    return wording.negations > 0 or not TROUBLES.isdisjoint(wording.content)


def _owner(one: Wording, other: Wording) -> bool:
    """Whether one asks for what is the asker's and the other for what is the answerer's: my address, your address."""
    asks = (one.questions | other.questions) & {"whatis", "where", "when", "howmuch", "which"}
    return bool(asks) and {one.owner, other.owner} == {"me", "you"}


def _order(one: Wording, other: Wording) -> bool:
    """Whether things have changed places around something: A pays B, from A to B, A and B that exclude each other."""
    if set(one.parties) == set(other.parties) and one.parties != other.parties:
        return True  # I see others' posts, others see mine
    if one.parties != other.parties and _persons_moved(one, other):
        return True
    ends, other_ends = {c for c in one.content if c[0] == ">"}, {c for c in other.content if c[0] == ">"}
    if ends - other_ends and other_ends - ends:
        return True  # when it leaves from there, when it comes to there
    roles, others = _roles(one), _roles(other)
    if any(thing in others and others[thing] != role for thing, role in roles.items()):
        return True
    if len(set(roles.values())) > 1 and len(set(others.values())) > 1:
        return False  # both ends are named on both sides: their order says nothing
    return _reversed(one, other) or _parties_swapped(one, other)


def _persons_moved(one: Wording, other: Wording) -> bool:
    """Whether somebody stands on the other side of something: how do I see others' page, how do others see my page."""
    persons = {party for party in one.parties if party != "I"} & set(other.parties)
    places = _places(one, other)
    return any(p > q and not persons.isdisjoint((a, b)) for i, (a, p) in enumerate(places) for b, q in places[i + 1 :])


def _roles(wording: Wording) -> dict[str, str]:
    """content -> the direction right before it."""
    content = wording.content
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
        p > q and frozenset({a, b}) in excluding() for i, (a, p) in enumerate(places) for b, q in places[i + 1 :]
    )


def _wording(one: Wording, other: Wording) -> bool:
    """Whether one says something that the other does not: a word that no list calls the same, or one more word.

    Words that hardly change what is asked (`_LOOSE`) may be added, but not one put for another; nor where another kind of
    question is asked as well: where to get a code is not what to do with it.
    """
    left, right = _unmatched(one, other)
    is_other_kind = "whereto" in _kinds(one) ^ _kinds(other)
    loose = frozenset() if is_other_kind or (one.questions | other.questions) & _PRECISE else _LOOSE
    return bool(left and right) or not loose.issuperset(left + right)


def _unmatched(one: Wording, other: Wording) -> tuple[list[str], list[str]]:
    """What only one of them says, directions left out; who asks how much need not say that it is a price."""
    ours, theirs = set(one.content), set(other.content)
    asks = one.questions | other.questions
    for kind, thing in _GOES_WITHOUT_SAYING:
        if kind in asks:
            ours.add(thing)
            theirs.add(thing)
    left = [c for c in dict.fromkeys(one.content) if c not in theirs and c[0] != ">"]
    right = [c for c in dict.fromkeys(other.content) if c not in ours and c[0] != ">"]
    for word in list(left):
        twin = next((w for w in right if _same_stem(word, w) or frozenset({word, w}) in near()), None)
        if twin is not None:
            left.remove(word)
            right.remove(twin)
    if not (left and right):
        # What goes without saying may be left out, but not be said instead of something else that does.
        left, right = _telling(left, ours & theirs), _telling(right, ours & theirs)
    return left, right


def _telling(words: list[str], common: set[str]) -> list[str]:
    return [word for word in words if implied().get(word, frozenset()).isdisjoint(common)]


def _same_stem(a: str, b: str) -> bool:
    """Whether one English word is the other with an ending: repay, repayment."""
    short, long = sorted((a, b), key=len)
    return short[0] != "=" and len(short) >= 4 and long.startswith(short) and long[len(short) :] in _ENDINGS


_VETOES: tuple[tuple[Why, Callable[[Wording, Wording], bool]], ...] = (
    ("negation", _negation),
    ("antonym", _antonym),
    ("number", _number),
    ("identifier", _identifier),
    ("question word", _question_word),
    ("order", _order),
    ("order", _owner),
    ("one-sided", _one_sided),
    ("wording", _wording),
)
