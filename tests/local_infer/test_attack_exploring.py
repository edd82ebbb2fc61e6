"""An upstream that hangs, and clients that name many models: each model is a lane, and each lane would find it out anew."""

from __future__ import annotations

from local_infer.upstreams.exploring import Rival
from tests.local_infer.scripted_ranking import Script


def test_one_that_hangs_is_not_found_out_for_each_model_anew() -> None:
    play = Script({"a": {}, "b": {}}, explore="1%")
    play.probe("a", 0.001, times=3)
    play.probe("b", 0.001, times=3)
    explored = 0
    for number in range(400):
        lane = (f"model-{number}", "whole")
        for _ in range(5):
            choice = play.choose(lane=lane)
            assert choice.member is not None
            assert choice.ticket is not None
            if choice.beside_s is not None:
                explored += 1
                started_s, play.now = play.now, play.now + choice.beside_s
                play.ranking.left(choice.member, lane, choice.ticket, choice.beside_s, play.now)
                play.ranking.explored(choice.member, lane, "overtaken", started_s, play.now)
            play.good("a", 0.005, lane=lane)
            play.now -= 0.095
    # Of 2,000 requests in 10 seconds; before, 400 to 800 of them waited for it.
    assert 2 <= explored <= 6


def test_one_that_answers_again_is_explored_as_ever() -> None:
    rival = Rival()
    now = 100.0
    for pause_s in (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0):
        assert rival.may_ask(now)
        rival.end("overtaken", now, 30.0)
        assert not rival.may_ask(now + pause_s - 0.1)
        now += pause_s
    rival.end("ok", 200.0, 30.0)
    assert rival.may_ask(200.0)
    # What it says of one model, or a client that left, says nothing of the others.
    for outcome in ("error", "left"):
        rival.end(outcome, 200.0, 30.0)
        assert rival.may_ask(200.0)
