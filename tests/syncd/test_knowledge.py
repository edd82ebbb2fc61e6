"""What a copy may say of how fresh it is."""

from __future__ import annotations

from syncd.copy.knowledge import UNKNOWN_LAG_S, Knowledge


def test_a_failed_proof_takes_back_what_was_said_since_the_last_one() -> None:
    known = Knowledge()
    assert (known.lag_s(5.0), known.said.version) == (UNKNOWN_LAG_S, 0)
    known.tell(10.0, 7)
    known.prove(8)
    known.tell(50.0, 3)
    assert (known.lag_s(60.0), known.lag_s(40.0), known.said.version) == (10.0, 0.0, 8), "no version goes back"
    known.disprove()
    assert (known.lag_s(60.0), known.said.version) == (50.0, 8)


def test_what_an_origin_said_before_it_began_anew_counts_no_more() -> None:
    known = Knowledge()
    known.tell(10.0, 7)
    known.prove()
    known.forget_versions()
    assert (known.lag_s(11.0), known.said.version) == (1.0, 0)
    known.disprove()
    assert known.lag_s(11.0) == UNKNOWN_LAG_S


def test_a_copy_that_shows_another_version_on_purpose_is_behind_until_it_is_told_or_disproved() -> None:
    known = Knowledge()
    known.tell(10.0, 7)
    known.prove()
    known.forget()
    assert (known.lag_s(11.0), known.said.version) == (UNKNOWN_LAG_S, 0)
    known.tell(20.0, 4)
    assert (known.lag_s(21.0), known.said.version) == (1.0, 4)
