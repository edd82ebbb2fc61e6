"""Ages, reports, backoff, batch size, log limit: on scripted time."""

from __future__ import annotations

import random

import pytest

from core.messages import MAX_AGE_S, MAX_SAMPLES_PER_REPORT, SampleReport, decode, encode
from probes.loglimit import LogLimit
from probes.report import Backoff, BatchSize, Moment, Outcome, SpooledSample, age_of, make_report, parse_retry_after


@pytest.mark.parametrize(
    ("taken", "now", "expected"),
    [
        (Moment("b1", 100.0, 5000.0), Moment("b1", 130.0, 9999.0), (30.0, "boot")),  # the wall clock was set: no matter
        (Moment("b1", 100.0, 5000.0), Moment("b2", 10.0, 5600.0), (600.0, "wall")),  # the host was started again
        (Moment("b1", 100.0, 5000.0), Moment("b2", 10.0, 4000.0), (0.0, "wall")),  # and its wall clock set back
        (Moment("b1", 100.0, 5000.0), Moment("b1", 99.9, 5000.0), (0.0, "boot")),
        (Moment("b1", 100.0, 0.0), Moment("b2", 10.0, 1e12), (MAX_AGE_S, "wall")),
    ],
)
def test_age(taken: Moment, now: Moment, expected: tuple[float, str]) -> None:
    assert age_of(taken, now) == expected


def test_report_is_accepted_by_the_wire_contract() -> None:
    taken = Moment("b", 100.0, 5000.0)
    samples = [
        SpooledSample(1, "m1", "ping", 4, Outcome(0.0123, stamp="kernel"), taken),
        SpooledSample(2, "m2", "web", 6, Outcome(None, "x" * 300, load_ratio=0.5), taken),
    ]
    report = make_report("ab" * 16, samples, Moment("b", 101.5, 5001.5))
    assert decode(SampleReport, encode(report)) == report
    assert [s.age_s for s in report.samples] == [1.5, 1.5]
    assert report.samples[0].stamp == "kernel"
    assert report.samples[1].loss == "x" * 80
    assert report.wall_s == 5001.5


def test_backoff_grows_with_full_jitter_and_is_capped() -> None:
    backoff = Backoff(random.Random(1))
    waits = [backoff.failed() for _ in range(40)]
    assert all(0.05 <= wait <= min(30.0, 0.5 * 2**i) for i, wait in enumerate(waits))
    assert max(waits[8:]) > 20
    assert min(waits[8:]) < 10
    backoff.succeeded()
    assert backoff.failed() <= 0.5


def test_backoff_honours_retry_after_within_reason() -> None:
    backoff = Backoff(random.Random(1))
    assert backoff.failed(7.0) >= 7.0
    assert backoff.failed(1e9) == 300.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("12", 12.0), (" 3 ", 3.0), (None, None), ("", None), ("Fri, 31 Dec 1999 23:59:59 GMT", None), ("-1", None),
     ("9" * 50, None), ("٣", None)],
)  # fmt: skip
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value) == seconds


def test_batch_size_halves_to_one_and_grows_again() -> None:
    size = BatchSize()
    assert size.count == MAX_SAMPLES_PER_REPORT
    halvings = 0
    while not size.refused():
        halvings += 1
    assert size.count == 1
    assert halvings == 10
    for _ in range(20):
        size.accepted()
    assert size.count == MAX_SAMPLES_PER_REPORT


def test_log_limit_lets_one_through_and_counts_the_others() -> None:
    limit = LogLimit(60.0, most_keys=3)
    assert limit.pass_through("a", 0.0) == 0
    assert [limit.pass_through("a", t) for t in (1.0, 59.9)] == [None, None]
    assert limit.pass_through("a", 60.0) == 2
    assert limit.pass_through("b", 60.0) == 0
    for name in "cdefgh":
        assert limit.pass_through(name, 61.0) == 0
