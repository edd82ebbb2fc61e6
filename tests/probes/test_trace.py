"""What a trace sends, what it believes, and what it concludes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.icmp import checksum
from probes.trace.packets import Answer, Flow, probe_packet, read_icmp, read_segment
from probes.trace.path import Hop, PathMtu, Trace, What, ended, findings, lines

TCP4 = Flow("tcp", "192.0.2.1", "198.51.100.9", 40000, 443)
PING4 = Flow("icmp", "192.0.2.1", "198.51.100.9", 4711)
TCP6 = Flow("tcp", "2001:db8::1", "2001:db8:9::9", 40000, 443)
PING6 = Flow("icmp", "2001:db8::1", "2001:db8:9::9", 4711)
FLOWS = (TCP4, PING4, TCP6, PING6)
ROUTER = {4: "203.0.113.1", 6: "2001:db8:1::1"}


def exceeded(flow: Flow, quoted: bytes, behind: bytes = b"") -> bytes:
    """A router's "time exceeded" that quotes `quoted`; with extension objects `behind` it, after RFC 4884."""
    length = 0
    if behind:
        quoted = quoted.ljust(128, b"\0")
        length = len(quoted) // (4 if flow.family == 4 else 8)
    head = bytes([11, 0, 0, 0, 0, length, 0, 0] if flow.family == 4 else [3, 0, 0, 0, length, 0, 0, 0])
    return head + quoted + behind


def mpls(*labels: int) -> bytes:
    """An extension header with one MPLS stack object (RFC 4950)."""
    stack = b"".join(struct.pack("!I", label << 12 | (i == len(labels) - 1) << 8 | 1) for i, label in enumerate(labels))
    plain = bytes([0x20, 0, 0, 0]) + struct.pack("!HBB", 4 + len(stack), 1, 1) + stack
    return plain[:2] + struct.pack("!H", checksum(plain)) + plain[4:]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: f"{f.kind}{f.family}")
def test_a_flow_keeps_what_balancers_look_at(flow: Flow) -> None:
    start = 20 if flow.family == 4 else 40
    one, other = probe_packet(flow, 1, 0x1234), probe_packet(flow, 9, 0x4321)
    assert one[start : start + 4] == other[start : start + 4]  # ports; or type, code and checksum
    assert one[start + 4 :] != other[start + 4 :]
    assert one[8 if flow.family == 4 else 7] == 1  # TTL, hop limit
    if flow.family == 4:
        assert checksum(one[:20]) == 0
        assert one[6] & 0x40  # may not be fragmented
    else:
        assert one[:4] == other[:4]  # the flow label
    if flow == PING4:
        assert checksum(one[20:]) == 0


@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: f"{f.kind}{f.family}")
def test_a_quoted_probe_is_known_by_its_first_eight_bytes(flow: Flow) -> None:
    header = 20 if flow.family == 4 else 40
    quoted = probe_packet(flow, 1, 0x1234)[: header + 8]
    assert read_icmp(flow, ROUTER[flow.family], exceeded(flow, quoted)) == Answer(0x1234, "hop")
    assert read_icmp(flow, ROUTER[flow.family], exceeded(flow, quoted[:-1])) is None


@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: f"{f.kind}{f.family}")
def test_labels_behind_the_quote(flow: Flow) -> None:
    quoted = probe_packet(flow, 1, 0x1234)
    got = read_icmp(flow, ROUTER[flow.family], exceeded(flow, quoted, mpls(24001, 17)))
    assert got == Answer(0x1234, "hop", labels=(24001, 17))


@pytest.mark.parametrize("flow", FLOWS, ids=lambda f: f"{f.kind}{f.family}")
def test_somebody_elses_probe_is_not_ours(flow: Flow) -> None:
    for other in FLOWS:
        if other != flow:
            message = exceeded(other, probe_packet(other, 1, 0x1234))
            assert read_icmp(flow, ROUTER[flow.family], message) is None
    stranger = Flow(flow.kind, flow.source, flow.target, flow.identity + 1, flow.port)
    assert read_icmp(flow, ROUTER[flow.family], exceeded(flow, probe_packet(stranger, 1, 0x1234))) is None


def test_what_routers_refuse() -> None:
    quoted4, quoted6 = probe_packet(TCP4, 3, 7), probe_packet(TCP6, 3, 7)
    assert read_icmp(TCP4, "x", bytes([3, 1, 0, 0, 0, 0, 0, 0]) + quoted4) == Answer(7, "unreachable")
    assert read_icmp(TCP4, "x", bytes([3, 13, 0, 0, 0, 0, 0, 0]) + quoted4) == Answer(7, "prohibited")
    assert read_icmp(TCP4, "x", bytes([3, 4, 0, 0, 0, 0]) + struct.pack("!H", 1400) + quoted4) == Answer(
        7, "too big", 1400
    )
    assert read_icmp(TCP6, "x", bytes([1, 0, 0, 0, 0, 0, 0, 0]) + quoted6) == Answer(7, "unreachable")
    assert read_icmp(TCP6, "x", bytes([1, 1, 0, 0, 0, 0, 0, 0]) + quoted6) == Answer(7, "prohibited")
    assert read_icmp(TCP6, "x", bytes([2, 0, 0, 0]) + struct.pack("!I", 1280) + quoted6) == Answer(7, "too big", 1280)


def test_echo_replies_only_of_the_target() -> None:
    reply = bytes([0, 0, 0, 0]) + struct.pack("!HH", PING4.identity, 99)
    assert read_icmp(PING4, PING4.target, reply) == Answer(99, "echo")
    assert read_icmp(PING4, "203.0.113.5", reply) is None
    assert read_icmp(PING4, PING4.target, bytes([0, 0, 0, 0]) + struct.pack("!HH", PING4.identity + 1, 99)) is None
    assert read_icmp(TCP4, TCP4.target, reply) is None


