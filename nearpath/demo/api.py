"""The API that the demo's gateways forward to, with one line to each mirror that can be cut."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aiohttp import web

from nearpath.demo.place import MIRROR_ADDRESS

MODEL = "demo-model"


@dataclass
class Line:
    """How one mirror reaches the API: an address of its own, which `cut` takes away with all that is connected."""

    mirror: str
    port: int
    runner: web.AppRunner | None = None

    async def join(self) -> None:
        """Listen; nothing when it does. OSError when the address is in use."""
        if self.runner is None:
            runner = web.AppRunner(_app(), access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, MIRROR_ADDRESS[self.mirror], self.port, reuse_address=True).start()
            self.runner = runner

    async def cut(self) -> None:
        """Stop listening, and end what is connected."""
        runner, self.runner = self.runner, None
        if runner is not None:
            await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        """POST /cut takes the line away, DELETE /cut brings it back."""

        async def cut(_request: web.Request) -> web.Response:
            await self.cut()
            return web.Response(text=f"the gateway of {self.mirror} cannot reach the API any more\n")

        async def join(_request: web.Request) -> web.Response:
            await self.join()
            return web.Response(text=f"the gateway of {self.mirror} reaches the API again\n")

        app.add_routes([web.post("/cut", cut), web.delete("/cut", join)])


def _app() -> web.Application:
    async def models(_request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "demo"}]})

    async def chat(request: web.Request) -> web.Response:
        asked = (await request.json())["messages"][-1]["content"]
        message = {"role": "assistant", "content": f"The API far away answers: {asked}"}
        return web.json_response(
            {
                "id": "chatcmpl-demo",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": MODEL,
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
        )

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    return app
