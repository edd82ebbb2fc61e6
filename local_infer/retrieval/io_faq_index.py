"""The folder that `local-infer build` writes, and its `ModelPart`: the graph, and the questions and answers of its rows."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core.errors import NearpathError
from local_infer.generation.io_onnx import open_session
from local_infer.retrieval import ngrams
from local_infer.retrieval.frames import FRAMES
from local_infer.retrieval.io_sayings import shipped_texts
from local_infer.retrieval.lexicon import LISTS
from local_infer.retrieval.verdict import Found, Look

FORM = 3
"""Of the folder; raised when grams, hash, weights or word lists change, so that an old index is refused, not misread."""

GRAPH_FILE, ENTRIES_FILE, ABOUT_FILE = "graph.onnx", "entries.sqlite", "index.json"
_REBUILD = "build it again: local-infer build"


def words_digest() -> str:
    """Of everything that decides what a question's grams are, besides the code (`FORM`)."""
    numbers = (ngrams.BUCKETS, ngrams.ROW_GRAMS, ngrams.FIRST, ngrams.SECOND, ngrams.SPREAD, *ngrams.OFFSETS)
    return hashlib.sha256(json.dumps([numbers, LISTS, FRAMES, shipped_texts()]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class About:
    """What `index.json` says; `words` is a digest of the word lists, `embedder` of the embedder (empty: n-grams)."""

    form: int
    words: str
    embedder: str
    questions: int
    entries: int
    built_s: float


def write_about(folder: Path, about: About) -> None:
    """The last file written: without it there is no index."""
    (folder / ABOUT_FILE).write_text(json.dumps(asdict(about), indent=1) + "\n", "utf-8")


def read_about(folder: Path) -> About:
    """What index this is; NearpathError when it is none."""
    try:
        fields = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
        return About(**fields)
    except OSError as error:
        raise NearpathError(f"{folder} holds no index ({error.strerror})", _REBUILD) from None
    except (ValueError, TypeError) as error:
        raise NearpathError(f"{folder / ABOUT_FILE} cannot be read ({error})", _REBUILD) from None


class FaqIndex:
    """Looks questions up in the operator's FAQ. Only what the asker may see comes out: tenant, context, language."""

    def __init__(self, folder: Path, words: str, embedder: str, providers: Sequence[str], threads: int) -> None:
        self._folder, self._words, self._embedder = folder, words, embedder
        self._providers, self._threads = tuple(providers), threads
        self._session: Any = None
        self._db: sqlite3.Connection | None = None
        self._about: About | None = None

    @property
    def name(self) -> str:
        """For logs and metrics."""
        return "faq-index"

    @property
    def loaded(self) -> bool:
        """Whether it holds memory."""
        return self._session is not None

    @property
    def questions(self) -> int:
        """Stored questions; 0 before it is loaded."""
        return self._about.questions if self._about else 0

    def load(self) -> None:
        """Open graph and entries; NearpathError when they are missing, or made by another version or embedder."""
        about = read_about(self._folder)
        if (about.form, about.words) != (FORM, self._words):
            raise NearpathError(f"the index in {self._folder} was made by another version of nearpath", _REBUILD)
        if about.embedder != self._embedder:
            raise NearpathError(f"the index in {self._folder} was made with another embedder", _REBUILD)
        try:
            uri = f"{(self._folder / ENTRIES_FILE).resolve().as_uri()}?mode=ro&immutable=1"
            db = sqlite3.connect(uri, uri=True, check_same_thread=False)
            db.execute("SELECT count(*) FROM answers").fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the words of its own error may be damaged, too
            raise NearpathError(f"{self._folder / ENTRIES_FILE} cannot be read ({error})", _REBUILD) from None
        self._session = open_session(self._folder / GRAPH_FILE, providers=self._providers, threads=self._threads)
        self._db, self._about = db, about

    def unload(self) -> None:
        """Give the memory back."""
        if self._db is not None:
            self._db.close()
        self._session = self._db = None

    def run(self, items: Sequence[Look]) -> Sequence[list[Found]]:
        """For each look-up the nearest stored questions that the asker may see, nearest first."""
        return [self._look(item) for item in items]

    def _look(self, item: Look) -> list[Found]:
        scores, rows = self._session.run(None, {self._session.get_inputs()[0].name: item.key})
        found = []
        assert self._db is not None
        assert self._about is not None
        for score, row in zip(scores.tolist(), rows.tolist(), strict=True):
            stored = self._db.execute(
                "SELECT q.question, a.answer, a.entry FROM questions q JOIN answers a ON a.id = q.answer "
                "WHERE q.row = ? AND a.tenant IN ('', ?) AND a.context = ? AND q.language = ?",
                (row, item.tenant, item.context, item.language),
            ).fetchone()
            if stored is not None:
                question, answer, entry = stored
                found.append(Found(min(score, 1.0), f"faq:{entry}", question, answer, "faq", self._about.built_s))
        return found
