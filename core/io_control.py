"""The control socket of a daemon, both sides: what its command line asks it, in JSON over HTTP.

Who may ask is a matter of file permissions only (mode 0660, in a state_dir of mode 0750). A refusal is {"error", "fix"}.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from core.errors import NearpathError

CONTROL_SOCKET = "control.sock"
"""Its name in the state_dir."""

_MAX_ASKED_BYTES = 64 << 10


class Refusal(NearpathError):
    """What the daemon does not do, with the HTTP status that says so; any other NearpathError is a 400."""

    def __init__(self, status: int, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.status = status


# -- the daemon's side


def control_app(routes: Sequence[web.AbstractRouteDef]) -> web.Application:
    """The application behind the socket: handlers answer with `told`, and raise NearpathError to refuse."""
    app = web.Application(client_max_size=_MAX_ASKED_BYTES, middlewares=[_errors_as_json])
    app.add_routes(routes)
    return app


def told(body: Any, status: int = 200) -> web.Response:
    """A JSON answer."""
    # A name that is no UTF-8 is text with surrogates here: JSON keeps it, the command shows it escaped.
    return web.Response(text=json.dumps(body) + "\n", status=status, content_type="application/json")


async def read_object(request: web.Request) -> dict[str, Any]:
    """The JSON object a request holds; Refusal when it holds none."""
    try:
        body = await request.json()
    except (ValueError, LookupError, RecursionError):  # no JSON, of no known encoding, or too deep
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "the request is no JSON object", "use the command line of this daemon")
    return body


def bind_control(state_dir: Path) -> socket.socket:
    """The listening socket, in a state_dir whose lock is held: a socket that is there was left by a killed process."""
    path = state_dir / CONTROL_SOCKET
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o660)
        sock.listen(16)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise NearpathError(
            f"cannot create the control socket {path}: {error.strerror or error}",
            "its path may be too long (107 bytes at most): choose a shorter state_dir",
        ) from None
    return sock


@web.middleware
async def _errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except NearpathError as error:
        status = error.status if isinstance(error, Refusal) else 400
        return told({"error": error.what, "fix": error.fix}, status)
    except TimeoutError:
        return told({"error": "the daemon is too busy for this now", "fix": "its status says with what"}, 503)


# -- the command line's side


@dataclass(frozen=True, slots=True)
class Peer:
    """Whom a command line asks, and what to do when nobody answers."""

    name: str
    fix: str


async def ask_control(
    peer: Peer,
    state_dir: Path,
    method: str,
    path: str,
    body: Any = None,
    params: Mapping[str, str] | None = None,
    timeout_s: float | None = 30.0,
) -> dict[str, Any]:
    """The JSON answer of the daemon that runs on `state_dir`; NearpathError with its words when it refuses.

    `timeout_s` None: as long as it takes.
    """
    place = state_dir / CONTROL_SOCKET
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.UnixConnector(path=str(place))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://control{path}", json=body, params=params) as response,
        ):
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise NearpathError(str(answer.get("error", "refused")), str(answer.get("fix", "")))
            return answer
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, PermissionError):
            raise NearpathError(
                f"no permission for {place}", "run it as root, as the daemon's user, or as a member of its group"
            ) from None
        raise NearpathError(f"no {peer.name} answers at {place}", peer.fix) from None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NearpathError(
            f"the {peer.name} at {place} gave no answer: {str(error) or f'none within {timeout_s:g} s'}",
            "see its log; a process that is stopped, or hangs, goes on or is to be started again",
        ) from None
