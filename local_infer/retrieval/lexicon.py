"""The word lists as tables: which words mean what, in Chinese by character strings, in English by stems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from local_infer.retrieval import antonyms
from local_infer.retrieval.concepts_daily import DAILY
from local_infer.retrieval.concepts_service import SERVICE
from local_infer.retrieval.situations import COMPOUNDS, IMPLIED, NEAR, SITUATIONS, compounds, result_names

LISTS = (
    *(antonyms.POLAR, antonyms.PLAIN, antonyms.QUESTIONS, antonyms.NEGATIONS, antonyms.FILLERS, antonyms.DIRECTIONS),
    *(antonyms.NOT_NEGATIONS, antonyms.IRREGULAR, antonyms.SOFT, SERVICE, DAILY, COMPOUNDS, SITUATIONS, NEAR, IMPLIED),
)
"""Everything that decides what a question's grams are, besides the code."""

_PRIVATE_USE = 0xE000
_EN_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")

Meaning = tuple[str, ...]
"""`=concept`, `?kind of question`, `!` negation, `~` filler, `^` what says little, `>direction`; a compound has several."""


@dataclass(frozen=True, slots=True)
class Words:
    """`private` is the character that stands for a concept in gram texts; `longest` in characters and in words."""

    zh: dict[str, Meaning]
    en: dict[tuple[str, ...], Meaning]
    zh_longest: int
    en_longest: int
    zh_units: dict[str, str]
    en_units: dict[str, str]
    private: dict[str, str]
    polar: frozenset[str]
    known: frozenset[str]


@cache
def _irregular() -> dict[str, str]:
    return dict(pair.split("/") for pair in antonyms.IRREGULAR.split())


def stem(word: str) -> str:
    """An English word without its commonest endings; both sides are stemmed alike, so it need not be a word."""
    word = word.removesuffix("'s")
    word = _irregular().get(word, word)
    if len(word) <= 3 or "'" in word:
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    else:
        for ending in ("ing", "ed", "es", "s"):
            if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
                word = word[: -len(ending)]
                break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiousl":
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


def phrase_of(text: str) -> tuple[str, ...]:
    """The stems of a listed English phrase."""
    return tuple(stem(word) for word in _EN_WORD.findall(text))


def list_lines(block: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, Chinese words, English words) of each line of a word list; the form is told in `antonyms.py`."""
    for line in block.strip().splitlines():
        name, _, words = line.partition(":")
        zh, _, en = words.partition("|")
        yield name.strip(), zh.split(), [phrase.strip() for phrase in en.split(",") if phrase.strip()]


@cache
def words() -> Words:
    """The lists as tables. A word has one meaning: the first that names it; compounds before all."""
    zh: dict[str, Meaning] = {}
    en: dict[tuple[str, ...], Meaning] = {}
    private: dict[str, str] = {}

    def know(word: str, meaning: Meaning) -> None:
        if word.isascii():
            en.setdefault(phrase_of(word), meaning)
        else:
            zh.setdefault(word, meaning)

    polar = frozenset("=" + name for name, _, _ in list_lines(antonyms.POLAR))
    blocks = [("?", antonyms.QUESTIONS)]
    blocks += [("=", block) for block in (antonyms.POLAR, antonyms.PLAIN, SERVICE, DAILY)]
    blocks += [("^", antonyms.SOFT), (">", antonyms.DIRECTIONS)]
    names = [mark + name for mark, block in blocks for name, _, _ in list_lines(block) if mark == "="]
    for name in [*names, *sorted(result_names())]:
        private.setdefault(name, chr(_PRIVATE_USE + len(private)))
    for word, parts in compounds().items():
        know(word, tuple(_meaning(part, private) for part in parts))
    for mark, block in blocks:
        for name, zh_words, en_words in list_lines(block):
            for word in [*zh_words, *en_words]:
                know(word, (mark + name,))
    for mark, block in (("!", antonyms.NEGATIONS), ("~", antonyms.FILLERS), ("~", antonyms.NOT_NEGATIONS + "|")):
        zh_part, _, en_part = block.partition("|")
        for word in [*zh_part.split(), *(phrase.strip() for phrase in en_part.split(","))]:
            know(word, (mark,))
    en.pop((), None)
    units = [(name, zh_words, en_words) for name, zh_words, en_words in list_lines(antonyms.UNITS)]
    return Words(
        zh,
        en,
        max(map(len, zh)),
        max(map(len, en)),
        {word: name for name, zh_words, _ in units for word in zh_words},
        {" ".join(phrase_of(w)) or w: name for name, _, en_words in units for w in en_words},
        private,
        polar,
        frozenset(private),
    )


@cache
def excluding() -> frozenset[frozenset[str]]:
    """Pairs of concepts of which one says the opposite of the other, or another of its kind."""
    pairs: set[frozenset[str]] = set()
    for group in antonyms.EXCLUDING.split():
        names = ["=" + name for name in group.split("/")]
        pairs.update(frozenset({a, b}) for a in names for b in names if a != b)
    return frozenset(pairs)


def _meaning(part: str, private: dict[str, str]) -> str:
    return part if part[0] in "?!>" or "=" + part not in private else "=" + part
