"""The demo's mirrors: HTTP servers that are as slow as they are told, and serve the copy that syncd keeps."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from nearpath.demo.api import Line
from nearpath.demo.place import DELAY_MS, MIRROR_ADDRESS, REGIONS


@dataclass
class Mirror:
    """One mirror: an HTTP server whose time to first byte depends on who asks and on what it was told."""

    name: str
    content: Path
    line: Line
    rng: random.Random
    raised_ms: dict[str, float] = field(default_factory=dict)

    def delay_s(self, client: str, now: float) -> float:
        """How long to wait before answering `client` (an address): base, a drift of 10% over two minutes, noise."""
        region = next((r for r, (head, _prefix) in REGIONS.items() if client.startswith(head + ".")), None)
        if region is None:
            return 0.0
        base_ms = self.raised_ms.get(region, DELAY_MS[self.name][region])
        drift = 0.1 * math.sin(2 * math.pi * now / 120 + len(self.name))
        return max(0.0, base_ms * (1 + drift) + self.rng.expovariate(2.0)) / 1000

    def app(self) -> web.Application:
        """GET / answers like a mirror, GET /files/ serves its copy.

        POST /delay?ms=300[&region=asia] raises its delay, DELETE /delay takes it back. /cut: see `Line`.
        """

        async def page(request: web.Request) -> web.Response:
            await asyncio.sleep(self.delay_s(request.remote or "", time.monotonic()))
            return web.Response(text=f"this is the mirror {self.name}\n")

        async def raise_delay(request: web.Request) -> web.Response:
            try:
                ms = float(request.query["ms"])
                regions = [request.query["region"]] if "region" in request.query else list(REGIONS)
                self.raised_ms.update({region: min(ms, 60_000.0) for region in regions if REGIONS[region]})
            except (KeyError, ValueError):
                raise web.HTTPBadRequest(text=f"use /delay?ms=300&region={'|'.join(REGIONS)}\n") from None
            return web.Response(text=f"{self.name} now takes {ms:g} ms for {', '.join(regions)}\n")

        async def restore(_request: web.Request) -> web.Response:
            self.raised_ms.clear()
            return web.Response(text=f"{self.name} is back to normal\n")

        app = web.Application()
        app.add_routes([web.get("/", page), web.post("/delay", raise_delay), web.delete("/delay", restore)])
        self.line.add_routes(app)
        self.content.mkdir(parents=True, exist_ok=True)
        app.router.add_static("/files", self.content, show_index=True)
        return app


async def start_mirror(name: str, content: Path, line: Line, port: int) -> web.AppRunner:
    """Start a mirror on its address; OSError when it is in use."""
    runner = web.AppRunner(Mirror(name, content, line, random.Random(name)).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, MIRROR_ADDRESS[name], port).start()
    return runner