def segment(flags: int, ack: int, source: int = 443, target: int = 40000) -> bytes:
    return struct.pack("!HHIIBBHHH", source, target, 1, ack, 5 << 4, flags, 1000, 0, 0)


def test_what_the_target_says_to_a_syn() -> None:
    assert read_segment(TCP4, segment(0x12, 8)) == Answer(7, "open")
    assert read_segment(TCP4, segment(0x14, 0)) == Answer(0xFFFFFFFF, "closed")
    assert read_segment(TCP4, segment(0x10, 8)) is None  # an ACK of some connection
    assert read_segment(TCP4, segment(0x12, 8, source=80)) is None
    assert read_segment(TCP4, segment(0x12, 8)[:19]) is None
    for options in (b"\x1d\x03\x1e\x01", b"\x1d\xcc\x1e", b"\x02", b"\x05\xff\x00\x00"):  # cut short, or too long
        assert read_segment(TCP4, segment(0x12, 8) + options) == Answer(7, "open")
        longer = bytearray(segment(0x12, 8) + options)
        longer[12] = 6 << 4
        assert read_segment(TCP4, bytes(longer)) == Answer(7, "open")


@given(st.sampled_from(FLOWS), st.binary(max_size=200), st.sampled_from([0, 1, 2, 3, 11, 129]))
def test_any_bytes_are_taken_without_a_fault(flow: Flow, noise: bytes, kind: int) -> None:
    for message in (noise, bytes([kind]) + noise, exceeded(flow, probe_packet(flow, 1, 1)[:28], noise)):
        got = read_icmp(flow, "192.0.2.77", message)
        assert got is None or 0 <= got.token < 1 << 32
        read_segment(flow, message)


# --- what is concluded -------------------------------------------------------------------------------------------------


def hop(ttl: int, address: str, *rtts_ms: float, sent: int = 5, what: What = "hop") -> Hop:
    made = Hop(ttl, sent)
    for rtt_ms in rtts_ms:
        made.add(address, what, rtt_ms / 1000)
    return made


def said(*hops: Hop, mtu: PathMtu | None = None) -> str:
    return "\n".join(findings(Trace("tcp", "192.0.2.1", "198.51.100.9", 443, tuple(hops), mtu)))


def test_loss_in_the_middle_is_no_loss() -> None:
    text = said(hop(1, "a", 1, 1, 1, 1, 1), hop(2, "b", 9), hop(3, "t", 9, 9, 9, 9, 9, what="open"))
    assert "the target loses none" in text
    assert "are lost" not in text


def test_loss_that_stays_is_named_where_it_begins() -> None:
    text = said(
        hop(1, "a", 1), hop(2, "b", 2, 2, 2, 2, 2), Hop(3, 5), hop(4, "d", 3, 3, 3), hop(5, "t", 4, 4, 4, what="open")
    )
    assert "40% of the probes to the target are lost; the loss begins at or before hop 4" in text


def test_a_slow_answer_in_the_middle_is_no_delay() -> None:
    text = said(hop(1, "a", 1, 1), hop(2, "b", 80, 80), hop(3, "t", 12, 12, what="open"))
    assert "11.0 of 12.0 ms come between hop 1 (a) and hop 2 (b)" in text  # no more than the target's
    text = said(hop(1, "a", 1, 1), hop(2, "b", 2, 2), hop(3, "c", 95, 90), hop(4, "t", 90, 93, what="open"))
    assert "88.0 of 90.0 ms come between hop 2 (b) and hop 3 (c)" in text


def test_where_it_ends_without_the_target() -> None:
    assert "nothing beyond hop 2 (b) answers" in said(hop(1, "a", 1), hop(2, "b", 2), Hop(3, 5))
    assert "b (hop 2) says that 198.51.100.9 is prohibited" in said(hop(1, "a", 1), hop(2, "b", 2, what="prohibited"))
    assert "nothing answers, not even the first router" in said(Hop(1, 5))


def test_the_path_mtu_in_words() -> None:
    end = hop(1, "t", 1, what="open")
    assert "vanish and no router says so" in said(end, mtu=PathMtu(1400, silent=True))
    assert "clamp the MSS there to 1,360" in said(end, mtu=PathMtu(1400, silent=True))
    assert "path MTU 1,400 bytes, as b says" in said(end, mtu=PathMtu(1400, "b"))


def test_a_path_ends_at_the_target_or_behind_the_last_answer() -> None:
    target = hop(2, "t", 1, what="closed")
    assert ended([hop(1, "a", 1), target, hop(3, "t", 1, what="closed")])[-1] is target
    assert [one.ttl for one in ended([hop(1, "a", 1), Hop(2), Hop(3), Hop(4)])] == [1, 2]
    assert [one.ttl for one in ended([Hop(1), Hop(2)])] == [1]


def test_the_table_shows_every_branch() -> None:
    two = hop(1, "192.0.2.7", 1, 2)
    two.add("192.0.2.8", "hop", 0.003, (24001,))
    text = list(lines(Trace("tcp", "192.0.2.1", "198.51.100.9", 443, (two, Hop(2, 5)))))
    assert text[2].split() == ["1", "192.0.2.7", "40%", "1.0", "1.5", "2.0"]
    assert text[3].split() == ["192.0.2.8", "3.0", "3.0", "3.0", "MPLS", "24001"]
    assert text[4].split() == ["2", "*", "100%"]
    assert any("hop 1 answered from several addresses" in line for line in text)
