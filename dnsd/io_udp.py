"""The UDP plane: one thread per listen address, which answers each query from the image that is current at that moment."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from core.config import split_listen
from core.io_http import bound_address
from dnsd.answer import ClientAddress, Transport
from dnsd.image import Image
from dnsd.io_bind import bind_error
from dnsd.io_faults import FaultLog, answer_guarded
from dnsd.tally import SAMPLE_EVERY, Tally

_BATCH = 64
"""Datagrams taken before the wake-up descriptor is looked at again."""

_MAX_DATAGRAM_BYTES = 4096
"""A query is a question and some options; what is longer is cut here and so answered FORMERR."""

_BUFFER_BYTES = 4 << 20

_IP_PKTINFO = 8  # Linux's number; Python 3.11 has no name for it
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT = 10, 23, 5
_PKTINFO_SPACE = 64

Ancillary = list[tuple[int, int, bytes]]


class UdpPlane:
    """Serves one listen address. `current()` gives the image; it is called once per query."""

    def __init__(self, listen: str, current: Callable[[], Image], *, reuse_port: bool = False) -> None:
        self.tally = Tally("udp")
        self._current = current
        self._faults = FaultLog("udp")
        self._socket = _bind(listen, reuse_port)
        self._family = 6 if self._socket.family == socket.AF_INET6 else 4
        host = split_listen(listen)[0]
        self._any_address = host in ("0.0.0.0", "::")
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name=f"dns-udp-{listen}", daemon=True)

    @property
    def address(self) -> str:
        """`ADDRESS:PORT` that is bound."""
        return bound_address(self._socket)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the query under way and close the socket."""
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        self.close()

    def close(self) -> None:
        """Let go of the socket; only for a plane that is not running."""
        if self._wake >= 0:
            self._socket.close()
            os.close(self._wake)
            self._wake = -1

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            try:
                if any(fd == self._wake for fd, _event in poll.poll()):
                    return
                for _ in range(_BATCH):
                    if not self._serve_one():
                        break
            except Exception as error:  # the thread must outlive any fault
                self.tally.errors += 1
                self._faults.note(error)

    def _serve_one(self) -> bool:
        """Take and answer one datagram; False when there is none."""
        tally = self.tally
        try:
            data, ancillary, sender = self._receive()
        except BlockingIOError:
            return False
        except OSError as error:  # an ICMP error of an earlier answer, reported here
            self._faults.note(error)
            return True
        tally.received += 1
        timed = not tally.received & (SAMPLE_EVERY - 1)
        began_s = time.perf_counter() if timed else 0.0
        wire = self._answer(data, sender)
        # Port 0 cannot be answered; whoever forged it wants to see what happens.
        if wire is None or sender[1] == 0:
            tally.silent += 1
            return True
        self._send(wire, ancillary, sender)
        if timed:
            tally.time(time.perf_counter() - began_s)
        return True

    def _receive(self) -> tuple[bytes, Ancillary, Any]:
        if self._any_address:
            data, ancillary, _flags, sender = self._socket.recvmsg(_MAX_DATAGRAM_BYTES, _PKTINFO_SPACE)
            return data, ancillary, sender
        data, sender = self._socket.recvfrom(_MAX_DATAGRAM_BYTES)
        return data, [], sender

    def _answer(self, data: bytes, sender: Any) -> bytes | None:
        client = client_address(self._family, sender[0])
        return answer_guarded(self._current(), data, client, Transport.UDP, self.tally, self._faults)

    def _send(self, wire: bytes, ancillary: Ancillary, sender: Any) -> None:
        try:
            if self._any_address:
                self._socket.sendmsg([wire], _from_same(ancillary), 0, sender)
            else:
                self._socket.sendto(wire, sender)
        except OSError:  # no route, a full buffer, a firewall: the resolver asks again
            self.tally.send_errors += 1


def client_address(family: int, host: str) -> ClientAddress:
    """The address of a sender as `recvfrom` gives it; a zone index is left out."""
    if family == 4:
        return ClientAddress(4, int.from_bytes(socket.inet_aton(host), "big"))
    return ClientAddress(6, int.from_bytes(socket.inet_pton(socket.AF_INET6, host.partition("%")[0]), "big"))


def _from_same(ancillary: Ancillary) -> Ancillary:
    """Control data that makes an answer leave from the address its query was sent to (ip(7), ipv6(7))."""
    for level, kind, data in ancillary:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            # The interface is left to the routing: the query may have come in by another one than leads back.
            _interface, local, _destination = struct.unpack("=I4s4s", data)
            return [(level, kind, struct.pack("=I4s4s", 0, local, b"\0" * 4))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            # Link-local addresses mean nothing without their interface.
            interface = data[16:] if data[:2] == b"\xfe\x80" else b"\0" * 4
            return [(level, kind, data[:16] + interface)]
    return []


def _bind(listen: str, reuse_port: bool) -> socket.socket:
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _tune(sock, family)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise bind_error(listen, "UDP", error) from None
    return sock


def _tune(sock: socket.socket, family: int) -> None:
    """Room for bursts, and no belief in forged ICMP that would make answers leave in small, spoofable fragments."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_OMIT)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_OMIT)
