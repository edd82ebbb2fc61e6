"""Stamps of mirror nodes: how fresh each tree of each node is, taken in over the report interface."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from core.config import Node
from core.errors import BusUnavailable, MessageError
from core.messages import MAX_STAMPS_PER_REPORT, StampAck, StampReport, SyncStamp, encode
from core.tokens import authenticate
from nearpath.admission import Allowance, not_stored, read_report, too_many, unauthorized, under_way
from nearpath.steerer import STAMP_PREFIX

if TYPE_CHECKING:
    from nearpath.api import ReportInterface

NODE_HEADER = "X-Nearpath-Node"

FORGET_AFTER_S = 60.0
"""A tree that a node leaves out of its reports for this long is one that it no longer has."""

_REPORT_COST_S = 0.2
_STAMP_COST_S = 0.001
_MOST_CREDIT_S = 10.0
"""Each report costs this much of a node's time, up to 10 s ahead: five small ones a second in the long run."""


@dataclass(slots=True)
class NodeState:
    """What the appliance remembers of one mirror node while it runs."""

    name: str
    skew_s: float | None = None
    heard_s: float | None = None
    stamps: int = 0
    address: str = ""
    under_way: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tree_heard_s: dict[str, float] = field(default_factory=dict)
    allowance: Allowance = field(default_factory=lambda: Allowance(_MOST_CREDIT_S))

    def admits(self, stamps: int, now: float) -> bool:
        """Whether a report of so many stamps may be taken now."""
        return self.allowance.take(_REPORT_COST_S + stamps * _STAMP_COST_S, now)

    def hear(self, report: StampReport, known: Iterable[str], now: float) -> list[str]:
        """Note a report; returns those of the `known` trees that it and those of the last minute leave out."""
        heard = self._tree_heard_s
        if self.heard_s is None or now - self.heard_s > FORGET_AFTER_S:
            # It said nothing about any tree: the minute starts now.
            heard.clear()
        self.heard_s, self.skew_s = now, report.wall_s - now
        heard.update((stamp.tree, now) for stamp in report.stamps)
        gone = [tree for tree in known if now - heard.setdefault(tree, now) > FORGET_AFTER_S]
        for tree in gone:
            del heard[tree]
        return gone


def accept_stamps(report: StampReport, node: Node, now: float) -> list[SyncStamp]:
    """The stamps of a report for each mirror of its node, dated on the appliance's timeline, never in the future."""
    return [
        SyncStamp(
            mirror=mirror,
            tree=stamp.tree,
            version=stamp.version,
            root_hash=stamp.root_hash,
            lag_s=stamp.lag_s,
            state=stamp.state,
            taken_s=now - stamp.age_s,
            busy=stamp.busy,
            node=report.node,
        )
        for mirror in dict.fromkeys(node.mirrors)
        for stamp in report.stamps
    ]


def add_stamp_route(app: web.Application, api: ReportInterface) -> None:
    """Serve `POST /v1/stamps`: a `StampReport` with the node's name and token; the answer is a `StampAck`."""

    def node_of(request: web.Request) -> NodeState:
        name = request.headers.get(NODE_HEADER, "")
        if authenticate(name, request.headers.get("Authorization", ""), api.config.nodes) is None:
            api.nodes_refused += 1
            # One line for all unknown names: they are free to make up.
            known = name if name in api.config.nodes else "(unknown)"
            api.complain("node_refused", node=known, address=request.remote, why="unknown name or wrong token")
            raise unauthorized("node")
        state = api.nodes.setdefault(name, NodeState(name))
        state.address = request.remote or ""
        return state

    async def stamps(request: web.Request) -> web.Response:
        state = node_of(request)
        with under_way(state):
            if state.allowance.is_spent(api.clock.now()):
                raise too_many("too many reports of this node", _MOST_CREDIT_S / 2)
            try:
                report = await read_report(request, StampReport)
                _check(report, state)
            except MessageError as error:
                # What it is was found out by reading it whole.
                state.allowance.charge(_REPORT_COST_S, api.clock.now())
                api.complain("stamps_refused", node=state.name, why=str(error))
                raise web.HTTPBadRequest(text=f"{error}\n") from None
            # One report of a node at a time: the one that came last is its last word.
            async with state.lock:
                return await _store(api, state, report)

    app.add_routes([web.post("/v1/stamps", stamps)])


def _check(report: StampReport, state: NodeState) -> None:
    if report.node != state.name:
        raise MessageError("not a StampReport", f"it is of node {report.node}, its token is that of {state.name}")
    trees = {stamp.tree for stamp in report.stamps}
    if len(trees) < len(report.stamps):
        raise MessageError("not a StampReport", "it names a tree twice")


async def _store(api: ReportInterface, state: NodeState, report: StampReport) -> web.Response:
    node, now = api.config.nodes.get(state.name), api.clock.now()
    if node is None:
        # A reload removed it while its report was on the way or waited for its turn.
        raise unauthorized("node")
    if not state.admits(len(report.stamps), now):
        api.complain(
            "stamps_too_often", node=state.name, why="it may send five reports a second, fewer if they are large"
        )
        raise too_many("too many reports of this node", _MOST_CREDIT_S / 2)
    known = {stamp.tree for mirror in node.mirrors for stamp in api.steerer.engine.stamps_of(mirror)}
    if len(known.union(stamp.tree for stamp in report.stamps)) > MAX_STAMPS_PER_REPORT:
        api.complain("trees_refused", node=state.name, why=f"it names more than {MAX_STAMPS_PER_REPORT} trees")
        raise too_many("too many trees of this node", FORGET_AFTER_S)
    gone = state.hear(report, known, now)
    stamps = accept_stamps(report, node, now)
    # Steering takes them first: what they say is true whether or not it can be stored.
    api.steerer.take_stamps(stamps)
    forgotten = [(mirror, tree) for mirror in node.mirrors for tree in gone]
    for mirror, tree in forgotten:
        api.steerer.engine.drop_stamp(mirror, tree)
    failure = await _put(api, stamps, [f"{STAMP_PREFIX}{mirror}/{tree}" for mirror, tree in forgotten])
    if failure is not None:
        api.complain("stamps_not_stored", node=state.name, why=str(failure))
        raise not_stored(failure)
    state.stamps += len(stamps)
    return web.Response(body=encode(StampAck(len(stamps))), content_type="application/json")


async def _put(api: ReportInterface, stamps: Collection[SyncStamp], gone: Collection[str]) -> BusUnavailable | None:
    """Store `stamps` and delete the keys `gone`; the bus commits what comes at once together."""
    outcomes = await asyncio.gather(
        *(api.bus.put(f"{STAMP_PREFIX}{stamp.mirror}/{stamp.tree}", encode(stamp)) for stamp in stamps),
        *(api.bus.delete(key) for key in gone),
        return_exceptions=True,
    )
    unavailable = None
    for outcome in outcomes:
        if isinstance(outcome, BusUnavailable):
            unavailable = outcome
        elif isinstance(outcome, BaseException):
            raise outcome
    return unavailable
