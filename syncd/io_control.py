"""The control socket: what the command line asks a running syncd. Reached by file permissions only (mode 0660)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from aiohttp import web

from core.errors import NearpathError

if TYPE_CHECKING:
    from syncd.io_daemon import Daemon

CONTROL_SOCKET = "control.sock"


def make_control_app(daemon: Daemon) -> web.Application:
    """The application behind the control socket; every answer is JSON, errors are {"error", "fix"}."""

    async def status(_request: web.Request) -> web.Response:
        return _json(daemon.snapshot())

    async def approve(request: web.Request) -> web.Response:
        body = await _body(request)
        follower = daemon.followers.get(str(body.get("tree", "")))
        if follower is None or not follower.approve(str(body.get("token", ""))):
            raise NearpathError("nothing is held under this tree and token", "`syncd status` shows what is held")
        return _json({"approved": True})

    async def accept(request: web.Request) -> web.Response:
        tree = str((await _body(request)).get("tree", ""))
        part = daemon.followers.get(tree) or daemon.origins.get(tree)
        if part is None:
            raise _unknown(daemon, tree)
        part.accept()
        return _json({"accepted": tree})

    async def verify(request: web.Request) -> web.Response:
        tree = str((await _body(request)).get("tree", ""))
        if (follower := daemon.followers.get(tree)) is not None:
            follower.verify()
        elif (origin := daemon.origins.get(tree)) is not None:
            origin.sweep()
        else:
            raise _unknown(daemon, tree)
        return _json({"verifying": tree})

    async def reload(_request: web.Request) -> web.Response:
        await daemon.reload()
        return _json({"reloaded": str(daemon.file)})

    app = web.Application(client_max_size=64 << 10, middlewares=[_errors_as_json])
    app.add_routes(
        [
            web.get("/v1/status", status),
            web.post("/v1/approve", approve),
            web.post("/v1/accept", accept),
            web.post("/v1/verify", verify),
            web.post("/v1/reload", reload),
        ]
    )
    return app


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise NearpathError("the request is no JSON object", "use the syncd command")
    return body


def _unknown(daemon: Daemon, tree: str) -> NearpathError:
    return NearpathError(f"there is no tree {tree!r}", f"trees: {', '.join(daemon.config.trees)}")


@web.middleware
async def _errors_as_json(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
        return answer
    except NearpathError as error:
        return _json({"error": error.what, "fix": error.fix}, 400)


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(text=json.dumps(body) + "\n", status=status, content_type="application/json")
