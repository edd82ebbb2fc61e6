"""Running the appliance as a daemon: signals, readiness, watchdog."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

from core.errors import NearpathError
from core.io_log import get_logger
from core.io_systemd import Notifier
from dnsd.io_selfcheck import is_answering
from nearpath.appliance import Appliance

_log = get_logger("run")


def run_appliance(config_file: Path, *, with_dns: bool = True) -> None:
    """Run until SIGTERM or SIGINT; exits with status 1 and a clear line when it cannot start."""
    try:
        asyncio.run(_run(config_file, with_dns))
    except NearpathError as error:
        _log.error("cannot_start", why=str(error))
        sys.exit(error.exit_status)


async def _run(config_file: Path, with_dns: bool) -> None:
    notifier = Notifier()
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    appliance = await Appliance.open(config_file, with_dns=with_dns)
    notifier.ready(f"serving {len(appliance.config.services)} steered names")
    tasks = [
        asyncio.create_task(_reload_on(reload, appliance, notifier)),
        asyncio.create_task(_feed_watchdog(appliance, notifier)),
    ]
    await stop.wait()
    _log.info("stopping")
    notifier.stopping()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await appliance.close()


async def _reload_on(event: asyncio.Event, appliance: Appliance, notifier: Notifier) -> None:
    while True:
        await event.wait()
        event.clear()
        notifier.reloading(int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6))
        try:
            await appliance.reload()
            status = "reloaded"
        except NearpathError as error:
            _log.error("reload_failed", why=str(error), doing="the old configuration runs on")
            status = f"reload failed, the old configuration runs on: {error.what}"
        notifier.ready(status)


async def _feed_watchdog(appliance: Appliance, notifier: Notifier) -> None:
    """Tell the watchdog that all is well only after a real answer came out of our own socket."""
    if notifier.watchdog_interval_s is None:
        return
    while True:
        silent = [a for a in appliance.dns_addresses if not await asyncio.to_thread(is_answering, a)]
        if silent:
            _log.error("no_answer_from_own_socket", addresses=silent)
        elif not appliance.not_ready():
            notifier.alive()
        await asyncio.sleep(notifier.watchdog_interval_s)
