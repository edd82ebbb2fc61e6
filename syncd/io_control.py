"""What the command line asks a running syncd over its control socket."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from core.errors import NearpathError
from core.io_control import control_app, read_object, told
from core.io_log import get_logger
from syncd.copy.io_child import Follower
from syncd.io_examine import plan_now, verify_now
from syncd.source.io_origin import Origin
from syncd.transfer.io_push import Pusher

if TYPE_CHECKING:
    from syncd.io_daemon import Daemon

MAX_SHOWN = 1000
"""Paths in one answer; the rest is counted."""
WISH_TIMEOUT_S = 60.0
"""A version is shown once what is being published is through."""

_log = get_logger("control")


def make_control_app(daemon: Daemon) -> web.Application:
    """The application behind the control socket."""
    control = _Control(daemon)
    return control_app(
        [
            web.get("/v1/status", control.status),
            web.post("/v1/approve", control.approve),
            web.post("/v1/accept", control.accept),
            web.post("/v1/trust", control.trust),
            web.post("/v1/forget", control.forget),
            web.post("/v1/pull", control.pull),
            web.post("/v1/verify", control.verify),
            web.post("/v1/scrub", control.scrub),
            web.post("/v1/plan", control.plan),
            web.post("/v1/rollback", control.rollback),
            web.post("/v1/reload", control.reload),
        ]
    )


class _Control:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._verified: set[str] = set()

    async def status(self, _request: web.Request) -> web.Response:
        return told(self._daemon.snapshot())

    async def approve(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        tree, token = _word(body, "tree"), _word(body, "token")
        follower = self._daemon.followers.get(tree)
        parts: list[Follower | Pusher] = [*([follower] if follower else []), *self._daemon.pushers.get(tree, [])]
        # The same deletes have the same token at each mirror: one word lets them through at all of them.
        approved = [part.approve(token) for part in parts]
        if not any(approved):
            raise NearpathError("nothing is held under this tree and token", "`syncd status` shows what is held")
        return told({"approved": tree})

    async def accept(self, request: web.Request) -> web.Response:
        part = self._part(await read_object(request))
        part.accept()
        return told({"accepted": part.name})

    async def trust(self, request: web.Request) -> web.Response:
        follower = self._copy(await read_object(request), "it signs the root itself")
        follower.trust()
        return told({"trusted": follower.name})

    async def forget(self, request: web.Request) -> web.Response:
        child = _word(await read_object(request), "child")
        parts: list[Origin | Follower] = [*self._daemon.origins.values(), *self._daemon.followers.values()]
        known = [await part.offer.forget(child) for part in parts]
        if not any(known):
            raise NearpathError(f"no child {child!r} is known", "`syncd status` names those that are")
        return told({"forgotten": child, "configured": child in self._daemon.config.children})

    async def pull(self, request: web.Request) -> web.Response:
        follower = self._copy(await read_object(request), "there is nothing to pull: its children do")
        asked_s = time.monotonic()
        follower.ask_now()
        return told({"asked_s": asked_s})

    async def verify(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        part = self._part(body)
        if isinstance(part, Origin):
            part.sweep()
            return told({"role": "origin", "entries": part.entries})
        if part.name in self._verified:
            raise NearpathError(f"tree {part.name} is being verified already", "wait for it")
        self._verified.add(part.name)
        try:
            findings = await verify_now(part, self._daemon.store_of(part.name).with_suffix(".verify"))
        finally:
            self._verified.discard(part.name)
        asked_s = time.monotonic()
        if findings.differences and body.get("repair"):
            part.verify(findings.unlike)
        return told(
            {
                "role": "copy",
                "asked_s": asked_s,
                "entries": findings.entries,
                "different": len(findings.differences),
                "unsure": findings.unsure,
                "refused": [
                    {"path": os.fsdecode(found.path), "what": found.what} for found in findings.refused[:MAX_SHOWN]
                ],
                "differences": [
                    {"path": os.fsdecode(found.path), "what": found.what} for found in findings.differences[:MAX_SHOWN]
                ],
                "troubles": [
                    {"path": os.fsdecode(trouble.path), "why": trouble.why} for trouble in findings.troubles[:MAX_SHOWN]
                ],
            }
        )

    async def scrub(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        part = self._part(body)
        part.scrubber.hurry(repair=body.get("repair") is not False)
        return told({"tree": part.name, "passes": part.scrubber.status.passes})

    async def plan(self, request: web.Request) -> web.Response:
        follower = self._copy(await read_object(request), "it is what others become")
        plan = await plan_now(follower)
        fetches = [fetch.entry for fetch in (*plan.payload, *plan.indexes)]
        held = follower.status.held
        return told(
            {
                "fetch_files": len(fetches),
                "fetch_bytes": plan.fetch_bytes,
                "steps": len(plan.steps),
                "deleted_entries": plan.deleted_entries,
                "held": held.what if held else "",
                "fetches": [{"path": os.fsdecode(e.path), "bytes": e.size} for e in fetches[:MAX_SHOWN]],
                "deletes": [os.fsdecode(path) for path in plan.deletes[:MAX_SHOWN]],
                "refused": [{"path": os.fsdecode(path), "why": why} for path, why in plan.refused[:MAX_SHOWN]],
            }
        )

    async def rollback(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        follower = self._copy(body, "mode atomic is for copies")
        number = body.get("version")
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise NearpathError("the version is no number", "`syncd rollback TREE` names those that are there")
        if not body.get("release") and number is None:
            kept = await follower.with_copy(lambda copy: copy.versions())
            named = [{"version": number, "public": public, "made_wall_s": made} for number, public, made in kept]
            return told({"versions": named})
        wish = follower.show_version(None if body.get("release") else number)
        async with asyncio.timeout(WISH_TIMEOUT_S):
            await wish
        return told({"shown": number})

    async def reload(self, _request: web.Request) -> web.Response:
        try:
            await self._daemon.reload()
        except NearpathError as error:
            _log.error("reload_failed", why=str(error), doing="the old configuration runs on")
            raise
        return told({"reloaded": str(self._daemon.file)})

    def _part(self, body: dict[str, Any]) -> Follower | Origin:
        name = _word(body, "tree")
        part = self._daemon.followers.get(name) or self._daemon.origins.get(name)
        if part is None:
            raise NearpathError(f"there is no tree {name!r}", f"trees: {', '.join(self._daemon.config.trees)}")
        return part

    def _copy(self, body: dict[str, Any], why_not: str) -> Follower:
        part = self._part(body)
        if isinstance(part, Origin):
            raise NearpathError(f"this node is the origin of tree {part.name}", why_not)
        return part


def _word(body: dict[str, Any], key: str) -> str:
    return str(body.get(key, ""))[:255]
