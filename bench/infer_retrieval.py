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
from local_infer.model import Abstained, Priority, Question
from local_infer.retrieval.faq import FaqEntry
from local_infer.retrieval.io_build import build_index
from local_infer.retrieval.io_drill import PlainQueue
from local_infer.retrieval.io_retrieval import Retrieval
from local_infer.retrieval.question import language_of
from tests.local_infer.distractors import make_distractors

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "local_infer" / "data"
STATUS = Path("/proc/self/status")
STORED = 100_000


def read_pairs(name: str) -> list[tuple[str, str]]:
    """(stored, asked) of a file of pairs."""
    with (DATA / name).open(encoding="utf-8") as stream:
        return [(row["stored"], row["asked"]) for row in csv.DictReader(stream, delimiter="\t")]


def measure_retrieval(folder: Path) -> dict[str, float | None]:
    """p50, p99, memory, false hits over all antonym pairs, recall of paraphrases; each half in a process of its own."""
    command = [sys.executable, "-m", "bench.infer_retrieval"]
    subprocess.run([*command, "build", str(folder)], cwd=ROOT, check=True)
    asked = subprocess.run([*command, "ask", str(folder)], cwd=ROOT, check=True, capture_output=True, text=True)
    found: dict[str, float | None] = json.loads(asked.stdout.splitlines()[-1])
    return found


def build(folder: Path) -> None:
    """An index of STORED questions: those of the pairs, filled up with made-up ones."""
    pairs = [*read_pairs("antonyms.tsv"), *read_pairs("paraphrases.tsv")]
    stored = list(dict.fromkeys(stored for stored, _asked in pairs))
    known = set(stored)
    fill = [text for text in make_distractors(STORED) if text not in known][: STORED - len(stored)]
    entries = [FaqEntry(f"q{i}", (text,), f"answer of {text}", "", b"") for i, text in enumerate([*stored, *fill])]
    build_index(entries, folder / "faq-index", embedder=None, now=time.time())


async def ask_all(folder: Path) -> dict[str, float]:
    """Ask every pair's question, as the gateway would."""
    antonyms, paraphrases = read_pairs("antonyms.tsv"), read_pairs("paraphrases.tsv")
    config = InferConfig.model_validate(
        {
            "version": 1, "state_dir": str(folder / "retrieval"), "listen": ["127.0.0.1:0"], "anonymous": True,
            "retrieval": {"index": str(folder / "faq-index")},
        }
    )  # fmt: skip
    (folder / "retrieval").mkdir()
    retrieval = Retrieval(config, PlainQueue(), time.time, CollectorRegistry())

    async def ask(text: str) -> str:
        question = Question("bench", text, language_of(text))
        found = await retrieval.choose(question, Priority.INTERACTIVE, time.time() + 60)
        return "" if isinstance(found, Abstained) else found.answer

    await ask(antonyms[0][1])
    times_s = []
    for text in [asked for _stored, asked in [*antonyms, *paraphrases]] * 3:
        started = time.perf_counter()
        await ask(text)
        times_s.append(time.perf_counter() - started)
    times_s.sort()
    false = [asked for stored, asked in antonyms if await ask(asked) == f"answer of {stored}"]
    right = [asked for stored, asked in paraphrases if await ask(asked) == f"answer of {stored}"]
    retrieval.close()
    return {
        "retrieval_p50_ms": times_s[len(times_s) // 2] * 1e3,
        "retrieval_p99_ms": times_s[len(times_s) * 99 // 100] * 1e3,
        "false_hits": len(false),
        "recall": len(right) / len(paraphrases),
    }


if __name__ == "__main__":
    if sys.argv[1] == "build":
        build(Path(sys.argv[2]))
    else:
        found = asyncio.run(ask_all(Path(sys.argv[2])))
        match = re.search(r"VmRSS:\s+(\d+)", STATUS.read_text())
        print(json.dumps({**found, "retrieval_rss_mb": int(match[1]) / 1024 if match else None}))
