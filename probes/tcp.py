"""The RTT of a TCP handshake as the kernel measured it (TCP_INFO, linux/tcp.h), or as seen by the caller."""

from __future__ import annotations

import struct
from typing import Literal

TCP_INFO_BYTES = 104
"""As far as tcpi_total_retrans; every kernel since 2.6 returns this much."""

_RTT_OFFSET = 68
_TOTAL_RETRANS_OFFSET = 100
_SLACK_S = 0.001
"""tcpi_rtt may be this much above what the caller saw, since the caller's clock was read at another instant."""


def handshake_rtt(info: bytes, elapsed_s: float) -> tuple[float, Literal["kernel", "user"]]:
    """(rtt in seconds, who measured it) from `getsockopt(TCP_INFO)` right after the connection was made.

    tcpi_rtt is then the time from SYN to SYN-ACK, free of this program's delays. When the SYN had to be sent again the
    kernel does not know which one was answered (Karn's algorithm, RFC 6298 3): `elapsed_s` is taken, with the first wait
    in it, as a client would have felt it.
    """
    if len(info) >= TCP_INFO_BYTES:
        (rtt_us,) = struct.unpack_from("=I", info, _RTT_OFFSET)
        (sent_again,) = struct.unpack_from("=I", info, _TOTAL_RETRANS_OFFSET)
        rtt_s = rtt_us / 1e6
        if sent_again == 0 and 0 < rtt_s <= elapsed_s + _SLACK_S:
            return min(rtt_s, elapsed_s), "kernel"
    return elapsed_s, "user"
