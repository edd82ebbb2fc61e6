"""The demo: a whole nearpath on loopback. Three mirrors, three agents, the appliance; real probes, real answers.

The mirrors are small HTTP servers on 127.0.1x.1 that wait before they answer, each agent's region its own time (it is
told by the agent's source address, 127.0.1.1 and so on), with a slow drift and noise. Nothing else is made up: agents and
appliance are the ordinary programs with ordinary configuration files, which stay in the demo's folder to be looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import secrets
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import Process
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web
from rich.console import Console

from core.errors import NearpathError
from nearpath.client import CONTROL_SOCKET
from nearpath.ingest import token_sha256

REGIONS = {
    "asia": ("127.0.1", "198.51.100.0/24"),
    "europe": ("127.0.2", "192.0.2.0/24"),
    "america": ("127.0.3", "203.0.113.0/24"),
}
"""region -> (head of its loopback addresses, the documentation prefix (RFC 5737) that stands for its clients)"""

DELAY_MS = {
    "tokyo": {"asia": 18.0, "europe": 120.0, "america": 75.0},
    "frankfurt": {"asia": 120.0, "europe": 12.0, "america": 48.0},
    "virginia": {"asia": 84.0, "europe": 44.0, "america": 9.0},
}
MIRROR_ADDRESS = {"tokyo": "127.0.11.1", "frankfurt": "127.0.12.1", "virginia": "127.0.13.1"}
SERVICE = "www.mirror.example."
_READY_TIMEOUT_S = 30.0


@dataclass
class DemoMirror:
    """One mirror: an HTTP server whose time to first byte depends on who asks and on what it was told."""

    name: str
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
        """GET / answers like a mirror; POST /delay?ms=300[&region=asia] raises its delay, DELETE /delay takes it back."""

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
        return app


def run_demo(folder: Path, *, any_port: bool = False) -> int:
    """Run the demo until it is interrupted; returns the exit status."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(folder, any_port))
    return 0


async def _run(folder: Path, any_port: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    ports = {
        name: _free_port(None if any_port else usual)
        for name, usual in (("dns", 5300), ("report", 8053), ("metrics", 9153), ("http", 8080))
    }
    _write_files(folder, ports)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runners = [await _start_mirror(name, ports["http"]) for name in DELAY_MS]
    processes: list[Process] = []
    try:
        processes.append(await _start(folder / "nearpath.log", "nearpath", "up", "-c", str(folder / "nearpath.yaml")))
        for region in REGIONS:
            agent = folder / f"agent-{region}.yaml"
            processes.append(await _start(folder / f"agent-{region}.log", "probe-agent", "-c", str(agent)))
        console.print("starting the appliance, three agents and three mirrors ...")
        if await _until_measured(folder, processes, stop):
            _show_how(console, folder, ports)
        waits = [asyncio.create_task(p.wait()) for p in processes]
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, waits[0]], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            raise NearpathError("the appliance has ended", f"see {folder / 'nearpath.log'}")
    finally:
        for process in processes:
            if process.returncode is None:
                process.terminate()
        await asyncio.gather(*(_end(process) for process in processes))
        for runner in runners:
            await runner.cleanup()


