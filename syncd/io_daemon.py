"""The daemon of a mirror node: its trees, the port for its children, its parents, stamps, and what operators ask it."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

from core.config_sync import SyncConfig, Tree
from core.errors import NearpathError
from core.io_config_sync import read_sync_config
from core.io_control import bind_control
from core.io_http import bind_tcp, bound_address, make_health_app, server_tls
from core.io_log import get_logger
from core.io_state import hold_state_dir
from core.messages import ReportedStamp
from syncd.copy.io_child import Follower
from syncd.io_control import make_control_app
from syncd.io_metrics import make_registry
from syncd.io_snapshot import make_snapshot
from syncd.io_stamps import Stamper
from syncd.node_status import child_stamp, origin_stamp
from syncd.source.io_origin import Origin
from syncd.store.io_offer import Catalogue
from syncd.transfer import wire
from syncd.transfer.io_lineage import Lineage
from syncd.transfer.io_push import Pusher
from syncd.transfer.io_rsync import own_ids
from syncd.transfer.io_rsync_check import check_binary
from syncd.transfer.io_serve import Limits, Server, Serving
from syncd.transfer.io_splice import clear_configs
from syncd.transfer.io_stager import Stager

FIXED = ("node", "state_dir", "listen", "tls", "metrics")
"""What only a restart can change."""

GC_THRESHOLDS = (100_000, 20, 100)
"""A batch makes some 100,000 objects without cycles that live for a second: to look for cycles among them at every 700, as
Python does, took a quarter of the time."""
SWITCH_S = 0.0005
"""How long a thread may keep the interpreter while others wait for it. Who stages files, or reads them for a child, needs
it again after each of some five system calls a file: with Python's 5 ms that would all but stand still beside a plan."""

_log = get_logger("syncd")


