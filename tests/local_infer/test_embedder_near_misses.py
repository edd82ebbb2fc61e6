"""An embedder finds near misses nearer than rewordings: it may speak for other words only where all is said anew."""

from __future__ import annotations

from pathlib import Path

import pytest

from local_infer.retrieval.vetoes import is_said_anew
from tests.local_infer.shelves import answer_to, make_config, make_step, tell
from tests.local_infer.tiny_embedder import make_embedder

FAQ: list[dict[str, object]] = [{"id": "film", "question": "How do I rent a film", "answer": "At the desk."}]
NEAR_MISS, REWORDING = "How do I rent a boat", "Can we hire movie"


@pytest.mark.parametrize(
    ("one", "other", "anew"),
    [
        ("How do I rent a film", "Can we hire movies?", True),
        ("How do I rent a film", "How do I rent a boat", False),
        ("How do I rent a film", "HOW DO I HIRE MOVIES", False),
        ("结婚证怎么办", "离婚证怎么办", False),
        ("我的包裹到哪了", "快递查询", True),
        ("прокат фильма", "прокат фильмов", False),
        ("!?", "?!", False),
    ],
)
def test_said_anew(one: str, other: str, anew: bool) -> None:
    assert is_said_anew(one, other) is is_said_anew(other, one) is anew


async def test_a_proof_by_rewordings_opens_no_door_to_near_misses(tmp_path: Path) -> None:
    # To this embedder a boat is a film: the near miss is as near as the stored question itself.
    meanings = [["film", "movie", "boat"], ["rent", "hire"], ["a", "How", "do", "Can", "we", "I"]]
    folder = make_embedder(tmp_path / "embedder", meanings)
    step, _, registry = make_step(make_config(tmp_path, FAQ, embedder=str(folder), keep=0))
    for _ in range(3):
        await tell(step, REWORDING, "At the desk.")
    assert await answer_to(step, REWORDING) == "At the desk."
    assert await answer_to(step, NEAR_MISS) == "-- veto: wording"
    # What an upstream says to a near miss is no word about the entry either, whose threshold it would spoil.
    for _ in range(5):
        await tell(step, NEAR_MISS, "At the harbour, with a licence.")
    assert await answer_to(step, REWORDING) == "At the desk."
    outcomes = {"source": "faq", "outcome": "disagrees"}
    assert registry.get_sample_value("local_infer_retrieval_proofs_total", outcomes) is None
    step.close()
