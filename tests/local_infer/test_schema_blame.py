"""Schemas that took a process down are refused for a while: that schema, of that client, and at last all of its."""

from __future__ import annotations

from local_infer.generation.schema_blame import BLAMED_S, CANCEL, CRASH, MOST_CLIENTS, MOST_SCHEMAS, Blame


def test_one_crash_is_enough_for_that_schema_of_that_client() -> None:
    blame = Blame()
    blame.note("a", "{1}", CRASH, 100.0)
    assert blame.refused_s("a", "{1}", 101.0) == BLAMED_S - 1
    assert (blame.refused_s("a", "{2}", 101.0), blame.refused_s("b", "{1}", 101.0)) == (0, 0)
    assert blame.refused_s("a", "{1}", 100.0 + BLAMED_S) == 0


def test_a_cancel_that_needed_force_counts_from_the_second_time() -> None:
    blame = Blame()
    blame.note("a", "{1}", CANCEL, 100.0)
    assert blame.refused_s("a", "{1}", 100.0) == 0
    blame.note("a", "{1}", CANCEL, 100.0 + BLAMED_S)
    assert blame.refused_s("a", "{1}", 100.0 + BLAMED_S) == 0, "the first one is forgotten"
    blame.note("a", "{1}", CANCEL, 101.0 + BLAMED_S)
    assert blame.refused_s("a", "{1}", 101.0 + BLAMED_S) == BLAMED_S


def test_who_varies_them_gets_none_at_last() -> None:
    blame = Blame()
    for number in range(3):
        assert blame.refused_s("a", "{new}", 100.0) == 0
        blame.note("a", f"{{{number}}}", CRASH, 100.0 + number)
    assert blame.refused_s("a", "{new}", 103.0) == BLAMED_S - 3
    assert blame.refused_s("a", "{new}", 100.0 + BLAMED_S) == 0, "one of the three is over"
    assert blame.refused_s("b", "{new}", 103.0) == 0


def test_memory_is_bounded() -> None:
    blame = Blame()
    for number in range(MOST_CLIENTS + 10):
        blame.note(f"c{number}", "{}", CRASH, 0.0)
    for number in range(MOST_SCHEMAS + 10):
        blame.note("a", f"{number}", CANCEL, 0.0)
    assert len(blame._clients) == MOST_CLIENTS
    assert len(blame._clients["a"]) == MOST_SCHEMAS
    assert (blame.refused_s("c0", "{}", 0.0), blame.refused_s(f"c{MOST_CLIENTS}", "{}", 0.0)) == (0, BLAMED_S)
