"""The `probe-agent` command: runs the agent until SIGTERM, reads its configuration again on SIGHUP, or checks it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from core.config import AgentConfig
from core.errors import ConfigError, NearpathError
from core.io_config import read_agent_config
from core.io_log import get_logger, set_up_logging
from core.io_systemd import Notifier
from probes.faults import LocalFault
from probes.io_agent import Agent
from probes.io_appliance import ApplianceClient, find_token_exposure, read_token
from probes.io_icmp import open_icmp
from probes.io_tcp import source_for

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: the unit is not restarted for it, since it does not get better by itself."""

_STATUS_EVERY_S = 10.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="The agent's configuration file.")],
    check: Annotated[
        bool, typer.Option("--check", help="Check configuration, rights and appliance, then end.")
    ] = False,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log one JSON object a line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Measure the mirrors from this host and report to the appliance."""
    set_up_logging(json=json_log, debug=debug)
    try:
        loaded = read_agent_config(config)
    except ConfigError as error:
        print(f"probe-agent: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_CONFIG) from None
    if check:
        raise typer.Exit(asyncio.run(_check(loaded)))
    try:
        asyncio.run(_run(config, loaded))
    except NearpathError as error:
        print(f"probe-agent: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


async def _run(file: Path, config: AgentConfig) -> None:
    log, notifier = get_logger("main"), Notifier()
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    if config.appliance.startswith("http://"):
        log.warning("token_unprotected", why=f"{config.appliance} is not https", fix="use https beyond this host")
    agent = await Agent.start(config)
    log.info("started", agent=config.name, appliance=config.appliance, health=agent.health_addresses)
    notifier.ready(agent.status())
    tasks = [
        asyncio.create_task(_reload_on(reload, file, agent, notifier)),
        asyncio.create_task(_tell_systemd(agent, notifier)),
    ]
    failed, stopped = asyncio.create_task(agent.wait_failed()), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((failed, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        log.info("stopping")
        notifier.stopping()
        for task in (*tasks, stopped):
            task.cancel()
        await agent.stop()
    if not stop.is_set():
        await failed
    failed.cancel()


async def _reload_on(event: asyncio.Event, file: Path, agent: Agent, notifier: Notifier) -> None:
    log = get_logger("main")
    while True:
        await event.wait()
        event.clear()
        notifier.reloading(time.monotonic_ns() // 1000)
        try:
            await agent.reconfigure(await asyncio.to_thread(read_agent_config, file))
            log.info("reloaded", file=str(file))
            notifier.ready(agent.status())
        except NearpathError as error:
            log.error("reload_failed", why=str(error), doing="the old configuration runs on")
            notifier.ready(f"reload failed, the old configuration runs on: {error.what}")


async def _tell_systemd(agent: Agent, notifier: Notifier) -> None:
    every_s = min(_STATUS_EVERY_S, notifier.watchdog_interval_s or _STATUS_EVERY_S)
    while True:
        await asyncio.sleep(every_s)
        notifier.status(agent.status())
        if agent.is_alive():
            notifier.alive()


# -- probe-agent --check


async def _check(config: AgentConfig) -> int:
    """Try what the agent will need and print one line each; the exit status."""
    faults = 0
    for name, what in (
        ("token", _check_token(config)),
        ("state_dir", _check_state_dir(config)),
        ("icmp ipv4", _check_icmp(config, 4)),
        ("icmp ipv6", _check_icmp(config, 6)),
        ("appliance", await _check_appliance(config)),
    ):
        good, text = what
        faults += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {text}")
    return 1 if faults else 0


def _check_token(config: AgentConfig) -> tuple[bool, str]:
    try:
        read_token(config.token_file)
    except NearpathError as error:
        return False, str(error)
    exposure = find_token_exposure(config.token_file)
    return exposure is None, exposure or config.token_file


def _check_state_dir(config: AgentConfig) -> tuple[bool, str]:
    folder = Path(config.state_dir)
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return True, f"{folder} can be written"
    return False, f"{nearest} cannot be written by this user: give it to the agent's user"


def _check_icmp(config: AgentConfig, family: int) -> tuple[bool, str]:
    version = 4 if family == 4 else 6
    try:
        sock, raw = open_icmp(version, source_for(config.source, version))  # type: ignore[arg-type]
    except (LocalFault, OSError) as error:
        return False, str(error)
    sock.close()
    return True, "raw socket (CAP_NET_RAW)" if raw else "ping socket, no privilege needed"


async def _check_appliance(config: AgentConfig) -> tuple[bool, str]:
    try:
        client = ApplianceClient(config)
    except NearpathError as error:
        return False, str(error)
    try:
        targets = await client.fetch_targets("")
    except NearpathError as error:
        return False, str(error)
    finally:
        await client.close()
    return True, f"{config.appliance} gives {len(targets.targets) if targets else 0} targets"


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
