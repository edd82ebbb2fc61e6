"""What shadow answers prove: thresholds by hand, trust, and when two answers say the same."""

from __future__ import annotations

import pytest

from local_infer.retrieval.proof import LOWEST, STEP_UP, Proof, compare_answers, is_trusted, threshold_of


def learned(*steps: tuple[float, str]) -> Proof:
    proof = Proof()
    for similarity, agreement in steps:
        proof = proof.learn(similarity, agreement)  # type: ignore[arg-type]
    return proof


@pytest.mark.parametrize(
    ("steps", "threshold"),
    [
        ([], 0.75),
        ([(0.5, "agrees")], 0.75),
        ([(0.5, "agrees"), (0.9, "agrees")], 0.5),
        ([(0.5, "agrees"), (0.9, "unclear")], 0.75),
        ([(0.1, "agrees"), (0.1, "agrees")], LOWEST),
        ([(0.9, "agrees"), (0.95, "agrees")], 0.75),
        ([(0.6, "disagrees")], 0.75),
        ([(0.8, "disagrees")], 0.8 + STEP_UP),
        ([(0.5, "agrees"), (0.6, "agrees"), (0.55, "disagrees")], 0.55 + STEP_UP),
    ],
)
def test_threshold(steps: list[tuple[float, str]], threshold: float) -> None:
    assert threshold_of(learned(*steps), 0.75, 2) == pytest.approx(threshold)


def test_trust() -> None:
    assert not is_trusted(learned((1.0, "agrees")), 2)
    assert is_trusted(learned((1.0, "agrees"), (1.0, "agrees")), 2)
    assert not is_trusted(learned((1.0, "agrees"), (1.0, "agrees"), (1.0, "disagrees"), (1.0, "disagrees")), 2)
    assert is_trusted(Proof(), 0)
    assert not is_trusted(learned((1.0, "disagrees")), 0)


@pytest.mark.parametrize(
    ("kept", "fresh", "agreement"),
    [
        ("You can return it within 7 days.", "You can return it within 7 days.", "agrees"),
        ("You can return it within 7 days.", "It can be returned within 7 days.", "agrees"),
        ("You can return it within 7 days.", "You can return it within 14 days.", "disagrees"),
        ("You can return it within 7 days.", "You cannot return it within 7 days.", "disagrees"),
        ("在设置页面里关闭自动续费，下个月起生效。", "请在设置页面里关掉自动续费，下个月起生效。", "agrees"),
        ("在设置页面里关闭自动续费，下个月起生效。", "在设置页面里开启自动续费，下个月起生效。", "disagrees"),
        ("在设置里关闭自动续费。", "请在设置里把自动续费关闭。", "agrees"),
        ("Press the red button twice.", "Press the red lever, then wait.", "unclear"),
        ("在设置里关闭自动续费。", "Bananas are yellow.", "disagrees"),
        ("!", "?", "unclear"),
    ],
)
def test_comparison_of_answers(kept: str, fresh: str, agreement: str) -> None:
    assert compare_answers(kept, fresh) == agreement
    assert compare_answers(fresh, kept) == agreement
