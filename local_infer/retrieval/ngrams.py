"""Hashed character 1-3-grams with IDF, as the retrieval graph computes them: the numpy side, which builds and checks.

The graph (`ngram_graph.py`) uses the same constants, integer arithmetic and weights; a test compares the two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from local_infer.retrieval.traditional import TO_SIMPLIFIED

BUCKETS = 1 << 18
ROW_GRAMS = 96
"""Grams kept of one stored question, heaviest first; enough for 30 to 60 characters, which FAQ questions have."""

# Odd multipliers, the last 2^32 / golden ratio (Knuth, TAOCP 3, 6.4: multiplicative hashing). Code points are below 2^21,
# so that three of them stay below 2^62; cut to 31 bits before the last product, nothing ever overflows.
FIRST, SECOND, SPREAD = 1_000_003, 1_048_573, 0x9E3779B1
CUT = 1 << 31
OFFSETS = (0x1000000, 0x2000000, 0x3000000)
"""Told apart by length: `a` as a 1-gram is not the beginning of a 2-gram."""

SHIFT = 128
"""The lowest bits of a product depend on the lowest bits of the text alone."""

SMOOTH = 1.0

# Private use characters stand for concepts (wording.py) and sayings: nobody may type one.
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010ffff]")

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def normalise(text: str, fold: bool = True) -> str:
    """NFKC (full width becomes ASCII), simplified characters, one space for white space, plain apostrophes, casefold."""
    plain = unicodedata.normalize("NFKC", text).translate(TO_SIMPLIFIED).replace("’", "'").replace("‘", "'")
    plain = " ".join(_PRIVATE.sub(" ", plain).split())
    return plain.casefold() if fold else plain


def code_points(text: str) -> Ints:
    """The characters as int64, the graph's input; lone surrogates are kept as they are."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def hash_grams(points: Ints) -> Ints:
    """The bucket of every 1-, 2- and 3-gram, in that order, with repetitions."""
    one = points + OFFSETS[0]
    two = points[:-1] * FIRST + points[1:] + OFFSETS[1]
    three = (points[:-2] * FIRST + points[1:-1]) * SECOND + points[2:] + OFFSETS[2]
    mixed: Ints = np.concatenate([one, two, three]) % CUT * SPREAD // SHIFT % BUCKETS
    return mixed


@dataclass(frozen=True, slots=True)
class GramIndex:
    """Stored questions as rows of at most ROW_GRAMS (bucket, weight * 255); unused places have bucket -1.

    `idf` is float32[BUCKETS], `frequency` the number of rows that have the bucket.
    """

    idf: Floats
    frequency: Ints
    grams: NDArray[np.int32]
    weights: NDArray[np.uint8]

    @property
    def count(self) -> int:
        """Stored questions."""
        return int(self.grams.shape[0])


def weigh(text: str, idf: Floats) -> tuple[Ints, Floats]:
    """The distinct buckets of a text, ascending, and their weights `(1 + ln count) * idf`, of length 1 together."""
    ids, counts = np.unique(hash_grams(code_points(text)), return_counts=True)
    weights = ((1 + np.log(counts)) * idf[ids]).astype(np.float32)
    return ids, weights / (np.linalg.norm(weights) + np.float32(1e-9))


def index_questions(texts: Sequence[str]) -> GramIndex:
    """The rows and IDF of `texts` (gram texts, not questions as written)."""
    counted = [np.unique(hash_grams(code_points(text)), return_counts=True) for text in texts]
    frequency = np.zeros(BUCKETS, np.int64)
    for ids, _ in counted:
        frequency[ids] += 1
    # Smoothed so that a gram of every question still counts a little: a FAQ may have three questions.
    idf = (np.log((len(texts) + 1) / (frequency + SMOOTH)) + 0.5).astype(np.float32)
    grams = np.full((len(texts), ROW_GRAMS), -1, np.int32)
    weights = np.zeros((len(texts), ROW_GRAMS), np.uint8)
    for row, (ids, counts) in enumerate(counted):
        weight = (1 + np.log(counts)) * idf[ids]
        weight /= np.linalg.norm(weight) + 1e-9
        if len(ids) > ROW_GRAMS:
            kept = np.argsort(-weight, kind="stable")[:ROW_GRAMS]
            ids, weight = ids[kept], weight[kept]
        grams[row, : len(ids)] = ids
        weights[row, : len(ids)] = np.rint(weight * 255)
    return GramIndex(idf, frequency, grams, weights)


def score_rows(text: str, index: GramIndex, rows: Any = slice(None)) -> Floats:
    """The cosine of a text with each stored question (or with `rows`), as the graph scores its candidates."""
    ids, weights = weigh(text, index.idf)
    by_bucket = np.zeros(BUCKETS + 1, np.float32)
    by_bucket[ids] = weights
    found = by_bucket[index.grams[rows]]  # bucket -1 is the spare last place, always 0
    scores: Floats = (found * index.weights[rows].astype(np.float32)).sum(axis=1, dtype=np.float32) / np.float32(255)
    return scores
