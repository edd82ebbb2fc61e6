"""Ways to say one thing, and what two questions both say in different ways: "cash machine" and "ATM", 按揭 and 房贷.

Word lists (`lexicon.py`) give every word one meaning; here a word may stand in many lines, and a way of several words is
said wherever these stand together, in any order. A line makes nothing the same but what its own ways say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from local_infer.retrieval.lexicon import excluding, list_lines, phrase_of, words
from local_infer.retrieval.wording import Wording, read_wording

_SLACK_ZH = 1
"""Other words that may stand among those of one way in Chinese; in English "study on a work visa" is no study visa."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to say what line `line` says: the contents it has, and how many negations ("can't remember": forget)."""

    line: int
    content: frozenset[str]
    negations: int


Sayings = Mapping[str, Sequence[Way]]
"""The rarest content of a way -> the ways it belongs to."""

_LINES_FROM = 0xF0000
"""Private use characters that stand for lines; those of the word lists lie lower (`lexicon.py`)."""

_LINE_TIMES = 2
"""How often each is written: a line that two questions say tells more than a word does."""

_REWORDED = 3
_CIRCUMSTANCE = 3
"""When so many words (of both) are said otherwise and one question is wholly in the other, so many more may be said."""

NO_SAYINGS: Sayings = {}


def read_sayings(texts: Iterable[str]) -> Sayings:
    """The lines of `texts` (as in `antonyms.py`) as the word lists read them.

    Lines are left out that say nothing new, and those of which two ways are opposites, as the lists read them.
    """
    lines: list[set[Way]] = []
    for text in texts:
        for _, zh, en in list_lines(text):
            ways = {way for said in (*zh, *en) if (way := _way(said, len(lines))) is not None}
            if len(ways) > 1 and not any(_are_opposite(a, b) for a, b in combinations(ways, 2)):
                lines.append(ways)
    seen: dict[str, int] = {}
    for ways in lines:
        for way in ways:
            for content in way.content:
                seen[content] = seen.get(content, 0) + 1
    found: dict[str, list[Way]] = {}
    for ways in lines:
        for way in sorted(ways, key=lambda way: sorted(way.content)):
            found.setdefault(min(way.content, key=lambda content: (seen[content], content)), []).append(way)
    return {content: tuple(ways) for content, ways in found.items()}


def _way(said: str, line: int) -> Way | None:
    """None when its words say more than is read of them, as of 还卡 only 卡; or when it asks or counts."""
    wording = read_wording(said)
    content = frozenset(c for c in wording.content if c[0] != ">")
    if not content or wording.numbers or wording.questions:
        return None
    if len(content) == 1 and not _is_one_word(said, content):
        return None
    return Way(line, content, wording.negations)


def _is_one_word(said: str, content: frozenset[str]) -> bool:
    if said.isascii():
        return phrase_of(said.lower()) in words().en or len(said.split()) == 1
    return said in words().zh or said in content


def _are_opposite(way: Way, twin: Way) -> bool:
    ours, theirs = way.content - twin.content, twin.content - way.content
    return way.negations == twin.negations and any(frozenset({a, b}) in excluding() for a in ours for b in theirs)


def ways_said(wording: Wording, sayings: Sayings) -> dict[int, list[Way]]:
    """line -> the ways of it that `wording` has, each with its words together. O(words * ways of a word)."""
    order = [c for c in wording.content if c[0] != ">"]
    place = {content: i for i, content in reversed(list(enumerate(order)))}
    slack = _SLACK_ZH if wording.has_han else 0
    found: dict[int, list[Way]] = {}
    for content in place:
        for way in sayings.get(content, ()):
            if (
                way.content <= place.keys()
                and way.negations <= wording.negations
                and _stands_together(way, order, slack)
            ):
                found.setdefault(way.line, []).append(way)
    return found


def _stands_together(way: Way, order: Sequence[str], slack: int) -> bool:
    """Whether some run of `order`, longer than the way by `slack`, has all of its words."""
    size = len(way.content)
    return size == 1 or any(
        way.content <= set(order[start : start + size + slack]) for start in range(len(order) - size + 1)
    )


def gram_text(wording: Wording, sayings: Sayings) -> str:
    """The text that similarity is taken over: a question's own, and a character for each line that it says."""
    lines = sorted(ways_said(wording, sayings))
    return wording.gram_text + "".join(f"{chr(_LINES_FROM + line)} " * _LINE_TIMES for line in lines)


def leave_out_shared(one: Wording, other: Wording, sayings: Sayings) -> tuple[Wording, Wording, bool]:
    """Both without what they say in different ways of one line, and whether that was much of them.

    What both say in the same words stays.

    Where only one of them says one word more, that is left out, too, if one way of a line has it and another, which
    the other question says, has not: a guarantee period is a warranty. What excludes something is never left out so.
    """
    ours, theirs = ways_said(one, sayings), ways_said(other, sayings)
    said, said_other = frozenset(one.content), frozenset(other.content)
    gone: set[str] = set()
    gone_other: set[str] = set()
    more: set[str] = set()
    negations = negations_other = 0
    for line in sorted(ours.keys() & theirs.keys()):
        pairs = [(a, b) for a in ours[line] for b in theirs[line]]
        more.update(*(a.content ^ b.content for a, b in pairs if _is_part(a, b) and a.negations == b.negations))
        pairs = [pair for pair in pairs if not _is_part(*pair) and not _told_apart(*pair)]
        if not pairs:
            continue
        way, twin = min(pairs, key=_preference)
        new, new_other = way.content - said_other - gone, twin.content - said - gone_other
        if not (new and new_other):
            more |= new | new_other  # said twice by one of them, once by both
        else:
            gone |= way.content - said_other
            gone_other |= twin.content - said
            if way.negations != twin.negations:
                negations += way.negations
                negations_other += twin.negations
    left, left_other = said - said_other - gone, said_other - said - gone_other
    if len(left) + len(left_other) > 1:
        more.clear()
    is_reworded = len(gone) + len(gone_other) >= _REWORDED
    if is_reworded and len(left) + len(left_other) <= _CIRCUMSTANCE:
        more |= left | left_other  # wholly said again in other words: what more is said tells how it came about
    more -= one.polar | other.polar
    if not left:
        gone_other |= more & left_other
    elif not left_other:
        gone |= more & left
    return _without(one, gone, negations), _without(other, gone_other, negations_other), is_reworded


def _is_part(way: Way, twin: Way) -> bool:
    """Whether one says all of the other: what more it says is then no other way to say it."""
    return way.content <= twin.content or twin.content <= way.content


def _told_apart(way: Way, twin: Way) -> bool:
    """Whether just one concept of the word lists would stand for another: the lists know better."""
    return len(way.content) == len(twin.content) == 1 and all(c[0] == "=" for c in way.content | twin.content)


def _preference(pair: tuple[Way, Way]) -> tuple[bool, int, list[str]]:
    way, twin = pair
    both = sorted(way.content | twin.content)
    return way.negations != twin.negations, -len(way.content) - len(twin.content), both


def _without(wording: Wording, gone: set[str], negations: int) -> Wording:
    if not gone and not negations:
        return wording
    content = tuple(c for c in wording.content if c not in gone)
    left = max(0, wording.negations - negations)
    named = wording.identifiers - gone
    return replace(wording, content=content, polar=wording.polar - gone, negations=left, identifiers=named)
