"""How a cut network is told from an upstream that thinks: by its sockets, as TCP sees them."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import Any

SocketOption = tuple[int, int, int]

# `tcpi_last_ack_recv` in struct tcp_info (linux/tcp.h): milliseconds since the peer last acknowledged anything.
_LAST_ACK = slice(56, 60)


def _silence_s(give_up_s: float) -> tuple[float, int]:
    """(how long a peer may be silent, after how long without data it is asked for a keepalive).

    That takes 0.6 of `give_up_s`, at least a second, so that there is time left for another upstream.
    """
    silent_s = min(give_up_s, max(1.0, 0.6 * give_up_s))
    return silent_s, max(1, int(silent_s / 2))


def socket_options(give_up_s: float) -> list[SocketOption]:
    """TCP options by which unanswered data or keepalives end a connection in time."""
    silent_s, idle_s = _silence_s(give_up_s)
    return [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, min(127, max(1, int(silent_s) - idle_s))),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silent_s * 1000)),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    ]


def end_if_silent(connection: Any, give_up_s: float) -> bool:
    """Shut a socket down whose peer answers no keepalives, when the kernel should have done so by now; True: done.

    It never does while it has no way to send them: a cable or a route that is gone on our own side.
    """
    silent_s, idle_s = _silence_s(give_up_s)
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as sock:
        last = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_ACK.stop)[_LAST_ACK]
        if int.from_bytes(last, sys.byteorder) / 1000 > max(silent_s, idle_s + 1.0) + 0.5:
            sock.shutdown(socket.SHUT_RDWR)
            return True
    return False
