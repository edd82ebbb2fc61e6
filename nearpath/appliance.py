"""The appliance: everything on one box, composed. `nearpath up` runs one.

Start: read all files -> open the store -> restore and decide -> answer DNS -> take reports -> ready. A reload reads and
compiles everything first and swaps only if all of it is good, so a bad file changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from core.config import Config
from core.errors import BusUnavailable, NearpathError
from core.io_bus import EmbeddedBus
from core.io_clock import AnchoredClock
from core.io_config import read_config
from core.io_control import bind_control
from core.io_http import bind_tcp, bound_address, make_health_app, server_tls
from core.io_log import get_logger
from core.io_state import hold_state_dir
from core.messages import MirrorAdmin, encode
from dnsd.image import Image, compile_image, with_table
from dnsd.io_server import DnsServer, answer_options
from nearpath.api import ReportInterface, make_report_app, make_targets
from nearpath.control import make_control_app
from nearpath.ingest import AgentState
from nearpath.loading import Loaded, load
from nearpath.metrics import register_metrics
from nearpath.silence import close_silent
from nearpath.stamps import NodeState
from nearpath.steerer import ADMIN_PREFIX, Steerer
from policy.engine import SteeringEngine
from policy.table import ALIVE_EVERY_S, ALIVE_KEY, TABLE_KEY, SteeringTable, dump_services

_LATE_DECISION_S = 10.0
"""A table is decided twice a second; one this old means that deciding has stopped."""

_log = get_logger("appliance")


class Appliance:
    """One appliance. `await open(file)`, then `reload()` on SIGHUP, `await close()` at the end."""

    bus: EmbeddedBus
    server: DnsServer | None
    steerer: Steerer
    api: ReportInterface

    def __init__(self, config_file: Path, loaded: Loaded, with_dns: bool) -> None:
        self.config_file = config_file
        self.server = None
        self._with_dns = with_dns
        self._table: SteeringTable | None = None
        self._table_changed = asyncio.Event()
        self.clock = AnchoredClock()
        self.registry = CollectorRegistry()
        self.started_s = self.clock.now()
        self.reload_error = ""
        self.ready = False
        self.report_addresses: list[str] = []
        self.metrics_addresses: list[str] = []
        self._loaded = loaded
        self._image: Image | None = None
        self._generation = 1
        self._stack = contextlib.AsyncExitStack()
        self._reloading = asyncio.Lock()

    @classmethod
    async def open(cls, config_file: Path, *, with_dns: bool = True) -> Appliance:
        """Bring everything up; NearpathError (ConfigError, ...) when something cannot be, with nothing left running.

        Without DNS it decides only, for a `dnsd` on the same state_dir.
        """
        appliance = cls(config_file, load(read_config(config_file)), with_dns)
        try:
            await appliance._start()
        except BaseException:
            await appliance.close()
            raise
        return appliance

    async def _start(self) -> None:
        config, push = self.config, self._stack.push_async_callback
        state_dir = Path(config.state_dir)
        self._stack.callback(os.close, hold_state_dir(state_dir, "appliance"))
        self.bus = await EmbeddedBus.open(state_dir / "bus.sqlite", self.clock)
        push(self.bus.close)
        if self._with_dns:
            self.server = DnsServer(config.dns, self.registry)
            self._stack.callback(self.server.stop)
        self.steerer = Steerer(self._loaded.plan, self.bus, self.clock, self._serve, config.history)
        await self.steerer.start()
        push(self.steerer.stop)
        if self.server:
            self.server.start()
        keeper = asyncio.create_task(self._keep_tables(), name="table-keeper")
        push(_cancelled, keeper)
        agents = {name: AgentState(name) for name in config.agents}
        nodes = {name: NodeState(name) for name in config.nodes}
        self.api = ReportInterface(config, make_targets(config), self.bus, self.steerer, self.clock, agents, {}, nodes)
        register_metrics(self.registry, self)
        await self._listen()
        self.ready = True
        _log.info("ready", dns=self.dns_addresses, report=self.report_addresses, metrics=self.metrics_addresses)

    async def close(self) -> None:
        """Stop in the reverse order: no more reports, then no DNS, then the state is kept."""
        self.ready = False
        await self._stack.aclose()

    async def reload(self) -> None:
        """Read the configuration and all its files again; a fault raises, is kept in `reload_error`, changes nothing.

        One after the other: of two at once, the one that began later must win.
        """
        async with self._reloading:
            try:
                await self._reload()
            except NearpathError as error:
                self.reload_error = str(error)
                raise
            except Exception as error:
                # A fault of ours. Whoever asked gets an answer, and SIGHUP works the next time too.
                _log.exception("reload_fault")
                self.reload_error = f"a fault in nearpath: {error!r}"
                raise NearpathError(self.reload_error, "see the log, and report it") from error

    async def _reload(self) -> None:
        older = self._loaded
        loaded = await asyncio.to_thread(lambda: load(read_config(self.config_file), older))
        _refuse_fixed_changes(older.config, loaded.config)
        # Only to prove that zones and services fit together, before anything is swapped.
        _image_of(loaded, SteeringEngine(loaded.plan).decide(self.clock.now()), 1)
        self._loaded = loaded
        self._image = None
        self.steerer.change_plan(loaded.plan)
        self.api.reload(loaded.config)
        self.reload_error = ""
        _log.info("reloaded", file=str(self.config_file))

    @property
    def dns_addresses(self) -> list[str]:
        """`ADDRESS:PORT` that names are answered on."""
        return self.server.addresses if self.server else []

    @property
    def config(self) -> Config:
        """The configuration being served."""
        return self._loaded.config

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the configuration being served."""
        return self._loaded.warnings

    def not_ready(self) -> list[str]:
        """Reasons for not being ready; empty when the appliance serves as it should."""
        reasons = [] if self.ready else ["starting or stopping"]
        if self.ready and (age_s := self.clock.now() - self.steerer.decided_s) > _LATE_DECISION_S:
            reasons.append(f"the last decision is {age_s:.0f} s old: deciding has stopped, see the log")
        return reasons

    async def set_drained(self, mirror: str, drained: bool, by: str) -> None:
        """Drain or undrain a mirror; kept over restarts. KeyError for a mirror that is not configured."""
        if mirror not in self.config.mirrors:
            raise KeyError(mirror)
        admin = MirrorAdmin(mirror, drained, by[:200], self.clock.now())
        await self.bus.put(ADMIN_PREFIX + mirror, encode(admin))
        _log.info("mirror_drained" if drained else "mirror_undrained", mirror=mirror, by=by)

    def _serve(self, table: SteeringTable) -> None:
        """Swap in the image of a new table, and have the table kept."""
        self._image = (
            with_table(self._image, table) if self._image else _image_of(self._loaded, table, self._generation)
        )
        self._generation = self._image.generation + 1
        if self.server:
            self.server.swap(self._image)
        self._table = table
        self._table_changed.set()

    async def _keep_tables(self) -> None:
        """Keep the last table on disk, once a second at most, and a sign of life beside it: what a `dnsd` lives on."""
        while True:
            # Not wait_for: that of Python 3.11 loses a cancellation when the event is set in the same moment.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ALIVE_EVERY_S):
                    await self._table_changed.wait()
            try:
                if self._table_changed.is_set() and self._table:
                    self._table_changed.clear()
                    await self.bus.put(TABLE_KEY, dump_services(self._table))
                await self.bus.put(ALIVE_KEY, repr(self.clock.now()).encode())
            except BusUnavailable as error:
                self._table_changed.set()
                _log.error("table_not_kept", why=str(error))
            await asyncio.sleep(1.0)

    async def _listen(self) -> None:
        config = self.config
        tls = server_tls(config.report.tls.cert, config.report.tls.key) if config.report.tls else None
        report = await self._run_app(make_report_app(self.api))
        self._stack.push_async_callback(_cancelled, asyncio.create_task(close_silent(report), name="silence"))
        for listen in config.report.listen:
            sock = bind_tcp(listen)
            await web.SockSite(report, sock, ssl_context=tls).start()
            self.report_addresses.append(bound_address(sock))
        health = await self._run_app(make_health_app(self.registry, self.not_ready))
        for listen in config.metrics.listen:
            sock = bind_tcp(listen)
            await web.SockSite(health, sock).start()
            self.metrics_addresses.append(bound_address(sock))
        control = await self._run_app(make_control_app(self))
        await web.SockSite(control, bind_control(Path(config.state_dir))).start()

    async def _run_app(self, app: web.Application) -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        return runner


def _image_of(loaded: Loaded, table: SteeringTable, generation: int) -> Image:
    return compile_image(loaded.zones, table, answer_options(loaded.config.dns), generation=generation)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _refuse_fixed_changes(old: Config, new: Config) -> None:
    """Some settings hold sockets or files that a reload does not reopen; changing them needs a restart, said plainly."""
    names = ("state_dir", "dns", "report", "metrics", "history")
    fixed = [name for name in names if getattr(old, name) != getattr(new, name)]
    if fixed:
        raise NearpathError(f"{', '.join(fixed)} cannot change while running", "restart nearpath to apply it")