class Daemon:
    """See the module. `open` raises NearpathError when it cannot start; afterwards trouble shows in `snapshot`."""

    def __init__(self, file: Path, config: SyncConfig) -> None:
        self.file = file
        self.config = config
        self.origins: dict[str, Origin] = {}
        self.followers: dict[str, Follower] = {}
        self.pushers: dict[str, list[Pusher]] = {}
        self.stager = Stager()
        self.lineage = Lineage(config, self.stager)
        self.catalogue = Catalogue({})
        self.server: Server | None = None
        self.addresses: list[str] = []
        self.started_wall_s = time.time()
        self._stamper: Stamper | None = None
        self._runners: list[web.AppRunner] = []
        self._lock = -1
        self._reloading = asyncio.Lock()
        self.reload_error = ""
        """why the last reload failed"""

    @classmethod
    async def open(cls, file: Path) -> Daemon:
        """Start everything that the configuration in `file` asks for."""
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_S)
        config = await asyncio.to_thread(read_sync_config, file)
        daemon = cls(file, config)
        daemon._lock = hold_state_dir(Path(config.state_dir), "syncd")
        try:
            for problem in await asyncio.to_thread(check_binary):
                _log.warning("rsync_problem", why=str(problem))
            daemon.lineage.start()
            for name, tree in config.trees.items():
                await daemon._start_tree(name, tree)
            await daemon._serve()
            await daemon._open_control()
            daemon._start_stamps()
        except BaseException:
            await daemon.close()
            raise
        return daemon

    async def close(self) -> None:
        """Stop everything; what is under way is gone on with at the next start."""
        if self._stamper is not None:
            await self._stamper.stop()
        if self.server is not None:
            await self.server.stop()
        for runner in self._runners:
            await runner.cleanup()
        names = [*self.followers, *self.origins]
        await asyncio.gather(*(self._stop_tree(name) for name in names), return_exceptions=True)
        await self.lineage.stop()
        await self.stager.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def reload(self) -> None:
        """Take up the configuration anew: trees, children, parents and stamps; ConfigError leaves all as it is.

        Signals and operators may ask at the same time: one after the other.
        """
        async with self._reloading:
            try:
                await self._reload()
            except NearpathError as error:
                self.reload_error = str(error)
                raise
            self.reload_error = ""

    async def _reload(self) -> None:
        config = await asyncio.to_thread(read_sync_config, self.file)
        fixed = [key for key in FIXED if getattr(config, key) != getattr(self.config, key)]
        if fixed:
            _log.warning("restart_needed", keys=fixed, why="these take effect at a restart only")
        before, self.config = self.config, config
        if self.server is not None:
            # First of all: who may no longer pull does not, whatever goes wrong below.
            self.server.allow(self._children())
        parents_changed = before.parents != config.parents
        for name in [*self.origins, *self.followers]:
            tree = config.trees.get(name)
            is_follower = name in self.followers
            if tree is None or tree != before.trees[name] or (is_follower and parents_changed):
                await self._stop_tree(name)
        if parents_changed or before.trees != config.trees:
            old, self.lineage = self.lineage, Lineage(config, self.stager)
            for follower in self.followers.values():
                follower.follow(self.lineage)
            self.lineage.start()
            await old.stop()
        faults = [fault for name, tree in config.trees.items() if (fault := await self._start_missing(name, tree))]
        self._offer_all()
        if before.appliance != config.appliance:
            if self._stamper is not None:
                await self._stamper.stop()
            self._start_stamps()
        if faults:
            raise faults[0]

    async def _start_missing(self, name: str, tree: Tree) -> NearpathError | None:
        """Start a tree that does not run; why not, when it cannot be: the others go on, and the next reload tries again."""
        if name in self.origins or name in self.followers:
            return None
        try:
            await self._start_tree(name, tree)
        except NearpathError as error:
            _log.error("tree_not_started", tree=name, why=str(error))
            if name in self.origins or name in self.followers:
                await self._stop_tree(name)
            return error
        return None

    # -- trees

    def store_of(self, name: str) -> Path:
        """Where index and journal of a tree are."""
        return Path(self.config.state_dir) / "trees" / f"{name}.db"

    async def _start_tree(self, name: str, tree: Tree) -> None:
        if tree.parents:
            follower = Follower(
                name, tree, self.store_of(name), key_of(self.config, name), self.lineage, self._on_change
            )
            self.followers[name] = follower
            await follower.start()
        else:
            origin = Origin(name, tree, self.store_of(name), key_of(self.config, name))
            self.origins[name] = origin
            await origin.start()
        self._offer_all()
        self.pushers[name] = [
            Pusher(name, tree, target, push, self.catalogue.offers[name]) for target, push in tree.push.items()
        ]
        for pusher in self.pushers[name]:
            pusher.start()

    async def _stop_tree(self, name: str) -> None:
        for pusher in self.pushers.pop(name, []):
            await pusher.stop()
        part: Origin | Follower = self.origins.pop(name, None) or self.followers.pop(name)
        await part.stop()

    def _offer_all(self) -> None:
        mine = {name: origin.offer for name, origin in self.origins.items()}
        self.catalogue.offers = mine | {name: follower.offer for name, follower in self.followers.items()}

    # -- what is served

    def _children(self) -> dict[str, wire.Child]:
        every = frozenset(self.config.trees)
        return {
            name: wire.Child(name, child.token_sha256, frozenset(child.trees) or every)
            for name, child in self.config.children.items()
        }

    async def _serve(self) -> None:
        if not self.config.listen:
            return
        tls = server_tls(self.config.tls.cert, self.config.tls.key, both_ours=True) if self.config.tls else None
        # Each tree of a child has a long poll open.
        limits = Limits(requests_per_child=32 + 2 * len(self.config.trees))
        configs = os.path.join(self.config.state_dir, "rsyncd")
        clear_configs(configs)
        self.server = Server(self.catalogue, self._children(), limits, Serving(owner=own_ids(), config_dir=configs))
        socks = [bind_tcp(listen) for listen in self.config.listen]
        await self.server.start(socks[0], tls, *socks[1:])
        self.addresses = [bound_address(sock) for sock in socks]
        _log.info("serving", addresses=self.addresses)

    async def _open_control(self) -> None:
        runner = web.AppRunner(make_control_app(self), access_log=None)
        await runner.setup()
        self._runners.append(runner)
        await web.SockSite(runner, bind_control(Path(self.config.state_dir))).start()
        if self.config.metrics.listen:
            health = web.AppRunner(make_health_app(make_registry(self), self.not_ready), access_log=None)
            await health.setup()
            self._runners.append(health)
            for listen in self.config.metrics.listen:
                await web.SockSite(health, bind_tcp(listen)).start()

    # -- what is told

    def _on_change(self) -> None:
        if self._stamper is not None:
            self._stamper.changed()

    def _start_stamps(self) -> None:
        self._stamper = None
        if self.config.appliance is not None:
            self._stamper = Stamper(self.config.appliance, self.config.node, self.stamps)
            self._stamper.start()

    def stamps(self) -> Sequence[ReportedStamp]:
        """How fresh each tree is now."""
        mine = [origin_stamp(name, o.is_ready, o.root, o.freshness().lag_s) for name, o in self.origins.items()]
        copies = [
            child_stamp(name, follower.status, follower.freshness().lag_s, follower.freshness().version)
            for name, follower in self.followers.items()
        ]
        return [*mine, *copies]

    def appliance_status(self) -> dict[str, Any] | None:
        """Whether stamps arrive; None when they are not wanted."""
        if self._stamper is None or self.config.appliance is None:
            return None
        delivered_s = self._stamper.delivered_s
        age_s = None if delivered_s is None else round(time.monotonic() - delivered_s, 1)
        return {"url": self.config.appliance.url, "delivered_s_ago": age_s, "error": self._stamper.error}

    def not_ready(self) -> list[str]:
        """Why this node does not do all it should; empty when it does."""
        states = {name: (o.status.state.value, o.status.why) for name, o in self.origins.items() if not o.is_ready}
        for name, follower in self.followers.items():
            if not follower.status.has_content:
                states[name] = (follower.status.activity.value, follower.status.why)
        return [f"tree {name}: {state} {why}".strip() for name, (state, why) in states.items()]

    def snapshot(self) -> dict[str, Any]:
        """Everything `syncd status` shows."""
        return make_snapshot(self)


def key_of(config: SyncConfig, tree: str) -> Path:
    """Where the secret key of a tree is, at its origin."""
    file = config.trees[tree].key_file
    return Path(file) if file else Path(config.state_dir) / "keys" / f"{tree}.key"
