"""`dnsd -c FILE`: the DNS server alone, for a box that answers and does not decide."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from core.config import Config
from core.errors import ConfigError, NearpathError, Problem
from core.io_config import read_config
from core.io_http import bind_tcp, make_health_app
from core.io_systemd import Notifier
from core.log import get_logger, set_up_logging
from dnsd.image import Image, compile_image
from dnsd.io_selfcheck import is_answering
from dnsd.io_server import DnsServer, answer_options
from dnsd.zone import MAX_ZONE_BYTES, Zone, ZoneError, parse_zone
from dnsd.zone_checks import check_zone
from policy.table import SteeringTable

_log = get_logger("dnsd")


def load_table(config: Config) -> SteeringTable | None:
    """The last steering table that the appliance has kept in `config.state_dir`; None when there is none."""
    return None


def read_zones(config: Config) -> list[Zone]:
    """All zones of the configuration; ConfigError with the faults of every file."""
    zones: list[Zone] = []
    problems: list[Problem] = []
    for entry in config.zones:
        try:
            with open(entry.file, "rb") as stream:
                data = stream.read(MAX_ZONE_BYTES + 1)
            zone = parse_zone(data.decode("utf-8"), entry.origin)
        except ZoneError as error:
            problems.append(Problem(entry.file, error.line, "", str(error)))
        except UnicodeDecodeError as error:
            problems.append(Problem(entry.file, 0, "", f"is not UTF-8 text (octet {error.start})"))
        except OSError as error:
            problems.append(Problem(entry.file, 0, "", f"cannot be read: {error.strerror}"))
        else:
            zones.append(zone)
            for warning in check_zone(zone):
                _log.warning("zone_warning", zone=entry.origin, warning=warning)
    if problems:
        raise ConfigError(problems)
    return zones


def load_image(file: Path, generation: int) -> tuple[Config, Image]:
    """Configuration and image from the files; NearpathError (ConfigError, ImageError) names what is wrong."""
    config = read_config(file)
    zones = read_zones(config)
    table = load_table(config)
    if table is None and config.services:
        # Serving without it would say NXDOMAIN for names that exist.
        raise NearpathError(
            f"there is no steering table for the services of {file}",
            f"run `nearpath up` (it keeps one in {config.state_dir} and serves DNS itself), or remove `services`",
        )
    return config, compile_image(zones, table, answer_options(config.dns), generation=generation)


async def serve(file: Path, notifier: Notifier) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads configuration and zones again."""
    wanted: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, wanted.put_nowait, number)
    config, image = await asyncio.to_thread(load_image, file, 1)
    registry = CollectorRegistry()
    server = DnsServer(config.dns, registry)
    server.swap(image)
    runner = web.AppRunner(make_health_app(registry, list))
    try:
        server.start()
        await runner.setup()
        for listen in config.metrics.listen:
            await web.SockSite(runner, bind_tcp(listen)).start()
        _log.info("ready", listen=server.addresses, zones=len(image.zones))
        notifier.ready(f"serving {len(image.zones)} zones")
        await _follow(file, config, server, notifier, wanted)
    finally:
        notifier.stopping()
        await runner.cleanup()
        await asyncio.to_thread(server.stop)
    _log.info("stopped")


async def _follow(
    file: Path, config: Config, server: DnsServer, notifier: Notifier, wanted: asyncio.Queue[int]
) -> None:
    """Act on signals until one of them ends the daemon; tell the watchdog as long as our own questions are answered."""
    while True:
        try:
            received = await asyncio.wait_for(wanted.get(), notifier.watchdog_interval_s)
        except TimeoutError:
            if all([await asyncio.to_thread(is_answering, address) for address in server.addresses]):
                notifier.alive()
            continue
        if received != signal.SIGHUP:
            return
        notifier.reloading(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)
        await asyncio.to_thread(_reload, file, config, server)
        notifier.ready(f"serving {len(server.image().zones)} zones")


def _reload(file: Path, config: Config, server: DnsServer) -> None:
    """Swap in what the files say now; a fault changes nothing and is logged."""
    try:
        fresh, image = load_image(file, server.image().generation + 1)
    except NearpathError as error:
        _log.error("reload_refused", reason=str(error), kept_generation=server.image().generation)
        return
    if fresh.dns.listen != config.dns.listen:
        _log.warning("listen_unchanged", reason="dns.listen takes effect with a restart")
    server.swap(image)
    _log.info("reloaded", generation=image.generation, zones=len(image.zones))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the `dnsd` command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dnsd", description="Authoritative DNS server of nearpath")
    parser.add_argument(
        "-c", "--config", type=Path, required=True, metavar="FILE", help="the appliance's configuration"
    )
    parser.add_argument("--log-json", action="store_true", help="log JSON lines")
    options = parser.parse_args(arguments)
    set_up_logging(json=options.log_json)
    try:
        asyncio.run(serve(options.config, Notifier()))
    except NearpathError as error:
        sys.stderr.write(f"dnsd: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
