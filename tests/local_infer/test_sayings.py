"""Ways to say one thing: what two questions say in different ways of one line is no difference, and nothing else is."""

from __future__ import annotations

from collections import defaultdict

import pytest

from local_infer.retrieval.frames import FRAMES, reframe
from local_infer.retrieval.io_sayings import shipped_sayings, shipped_texts
from local_infer.retrieval.lexicon import list_lines
from local_infer.retrieval.sayings import Sayings, Way, gram_text, leave_out_shared, read_sayings
from local_infer.retrieval.vetoes import find_veto
from local_infer.retrieval.wording import read_wording

SOME = read_sayings(
    [
        """
atm: 提款机 自动柜员机 | atm, cash machine
visa_of_students: | student visa, study visa
period: | warranty, guarantee period
forgot: | forgot my password, can't remember my password
swallow: | swallowed, kept
message: 留言 | message, review
        """
    ]
)


def veto(one: str, other: str, sayings: Sayings = SOME) -> str | None:
    left, right = read_wording(one), read_wording(other)
    why = find_veto(left, right, sayings)
    assert find_veto(right, left, sayings) == why
    return why


def lines() -> dict[int, set[Way]]:
    found: dict[int, set[Way]] = defaultdict(set)
    for ways in shipped_sayings().values():
        for way in ways:
            found[way.line].add(way)
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The ATM swallowed it", "The cash machine kept it"),
        ("提款机在哪里", "哪里有自动柜员机"),
        ("How do I get a student visa?", "How do I get a study visa?"),
        ("How long is the warranty?", "How long is the guarantee period?"),
    ],
)
def test_what_a_line_says_is_no_difference(one: str, other: str) -> None:
    assert veto(one, other, {}) is not None
    assert veto(one, other) is None


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        # The words of a way must stand together: studying on a work visa is no study visa.
        ("Can I work on my student visa?", "Can I study on my work visa?", "wording"),
        # One concept of the word lists does not stand for another, whatever a line says.
        ("How do I delete a message?", "How do I delete a review?", "wording"),
        ("Where is the ATM?", "Where is the cash machine for cars?", "wording"),
        ("Did the ATM keep it?", "Didn't the cash machine keep it?", "negation"),
        ("Where are 2 ATMs?", "Where are 3 cash machines?", "number"),
    ],
)
def test_what_it_does_not_say_is_one(one: str, other: str, why: str) -> None:
    assert veto(one, other) == why


def test_a_negation_that_belongs_to_a_way_goes_with_it() -> None:
    one, other, _ = leave_out_shared(
        read_wording("I forgot my password"), read_wording("I can't remember my password"), SOME
    )
    assert one.negations == other.negations


def test_what_is_said_again_in_other_words_may_come_with_circumstances() -> None:
    shipped = shipped_sayings()
    assert veto("Can I see a GP about a sick note?", "Can I see a GP about a fit note and a prescription?") is not None
    assert veto("How do I leave a review?", "How do I leave a review of my new phone?", shipped) is not None
    assert veto("病历怎么复印", "想要一份住院病案的复印件,流程是什么", shipped) is None


def test_similarity_sees_what_is_said() -> None:
    one, other = (gram_text(read_wording(q), SOME) for q in ("Where is the ATM?", "Where is the cash machine?"))
    assert set(one) & set(other) > set(read_wording("Where is the ATM?").gram_text) & set(
        read_wording("Where is the cash machine?").gram_text
    )
    assert read_wording(chr(0xF0000)).content == ()


def test_every_shipped_line_says_something_in_two_ways() -> None:
    assert len(lines()) > 4000
    assert min(map(len, lines().values())) >= 2
    named = [name for text in shipped_texts() for name, zh, en in list_lines(text) if not name or not (zh or en)]
    assert named == []


def test_a_line_that_makes_opposites_the_same_is_left_out() -> None:
    assert read_sayings(["odd: | lock the phone, unlock the phone"]) == {}
    assert len(read_sayings(["even: | can't lock the phone, unlock the phone"])) == 2


def test_frames_ask_what_their_plain_one_asks() -> None:
    for line in FRAMES.strip().splitlines():
        plain, _, others = line.partition(":")
        for other in others.split("|"):
            asked = other.strip().replace("X", "frobnicate").replace("Z", "grobble")
            assert "frobnicate" in reframe(asked)
            assert reframe(asked) != asked, other
        assert plain.count("X") == 1


def test_a_question_that_no_frame_fits_stays_as_it_is() -> None:
    for text in ("", "?", "怎么退款", "how do i pay?", "，，，"):
        assert reframe(text) == text
