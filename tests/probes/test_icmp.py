"""ICMP echo: the codec against scapy as an independent one, and which replies and errors are believed."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.packet import Raw

from core.messages import Family
from probes.icmp import Echo, Instant, Outstanding, checksum, encode_request, measure_rtt, parse_reply, strip_ipv4

echoes = st.builds(
    Echo,
    identifier=st.integers(0, 0xFFFF),
    sequence=st.integers(0, 0xFFFF),
    payload=st.binary(max_size=1400),
)


@given(echoes)
def test_request_is_what_scapy_builds(echo: Echo) -> None:
    theirs = ICMP(type=8, id=echo.identifier, seq=echo.sequence) / Raw(echo.payload)
    assert encode_request(4, echo) == bytes(theirs)


@given(echoes)
def test_request_for_ipv6_is_what_scapy_builds_but_the_checksum(echo: Echo) -> None:
    theirs = bytes(ICMPv6EchoRequest(id=echo.identifier, seq=echo.sequence, data=echo.payload))
    ours = encode_request(6, echo)
    assert (ours[:2], ours[4:]) == (theirs[:2], theirs[4:])
    assert ours[2:4] == b"\0\0"


@given(echoes)
def test_reply_of_scapy_is_parsed(echo: Echo) -> None:
    theirs = ICMP(type=0, id=echo.identifier, seq=echo.sequence) / Raw(echo.payload)
    assert parse_reply(4, bytes(theirs)) == echo
    packet = bytes(IP(src="192.0.2.1", dst="192.0.2.2", options=b"\x01" * 4) / theirs)
    assert parse_reply(4, strip_ipv4(packet)) == echo


def test_checksum_vector_of_rfc_1071() -> None:
    # RFC 1071 section 3: the words 0001 f203 f4f5 f6f7 add up to ddf2 (end-around carry), of which this is the complement.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF
    assert checksum(b"\xff") == checksum(b"\xff\x00")


@given(st.binary(max_size=200), st.sampled_from([4, 6]))
def test_any_bytes_are_no_crash(data: bytes, family: Family) -> None:
    strip_ipv4(data)
    parse_reply(family, data)
    outstanding = Outstanding(family, 7)
    outstanding.open("192.0.2.1", 24, random.Random(1))
    assert outstanding.match_reply("192.0.2.1", data) is None
    assert outstanding.match_error("192.0.2.1", data) is None
    assert len(outstanding) == 1


def reply_to(packet: bytes, family: Family) -> bytes:
    body = bytes([0 if family == 4 else 129, 0, 0, 0]) + packet[4:]
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:] if family == 4 else body


@pytest.mark.parametrize("family", [4, 6])
def test_a_reply_is_believed_once_and_only_if_all_of_it_is_right(family: Family) -> None:
    outstanding = Outstanding(family, 0x1234)
    probe = outstanding.open("192.0.2.1", 24, random.Random(1))
    right = reply_to(probe.packet, family)

    def changed(at: int) -> bytes:
        body = bytearray(right)
        body[at] ^= 1
        body[2:4] = b"\0\0"
        if family == 4:
            body[2:4] = struct.pack("!H", checksum(bytes(body)))
        return bytes(body)

    strays = {
        "another host": ("192.0.2.9", right),
        "our own request": ("192.0.2.1", probe.packet),
        "identifier": ("192.0.2.1", changed(5)),
        "sequence": ("192.0.2.1", changed(7)),
        "first byte of the cookie": ("192.0.2.1", changed(8)),
        "last byte of the payload": ("192.0.2.1", changed(len(right) - 1)),
        "cut": ("192.0.2.1", reply_to(probe.packet[:-2], family)),
    }
    for what, (source, message) in strays.items():
        assert outstanding.match_reply(source, message) is None, what
    assert outstanding.match_reply("192.0.2.1", right) is probe
    assert outstanding.match_reply("192.0.2.1", right) is None


def test_a_wrong_checksum_is_no_reply() -> None:
    outstanding = Outstanding(4, 1)
    probe = outstanding.open("192.0.2.1", 24, random.Random(1))
    reply = bytearray(reply_to(probe.packet, 4))
    reply[2] ^= 0x40
    assert outstanding.match_reply("192.0.2.1", bytes(reply)) is None


@pytest.mark.parametrize("family", [4, 6])
def test_an_error_must_quote_what_was_sent(family: Family) -> None:
    outstanding = Outstanding(family, 0x1234)
    probe = outstanding.open("192.0.2.1", 24, random.Random(1))
    head = probe.packet[:8]
    forged = head[:4] + bytes([head[4] ^ 1]) + head[5:]
    assert outstanding.match_error("192.0.2.2", head) is None
    assert outstanding.match_error("192.0.2.1", head[:7]) is None
    assert outstanding.match_error("192.0.2.1", forged) is None
    assert outstanding.match_error("192.0.2.1", head + b"wrong cookie") is None
    assert outstanding.match_error("192.0.2.1", probe.packet + b"padding of a router") is probe
    assert len(outstanding) == 0


def test_two_probes_differ_in_sequence_and_cookie_and_close_frees() -> None:
    outstanding, bits = Outstanding(4, 1), random.Random(1)
    probes = [outstanding.open("192.0.2.1", 24, bits) for _ in range(500)]
    assert len({probe.echo.sequence for probe in probes}) == 500
    assert len({probe.echo.payload for probe in probes}) == 500
    for probe in probes:
        outstanding.close(probe)
        outstanding.close(probe)
    assert len(outstanding) == 0


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1400])
def test_payload_size_is_kept(size: int) -> None:
    assert len(Outstanding(4, 1).open("192.0.2.1", size, random.Random(1)).packet) == 8 + size


MS = 1_000_000


@pytest.mark.parametrize(
    ("kernel_ms", "read_wall_ms", "read_mono_ms", "expected"),
    [
        (10.0, 14.0, 14.0, (0.010, "kernel")),  # 4 ms in this program's queue are not part of the RTT
        (None, 14.0, 14.0, (0.014, "user")),  # no stamp
        (3610_000.0, 3610_004.0, 14.0, (0.014, "user")),  # the wall clock was set an hour ahead in between
        (-3589_990.0, -3589_986.0, 14.0, (0.014, "user")),  # and back
        (10.0, 14.0 + 0.3, 14.0, (0.010, "kernel")),  # slewed, within what adjtime may do
        (-1.0, 14.0, 14.0, (0.014, "user")),  # a stamp before the request
        (20.0, 14.0, 14.0, (0.014, "user")),  # a stamp after the read
    ],
)
def test_kernel_stamps_are_used_only_when_the_wall_clock_kept_step(
    kernel_ms: float | None, read_wall_ms: float, read_mono_ms: float, expected: tuple[float, str]
) -> None:
    wall0, mono0 = 1_700_000_000_000 * MS, 5_000 * MS
    kernel = None if kernel_ms is None else wall0 + round(kernel_ms * MS)
    read = Instant(wall0 + round(read_wall_ms * MS), mono0 + round(read_mono_ms * MS))
    rtt_s, stamp = measure_rtt(Instant(wall0, mono0), kernel, read)
    assert (rtt_s, stamp) == (pytest.approx(expected[0]), expected[1])
