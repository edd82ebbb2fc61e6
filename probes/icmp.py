"""ICMP and ICMPv6 echo (RFC 792, RFC 4443): requests out, replies and quoted errors matched to the probe they answer.

A reply counts only when it comes from the probed address, carries our identifier, a sequence drawn at random for this probe
alone, and the very payload that was sent. The payload starts with a random cookie, so a host that cannot see the request
cannot make up its reply; with `payload_size` 0 only the 32 bits of identifier and sequence are left to guess.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal, Protocol

from core.messages import Family

ECHO_REQUEST = {4: 8, 6: 128}
ECHO_REPLY = {4: 0, 6: 129}
HEADER_BYTES = 8
COOKIE_BYTES = 16
MAX_OUTSTANDING = 16384
"""A quarter of the sequence space, so that a free random sequence is found at once."""

_QUOTED_BYTES_MIN = 8
"""An ICMP error quotes at least this much of the packet that caused it (RFC 792; RFC 1812 4.3.2.3 asks for more)."""


class Bits(Protocol):
    """A source of random bits, such as `random.SystemRandom`."""

    def getrandbits(self, k: int, /) -> int:
        """`k` random bits as a number."""


@dataclass(frozen=True, slots=True)
class Echo:
    """An echo request or reply less its type; `sequence` and `identifier` are 16 bits."""

    identifier: int
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Probe:
    """A request under way: where it went and the packet as it was sent (v6: with a zero checksum)."""

    address: str
    echo: Echo
    packet: bytes


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071): ones' complement of the ones' complement sum of 16-bit words."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return ~total & 0xFFFF


def encode_request(family: Family, echo: Echo) -> bytes:
    """The ICMP message of an echo request. For IPv6 the checksum stays 0: the kernel fills it in (RFC 3542 3.1)."""
    head = struct.pack("!BBHHH", ECHO_REQUEST[family], 0, 0, echo.identifier, echo.sequence)
    if family == 6:
        return head + echo.payload
    packet = head + echo.payload
    return packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]


def parse_reply(family: Family, message: bytes) -> Echo | None:
    """The echo reply in an ICMP message; None when it is another message, too short, or its checksum is wrong (v4)."""
    if len(message) < HEADER_BYTES or message[0] != ECHO_REPLY[family] or message[1] != 0:
        return None
    # For ICMPv6 the kernel has verified the checksum, which covers addresses that we do not see.
    if family == 4 and checksum(message) != 0:
        return None
    identifier, sequence = struct.unpack_from("!HH", message, 4)
    return Echo(identifier, sequence, message[HEADER_BYTES:])


def strip_ipv4(packet: bytes) -> bytes:
    """What follows the IPv4 header of a packet read from a raw socket; empty when there is no whole header."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        return b""
    header_bytes = (packet[0] & 15) * 4
    return packet[header_bytes:] if header_bytes >= 20 else b""


class Outstanding:
    """The echo requests under way on one socket, by sequence; each is answered once."""

    def __init__(self, family: Family, identifier: int) -> None:
        self.family = family
        self.identifier = identifier
        self._probes: dict[int, Probe] = {}

    def __len__(self) -> int:
        return len(self._probes)

    def open(self, address: str, payload_size: int, bits: Bits) -> Probe:
        """A new request to `address` with `payload_size` bytes; OverflowError when too many are under way."""
        if len(self._probes) >= MAX_OUTSTANDING:
            raise OverflowError(f"{MAX_OUTSTANDING} echo requests are under way on one socket")
        sequence = bits.getrandbits(16)
        while sequence in self._probes:
            sequence = bits.getrandbits(16)
        cookie = bits.getrandbits(8 * COOKIE_BYTES).to_bytes(COOKIE_BYTES, "big")
        payload = (cookie * (payload_size // COOKIE_BYTES + 1))[:payload_size]
        echo = Echo(self.identifier, sequence, payload)
        probe = self._probes[sequence] = Probe(address, echo, encode_request(self.family, echo))
        return probe

    def match_reply(self, source: str, message: bytes) -> Probe | None:
        """The request that `message` from `source` answers, which is closed by it; None for anything else."""
        echo = parse_reply(self.family, message)
        probe = self._probes.get(echo.sequence) if echo else None
        if probe is None or echo != probe.echo or source != probe.address:
            return None
        return self._probes.pop(probe.echo.sequence)

    def match_error(self, destination: str, quoted: bytes) -> Probe | None:
        """The request that an ICMP error quotes (from its ICMP header on), which is closed by it; None otherwise.

        Whatever the error quotes must equal what was sent: an error is as easily forged as a reply. For IPv6 the
        checksum is left out, since the kernel wrote it.
        """
        if len(quoted) < _QUOTED_BYTES_MIN:
            return None
        probe = self._probes.get(int.from_bytes(quoted[6:8], "big"))
        if probe is None or destination != probe.address:
            return None
        count = min(len(quoted), len(probe.packet))
        same_head = quoted[:2] == probe.packet[:2] and (self.family == 6 or quoted[2:4] == probe.packet[2:4])
        if not same_head or quoted[4:count] != probe.packet[4:count]:
            return None
        return self._probes.pop(probe.echo.sequence)

    def close(self, probe: Probe) -> None:
        """Forget a request that was given up; a reply to it is a stray from now on."""
        if self._probes.get(probe.echo.sequence) is probe:
            del self._probes[probe.echo.sequence]


@dataclass(frozen=True, slots=True)
class Instant:
    """One moment by two clocks: wall (CLOCK_REALTIME, what the kernel stamps packets with) and monotonic."""

    wall_ns: int
    monotonic_ns: int


_JUMP_FLOOR_NS = 500_000
_JUMP_SHARE = 1 / 1000
"""The kernel slews the wall clock by 500 ppm at most (adjtimex(2)); twice that and half a millisecond is a jump."""


def measure_rtt(sent: Instant, kernel_ns: int | None, read: Instant) -> tuple[float, Literal["kernel", "user"]]:
    """(rtt in seconds, who stamped it) of a packet sent at `sent`, stamped `kernel_ns` on arrival, read at `read`.

    The kernel's stamp leaves out the time the packet waited for this program. It is wall time, so it is used only when
    the wall clock kept step with the monotonic one and the stamp lies between the two moments; otherwise the monotonic
    difference is the RTT.
    """
    elapsed_ns = max(0, read.monotonic_ns - sent.monotonic_ns)
    if kernel_ns is not None:
        drift_ns = abs((read.wall_ns - sent.wall_ns) - elapsed_ns)
        rtt_ns = kernel_ns - sent.wall_ns
        if drift_ns <= _JUMP_FLOOR_NS + elapsed_ns * _JUMP_SHARE and 0 < rtt_ns <= elapsed_ns + _JUMP_FLOOR_NS:
            return min(rtt_ns, elapsed_ns) / 1e9, "kernel"
    return elapsed_ns / 1e9, "user"
