"""Every way an answer can go wrong is seen by the load generator, and none is seen where nothing went wrong."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from local_infer.load.echo import answer_for, find_marker, json_for, make_marker, text_for, vector_for
from local_infer.load.fault_turns import FAULT_S, GOOD_S, ROUND_S, TURNS, turn_at
from local_infer.load.io_upstream import completion, embeddings, events
from local_infer.load.shots import PROFILES, Habits, Shooter, Shot
from local_infer.load.tally import Tally
from local_infer.load.verdict import Verdict, judge

MARKER = make_marker(7)
OTHER = make_marker(8)
TEXT = text_for(MARKER)
STREAM = Shot("chat-sse", "POST", "/chat/completions", b"{}", True, TEXT, {})
WHOLE = Shot("faq", "POST", "/chat/completions", b"{}", False, TEXT, {})
ERROR = b'data: {"error":{"message":"cut"}}\n\n'


def outcome(shot: Shot, body: bytes, status: int = 200) -> str:
    return judge(shot, status, {}, body).outcome


def test_an_answer_is_told_from_every_other() -> None:
    texts = [text_for(make_marker(number)) for number in range(500)]
    assert len(set(texts)) == 500
    assert not any(a != b and a.startswith(b) for a in texts[:50] for b in texts)
    assert find_marker(f"x {OTHER} y {MARKER}?") == MARKER
    assert find_marker("mk12") == ""


def test_what_the_played_upstream_says_is_what_is_waited_for() -> None:
    rng = random.Random(3)
    for profile in PROFILES:
        shooter = Shooter(profile, "bench", rng)
        for _ in range(30):
            for shot in shooter.next():
                if shot.method == "GET":
                    continue
                fields = json.loads(shot.body)
                if shot.kind == "embeddings":
                    assert json.loads(embeddings(fields))["model"] == "bench"
                    assert outcome(shot, embeddings(fields)) == "good"
                    continue
                text = answer_for(fields)
                assert text == shot.wanted
                body = b"".join(events(text)) if shot.stream else completion(text)
                assert outcome(shot, body) == "good"
                shooter.over(shot, text)


def test_a_continued_stream_goes_on_where_it_broke() -> None:
    messages = [{"role": "user", "content": f"x {MARKER}"}, {"role": "assistant", "content": TEXT[:30]}]
    assert TEXT[:30] + answer_for({"messages": messages}) == TEXT


EVENTS = events(TEXT)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"".join(EVENTS), "good"),
        (b"".join(EVENTS[:-1]), "good"),  # [DONE] is missing, but the finish reason has come
        (b"".join(EVENTS[:-2]), "lost"),
        (b"".join(EVENTS[:5]), "lost"),
        (b"".join([*EVENTS[:5], EVENTS[-1]]), "lost"),  # ends as if it were whole
        (b"".join([*EVENTS[:5], ERROR]), "told"),
        (ERROR, "told"),
        (b"".join([*EVENTS[:5], ERROR, EVENTS[-1]]), "lost"),
        (b"".join([*EVENTS[:5], *EVENTS[4:]]), "crossed"),  # one event twice
        (b"".join([EVENTS[0], *reversed(EVENTS[1:4]), *EVENTS[4:]]), "crossed"),
        (b"".join(events(text_for(OTHER))), "crossed"),
        (b"".join([*events(text_for(OTHER))[:4], ERROR]), "crossed"),
        (b"".join([*EVENTS[:5], b"data: {not json}\n\n", *EVENTS[5:]]), "lost"),
        (b"", "lost"),
    ],
)
def test_streams(body: bytes, wanted: str) -> None:
    assert outcome(STREAM, body) == wanted


def test_whole_answers() -> None:
    assert outcome(WHOLE, completion(TEXT)) == "good"
    assert outcome(WHOLE, completion("[offline] " + TEXT)) == "good"
    assert outcome(WHOLE, completion(TEXT[:-5])) == "lost"
    assert outcome(WHOLE, completion(text_for(OTHER))) == "crossed"
    assert outcome(WHOLE, completion(TEXT)[:-3]) == "lost"
    assert outcome(WHOLE, b'{"error":{"message":"full"}}', 429) == "refused"
    assert outcome(WHOLE, b"<html>", 502) == "lost"
    assert judge(WHOLE, 503, {}, b'{"error":{"message":"x","code":"no_step"}}').code == "503 no_step"
    assert (
        judge(WHOLE, 429, {}, b'{"error":{"message":"x","code":null,"type":"rate_limit_error"}}').code[:6] == "429 ra"
    )
    assert judge(WHOLE, 200, {}, completion(text_for(OTHER)), check=False).outcome == "good"
    vectors = Shot("embeddings", "POST", "/embeddings", b"", False, json.dumps([vector_for("a"), vector_for("b")]), {})
    assert outcome(vectors, embeddings({"input": ["a", "b"]})) == "good"
    assert outcome(vectors, embeddings({"input": ["a"]})) == "lost"
    assert outcome(vectors, embeddings({"input": ["b", "a"]})) == "crossed"
    assert json.loads(json_for(MARKER))["work"] == MARKER


def test_where_an_answer_came_from() -> None:
    told = judge(WHOLE, 200, {"X-Degraded": "stale; connect; 9", "Cache-Status": "n; hit; ttl=-9"}, completion(TEXT))
    assert (told.step, told.cache) == ("stale", "hit")
    told = judge(WHOLE, 200, {"Cache-Status": "n; fwd=miss; stored; collapsed"}, completion(TEXT))
    assert (told.step, told.cache) == ("upstream", "miss+shared")
    told = judge(WHOLE, 200, {"Cache-Status": "n; hit; ttl=9"}, completion(TEXT))
    assert (told.step, told.cache) == ("cache", "hit")


def test_profiles() -> None:
    shooter = Shooter("mixed", "bench", random.Random(1), Habits(resume=0.5))
    shots = [shot for _ in range(700) for shot in shooter.next()]
    kinds = Counter(shot.kind for shot in shots)
    assert set(kinds) == {"faq", "chat-sse", "grading", "embeddings", "models"}
    again = Shooter("mixed", "bench", random.Random(1), Habits(resume=0.5))
    assert [shot.body for _ in range(700) for shot in again.next()] == [shot.body for shot in shots]
    faq = [shot for shot in shots if shot.kind == "faq"]
    assert len({shot.wanted for shot in faq}) < len(faq) / 2
    assert len({shot.wanted for shot in shots if shot.kind == "grading"}) == kinds["grading"]
    answers = dict(shooter.faq())
    question = json.loads(faq[0].body)["messages"][0]["content"]
    assert answers[question] == faq[0].wanted


def test_a_conversation_grows_and_forgets_what_was_not_answered() -> None:
    shooter = Shooter("chat-sse", "bench", random.Random(2))
    longest = 0
    for number in range(300):
        (shot,) = shooter.next()
        messages = json.loads(shot.body)["messages"]
        assert [m["role"] for m in messages[1:]] == (["user", "assistant"] * 9)[: len(messages) - 1]
        longest = max(longest, len(messages))
        shooter.over(shot, None if number % 5 == 0 else shot.wanted)
    assert longest == 16  # the system's, and 7 turns before the eighth question


def test_turns() -> None:
    assert turn_at(0.0) is None
    assert turn_at(GOOD_S) is TURNS[0]
    assert turn_at(GOOD_S + FAULT_S) is None
    assert turn_at(ROUND_S - 0.01) is TURNS[-1]
    assert turn_at(ROUND_S) is None


def test_tally() -> None:
    tally = Tally()
    for number in range(100):
        tally.add(Verdict("good", "cache", "hit"), number / 1000, number / 500)
    tally.add(Verdict("refused", "none", "none"), 5.0, 5.0)
    tally.add(Verdict("left", "none", "none"), 5.0, 5.0)
    tally.add(Verdict("crossed", "cache", "hit"), 5.0, 5.0)
    sums = tally.summary(10.0)
    assert (sums["count"], sums["errors"], sums["rps"], tally.bad) == (103, 2, 10.3, 1)
    assert sums["first_ms"]["p50"] == pytest.approx(49.5)
    assert sums["whole_ms"]["p99"] == pytest.approx(196.02)
    assert sums["steps"] == {"cache": 1.0}
    assert Tally().summary(1.0)["first_ms"]["p50"] is None
