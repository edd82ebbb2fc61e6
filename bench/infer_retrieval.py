"""The retrieval step in the gateway's benchmark: time over 100,000 stored questions, false hits, and recall.

The pairs are the tests' own: antonyms must not get the answer of the stored question, paraphrases must.
"""

from __future__ import annotations

import asyncio
import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from local_infer.drill.io_drill import PlainQueue
from local_infer.model import Abstained, Priority, Question
from local_infer.retrieval.faq import FaqEntry
from local_infer.retrieval.io_build import build_index
from local_infer.retrieval.io_retrieval import Retrieval
from local_infer.retrieval.question import language_of
from tests.local_infer.distractors import make_distractors

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "local_infer" / "data"
STATUS = Path("/proc/self/status")
STORED = 100_000
BENCH, FRESH = "bench", "fresh"


def read_pairs(name: str) -> list[tuple[str, str]]:
    """(stored, asked) of a file of pairs."""
    with (DATA / name).open(encoding="utf-8") as stream:
        return [(row["stored"], row["asked"]) for row in csv.DictReader(stream, delimiter="\t")]


def read_fresh(kind: str) -> list[tuple[str, str]]:
    """(stored, asked) of the pairs by somebody else: `para` or `miss`."""
    with (DATA / "fresh.tsv").open(encoding="utf-8") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["question_a"], row["question_b"]) for row in rows if row["kind"] == kind]


def measure_retrieval(folder: Path) -> dict[str, float | None]:
    """p50, p99, memory, false hits over all antonym pairs, recall of paraphrases; each half in a process of its own.

    `recall` is over the pairs of which half was fitted on, `recall_fresh` over those by somebody who knew no list.
    """
    command = [sys.executable, "-m", "bench.infer_retrieval"]
    subprocess.run([*command, "build", str(folder)], cwd=ROOT, check=True)
    asked = subprocess.run([*command, "ask", str(folder)], cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float | None] = json.loads(asked.stdout.splitlines()[-1])
    return found


def build(folder: Path) -> None:
    """An index of STORED questions: those of the pairs, filled up with made-up ones."""
    # Each set is a tenant's: the sets have questions in common, and a question with two answers gets none.
    sets = {BENCH: [*read_pairs("antonyms.tsv"), *read_pairs("paraphrases.tsv")]}
    sets[FRESH] = [*read_fresh("miss"), *read_fresh("para")]
    stored = list(dict.fromkeys((tenant, stored) for tenant, pairs in sets.items() for stored, _asked in pairs))
    known = {text for _tenant, text in stored}
    fill = [("", text) for text in make_distractors(STORED) if text not in known][: STORED - len(stored)]
    entries = [
        FaqEntry(f"q{i}", (text,), f"answer of {text}", tenant, b"")
        for i, (tenant, text) in enumerate([*stored, *fill])
    ]
    build_index(entries, folder / "faq-index", embedder=None, now=time.time())


async def ask_all(folder: Path) -> dict[str, float]:
    """Ask every pair's question, as the gateway would."""
    antonyms = [(BENCH, *pair) for pair in read_pairs("antonyms.tsv")] + [(FRESH, *pair) for pair in read_fresh("miss")]
    paraphrases = [(BENCH, *pair) for pair in read_pairs("paraphrases.tsv")]
    rewordings = [(FRESH, *pair) for pair in read_fresh("para")]
    config = InferConfig.model_validate(
        {
            "version": 1, "state_dir": str(folder / "retrieval"), "listen": ["127.0.0.1:0"], "anonymous": True,
            "retrieval": {"index": str(folder / "faq-index")},
        }
    )  # fmt: skip
    (folder / "retrieval").mkdir()
    retrieval = Retrieval(config, PlainQueue(), time.time, CollectorRegistry())

    async def ask(tenant: str, text: str) -> str:
        question = Question(tenant, text, language_of(text))
        found = await retrieval.choose(question, Priority.INTERACTIVE, time.time() + 60)
        return "" if isinstance(found, Abstained) else found.answer

    async def hits(pairs: list[tuple[str, str, str]]) -> int:
        return sum([await ask(tenant, asked) == f"answer of {stored}" for tenant, stored, asked in pairs])

    await ask(BENCH, antonyms[0][2])
    times_s = []
    for tenant, _stored, asked in [*antonyms, *paraphrases, *rewordings] * 3:
        started = time.perf_counter()
        await ask(tenant, asked)
        times_s.append(time.perf_counter() - started)
    times_s.sort()
    false, right, right_fresh = await hits(antonyms), await hits(paraphrases), await hits(rewordings)
    retrieval.close()
    return {
        "retrieval_p50_ms": times_s[len(times_s) // 2] * 1e3,
        "retrieval_p99_ms": times_s[len(times_s) * 99 // 100] * 1e3,
        "false_hits": false,
        "recall": right / len(paraphrases),
        "recall_fresh": right_fresh / len(rewordings),
    }


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    else:
        found = asyncio.run(ask_all(Path(sys.argv[2])))
        match = re.search(r"VmRSS:\s+(\d+)", STATUS.read_text())
        print(json.dumps({**found, "retrieval_rss_mb": int(match[1]) / 1024 if match else None}))
