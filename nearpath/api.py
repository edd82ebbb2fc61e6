"""The report interface: agents fetch their targets and deliver their samples here, each with its own token."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from aiohttp import web

from core.bus import Bus, Record
from core.config import Config
from core.errors import BusUnavailable, MessageError
from core.io_clock import AnchoredClock
from core.io_log import get_logger
from core.messages import ReportAck, SampleReport, Target, TargetList, decode, encode
from nearpath.ingest import AgentState, accept_report, authenticate
from nearpath.steerer import SAMPLES, Steerer

AGENT_HEADER = "X-Nearpath-Agent"
_RETRY_S = 2
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
    """What the handlers need; the appliance replaces `config`, `targets` and `agents` on a reload."""

    config: Config
    targets: TargetList
    bus: Bus
    steerer: Steerer
    clock: AnchoredClock
    agents: dict[str, AgentState]
    locks: dict[str, asyncio.Lock]
    refused: int = 0

    def reload(self, config: Config) -> None:
        """Serve another configuration; agents that it no longer names are refused from now on."""
        self.config = config
        self.targets = make_targets(config)
        self.agents = {name: self.agents.get(name, AgentState(name)) for name in config.agents}


def make_report_app(api: ReportInterface) -> web.Application:
    """The aiohttp application for `report.listen`."""

    def agent_of(request: web.Request) -> AgentState:
        name = request.headers.get(AGENT_HEADER, "")
        agent = authenticate(name, request.headers.get("Authorization", ""), api.config.agents)
        if agent is None:
            api.refused += 1
            _log.warning("agent_refused", agent=name[:64], address=request.remote, why="unknown name or wrong token")
            raise _unauthorized()
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
        try:
            report = decode(SampleReport, await request.read())
        except MessageError as error:
            _log.warning("report_refused", agent=state.name, why=str(error))
            raise web.HTTPBadRequest(text=f"{error}\n") from None
        # One report of an agent at a time: a repeated one must find what the first has stored.
        async with api.locks.setdefault(state.name, asyncio.Lock()):
            return await _store(api, state, report)

    app = web.Application(client_max_size=api.config.report.max_body)
    app.add_routes([web.get("/v1/targets", targets), web.post("/v1/samples", samples)])
    return app


def _unauthorized() -> web.HTTPUnauthorized:
    return web.HTTPUnauthorized(
        text="unknown agent or wrong token: see `agents` in the appliance's configuration\n",
        headers={"WWW-Authenticate": "Bearer"},
    )


async def _store(api: ReportInterface, state: AgentState, report: SampleReport) -> web.Response:
    agent = api.config.agents.get(state.name)
    if agent is None:
        # A reload removed it while its report was on the way or waited for its turn.
        raise _unauthorized()
    accepted = accept_report(report, agent, state, api.clock.now())
    source = f"{state.name}/{report.incarnation}"
    try:
        done = await api.bus.publish(SAMPLES, source, [Record(s.sequence, encode(s)) for s in accepted])
    except BusUnavailable as error:
        api.steerer.take_unstored(accepted)
        _log.error("samples_not_stored", agent=state.name, why=str(error))
        raise web.HTTPServiceUnavailable(text=f"{error}\n", headers={"Retry-After": str(_RETRY_S)}) from None
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
