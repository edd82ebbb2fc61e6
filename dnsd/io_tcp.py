"""The TCP plane (RFC 7766): one thread with an event loop serves all connections of all listen addresses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from core.config import split_listen
from dnsd.answer import ClientAddress, Transport
from dnsd.image import Image
from dnsd.io_bind import bind_error
from dnsd.io_faults import FaultLog, answer_guarded
from dnsd.io_udp import client_address
from dnsd.tally import SAMPLE_EVERY, Tally

_BUFFER_BYTES = 8192
"""Unread bytes held per connection before reading pauses: some hundred pipelined queries."""

_BACKLOG = 512
_STOP_WAIT_S = 5.0


class TcpPlane:
    """Serves the listen addresses it was made with.

    A connection may send queries one after another without waiting, and gets the answers in order. It is closed when no
    whole query came for `idle_s` (so single bytes now and then do not keep it), when an answer is not taken for as long,
    and when it is the idlest and a new one needs its place.
    """

    def __init__(
        self, listens: Sequence[str], current: Callable[[], Image], *, idle_s: float, max_connections: int
    ) -> None:
        self.tally = Tally("tcp")
        self._current = current
        self._idle_s = idle_s
        self._max_connections = max_connections
        self._faults = FaultLog("tcp")
        self._connections: OrderedDict[asyncio.WriteTransport, None] = OrderedDict()
        """Open connections, the one that was longest without a query first."""
        self._sockets: list[socket.socket] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._running = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dns-tcp", daemon=True)
        try:
            for listen in listens:
                self._sockets.append(_bind(listen))
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begin to accept; returns once it does."""
        self._thread.start()
        self._running.wait()

    def stop(self) -> None:
        """Stop accepting, close all connections, end the thread."""
        loop, stop = self._loop, self._stop
        if self._thread.is_alive() and loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                loop.call_soon_threadsafe(stop.set)
            self._thread.join(_STOP_WAIT_S)
        self.close()

    def close(self) -> None:
        """Let go of the sockets; only for a plane that is not running."""
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._running.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        servers = [
            await asyncio.start_server(self._connection, sock=sock, limit=_BUFFER_BYTES, backlog=_BACKLOG)
            for sock in self._sockets
        ]
        self._running.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        for transport in list(self._connections):
            transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        self._admit(transport)
        try:
            await self._converse(reader, writer)
        except TimeoutError:
            self.tally.timeouts += 1
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has closed, or its connection was shed
        except Exception as error:  # one connection's fault must not reach the others
            self.tally.errors += 1
            self._faults.note(error)
        finally:
            try:
                await self._finish(writer)
            finally:
                self._connections.pop(transport, None)
                self.tally.connections_open = len(self._connections)

    async def _finish(self, writer: asyncio.StreamWriter) -> None:
        """Close once the client has taken the answers; it may have closed its side only, but cannot hold us for ever."""
        writer.close()
        try:
            async with asyncio.timeout(self._idle_s):
                await writer.wait_closed()
        except (TimeoutError, OSError):
            writer.transport.abort()

    def _admit(self, transport: asyncio.WriteTransport) -> None:
        if len(self._connections) >= self._max_connections:
            idlest, _ = self._connections.popitem(last=False)
            idlest.abort()
            self.tally.connections_shed += 1
        self._connections[transport] = None
        self.tally.connections += 1
        self.tally.connections_open = len(self._connections)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        client = client_address(6 if ":" in peer[0] else 4, peer[0])
        writer.transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        while True:
            async with asyncio.timeout(self._idle_s):
                size = int.from_bytes(await reader.readexactly(2), "big")
                data = await reader.readexactly(size)
            if writer.transport in self._connections:
                self._connections.move_to_end(writer.transport)
            self.tally.received += 1
            timed = not self.tally.received & (SAMPLE_EVERY - 1)
            began_s = time.perf_counter() if timed else 0.0
            wire = self._answer(data, client)
            if wire is None:
                # Over TCP what is not a query is no accident: the framing is lost, or it is not DNS.
                self.tally.silent += 1
                return
            writer.write(struct.pack("!H", len(wire)) + wire)
            if timed:
                self.tally.time(time.perf_counter() - began_s)
            async with asyncio.timeout(self._idle_s):
                await writer.drain()

    def _answer(self, data: bytes, client: ClientAddress) -> bytes | None:
        return answer_guarded(self._current(), data, client, Transport.TCP, self.tally, self._faults)


def _bind(listen: str) -> socket.socket:
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # A restart must not wait for connections in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise bind_error(listen, "TCP", error) from None
    return sock
