"""Memory that grows is told from memory that is only uneven, and what is uneven from what grows."""

from __future__ import annotations

import numpy as np
import pytest

from local_infer.load.slope import Slope, fit_slope, student_quantile

HOUR = np.arange(0.0, 3600.0, 4.0)


def slope_of(mbs: np.ndarray, at_s: np.ndarray = HOUR, from_s: float = 0.0, round_s: float = 0.0) -> Slope:
    found = fit_slope(list(zip(at_s.tolist(), mbs.tolist(), strict=True)), from_s, round_s)
    assert found is not None
    return found


def alike(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """What tells of its neighbour: AR(1)."""
    made = rng.normal(size=count)
    made[0] /= np.sqrt(1 - rho**2) if rho < 1 else 1.0
    for i in range(1, count):
        made[i] += rho * made[i - 1]
    return made


def test_a_leak_is_found_and_what_is_flat_is_not() -> None:
    noise = np.random.default_rng(5).normal(size=HOUR.size)
    flat = slope_of(150 + noise)
    assert not flat.grows
    assert abs(flat.mb_per_hour) < 1
    leak = slope_of(150 + HOUR / 360 + noise)  # 10 MB an hour
    assert leak.grows
    assert leak.mb_per_hour == pytest.approx(10, abs=1)
    assert not slope_of(150 - HOUR / 360 + noise).grows, "what shrinks is no leak"


@pytest.mark.parametrize("mb", [100.0, 150.3, 201.7])
def test_what_never_changes_does_not_grow(mb: float) -> None:
    assert not slope_of(np.full(HOUR.size, mb)).grows
    found = fit_slope([(float(s), mb) for s in range(0, 3600, 5)])
    assert found is not None
    assert not found.grows


def test_by_hand() -> None:
    # Residuals of the line are +-1, -1 beside +1: no autocorrelation above zero, so eight values count for eight.
    at_s = np.arange(8) * 450.0
    left = np.array([1, -1, -1, 1, 1, -1, -1, 1])
    found = fit_slope([(s, 100 + mb) for s, mb in zip(at_s.tolist(), left.tolist(), strict=True)], 0.0, 0.0)
    assert found is not None
    assert found.mb_per_hour == pytest.approx(0)
    # lag 1: (-1 + 1 - 1 + 1 - 1 + 1 - 1) / 8; mended (8 * -1/8 + 2) / 4 = 1/4; 8 * 0.75 / 1.25 = 4.8 values, 2.8 free
    spread = np.sum((at_s / 3600 - at_s.mean() / 3600) ** 2)
    assert found.error_mb_per_hour == pytest.approx(np.sqrt(8 / 2.8 / spread))
    assert found.chance_mb_per_hour == pytest.approx(found.error_mb_per_hour * student_quantile(2.8))


def test_the_warm_up_is_left_out() -> None:
    noise = np.random.default_rng(6).normal(size=HOUR.size)
    filling = 150 - 40 * np.exp(-HOUR / 100) + noise
    assert slope_of(filling).mb_per_hour > 5
    assert abs(slope_of(filling, from_s=600.0).mb_per_hour) < 1


def test_a_steady_sawtooth_and_rounds_of_faults_are_flat() -> None:
    noise = np.random.default_rng(7).normal(size=HOUR.size) * 0.2
    for long_s in (77.0, 240.0, 800.0):
        teeth = 150 + 12 * (HOUR % long_s) / long_s + noise
        assert not slope_of(teeth, round_s=240.0).grows
    rounds = 150 + 12 * (HOUR % 240.0) / 240.0 + noise
    leak = slope_of(rounds + HOUR / 1800, round_s=240.0)  # 2 MB an hour
    assert leak.grows, "means over whole rounds do not see the rounds"
    assert leak.mb_per_hour == pytest.approx(2, abs=0.3)


def test_one_step_up_is_no_slope() -> None:
    noise = np.random.default_rng(8).normal(size=HOUR.size) * 0.5
    found = slope_of(150 + 10 * (HOUR > 1800) + noise)
    assert found.mb_per_hour > 10
    assert not found.grows


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8, 0.95, 1.0])
def test_flat_runs_are_seldom_taken_for_leaks(rho: float) -> None:
    # By two standard errors as if all values were independent it would be 2%, 14%, 25%, 30% and 31%.
    rng = np.random.default_rng(9)
    at_s = np.arange(14) * 240.0
    grown = sum(slope_of(alike(rng, 14, rho), at_s).grows for _ in range(300))
    assert grown / 300 < 0.1


@pytest.mark.parametrize(("freedom", "table"), [(3, 4.541), (5, 3.365), (10, 2.764), (30, 2.457)])
def test_student(freedom: float, table: float) -> None:
    assert student_quantile(freedom) == pytest.approx(table, rel=0.006)


def test_what_is_too_short_tells_nothing() -> None:
    assert fit_slope([(0.0, 1.0), (61.0, 1.0)]) is None
    assert fit_slope([(float(s), 1.0) for s in range(50)]) is None
    assert fit_slope([]) is None
