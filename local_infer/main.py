"""The `local-infer` command: runs the gateway, checks its configuration, makes keys, builds the FAQ index, drills."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from core.errors import NearpathError
from core.io_config_infer import read_infer_config
from core.io_log import get_logger, set_up_logging
from core.io_systemd import Notifier
from local_infer.gateway.keys import KEY_BYTES, make_key
from local_infer.io_check import check_all
from local_infer.io_daemon import Daemon
from local_infer.retrieval.io_build import build_command
from local_infer.retrieval.io_drill import drill_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", envvar="LOCAL_INFER_CONFIG", help="The gateway's configuration file.")
]
_DEFAULT_FILE = Path("/etc/nearpath/local-infer.yaml")

_STATUS_EVERY_S = 5.0
_YOUNG_OBJECTS = 5000
"""New objects between two looks of the cycle collector (CPython: 700): a tenth less CPU for each request, measured."""


@app.callback()
def _group() -> None:
    """An API gateway that keeps answering when its upstreams cannot be reached, and says so."""


@app.command()
def run(
    config: ConfigFile = _DEFAULT_FILE,
    json_log: Annotated[bool, typer.Option("--json-log", help="Log one JSON object a line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Serve until SIGTERM; SIGHUP reads the configuration anew."""
    set_up_logging(json=json_log, debug=debug)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(config))


@app.command()
def check(config: ConfigFile = _DEFAULT_FILE) -> None:
    """Check configuration, files, rights and upstreams; exit status 0 when all is well."""
    raise typer.Exit(asyncio.run(check_all(read_infer_config(config))))


app.command("check-config", hidden=True)(check)


@app.command("new-key")
def new_key() -> None:
    """Make a key for a client: the key for the client, its hash for the configuration."""
    key, digest = make_key(os.urandom(KEY_BYTES))
    print(f"key:          {key}\ntoken_sha256: {digest}")


app.command("key", hidden=True)(new_key)
app.command("build")(build_command)
app.command("drill")(drill_command)


async def _run(file: Path) -> None:
    log, notifier = get_logger("main"), Notifier()
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    daemon = await _open(file, stop)
    if daemon is None:
        return
    # What is here now stays: the collector need not look at it again and again, which costs milliseconds each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
    log.info("started", node=daemon.config.node, listen=daemon.addresses, metrics=daemon.metrics_addresses)
    notifier.ready(daemon.status())
    tasks = [
        asyncio.create_task(_reload_on(reload, daemon, notifier)),
        asyncio.create_task(_tell_systemd(daemon, notifier)),
    ]
    await stop.wait()
    log.info("stopping", under_way=daemon.status())
    notifier.stopping()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await daemon.close()
    log.info("stopped")


async def _open(file: Path, stop: asyncio.Event) -> Daemon | None:
    """The daemon, serving; None when it was told to stop while it still loaded models or warmed the cache."""
    opening, stopped = asyncio.create_task(Daemon.open(file)), asyncio.create_task(stop.wait())
    await asyncio.wait((opening, stopped), return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not opening.done():
        opening.cancel()
        await asyncio.wait((opening,))
        return None
    return opening.result()


async def _reload_on(event: asyncio.Event, daemon: Daemon, notifier: Notifier) -> None:
    log = get_logger("main")
    while True:
        await event.wait()
        event.clear()
        notifier.reloading(time.monotonic_ns() // 1000)
        try:
            await daemon.reload()
            log.info("reloaded", file=str(daemon.file), listen=daemon.addresses)
            notifier.ready(daemon.status())
        except NearpathError as error:
            log.error("reload_failed", why=str(error), doing="the old configuration runs on")
            notifier.ready(f"reload failed, the old configuration runs on: {error.what}")


async def _tell_systemd(daemon: Daemon, notifier: Notifier) -> None:
    every_s = min(_STATUS_EVERY_S, notifier.watchdog_interval_s or _STATUS_EVERY_S)
    while True:
        await asyncio.sleep(every_s)
        notifier.status(daemon.status())
        notifier.alive()


def main() -> None:
    """Run the command line; an error an operator can act on is printed as such."""
    try:
        app()
    except NearpathError as error:
        print(f"local-infer: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
