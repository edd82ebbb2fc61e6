"""ICMP echo from the test process over a datagram socket (no raw socket, no ping program needed).

The arrival is stamped by the kernel: on a busy machine it may be many milliseconds before the test process runs again.
"""

from __future__ import annotations

import select
import socket
import struct
import time

# Socket family and protocol for IP version 4 and 6; type of the echo request (RFC 792; RFC 4443, section 4.1).
SOCKET = {4: (socket.AF_INET, socket.IPPROTO_ICMP), 6: (socket.AF_INET6, socket.IPPROTO_ICMPV6)}
ECHO_REQUEST = {socket.AF_INET: 8, socket.AF_INET6: 128}
ECHO_REPLY = {socket.AF_INET: 0, socket.AF_INET6: 129}

# asm-generic/socket.h; the socket module does not name it. The stamp is a struct timespec of CLOCK_REALTIME, so the
# sending is timed by the same clock; a clock set during the milliseconds of a ping would show.
SO_TIMESTAMPNS = 35
TIMESPEC = struct.Struct("@qq")


def echo_ms(echo: socket.socket, address: str, count: int, every_s: float, timeout_s: float) -> list[float | None]:
    """Send `count` requests, `every_s` apart, and return each one's RTT in ms, None without an answer in time.

    The kernel fills in identifier and checksum of such a socket, and gives it its own answers only.
    """
    family = socket.AddressFamily(echo.family)
    echo.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    echo.connect((address, 0))
    sent_ns: list[int] = []
    result: list[float | None] = [None] * count
    next_s = time.monotonic()
    while True:
        now = time.monotonic()
        if len(sent_ns) < count and now >= next_s:
            request = struct.pack("!BBHHH", ECHO_REQUEST[family], 0, 0, 0, len(sent_ns)) + b"nearpath"
            sent_ns.append(time.clock_gettime_ns(time.CLOCK_REALTIME))
            echo.send(request)
            next_s = now + (every_s if len(sent_ns) < count else timeout_s)
        if len(sent_ns) == count and (None not in result or now > next_s):
            return result
        if select.select([echo], [], [], max(0.0, next_s - time.monotonic()))[0]:
            answer, ancillary, _, _ = echo.recvmsg(1500, 128)
            kind, _, _, _, sequence = struct.unpack("!BBHHH", answer[:8])
            if kind == ECHO_REPLY[family] and sequence < len(sent_ns):
                result[sequence] = (_arrival_ns(ancillary) - sent_ns[sequence]) / 1e6


def _arrival_ns(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The kernel's stamp of a received packet."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
            seconds, nanoseconds = TIMESPEC.unpack(data[: TIMESPEC.size])
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    raise OSError("the kernel did not stamp a received packet: SO_TIMESTAMPNS is not supported here")
