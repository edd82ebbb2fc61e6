"""HTTP/2 to an upstream, by httpx2: one connection carries all requests, which saves far upstreams their handshakes.

Two things httpx2 leaves to us, both seen in httpcore2 2.16:

- A response that is given up is forgotten, but its stream is not reset: the upstream would generate to the end for nobody.
  So streams that h2 has open and nobody waits for are reset with CANCEL (RFC 9113 8.1, 6.4). This reaches into private
  parts; `tests/local_infer/test_io_http2.py` shows whether they are still where they were.
- A read timeout breaks the connection for all its requests. So none is set: pauses are watched here, by request, and a dead
  peer is found by the sockets' own timeouts (`socket_options`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from core.config_infer import Routing, Upstream
from core.errors import NearpathError
from local_infer.telemetry.call import NO_HEADERS
from local_infer.upstreams.io_attempt import Broken, Reply
from local_infer.upstreams.io_credentials import base_headers
from local_infer.upstreams.io_sockets import end_if_silent, socket_options

try:
    import h2.errors
    import httpcore2
    import httpx2
except ImportError:  # the `infer` extra is not installed
    HAVE_HTTP2 = False
else:
    HAVE_HTTP2 = True


class Http2Transport:
    """HTTP/2 to one upstream: negotiated with https, by prior knowledge (RFC 9113 3.3) with http."""

    def __init__(self, name: str, upstream: Upstream, routing: Routing, key: str, tls: ssl.SSLContext | None) -> None:
        if not HAVE_HTTP2:
            raise NearpathError(
                f"upstream {name} has http2: true, but httpx2 is not installed",
                "install nearpath with the `infer` extra, or take http2 out",
            )
        self._base = upstream.url.rstrip("/")
        self._give_up_s = routing.give_up
        self._transport = httpx2.AsyncHTTPTransport(
            verify=tls if tls is not None else ssl.create_default_context(),
            trust_env=False,
            # Without TLS nothing is negotiated: then it is HTTP/2 or nothing.
            http1=tls is not None,
            http2=True,
            local_address=upstream.source,
            limits=httpx2.Limits(
                max_connections=upstream.connections,
                max_keepalive_connections=max(1, upstream.warm),
                keepalive_expiry=max(60.0, 2 * routing.probe_every),
            ),
            socket_options=socket_options(routing.give_up),
        )
        self._headers = base_headers(upstream, key)
        self._sweeps: set[asyncio.Task[None]] = set()

    async def send(
        self, method: str, path: str, body: bytes, accept: str, request_id: str, connect_s: float, read_s: float,
        more: Mapping[str, str] = NO_HEADERS,
    ) -> Reply:  # fmt: skip
        """See `Transport`; `read_s` is watched by the caller."""
        headers = {**self._headers, "Accept": accept, "X-Request-Id": request_id, **more}
        if method == "POST":
            headers["Content-Type"] = "application/json"
        sent = _Sent()
        request = httpx2.Request(
            method,
            self._base + path,
            headers=headers,
            content=body or None,
            extensions={
                "timeout": {"connect": connect_s, "pool": connect_s, "read": None, "write": read_s},
                "trace": sent.note,
            },
        )
        try:
            response = await self._transport.handle_async_request(request)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise _broken(error) from None
        except asyncio.CancelledError:
            self._sweep_soon()
            raise
        return _Http2Reply(response, sent, self)

    def has_lost(self) -> bool:
        """See `Transport`. Nobody reads a connection without requests: that there is something to read is its end.

        Or a PING or GOAWAY, which the probe that follows reads; until then it is told again.
        """
        idle = [connection for connection in self._connections() if connection.is_idle()]
        for connection in idle:
            end_if_silent(connection._network_stream.get_extra_info("socket"), self._give_up_s)
        return any(connection._network_stream.get_extra_info("is_readable") for connection in idle)

    async def close(self) -> None:
        """Close all connections."""
        for task in list(self._sweeps):
            with suppress(asyncio.CancelledError):
                await task
        await self._transport.aclose()

    def _sweep_soon(self) -> None:
        # Not awaited: who cancels a request does not wait for a slow upstream.
        task = asyncio.get_running_loop().create_task(self._sweep())
        self._sweeps.add(task)
        task.add_done_callback(self._sweeps.discard)

    async def _sweep(self) -> None:
        """Reset the streams that are open and that nobody waits for."""
        for connection in self._connections():
            state, waiting = connection._h2_state, connection._events
            abandoned = [
                number for number, one in list(state.streams.items()) if number not in waiting and not one.closed
            ]
            for number in abandoned:
                with suppress(Exception):  # closed by the peer in between
                    state.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
            if abandoned:
                with suppress(Exception):  # a broken connection has nothing left to cancel
                    await connection._write_outgoing_data(httpcore2.Request("GET", self._base))

    def forget(self, response: Any) -> None:
        """Give back the flow control window (RFC 9113 6.9) of data that came and is not read any more."""
        number, wire = response.extensions.get("stream_id"), response.extensions.get("network_stream")
        for connection in self._connections():
            if connection._network_stream is not wire:
                continue
            for event in connection._events.get(number, ()):
                with suppress(Exception):
                    connection._h2_state.acknowledge_received_data(event.flow_controlled_length, number)

    def _connections(self) -> list[Any]:
        pool: Any = self._transport._pool
        inner = [getattr(connection, "_connection", None) for connection in pool.connections]
        return [connection for connection in inner if hasattr(connection, "_h2_state")]


class _Sent:
    """When the request's headers went out, and whether a connection had to be made first."""

    __slots__ = ("at_s", "reused")

    def __init__(self) -> None:
        self.at_s = time.monotonic()
        self.reused = True

    async def note(self, event: str, _info: Mapping[str, Any]) -> None:
        if event.endswith("connect_tcp.started"):
            self.reused = False
        elif event.endswith("send_request_headers.started"):
            self.at_s = time.monotonic()


