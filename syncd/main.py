"""The `syncd` command: runs the daemon of a mirror node, and asks a running one."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from core.errors import NearpathError
from core.io_log import get_logger, set_up_logging
from core.io_systemd import Notifier
from syncd import io_cli_set_up  # noqa: F401  its commands join those of io_cli
from syncd.io_cli import DEFAULT_CONFIG, ConfigFile, app
from syncd.io_daemon import Daemon

_STATUS_EVERY_S = 5.0


@app.command()
def run(
    config: ConfigFile = DEFAULT_CONFIG,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log one JSON object a line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Keep the trees of this node as they should be, until SIGTERM."""
    set_up_logging(json=json_log, debug=debug)
    try:
        asyncio.run(_run(config))
    except NearpathError as error:
        print(f"syncd: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_status) from None


async def _run(file: Path) -> None:
    log, notifier = get_logger("main"), Notifier()
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    daemon = await Daemon.open(file)
    # A batch makes some 100,000 objects that live for a second: looking for cycles among them took a quarter of the time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
    log.info("started", node=daemon.config.node, trees=list(daemon.config.trees))
    notifier.ready(_line(daemon))
    tasks = [
        asyncio.create_task(_reload_on(reload, daemon, notifier)),
        asyncio.create_task(_tell_systemd(daemon, notifier)),
    ]
    await stop.wait()
    log.info("stopping")
    notifier.stopping()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await daemon.close()


async def _reload_on(event: asyncio.Event, daemon: Daemon, notifier: Notifier) -> None:
    log = get_logger("main")
    while True:
        await event.wait()
        event.clear()
        notifier.reloading(time.monotonic_ns() // 1000)
        try:
            await daemon.reload()
            log.info("reloaded", file=str(daemon.file))
            notifier.ready(_line(daemon))
        except NearpathError as error:
            log.error("reload_failed", why=str(error), doing="the old configuration runs on")
            notifier.ready(f"reload failed, the old configuration runs on: {error.what}")


async def _tell_systemd(daemon: Daemon, notifier: Notifier) -> None:
    every_s = min(_STATUS_EVERY_S, notifier.watchdog_interval_s or _STATUS_EVERY_S)
    while True:
        await asyncio.sleep(every_s)
        notifier.status(_line(daemon))
        notifier.alive()


def _line(daemon: Daemon) -> str:
    return "; ".join(daemon.not_ready()) or f"{len(daemon.config.trees)} trees"


def main() -> None:
    """Run the command line; an error an operator can act on is printed as such, exit status 1."""
    try:
        app()
    except NearpathError as error:
        print(f"syncd: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
