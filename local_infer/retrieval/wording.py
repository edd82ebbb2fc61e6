"""Reads a question into what it says: concepts, content words, negations, numbers, identifiers, kind of question.

Two uses. The similarity is taken over `Wording.gram_text`, in which words of one concept are one character and fillers are
gone, so that rewordings come close. The vetoes compare the rest. Chinese is read by longest match in the word lists (what
is in none stays as single characters), English by stems and phrases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from local_infer.retrieval import antonyms
from local_infer.retrieval.ngrams import normalise

_PRIVATE_USE = 0xE000
_ZH_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"两": 2}
_ZH_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_EN_NUMBERS = {
    word: i + 2
    for i, word in enumerate(
        [
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
        ]
    )
} | {"twenty": 20, "thirty": 30, "fifty": 50, "hundred": 100, "thousand": 1000}
_EN_ORDINALS = {"second": 2, "third": 3, "fourth": 4, "fifth": 5}

_TOKEN = re.compile(
    r"""
      (?P<flag>(?<![\w-])--?[a-z][\w-]*)
    | (?P<number>[$¥€]?\s?\d[\d,]*(?:\.\d+)?(?![\w.:/_-]*[a-z0-9_])[十百千万亿]*)
    | (?P<measure>\d+(?:\.\d+)?(?=(?P<suffix>[a-z]{1,2})\b))
    | (?P<code>[a-z0-9]+(?:[._:/-][a-z0-9]+)*(?:'[a-z]+)?|[a-z0-9_]+)
    | (?P<cjk>[\u3400-\u9fff\U00020000-\U0002ffff])
    | (?P<sign>[%℃℉°])
    | (?P<quote>["“「『《`][^"”」』》`]{1,64}["”」』》`])
    """,
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_PHRASE_WORD = re.compile(r"[\s-]*([a-z0-9]+(?:'[a-z]+)?)(?![._:/][a-z0-9])")
_UNIT_WORDS = re.compile(r"[\s-]*([a-z]+)(?:[\s-]+([a-z]+))?")
_SHOUTED = re.compile(r"\b(?:[A-Z]{2,}|[A-Za-z]*[a-z][A-Z][A-Za-z]*|[A-Z]+[a-z]*[A-Z]\w*)\b")
_QUOTED = re.compile(r"[\"“「『《`]([^\"”」』》`]{1,64})[\"”」』》`]")
_APART = re.compile(
    r"\b(turn|switch|shut|opt|scale|zoom)(s|ed|ing)?\s+((?:(?!(?:on|off|down|up|out|in)\b)[^\s.?!,]+\s+){1,4}?)(on|off|down|up|out|in)\b"
)
_RESULT = re.compile(r"([收打看找听连查搜签])不(到|开|出来|出|见|上)")
_A_NOT_A = re.compile(r"([\u4e00-\u9fff])[不没]\1")
_POTENTIAL = re.compile(r"不(了|上去|上|出来|出|开|到|起来|起|动|成|通|见|掉|进去|进)")
_ZH_NUMBER = re.compile(r"第?[零一二两三四五六七八九十百千万亿]+")
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0002ffff]")


@dataclass(frozen=True, slots=True)
class Wording:
    """What a question says. `content` are concepts (`=name`) and plain words or characters, in order, without fillers.

    Directions (from, to, than) are content, too: `>to`. `latin` is every Latin word or code, lower case, to look
    identifiers of the other question up in.
    """

    gram_text: str
    content: tuple[str, ...]
    polar: frozenset[str]
    negations: int
    questions: frozenset[str]
    numbers: tuple[tuple[str, str], ...]
    identifiers: frozenset[str]
    latin: frozenset[str]


def stem(word: str) -> str:
    """An English word without its commonest endings; both sides are stemmed alike, so it need not be a word."""
    word = word.removesuffix("'s")
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


@dataclass(frozen=True, slots=True)
class _Words:
    zh: dict[str, str]
    en: dict[tuple[str, ...], str]
    zh_longest: int
    en_longest: int
    zh_units: dict[str, str]
    en_units: dict[str, str]
    private: dict[str, str]
    polar: frozenset[str]


def _lines(block: str) -> Iterator[tuple[str, list[str], list[str]]]:
    for line in block.strip().splitlines():
        name, _, words = line.partition(":")
        zh, _, en = words.partition("|")
        yield name.strip(), zh.split(), [phrase.strip() for phrase in en.split(",") if phrase.strip()]


def _phrase(text: str) -> tuple[str, ...]:
    return tuple(stem(word) for word in re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text))


@cache
def _words() -> _Words:
    """The lists as tables. A word has one meaning: the first that names it."""
    zh: dict[str, str] = {}
    en: dict[tuple[str, ...], str] = {}
    private: dict[str, str] = {}
    polar: set[str] = set()
    blocks = (("?", antonyms.QUESTIONS), ("=", antonyms.POLAR), ("=", antonyms.PLAIN), (">", antonyms.DIRECTIONS))
    for mark, block in blocks:
        for name, zh_words, en_words in _lines(block):
            meaning = mark + name
            if mark == "=":
                private.setdefault(meaning, chr(_PRIVATE_USE + len(private)))
            if block is antonyms.POLAR:
                polar.add(meaning)
            for word in zh_words:
                if word.isascii():
                    en.setdefault(_phrase(word), meaning)
                else:
                    zh.setdefault(word, meaning)
            for phrase in en_words:
                en.setdefault(_phrase(phrase), meaning)
    for mark, block in (("!", antonyms.NEGATIONS), ("~", antonyms.FILLERS), ("~", antonyms.NOT_NEGATIONS + "|")):
        zh_part, _, en_part = block.partition("|")
        for word in zh_part.split():
            zh.setdefault(word, mark)
        for phrase in en_part.split(","):
            en.setdefault(_phrase(phrase), mark)
    en.pop((), None)
    units = [(name, zh_words, en_words) for name, zh_words, en_words in _lines(antonyms.UNITS)]
    return _Words(
        zh,
        en,
        max(map(len, zh)),
        max(map(len, en)),
        {word: name for name, zh_words, _ in units for word in zh_words},
        {" ".join(_phrase(w)) or w: name for name, _, en_words in units for w in en_words},
        private,
        frozenset(polar),
    )


class _Reader:
    """One pass over one question; `read` below is the way in."""

    def __init__(self, text: str) -> None:
        self.words = _words()
        raw = normalise(text, fold=False)
        self.shouted = {m[0].lower() for m in _SHOUTED.finditer(raw)} if not raw.isupper() else set()
        self.text = _RESULT.sub(r"不\1\2", _APART.sub(r"\1 \4 \3", raw.casefold()))
        self.has_han = bool(_HAN.search(self.text))
        self.grams: list[str] = []
        self.content: list[str] = []
        self.negations = 0
        self.asks_place = False
        self.questions: set[str] = set()
        self.numbers: list[tuple[str, str]] = []
        self.identifiers = {" ".join(m[1].split()) for m in _QUOTED.finditer(self.text)}
        self.latin: set[str] = set()

    def read(self) -> Wording:
        position = 0
        while position < len(self.text):
            position = self._step(position)
        return Wording(
            " ".join("".join(self.grams).split()),
            tuple(self.content),
            frozenset(c for c in self.content if c in self.words.polar),
            self.negations,
            frozenset(self.questions - {"where"} if "whereto" in self.questions else self.questions),
            tuple(sorted(self.numbers)),
            frozenset(self.identifiers),
            frozenset(self.latin),
        )

    def _step(self, position: int) -> int:
        match = _TOKEN.match(self.text, position)
        if match is None or match.lastgroup == "quote":
            return position + 1  # of a quotation only the mark: its words are read, too
        if match["cjk"]:
            return self._han(position)
        if match["number"]:
            return self._number(match["number"], match.end())
        if match["measure"]:
            unit = self.words.en_units.get(match["suffix"].lower())
            if unit:
                self._add_number(match["measure"], unit)
                return match.end() + len(match["suffix"])
            return self._code(match["measure"] + match["suffix"], match.end() + len(match["suffix"]))
        if match["flag"]:
            return self._identify(match["flag"], match.end())
        if match["code"]:
            return self._latin(position, match)
        return match.end()

    # -- Latin letters

    def _latin(self, position: int, match: re.Match[str]) -> int:
        phrase = self._phrase_at(position)
        is_number_in_it = any(c.isdigit() for c in match["code"])
        if phrase and not (is_number_in_it and phrase[1] < match.end()):
            meaning, end, words = phrase
            if not (len(words) == 1 and words[0] in self.shouted and meaning == "~"):
                self.latin.update(words)
                self._mean(meaning, " ".join(words))
                return end
        token = match["code"]
        plain = token.replace("'", "")
        if plain.isalpha() or (re.fullmatch(r"[a-z]+(-[a-z]+)+", token) and token not in self.shouted):
            return self._word(position)
        return self._code(token, match.end())

    def _phrase_at(self, position: int) -> tuple[str, int, list[str]] | None:
        """The longest listed phrase that begins here: (meaning, end, its words)."""
        words: list[str] = []
        ends: list[int] = []
        at = position
        while len(words) < self.words.en_longest:
            match = _PHRASE_WORD.match(self.text, at)
            if match is None or (words and self.text[at : match.start(1)].strip(" -")):
                break
            words.append(match[1])
            ends.append(match.end())
            at = match.end()
        stems = tuple(map(stem, words))
        for length in range(len(words), 0, -1):
            meaning = self.words.en.get(stems[:length])
            if meaning is not None:
                return meaning, ends[length - 1], words[:length]
        return None

    def _word(self, position: int) -> int:
        match = _WORD.match(self.text, position)
        if match is None:
            return position + 1
        word = match[0]
        if word in _EN_NUMBERS:
            return self._number(str(_EN_NUMBERS[word]), match.end())
        if word in _EN_ORDINALS:
            self._add_number(str(_EN_ORDINALS[word]), "th")
            return match.end()
        self.latin.add(word)
        if self.has_han or word in self.shouted:
            self.identifiers.add(word)
        self._put(stem(word), f" {stem(word)} ")
        return match.end()

    def _code(self, token: str, end: int) -> int:
        version = re.fullmatch(r"v?(\d+(?:\.\d+)+)", token)
        return self._identify(version[1] if version else token, end)

    def _identify(self, token: str, end: int) -> int:
        self.identifiers.add(token)
        self.latin.add(token)
        self._put(token, f" {token} ")
        return end

    # -- Chinese

    def _han(self, position: int) -> int:
        twice = _A_NOT_A.match(self.text, position)
        if twice:
            self.questions.add("whether")
            if twice[1] in "能可会是要有":
                return twice.end() + (self.text[twice.end() : twice.end() + 1] == "以")
            return twice.end() - 1
        number = _ZH_NUMBER.match(self.text, position)
        longest = self._listed(position)
        if number and (longest is None or number.end() >= position + len(longest)):
            unit, end = self._unit(number.end())
            if unit or number[0].startswith("第"):
                self._add_number(_zh_value(number[0].lstrip("第")), ("th " if number[0][0] == "第" else "") + unit)
                return end
        potential = _POTENTIAL.match(self.text, position)
        if potential and self.content and not (longest and len(longest) > len(potential[0])):
            self.negations += 1
            return potential.end()
        if longest is None:
            self._put(self.text[position], self.text[position])
            return position + 1
        self._mean(self.words.zh[longest], longest)
        return position + len(longest)

    def _listed(self, position: int) -> str | None:
        for length in range(min(self.words.zh_longest, len(self.text) - position), 0, -1):
            if self.text[position : position + length] in self.words.zh:
                return self.text[position : position + length]
        return None

    # -- both

    def _mean(self, meaning: str, word: str) -> None:
        kind, name = meaning[0], meaning[1:]
        if kind == "=":
            private = self.words.private[meaning]
            if self.asks_place and self.has_han:
                # 在哪里修改: where one does something; 修改在哪里: where something is.
                self.questions.add("whereto")
            self._put(meaning, private if not word.isascii() else f" {private} ")
        elif kind == "!":
            self.negations += 1
        elif kind == "?":
            self.questions.add(name)
            self.asks_place = self.asks_place or name == "where"
        elif kind == ">":
            self.content.append(">" + name)

    def _put(self, content: str, gram_text: str) -> None:
        self.content.append(content)
        self.grams.append(gram_text)

    def _number(self, token: str, end: int) -> int:
        token = token.strip()
        currency = self.words.zh_units.get(token[0], "")
        token = token.lstrip("$¥€ ")
        digits = re.match(r"[\d,.]+", token)
        value = float(digits[0].replace(",", "").rstrip(".")) if digits else 0.0
        for scale in token[digits.end() if digits else 0 :]:
            value *= _ZH_SCALES[scale]
        unit, end = self._unit(end)
        # 3.10 is not 3.1: what has a point is kept as it is written.
        text = digits[0] if digits and "." in digits[0] and value < 10_000 else f"{value:.15g}"
        self._add_number(text, currency or unit)
        return end

    def _add_number(self, value: str, unit: str) -> None:
        self.numbers.append((value, unit))
        self.grams.append(f" {value} " if value.isascii() else value)

    def _unit(self, position: int) -> tuple[str, int]:
        """The unit that follows, and where it ends; empty when there is none."""
        for length in range(4, 0, -1):
            unit = self.words.zh_units.get(self.text[position : position + length])
            if unit:
                return unit, position + length
        match = _UNIT_WORDS.match(self.text, position)
        if match:
            both = f"{stem(match[1])} {stem(match[2] or '')}"
            if both in self.words.en_units:
                return self.words.en_units[both], match.end()
            if stem(match[1]) in self.words.en_units:
                return self.words.en_units[stem(match[1])], match.end(1)
        return "", position


def _zh_value(numeral: str) -> str:
    """`三十五` -> `35`; digits in a row (`二零二四`) are read one by one."""
    if not any(c in _ZH_SCALES for c in numeral):
        return "".join(str(_ZH_DIGITS[c]) for c in numeral)
    total = section = digit = 0
    for c in numeral:
        if c in _ZH_DIGITS:
            digit = _ZH_DIGITS[c]
        elif _ZH_SCALES[c] >= 10_000:
            total = (total + section + digit or 1) * _ZH_SCALES[c]
            section = digit = 0
        else:
            section += (digit or 1) * _ZH_SCALES[c]
            digit = 0
    return str(total + section + digit)


def read_wording(text: str) -> Wording:
    """What `text` says; any text is read, in time proportional to its length."""
    return _Reader(text).read()
