"""Reads a question into what it says: concepts, content words, negations, numbers, identifiers, kind of question.

Two uses. The similarity is taken over `Wording.gram_text`, in which words of one concept are one character and fillers are
gone, so that rewordings come close. The vetoes compare the rest. Chinese is read by longest match in the word lists (what
is in none stays as single characters), English by stems and phrases.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from local_infer.retrieval.frames import reframe
from local_infer.retrieval.lexicon import Meaning, stem, words
from local_infer.retrieval.ngrams import normalise
from local_infer.retrieval.situations import Said, apply_situations

__all__ = ["Wording", "read_wording", "stem"]

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
    | (?P<code>[a-z0-9]+(?:[._:/-][a-z0-9]+){0,64}(?:'[a-z]+)?[+\#]{0,2}|[a-z0-9_]+)
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
_BACK = re.compile(r"\b(send|give|bring)\s+((?:[a-z]+\s+){1,3}?)back\b")
_SHORT_IS = re.compile(r"\b(what|where|when|who|how|why)'s\b")
_DEVICE = re.compile(r"([开关充上])不[了进上起](机|电|网|门)")
_LAST_NOT = re.compile(r"(?<=[\u4e00-\u9fff])(?<![么何从也都还又绝])(?:不|没|没有)(?=\s*(?:$|[?？。,，!！]))")
"""能退不: can it be returned?"""
_PAY_BACK = re.compile(r"(?<![退归偿返])还(?=(?:信用卡|花呗|贷|房贷|车贷|清)|[吗么呢]?\s*(?:$|[?？。,，!！]))")
"""怎么还: how to repay, not "still"."""
_FOR_HOW_LONG = re.compile(
    r"(?:可以|能)[^，。,]*(?:多久|几天|多长|多少天|几个月)(?!可以|能)"
    r"|\bhow (?:long|many days) (?:can|may|could) (?:i|we|you)\b"
)
_OPENING = re.compile(r"(?:(?P<ought>should|shall|must|need)|will|would|has|have|had|did)\b(?! like\b)")
"""An English question that only its first word shows to be one."""
_THEY = re.compile(r"^(?:他|她|他们|她们|he|she|they|him|them)$")
_YOU = re.compile(r"^(?:你|您|你们|(?:(?:do|can|could|will|would|are|have|did) )?you)$")
_MINE = re.compile(r"我们?的|\b(?:my|our|mine|ours)\b")
_YOURS = re.compile(r"你们?的|您的|你们|贵[店司公]|\b(?:your|yours)\b")
_FIRST = re.compile(r"我|\b(?:i|me|my|we|us|our|i'm|i'd|i've)\b")
_SOMEBODY = re.compile(r"有人|\b(?:someone|somebody|anyone|anybody)\b")
_PERSONS = frozenset(
    {"=else_", "=friend", "=colleague", "=manager", "=buyer", "=seller", "=landlord", "=tenant", "=child", "=admin"}
    | {"=user", "=member_", "=teacher", "=student", "=doctor", "=employee", "=people", "=hr"}
)
_A_NOT_A = re.compile(r"([\u4e00-\u9fff])[不没]\1")
_POTENTIAL = re.compile(r"不(了|上去|上|出来|出|开|到|起来|起|动|成|通|见|掉|进去|进)")
_SAME_SPAN = {"week": (7, "day"), "year": (12, "month"), "hour": (0, "day")}
"""Seven days are a week, twelve months a year, 24 hours a day."""
_REWRITES = (
    (re.compile(r"半年"), "6个月"),
    (re.compile(r"半(?:个)?小时|半个钟头"), "30分钟"),
    (re.compile(r"\bhalf an? hour\b|\ban? half[ -]hour\b"), "30 minutes"),
    (re.compile(r"\bone (?=(?:second|minute|hour|day|week|month|year)\b)"), "1 "),
    (_SHORT_IS, r"\1 is"),
    (_APART, r"\1 \4 \3"),
    (_BACK, r"\1 back \2"),
    (_DEVICE, r"不\1\2"),
    (_RESULT, r"不\1\2"),
    (_LAST_NOT, "吗"),
    (_PAY_BACK, "还款"),
)
"""What stands apart is put together, what is cut short is written out: turn it off, what's, 打不开."""
_ZH_NUMBER = re.compile(r"第?[零一二两三四五六七八九十百千万亿]+")
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0002ffff]")


