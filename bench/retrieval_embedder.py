"""What an operator's embedder folder does for retrieval: false hits, recall and cost beside n-grams. English pairs only.

    python -m bench.retrieval_embedder FOLDER [--stored 100000]

FOLDER is what `retrieval.embedder` names; docs/local_infer-retrieval.md says how one is made.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from local_infer.generation.io_onnx import open_session
from local_infer.model import Abstained
from local_infer.retrieval.io_build import embed
from local_infer.retrieval.io_embedder import Embedder, Vector
from local_infer.retrieval.io_sayings import shipped_sayings
from local_infer.retrieval.ngram_graph import write_graph
from local_infer.retrieval.ngrams import code_points, index_questions
from local_infer.retrieval.question import language_of
from local_infer.retrieval.vector_graph import write_vector_graph
from local_infer.retrieval.verdict import Found, choose
from local_infer.retrieval.vetoes import is_said_anew
from local_infer.retrieval.wording import read_wording
from tests.local_infer.distractors import make_distractors
from tests.local_infer.test_pairs import MARGIN, Pair, grams, mixed, pairs

STATUS = Path("/proc/self/status")
THRESHOLDS = (0.2, 0.35, 0.5, 0.75)
PROVED = (0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Way:
    """From similarity `proved` on other words alone are no veto (as if shadow answers had proved that of every entry); with
    `anew` only where the question is said anew. Above 1: never.
    """

    embedder: bool
    threshold: float
    proved: float = 2.0
    anew: bool = True

    def __str__(self) -> str:
        name = f"{'embedder' if self.embedder else 'n-grams'} {self.threshold:.0%}"
        if self.proved > 1:
            return name
        return f"{name}, proved from {self.proved:.0%}{'' if self.anew else ', also for near misses'}"


WAYS = [
    *(Way(embedder, threshold) for embedder in (False, True) for threshold in THRESHOLDS),
    *(Way(True, THRESHOLDS[0], proved, anew) for anew in (False, True) for proved in PROVED),
]


@dataclass(frozen=True)
class Shelf:
    """Questions stored together, among `made_up` others, and what is asked of them."""

    name: str
    made_up: int
    stored: list[str]
    asked: list[Pair]


@dataclass
class Tally:
    """`third`: the answer of another stored question than the pair's, which may ask the same."""

    misses: int = 0
    false: int = 0
    rewordings: int = 0
    found: int = 0
    third: int = 0


