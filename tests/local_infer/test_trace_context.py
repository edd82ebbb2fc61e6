"""W3C Trace Context: what is taken of a client's header, what is written, and which traces are recorded."""

from __future__ import annotations

import pytest

from local_infer.telemetry.call import place_of
from local_infer.telemetry.trace_context import Parent, Trace, is_sampled, read_parent, write_parent

TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
TEXT = f"00-{TRACE:032x}-{SPAN:016x}-01"


def test_a_good_one_comes_back() -> None:
    assert read_parent({"traceparent": TEXT}) == Parent(TRACE, SPAN, True)
    assert read_parent({"traceparent": TEXT[:-1] + "0"}) == Parent(TRACE, SPAN, False)
    assert write_parent(TRACE, SPAN, True) == TEXT
    # Versions to come may say more; of flags only the first bit is known.
    assert read_parent({"traceparent": "01" + TEXT[2:-2] + "03-more"}) == Parent(TRACE, SPAN, True)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", TEXT.upper(), TEXT[:-1], TEXT + "-x", "ff" + TEXT[2:], TEXT.replace("-01", "-0g"),
        f"00-{0:032x}-{SPAN:016x}-01", f"00-{TRACE:032x}-{0:016x}-01", "00-" + "1" * 100_000,
    ],
)  # fmt: skip
def test_what_is_none(text: str) -> None:
    assert read_parent({"traceparent": text}) is None


def test_state_is_handed_on_or_left_out() -> None:
    good = read_parent({"traceparent": TEXT, "tracestate": "a=1,b=2"})
    long = read_parent({"traceparent": TEXT, "tracestate": "a=" + "1" * 600})
    assert good is not None
    assert long is not None
    assert (good.state, long.state) == ("a=1,b=2", "")
    trace = Trace(TRACE, 5, SPAN, True, good.state, lambda: 1, print)
    assert trace.headers_for(7) == {"traceparent": f"00-{TRACE:032x}-{7:016x}-01", "tracestate": "a=1,b=2"}


def test_share_of_traces() -> None:
    assert not is_sampled(0, 0.0)
    assert is_sampled((1 << 128) - 1, 1.0)
    # As TraceIdRatioBased: the lower half of the id decides.
    assert is_sampled(0xFFFF << 64 | (1 << 62), 0.5)
    assert not is_sampled(3 << 62, 0.5)


def test_places() -> None:
    assert place_of("https://api.example/v1") == ("api.example", 443)
    assert place_of("http://[::1]:81/v1") == ("::1", 81)
    assert place_of("http://a:99999/v1") == ("a", 0)