@dataclass(frozen=True, slots=True)
class Wording:
    """What a question says. `content` are concepts (`=name`) and plain words or characters, in order, without fillers.

    `parties`: who is spoken of, `I` and others, in the order of first mention. `owner`: "me" (my), "you" (your), or "".
    Directions (from, to, than) are content, too: `>to`. `latin` is every Latin word or code, lower case, to look
    identifiers of the other question up in. `has_han`: it has a Chinese character.
    """

    gram_text: str
    content: tuple[str, ...]
    polar: frozenset[str]
    negations: int
    questions: frozenset[str]
    numbers: tuple[tuple[str, str], ...]
    identifiers: frozenset[str]
    latin: frozenset[str]
    parties: tuple[str, ...]
    owner: str
    has_han: bool


_TROUBLES = """
slow damaged notworking cracked hang overheat wrong error lost delayed timeout expire forget hacked crash loginfail nocode
offline_ notarrive nosound quota_full blackscreen leak_ fraud overdue double_charge wrongitem damageditem outage wateroff
noise fever bug ratelimit failexam late fake violation mistake
"""
TROUBLES = frozenset("=" + name for name in _TROUBLES.split())
"""Concepts that tell of something that went wrong: why, and what to do, have one answer."""

_STATE = re.compile(
    r"(?!how|what|whe|why|wh|can|could|do|does|did|is|are|was|were|will|would|should|may|has|have)"
    r".*\b(?:is|was|been|got|are|were|be)\s+(?:\w+\s)?(?:\w+(?:ed|en|wn)|charged)\b(?!.*\?.)"
)
_ALLOWED = re.compile(r"how much\b(?!.*\b(?:cost|fee|price|charge)).*\b(?:can|may|allowed|permitted)\b")
"""How much one may take, withdraw, send: a limit, not a price."""


def _names(raw: str) -> set[str]:
    """Words with a capital inside a sentence (Go, May), unless most have one, as in a title."""
    inner = [m[0] for m in re.finditer(r"(?<=[a-z,] )[A-Za-z]+", raw) if m[0] != "I"]
    capital = {word.lower() for word in inner if word[0].isupper()}
    return capital if 2 * len(capital) <= len(inner) else set()


