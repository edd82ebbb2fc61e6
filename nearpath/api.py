"""The report interface: agents fetch their targets and deliver samples, nodes their stamps, each with its own token."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field

from aiohttp import web

from core.bus import Bus, Record
from core.config import Config
from core.errors import BusUnavailable, MessageError
from core.io_clock import AnchoredClock
from core.io_log import get_logger
from core.messages import MAX_SAMPLES_PER_REPORT, ReportAck, SampleReport, Target, TargetList, encode
from core.tokens import authenticate
from nearpath.admission import RETRY_S, not_stored, read_report, too_many, unauthorized, under_way
from nearpath.ingest import NEW_INCARNATION_EVERY_S, AgentState, accept_report, sample_cost_s
from nearpath.silence import heed_silence
from nearpath.stamps import NodeState, add_stamp_route
from nearpath.steerer import SAMPLES, Steerer
from probes.loglimit import LogLimit

_LEAST_COST = 20
"""Samples that a report costs at least: a hundred small ones a second."""

AGENT_HEADER = "X-Nearpath-Agent"
_log = get_logger("api")


def make_targets(config: Config) -> TargetList:
    """Everything there is to probe: each address of each mirror with each check that a service of it asks for."""
    wanted: dict[tuple[str, str, str], Target] = {}
    for owner, service in config.services.items():
        for mirror in service.mirrors:
            for check in dict.fromkeys([*service.checks, *([service.rtt_check] if service.rtt_check else [])]):
                how = config.checks[check]
                host = getattr(how, "host", "") or owner.rstrip(".")
                for family in (4, 6):
                    # One address stands for its family: the estimate is of the mirror, and all its addresses are
                    # answered or left out together.
                    address = next((a for a in config.mirrors[mirror].addresses if (":" in a) == (family == 6)), None)
                    if address is not None:
                        key = (mirror, check, address)
                        wanted.setdefault(key, Target(mirror, check, 4 if family == 4 else 6, address, host, how))
    targets = [wanted[key] for key in sorted(wanted)]
    etag = hashlib.sha256(encode(TargetList("", targets))).hexdigest()[:32]
    return TargetList(etag, targets)


@dataclass(slots=True)
class ReportInterface:
    """What the handlers need; a reload replaces `config` and what is made of it."""

    config: Config
    targets: TargetList
    bus: Bus
    steerer: Steerer
    clock: AnchoredClock
    agents: dict[str, AgentState]
    locks: dict[str, asyncio.Lock]
    nodes: dict[str, NodeState] = field(default_factory=dict)
    refused: int = 0
    nodes_refused: int = 0
    log_limit: LogLimit = field(default_factory=LogLimit)
    sample_cost_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.sample_cost_s = sample_cost_s(self.targets)

    def complain(self, event: str, *, agent: str = "", node: str = "", **more: object) -> None:
        """Log what an agent or a node did wrong, once a minute for each event and name: it must not fill the log."""
        who = {"agent": agent[:64]} if agent else {"node": node[:64]}
        held_back = self.log_limit.pass_through(f"{event} {who}", self.clock.now())
        if held_back is not None:
            _log.warning(event, **who, same_before=held_back, **more)

    def reload(self, config: Config) -> None:
        """Serve another configuration; agents and nodes that it no longer names are refused from now on."""
        self.config = config
        self.targets = make_targets(config)
        self.sample_cost_s = sample_cost_s(self.targets)
        self.agents = {name: self.agents.get(name, AgentState(name)) for name in config.agents}
        self.nodes = {name: self.nodes.get(name, NodeState(name)) for name in config.nodes}


def make_report_app(api: ReportInterface) -> web.Application:
    """The aiohttp application for `report.listen`."""

    def agent_of(request: web.Request) -> AgentState:
        name = request.headers.get(AGENT_HEADER, "")
        agent = authenticate(name, request.headers.get("Authorization", ""), api.config.agents)
        if agent is None:
            api.refused += 1
            # One line for all unknown names: they are free to make up.
            known = name if name in api.config.agents else "(unknown)"
            api.complain("agent_refused", agent=known, address=request.remote, why="unknown name or wrong token")
            raise unauthorized("agent")
        state = api.agents.setdefault(name, AgentState(name))
        state.address = request.remote or ""
        return state

    async def targets(request: web.Request) -> web.Response:
        agent_of(request)
        etag = f'"{api.targets.etag}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=encode(api.targets), content_type="application/json", headers={"ETag": etag})

    async def samples(request: web.Request) -> web.Response:
        state = agent_of(request)
        with under_way(state):
            if state.allowance.is_spent(api.clock.now()):
                api.complain("samples_too_often", agent=state.name, why="it sends many times what it has to probe")
                raise too_many("too many samples of this agent", RETRY_S)
            try:
                report = await read_report(request, SampleReport)
            except MessageError as error:
                # As dear as the largest: what it is was found out by reading it whole.
                state.allowance.charge(MAX_SAMPLES_PER_REPORT * api.sample_cost_s, api.clock.now())
                api.complain("report_refused", agent=state.name, why=str(error))
                raise web.HTTPBadRequest(text=f"{error}\n") from None
            # One report of an agent at a time: a repeated one must find what the first has stored.
            async with api.locks.setdefault(state.name, asyncio.Lock()):
                # Repeated ones and empty ones too: they are read and looked up.
                state.allowance.charge(max(_LEAST_COST, len(report.samples)) * api.sample_cost_s, api.clock.now())
                return await _store(api, state, report)

    app = web.Application(client_max_size=api.config.report.max_body)
    heed_silence(app)
    app.add_routes([web.get("/v1/targets", targets), web.post("/v1/samples", samples)])
    add_stamp_route(app, api)
    return app


async def _store(api: ReportInterface, state: AgentState, report: SampleReport) -> web.Response:
    agent = api.config.agents.get(state.name)
    if agent is None:
        # A reload removed it while its report was on the way or waited for its turn.
        raise unauthorized("agent")
    if not state.admits(report.incarnation, api.clock.now()):
        api.complain(
            "incarnations_refused", agent=state.name, why="it draws a new one for each report: does it lose its disk?"
        )
        raise too_many("too many incarnations of this agent", NEW_INCARNATION_EVERY_S)
    accepted = accept_report(report, agent, state, api.clock.now())
    source = f"{state.name}/{report.incarnation}"
    try:
        done = await api.bus.publish(SAMPLES, source, [Record(s.sequence, encode(s)) for s in accepted])
    except BusUnavailable as error:
        api.steerer.take_unstored(accepted)
        _log.error("samples_not_stored", agent=state.name, why=str(error))
        raise not_stored(error) from None
    new = accepted[len(accepted) - done.accepted :] if done.accepted else []
    if new:
        # A hole in the numbers is what the agent's full spool had to drop.
        if state.last_sequence and new[0].sequence > state.last_sequence + 1:
            state.missing += new[0].sequence - state.last_sequence - 1
        state.missing += new[-1].sequence - new[0].sequence + 1 - len(new)
    state.last_sequence = done.last_sequence
    state.samples += done.accepted
    state.quarantined += sum(s.quarantined for s in new)
    return web.Response(body=encode(ReportAck(done.last_sequence)), content_type="application/json")
