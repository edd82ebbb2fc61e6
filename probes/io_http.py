"""HTTP and HTTPS probes: the time from the request's last byte sent to the response's first byte received.

A plain non-blocking socket with the kernel's receive stamps, TLS over memory BIOs: an HTTP library would hide both the
moment of the first byte and how much it reads. Name lookup, connect and TLS handshake are not part of the RTT, but they are
part of the timeout. The body is never read; the connection ends with a reset.
"""

from __future__ import annotations

import socket
import ssl
import struct
import time
from asyncio import get_running_loop

from core.config import HttpCheck, Source
from core.errors import MessageError
from core.messages import Target
from probes.faults import LocalFault, ProbeLost, loss_reason
from probes.http import LOAD_HEADER, Head, HeadParser, encode_request, host_names, parse_load
from probes.icmp import Instant, measure_rtt
from probes.io_tcp import connect, wait_for_io
from probes.report import Outcome

SO_TIMESTAMPNS = 35
"""asm-generic/socket.h; the socket module has no name for it."""

_READ_BYTES = 16 << 10
_ANCILLARY_BYTES = 128
_MAX_TLS_READS = 64
"""A handshake takes a handful; a server that feeds records for ever is cut off here before the timeout."""


def make_contexts() -> dict[bool, ssl.SSLContext]:
    """TLS client settings by `verify`; the system's certificates, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    checked = ssl.create_default_context()
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    for context in (checked, unchecked):
        context.set_alpn_protocols(["http/1.1"])
    return {True: checked, False: unchecked}


def hold_stamps() -> socket.socket:
    """A socket that keeps the kernel stamping packets as long as it is open.

    The kernel starts to stamp a moment after the first socket has asked for it and stops after the last one: sockets that
    come and go with single probes would often find it switched off.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    return sock


async def probe_http(target: Target, source: Source, contexts: dict[bool, ssl.SSLContext]) -> Outcome:
    """Send one GET; LocalFault when this host could not even try."""
    check = target.how
    assert isinstance(check, HttpCheck)
    deadline_s = get_running_loop().time() + check.timeout
    host, server_name = host_names(target.host, check.host, check.port, check.tls)
    try:
        request = encode_request(host, check.path)
    except MessageError as error:
        raise LocalFault(error.what, error.fix) from None
    phase = "connect"
    sock: socket.socket | None = None
    try:
        sock, _, _ = await connect(target.family, target.address, check.port, source, deadline_s)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        stream = _Stream(sock, deadline_s)
        if check.tls:
            phase = "tls"
            await stream.start_tls(contexts[check.verify], server_name)
        phase = "response"
        return await _exchange(stream, request, frozenset(check.expect))
    except ProbeLost as lost:
        return Outcome(None, f"timeout {phase}" if lost.reason == "timeout" else lost.reason)
    finally:
        if sock is not None:
            sock.close()


async def _exchange(stream: _Stream, request: bytes, expect: frozenset[int]) -> Outcome:
    sent = await stream.send(request)
    parser = HeadParser()
    rtt_s, stamp = 0.0, measure_rtt(sent, None, sent)[1]
    while True:
        data = await stream.receive(first=not parser.started)
        if not data:
            raise ProbeLost("closed")
        if not parser.started:
            rtt_s, stamp = measure_rtt(sent, stream.kernel_ns, stream.read_at)
        try:
            head = parser.feed(data)
        except MessageError as error:
            raise ProbeLost(error.what) from None
        if head is not None:
            break
    if head.status not in expect:
        return Outcome(None, f"status {head.status}", load_ratio=_load_of(head))
    return Outcome(rtt_s, stamp=stamp, load_ratio=_load_of(head))


def _load_of(head: Head) -> float | None:
    value = head.fields.get(LOAD_HEADER)
    return None if value is None else parse_load(value)


def _now() -> Instant:
    return Instant(time.time_ns(), time.monotonic_ns())


class _Stream:
    """Bytes over one connected socket, with TLS or without, until the deadline; remembers when the last read came."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self._sock = sock
        self._deadline_s = deadline_s
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject | None = None
        self.read_at = _now()
        self.kernel_ns: int | None = None

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Shake hands and check the certificate; ProbeLost names what was wrong with it."""
        try:
            self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        except ValueError as error:
            raise LocalFault(
                f"{server_name!r} cannot be a TLS server name: {error}", "set `host:` of the check"
            ) from None
        for _ in range(_MAX_TLS_READS):
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush_tls()
                data = await self._read(_READ_BYTES)
                if not data:
                    raise ProbeLost("tls closed") from None
                self._incoming.write(data)
            except ssl.SSLCertVerificationError as error:
                raise ProbeLost(f"tls certificate: {error.verify_message}") from None
            except ssl.SSLError as error:
                raise ProbeLost(f"tls {(error.reason or 'error').lower().replace('_', ' ')}") from None
            else:
                await self._flush_tls()
                return
        raise ProbeLost("tls handshake too long")

    async def send(self, data: bytes) -> Instant:
        """Send all of `data`; the moment before its last part was handed to the kernel."""
        if self._tls is None:
            return await self._write(data)
        self._tls.write(data)
        return await self._flush_tls()

    async def receive(self, *, first: bool) -> bytes:
        """The next bytes of the response, empty at its end. `first` keeps the kernel's stamp that of the first byte."""
        if self._tls is None:
            # The stamp of a read is that of the last segment in it, so the first read takes a single byte. (Segments that
            # the kernel merged while they waited have the stamp of the last: late, but never later than our own.)
            return await self._read(1 if first else _READ_BYTES)
        for _ in range(_MAX_TLS_READS):
            try:
                return self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                data = await self._read(_READ_BYTES)
                if not data:
                    return b""
                self._incoming.write(data)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLError as error:
                raise ProbeLost(f"tls {(error.reason or 'error').lower().replace('_', ' ')}") from None
        raise ProbeLost("bad response: TLS records without data")

    async def _flush_tls(self) -> Instant:
        return await self._write(self._outgoing.read())

    async def _write(self, data: bytes) -> Instant:
        sent = _now()
        while data:
            sent = _now()
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                await wait_for_io(self._sock, "write", self._deadline_s)
            except OSError as error:
                raise ProbeLost(loss_reason(error.errno or 0)) from None
        return sent

    async def _read(self, most_bytes: int) -> bytes:
        while True:
            # Waiting first, even when bytes are there, keeps a fast sender from running past the deadline.
            await wait_for_io(self._sock, "read", self._deadline_s)
            self.read_at = _now()
            try:
                data, ancillary, _flags, _address = self._sock.recvmsg(most_bytes, _ANCILLARY_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise ProbeLost(loss_reason(error.errno or 0)) from None
            self.kernel_ns = kernel_stamp_ns(ancillary)
            return data


def kernel_stamp_ns(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """The wall time in ns at which the kernel received a packet, from `recvmsg`'s ancillary data (SCM_TIMESTAMPNS)."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(data) >= struct.calcsize("@ll"):
            seconds, nanoseconds = struct.unpack_from("@ll", data)
            return int(seconds) * 1_000_000_000 + int(nanoseconds)
    return None
