"""The estimator's state table row by row, its numbers by hand, and its life over a restart."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from core.config import Steering
from core.messages import PathSample
from policy.estimate import WINDOW, PathEstimator, PathState, locate, wilson_lower

UNKNOWN, UP, DOWN, DAMPED = PathState.UNKNOWN, PathState.UP, PathState.DOWN, PathState.DAMPED


def rules(**more: Any) -> Steering:
    return Steering.model_validate(more)


class Path:
    """An estimator fed second by second: `+` is a success of 20 ms, `-` a loss."""

    def __init__(self, steering: Steering | None = None, start_s: float = 0.0) -> None:
        self.steering = steering or rules()
        self.path = PathEstimator(self.steering)
        self.now = start_s

    def take(self, rtt_s: float | None, **more: Any) -> bool:
        return self.path.take(PathSample("a", "r", "m", "http", 4, 1, rtt_s, self.now, **more))

    def play(self, script: str, step_s: float = 1.0) -> list[PathState]:
        states = []
        for mark in script:
            self.take(0.020 if mark == "+" else None)
            states.append(self.path.state)
            self.now += step_s
        return states


# -- the table, row by row


def test_unknown_is_up_with_its_first_success() -> None:
    path = Path()
    assert path.path.state is UNKNOWN
    assert path.play("+") == [UP]


def test_unknown_is_down_at_the_fallth_loss_and_pays_no_penalty() -> None:
    path = Path()
    assert path.play("---") == [UNKNOWN, UNKNOWN, DOWN]
    assert path.path.penalty == 0.0


def test_up_stays_up_while_losses_are_fewer_than_fall() -> None:
    assert set(Path().play("+--+--+--+")) == {UP}


@pytest.mark.parametrize("fall", [1, 2, 5])
def test_up_is_down_at_the_fallth_loss_in_a_row(fall: int) -> None:
    path = Path(rules(fall=fall))
    states = path.play("+" + "-" * fall)
    assert states[:-1] == [UP] * fall
    assert states[-1] is DOWN
    assert path.path.penalty == 1000


def test_take_tells_only_of_changed_states() -> None:
    path = Path()
    assert [path.take(rtt_s) for rtt_s in (0.02, 0.02, None, None, None, None)] == [
        True, False, False, False, True, False,
    ]  # fmt: skip


def test_down_is_up_only_after_rise_and_hold_down() -> None:
    path = Path(rules(rise=3, hold_down="1s"))
    path.play("+---")
    assert path.play("+++") == [DOWN, DOWN, UP], "rise is what it waited for"
    path = Path(rules(rise=3, hold_down="10s"))
    path.play("+---")
    # Down since second 3; second 13 is the first at which 10 s are over.
    assert path.play("+" * 10) == [DOWN] * 9 + [UP], "hold_down is what it waited for"


def test_down_counts_anew_after_a_loss() -> None:
    path = Path(rules(rise=3, hold_down="0s"))
    path.play("+---")
    assert path.play("++-++-+++") == [DOWN] * 8 + [UP]


def test_a_down_path_that_goes_on_losing_pays_one_penalty_only() -> None:
    path = Path()
    path.play("+" + "-" * 50)
    assert path.path.penalty == 1000


# -- damping, RFC 2439

DAMP = {"half_life": "100s", "suppress": 2500, "reuse": 1000, "max_suppress": "400s"}


def flapped(times: int, **damping: Any) -> Path:
    """A path that fell `times` times within 2 s each (fall 1, rise 1, no hold-down), now down."""
    path = Path(rules(fall=1, rise=1, hold_down="0s", damping={**DAMP, **damping}))
    path.play("+")
    for i in range(times):
        path.play("-" if i == times - 1 else "-+")
    return path


def test_the_penalty_halves_every_half_life() -> None:
    path = flapped(1)
    fell_s = path.path.penalty_s
    assert path.path.penalty_at(fell_s) == 1000
    assert path.path.penalty_at(fell_s + 100) == pytest.approx(500)
    assert path.path.penalty_at(fell_s + 250) == pytest.approx(1000 / 2**2.5)
    assert path.path.penalty_at(fell_s - 50) == 1000, "never grows by asking about the past"


def test_penalties_add_up_as_by_hand() -> None:
    # Falls 2 s apart, half-life 100 s: p2 = 1000 * 2^-0.02 + 1000, p3 = p2 * 2^-0.02 + 1000.
    p2 = 1000 * 0.98623270449 + 1000
    p3 = p2 * 0.98623270449 + 1000
    assert flapped(2).path.penalty == pytest.approx(p2)
    assert flapped(3).path.penalty == pytest.approx(p3)
    assert p2 == pytest.approx(1986.23, abs=0.01)
    assert p3 == pytest.approx(2958.89, abs=0.01)


def test_two_falls_are_below_suppress_three_are_above() -> None:
    assert flapped(2).play("+") == [UP]
    assert flapped(3).play("+") == [DAMPED]


def test_damped_is_up_when_the_penalty_has_come_down_to_reuse() -> None:
    path = flapped(3)
    # 2958.89 falls to 1000 after 100 * log2(2.95889) = 156.5 s.
    wait_s = 100 * math.log2(path.path.penalty / 1000)
    assert wait_s == pytest.approx(156.5, abs=0.1)
    fell_s = path.path.penalty_s
    path.play("+")
    path.now = fell_s + wait_s - 0.5
    assert path.play("+") == [DAMPED]
    path.now = fell_s + wait_s + 0.5
    assert path.play("+") == [UP]
    assert not path.path.suppressed


def test_the_penalty_is_capped_so_that_max_suppress_holds() -> None:
    path = flapped(200)
    # reuse * 2^(max_suppress / half_life) = 1000 * 2^4
    assert path.path.penalty == 16000
    fell_s = path.path.penalty_s
    path.now = fell_s + 399
    assert path.play("+") == [DAMPED]
    path.now = fell_s + 400.001
    assert path.play("+") == [UP]


def test_extreme_damping_settings_do_not_overflow() -> None:
    path = flapped(5, half_life="1us", max_suppress="50w")
    assert path.play("+") == [UP], "a half-life of a microsecond forgets at once"


def test_damped_counts_anew_after_one_loss_and_is_down_at_the_fallth() -> None:
    path = Path(rules(fall=3, rise=2, hold_down="0s", damping=DAMP))
    path.play("+---++---++---")
    assert path.play("++") == [DOWN, DAMPED]
    before = path.path.penalty
    assert path.play("-") == [DAMPED]
    assert path.path.run_ok == 0
    assert path.play("--") == [DAMPED, DOWN]
    assert path.path.penalty > before, "falling while damped is a fall: RFC 2439 4.4.2 counts it"


def test_a_damped_path_that_falls_again_is_still_damped_between_reuse_and_suppress() -> None:
    path = flapped(3)
    path.play("+")
    path.now += 90
    path.play("-")
    path.now += 20
    assert 1000 < path.path.penalty_at(path.now) < 2500
    assert path.play("+") == [DAMPED], "below suppress, but not yet down to reuse"


def test_a_path_that_flaps_for_an_hour_is_answered_for_its_first_minutes_only() -> None:
    path = Path(rules())
    up_s = [0] * 6
    for i in range(6):
        for _ in range(12):
            # 30 s up, 20 s down, a probe each second
            up_s[i] += path.play("+" * 30 + "-" * 20).count(UP)
    assert up_s[0] > 0
    assert up_s[1:] == [0] * 5


def test_a_path_that_falls_once_a_quarter_of_an_hour_is_never_damped() -> None:
    path = Path(rules())
    assert DAMPED not in [state for _ in range(20) for state in path.play("+" * 880 + "-" * 20)]


# -- location and spread


@pytest.mark.parametrize(
    ("rtts_ms", "location_ms", "sigma_ms"),
    [
        # One value: itself; sigma a tenth of it.
        ([50], 50, 5),
        # Two: their mean both ways; sigma a tenth of the median 30.
        ([20, 40], 30, 3),
        # Three: short = median(10, 30, 20) = 20, mean = 20, median 20, deviations 0 10 10: MAD 10.
        ([10, 30, 20], 20, 14.826),
        # Four: short = median(20, 30, 40) = 30, mean = 25, median 25, deviations 5 5 15 15: MAD 10.
        ([10, 20, 30, 40], 27.5, 14.826),
        # Nine with an outlier: median 10, clipped at 30: mean = (80 + 30) / 9; short = 10; deviations 0 x8, 990: MAD 0.
        ([10, 10, 10, 10, 1000, 10, 10, 10, 10], (10 + 110 / 9) / 2, 0.2),
        # A shift from 10 to 40 two samples ago: short = 40; median 10, clip 30: mean = (7 * 10 + 2 * 30) / 9.
        ([10, 10, 10, 10, 10, 10, 10, 40, 40], (40 + 130 / 9) / 2, 0.2),
    ],
)
def test_locate_by_hand(rtts_ms: list[float], location_ms: float, sigma_ms: float) -> None:
    location_s, se_s = locate([x / 1000 for x in rtts_ms])
    assert location_s * 1000 == pytest.approx(location_ms)
    # The standard error of the median of n normal values: sqrt(pi / 2) * sigma / sqrt(n).
    assert se_s * 1000 == pytest.approx(math.sqrt(math.pi / 2) * sigma_ms / math.sqrt(len(rtts_ms)), rel=1e-4)


def test_only_the_last_nine_count() -> None:
    path = Path()
    for rtt_s in (0.9, *[0.010] * 9):
        path.take(rtt_s)
    assert path.path.rtt_s == pytest.approx(0.010)


def test_a_shift_is_followed_within_two_samples() -> None:
    path = Path()
    for rtt_s in (*[0.010] * 9, 0.030, 0.030):
        path.take(rtt_s)
    assert path.path.rtt_s is not None
    assert path.path.rtt_s > 0.020


def test_one_outlier_moves_little() -> None:
    path = Path()
    for rtt_s in (*[0.010] * 8, 2.0):
        path.take(rtt_s)
    assert path.path.rtt_s is not None
    assert path.path.rtt_s < 0.0115


def test_what_was_measured_before_a_fall_is_forgotten_after_it() -> None:
    path = Path(rules(rise=1, hold_down="0s"))
    path.play("+++++---")
    assert path.path.rtt_s == pytest.approx(0.020), "while down the last value is still shown"
    path.take(0.080)
    assert path.path.rtt_s == pytest.approx(0.080)


# -- loss


def test_loss_is_counted_over_the_last_thirty() -> None:
    path = Path(rules(fall=20))
    path.play("-" * 10 + "+" * 20)
    assert path.path.loss_ratio == pytest.approx(10 / 30)
    path.play("+" * 10)
    assert path.path.loss_ratio == 0.0
    assert path.path.loss_cost_s == 0.0


def test_loss_ratio_of_nothing_is_zero() -> None:
    assert PathEstimator(rules()).loss_ratio == 0.0


def test_a_quarantined_sample_changes_nothing() -> None:
    path = Path()
    path.play("++")
    before = path.path.dump()
    path.now += 100
    assert path.take(None, quarantined=True) is False
    assert path.path.dump() == before


def test_time_never_goes_back() -> None:
    path = Path(start_s=100.0)
    path.play("+")
    path.now = 50.0
    path.play("+")
    assert path.path.taken_s == 100.0


def test_load_is_the_last_reported() -> None:
    path = Path()
    path.take(0.02, load_ratio=0.5)
    path.take(0.02)
    assert path.path.load_ratio == 0.5
    path.take(0.02, load_ratio=0.7)
    assert path.path.load_ratio == 0.7


def test_a_load_that_is_no_longer_reported_is_forgotten() -> None:
    path = Path()
    path.take(0.02, load_ratio=0.99)
    for _ in range(WINDOW - 1):
        path.take(0.02)
    assert path.path.load_ratio == 0.99, "some answers without it are no news"
    path.take(0.02)
    assert path.path.load_ratio is None, "else one high report would keep the mirror behind for ever"


# -- over a restart


def test_dump_and_load_keep_everything_in_every_state() -> None:
    path = Path(rules(fall=2, rise=2, hold_down="3s"))
    seen = set()
    for mark in "+-+--+-++++--+++++--++++++---++++" * 2:
        path.play(mark)
        seen.add(path.path.state)
        loaded = PathEstimator(path.steering)
        loaded.load(json.loads(json.dumps(path.path.dump())))
        assert loaded.dump() == path.path.dump()
        for name in ("rtt_s", "se_s", "loss_cost_s", "loss_ratio", "taken_s", "state", "loss"):
            assert getattr(loaded, name) == getattr(path.path, name), name
    assert seen == {UP, DOWN, DAMPED}


def damaged() -> list[Any]:
    path = Path()
    path.play("++-+")
    whole = path.path.dump()
    cases: list[Any] = [[], whole[:-1], [*whole, 1], [None] * len(whole), ["up"] * len(whole)]
    wrong: tuple[Any, ...] = ("x", [], {}, -1, math.nan, math.inf)
    return cases + [[*whole[:i], bad, *whole[i + 1 :]] for i in range(len(whole)) for bad in wrong]


@pytest.mark.parametrize("dumped", damaged(), ids=lambda dumped: json.dumps(dumped)[:60])
def test_a_damaged_dump_is_refused_or_harmless(dumped: list[Any]) -> None:
    path = PathEstimator(rules())
    fresh = (path.state, path.count, path.rtt_s, path.taken_s)
    try:
        path.load(dumped)
    except (ValueError, TypeError):
        assert (path.state, path.count, path.rtt_s, path.taken_s) == fresh
    else:
        assert path.taken_s > -math.inf
    path.take(PathSample("a", "r", "m", "http", 4, 1, 0.02, 1000.0))
    assert 0 <= path.loss_ratio <= 1
    assert path.rtt_s is not None
    assert math.isfinite(path.rtt_s)
    assert math.isfinite(path.penalty_at(2000.0))


# -- proved loss


@pytest.mark.parametrize(
    ("lost", "count", "z", "lower"),
    [
        (0, 30, 1.645, 0.0),
        (0, 0, 1.645, 0.0),
        # Newcombe 1998, table I, method 4: 81 of 263, 15 of 148, 1 of 29
        (81, 263, 1.959964, 0.2535),
        (15, 148, 1.959964, 0.0598),
        (1, 29, 1.959964, 0.0018),
        # By hand: (2 + 2.706 - 1 - 1.645 * sqrt(2.706 - 2 - 1/30 + 4/30 * 30)) / (2 * 32.706)
        (1, 30, 1.645, 0.0023),
        # By hand: (60 + 2.706 - 1 - 1.645 * sqrt(2.706 - 2 - 1/30 + 4)) / (2 * 32.706)
        (30, 30, 1.645, 0.8890),
    ],
)
def test_wilson_lower_by_hand(lost: int, count: int, z: float, lower: float) -> None:
    assert wilson_lower(lost, count, z) == pytest.approx(lower, abs=5e-5)


def test_wilson_lower_is_below_the_share_and_rises_with_it() -> None:
    values = [wilson_lower(lost, 30) for lost in range(31)]
    assert values == sorted(values)
    assert all(value < lost / 30 for lost, value in enumerate(values) if lost)


def test_losses_of_an_outage_are_not_paid_twice() -> None:
    path = Path(rules(rise=2, hold_down="0s"))
    path.play("+" * 20 + "-" * 3)
    assert path.path.loss_cost_s == 0.0, "the three that led to the fall"
    path.play("-" * 50 + "++++")
    assert path.path.state is UP
    assert path.path.loss_cost_s == 0.0
    assert path.path.loss_ratio == pytest.approx(26 / 30), "but they are shown"


def test_losses_while_up_are_paid_over_a_fall_too() -> None:
    path = Path(rules(rise=2, hold_down="0s"))
    path.play("+" * 10 + "-+--+-+--+" + "---" + "++")
    assert path.path.state is UP
    # The first success found it unknown; of the 19 samples after it and before the outage six were lost.
    assert path.path.loss_cost_s == pytest.approx(wilson_lower(6, 19))


# -- jitter


def test_a_quiet_path_has_no_jitter() -> None:
    path = Path()
    path.play("+" * 30)
    assert path.path.jitter_se_s == 0.0


def test_jitter_by_hand() -> None:
    # The estimate is 20 ms until the fourth sample surprises it by 10 ms, which counts three samples later.
    path = Path()
    for rtt_s in (0.020, 0.020, 0.020, 0.030, 0.020, 0.020):
        path.take(rtt_s)
    assert path.path.jitter_se_s == 0.0
    path.take(0.020)
    # Third to count: weight 1 / (3 + 2); seven samples in the window.
    assert path.path.jitter_se_s == pytest.approx(1.2533 * math.sqrt(0.010**2 / 5 / 7))


def test_jitter_remembers_outliers_that_the_deviation_does_not_see() -> None:
    path = Path()
    for i in range(60):
        path.take(0.500 if i % 20 == 10 else 0.020)
    assert path.path.se_s < 0.001
    assert path.path.jitter_se_s > 0.020
