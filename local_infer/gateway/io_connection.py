"""aiohttp's HTTP server with what it lacks: a limit for slow headers, errors in the API's form, knowing who is idle."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader

from core.config_infer import GatewayLimits
from core.io_log import get_logger
from local_infer.api.headers import error_headers
from local_infer.fault import INVALID, SERVER, ApiError

_log = get_logger("gateway")

_NO_LOG = logging.Logger("local_infer.access", logging.CRITICAL)
"""aiohttp looks once whether its access logger is enabled; ours is written by `io_server`."""

_LINGER_S = 1.0
"""A body that is not wanted is still read for so long: closed at once, the client might lose our answer to the RST."""

_LEAST_CONNECTIONS = 64


def _descriptors() -> int:
    """Files and sockets that this process may have open."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Connection(web.RequestHandler):
    """One client's connection."""

    def __init__(self, server: GatewayServer, header_time_s: float, idle_s: float) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=_NO_LOG,
            keepalive_timeout=idle_s,
            lingering_time=_LINGER_S,
        )
        self._server = server
        self._header_time_s = header_time_s
        self._header_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    def data_received(self, data: bytes) -> None:
        """As aiohttp does; a request that has begun gets `header_time` for its headers."""
        super().data_received(data)
        # A handler that waits after bytes came has got a part of a request; so has one that has not begun to wait.
        if self.idle or not self._request_count:
            if self._header_timer is None:
                self._header_timer = self._loop.call_later(self._header_time_s, self._too_slow)
        elif self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """As aiohttp does."""
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.idle and self.transport is not None:
            error = ApiError(408, INVALID, "the request headers came too slowly")
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
                b"X-Request-Id: %s\r\nContent-Length: %d\r\n\r\n%s"
                % (self._server.new_id().encode(), len(error.body()), error.body())
            )
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Faults of HTTP itself (the parser's), as the API words errors. No traceback, nothing of the request."""
        if status >= 500 and not isinstance(exc, ConnectionError):  # that is a client that left
            _log.error("request_failed", error=type(exc).__name__ if exc else "", why=str(exc)[:200])
        what = (message or "").splitlines()[0][:200] if status < 500 and message else ""
        error = ApiError(status, INVALID if status < 500 else SERVER, what or "the request could not be handled", "")
        headers = {**error_headers(error), "X-Request-Id": self._server.new_id()}
        response = web.Response(status=status, body=error.body(), headers=headers)
        response.force_close()
        return response


class GatewayServer(web.Server):
    """Makes connections; `limits` hold for those made from now on. `new_id` makes ids of requests that no handler sees.

    Those of clients that have shown no good key are strangers. They cost a descriptor each, of which upstreams, disk and
    generator need some too: past half of them the stranger who came first goes, at last the new one itself.
    """

    def __init__(self, handler: Handler, limits: GatewayLimits, new_id: Callable[[], str]) -> None:
        # A client that goes away cancels its handler, and so the upstream.
        super().__init__(handler, handler_cancellation=True)
        self.limits = limits
        self.new_id = new_id
        self._most = max(_LEAST_CONNECTIONS, _descriptors() // 2)
        self._strangers: dict[web.RequestHandler, None] = {}

    def __call__(self) -> Connection:
        return Connection(self, self.limits.header_time, self.limits.idle)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """A new connection, of a stranger."""
        super().connection_made(handler, transport)
        self._strangers[handler] = None
        if len(self._connections) > self._most:
            first = next(iter(self._strangers))
            # Counted out now: it is closed in the next turn of the loop.
            del self._strangers[first]
            if first.transport is not None:
                first.transport.abort()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """It is over."""
        self._strangers.pop(handler, None)
        super().connection_lost(handler, exc)

    def know(self, handler: web.RequestHandler) -> None:
        """Its client has shown a good key."""
        self._strangers.pop(handler, None)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        return web.BaseRequest(
            message,
            payload,
            protocol,
            writer,
            task,
            self._loop,
            client_max_size=self.limits.body,
        )

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._connections)

    def close_idle(self) -> None:
        """Close connections without a request."""
        for connection in self.connections:
            if isinstance(connection, Connection) and connection.idle:
                connection.close()


class StreamedResponse(web.StreamResponse):
    """A response whose headers go out in one packet with its first bytes."""

    _send_headers_immediately = False


async def read_body(request: web.BaseRequest, limits: GatewayLimits) -> bytes:
    """The body, whole; ApiError 413 or 408. What is decompressed counts, not what came."""
    try:
        if request.content.is_eof():
            return await request.read()
        if request.headers.get(hdrs.EXPECT, "").lower() == "100-continue":
            # RFC 9110 10.1.1: only now, when key and length are known to be good. curl asks so for large bodies.
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        async with asyncio.timeout(limits.header_time):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large(limits.body) from None
    except TimeoutError:
        raise ApiError(
            408, INVALID, f"the request was not here whole within {limits.header_time:g} s", code="timeout"
        ) from None
    except web.RequestPayloadError:
        raise ApiError(400, INVALID, "the body is not what its headers say") from None


def too_large(limit_bytes: int) -> ApiError:
    """For a body that is longer."""
    return ApiError(413, INVALID, f"the body is larger than {limit_bytes} bytes", code="body_too_large")
