"""The breaker's table row by row, then against a slow and obvious model; budgets never give more than they may."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.config_infer import Breaker
from local_infer.upstreams.circuit import (
    Budget,
    Circuit,
    CircuitState,
    Quantile,
    Ticket,
    Window,
    find_outliers,
    hedge_after_s,
)

RULES = Breaker.model_validate(
    {"error_share": "50%", "least": 4, "window": "10s", "open_for": "5s", "open_most": "20s"}
)


def admitted(circuit: Circuit, now: float) -> Ticket:
    ticket = circuit.admit(now)
    assert ticket is not None
    return ticket


def opened(at_s: float = 100.0) -> Circuit:
    circuit = Circuit(RULES)
    for _ in range(4):
        circuit.failed(admitted(circuit, at_s), at_s)
    assert circuit.state(at_s) is CircuitState.OPEN
    return circuit


def test_closed_counts_and_opens_above_the_share_only() -> None:
    circuit = Circuit(RULES)
    for i in range(20):
        ticket = admitted(circuit, 100.0)
        if i % 2:
            assert not circuit.failed(ticket, 100.0)
        else:
            circuit.succeeded(ticket, 100.0)
    assert circuit.state(100.0) is CircuitState.CLOSED
    assert circuit.failed(admitted(circuit, 100.0), 100.0)
    assert circuit.state(100.0) is CircuitState.OPEN
    assert circuit.admit(104.9) is None


def test_few_requests_open_nothing() -> None:
    circuit = Circuit(RULES)
    assert [circuit.failed(admitted(circuit, 1.0), 1.0) for _ in range(3)] == [False] * 3
    # The three are out of the window by now.
    assert not circuit.failed(admitted(circuit, 20.0), 20.0)


def test_half_open_lets_one_trial_through_and_closes_on_its_success() -> None:
    circuit = opened()
    assert circuit.state(105.0) is CircuitState.HALF_OPEN
    trial = admitted(circuit, 105.0)
    assert trial.trial
    assert circuit.admit(105.0) is None
    circuit.succeeded(trial, 106.0)
    assert circuit.state(106.0) is CircuitState.CLOSED
    assert not circuit.failed(admitted(circuit, 106.0), 106.0), "the count begins anew"


def test_a_failed_trial_doubles_the_time_up_to_the_longest() -> None:
    circuit, now = opened(), 100.0
    for expected_s in (5.0, 10.0, 20.0, 20.0):
        assert circuit.open_until_s == now + expected_s
        now += expected_s
        assert circuit.failed(admitted(circuit, now), now)


def test_it_is_five_seconds_again_after_a_good_time() -> None:
    circuit = opened(100.0)
    circuit.failed(admitted(circuit, 105.0), 105.0)
    circuit.succeeded(admitted(circuit, 115.0), 115.0)
    for _ in range(4):
        circuit.failed(admitted(circuit, 200.0), 200.0)
    assert circuit.open_until_s == 205.0


def test_an_abandoned_trial_makes_room_for_the_next() -> None:
    circuit = opened()
    circuit.abandoned(admitted(circuit, 106.0))
    assert admitted(circuit, 106.0).trial


def test_late_outcomes_of_earlier_requests_move_nothing() -> None:
    circuit = Circuit(RULES)
    early = [admitted(circuit, 100.0) for _ in range(6)]
    for ticket in early[:4]:
        circuit.failed(ticket, 100.0)
    circuit.succeeded(early[4], 106.0)
    assert circuit.state(106.0) is CircuitState.HALF_OPEN
    trial = admitted(circuit, 106.0)
    assert not circuit.failed(early[5], 106.0)
    circuit.abandoned(early[5])
    assert circuit.admit(106.0) is None, "the trial is still under way"
    circuit.succeeded(trial, 106.0)
    assert circuit.state(106.0) is CircuitState.CLOSED


def test_news_from_outside_shortens_the_wait() -> None:
    circuit = opened()
    circuit.retry_now(101.0)
    assert circuit.state(101.0) is CircuitState.HALF_OPEN
    closed = Circuit(RULES)
    closed.retry_now(1.0)
    assert closed.state(1.0) is CircuitState.CLOSED


class BreakerMachine(RuleBasedStateMachine):
    """The breaker beside a model that keeps every outcome in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit(RULES)
        self.now = 1000.0
        self.state = CircuitState.CLOSED
        self.open_until_s = 0.0
        self.outcomes: list[tuple[int, bool]] = []
        self.under_way: list[tuple[Ticket, int]] = []
        self.period = 0
        self.trial: Ticket | None = None

    def _slot(self) -> int:
        return int(self.now)  # a window of 10 s in 10 slots

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 4.0, 9.0, 25.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.state is CircuitState.OPEN and self.now >= self.open_until_s:
            self.state = CircuitState.HALF_OPEN

    @rule()
    def ask(self) -> None:
        allowed = self.state is CircuitState.CLOSED or (self.state is CircuitState.HALF_OPEN and self.trial is None)
        assert self.circuit.would_admit(self.now) is allowed
        ticket = self.circuit.admit(self.now)
        assert (ticket is not None) is allowed
        if ticket is not None:
            assert ticket.trial is (self.state is CircuitState.HALF_OPEN)
            self.trial = ticket if ticket.trial else self.trial
            self.under_way.append((ticket, self.period))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), outcome=st.sampled_from(["good", "bad", "bad", "left"]))
    def finish(self, data: st.DataObject, outcome: str) -> None:
        ticket, period = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        current = period == self.period
        trial = current and ticket is self.trial
        if outcome == "left":
            self.circuit.abandoned(ticket)
            self.trial = None if trial else self.trial
        elif outcome == "good":
            self.circuit.succeeded(ticket, self.now)
            if trial:
                self._move(CircuitState.CLOSED)
            elif current:
                self.outcomes.append((self._slot(), True))
        else:
            did_open = self.circuit.failed(ticket, self.now)
            assert did_open is self._expect_failure(current, trial)

    def _expect_failure(self, current: bool, trial: bool) -> bool:
        if not current:
            return False
        if not trial:
            self.outcomes.append((self._slot(), False))
            live = [good for slot, good in self.outcomes if slot > self._slot() - 10]
            if len(live) < RULES.least or live.count(False) <= RULES.error_share * len(live):
                return False
        self._move(CircuitState.OPEN)
        assert self.circuit.open_until_s is not None
        self.open_until_s = self.circuit.open_until_s
        assert RULES.open_for <= self.open_until_s - self.now <= RULES.open_most
        return True

    def _move(self, state: CircuitState) -> None:
        self.state, self.trial = state, None
        self.outcomes.clear()
        self.period += 1

    @invariant()
    def same_state(self) -> None:
        assert self.circuit.state(self.now) is self.state


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


