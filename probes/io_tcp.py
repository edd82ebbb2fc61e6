"""TCP connect probes: a non-blocking connect, the kernel's own RTT of the handshake, and an end without TIME_WAIT."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import struct
import time
from collections.abc import Callable
from typing import Literal

from core.config import Source, TcpCheck
from core.messages import Family, Target
from probes.faults import LocalFault, ProbeLost, loss_reason, raise_local
from probes.report import Outcome
from probes.tcp import TCP_INFO_BYTES, handshake_rtt

_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_IP_BIND_ADDRESS_NO_PORT = 24
"""linux/in.h: choose the port at connect, so that 28,000 ports per target are there and not 28,000 in all."""


def source_for(source: Source, family: Family) -> str | None:
    """The configured local address of `family`."""
    return source.ipv4 if family == 4 else source.ipv6


async def probe_tcp(target: Target, source: Source) -> Outcome:
    """Connect once; LocalFault when this host could not even try."""
    assert isinstance(target.how, TcpCheck)
    deadline_s = asyncio.get_running_loop().time() + target.how.timeout
    try:
        sock, rtt_s, stamp = await connect(target.family, target.address, target.how.port, source, deadline_s)
    except ProbeLost as lost:
        return Outcome(None, lost.reason)
    sock.close()
    return Outcome(rtt_s, stamp=stamp)


async def connect(
    family: Family, address: str, port: int, source: Source, deadline_s: float
) -> tuple[socket.socket, float, Literal["kernel", "user"]]:
    """(socket, rtt in seconds of the handshake, who measured it); its close will send a reset.

    `deadline_s` is in the event loop's time. Raises ProbeLost or LocalFault; the socket is closed then.
    """
    sock = _open(family, address, source_for(source, family))
    try:
        started_ns = time.monotonic_ns()
        number = sock.connect_ex((address, port))
        if number not in (0, errno.EINPROGRESS):
            raise_local(number, f"cannot connect to {_shown(address, port)}")
        writable_ns = await wait_for_io(sock, "write", deadline_s)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise ProbeLost(loss_reason(number))
        _refuse_self(sock, address, port)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        rtt_s, stamp = handshake_rtt(info, (writable_ns - started_ns) / 1e9)
    except BaseException:
        sock.close()
        raise
    return sock, rtt_s, stamp


async def wait_for_io(sock: socket.socket, way: Literal["read", "write"], deadline_s: float) -> int:
    """Wait until `sock` can be read or written; the monotonic ns at which the event loop saw it. ProbeLost: timeout.

    Readiness that the loop sees in the same turn as the deadline wins, since it came first.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(time.monotonic_ns())

    def late() -> None:
        if not future.done():
            future.set_exception(ProbeLost("timeout"))

    timer = loop.call_at(deadline_s, late)
    remove: Callable[[int], bool]
    if way == "read":
        loop.add_reader(sock.fileno(), ready)
        remove = loop.remove_reader
    else:
        loop.add_writer(sock.fileno(), ready)
        remove = loop.remove_writer
    try:
        return await future
    finally:
        remove(sock.fileno())
        timer.cancel()


def _open(family: Family, address: str, source: str | None) -> socket.socket:
    if ipaddress.ip_address(address).version != family:
        raise LocalFault(f"target {address} is not of family IPv{family}", "this is a fault of the appliance")
    try:
        sock = socket.socket(_AF[family], socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise_local(error.errno or 0, "cannot open a TCP socket")
    try:
        # A probe per second and target would otherwise leave 60 connections per target in TIME_WAIT, on either side.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
    except OSError as error:
        sock.close()
        raise_local(error.errno or 0, f"cannot probe from {source}")
    return sock


def _refuse_self(sock: socket.socket, address: str, port: int) -> None:
    # A connect to a local port nobody listens on can draw that very port as its own and meet itself (simultaneous open).
    try:
        if sock.getpeername()[:2] == sock.getsockname()[:2]:
            raise ProbeLost("refused")
    except OSError as error:
        raise ProbeLost(loss_reason(error.errno or errno.ECONNRESET)) from None


def _shown(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
