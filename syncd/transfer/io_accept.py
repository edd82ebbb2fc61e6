"""Accepting connections for the parent's port, bounded: whoever has not shown a token yet can take little of it.

A connection is a stranger until its first allowed request. A stranger has `head_s` for its TLS handshake and the head of
that request, and when there are too many, the oldest goes: so a flood of silent ones cannot keep a child out, which
needs milliseconds to show who it is. aiohttp offers neither such limits nor a time for heads of its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

_STUCK_S = 300
"""A peer that neither takes nor acknowledges anything for so long is gone, or holds what was sent to it on purpose."""
_PAUSE_S = 0.1
"""After accept(2) failed: mostly there are no more descriptors, and some will be closed."""


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """How many connections there may be, and how long one may take to show who it is. An IPv6 address counts by its /64."""

    head_s: float = 10.0
    strangers: int = 512
    strangers_per_address: int = 128
    """a site's children behind one address may all come at once, after this parent was restarted"""
    connections: int = 4096
    connections_per_address: int = 1024
    """each child has a poll per tree, and some rsyncs"""


class Door:
    """Accepts on one listening socket and gives each connection a protocol from `make`.

    `accepted` counts all, `refused` those closed, or with an older one closed for them, for one of the limits.
    """

    def __init__(
        self, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None, limits: DoorLimits = DoorLimits()
    ) -> None:
        self.accepted = 0
        self.refused = 0
        self._make = make
        self._tls = tls
        self._limits = limits
        self._by_address: Counter[str] = Counter()
        self._by_node: Counter[str] = Counter()
        self._strangers: dict[Guest, None] = {}
        self._strangers_by_address: dict[str, dict[Guest, None]] = {}
        self._handshakes: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """How many there are."""
        return self._by_address.total()

    async def serve(self, sock: socket.socket) -> None:
        """Accept until cancelled; then the listening socket and the strangers are gone."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    accepted, place = await loop.sock_accept(sock)
                except OSError:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                self._let_in(accepted, address_of(str(place[0])))
                await asyncio.sleep(0)  # sock_accept does not give way while connections are waiting
        finally:
            sock.close()
            for guest in tuple(self._strangers):
                guest.drop()

    def _let_in(self, sock: socket.socket, address: str) -> None:
        self.accepted += 1
        limits = self._limits
        nearby = self._strangers_by_address.get(address, {})
        oldest: Guest | None = None
        is_full = False
        if len(nearby) >= limits.strangers_per_address or self._by_address[address] >= limits.connections_per_address:
            oldest, is_full = next(iter(nearby), None), True
        elif len(self._strangers) >= limits.strangers or self.connections >= limits.connections:
            oldest, is_full = next(iter(self._strangers), None), True
        if is_full:
            self.refused += 1
            if oldest is None:
                sock.close()
                return
            oldest.drop()
        self._by_address[address] += 1
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_S * 1000)
        guest = Guest(self, sock, address, self._make(), limits.head_s)
        self._strangers[guest] = None
        self._strangers_by_address.setdefault(address, {})[guest] = None
        guest.handshake = asyncio.create_task(self._shake(guest))
        self._handshakes.add(guest.handshake)
        guest.handshake.add_done_callback(self._handshakes.discard)

    async def _shake(self, guest: Guest) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(guest.take, guest.sock, ssl=self._tls)
        except OSError:  # ssl.SSLError is one; what a stranger does in its handshake is nobody's concern
            guest.leave()

    def is_stranger(self, guest: Guest) -> bool:
        """Whether no allowed request came over this connection yet."""
        return guest in self._strangers

    def admit(self, guest: Guest, node: str, limit: int) -> bool:
        """Count the connection as the child's whose first allowed request came; False when it has `limit` already.

        So that one child, from however many addresses, cannot take all the connections there may be.
        """
        if self._by_node[node] >= limit:
            return False
        self._by_node[node] += 1
        self.known(guest)
        return True

    def known(self, guest: Guest) -> None:
        """It is a stranger no more."""
        if self._strangers.pop(guest, self) is None:
            nearby = self._strangers_by_address[guest.address]
            del nearby[guest]
            if not nearby:
                del self._strangers_by_address[guest.address]

    def left(self, guest: Guest) -> None:
        """It is gone."""
        self.known(guest)
        for counter, key in ((self._by_address, guest.address), (self._by_node, guest.node)):
            counter[key] -= 1
            if counter[key] <= 0:
                del counter[key]


class Guest(asyncio.Protocol):
    """One connection: passes everything on to the protocol it is for, and tells the door when it is gone."""

    def __init__(self, door: Door, sock: socket.socket, address: str, inner: asyncio.Protocol, head_s: float) -> None:
        self.sock = sock
        self.address = address
        self.node = ""
        """of the child whose connection it is, once that is known"""
        self.handshake: asyncio.Task[None] | None = None
        self._is_taken = False
        self._door: Door | None = door
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._timer = asyncio.get_running_loop().call_later(head_s, self.drop)

    def take(self) -> Guest:
        """The socket belongs to a transport from now on, which closes it."""
        self._is_taken = True
        return self

    @property
    def is_stranger(self) -> bool:
        """Whether no allowed request came yet."""
        return self._door is not None and self._door.is_stranger(self)

    def admit(self, node: str, limit: int) -> bool:
        """An allowed request of `node` came; False when that has too many connections."""
        if self.node or self._door is None:
            return True
        if not self._door.admit(self, node, limit):
            return False
        self.node = node
        self._timer.cancel()
        return True

    def leave(self) -> None:
        """Count it no more."""
        self._timer.cancel()
        if self._door is not None:
            self._door.left(self)
            self._door = None

    def drop(self) -> None:
        """Close it at once."""
        self.leave()
        if self._transport is not None:
            self._transport.abort()
            return
        if self.handshake is not None:
            self.handshake.cancel()
        if not self._is_taken:
            self.sock.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.leave()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def greet(transport: asyncio.Transport | None, node: str, limit: int) -> bool:
    """Note that an allowed request of `node` came over this connection; False when it has `limit` of them already."""
    guest = transport.get_protocol() if transport is not None else None
    return guest.admit(node, limit) if isinstance(guest, Guest) else True


def is_stranger(transport: asyncio.Transport | None) -> bool:
    """Whether nothing that was allowed came over this connection yet."""
    guest = transport.get_protocol() if transport is not None else None
    return isinstance(guest, Guest) and guest.is_stranger


def address_of(host: str) -> str:
    """What connections are counted by: an IPv4 address, or the /64 of an IPv6 one, which is what a site has."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            if address.ipv4_mapped is not None:
                return str(address.ipv4_mapped)
            return str(ipaddress.IPv6Address(int(address) >> 64 << 64))
    return host