class _Http2Reply:
    __slots__ = (
        "_closed",
        "_ended",
        "_owner",
        "_pause_s",
        "_pieces",
        "_response",
        "headers",
        "reused",
        "sent_s",
        "status",
    )

    def __init__(self, response: Any, sent: _Sent, owner: Http2Transport) -> None:
        self._response = response
        self._pieces: AsyncIterator[bytes] = response.stream.__aiter__()
        self._owner = owner
        self._closed = self._ended = False
        self._pause_s: float | None = None
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = {name.lower(): value for name, value in response.headers.items()}
        self.sent_s = sent.at_s
        self.reused = sent.reused

    def wait_at_most(self, pause_s: float) -> None:
        self._pause_s = pause_s

    async def read(self) -> bytes:
        if self._ended:
            return b""
        try:
            async with asyncio.timeout(self._pause_s):
                while True:
                    data = await anext(self._pieces, None)
                    if data is None:
                        self._ended = True
                        return b""
                    if data:
                        return data
        except TimeoutError:
            raise Broken("timeout") from None
        except (httpx2.HTTPError, OSError, ValueError) as error:
            raise Broken("cut" if isinstance(error, httpx2.RemoteProtocolError) else _broken(error).reason) from None

    @property
    def at_end(self) -> bool:
        return self._ended

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._ended:
            self._owner.forget(self._response)
        # At the end too: only this gives the stream's place in the connection back.
        with suppress(httpx2.HTTPError, OSError):
            await self._response.aclose()
        if not self._ended:
            self._owner._sweep_soon()


def _broken(error: BaseException) -> Broken:
    match error:
        case httpx2.ConnectTimeout() | httpx2.PoolTimeout():
            return Broken("connect")
        case httpx2.TimeoutException():
            return Broken("timeout")
        case httpx2.ConnectError():
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, ssl.SSLError):
                cause = cause.__cause__ or cause.__context__
            return Broken("connect" if cause is None else "tls")
        case httpx2.NetworkError() | httpx2.RemoteProtocolError():
            return Broken("reset")
    return Broken("broken answer")