async def _start_mirror(name: str, port: int) -> web.AppRunner:
    runner = web.AppRunner(DemoMirror(name, random.Random(name)).app(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, MIRROR_ADDRESS[name], port).start()
    return runner


def _command(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


async def _start(log: Path, name: str, *arguments: str) -> Process:
    with log.open("wb") as stream:
        return await asyncio.create_subprocess_exec(
            _command(name), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream
        )


async def _end(process: Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _until_measured(folder: Path, processes: list[Process], stop: asyncio.Event) -> bool:
    """Wait until every region is sent, by live measurements, where the printed lines say."""
    deadline = time.monotonic() + _READY_TIMEOUT_S
    connector = aiohttp.UnixConnector(path=str(folder / "state" / CONTROL_SOCKET))
    async with aiohttp.ClientSession(connector=connector) as session:
        while time.monotonic() < deadline and not stop.is_set():
            ended = next((p for p in processes if p.returncode is not None), None)
            if ended is not None:
                raise NearpathError("a part of the demo could not start", f"see the logs in {folder}")
            try:
                async with session.get("http://nearpath/v1/status") as response:
                    picture = await response.json()
            except (aiohttp.ClientError, json.JSONDecodeError):
                await asyncio.sleep(0.2)
                continue
            chosen = {
                c["catchment"]: c["mirrors"][0]["mirror"] for c in picture["catchments"] if c["quality"] == "live"
            }
            if chosen.items() >= _nearest().items():
                return True
            await asyncio.sleep(0.2)
    if not stop.is_set():
        raise NearpathError("the demo was not measured in time", f"see the logs in {folder}")
    return False


def _nearest() -> dict[str, str]:
    """region -> the mirror with the least delay."""
    return {region: min(DELAY_MS, key=lambda mirror: DELAY_MS[mirror][region]) for region in REGIONS}


def _show_how(console: Console, folder: Path, ports: dict[str, int]) -> None:
    dig = f"dig @127.0.0.1 -p {ports['dns']} +short {SERVICE.rstrip('.')}"
    nearpath = f"{os.path.relpath(_command('nearpath'))}"
    config = f"-c {os.path.relpath(folder / 'nearpath.yaml')}"
    http = ports["http"]
    lines = [
        "",
        "[bold green]nearpath is up.[/] Now, in another terminal:",
        "",
        "[bold]1. Each client gets the mirror that is fastest from where it is[/]",
        f"   {dig} +subnet=198.51.100.0/24    # a client in asia    -> {MIRROR_ADDRESS['tokyo']} (tokyo)",
        f"   {dig} +subnet=192.0.2.0/24       # a client in europe  -> {MIRROR_ADDRESS['frankfurt']} (frankfurt)",
        f"   {dig} +subnet=203.0.113.0/24     # a client in america -> {MIRROR_ADDRESS['virginia']} (virginia)",
        "",
        "[bold]2. See all of it, and why[/]",
        f"   {nearpath} status {config}",
        f"   {nearpath} explain {SERVICE.rstrip('.')} --client 198.51.100.7 {config}",
        "",
        "[bold]3. Make tokyo slow, and ask again a few seconds later: the answer has followed[/]",
        f"   curl -X POST 'http://{MIRROR_ADDRESS['tokyo']}:{http}/delay?ms=300'      # and -X DELETE .../delay to undo",
        "",
        "[bold]4. Take a mirror out by hand, or break the configuration[/]",
        f"   {nearpath} drain frankfurt {config}      # and undrain",
        f"   edit {os.path.relpath(folder / 'nearpath.yaml')}, then: {nearpath} reload {config}",
        "",
        f"metrics: curl http://127.0.0.1:{ports['metrics']}/metrics    logs: {os.path.relpath(folder)}/*.log",
        "end: Ctrl-C",
    ]
    for line in lines:
        console.print(line, markup=line.startswith("[bold"))
    sys.stdout.flush()


def _free_port(usual: int | None) -> int:
    """`usual` where it is free on all addresses the demo uses, for UDP and TCP, else another port that is."""
    chosen = random.SystemRandom()
    for port in (*([usual] if usual else []), *(chosen.randrange(20000, 32000) for _ in range(50))):
        try:
            for address in ("127.0.0.1", *MIRROR_ADDRESS.values()):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    with socket.socket(socket.AF_INET, kind) as sock:
                        if kind is socket.SOCK_STREAM:
                            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        sock.bind((address, port))
        except OSError:
            continue
        return port
    raise NearpathError("no free port on loopback", "end other programs that listen there")


def _write_files(folder: Path, ports: dict[str, int]) -> None:
    """Write the configuration of the appliance and its agents; tokens are drawn anew for every run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", *(f"agent-{region}" for region in REGIONS)):
        # What an earlier demo has kept (a drained mirror, old measurements) would make this one look broken.
        shutil.rmtree(folder / name, ignore_errors=True)
    tokens = {region: secrets.token_urlsafe(32) for region in REGIONS}
    for region, (head, _prefix) in REGIONS.items():
        token_file = folder / f"agent-{region}.token"
        token_file.unlink(missing_ok=True)
        token_file.touch(mode=0o600)
        token_file.write_text(tokens[region] + "\n")
        (folder / f"agent-{region}.yaml").write_text(
            f"""version: 1
name: demo-{region}
appliance: http://127.0.0.1:{ports["report"]}
token_file: agent-{region}.token
state_dir: agent-{region}
source: {{ipv4: {head}.1}}
"""
        )
    agents = "\n".join(
        f"  demo-{region}: {{region: {region}, token_sha256: {token_sha256(token)}}}"
        for region, token in tokens.items()
    )
    regions = "\n".join(f"  {name}: {{prefixes: [{prefix}, {head}.0/24]}}" for name, (head, prefix) in REGIONS.items())
    mirrors = "\n".join(f"  {name}: {{addresses: [{address}]}}" for name, address in MIRROR_ADDRESS.items())
    (folder / "nearpath.yaml").write_text(
        f"""# The demo's configuration, written by `nearpath demo` at each start.
version: 1
state_dir: state

dns:
  listen: ["127.0.0.1:{ports["dns"]}"]
  nsid: demo

zones:
  - {{origin: mirror.example., file: mirror.example.zone}}

regions:
{regions}

checks:
  web: {{kind: http, port: {ports["http"]}, interval: 1s, timeout: 500ms}}

mirrors:
{mirrors}

services:
  {SERVICE}
    mirrors: [{", ".join(MIRROR_ADDRESS)}]
    checks: [web]
    ttl: 10s

agents:
{agents}

report:
  listen: ["127.0.0.1:{ports["report"]}"]
metrics:
  listen: ["127.0.0.1:{ports["metrics"]}"]

steering:
  dwell: 2s
  hold_down: 3s
  live_for: 10s
""".replace(f"  {SERVICE}\n", f"  {SERVICE}:\n")
    )
    (folder / "mirror.example.zone").write_text(
        """$ORIGIN mirror.example.
$TTL 300
@    IN SOA ns1 hostmaster 1 3600 600 86400 60
     IN NS  ns1
ns1  IN A   127.0.0.1
@    IN TXT "the zone of the nearpath demo"
"""
    )