def shelves(made_up: int) -> Iterator[Shelf]:
    """As `tests/local_infer/test_pairs.py` puts them together; asked in English."""
    opposites, same = pairs("antonyms"), pairs("paraphrases")
    for half in ("dev", "final"):
        misses = [replaced(p, "miss") for p in opposites if p.half == half]
        yield Shelf(half, made_up, [p.stored for p in opposites], english(misses))
        rewordings = [replaced(p, "para") for p in same if p.half == half]
        yield Shelf(half, made_up, [p.stored for p in [*opposites, *same]], english(rewordings))
    for name in ("fitted", "fresh", "strangers_last"):
        rows = mixed(name)
        yield Shelf(name, made_up // 10, [p.stored for p in rows], english(rows))
    for name in ("strangers_fit", "strangers_held"):
        for writer in sorted({p.half for p in mixed(name)}):
            rows = [p for p in mixed(name) if p.half == writer]
            yield Shelf(name, made_up // 20, [p.stored for p in rows], english(rows))


def replaced(pair: Pair, kind: str) -> Pair:
    """The pair as a `miss` or a `para`."""
    return Pair(pair.half, pair.language, kind, pair.stored, pair.asked)


def english(rows: Sequence[Pair]) -> list[Pair]:
    """All but the Chinese ones."""
    return [row for row in rows if row.language == "en"]


def open_graph(model: bytes) -> Any:
    """As the gateway opens an index; onnxruntime may go on reading the file, which is gone only by name."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "graph.onnx").write_bytes(model)
        return open_session(Path(folder) / "graph.onnx", providers=["cpu"], threads=1)


def look_up(questions: Sequence[str], model: bytes, keys: Sequence[Any]) -> list[list[Found]]:
    """What is found for each key, in English."""
    session = open_graph(model)
    name = session.get_inputs()[0].name
    found = []
    for key in keys:
        scores, rows = session.run(None, {name: key})
        near = [(score, questions[row]) for score, row in zip(scores.tolist(), rows.tolist(), strict=True)]
        found.append([Found(min(s, 1.0), q, q, q, "faq", 0.0) for s, q in near if language_of(q) == "en"])
    return found


def count(tally: Tally, pair: Pair, said: str | None) -> None:
    """One more asked question."""
    tally.misses += pair.kind == "miss"
    tally.rewordings += pair.kind == "para"
    if said == pair.stored:
        tally.false += pair.kind == "miss"
        tally.found += pair.kind == "para"
    elif said is not None:
        tally.third += 1


def judge(asked: str, found: Sequence[Found], way: Way) -> str | None:
    """What would be said."""

    def doubts(one: Found) -> bool:
        return one.similarity < way.proved or (way.anew and not is_said_anew(asked, one.question))

    chosen = choose(read_wording(asked), found, lambda _: way.threshold, MARGIN, doubts, shipped_sayings())
    return None if isinstance(chosen, Abstained) else chosen.answer


def quality(folder: Path, stored: int) -> dict[str, dict[str, Tally]]:
    """way -> set -> sums."""
    part = Embedder(folder, ["cpu"], 1)
    part.load()
    made_up = make_distractors(stored)
    vectors = dict(zip(made_up, embed(made_up, folder), strict=True))
    sums: dict[str, dict[str, Tally]] = {}
    for shelf in shelves(stored):
        questions = list(dict.fromkeys([*shelf.stored, *make_distractors(shelf.made_up)]))
        new = [q for q in questions if q not in vectors]
        vectors |= dict(zip(new, embed(new, folder), strict=True)) if new else {}
        asked = [pair.asked for pair in shelf.asked]
        graph = write_graph(index_questions([grams(q) for q in questions]))
        by_grams = look_up(questions, graph, [code_points(grams(q)) for q in asked])
        graph = write_vector_graph(np.stack([vectors[q] for q in questions]))
        by_vector = look_up(questions, graph, [part.run([q])[0] for q in asked])
        for way in WAYS:
            tally = sums.setdefault(str(way), {}).setdefault(shelf.name, Tally())
            found = by_vector if way.embedder else by_grams
            for pair, near in zip(shelf.asked, found, strict=True):
                count(tally, pair, judge(pair.asked, near, way))
    return sums


def cost(folder: Path, stored: int) -> dict[str, float]:
    """CPU ms to embed and to look up one question of `fit`, among `stored`; size of the index, memory of the process."""
    part = Embedder(folder, ["cpu"], 1)
    part.load()
    rng = np.random.default_rng(3)
    vectors: Vector = rng.normal(size=(stored, len(part.run(["x"])[0]))).astype(np.float32)
    model = write_vector_graph(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    session, size = open_graph(model), len(model)
    del model, vectors
    embedding, both = [], []
    for pair in english(mixed("strangers_fit")) * 2:
        begun = time.process_time()
        vector = part.run([pair.asked])[0]
        embedding.append((time.process_time() - begun) * 1e3)
        session.run(None, {"vector": vector})
        both.append((time.process_time() - begun) * 1e3)
    ways = {"embed": sorted(embedding), "embed_and_look_up": sorted(both)}
    found = {f"{name}_p{p}_ms": round(t[len(t) * p // 100], 2) for name, t in ways.items() for p in (50, 99)}
    match = re.search(r"VmRSS:\s+(\d+)", STATUS.read_text())
    return {**found, "index_mb": round(size / 1e6, 1), "rss_mb": round(int(match[1]) / 1024) if match else 0}


def _print(sums: dict[str, dict[str, Tally]]) -> None:
    names = list(next(iter(sums.values())))
    print("| false hits; found; answers of a third question |", " | ".join(names), "|")
    for way, by_set in sums.items():
        tallies = [by_set[name] for name in names]
        print(f"| {way} |", *(f"{t.false} of {t.misses}; {t.found} of {t.rewordings}; {t.third} |" for t in tallies))


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("folder", type=Path)
    reader.add_argument("--stored", type=int, default=100_000)
    given = reader.parse_args()
    print(json.dumps(cost(given.folder, given.stored)))
    _print(quality(given.folder, given.stored))
