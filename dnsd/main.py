"""`dnsd -c FILE`: the DNS server alone. It answers; a `nearpath up --no-dns` on the same state_dir decides.

The table it serves comes out of the appliance's store, read once a second. While nobody decides, it goes on with the last
table, also over its own restart, and says in every answer that nothing of it is live any more.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from core.config import Config
from core.errors import BusUnavailable, MessageError, NearpathError
from core.io_bus import read_value
from core.io_config import read_config
from core.io_http import bind_tcp, make_health_app
from core.io_life import Life, errors_printed, live
from core.io_log import get_logger, set_up_logging
from dnsd.image import Image, compile_image, with_table
from dnsd.io_files import Names, read_names
from dnsd.io_selfcheck import are_answering
from dnsd.io_server import DnsServer, answer_options
from policy.table import ALIVE_EVERY_S, ALIVE_KEY, TABLE_KEY, SteeringTable, load_services, mark_stale

_POLL_S = 1.0
_SILENT_S = 4 * ALIVE_EVERY_S
"""The appliance is taken for dead when it gave no sign of life for this long."""

_log = get_logger("dnsd")


@dataclass(slots=True)
class _Store:
    """What was last read of the appliance's store: revisions tell without reading much that nothing changed."""

    file: Path
    table_revision: int = -1
    alive_revision: int = -1
    alive_seen_s: float = -math.inf
    silent: bool = True
    table: SteeringTable | None = None
    error: str = ""


def poll(store: _Store, names: Names, now: float) -> bool:
    """Read what is new in the store (`now`: monotonic seconds); True when other answers follow from it."""
    try:
        alive, kept = read_value(store.file, ALIVE_KEY), read_value(store.file, TABLE_KEY)
        changed = kept is not None and kept.revision != store.table_revision
        if kept is not None and changed:
            store.table_revision = kept.revision
            store.table = load_services(kept.body, names.regions)
        _note(store, "")
    except (BusUnavailable, MessageError) as error:
        # What is being served stays: an unreadable store is no reason to stop answering.
        _note(store, str(error))
        alive, changed = None, False
    if alive is not None and alive.revision != store.alive_revision:
        # The first sign read may be an old one: only one that follows it proves that somebody decides.
        if store.alive_revision >= 0:
            store.alive_seen_s = now
        store.alive_revision = alive.revision
    silent = now - store.alive_seen_s > _SILENT_S
    if silent != store.silent:
        store.silent, changed = silent, True
        _log.log(30 if silent else 20, "appliance_silent" if silent else "appliance_heard", store=str(store.file))
    return changed


def _note(store: _Store, error: str) -> None:
    if error and error != store.error:
        _log.error("store_unreadable", why=error, doing="the last table is served")
    store.error = error


def _serving(store: _Store) -> SteeringTable | None:
    return mark_stale(store.table) if store.table and store.silent else store.table


def load_image(
    file: Path, generation: int, now: float, older: _Store | None = None
) -> tuple[Config, Names, _Store, Image]:
    """Everything from the files; NearpathError (ConfigError, ImageError) names what is wrong.

    What `older` has heard of the appliance stays true over a reload.
    """
    config = read_config(file)
    names = read_names(config)
    for warning in names.warnings:
        _log.warning("zone_warning", warning=warning)
    store = _Store(Path(config.state_dir) / "bus.sqlite")
    if older is not None and older.file == store.file:
        store.alive_revision, store.alive_seen_s, store.silent = older.alive_revision, older.alive_seen_s, older.silent
    poll(store, names, now)
    missing = sorted(set(config.services) - set(store.table.services if store.table else ()))
    if missing:
        # Serving without it would say NXDOMAIN for names that exist.
        raise NearpathError(
            f"there is no decision yet for {', '.join(missing)} in {store.file}",
            "run `nearpath up --no-dns` with the same configuration, which decides, or remove these services",
        )
    return config, names, store, compile_image(
        names.zones, _serving(store), answer_options(config.dns), generation=generation
    )  # fmt: skip


class _Daemon:
    """The running server with what it serves."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.config, self.names, self.store, image = load_image(file, 1, time.monotonic())
        self.registry = CollectorRegistry()
        self.server = DnsServer(self.config.dns, self.registry)
        self.server.swap(image)
        self._swapping = threading.Lock()

    def follow(self) -> None:
        """Serve what the store says now."""
        with self._swapping:
            if not poll(self.store, self.names, time.monotonic()):
                return
            try:
                self.server.swap(with_table(self.server.image(), _serving(self.store)))
            except NearpathError as error:
                _log.error(
                    "table_refused", why=str(error), doing="the last table is served; reload after both files agree"
                )

    def reload(self) -> None:
        """Serve what the files say now; NearpathError changes nothing."""
        with self._swapping:
            self._reload()

    def _reload(self) -> None:
        config, names, store, image = load_image(
            self.file, self.server.image().generation + 1, time.monotonic(), self.store
        )
        if config.dns.listen != self.config.dns.listen:
            _log.warning("listen_unchanged", reason="dns.listen takes effect with a restart")
        self.config, self.names, self.store = config, names, store
        self.server.swap(image)
        _log.info("reloaded", generation=image.generation, zones=len(image.zones))

    def not_ready(self) -> list[str]:
        """For /readyz: it answers in any case, but somebody should know when nobody decides."""
        return (
            ["the appliance is silent: the last decisions are served"]
            if self.store.silent and self.config.services
            else []
        )


async def _start(file: Path) -> Life:
    daemon = await asyncio.to_thread(_Daemon, file)
    runner = web.AppRunner(make_health_app(daemon.registry, daemon.not_ready))

    async def close() -> None:
        await runner.cleanup()
        await asyncio.to_thread(daemon.server.stop)

    async def follow() -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            await asyncio.to_thread(daemon.follow)

    try:
        daemon.server.start()
        await runner.setup()
        for listen in daemon.config.dns.metrics:
            await web.SockSite(runner, bind_tcp(listen)).start()
    except BaseException:
        await close()
        raise
    _log.info("ready", listen=daemon.server.addresses, zones=len(daemon.names.zones))
    return Life(
        status=lambda: "; ".join([f"serving {len(daemon.names.zones)} zones", *daemon.not_ready()]),
        reload=lambda: asyncio.to_thread(daemon.reload),
        close=close,
        is_well=lambda: asyncio.to_thread(are_answering, daemon.server.addresses),
        work=follow,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `dnsd` command."""
    parser = argparse.ArgumentParser(prog="dnsd", description="Authoritative DNS server of nearpath")
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="the appliance's configuration"
    )
    parser.add_argument("--log-json", action="store_true", help="log JSON lines")
    options = parser.parse_args(arguments)
    set_up_logging(json=options.log_json)
    with errors_printed("dnsd"):
        asyncio.run(live(lambda: _start(options.config)))


if __name__ == "__main__":
    main()
