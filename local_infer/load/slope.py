"""Whether memory grows: a line through the samples of a run, and how steep it may be by chance.

Samples of one process are alike for a while: caches turn over, faults come in rounds, an allocator that took a page keeps
it. An error as if each sample said something new is far too small, and every run would grow or shrink "for sure". So:

- The line goes through means of stretches of time. Where the load repeats itself, a stretch is whole rounds of it.
- What is left beside the line still tells of its neighbour (lag-1 autocorrelation). The stretches count for as many as
  would say as much if they were independent (Santer et al., J. Geophys. Res. 105, 2000, equations 4 to 6), and Student's
  t is taken for so many. The estimate of the autocorrelation is too low for few stretches, by 2 + 4 rho of n with a line
  taken out, and is mended for that (Kendall, Biometrika 41, 1954).

One step up in the middle of a run is no line: what is left beside it is alike on both sides, and counts for little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST_S = 60.0
"""Shorter runs tell nothing."""
_BLOCKS = 20
_FEWEST_BLOCKS = 8
_CHANCE_Z = 2.326
"""The normal distribution's 99%: one flat run in a hundred is taken for one that grows."""
_PAGE_MB = 4096 / (1 << 20)
"""Memory is told in pages. Less than one an hour is what floating-point numbers make of memory that never changes."""
_LEAST_FREEDOM = 2.0
"""Degrees of freedom that are left to residuals however much alike they are: 7 times their error is no chance. With fewer,
leaks are missed (24 times, with one), and no fewer flat runs are taken for leaks, even where memory walks at random (6%).
"""


@dataclass(frozen=True, slots=True)
class Slope:
    """A line through memory: MB an hour, its standard error, and from where on it is no chance."""

    mb_per_hour: float
    error_mb_per_hour: float
    chance_mb_per_hour: float

    @property
    def grows(self) -> bool:
        """Whether memory grows by more than chance. What shrinks is no leak."""
        return self.mb_per_hour > max(self.chance_mb_per_hour, _PAGE_MB)


def fit_slope(samples: Sequence[tuple[float, float]], from_s: float = 0.0, round_s: float = 0.0) -> Slope | None:
    """The line through (seconds, MB) from `from_s` on by least squares; None of less than a minute.

    `round_s`: after this the load repeats itself; 0: it is the same all the time.
    """
    points = np.array([one for one in samples if one[0] >= from_s], dtype=np.float64).reshape(-1, 2)
    if len(points) < _FEWEST_BLOCKS or points[-1, 0] - points[0, 0] < LEAST_S:
        return None
    means = _block_means(points, round_s)
    if len(means) < _FEWEST_BLOCKS:
        return None
    hours, mbs = means[:, 0] / 3600, means[:, 1]
    spread = hours - hours.mean()
    slope = float(spread @ mbs / (spread @ spread))
    rest = mbs - mbs.mean() - slope * spread
    freedom = max(_LEAST_FREEDOM, _worth(rest) - 2)
    error = math.sqrt(float(rest @ rest) / freedom / float(spread @ spread))
    return Slope(slope, error, error * student_quantile(freedom))


def _block_means(points: NDArray[np.float64], round_s: float) -> NDArray[np.float64]:
    """(mean time, mean MB) of stretches: of one round or more each where there are enough of them, else 20."""
    start_s, long_s = points[0, 0], points[-1, 0] - points[0, 0]
    width_s, count = long_s / _BLOCKS, _BLOCKS
    if round_s and long_s >= _FEWEST_BLOCKS * round_s:
        width_s = round_s * max(1, math.ceil(width_s / round_s))
        count = int(long_s / width_s)
        # What comes after the last whole stretch would be a round that is not whole.
        points = points[points[:, 0] < start_s + count * width_s]
    places = np.minimum((points[:, 0] - start_s) / width_s, count - 1).astype(int)
    found = [points[places == place] for place in range(count)]
    return np.array([block.mean(axis=0) for block in found if len(block)])


def _worth(rest: NDArray[np.float64]) -> float:
    """How many independent values say as much as these residuals of a line."""
    n, power = len(rest), float(rest @ rest)
    if power <= 1e-12 * n:
        return float(n)  # on the line
    seen = float(rest[1:] @ rest[:-1]) / power
    alike = min(max((n * seen + 2) / (n - 4), 0.0), 0.99)
    return n * (1 - alike) / (1 + alike)


def student_quantile(freedom: float) -> float:
    """Student's t that 1% are above, for degrees of freedom that are no whole number (Abramowitz and Stegun, 26.7.5).

    To 1% from 3 of them on, to 3% from 2.
    """
    z, f = _CHANCE_Z, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / f**power for power, term in enumerate(terms, 1))
