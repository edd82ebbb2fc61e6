"""Connections to the report interface that say nothing: closed, so that strangers cannot use up what DNS needs.

The HTTP server by itself waits for the first request for ever, and every connection costs a descriptor of the process that
answers DNS over TCP too. A connection that has asked something is left to the server's own keep-alive limit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

FIRST_REQUEST_S = 10.0
MOST_CONNECTIONS = 2048
"""Ten times as many agents as any installation has; where there are more, those that have asked nothing go first."""

_SPOKE: web.AppKey[set[object]] = web.AppKey("spoke", set)


def heed_silence(app: web.Application) -> None:
    """Note which connections of `app` ask something, for `close_silent`."""
    app[_SPOKE] = set()
    app.middlewares.append(_note)


@web.middleware
async def _note(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    request.app[_SPOKE].add(request.protocol)
    return await handler(request)


async def close_silent(
    runner: web.AppRunner, *, first_request_s: float = FIRST_REQUEST_S, most: int = MOST_CONNECTIONS
) -> None:
    """Close the connections of `runner` that sent no whole request in time, or are too many; never returns."""
    spoke, since_s = runner.app[_SPOKE], dict[object, float]()
    while runner.server is not None:
        now_s, connections = time.monotonic(), runner.server.connections
        since_s = {connection: since_s.get(connection, now_s) for connection in connections}
        spoke.intersection_update(connections)
        # Silent ones first, then those that came first.
        order = sorted(connections, key=lambda connection: (connection in spoke, since_s[connection]))
        for number, connection in enumerate(order):
            late = connection not in spoke and now_s - since_s[connection] > first_request_s
            if connection.transport is not None and (late or number < len(order) - most):
                connection.transport.abort()
        await asyncio.sleep(min(1.0, first_request_s / 2))