class _Reader:
    """One pass over one question; `read` below is the way in."""

    def __init__(self, text: str) -> None:
        self.words = words()
        raw = normalise(text, fold=False)
        self.shouted = {m[0].lower() for m in _SHOUTED.finditer(raw)} if not raw.isupper() else set()
        self.names = _names(raw)
        self.text = raw.casefold()
        for pattern, plain in _REWRITES:
            self.text = pattern.sub(plain, self.text)
        self.text = reframe(self.text)
        self.has_han = bool(_HAN.search(self.text))
        self.items: list[tuple[str, str]] = []
        self.negations = 0
        self.asks_place = False
        self.questions: set[str] = set()
        self.numbers: list[tuple[str, str]] = []
        self.identifiers = {" ".join(m[1].split()) for m in _QUOTED.finditer(self.text)}
        self.latin: set[str] = set()
        self.parties: list[str] = []
        self.after_my = False
        self.comes = False

    def read(self) -> Wording:
        position = 0
        while position < len(self.text):
            position = self._step(position)
        self._settle_questions()
        if self.comes and (self.questions & {"when", "howlong"} or self.items[-1][0] == ">to"):
            self._put("=arrive", self._gram("=arrive"))  # 几点到: not to something
        firm = [item for item in self.items if item[0] and item[0][0] not in ">^"]
        if len(firm) >= 2:
            # A word that says little counts only where there is little else: how to stop the service.
            self.items = [item for item in self.items if not item[0].startswith("^")]
        said = Said(self.items, self.negations, self.questions)
        apply_situations(said, self.words.known, self._gram)
        content = tuple(content for content, _ in said.items if content)
        return Wording(
            # With a space at both ends: whatever comes first or last has the same grams.
            f" {' '.join(''.join(gram for _, gram in said.items).split())} ",
            content,
            frozenset(c for c in content if c in self.words.polar),
            said.negations,
            frozenset(said.questions),
            tuple(sorted(self.numbers)),
            frozenset(self.identifiers),
            frozenset(self.latin),
            tuple(dict.fromkeys(self.parties)),
            self._owner(),
            self.has_han,
        )

    def _settle_questions(self) -> None:
        """Make of the question words the kind of question that is asked."""
        kinds = self.questions
        contents = {content for content, _ in self.items}
        trouble = bool(self.negations) or not TROUBLES.isdisjoint(contents)
        opening = _OPENING.match(self.text)
        if opening:
            kinds |= {"whether", "must"} if opening["ought"] else {"whether"}
        if _ALLOWED.match(self.text) and "howmuch" in kinds:
            kinds -= {"howmuch", "whether", "can"}
            kinds.add("whatis")
            self._put("=limit", self._gram("=limit"))
        if "howlong" in kinds and _FOR_HOW_LONG.search(self.text):
            kinds -= {"howlong", "can"}
            kinds.add("howlongfor")
        if "whereto" in kinds:
            kinds -= {"where"}
        if "remedy" in kinds and not trouble and "了" not in self.text and self.words.polar.isdisjoint(contents):
            kinds -= {"remedy"}  # 结婚证怎么办: how to apply for it
            kinds.add("how")
            if self.has_han:
                self._put("=apply", self._gram("=apply"))
        if "outcome" in kinds:
            kinds -= {"how", "remedy", "what", "whatis"}
        if "must" in kinds and ("whether" not in kinds or kinds - {"must", "whether", "will"}):
            kinds -= {"must"}
        if kinds & {"can", "must"} or "whether" not in kinds or kinds - {"whether", "will"}:
            kinds -= {"will"}
        if kinds <= {"whether", "must", "can", "will"}:
            # Do you allow it: may one do it.
            self.items = [item for item in self.items if item[0] != "=allow"] if kinds else self.items
            is_state = self.text.rstrip("。.!！ ").endswith("了") or "被" in self.text or _STATE.match(self.text)
            if is_state and (not kinds or not self.has_han):
                self.questions = {"state"}

    def _owner(self) -> str:
        mine, yours = bool(_MINE.search(self.text)), bool(_YOURS.search(self.text))
        return "" if mine == yours else "me" if mine else "you"

    def _gram(self, concept: str) -> str:
        return f" {self.words.private[concept]} "

    def _step(self, position: int) -> int:
        match = _TOKEN.match(self.text, position)
        if match is None or match.lastgroup == "quote":
            return position + 1  # of a quotation only the mark: its words are read, too
        if match["cjk"]:
            return self._han(position)
        if match["number"]:
            return self._number(match["number"], match.end())
        if match["measure"] and (phrase := self._phrase_at(position)):
            self._mean(phrase[0], " ".join(phrase[2]))
            return phrase[1]
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
        phrase = None if match["code"][-1] in "+#" else self._phrase_at(position)
        is_number_in_it = any(c.isdigit() for c in match["code"])
        if phrase and not (is_number_in_it and phrase[1] < match.end()):
            meaning, end, words = phrase
            is_name = len(words) == 1 and words[0] in self.shouted | self.names and meaning[0][0] in "~?!"
            if not is_name:
                self.latin.update(words)
                self._mean(meaning, " ".join(words))
                return end
        token = match["code"]
        plain = token.replace("'", "")
        if plain.isalpha() or (re.fullmatch(r"[a-z]+(-[a-z]+)+", token) and token not in self.shouted):
            return self._word(position)
        return self._code(token, match.end())

    def _phrase_at(self, position: int) -> tuple[Meaning, int, list[str]] | None:
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
        if self.has_han or word in self.shouted or (word in self.names and (stem(word),) in self.words.en):
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
            self.questions.add({"能": "can", "可": "can", "会": "will"}.get(twice[1], "whether"))
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
        if potential and self.items and not (longest and len(longest) > len(potential[0])):
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

    def _mean(self, meaning: Meaning, word: str) -> None:
        owned, self.after_my = self.after_my, word.endswith(("my", "our", "我的", "我们的"))
        if _FIRST.search(word):
            self.parties.append("I")
        elif _SOMEBODY.search(word):
            self.parties.append("=else_")
        elif _THEY.match(word) or _YOU.match(word):
            self.parties.append("they" if _THEY.match(word) else "you")
        for part in meaning:
            kind, name = part[0], part[1:]
            if kind == "=":
                if self.asks_place and self.has_han:
                    # 在哪里修改: where one does something; 修改在哪里: where something is.
                    self.questions.add("whereto")
                if part in _PERSONS:
                    if owned:
                        self.parties.pop()  # my manager is one, not two
                    self.parties.append(part)
                self._put(part, self._gram(part))
            elif kind == "!":
                self.negations += 1
            elif kind == "?":
                self.questions.add(name)
                self.asks_place = self.asks_place or name == "where"
            elif kind in ">^":
                self.comes = self.comes or word == "到"
                self._put(part, "")
            elif kind != "~":
                self._put(part, part if not part.isascii() else f" {part} ")

    def _put(self, content: str, gram_text: str) -> None:
        self.items.append((content, gram_text))
        self.after_my = False

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
        if unit in _SAME_SPAN and value.isdigit() and int(value) < 100:
            times, into = _SAME_SPAN[unit]
            if unit != "hour" or int(value) % 24 == 0:
                value, unit = str(int(value) * times if unit != "hour" else int(value) // 24), into
        self.numbers.append((value, unit))
        self._put("", f" {value} " if value.isascii() else value)

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
