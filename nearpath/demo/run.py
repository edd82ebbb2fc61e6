"""Starting and ending the demo's processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import time
from asyncio.subprocess import Process
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from core.errors import NearpathError
from core.io_control import CONTROL_SOCKET
from core.io_state import find_holder, hold_state_dir
from nearpath.demo.api import Line
from nearpath.demo.files import write_files
from nearpath.demo.lines import command, show_lines
from nearpath.demo.mirror import start_mirror
from nearpath.demo.place import API_SERVICE, MIRROR_ADDRESS, ORIGIN, REGIONS, SERVICE, USUAL_PORTS, Place, nearest

_READY_TIMEOUT_S = 90.0


def run_demo(folder: Path, *, any_port: bool = False) -> int:
    """Run the demo until it is interrupted; returns the exit status."""
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_run(folder, any_port))
    return 0


def _hold(folder: Path) -> int:
    with contextlib.suppress(OSError):
        if pid := find_holder(folder):
            fix = f"end it (Ctrl-C there, or `kill {pid}`), or choose another folder: --dir FOLDER"
            raise NearpathError(f"another demo runs in {folder}, process {pid}", fix)
    return hold_state_dir(folder, "demo")


async def _run(folder: Path, any_port: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    ports = {purpose: _free_port(None if any_port else usual) for purpose, usual in USUAL_PORTS.items()}
    lock = _hold(folder)
    for purpose, usual in {} if any_port else USUAL_PORTS.items():
        if ports[purpose] != usual:
            console.print(f"port {usual} ({purpose}) is taken here: {ports[purpose]} in its place")
    place = Place(folder, ports)
    write_files(place)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    api = {name: Line(name, ports["api"]) for name in MIRROR_ADDRESS}
    for line in api.values():
        await line.join()
    runners = [await start_mirror(name, place.content(name), api[name], ports["http"]) for name in MIRROR_ADDRESS]
    processes: dict[str, Process] = {}
    watching: list[asyncio.Task[None]] = []
    try:
        console.print("starting the appliance, three agents, three mirrors with syncd and an API gateway ...")
        index = folder / "faq-index"
        build = await _start(folder / "faq.log", "local-infer", "build", "--faq", str(place.faq), "--out", str(index))
        if await build.wait():
            raise NearpathError(f"the index {index} could not be built", f"see {folder / 'faq.log'}")
        for log, program, *arguments in _programs(place):
            process = await _start(folder / f"{log}.log", program, *arguments)
            (folder / f"{log}.pid").write_text(f"{process.pid}\n")
            processes[log] = process
        if await _until_measured(place, processes, stop):
            show_lines(console, place)
        watching = [asyncio.create_task(_tell_end(console, folder, *one, stop)) for one in processes.items()]
        ended = asyncio.create_task(processes["nearpath"].wait())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, ended], return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            raise NearpathError("the appliance has ended", f"see {folder / 'nearpath.log'}")
    finally:
        stop.set()
        for process in processes.values():
            if process.returncode is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)  # one that was frozen on the way ends, too
        await asyncio.gather(*(_end(process) for process in processes.values()))
        await asyncio.gather(*watching)
        for log, *_ in _programs(place):
            (folder / f"{log}.pid").unlink(missing_ok=True)
        for runner in runners:
            await runner.cleanup()
        for line in api.values():
            await line.cut()
        os.close(lock)


def _programs(place: Place) -> list[tuple[str, ...]]:
    """Each program to start: the name of its log, the program, its arguments. The appliance is first."""
    return [
        ("nearpath", "nearpath", "up", "-c", str(place.appliance)),
        *((f"agent-{region}", "probe-agent", "-c", str(place.agent(region))) for region in REGIONS),
        *((f"sync-{name}", "syncd", "run", "-c", str(place.node(name))) for name in (ORIGIN, *MIRROR_ADDRESS)),
        *((f"gateway-{name}", "local-infer", "run", "-c", str(place.gateway(name))) for name in MIRROR_ADDRESS),
    ]


async def _start(log: Path, name: str, *arguments: str) -> Process:
    with log.open("wb") as stream:
        return await asyncio.create_subprocess_exec(
            command(name), *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream
        )


async def _tell_end(console: Console, folder: Path, log: str, process: Process, stop: asyncio.Event) -> None:
    """Say so when a process ends while the demo runs: the others go on without it, which is worth a look."""
    status = await process.wait()
    if not stop.is_set():
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        console.print(f"{log} has ended ({how}), the others go on: its log is {folder / f'{log}.log'}")


async def _end(process: Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()


async def _until_measured(place: Place, processes: dict[str, Process], stop: asyncio.Event) -> bool:
    """Wait until every region is sent where the printed lines say: by live measurements, to mirrors with fresh files."""
    deadline = time.monotonic() + _READY_TIMEOUT_S
    connector = aiohttp.UnixConnector(path=str(place.folder / "state" / CONTROL_SOCKET))
    async with aiohttp.ClientSession(connector=connector) as session:
        while time.monotonic() < deadline and not stop.is_set():
            for log, process in processes.items():
                if process.returncode is not None:
                    raise NearpathError(f"{log} could not start", f"see {place.folder / f'{log}.log'}")
            try:
                async with session.get("http://nearpath/v1/status") as response:
                    if _is_ready(await response.json()):
                        return True
            except (aiohttp.ClientError, json.JSONDecodeError):
                pass
            await asyncio.sleep(0.2)
    if not stop.is_set():
        raise NearpathError("the demo was not measured in time", f"see the logs in {place.folder}")
    return False


def _is_ready(picture: dict[str, Any]) -> bool:
    live = [c for c in picture["catchments"] if c["quality"] == "live"]
    chosen = {c["catchment"]: c["mirrors"][0]["mirror"] for c in live if c["service"] == SERVICE}
    gateways = {c["catchment"] for c in live if c["service"] == API_SERVICE}
    fresh = {stamp["mirror"] for stamp in picture["stamps"] if stamp["state"] == "fresh"}
    is_chosen = chosen.items() >= nearest().items() and gateways >= REGIONS.keys()
    return is_chosen and fresh >= MIRROR_ADDRESS.keys()


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
