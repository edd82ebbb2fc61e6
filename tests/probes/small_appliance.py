"""A small real appliance for tests: serves targets, stores samples as the real one does, and can be told to misbehave."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from aiohttp import web

from core.config import AgentConfig
from core.io_config import read_agent_config
from core.messages import ReportedSample, SampleReport, Target, TargetList, decode, encode

TOKEN = "a-token-for-this-test-only"
NAME = "agent-1"
Misbehaviour = Callable[[web.Request], web.StreamResponse | None]


class SmallAppliance:
    """Stores every sample by (incarnation, sequence), once, as far as it comes in rising sequence."""

    def __init__(self, targets: Sequence[Target] = (), tls: ssl.SSLContext | None = None) -> None:
        self.tls = tls
        self.port = 0
        self.token = TOKEN
        self.stored: dict[str, dict[int, ReportedSample]] = {}
        self.last: dict[str, int] = {}
        self.reports: list[SampleReport] = []
        self.repeats = 0
        self.fetches: list[int] = []
        self.refused = 0
        self.lose_acks = 0
        self.answer_samples: Callable[[SampleReport], web.Response | None] = lambda _report: None
        self._runner: web.AppRunner | None = None
        self.set_targets(targets)

    def set_targets(self, targets: Sequence[Target]) -> None:
        self.targets = TargetList(f"etag-{hash(tuple(t.mirror for t in targets)) & 0xFFFF:x}", list(targets))

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        sock = socket.create_server(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        app = web.Application(client_max_size=8 << 20)
        app.add_routes([web.get("/v1/targets", self._targets), web.post("/v1/samples", self._samples)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, sock, ssl_context=self.tls).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _check_token(self, request: web.Request) -> None:
        good = request.headers.get("Authorization") == f"Bearer {self.token}"
        if not good or request.headers.get("X-Nearpath-Agent") != NAME:
            self.refused += 1
            raise web.HTTPUnauthorized

    async def _targets(self, request: web.Request) -> web.Response:
        self._check_token(request)
        etag = f'"{self.targets.etag}"'
        same = request.headers.get("If-None-Match") == etag
        self.fetches.append(304 if same else 200)
        if same:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=encode(self.targets), content_type="application/json", headers={"ETag": etag})

    async def _samples(self, request: web.Request) -> web.StreamResponse:
        self._check_token(request)
        report = decode(SampleReport, await request.read())
        special = self.answer_samples(report)
        if special is not None:
            return special
        self.store(report)
        if self.lose_acks > 0:
            self.lose_acks -= 1
            assert request.transport is not None
            request.transport.abort()
        return web.json_response({"acked": self.last[report.incarnation]})

    def store(self, report: SampleReport) -> None:
        self.reports.append(report)
        kept = self.stored.setdefault(report.incarnation, {})
        self.last.setdefault(report.incarnation, 0)
        for sample in report.samples:
            if sample.sequence > self.last[report.incarnation]:
                self.last[report.incarnation] = sample.sequence
                kept[sample.sequence] = sample
            else:
                self.repeats += 1

    @property
    def samples(self) -> list[ReportedSample]:
        return [sample for kept in self.stored.values() for sample in kept.values()]

    def holes(self) -> list[int]:
        """Sequences that were never stored, below the highest of each incarnation."""
        return [n for kept in self.stored.values() for n in range(1, max(kept, default=0) + 1) if n not in kept]


def write_config(folder: Path, url: str, **more: object) -> Path:
    """The file of an agent that reports to `url`; its state is in `folder`/state."""
    token = folder / "token"
    if not token.exists():
        token.write_text(TOKEN + "\n")
        os.chmod(token, 0o600)
    file = folder / "agent.yaml"
    values = {
        "version": 1, "name": NAME, "appliance": url, "token_file": "token", "state_dir": "state",
        "deliver_every": "50ms", **more,
    }  # fmt: skip
    file.write_text(yaml.safe_dump(values))
    return file


def make_config(folder: Path, url: str, **more: object) -> AgentConfig:
    return read_agent_config(write_config(folder, url, **more))


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait for it; 30 s is a limit for a stuck test, not a measurement."""
    try:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - conditions of all sorts
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"did not come about: {what or condition}") from None
