"""The life of a daemon: signals, readiness, reload, status line, watchdog and end, the same for all of them.

SIGTERM and SIGINT stop it, also while it still starts; SIGHUP reloads; systemd is told of each step (sd_notify(3)).
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from core.errors import NearpathError
from core.io_log import get_logger
from core.io_systemd import Notifier

_STATUS_EVERY_S = 5.0

_log = get_logger("main")


async def _well() -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """What a daemon that serves is kept alive by."""

    status: Callable[[], str]
    """One line for `systemctl status`."""
    reload: Callable[[], Awaitable[None]]
    """Takes up the configuration anew and logs `reloaded`; after NearpathError all is as before."""
    close: Callable[[], Awaitable[None]]
    is_well: Callable[[], Awaitable[bool]] = _well
    """Whether it does its work; asked only when systemd watches, and the watchdog is fed only then."""
    work: Callable[[], Coroutine[Any, Any, None]] | None = None
    """What never ends; when it does, so does the daemon, with its error."""


async def live(start: Callable[[], Coroutine[Any, Any, Life]]) -> None:
    """Start a daemon and keep it until a signal stops it or its work fails; `start` cleans up when it is cancelled."""
    notifier = Notifier()
    stop, reload = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    stopped = asyncio.create_task(stop.wait())
    life = await _started(start, stopped)
    if life is None:
        _log.info("stopped", why="told to while starting")
        return
    notifier.ready(life.status())
    parts = [_reload_on(reload, life, notifier)]
    if notifier.watchdog_interval_s is not None:
        parts.append(_feed_watchdog(life, notifier, notifier.watchdog_interval_s))
    if life.work is not None:
        parts.append(life.work())
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        _log.info("stopping", status=life.status())
        notifier.stopping()
        for task in (stopped, *tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await life.close()
    _log.info("stopped")
    for task in done - {stopped}:
        task.result()


async def _started(start: Callable[[], Coroutine[Any, Any, Life]], stopped: asyncio.Task[Any]) -> Life | None:
    """The daemon, serving; None when it was told to stop before."""
    starting = asyncio.create_task(start())
    await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with suppress(asyncio.CancelledError):
            return await starting  # it may have been through with it all the same
        return None
    return starting.result()


async def _reload_on(event: asyncio.Event, life: Life, notifier: Notifier) -> None:
    """Reload at each signal; between them, the status line. A reload that failed stays in it until one succeeds."""
    failure = ""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_EVERY_S):
                await event.wait()
        if not event.is_set():
            notifier.status(failure + life.status())
            continue
        event.clear()
        notifier.reloading(time.monotonic_ns() // 1000)
        try:
            await life.reload()
            failure = ""
        except NearpathError as error:
            _log.error("reload_failed", why=str(error), doing="the old configuration runs on")
            failure = f"reload failed, the old configuration runs on: {error.what}; "
        except Exception as error:
            # A fault of ours. systemd waits for the end of each reload, and the next SIGHUP may do better.
            _log.exception("reload_failed")
            failure = f"reload failed, see the log: {error!r}; "
        notifier.ready(failure + life.status())


async def _feed_watchdog(life: Life, notifier: Notifier, every_s: float) -> None:
    while True:
        if await life.is_well():
            notifier.alive()
        await asyncio.sleep(every_s)


@contextmanager
def errors_printed(command: str, status: int | None = None) -> Iterator[None]:
    """Print a NearpathError as `COMMAND: what: fix`, and end the process with `status` (None: the error's own)."""
    try:
        yield
    except NearpathError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(error.exit_status if status is None else status)
