"""What a run came to: outcomes, times, steps and caches for each kind of request, CPU and memory of the gateway."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from local_infer.load.verdict import BAD, Outcome, Verdict

PERCENTILES = (50, 90, 95, 99, 99.9)


def _floats() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Tally:
    """Requests of one kind (or all). Times of good answers, in seconds: to the first byte, and to the end."""

    first_s: array[float] = field(default_factory=_floats)
    whole_s: array[float] = field(default_factory=_floats)
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    caches: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict, first_s: float, whole_s: float) -> None:
        """One request that is over."""
        self.outcomes[verdict.outcome] += 1
        if verdict.outcome == "good":
            self.first_s.append(first_s)
            self.whole_s.append(whole_s)
            self.steps[verdict.step] += 1
            self.caches[verdict.cache] += 1
        elif verdict.code:
            self.codes[verdict.code] += 1

    @property
    def count(self) -> int:
        """Requests that are over."""
        return sum(self.outcomes.values())

    @property
    def bad(self) -> int:
        """Lost or crossed ones."""
        return sum(self.outcomes[outcome] for outcome in BAD)

    def summary(self, elapsed_s: float) -> dict[str, Any]:
        """For JSON: rates, times in ms, shares of the good answers by step and cache."""
        good = self.outcomes["good"]
        # Who left on purpose got no error.
        errors = self.count - good - self.outcomes["left"]
        return {
            "count": self.count,
            "rps": round(self.count / elapsed_s, 2),
            "errors": errors,
            "error_share": round(errors / max(1, self.count), 6),
            "outcomes": dict(self.outcomes),
            "codes": dict(self.codes),
            "first_ms": percentiles_ms(self.first_s),
            "whole_ms": percentiles_ms(self.whole_s),
            "steps": _shares(self.steps, good),
            "caches": _shares(self.caches, good),
        }


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float | None]:
    """`p50` ... in milliseconds; None without any."""
    if not len(seconds):
        return {f"p{p:g}": None for p in PERCENTILES}
    values = np.percentile(np.asarray(seconds), PERCENTILES) * 1e3
    return {f"p{p:g}": round(float(value), 3) for p, value in zip(PERCENTILES, values, strict=True)}


def _shares(counts: Mapping[str, int], whole: int) -> dict[str, float]:
    return {name: round(count / max(1, whole), 5) for name, count in sorted(counts.items())}