# --- windows and budgets ------------------------------------------------------------------------------------------------


def test_a_window_forgets_by_tenths() -> None:
    window = Window(10.0)
    window.add(0, 100.0)
    window.add(1, 105.0)
    assert window.totals(109.9) == (1, 1)
    assert window.totals(110.0) == (0, 1)
    assert window.totals(500.0) == (0, 0)


@settings(max_examples=150, deadline=None)
@given(
    share=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    floor=st.sampled_from([0, 3]),
    steps=st.lists(st.tuples(st.sampled_from(["request", "try"]), st.sampled_from([0.0, 0.1, 0.7, 3.0])), max_size=150),
)
def test_a_budget_gives_its_share_no_more_and_no_less(share: float, floor: int, steps: list[tuple[str, float]]) -> None:
    budget, now = Budget(share, 10.0, floor), 1000.0
    requests: list[int] = []
    taken: list[int] = []
    for what, wait_s in steps:
        now += wait_s
        slot = int(now)
        if what == "request":
            budget.count_request(now)
            requests.append(slot)
            continue
        live_requests = sum(one > slot - 10 for one in requests)
        live_taken = sum(one > slot - 10 for one in taken)
        limit = max(floor if share else 0, share * live_requests)
        given_ = budget.take(now)
        assert given_ is (live_taken + 1 <= limit)
        if given_:
            taken.append(slot)


def test_a_fifth_of_the_requests_may_be_retries_in_the_long_run() -> None:
    budget, made = Budget(0.2, 10.0, 3), 0
    for i in range(10_000):
        budget.count_request(i * 0.01)
        made += budget.take(i * 0.01)
    assert 0.19 < made / 10_000 <= 0.21


# --- outliers and hedges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ({}, set()),
        ({"a": 9.0}, set()),
        ({"a": 0.1, "b": 0.39}, set()),
        ({"a": 0.1, "b": 0.41}, {"b"}),
        ({"a": 0.1, "b": 0.1, "c": 2.0}, {"c"}),
        ({"a": 0.1, "b": 2.0, "c": 2.0}, {"b", "c"}),
        ({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.9}, {"d"}),
    ],
)
def test_outliers(times_s: dict[str, float], expected: set[str]) -> None:
    assert find_outliers(times_s, 4.0) == expected


@given(times_s=st.dictionaries(st.text(max_size=3), st.floats(0.001, 1000), min_size=1, max_size=8))
def test_the_fastest_is_never_an_outlier(times_s: dict[str, float]) -> None:
    outliers = find_outliers(times_s, 1.5)
    assert min(times_s, key=lambda name: times_s[name]) not in outliers


def test_ejection_ends_and_lasts_longer_the_second_time() -> None:
    circuit = Circuit(RULES)
    assert not circuit.is_ejected(0.0)
    circuit.eject(100.0)
    assert circuit.is_ejected(104.9)
    assert not circuit.is_ejected(105.0)
    assert circuit.would_admit(101.0), "slow is better than nobody"
    circuit.eject(106.0)
    assert circuit.ejected_until_s == 116.0
    circuit.eject(500.0)
    assert circuit.ejected_until_s == 505.0


def test_p95_by_hand() -> None:
    spread = Quantile()
    for i in range(19):
        spread.add(float(i))
    assert spread.p95_s() is None
    spread.add(19.0)
    assert spread.p95_s() == 18.0  # nearest rank: the 19th of 20
    for _ in range(200):
        spread.add(1.0)
    assert spread.p95_s() == 1.0


def test_when_a_hedge_is_due() -> None:
    assert hedge_after_s(None, 0.0, 5.0) is None
    assert hedge_after_s(6.0, 0.0, 5.0) is None
    assert hedge_after_s(0.5, 0.2, 5.0) == pytest.approx(0.3)
    assert hedge_after_s(0.5, 0.9, 5.0) == 0.0
