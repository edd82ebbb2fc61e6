"""False hits and recall over the pairs of `data/`, through the graph, among made-up questions; both halves, apart.

NEARPATH_DISTRACTORS says among how many made-up questions.
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from local_infer.generation.io_onnx import open_session
from local_infer.model import Abstained
from local_infer.retrieval.io_sayings import shipped_sayings
from local_infer.retrieval.ngram_graph import INPUT, write_graph
from local_infer.retrieval.ngrams import code_points, index_questions
from local_infer.retrieval.question import language_of
from local_infer.retrieval.sayings import gram_text
from local_infer.retrieval.verdict import Found, choose
from local_infer.retrieval.vetoes import find_veto
from local_infer.retrieval.wording import Wording, read_wording
from tests.local_infer.distractors import make_distractors

DATA = Path(__file__).parent / "data"
DISTRACTORS = int(os.environ.get("NEARPATH_DISTRACTORS", "10000"))
"""10,000 keep the suite short; with 100,000 the numbers are those in docs/local_infer-retrieval.md."""

THRESHOLD, MARGIN = 0.35, 0.05


@dataclass(frozen=True)
class Pair:
    half: str
    language: str
    kind: str
    stored: str
    asked: str


@cache
def pairs(name: str) -> list[Pair]:
    with (DATA / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        return [Pair(*row) for row in list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]]


@cache
def mixed(name: str) -> list[Pair]:
    """Pairs of both kinds in one file: `para` and `miss`; `half` is the writer, where there are several."""
    with (DATA / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [Pair("".join(who), language, kind, stored, asked) for kind, language, stored, asked, *who in rows]


def veto(pair: Pair) -> str | None:
    return find_veto(read_wording(pair.asked), read_wording(pair.stored), shipped_sayings())


def grams(question: str) -> str:
    return gram_text(read_wording(question), shipped_sayings())


class Shelf:
    """Questions behind the graph; the answer to a question is the question itself."""

    def __init__(self, questions: list[str], file: Path) -> None:
        self.questions = list(dict.fromkeys(questions))
        file.write_bytes(write_graph(index_questions([grams(q) for q in self.questions])))
        self.session: Any = open_session(file, providers=["cpu"], threads=1)

    def answer(self, asked: str) -> str | None:
        wording = read_wording(asked)
        scores, rows = self.session.run(None, {INPUT: code_points(grams(asked))})
        stored = [(s, self.questions[r]) for s, r in zip(scores.tolist(), rows.tolist(), strict=True)]
        found = [Found(s, q, q, q, "faq", 0.0) for s, q in stored if language_of(q) == language_of(asked)]
        chosen = choose(wording, found, lambda _: THRESHOLD, MARGIN, sayings=shipped_sayings())
        return None if isinstance(chosen, Abstained) else chosen.answer


@pytest.fixture(scope="module")
def opposites(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """One of each antonym pair, and made-up questions."""
    stored = [pair.stored for pair in pairs("antonyms")]
    return Shelf([*stored, *make_distractors(DISTRACTORS)], tmp_path_factory.mktemp("opposites") / "graph.onnx")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    """One of each pair of both kinds, and made-up questions."""
    stored = [pair.stored for name in ("antonyms", "paraphrases") for pair in pairs(name)]
    return Shelf([*stored, *make_distractors(DISTRACTORS)], tmp_path_factory.mktemp("pairs") / "graph.onnx")


def test_the_data_is_what_it_should_be() -> None:
    for name in ("antonyms", "paraphrases"):
        rows = pairs(name)
        assert len(rows) >= 200
        assert [row.half for row in rows] == [("dev", "final")[i % 2] for i in range(len(rows))]
        assert min(sum(row.language == language for row in rows) for language in ("zh", "en")) >= 100
        assert all(row.stored != row.asked for row in rows)
    assert {row.kind for row in pairs("antonyms")} == {
        *("polar", "neg", "number", "unit", "identifier", "qword", "order", "object", "script")
    }


@pytest.mark.parametrize("half", ["dev", "final"])
def test_no_false_hit(opposites: Shelf, half: str) -> None:
    # Who asks for the second of a pair gets no answer at all: its own is not stored.
    stored = set(opposites.questions)
    asked = [pair.asked for pair in pairs("antonyms") if pair.half == half and pair.asked not in stored]
    assert len(asked) >= 115
    assert [(question, said) for question in asked if (said := opposites.answer(question)) is not None] == []


def test_no_false_hit_the_other_way_round(tmp_path: Path) -> None:
    other = Shelf([pair.asked for pair in pairs("antonyms")], tmp_path / "graph.onnx")
    stored = set(other.questions)
    wrong = [(p.stored, said) for p in pairs("antonyms") if p.stored not in stored and (said := other.answer(p.stored))]
    assert wrong == []


def test_fresh_pairs(tmp_path: Path) -> None:
    # Who has seen no list words things quite differently: measured recall 0.26. The aim of 0.8 is far away.
    misses = [pair for pair in mixed("fresh") if pair.kind == "miss"]
    rewordings = [pair for pair in mixed("fresh") if pair.kind == "para"]
    assert len(misses) >= 120
    assert len(rewordings) >= 120
    both = Shelf(
        [pair.stored for pair in mixed("fresh")] + make_distractors(DISTRACTORS // 10), tmp_path / "fresh.onnx"
    )
    other = Shelf([pair.asked for pair in misses], tmp_path / "other.onnx")
    assert [pair for pair in misses if both.answer(pair.asked) == pair.stored] == []
    assert [pair for pair in misses if other.answer(pair.stored) == pair.asked] == []
    assert sum(both.answer(pair.asked) == pair.stored for pair in rewordings) >= 0.24 * len(rewordings)


def test_what_the_lists_were_fitted_on() -> None:
    vetoed = {pair: veto(pair) for pair in mixed("fitted")}
    assert [pair for pair, why in vetoed.items() if pair.kind == "miss" and why is None] == []
    found = [why is None for pair, why in vetoed.items() if pair.kind == "para"]
    assert sum(found) >= 0.7 * len(found)


@pytest.mark.parametrize(
    ("name", "least"), [("strangers_fit", 0.105), ("strangers_held", 0.105), ("strangers_last", 0.07)]
)
def test_strangers_pairs_by_their_vetoes(name: str, least: float) -> None:
    # Measured 0.11, 0.11, 0.08; through the graph the first two 0.08 and 0.07: rewordings that leave no word as it was.
    rows = mixed(name)
    assert len(rows) >= 200
    assert [pair for pair in rows if pair.kind == "miss" and veto(pair) is None] == []
    rewordings = [pair for pair in rows if pair.kind == "para"]
    assert sum(veto(pair) is None for pair in rewordings) >= least * len(rewordings)


@pytest.mark.parametrize("name", ["strangers_fit", "strangers_held"])
def test_strangers_pairs_through_the_graph(name: str, tmp_path: Path) -> None:
    # Each writer's questions are a FAQ of its own.
    hits = 0
    for writer in sorted({pair.half for pair in mixed(name)}):
        rows = [pair for pair in mixed(name) if pair.half == writer]
        both = Shelf([pair.stored for pair in rows] + make_distractors(DISTRACTORS // 20), tmp_path / f"{writer}.onnx")
        said = {pair: both.answer(pair.asked) for pair in rows}
        assert [pair for pair in rows if pair.kind == "miss" and said[pair] == pair.stored] == []
        hits += sum(pair.kind == "para" and said[pair] == pair.stored for pair in rows)
    assert hits >= 0.06 * sum(pair.kind == "para" for pair in mixed(name))


def test_more_wordings_of_a_question_are_found_more_often() -> None:
    # Measured: 2% of the wordings with one other of them stored, 11% with five; two near misses a question, none found.
    with (DATA / "several.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    topics: dict[str, dict[str, list[Wording]]] = {}
    for topic, _language, kind, text in rows:
        topics.setdefault(topic, {"para": [], "miss": []})[kind].append(read_wording(text))
    assert [(len(one["para"]), len(one["miss"])) for one in topics.values()] == [(6, 2)] * 100
    hits = 0
    for one in topics.values():
        for asked in one["miss"]:
            assert all(find_veto(asked, stored, shipped_sayings()) for stored in one["para"]), asked
        for asked in one["para"]:
            others = [stored for stored in one["para"] if stored is not asked]
            hits += any(find_veto(asked, stored, shipped_sayings()) is None for stored in others)
    assert hits >= 0.1 * 600


def test_questions_of_strangers_hardly_ever_answer_each_other() -> None:
    # Of about 20,000 pairs that have a word in common 0.3% pass; read by hand, nine of ten of these do ask the same.
    questions = sorted({q for pair in mixed("strangers_fit") for q in (pair.stored, pair.asked)})
    known = {frozenset({pair.stored, pair.asked}) for pair in mixed("strangers_fit")}
    read = {question: (read_wording(question), set(read_wording(question).content)) for question in questions}
    near = [
        (one, other)
        for one, other in combinations(questions, 2)
        if read[one][1] & read[other][1]
        and frozenset({one, other}) not in known
        and language_of(one) == language_of(other)
    ]
    passed = [two for two in near if find_veto(read[two[0]][0], read[two[1]][0], shipped_sayings()) is None]
    assert len(near) > 15_000
    assert len(passed) <= 75


@pytest.mark.parametrize(("half", "least"), [("dev", 0.83), ("final", 0.62)])
def test_recall(shelf: Shelf, half: str, least: float) -> None:
    # Measured: dev 0.86, final 0.65. The aim of 0.8 is not reached; see docs/local_infer-retrieval.md.
    asked = [pair for pair in pairs("paraphrases") if pair.half == half]
    hits = [pair for pair in asked if shelf.answer(pair.asked) == pair.stored]
    assert len(hits) / len(asked) >= least


def test_made_up_questions_do_not_answer_each_other_unless_they_ask_the_same(shelf: Shelf) -> None:
    # Each finds itself: the nearest is the question as it was stored.
    sample = shelf.questions[-DISTRACTORS :: DISTRACTORS // 200]
    lost = [question for question in sample if shelf.answer(question) not in (question, None)]
    assert len(lost) <= len(sample) * 0.02


def test_questions_of_other_things_get_no_answer(shelf: Shelf) -> None:
    # Made of other things by another seed; a few happen to be of the same, then in the same words or their synonyms.
    strangers = make_distractors(300, seed=77)
    answered = [(question, said) for question in strangers if (said := shelf.answer(question)) is not None]
    assert len(answered) < 30
    assert [pair for pair in answered if len({frozenset(read_wording(q).content) for q in pair}) > 1] == []
