"""Messages on the wire: what is written can be read, and whatever else arrives is a MessageError and nothing else."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.config import HttpCheck, IcmpCheck, TcpCheck
from core.errors import MessageError
from core.messages import (
    MAX_AGE_S,
    MAX_RTT_S,
    MAX_SAMPLES_PER_REPORT,
    MAX_STAMPS_PER_REPORT,
    MirrorAdmin,
    PathSample,
    ReportAck,
    ReportedSample,
    ReportedStamp,
    SampleReport,
    StampAck,
    StampReport,
    SyncStamp,
    Target,
    TargetList,
    decode,
    encode,
)

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
times = st.floats(min_value=-1e12, max_value=1e12)
rtts = st.none() | st.floats(min_value=0, max_value=MAX_RTT_S)
loads = st.none() | st.floats(min_value=0, max_value=1000)
sequences = st.integers(min_value=1, max_value=(1 << 62) - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
durations = st.floats(min_value=0.1, max_value=3600)

reported = st.builds(
    ReportedSample, sequence=sequences, mirror=names, check=names, family=st.sampled_from([4, 6]), rtt_s=rtts,
    age_s=st.floats(min_value=0, max_value=MAX_AGE_S), loss=text, stamp=st.sampled_from(["kernel", "user"]),
    age_by=st.sampled_from(["boot", "wall"]), load_ratio=loads,
)  # fmt: skip
checks = st.one_of(
    st.builds(lambda i: IcmpCheck.model_construct(kind="icmp", interval=i, timeout=0.1, payload_size=24), durations),
    st.builds(lambda i: TcpCheck.model_construct(kind="tcp", interval=i, timeout=0.1, port=80), durations),
    st.builds(lambda i: HttpCheck.model_construct(
        kind="http", interval=i, timeout=0.1, port=80, tls=False, path="/", host="", expect=[200], verify=True), durations),
)  # fmt: skip
messages = st.one_of(
    reported,
    st.builds(
        SampleReport, incarnation=st.from_regex(r"[0-9a-f]{16,64}", fullmatch=True), wall_s=times,
        samples=st.lists(reported, max_size=5),
    ),
    st.builds(ReportAck, acked=st.integers(min_value=0, max_value=1 << 62)),
    st.builds(
        PathSample, agent=names, region=names, mirror=names, check=names, family=st.sampled_from([4, 6]),
        sequence=sequences, rtt_s=rtts, taken_s=times, loss=text, stamp=st.sampled_from(["kernel", "user"]),
        load_ratio=loads, quarantined=st.booleans(), incarnation=text,
    ),
    st.builds(
        SyncStamp, mirror=names, tree=names, version=st.integers(min_value=0, max_value=1 << 62), root_hash=text,
        lag_s=times, state=st.sampled_from(["fresh", "syncing", "stalled", "empty"]), taken_s=times,
    ),
    st.builds(MirrorAdmin, mirror=names, drained=st.booleans(), by=text, since_s=times),
    st.builds(
        TargetList, etag=text, targets=st.lists(st.builds(
            Target, mirror=names, check=names, family=st.sampled_from([4, 6]),
            address=st.ip_addresses().map(str), host=text, how=checks), max_size=3),
    ),
)  # fmt: skip

SAMPLE: dict[str, Any] = {"sequence": 1, "mirror": "m", "check": "c", "family": 4, "rtt_s": 0.01, "age_s": 0.5}
REPORT: dict[str, Any] = {"incarnation": "0" * 16, "wall_s": 1e9, "samples": [SAMPLE]}


@given(messages)
def test_round_trip(message: Any) -> None:
    data = encode(message)
    assert decode(type(message), data) == message
    assert decode(type(message), data.decode()) == message
    json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_messages_are_frozen() -> None:
    sample = decode(ReportedSample, json.dumps(SAMPLE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.sequence = 2  # type: ignore[misc]


def test_limits_are_inclusive() -> None:
    for key, value in (("sequence", (1 << 62) - 1), ("rtt_s", 0), ("rtt_s", MAX_RTT_S), ("age_s", MAX_AGE_S),
                       ("loss", "x" * 80), ("load_ratio", 1000), ("mirror", "a" * 63)):  # fmt: skip
        assert getattr(decode(ReportedSample, json.dumps({**SAMPLE, key: value})), key) == value
    many = {**REPORT, "samples": [{**SAMPLE, "sequence": i + 1} for i in range(MAX_SAMPLES_PER_REPORT)]}
    assert len(decode(SampleReport, json.dumps(many)).samples) == MAX_SAMPLES_PER_REPORT


def test_too_many_samples() -> None:
    many = {**REPORT, "samples": [SAMPLE] * (MAX_SAMPLES_PER_REPORT + 1)}
    with pytest.raises(MessageError, match="not a SampleReport: samples: List should have at most 2000 items"):
        decode(SampleReport, json.dumps(many))


@pytest.mark.parametrize(
    ("key", "raw"),
    [
        ("sequence", "0"), ("sequence", "-1"), ("sequence", str(1 << 62)), ("sequence", "9" * 5000), ("sequence", "1.5"),
        ("sequence", '"1"'), ("sequence", "true"), ("sequence", "null"), ("sequence", "NaN"), ("sequence", "1e400"),
        ("mirror", '""'), ("mirror", '"UP"'), ("mirror", '"a b"'), ("mirror", '"' + "a" * 64 + '"'), ("mirror", '"a\\n"'),
        ("mirror", "1"), ("mirror", '"\\u0000"'), ("mirror", '"../x"'), ("mirror", "[]"),
        ("family", "5"), ("family", '"4"'), ("family", "null"),
        ("rtt_s", "-0.001"), ("rtt_s", "3600.1"), ("rtt_s", "NaN"), ("rtt_s", "Infinity"), ("rtt_s", "-Infinity"),
        ("rtt_s", "1e999"), ("rtt_s", '"0.1"'), ("rtt_s", "true"), ("rtt_s", "{}"), ("rtt_s", "1" + "0" * 400),
        ("age_s", "-1"), ("age_s", "NaN"), ("age_s", str(MAX_AGE_S + 1)), ("age_s", "null"), ("age_s", "false"),
        ("loss", '"' + "x" * 81 + '"'), ("loss", "null"), ("loss", "5"), ("loss", '"\\ud800"'),
        ("stamp", '"xdp"'), ("age_by", '"sun"'), ("load_ratio", "-1"), ("load_ratio", "1001"), ("load_ratio", "NaN"),
        ("extra", "1"), ("__class__", '"x"'),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_a_sample_out_of_form_is_refused(key: str, raw: str) -> None:
    data = json.dumps({**REPORT, "samples": [{**SAMPLE, key: "@"}]}).replace('"@"', raw)
    with pytest.raises(MessageError, match="not a SampleReport") as caught:
        decode(SampleReport, data)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("incarnation", "0" * 15), ("incarnation", "0" * 65), ("incarnation", "G" * 16), ("incarnation", 10**16),
        ("incarnation", "0" * 16 + "\n"), ("wall_s", None), ("wall_s", "now"), ("wall_s", float("nan")),
        ("wall_s", float("inf")), ("wall_s", True), ("samples", None), ("samples", {}), ("samples", "x"), ("samples", [1]),
        ("samples", [None]), ("samples", [[]]), ("more", 1),
    ],
)  # fmt: skip
def test_a_report_out_of_form_is_refused(key: str, value: Any) -> None:
    with pytest.raises(MessageError, match="not a SampleReport"):
        decode(SampleReport, json.dumps({**REPORT, key: value}))


@pytest.mark.parametrize(
    "data",
    [
        b"", b" ", b"null", b"1", b'"x"', b"[]", b"{}", b"{", b"\xff\xfe", b"\x00" * 100, b"[" * 1_000_000,
        b'{"a":' * 1_000_000, b'{"samples":' + b"[" * 1_000_000, b"9" * 1_000_000, b'"' + b"\\u0000" * 100_000 + b'"',
        b'{"incarnation":"' + b"0" * 16 + b'","wall_s":1,"samples":[],"samples":[1]}', "\ud800", "x",
        b"{" + b",".join(b'"k%d":0' % i for i in range(50_000)) + b"}", b'{"' + b"k" * 1_000_000 + b'":0}',
        json.dumps(REPORT).encode() + b"{}", json.dumps(REPORT).encode("utf-16"),
    ],
    ids=lambda value: repr(value)[:20],
)  # fmt: skip
def test_hostile_bodies_are_message_errors_with_a_short_text(data: bytes | str) -> None:
    for kind in (SampleReport, TargetList, PathSample, MirrorAdmin, SyncStamp, ReportAck, StampReport, StampAck):
        with pytest.raises(MessageError, match=f"not a {kind.__name__}") as caught:
            decode(kind, data)
        assert len(str(caught.value)) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*REPORT, *SAMPLE, "targets", "etag", "how", "x"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(
    json_values,
    st.sampled_from([SampleReport, TargetList, PathSample, MirrorAdmin, SyncStamp, ReportAck, StampReport, StampAck]),
)
def test_any_json_is_a_message_or_a_message_error(value: Any, kind: type[Any]) -> None:
    try:
        message = decode(kind, json.dumps(value))
    except MessageError:
        return
    assert isinstance(message, kind)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode(SampleReport, data)


def test_a_time_that_is_no_number_is_refused_everywhere() -> None:
    # A lag of NaN would compare as fresh with every limit.
    stamp = {"mirror": "m", "tree": "t", "version": 1, "root_hash": "", "lag_s": 0.0, "state": "fresh", "taken_s": 0.0}
    assert decode(SyncStamp, json.dumps(stamp)).lag_s == 0.0
    for key in ("lag_s", "taken_s"):
        with pytest.raises(MessageError):
            decode(SyncStamp, json.dumps({**stamp, key: float("nan")}))
    with pytest.raises(MessageError):
        decode(MirrorAdmin, '{"mirror":"m","drained":false,"by":"x","since_s":NaN}')


def test_a_stamp_that_was_stored_before_nodes_sent_them_is_still_read() -> None:
    old = '{"mirror":"m","tree":"t","version":1,"root_hash":"","lag_s":0.5,"state":"stalled","taken_s":9.0}'
    assert decode(SyncStamp, old) == SyncStamp("m", "t", 1, "", 0.5, "stalled", 9.0, busy=False, node="")


stamps = st.builds(
    ReportedStamp, tree=names, version=st.integers(0, (1 << 62) - 1),
    root_hash=st.from_regex(r"[0-9a-f]{0,128}", fullmatch=True), lag_s=st.floats(0, MAX_AGE_S),
    state=st.sampled_from(["fresh", "syncing", "stalled", "empty"]), busy=st.booleans(), age_s=st.floats(0, MAX_AGE_S),
)  # fmt: skip


@given(st.builds(StampReport, node=names, wall_s=times, stamps=st.lists(stamps, max_size=3)))
def test_a_stamp_report_survives_the_wire(report: StampReport) -> None:
    assert decode(StampReport, encode(report)) == report


def test_a_report_of_too_many_stamps_is_refused() -> None:
    one = {"tree": "t", "version": 1, "root_hash": "", "lag_s": 0, "state": "fresh", "busy": False, "age_s": 0}
    report = {"node": "n", "wall_s": 0.0, "stamps": [one] * (MAX_STAMPS_PER_REPORT + 1)}
    with pytest.raises(MessageError, match="not a StampReport: stamps: List should have at most 1000 items"):
        decode(StampReport, json.dumps(report))
