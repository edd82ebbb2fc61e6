"""One request to one upstream: connections by aiohttp, and reading a response up to where its answer has begun.

What goes wrong is told in fixed words only (`Failure.reason`): messages of exceptions may hold addresses, and requests hold
credentials.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import functools
import socket
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from core.config_infer import Routing, Upstream
from local_infer.api.sse import Overlong, Splitter, ends_with_done, up_to_done
from local_infer.model import Ask, Stream
from local_infer.room import UNCOUNTED_BYTES, Place, Room
from local_infer.telemetry.call import NO_HEADERS
from local_infer.upstreams.attempt import (
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    SMALL_ANSWER_BYTES,
    Failure,
    Verdict,
    as_stream,
    fault_of_body,
    fault_of_event,
    find_strange,
    first_event,
    is_event_stream,
    is_object,
    judge,
    reason_of,
    retry_after_s,
    without_secret,
)
from local_infer.upstreams.io_credentials import base_headers
from local_infer.upstreams.io_sockets import end_if_silent, socket_options

_READ_BYTES = 1 << 16

_STALE_WITHIN_S = 1.0
"""A kept connection that the peer had closed answers a request with a reset after one RTT; later it is a crash."""


class AttemptFailed(Exception):
    """An attempt gave no answer; nothing was sent to the client."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class Broken(Exception):
    """The connection or the response broke; `reason` as in `Failure`."""

    def __init__(self, reason: str, *, stale: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.stale = stale


class Reply(Protocol):
    """A response whose headers have come. `sent_s` (monotonic) is when a connection was there for the request."""

    status: int
    headers: Mapping[str, str]
    sent_s: float
    reused: bool

    def wait_at_most(self, pause_s: float) -> None:
        """From now on a pause longer than this breaks the response."""
        ...

    async def read(self) -> bytes:
        """The next bytes; empty at the proper end. Raises Broken."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether the end has come, so that the connection can be used again."""
        ...

    async def close(self) -> None:
        """Give the response up; what was not read is cancelled. Harmless at the end."""
        ...


class Transport(Protocol):
    """The connections to one upstream."""

    async def send(
        self, method: str, path: str, body: bytes, accept: str, request_id: str, connect_s: float, read_s: float,
        more: Mapping[str, str] = NO_HEADERS,
    ) -> Reply:  # fmt: skip
        """Send a request, with `more` headers, and wait for those of the response (`read_s` at most between bytes).

        Raises Broken.
        """
        ...

    def has_lost(self) -> bool:
        """Whether the peer, or the silence of the network, ended a kept connection since this was asked last."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


@dataclass(slots=True)
class Begun:
    """An answer that has begun: whole in `body`, or a stream with its first events in `first`.

    `headers` are all of the upstream's. `sample`: the time is a measure of the upstream, not of the answer's length.
    While a stream goes on, `ended` tells that `[DONE]` has come, and `reason` why it broke.
    """

    status: int
    headers: Mapping[str, str]
    ttfb_s: float
    sample: bool
    body: bytes | None
    first: bytes = b""
    splitter: Splitter | None = None
    reply: Reply | None = None
    ended: bool = False
    reason: str = ""


async def begin(
    transport: Transport,
    ask: Ask,
    body: bytes,
    connect_s: float,
    begin_s: float,
    secret: bytes,
    clock: Callable[[], float],
    room: Room,
    more: Mapping[str, str] = NO_HEADERS,
) -> Begun:
    """Send `body` and read until the answer has begun, `begin_s` at most. Raises AttemptFailed; cancelling closes all.

    ApiError 429 when `room` has none for a long whole answer.
    """
    accept = "text/event-stream" if ask.stream else "application/json"
    reply: Reply | None = None
    kept = False
    try:
        async with asyncio.timeout(begin_s):
            reply = await transport.send("POST", ask.endpoint.value, body, accept, ask.id, connect_s, begin_s, more)
            begun = await _begin(reply, ask, secret, clock, room)
            kept = begun.reply is not None
            return begun
    except TimeoutError:
        raise AttemptFailed(Failure("timeout")) from None
    except Broken as broken:
        raise AttemptFailed(Failure(broken.reason, stale_connection=broken.stale)) from None
    except Overlong:
        raise AttemptFailed(Failure("too long")) from None
    finally:
        if reply is not None and not kept:
            await reply.close()


async def _begin(reply: Reply, ask: Ask, secret: bytes, clock: Callable[[], float], room: Room) -> Begun:
    ttfb_s = time.monotonic() - reply.sent_s
    status, headers = reply.status, reply.headers
    verdict = judge(status, headers)
    if verdict is not Verdict.ANSWER:
        raise AttemptFailed(await _failure(reply, verdict, clock()))
    strange = find_strange(status, headers)
    if strange:
        raise AttemptFailed(Failure(strange))
    if status < 300 and ask.stream and is_event_stream(headers):
        with room.answer_place() as place:
            return await _begin_stream(reply, secret, place)
    body = await _read_whole(reply, room)
    if status >= 400:
        return Begun(status, headers, ttfb_s, False, without_secret(body, secret))
    fault = fault_of_body(body)
    if fault is not None:
        return _own_fault(fault, headers, ttfb_s, secret)
    events = as_stream(body, ask) if ask.stream else None
    if events is None and (ask.stream or not is_object(body)):
        # A body that ends with its connection may have been cut anywhere, and HTTP would not tell (RFC 9112 8).
        cut = body.lstrip().startswith(b"{") and not is_object(body)
        raise AttemptFailed(Failure("cut" if cut else "not the API"))
    if events is not None:
        return Begun(status, {**headers, "content-type": "text/event-stream; charset=utf-8"}, ttfb_s, True, events)
    small = ask.endpoint.value == "/embeddings" or len(body) <= SMALL_ANSWER_BYTES
    return Begun(status, headers, ttfb_s, small, body)


async def _begin_stream(reply: Reply, secret: bytes, place: Place) -> Begun:
    splitter = Splitter()
    first = b""
    while True:
        data = await reply.read()
        if not data:
            raise Broken("cut")
        events = splitter.feed(data)
        first += events
        place.hold(len(first) + splitter.held_bytes)
        # Comments that keep the connection alive are no answer; they go out with the first event that is one.
        event = first_event(events) if events else b""
        if event:
            break
        if len(first) > MAX_ERROR_BYTES:
            raise Overlong("comments")
    ttfb_s = time.monotonic() - reply.sent_s
    fault = fault_of_event(event)
    if fault is not None:
        return _own_fault(fault, reply.headers, ttfb_s, secret)
    return Begun(reply.status, reply.headers, ttfb_s, True, None, first, splitter, reply)


def _own_fault(fault: Failure, headers: Mapping[str, str], ttfb_s: float, secret: bytes) -> Begun:
    """An error within a 200: the client's own fault is an answer, with the status it should have had."""
    status, body = fault.status, without_secret(fault.body, secret)
    if status is None or judge(status, {}) is not Verdict.ANSWER:
        raise AttemptFailed(Failure(fault.reason, fault.status, full=fault.full))
    return Begun(status, {**headers, "content-type": "application/json"}, ttfb_s, False, body)


async def _failure(reply: Reply, verdict: Verdict, now: float) -> Failure:
    reason = reason_of(reply.status)
    if reply.status >= 400 and reason != "credentials":
        # Nobody is shown what it says; but read to its end, its connection can be used again.
        with suppress(Broken, AttemptFailed):
            await _read_some(reply, MAX_ERROR_BYTES)
    wait_s = retry_after_s(reply.headers, now)
    in_ms = "retry-after-ms" in reply.headers
    return Failure(reason, reply.status, retry_after_s=wait_s, in_ms=in_ms, full=verdict is Verdict.FULL)


async def _read_whole(reply: Reply, room: Room) -> bytes:
    """An answer of any length that is taken; ApiError 429 when the gateway has no room for it."""
    with room.answer_place() as place:
        # Its pieces, and in the end the whole of them beside.
        return await _read_some(reply, MAX_ANSWER_BYTES, lambda length: place.resize(2 * length))


async def _read_some(reply: Reply, limit: int, grown: Callable[[int], None] | None = None) -> bytes:
    pieces, length = [], 0
    while data := await reply.read():
        pieces.append(data)
        length += len(data)
        if length > limit:
            raise AttemptFailed(Failure("too long"))
        if grown is not None and length > UNCOUNTED_BYTES:
            grown(length)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def hold_first(begun: Begun, place: Place) -> None:
    """Room for the first events of a stream, until they are taken; ApiError 429 when there is none."""
    assert begun.splitter is not None
    held_bytes = len(begun.first) + begun.splitter.held_bytes
    if held_bytes > UNCOUNTED_BYTES:
        place.hold(held_bytes)


async def events_of(begun: Begun, pause_s: float, place: Place) -> Stream:
    """Runs of whole events of a stream up to its end; why it ended before, if it did, is left in `begun.reason`.

    `place` is for events that are long: ApiError 429 when there is no room for one. Who takes a run holds it to the next.
    """
    reply, splitter = begun.reply, begun.splitter
    assert reply is not None
    assert splitter is not None
    hold_first(begun, place)
    # Not kept for as long as the stream goes on: it may be long.
    events, begun.first = up_to_done(begun.first), b""
    given_bytes = len(events)
    yield events
    reply.wait_at_most(pause_s)
    begun.ended = ends_with_done(events)
    try:
        while not begun.ended:
            data = await reply.read()
            if not data:
                return
            events = up_to_done(splitter.feed(data))
            given_bytes = len(events) or given_bytes
            held_bytes = given_bytes + splitter.held_bytes
            if held_bytes > UNCOUNTED_BYTES or place.counted:
                place.hold(held_bytes)
            if events:
                begun.ended = ends_with_done(events)
                yield events
    except Broken as broken:
        begun.reason = broken.reason
    except Overlong:
        begun.reason = "too long"


# -- HTTP/1.1 by aiohttp


class _Sent:
    """What the connector knows of the request under way in this task."""

    __slots__ = ("at_s", "reused")

    def __init__(self) -> None:
        self.at_s = time.monotonic()
        self.reused = False


_SENT: contextvars.ContextVar[_Sent] = contextvars.ContextVar("sent")


class _Handler(ResponseHandler):
    """Tells when a connection that would have been kept ends from the other side."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[], None]) -> None:
        super().__init__(loop)
        self._lost = lost

    def connection_lost(self, exc: BaseException | None) -> None:
        # Without a transport it was closed by us; one that is to be closed is not kept, or carries half an answer.
        if self.transport is not None and not self.should_close:
            self._lost()
        super().connection_lost(exc)


class _Connector(aiohttp.TCPConnector):
    """Tells whether a request goes over a connection that was used before, and when it got it."""

    _used: weakref.WeakSet[ResponseHandler]

    async def connect(self, req: Any, traces: Any, timeout: aiohttp.ClientTimeout) -> Any:  # noqa: ASYNC109 (theirs)
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        sent = _SENT.get(None)
        if sent is not None and protocol is not None:
            sent.reused = protocol in self._used
            sent.at_s = time.monotonic()
            self._used.add(protocol)
        return connection


class AiohttpTransport:
    """HTTP/1.1 connections to one upstream, kept open. Make it on the event loop."""

    def __init__(self, upstream: Upstream, routing: Routing, key: str, tls: ssl.SSLContext | None) -> None:
        base = upstream.url.rstrip("/")
        self._urls = {path: URL(base + path) for path in ("/chat/completions", "/completions", "/embeddings")}
        self._urls[upstream.probe] = URL(base + upstream.probe, encoded=True)
        options = socket_options(routing.give_up)

        def make_socket(info: aiohttp.AddrInfoType) -> socket.socket:
            family, kind, proto, _, _ = info
            sock = socket.socket(family, kind, proto)
            for level, option, value in options:
                sock.setsockopt(level, option, value)
            return sock

        connector = _Connector(
            limit=upstream.connections,
            ssl=tls if tls is not None else True,
            local_addr=(upstream.source, 0) if upstream.source else None,
            keepalive_timeout=max(60.0, 2 * routing.probe_every),
            ttl_dns_cache=60,
            socket_factory=make_socket,
        )
        connector._used = weakref.WeakSet()
        connector._factory = functools.partial(_Handler, asyncio.get_running_loop(), self._note_lost)  # type: ignore[assignment]
        self._connector, self._give_up_s, self._has_lost = connector, routing.give_up, False
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=base_headers(upstream, key),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BYTES,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def send(
        self, method: str, path: str, body: bytes, accept: str, request_id: str, connect_s: float, read_s: float,
        more: Mapping[str, str] = NO_HEADERS,
    ) -> Reply:  # fmt: skip
        """See `Transport`. No redirect is followed: it would get to see the credentials."""
        headers = {"Accept": accept, "X-Request-Id": request_id, **more}
        if method == "POST":
            headers["Content-Type"] = "application/json"
        sent = _Sent()
        _SENT.set(sent)
        try:
            response = await self._session.request(
                method,
                self._urls[path],
                data=body or None,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=read_s),
            )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            early = time.monotonic() - sent.at_s < _STALE_WITHIN_S
            raise _broken(error, sent.reused and early) from None
        return _AiohttpReply(response, sent)

    def has_lost(self) -> bool:
        """See `Transport`."""
        for kept in self._connector._conns.values():
            # The newest first: when that one is heard of, so were the others a moment ago, or the kernel sees to them.
            transports = [protocol.transport for protocol, _since in reversed(kept) if protocol.transport is not None]
            for transport in transports:
                if not end_if_silent(transport.get_extra_info("socket"), self._give_up_s):
                    break
        lost, self._has_lost = self._has_lost, False
        return lost

    def _note_lost(self) -> None:
        self._has_lost = True

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()


class _AiohttpReply:
    __slots__ = ("_response", "headers", "reused", "sent_s", "status")

    def __init__(self, response: aiohttp.ClientResponse, sent: _Sent) -> None:
        self._response = response
        self.status = response.status
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self.sent_s = sent.at_s
        self.reused = sent.reused

    def wait_at_most(self, pause_s: float) -> None:
        connection = self._response.connection
        protocol = connection.protocol if connection is not None else None
        if protocol is not None:
            protocol.read_timeout = pause_s
            protocol.start_timeout()

    async def read(self) -> bytes:
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _broken(error, False) from None

    @property
    def at_end(self) -> bool:
        return self._response.content.at_eof()

    async def close(self) -> None:
        if self.at_end:
            self._response.release()
        else:
            self._response.close()


def _broken(error: BaseException, reused: bool) -> Broken:
    """The fixed word for an exception; `stale` when a kept connection was closed before it carried anything back."""
    match error:
        case aiohttp.ConnectionTimeoutError():
            return Broken("connect")
        case TimeoutError():
            return Broken("timeout")
        case aiohttp.ClientConnectorDNSError():
            return Broken("dns")
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientSSLError() | ssl.SSLError():
            return Broken("tls")
        case aiohttp.ClientConnectorError():
            return Broken("connect")
        case aiohttp.ClientPayloadError():
            return Broken("cut")
        case OSError(errno=errno.ETIMEDOUT):
            return Broken("timeout")
        case aiohttp.ServerDisconnectedError() | ConnectionError() | aiohttp.ClientOSError():
            return Broken("reset", stale=reused)
    return Broken("broken answer")
