"""HTTP of every daemon: listening sockets, TLS, and the operator's /metrics, /healthz (alive), /readyz (or why not)."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Callable, Sequence

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from core.config import split_listen
from core.errors import NearpathError

NotReady = str
ReadyCheck = Callable[[], Sequence[NotReady]]


def make_health_app(registry: CollectorRegistry, ready: ReadyCheck) -> web.Application:
    """An application with the three paths; `ready` returns the reasons for not being ready (none: ready)."""

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        reasons = ready()
        return web.Response(status=503 if reasons else 200, text="\n".join(reasons or ["ready"]) + "\n")

    app = web.Application(client_max_size=1024)
    app.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return app


_LISTEN_FIXES = {
    errno.EADDRINUSE: "another program has the port: `ss -ltnp` names it",
    errno.EADDRNOTAVAIL: "the address is not on this host: `ip address` shows those that are",
    errno.EACCES: "a port below 1024 needs CAP_NET_BIND_SERVICE",
}


def bind_tcp(listen: str) -> socket.socket:
    """A listening TCP socket for `ADDRESS:PORT`; NearpathError that names the address when it cannot be had."""
    host, port = split_listen(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(512)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise NearpathError(
            f"cannot listen on {listen} (TCP): {error.strerror}", _LISTEN_FIXES.get(error.errno or 0, "")
        ) from None
    return sock


def bound_address(sock: socket.socket) -> str:
    """`ADDRESS:PORT` that a socket is bound to (the real port, where 0 was asked for)."""
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def why_not_reached(error: BaseException) -> str:
    """Why a server did not answer, in the system's words: aiohttp's own tell of Python's TLS objects, also without TLS."""
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        inner = error.os_error
        why = os.strerror(inner.errno) if inner.errno and inner.errno > 0 else str(inner.strerror or inner)
        return f"Cannot connect: {why}"
    return str(error) or "no answer in time"


def server_tls(certificate: str, key: str, *, both_ours: bool = False) -> ssl.SSLContext:
    """TLS 1.2 or newer (1.3 where both ends are ours) with this chain and key (PEM files); NearpathError names them."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if both_ours else ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise NearpathError(
            f"cannot use certificate {certificate} with key {key}: {error}",
            "both must be PEM files that belong together and that the daemon's user can read",
        ) from None
    return context
