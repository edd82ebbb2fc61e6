"""`nearpath replay`: the decision code over a recorded RTT matrix, shown beside simpler policies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from core.config import Steering
from dnsd.io_files import read_file
from policy.replay import Scores, draw, load_matrix, replay

_COLUMNS = (
    ("mean ms", "mean_ms", ".1f"),
    ("p95 ms", "p95_ms", ".1f"),
    ("x oracle", "ratio", ".3f"),
    ("regret ms", "regret_ms", ".2f"),
    ("good", "good_ratio", ".1%"),
    ("> 50 ms worse", "over_50ms_ratio", ".1%"),
    ("switches/100", "switches_per_100", ".2f"),
)


def replay_file(console: Console, file: Path, mirrors: int, seeds: Sequence[int], as_json: bool) -> None:
    """Print the scores of every policy over the matrix in `file`, averaged over the draws of mirrors."""
    matrix = load_matrix(read_file(str(file)))
    runs = [replay(draw(matrix, mirrors, seed), steering=Steering()) for seed in seeds]
    scores = [_mean([run[i] for run in runs]) for i in range(len(runs[0]))]
    if as_json:
        print(json.dumps({"file": str(file), "mirrors": mirrors, "seeds": list(seeds), "scores": scores}, indent=2))
        return
    slices, nodes = matrix.rtt_ms.shape[:2]
    console.print(f"{file}: {slices} slices, {nodes} nodes, {mirrors} of them mirrors, mean of {len(seeds)} draws")
    table = Table(box=None, pad_edge=False)
    table.add_column("policy")
    for title, _key, _form in _COLUMNS:
        table.add_column(title, justify="right")
    for row in scores:
        table.add_row(str(row["policy"]), *(format(row[key], form) for _title, key, form in _COLUMNS))
    console.print(table)


def _mean(draws: Sequence[Scores]) -> dict[str, float | str]:
    rows = [asdict(score) for score in draws]
    return {key: draws[0].policy if key == "policy" else fmean(row[key] for row in rows) for key in rows[0]}
