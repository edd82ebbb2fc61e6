"""A tiny name server on loopback for tests: real sockets, and an answer for each question that the test decides."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset

Respond = Callable[[dns.message.Message, bool], dns.message.Message | None]
"""(query, came over TCP) -> answer, or None to stay silent."""


class NameServer:
    """Answers on one address and port until it is closed; without `tcp` nobody listens there."""

    def __init__(self, host: str, port: int, respond: Respond, tcp: bool = True) -> None:
        self.respond = respond
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((host, port))
        self.host, self.port = self._udp.getsockname()
        threads = [threading.Thread(target=self._serve_udp, daemon=True)]
        self._tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM) if tcp else None
        if self._tcp is not None:
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                self._tcp.bind((host, self.port))
                self._tcp.listen()
            except OSError:
                self.close()
                raise
            threads.append(threading.Thread(target=self._serve_tcp, daemon=True))
        for thread in threads:
            thread.start()

    def close(self) -> None:
        for sock in (self._udp, self._tcp):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _serve_udp(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, client = self._udp.recvfrom(65535)
                if not data:
                    continue
                answer = self.respond(dns.message.from_wire(data), False)
                if answer is not None:
                    self._udp.sendto(answer.to_wire(), client)

    def _serve_tcp(self) -> None:
        assert self._tcp is not None
        with contextlib.suppress(OSError):
            while True:
                connection, _client = self._tcp.accept()
                with connection, contextlib.suppress(OSError, struct.error):
                    connection.settimeout(5)
                    (length,) = struct.unpack("!H", connection.recv(2, socket.MSG_WAITALL))
                    query = dns.message.from_wire(connection.recv(length, socket.MSG_WAITALL))
                    answer = self.respond(query, True)
                    if answer is not None:
                        wire = answer.to_wire()
                        connection.sendall(struct.pack("!H", len(wire)) + wire)


class Net:
    """Several addresses of 127.0.0.0/8 with the one port that the first of them was given."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.port = 0

    def serve(self, host: str, respond: Respond, tcp: bool = True) -> NameServer:
        server = NameServer(host, self.port, respond, tcp)
        self._stack.callback(server.close)
        self.port = server.port
        return server


@contextmanager
def loopback_net() -> Iterator[Net]:
    """A Net whose servers are closed at the end."""
    with ExitStack() as stack:
        yield Net(stack)


def reply(
    query: dns.message.Message, *, aa: bool = True, rcode: dns.rcode.Rcode = dns.rcode.NOERROR
) -> dns.message.Message:
    """An answer to `query` without records."""
    message = dns.message.make_response(query)
    message.flags |= dns.flags.AA if aa else 0
    message.set_rcode(rcode)
    return message


def records(owner: str, ttl: int, rtype: str, *data: str) -> dns.rrset.RRset:
    """An RRset from text."""
    return dns.rrset.from_text(owner, ttl, "IN", rtype, *data)


def child(origin: str, serial: int = 7, ns: tuple[str, ...] = ()) -> Respond:
    """A server that is authoritative for `origin`."""

    def respond(query: dns.message.Message, _tcp: bool) -> dns.message.Message:
        message = reply(query)
        asked = query.question[0]
        soa = records(origin, 3600, "SOA", f"ns1.{origin} hostmaster.{origin} {serial} 3600 600 86400 60")
        if asked.name == dns.name.from_text(origin) and asked.rdtype == dns.rdatatype.SOA:
            message.answer.append(soa)
        elif asked.name == dns.name.from_text(origin) and asked.rdtype == dns.rdatatype.NS and ns:
            message.answer.append(records(origin, 3600, "NS", *ns))
        else:
            message.authority.append(soa)
        return message

    return respond


def refuse(query: dns.message.Message, _tcp: bool) -> dns.message.Message:
    """A server that knows nothing of the zone: lame."""
    return reply(query, aa=False, rcode=dns.rcode.REFUSED)


def parent(
    origin: str, ns: tuple[str, ...], glue: dict[str, tuple[str, ...]], *, ds: bool = False, ttl: int = 3600
) -> Respond:
    """A server of the parent zone that delegates `origin`."""

    def respond(query: dns.message.Message, _tcp: bool) -> dns.message.Message:
        if query.question[0].rdtype == dns.rdatatype.DS:
            message = reply(query)
            if ds:
                message.answer.append(records(origin, 3600, "DS", "12345 13 2 " + "ab" * 32))
            return message
        message = reply(query, aa=False)
        message.authority.append(records(origin, ttl, "NS", *ns))
        for owner, addresses in glue.items():
            for rtype in ("A", "AAAA"):
                of_type = [a for a in addresses if (":" in a) == (rtype == "AAAA")]
                if of_type:
                    message.additional.append(records(owner, ttl, rtype, *of_type))
        return message

    return respond
