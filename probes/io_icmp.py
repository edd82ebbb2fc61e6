"""ICMP echo probes over one socket per family and source: unprivileged datagram sockets, or raw ones with CAP_NET_RAW."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import random
import socket
import struct
import time
from dataclasses import dataclass

from core.config import IcmpCheck, Source
from core.messages import Family, Target
from probes.faults import LocalFault, ProbeLost, raise_local
from probes.icmp import ECHO_REPLY, Instant, Outstanding, Probe, measure_rtt, strip_ipv4
from probes.io_http import SO_TIMESTAMPNS, kernel_stamp_ns
from probes.io_tcp import source_for
from probes.report import Outcome

_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROTOCOL = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}

# From linux/icmp.h, linux/icmpv6.h, linux/in.h, linux/in6.h and linux/errqueue.h; the socket module does not name them.
_SOL_RAW, _ICMP_FILTER, _ICMPV6_FILTER = 255, 1, 1
_IP_RECVERR, _IPV6_RECVERR, _SOL_IPV6 = 11, 25, 41
_MSG_ERRQUEUE = 0x2000
_EXTENDED_ERROR = struct.Struct("=IBBBBII")
_FROM_ICMP = {4: 2, 6: 3}
_DEADLY = {4: {3: "unreachable", 11: "ttl exceeded"}, 6: {1: "unreachable", 2: "too big", 3: "ttl exceeded"}}
_FRAGMENTATION_NEEDED = (4, 3, 4)

_RECEIVE_BYTES = 2048
"""The largest payload (1400) with both headers; anything longer is not ours."""

_ANCILLARY_BYTES = 512
_READS_PER_TURN = 256
"""A flood of packets must not keep the event loop from everything else."""

_BUFFER_BYTES = 1 << 20


@dataclass(slots=True)
class _Waiting:
    future: asyncio.Future[Outcome]
    sent: Instant


class IcmpProber:
    """Pings by whichever kind of socket this process may open; sockets are opened at the first use and kept."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sockets: dict[Family, _IcmpSocket] = {}

    async def probe(self, target: Target) -> Outcome:
        """Send one echo request and wait for its reply; LocalFault when this host could not even try."""
        assert isinstance(target.how, IcmpCheck)
        if ipaddress.ip_address(target.address).version != target.family:
            raise LocalFault(
                f"target {target.address} is not of family IPv{target.family}", "this is a fault of the appliance"
            )
        if target.family not in self._sockets:
            source = source_for(self._source, target.family)
            self._sockets[target.family] = _IcmpSocket(*open_icmp(target.family, source), target.family)
        return await self._sockets[target.family].ping(target.address, target.how)

    def close(self) -> None:
        """Close the sockets; probes under way end as local faults."""
        for icmp in self._sockets.values():
            icmp.close()
        self._sockets.clear()


def open_icmp(family: Family, source: str | None) -> tuple[socket.socket, bool]:
    """(socket, whether it is raw); LocalFault that names what to permit when neither kind may be opened."""
    flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        sock, raw = socket.socket(_AF[family], socket.SOCK_DGRAM | flags, _PROTOCOL[family]), False
    except OSError as refused:
        if refused.errno not in (errno.EACCES, errno.EPERM, errno.EPROTONOSUPPORT):
            raise_local(refused.errno or 0, f"cannot open an ICMP socket for IPv{family}")
        try:
            sock, raw = socket.socket(_AF[family], socket.SOCK_RAW | flags, _PROTOCOL[family]), True
        except OSError:
            raise LocalFault(
                f"no permission for ICMP over IPv{family}",
                "let the agent's group use ping sockets: sysctl net.ipv4.ping_group_range='0 2147483647' "
                "(it rules IPv6 too), or give the agent CAP_NET_RAW",
            ) from None
    try:
        _set_options(sock, family, raw)
        sock.bind((source or ("0.0.0.0" if family == 4 else "::"), 0))
    except OSError as error:
        sock.close()
        raise_local(error.errno or 0, f"cannot probe from {source}")
    return sock, raw


def _set_options(sock: socket.socket, family: Family, raw: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    if family == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        if raw:
            # A set bit blocks that type: a raw socket would otherwise read every ICMP packet of the host.
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << ECHO_REPLY[4]) & 0xFFFFFFFF))
    else:
        sock.setsockopt(_SOL_IPV6, _IPV6_RECVERR, 1)
        if raw:
            words = [0xFFFFFFFF] * 8
            words[ECHO_REPLY[6] // 32] &= ~(1 << (ECHO_REPLY[6] % 32)) & 0xFFFFFFFF
            sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *words))


