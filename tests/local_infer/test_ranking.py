"""The order of upstreams from scripted outcomes: speed, failures, limits, breakers, ejection, and what is not known yet."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from local_infer.upstreams.attempt import Failure
from local_infer.upstreams.member import MAX_LANES
from local_infer.upstreams.ranking import Choice, RateLimit
from tests.local_infer.scripted_ranking import LANE, T0, Script, config


def chosen(choice: Choice) -> str:
    assert choice.member is not None, choice.why
    return choice.member.name


def test_the_faster_one_is_first() -> None:
    script = Script({"a": {}, "b": {}})
    assert script.first() == "a", "nothing is known: the order of the configuration"
    script.good("a", 0.3, 5)
    script.good("b", 0.1, 5)
    assert script.first() == "b"


def test_preference_goes_before_speed_and_cost_between_equals() -> None:
    script = Script({"a": {}, "b": {"preference": 200}})
    script.good("a", 0.1, 5)
    script.good("b", 0.3, 5)
    assert script.first() == "b"
    equal = Script({"a": {"cost": 5}, "b": {"cost": 1}})
    for _ in range(5):
        equal.good("a", 0.2)
        equal.good("b", 0.2)
    assert equal.first() == "b"


def test_after_three_failures_in_a_row_the_other_one() -> None:
    script = Script({"a": {}, "b": {}})
    script.good("a", 0.1, 5)
    script.good("b", 0.3, 5)
    script.bad("a", times=2)
    assert script.first() == "a"
    script.bad("a")
    decision = script.ranking.order(LANE, script.now)
    assert decision is not None
    assert (decision.order[0], decision.decided_by, decision.eligible) == ("b", "up", 1)


def test_a_model_is_asked_for_where_it_is_and_its_times_are_its_own() -> None:
    script = Script({"a": {}, "b": {}, "c": {"models": {"small": "small-chat"}}})
    assert {chosen(script.choose(lane=("m", "stream"))) for _ in range(5)} == {"a"}
    assert script.ranking.order(("small", "stream"), T0).order == ("a", "b", "c")  # type: ignore[union-attr]
    script.good("a", 0.1, 5, ("m", "stream"))
    script.good("b", 0.5, 5, ("m", "stream"))
    script.good("a", 2.0, 5, ("m", "whole"))
    script.good("b", 1.0, 5, ("m", "whole"))
    assert (script.first(("m", "stream")), script.first(("m", "whole"))) == ("a", "b")


def test_nobody_serves_the_model() -> None:
    script = Script({"c": {"models": {"small": "small-chat"}}})
    assert script.choose() == Choice(None, why="no upstream")
    assert script.ranking.down_reason("m", T0) == "no upstream"
    assert script.ranking.down_reason("small", T0) == ""


def test_a_probed_upstream_is_not_taken_for_fast_because_a_probe_is_short() -> None:
    script = Script({"a": {}, "b": {}})
    for _ in range(5):
        script.probe("a", 0.010)
        script.probe("b", 0.040)
    script.good("a", 0.400, 9)
    assert script.first() == "a", "b is expected at 40 + 390 ms"
    near = Script({"a": {}, "b": {}})
    for _ in range(5):
        near.probe("a", 0.300)
        near.probe("b", 0.010)
    near.good("a", 0.400, 9)
    assert near.first() == "b", "b is expected at 10 + 100 ms"


def test_never_the_same_twice_in_a_row_and_new_ones_first() -> None:
    script = Script({"a": {}, "b": {}, "c": {}})
    assert chosen(script.choose()) == "a"
    assert chosen(script.choose("a")) == "b"
    assert chosen(script.choose("a", "b")) == "c"
    assert chosen(script.choose("a", "b", "c")) == "a"
    alone = Script({"a": {}})
    assert alone.choose("a") == Choice(None)


def test_a_rate_limited_upstream_goes_behind_and_is_no_worse_for_it() -> None:
    script = Script({"a": {}, "b": {}})
    script.good("a", 0.1, 5)
    script.good("b", 0.3, 5)
    script.bad("a", "rate limited", 5, status=429, retry_after_s=3.0, full=True)
    assert chosen(script.choose()) == "b"
    assert script.member("a").health.loss_ratio == 0.0
    assert script.member("a").state(script.now) == "limited"
    script.now += 3.1
    assert chosen(script.choose()) == "b", "it is ahead again, but that must last for a dwell"
    script.now += 10.0
    assert chosen(script.choose()) == "a"


def test_when_all_are_limited_it_says_for_how_long() -> None:
    script = Script({"a": {}, "b": {}})
    script.bad("a", "rate limited", status=429, retry_after_s=30.0, full=True)
    script.bad("b", "rate limited", status=429, retry_after_s=20.0, full=True)
    choice = script.choose()
    assert (choice.member, choice.why) == (None, "rate limited")
    assert choice.wait_s is not None
    assert 19.9 < choice.wait_s <= 20.0
    assert script.ranking.down_reason("m", script.now) == "rate limited"


def test_failed_probes_count_however_close_they_are() -> None:
    script = Script({"a": {}})
    script.probe("a")
    for _ in range(3):
        script.ranking.probed(script.member("a"), None, Failure("connect"), script.now)
    assert script.ranking.down_reason("m", script.now) == "connect"


def test_the_first_of_all_rate_limits_only_when_nobody_said_anything_else() -> None:
    script = Script({"a": {}, "b": {}, "c": {"models": {"other": "other"}}})

    def limit(**reasons: str) -> RateLimit | None:
        return script.ranking.rate_limit("m", reasons, T0 + 1)

    script.now = T0
    script.bad("a", "rate limited", status=429, retry_after_s=30.9, full=True)
    assert limit() is None  # b has room
    assert limit(b="connect") == RateLimit(30.0, False)  # b could not be asked
    script.bad("b", "rate limited", status=429, retry_after_s=20.8, in_ms=True, full=True)
    assert limit() == RateLimit(20.0, True)
    script.bad("b", "status 503", status=503, retry_after_s=60.0, full=True)
    assert limit() is None  # what b says is no rate limit
    script.probe("b", failure=Failure("connect"), times=3)
    assert limit() == RateLimit(30.0, False)
    assert script.ranking.rate_limit("other", {}, T0 + 1) is None
    # A wait of no time at all is over, and the last word is still 429.
    script.member("a").limited_until_s = T0
    assert limit(a="rate limited") == RateLimit(0.0, False)


def test_limits_without_a_word_get_longer() -> None:
    script = Script({"a": {}})
    for pause_s in (1.0, 2.0, 4.0):
        script.bad("a", "rate limited", status=429, full=True)
        assert abs(script.member("a").limited_until_s - script.now - pause_s) < 1e-6
        script.now = script.member("a").limited_until_s


def test_an_open_circuit_is_never_asked_even_when_it_is_the_last() -> None:
    script = Script({"a": {}}, breaker={"least": 5})
    script.bad("a", times=5)
    assert script.choose() == Choice(None, why="reset"), "not only that its circuit is open, but why"
    assert script.ranking.down_reason("m", script.now) == "reset"
    script.now += 5.0
    trial = script.choose()
    assert trial.ticket is not None
    assert trial.ticket.trial
    assert script.choose().member is None, "one at a time"


def test_without_an_open_circuit_the_decision_fails_open() -> None:
    script = Script({"a": {}, "b": {}})
    script.bad("a", times=3)
    script.bad("b", times=3)
    assert script.ranking.down_reason("m", script.now) == "reset"
    assert chosen(script.choose()) in ("a", "b")


def test_why_nobody_can_be_asked_is_told_however_long_it_lasts() -> None:
    script = Script({"a": {}, "b": {}}, breaker={"least": 5, "open_for": "5m"})
    script.bad("a", "credentials", 5, status=401)
    script.bad("b", "connect", 5)
    assert script.choose() == Choice(None, why="credentials"), "what only the operator can mend, first"
    assert script.ranking.down_reason("m", script.now) == "credentials"
    other = Script({"a": {}, "b": {"models": {"small": "small"}}}, breaker={"least": 5, "open_for": "5m"})
    other.bad("a", "timeout", 5)
    other.bad("b", "credentials", 5, status=401)
    assert other.ranking.down_reason("m", other.now) == "timeout", "b has no part in this model"


def test_good_probes_bring_an_unreachable_one_back_before_its_time() -> None:
    script = Script({"a": {}}, breaker={"least": 5, "open_for": "5m"})
    script.bad("a", "connect", times=5)
    assert script.choose().member is None
    script.probe("a", times=4)
    assert chosen(script.choose()) == "a"


def test_good_probes_do_not_free_one_that_answers_every_request_with_500() -> None:
    script = Script({"a": {}}, breaker={"least": 5, "open_for": "5m"})
    script.bad("a", "status 500", times=5, status=500)
    script.probe("a", times=10)
    assert script.choose().member is None


def test_failed_probes_open_the_circuit_of_an_idle_upstream() -> None:
    script = Script({"a": {}, "b": {}}, breaker={"least": 5})
    script.probe("a", None, Failure("connect"), times=6)
    assert script.member("a").state(script.now) == "open"
    assert script.member("b").state(script.now) == "closed"


def test_a_slow_preferred_upstream_is_ejected_comes_back_and_serves_when_alone() -> None:
    script = Script({"a": {"preference": 200}, "b": {}}, breaker={"slow_factor": 4, "least": 5})
    script.good("b", 0.1, 6)
    script.good("a", 1.0, 6)
    assert script.first() == "a"
    script.now += 1.0
    assert script.first() == "b"
    assert script.member("a").state(script.now) == "ejected"
    assert chosen(script.choose("b")) == "a", "slow is better than nobody"
    script.now += 5.1
    assert script.first() == "a"
    script.good("a", 0.1, 8)
    assert script.first() == "a"


def test_the_two_remaining_upstreams_are_not_ejected_for_being_the_same() -> None:
    script = Script({"a": {}, "b": {}})
    for _ in range(10):
        script.good("a", 1.0)
        script.good("b", 1.1)
        script.choose()
    assert {member.state(script.now) for member in script.ranking.members.values()} == {"closed"}


def test_an_overtaken_attempt_tells_that_it_took_longer() -> None:
    script = Script({"a": {}})
    script.good("a", 0.1, 9)
    ticket = script.member("a").circuit.admit(script.now)
    assert ticket is not None
    for _ in range(5):
        script.now += 1.0
        script.ranking.left(script.member("a"), LANE, ticket, 0.9, script.now)
    rtt_s = script.member("a").lanes[LANE].ttfb.rtt_s
    assert rtt_s is not None
    assert rtt_s > 0.25


def test_who_always_cuts_its_streams_gets_an_open_circuit() -> None:
    script = Script({"a": {}}, breaker={"least": 5})
    for _ in range(5):
        script.now += 0.1
        choice = script.choose()
        assert choice.member is not None
        assert choice.ticket is not None
        script.ranking.began(choice.member, LANE, 0.1, choice.ticket, script.now, whole=False)
        script.now += 0.001
        script.ranking.cut(choice.member, "reset", choice.ticket, script.now)
    assert script.member("a").health.loss_ratio == 0.5
    assert script.choose().why == "reset"


def test_a_trial_that_begins_a_stream_closes_the_circuit() -> None:
    script = Script({"a": {}}, breaker={"least": 5})
    script.bad("a", times=5)
    script.now += 5.0
    trial = script.choose()
    assert trial.member is not None
    assert trial.ticket is not None
    script.ranking.began(trial.member, LANE, 0.1, trial.ticket, script.now, whole=False)
    assert chosen(script.choose()) == "a", "others need not wait for the end of its stream"


def test_a_stale_connection_says_nothing() -> None:
    script = Script({"a": {}})
    script.bad("a", times=30, stale_connection=True)
    assert (script.member("a").state(script.now), script.member("a").health.count) == ("closed", 0)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["good", "slow", "bad", "full", "left", "cut", "probe", "dead"]),
            st.sampled_from([0.0, 0.05, 1.0, 6.0]),
        ),
        max_size=120,
    ),
    tried=st.lists(st.sampled_from(["a", "b", "c"]), max_size=3),
)
def test_whatever_happens_who_is_chosen_may_be_asked(steps: list[tuple[str, float]], tried: list[str]) -> None:
    script = Script({"a": {"preference": 150}, "b": {}, "c": {"cost": 3}})
    ranking = script.ranking
    for what, wait_s in steps:
        script.now += wait_s
        choice = script.choose(*tried)
        member, ticket = choice.member, choice.ticket
        if member is None:
            asked = [m for m in ranking.members.values() if m.name not in tried[-1:]]
            assert all(
                not m.circuit.would_admit(script.now) or script.now < m.limited_until_s or not m.is_up for m in asked
            )
            # Nothing holds a leave for ever: later somebody may be asked again.
            script.now += 400.0
            later = script.choose()
            assert later.member is not None
            assert later.ticket is not None
            later.member.circuit.abandoned(later.ticket)
            continue
        assert ticket is not None
        assert member.name not in tried[-1:]
        assert script.now >= member.limited_until_s
        match what:
            case "good" | "slow":
                ttfb_s = 0.1 if what == "good" else 3.0
                ranking.began(member, LANE, ttfb_s, ticket, script.now, whole=True)
            case "bad":
                ranking.failed(member, Failure("reset"), ticket, script.now)
            case "full":
                ranking.failed(member, Failure("rate limited", 429, full=True), ticket, script.now)
            case "left":
                ranking.left(member, LANE, ticket, 0.5, script.now)
            case "cut":
                ranking.began(member, LANE, 0.1, ticket, script.now, whole=False)
                ranking.cut(member, "reset", ticket, script.now)
            case "probe" | "dead":
                member.circuit.abandoned(ticket)
                ranking.probed(member, 0.01, Failure("connect") if what == "dead" else None, script.now)


def test_a_reload_keeps_what_is_known_of_unchanged_upstreams() -> None:
    script = Script({"a": {}, "b": {}})
    script.good("a", 0.3, 5)
    script.good("b", 0.1, 5)
    known = script.member("a")
    script.ranking.reconfigure(config({"a": {}, "b": {"cost": 7}, "c": {}}))
    assert script.member("a") is known
    assert script.member("b").health.count == 0
    assert script.first() == "a"
    script.ranking.reconfigure(config({"a": {}}, attempts=2))
    assert script.member("a") is not known, "other rules, other estimates"


def test_made_up_models_do_not_fill_the_memory() -> None:
    script = Script({"a": {}, "b": {}})
    for i in range(MAX_LANES + 50):
        script.good("a", 0.1, lane=(f"model-{i}", "stream"))
        script.choose(lane=(f"model-{i}", "stream"))
    assert len(script.member("a").lanes) == MAX_LANES
    assert len(script.ranking._ranked) == MAX_LANES
