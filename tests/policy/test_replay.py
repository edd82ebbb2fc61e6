"""The replay over RTT matrices: the forms it reads, the bounds it keeps, scores by hand, and strict causality."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from core.config import Steering
from core.errors import MessageError
from policy.replay import Matrix, choose, draw, load_matrix, replay, score


def npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


CUBE_US = np.arange(1, 2 * 3 * 3 + 1, dtype=np.int32).reshape(2, 3, 3) * 1000

# -- the forms


def test_the_extract_is_read_in_microseconds_and_zero_is_missing() -> None:
    cube = CUBE_US.copy()
    cube[:, np.arange(3), np.arange(3)] = 0
    matrix = load_matrix(npz(rtt_us=cube))
    assert matrix.kind == 1
    assert matrix.rtt_ms[1, 0, 2] == 12.0
    assert np.isnan(matrix.rtt_ms[0, 1, 1])


def test_the_full_matrix_is_unfolded_from_its_upper_triangle() -> None:
    # Three nodes: pairs 01, 02, 12; the second slice is the first plus the differences.
    matrix = load_matrix(npz(rtt_us_delta=np.array([[1000, 2000, 3000], [500, -500, 0]], np.int32), n=3))
    expected = np.array([[np.nan, 1.5, 1.5], [1.5, np.nan, 3.0], [1.5, 3.0, np.nan]])
    np.testing.assert_allclose(matrix.rtt_ms[1], expected)


def test_centiseconds_are_read_and_nodes_that_mostly_miss_are_dropped() -> None:
    cube = np.full((2, 40, 40), 7, np.uint16)
    cube[:, 2, :] = 0
    cube[:, :, 2] = 0
    matrix = load_matrix(npz(rtt_cs=cube))
    assert matrix.kind == 2
    assert matrix.rtt_ms.shape == (2, 39, 39)
    assert (matrix.rtt_ms == 70.0).all()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "not an .npz archive"),
        (b"PK\x03\x04 but no more", "not an .npz archive"),
        (npz(rtt_us=CUBE_US)[:-40], "not an .npz archive"),
        (npz(other=CUBE_US), "it holds other"),
        (npz(rtt_us=CUBE_US[0]), "its shape is"),
        (npz(rtt_us=CUBE_US[:, :2]), "its shape is"),
        (npz(rtt_us=CUBE_US[:1]), "needs 2 to"),
        (npz(rtt_us=np.array([[["a"]]] * 2)), "not numbers"),
        (npz(rtt_us=CUBE_US.astype(complex)), "not numbers"),
        (npz(rtt_us=np.array([[[None]]], object)), "not an .npz archive"),
        (npz(rtt_cs=CUBE_US * 0), "miss more than 5%"),
        (npz(rtt_us_delta=CUBE_US[:, 0], n=4), "4 nodes do not make"),
        (npz(rtt_us_delta=CUBE_US[:, 0], n=np.array([3, 3])), "do not make"),
        (npz(rtt_us_delta=CUBE_US[:, 0], n="x"), "do not make"),
    ],
)
def test_what_is_no_matrix_is_refused_with_its_reason(data: bytes, what: str) -> None:
    with pytest.raises(MessageError, match=what):
        load_matrix(data)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("rtt_us.npy", "w") as member:
        for _ in range(513):
            member.write(bytes(1 << 20))
    assert len(out.getvalue()) < 1 << 20
    with pytest.raises(MessageError, match="too large"):
        load_matrix(out.getvalue())


# -- draws


def matrix_of(slices: int, nodes: int, seed: int = 1) -> Matrix:
    rng = np.random.default_rng(seed)
    base = rng.uniform(5, 200, (nodes, nodes))
    return Matrix(base * rng.uniform(0.97, 1.2, (slices, nodes, nodes)), 1)


def test_a_draw_splits_the_nodes_and_is_the_same_for_the_same_seed() -> None:
    matrix = matrix_of(3, 12)
    drawn = draw(matrix, 4, 11)
    assert drawn.shape == (3, 8, 4)
    assert (draw(matrix, 4, 11) == drawn).all()
    assert (draw(matrix, 4, 12) != drawn).any()
    chosen = np.random.default_rng([11, 4, 1]).choice(12, 4, replace=False)
    assert drawn[0, 0, 0] == matrix.rtt_ms[0, np.setdiff1d(np.arange(12), chosen)[0], chosen[0]]


@pytest.mark.parametrize("mirrors", [0, -1, 12, 13])
def test_a_draw_leaves_at_least_one_client(mirrors: int) -> None:
    with pytest.raises(MessageError, match="draw 1 to 11"):
        draw(matrix_of(3, 12), mirrors, 1)


# -- scores


def test_scores_by_hand() -> None:
    # Slices x clients x mirrors; slice 0 is warm-up.
    truth = np.array([[[9, 9], [9, 9]], [[10, 20], [30, 100]], [[20, 12], [40, 100]]], float)
    choice = np.array([[0, 0], [0, 1], [0, 0]])
    # Got 10, 100, 20, 40; the best were 10, 30, 12, 40.
    scores = score("p", truth, choice, 1)
    assert scores.mean_ms == pytest.approx(42.5)
    assert scores.ratio == pytest.approx(170 / 92)
    assert scores.regret_ms == pytest.approx((0 + 70 + 8 + 0) / 4)
    assert scores.good_ratio == 2 / 4
    assert scores.over_50ms_ratio == 1 / 4
    assert scores.switches_per_100 == 50.0
    assert scores.p95_ms == pytest.approx(np.percentile([10, 100, 20, 40], 95))


def test_a_missing_truth_costs_a_second() -> None:
    truth = np.full((3, 1, 2), 10.0)
    truth[1, 0] = np.nan
    scores = {s.policy: s for s in replay(truth)}
    assert scores["static, hindsight"].mean_ms == pytest.approx((1000 + 10) / 2)


def test_the_policies_stand_side_by_side_and_none_beats_the_oracle() -> None:
    scores = {s.policy: s for s in replay(draw(matrix_of(20, 30), 5, 1))}
    assert list(scores) == [
        "nearpath", "round robin", "static, first slice", "static, hindsight", "last value", "EWMA .2 + hysteresis",
        "oracle",
    ]  # fmt: skip
    assert scores["oracle"].ratio == 1.0
    assert all(s.ratio >= 1.0 and s.regret_ms >= 0 for s in scores.values())
    assert scores["nearpath"].ratio < 1.05 < scores["round robin"].ratio
    assert scores["nearpath"].switches_per_100 < scores["last value"].switches_per_100


def test_no_choice_looks_at_its_own_slice_or_later() -> None:
    truth = draw(matrix_of(16, 20), 4, 3)
    for slice_no in (1, 5, 11):
        other = truth.copy()
        other[slice_no:] = other[slice_no:, :, ::-1] * 3
        for policy in (lambda t: choose(t, Steering()), lambda t: choose(t, Steering(), slice_s=5.0)):
            assert (policy(truth)[: slice_no + 1] == policy(other)[: slice_no + 1]).all()


def test_the_serving_code_leaves_a_mirror_whose_probes_are_lost() -> None:
    obs = np.full((12, 1, 2), 10.0)
    obs[:, 0, 1] = 50.0
    obs[4:, 0, 0] = np.nan
    choice = choose(obs, Steering())[:, 0]
    assert choice[:5].tolist() == [0] * 5
    assert choice[7:].tolist() == [1] * 5, "down at the third loss"


def test_a_replay_of_nothing_is_refused() -> None:
    with pytest.raises(MessageError, match="not a replay"):
        replay(np.ones((1, 2, 2)))
    with pytest.raises(MessageError, match="not a replay"):
        replay(np.ones((4, 2, 2)), np.ones((4, 2, 3)))