class _IcmpSocket:
    def __init__(self, sock: socket.socket, raw: bool, family: Family) -> None:
        self._sock = sock
        self._strip = raw and family == 4
        self._family = family
        self._bits = random.SystemRandom()
        # The kernel gives a datagram socket its identifier as its port, and hands it no other replies.
        identifier = self._bits.getrandbits(16) if raw else int(sock.getsockname()[1])
        self._outstanding = Outstanding(family, identifier)
        self._waiting: dict[int, _Waiting] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def ping(self, address: str, check: IcmpCheck) -> Outcome:
        try:
            probe = self._outstanding.open(address, check.payload_size, self._bits)
        except OverflowError as error:
            raise LocalFault(str(error), "lower `concurrency`") from None
        sequence = probe.echo.sequence
        waiting = self._waiting[sequence] = _Waiting(self._loop.create_future(), _now())
        timer = self._loop.call_later(check.timeout, self._settle, sequence, Outcome(None, "timeout"))
        try:
            waiting.sent = self._send(probe)
            outcome = await waiting.future
        except ProbeLost as lost:
            outcome = Outcome(None, lost.reason)
        finally:
            timer.cancel()
            self._outstanding.close(probe)
            self._waiting.pop(sequence, None)
        late = outcome.rtt_s is not None and outcome.rtt_s > check.timeout
        return Outcome(None, "timeout") if late else outcome

    def close(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for waiting in self._waiting.values():
            if not waiting.future.done():
                waiting.future.set_exception(LocalFault("the ICMP socket was closed", "the agent stops or reloads"))

    def _send(self, probe: Probe) -> Instant:
        destination = (probe.address, 0)
        for attempt in (1, 2):
            sent = _now()
            try:
                self._sock.sendto(probe.packet, destination)
            except OSError as error:
                # The error may be that of an earlier probe, kept by the socket for the next call: ask once more.
                if attempt == 1 and error.errno not in (errno.EMSGSIZE, errno.EAGAIN):
                    self._read_errors()
                    self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    continue
                number = errno.ENOBUFS if error.errno == errno.EAGAIN else error.errno or 0
                raise_local(number, f"cannot send ICMP to {probe.address}")
            else:
                return sent
        raise AssertionError("unreachable")

    def _settle(self, sequence: int, outcome: Outcome) -> None:
        waiting = self._waiting.get(sequence)
        if waiting is not None and not waiting.future.done():
            waiting.future.set_result(outcome)

    def _on_readable(self) -> None:
        self._read_errors()
        for _ in range(_READS_PER_TURN):
            try:
                data, ancillary, _flags, address = self._sock.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return
            except OSError:
                # The error of some probe, told a second time: the error queue has it with the details.
                continue
            read = _now()
            message = strip_ipv4(data) if self._strip else data
            probe = self._outstanding.match_reply(self._canonical(address[0]), message)
            if probe is not None and probe.echo.sequence in self._waiting:
                sent = self._waiting[probe.echo.sequence].sent
                rtt_s, stamp = measure_rtt(sent, kernel_stamp_ns(ancillary), read)
                self._settle(probe.echo.sequence, Outcome(rtt_s, stamp=stamp))

    def _read_errors(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                quoted, ancillary, _flags, address = self._sock.recvmsg(_RECEIVE_BYTES, _ANCILLARY_BYTES, _MSG_ERRQUEUE)
            except OSError:
                return
            reason = self._reason(ancillary)
            if reason is None or not address:
                continue
            probe = self._outstanding.match_error(self._canonical(address[0]), quoted)
            if probe is not None:
                self._settle(probe.echo.sequence, Outcome(None, reason))

    def _reason(self, ancillary: list[tuple[int, int, bytes]]) -> str | None:
        for level, kind, data in ancillary:
            if (level, kind) in ((socket.IPPROTO_IP, _IP_RECVERR), (_SOL_IPV6, _IPV6_RECVERR)):
                if len(data) < _EXTENDED_ERROR.size:
                    return None
                _number, origin, icmp_type, code, _pad, _info, _data = _EXTENDED_ERROR.unpack_from(data)
                if origin != _FROM_ICMP[self._family] or (self._family, icmp_type, code) == _FRAGMENTATION_NEEDED:
                    return None
                return _DEADLY[self._family].get(icmp_type)
        return None

    def _canonical(self, address: str) -> str:
        return address if self._family == 4 else str(ipaddress.ip_address(address))


def _now() -> Instant:
    return Instant(time.time_ns(), time.monotonic_ns())
