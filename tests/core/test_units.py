"""Times, sizes and shares: what is read, what is refused, and that what is written can be read again."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from core.units import Duration, Share, Size, format_duration, parse_duration, parse_share, parse_size

GOOD_DURATIONS = [
    ("250ms", 0.25),
    ("30s", 30.0),
    ("1h30m", 5400.0),
    ("0s", 0.0),
    ("1.5h", 5400.0),
    ("2us", 2e-6),
    ("1w", 604800.0),
    ("1d12h", 129600.0),
    ("1m500ms", 60.5),
]
BAD_DURATIONS = [
    "", " ", "5", "5.0", "-5s", "+5s", "5 s", " 5s", "5s ", "5s\n", "5S", "5sec", "s", "5s3", ".5s", "5.s", "1e3s", "infs",
    "inf", "nan", "nans", "٣s", "５s", "5ſ", "1_000s", "0x5s", "9" * 400 + "s", "9" * 5000 + "s", "0." + "1" * 5000 + "s",
    5, 5.0, True, None, [], {}, b"5s", math.inf, math.nan,
]  # fmt: skip

GOOD_SIZES = [("0B", 0), ("1B", 1), ("64MiB", 64 << 20), ("1.5KiB", 1536), ("4kB", 4000), ("2GB", 2 * 10**9),
              ("9007199254740993B", 9007199254740993)]  # fmt: skip
BAD_SIZES = [
    "", "5", "-5B", "5 B", "5B\n", "5b", "5K", "5MIB", "1.5B", "0.0001KiB", "٣B", "infB", "nanB", "1e3B", "9" * 400 + "B",
    "9" * 5000 + "GiB", 5, 5.0, True, None, [],
]  # fmt: skip

GOOD_SHARES = [("0%", 0.0), ("10%", 0.1), ("100%", 1.0), ("0.1%", 0.001), ("12.5%", 0.125)]
BAD_SHARES = [
    "", "10", "0.1", "-1%", "101%", "100.0001%", "10 %", "10%\n", "٣%", "nan%", "inf%", "1e1%", "9" * 5000 + "%",
    0.1, 10, True, None,
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), GOOD_DURATIONS)
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(("text", "size_bytes"), GOOD_SIZES)
def test_size_is_read_exactly(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(("text", "ratio"), GOOD_SHARES)
def test_share_is_read(text: str, ratio: float) -> None:
    assert parse_share(text) == ratio


@pytest.mark.parametrize("text", BAD_DURATIONS, ids=lambda v: repr(v)[:20])
def test_duration_is_refused_with_advice(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a time: write a number with a unit") as caught:
        parse_duration(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", BAD_SIZES, ids=lambda v: repr(v)[:20])
def test_size_is_refused_with_advice(text: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a size: write a (whole )?number") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("text", BAD_SHARES, ids=lambda v: repr(v)[:20])
def test_share_is_refused_with_advice(text: Any) -> None:
    with pytest.raises(ValueError, match="is not a share: write a percentage") as caught:
        parse_share(text)
    assert len(str(caught.value)) < 250


class _Model(BaseModel):
    duration: Duration = 1
    size: Size = 4 << 20
    share: Share = 0.05


def test_numeric_defaults_are_written_with_a_unit_and_read_back() -> None:
    # 4 MiB needs seven digits: `%g` would write 4.1943e+06B, which is another number and cannot be read.
    texts = _Model().model_dump()
    assert texts == {"duration": "1s", "size": "4194304B", "share": "5%"}
    assert _Model.model_validate(texts) == _Model()


@given(
    st.floats(min_value=0, max_value=1e9, allow_subnormal=False).filter(lambda s: s == 0 or s >= 1e-9),
    st.integers(min_value=0, max_value=1 << 50),
    st.floats(min_value=0, max_value=1).filter(lambda s: s == 0 or s >= 1e-9),
)
def test_round_trip(seconds: float, size_bytes: int, ratio: float) -> None:
    model = _Model.model_construct(duration=seconds, size=size_bytes, share=ratio)
    assert _Model.model_validate(model.model_dump()) == model
    assert _Model.model_validate_json(model.model_dump_json()) == model


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_share):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value >= 0
        assert math.isfinite(value)


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.binary()))
def test_a_model_refuses_what_has_no_unit(value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        _Model.model_validate({"duration": value, "size": value, "share": value})
    assert len(caught.value.errors()) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0008, "0.8 ms"), (0, "0.0 ms"), (12.34, "12.3 s"), (59.96, "60.0 s"), (245, "4 m 5 s"), (3599.6, "1 h 0 m"),
        (10920, "3 h 2 m"), (200000, "2 d 7 h"), (-0.5, "-500.0 ms"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
