"""The HTTP head parser, the request, and load reports: whole, byte by byte, and hostile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import MessageError
from probes.http import MAX_HEAD_BYTES, Head, HeadParser, encode_request, host_names, parse_load

VECTORS = {
    "plain": (
        b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Length: 2\r\n\r\n",
        Head(200, {"server": "x", "content-length": "2"}),
    ),
    "no reason": (b"HTTP/1.1 204\r\n\r\n", Head(204)),
    "empty reason": (b"HTTP/1.0 404 \r\n\r\n", Head(404)),
    "bare LF": (b"HTTP/1.1 200 OK\nA: b\n\n", Head(200, {"a": "b"})),
    "mixed ends": (b"HTTP/1.1 200 OK\r\nA: b\n\r\n", Head(200, {"a": "b"})),
    "first of repeated": (b"HTTP/1.1 200 OK\r\nA: 1\r\na:\t2 \r\n\r\n", Head(200, {"a": "1"})),
    "interim": (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", Head(200)),
    "switching": (b"HTTP/1.1 101 Switching\r\n\r\n", Head(101)),
    "not ASCII": (b"HTTP/1.1 200 \xc3\xa9\r\nA: \xe9\r\n\r\n", Head(200, {"a": "\xe9"})),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vectors_whole_byte_by_byte_and_with_a_tail(name: str) -> None:
    data, expected = VECTORS[name]
    assert HeadParser().feed(data) == expected
    assert HeadParser().feed(data + b"<html>\r\n\r\n") == expected
    parser = HeadParser()
    assert not parser.started
    heads = [parser.feed(bytes([byte])) for byte in data]
    assert heads[:-1] == [None] * (len(data) - 1)
    assert heads[-1] == expected
    assert parser.started


BAD = {
    "other protocol": b"SSH-2.0-OpenSSH",
    "a TLS alert": b"\x15\x03\x01\x00\x02\x02\x46",
    "HTTP/2 preface": b"HTTP/2 200\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 099": b"HTTP/1.1 099 OK\r\n\r\n",
    "space in a field name": b"HTTP/1.1 200 OK\r\nBad name: x\r\n\r\n",
    "folded line": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "control character": b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n",
    "too many lines": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nA: " + b"x" * MAX_HEAD_BYTES,
    "endless interim": b"HTTP/1.1 103 x\r\n\r\n" * (MAX_HEAD_BYTES // 18 + 1),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_http_response_is_refused(name: str) -> None:
    with pytest.raises(MessageError, match="bad response"):
        HeadParser().feed(BAD[name])


@given(st.binary(max_size=400))
def test_any_bytes_raise_nothing_else(data: bytes) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n"):
        try:
            head = HeadParser().feed(start + data)
        except MessageError as error:
            head, what = None, error.what
            assert what.startswith("bad response")
        assert head is None or 100 <= head.status <= 999


def test_request_in_full() -> None:
    assert encode_request("cdn.example:8080", "/a?b=c") == (
        b"GET /a?b=c HTTP/1.1\r\nHost: cdn.example:8080\r\nUser-Agent: nearpath-probe\r\nAccept: */*\r\n"
        b"Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize("host", ["", "a\r\nX: y", "a\n", "a b", "a/b", "é.example", "x" * 256])
def test_a_host_cannot_smuggle(host: str) -> None:
    with pytest.raises(MessageError, match="not a host"):
        encode_request(host, "/")


@pytest.mark.parametrize("path", ["", "a", "/a b", "/a\n", "/\r\nX: y", "/é"])
def test_a_path_cannot_smuggle(path: str) -> None:
    with pytest.raises(MessageError, match="not a path"):
        encode_request("a.example", path)


@pytest.mark.parametrize(
    ("host", "given_host", "port", "tls", "expected"),
    [
        ("cdn.example.", "", 80, False, ("cdn.example", "cdn.example")),
        ("cdn.example.", "", 8080, False, ("cdn.example:8080", "cdn.example")),
        ("cdn.example.", "", 443, True, ("cdn.example", "cdn.example")),
        ("cdn.example.", "", 80, True, ("cdn.example:80", "cdn.example")),
        ("cdn.example.", "other.example:81", 8080, False, ("other.example:81", "other.example")),
        ("cdn.example.", "[2001:db8::1]:81", 8080, True, ("[2001:db8::1]:81", "2001:db8::1")),
        ("cdn.example.", "2001:db8::1", 8080, True, ("[2001:db8::1]", "2001:db8::1")),
    ],
)
def test_host_header_and_server_name(
    host: str, given_host: str, port: int, tls: bool, expected: tuple[str, str]
) -> None:
    assert host_names(host, given_host, port, tls) == expected


@pytest.mark.parametrize(
    ("value", "load"),
    [
        ("TEXT cpu_utilization=0.3, application_utilization=0.7", 0.7),
        ("TEXT cpu_utilization=0.3,mem_utilization=0.8", 0.3),
        ("text application_utilization=1.5", 1.5),
        ('JSON {"cpu_utilization": 0.3, "rps_fractional": 10.0}', 0.3),
        ('JSON {"cpuUtilization": 0.3, "applicationUtilization": 0.4}', 0.4),
        ("TEXT application_utilization=0, cpu_utilization=0.2", 0.2),
        ("TEXT application_utilization=0", 0.0),
        ("TEXT cpu_utilization=0", 0.0),
        ("TEXT mem_utilization=0.8", None),
        ("TEXT cpu_utilization=nan", None),
        ("TEXT cpu_utilization=inf", None),
        ("TEXT cpu_utilization=-1", None),
        ("TEXT cpu_utilization=1e9", None),
        ("TEXT cpu_utilization", None),
        ("JSON [1]", None),
        ('JSON {"cpu_utilization": true}', None),
        ('JSON {"cpu_utilization": ' + "9" * 400 + "}", None),
        ("JSON " + "[" * 4000, None),
        ("BIN CgkJMzMzMzMz0z8=", None),
        ("", None),
    ],
)
def test_load_reports(value: str, load: float | None) -> None:
    assert parse_load(value) == load


@given(st.text(max_size=200))
def test_any_load_report_is_plausible_or_none(text: str) -> None:
    for form in ("TEXT ", "JSON ", ""):
        load = parse_load(form + text)
        assert load is None or 0 <= load <= 1000
