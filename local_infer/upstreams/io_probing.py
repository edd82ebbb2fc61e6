"""Connections to the upstreams, and probes over them: who is idle is kept warm, who is down is asked if it is back.

A probe is `GET probe`. It is sent when an upstream had no request for `probe_every`, and every second while it is not well;
`warm` of them at once, each on a connection of its own, keep so many connections open. When such a connection is lost
(closed, or silent for longer than TCP keepalives allow), or a probe fails, an upstream is under suspicion: then as many
probes as make it down follow each other closely. So one that goes away is known to be down within seconds, without traffic.
One that is well each time just closes what is idle, and is less and less often asked for that (`suspicion.py`).
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from random import Random
from typing import Any

from core.config_infer import InferConfig, Routing, Upstream
from core.io_log import get_logger
from local_infer.model import Clock, ModelCard
from local_infer.upstreams.attempt import Failure, Verdict, judge, reason_of
from local_infer.upstreams.io_attempt import AiohttpTransport, Broken, Transport
from local_infer.upstreams.io_credentials import read_key, tls_context
from local_infer.upstreams.io_http2 import Http2Transport
from local_infer.upstreams.member import Member
from local_infer.upstreams.ranking import Ranking
from local_infer.upstreams.suspicion import Suspicion
from local_infer.upstreams.upstream_metrics import UpstreamMetrics

log = get_logger("upstreams")

_TICK_S = 0.5
"""How often the state is looked at."""

_DOWN_S = 1.0
"""How often an upstream that is not well is probed."""

_AGAIN_S = 0.5
"""Between the probes of one under suspicion: they are not waited for, as each may take all of `connect`."""

_START_S = 1.0
"""How long the start waits for the first probes; who has not answered by then is found out later."""

_MAX_LIST_BYTES = 4 << 20
_MAX_MODELS = 10_000
_ID_RE = re.compile(r"(?!local/|cache/)[!-~]{1,128}")


class Link:
    """The connections to one upstream, its key, and how many requests are under way on them."""

    __slots__ = ("_idle", "_made_for", "in_flight", "secret", "transport")

    def __init__(self, transport: Transport, secret: bytes, made_for: tuple[object, ...]) -> None:
        self.transport = transport
        self.secret = secret
        self.in_flight = 0
        self._made_for = made_for
        self._idle: asyncio.Event | None = None

    def is_for(self, made_for: tuple[object, ...]) -> bool:
        """Whether it was made for this configuration and key."""
        return self._made_for == made_for

    def enter(self, member: Member) -> None:
        """A request begins."""
        self.in_flight += 1
        member.in_flight += 1

    def leave(self, member: Member) -> None:
        """A request is over."""
        self.in_flight -= 1
        member.in_flight -= 1
        if self._idle is not None and not self.in_flight:
            self._idle.set()

    def retire(self, spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """It is replaced or gone: close it when the last request is over."""
        spawn(self._close_when_idle())

    async def _close_when_idle(self) -> None:
        self._idle = asyncio.Event()
        try:
            if self.in_flight:
                await self._idle.wait()
        finally:
            await self.transport.close()


def open_link(name: str, upstream: Upstream, routing: Routing, old: Link | None) -> Link:
    """A link as configured, with key and certificates read anew; `old` when nothing changed.

    NearpathError names the file at fault.
    """
    key = read_key(name, upstream)
    tls = tls_context(name, upstream)
    trusted = tuple(tls.get_ca_certs(binary_form=True)) if tls is not None and upstream.ca_file else ()
    made_for = (upstream, key, trusted, routing.give_up, routing.probe_every)
    if old is not None and old.is_for(made_for):
        return old
    transport: Transport
    if upstream.http2:
        transport = Http2Transport(name, upstream, routing, key, tls)
    else:
        transport = AiohttpTransport(upstream, routing, key, tls)
    return Link(transport, key.encode(), made_for)


class Probing:
    """One task for each upstream, which probes it when that is due."""

    def __init__(
        self, ranking: Ranking, links: Mapping[str, Link], metrics: UpstreamMetrics, clock: Clock, rng: Random
    ) -> None:
        self._ranking = ranking
        self._links = links
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._config: InferConfig | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._states: dict[str, str] = {}
        self._listed: dict[str, list[ModelCard]] = {}

    async def start(self, config: InferConfig) -> None:
        """Probe all upstreams of the configuration from now on; waits a moment for the first word of each."""
        await self.close()
        self._config = config
        for name in self._listed.keys() - config.upstreams.keys():
            del self._listed[name]
        firsts = [asyncio.Event() for _ in self._ranking.members]
        self._tasks = [
            asyncio.get_running_loop().create_task(self._watch(member, config.routing, first))
            for member, first in zip(self._ranking.members.values(), firsts, strict=True)
        ]
        waits = [asyncio.ensure_future(first.wait()) for first in firsts]
        if waits:
            _done, late = await asyncio.wait(waits, timeout=_START_S)
            for wait in late:
                wait.cancel()

    async def close(self) -> None:
        """Probe no more."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def cards(self) -> list[ModelCard]:
        """What can be asked for: configured names, and what the upstreams that serve every model have listed."""
        cards: dict[str, ModelCard] = {}
        for name, member in self._ranking.members.items():
            known: Iterable[ModelCard] = [ModelCard(model, "upstream") for model in member.config.models]
            for card in known if member.config.models else self._listed.get(name, ()):
                cards.setdefault(card.id, card)
        return list(cards.values())

    async def _watch(self, member: Member, routing: Routing, first: asyncio.Event) -> None:
        due_s = probed_s = 0.0
        suspicion = Suspicion(routing.probe_every)
        while True:
            now = self._clock()
            well = member.state(now) in ("closed", "ejected", "limited") and member.is_up is True
            if self._has_lost(member):
                suspicion.lost(now)
            suspect = well and suspicion.is_due(max(probed_s, member.asked_s), now)
            # Requests tell as much as probes do. Only the first probe is not put off: the start waits for it.
            idle_s = member.asked_s + routing.probe_every if well and first.is_set() else 0.0
            if suspect or now >= max(due_s, idle_s):
                suspicion.heard()
                try:
                    failed = 0 if suspect else int(not await self._probe(member, routing, well))
                    while well and member.is_up and (suspect or failed):
                        sure = await self._make_sure(member, routing, failed)
                        if suspect:
                            suspicion.answered(sure, self._clock())
                        if sure:
                            break
                except Exception as error:  # a fault of ours must not end the probing
                    log.error("probe_failed", upstream=member.name, error=type(error).__name__)
                probed_s = now = self._clock()
                every_s = routing.probe_every if member.is_up and member.circuit.open_until_s is None else _DOWN_S
                # Not in step with other gateways.
                due_s = now + min(every_s, routing.probe_every) * self._rng.uniform(0.9, 1.1)
            first.set()
            self._note_state(member, now)
            await asyncio.sleep(max(0.01, min(_TICK_S, due_s - now if due_s > now else _TICK_S)))

    def _has_lost(self, member: Member) -> bool:
        link = self._links.get(member.name)
        try:
            return link is not None and link.transport.has_lost()
        except Exception as error:  # it looks into private parts of libraries
            log.debug("kept_connections_not_seen", upstream=member.name, error=type(error).__name__)
            return False

    async def _make_sure(self, member: Member, routing: Routing, failed: int) -> bool:
        """Probe one that was well as often as makes it down, or until a probe is answered (True); `failed` have failed."""
        probes = [
            asyncio.create_task(self._probe_in(count * _AGAIN_S, member, routing))
            for count in range(min(failed, routing.steering.fall - 1), routing.steering.fall)
        ]
        try:
            for probe in asyncio.as_completed(probes):
                if await probe:
                    return True
        finally:
            for task in probes:
                task.cancel()
            await asyncio.gather(*probes, return_exceptions=True)
        return False

    async def _probe_in(self, wait_s: float, member: Member, routing: Routing) -> bool:
        await asyncio.sleep(wait_s)
        return await self._probe(member, routing, False)

    def _note_state(self, member: Member, now: float) -> None:
        state = member.state(now)
        self._metrics.set_state(member.name, state, member.in_flight)
        before = self._states.get(member.name)
        if before != state:
            self._states[member.name] = state
            if before is not None or state != "closed":
                log.info("upstream_state", upstream=member.name, state=state, before=before, reason=member.health.loss)

    async def _probe(self, member: Member, routing: Routing, well: bool) -> bool:
        """Whether it answered; on `warm` connections at once while it is well."""
        link = self._links.get(member.name)
        if link is None:
            return True
        count = max(1, member.config.warm) if well and not member.config.http2 else 1
        results = await asyncio.gather(*[self._probe_once(member, link, routing) for _ in range(count)])
        good = [result for result in results if not isinstance(result, Failure)]
        now = self._clock()
        if not good:
            failure = next(result for result in results if isinstance(result, Failure))
            self._ranking.probed(member, None, failure, now)
            self._metrics.probed(member.name, failure.reason)
            return False
        rtts = [rtt_s for rtt_s in good if rtt_s is not None]
        self._ranking.probed(member, min(rtts) if rtts else None, None, now)
        self._metrics.probed(member.name, "ok")
        return True

    async def _probe_once(self, member: Member, link: Link, routing: Routing) -> float | Failure | None:
        """RTT in seconds, None when a connection had to be made first, or the failure."""
        path = member.config.probe
        try:
            async with asyncio.timeout(routing.connect + routing.give_up):
                reply = await link.transport.send(
                    "GET", path, b"", "application/json", "probe", routing.connect, routing.give_up
                )
                rtt_s = time.monotonic() - reply.sent_s
                try:
                    body = await _read_some(reply.read)
                finally:
                    await reply.close()
        except TimeoutError:
            return Failure("timeout")
        except Broken as broken:
            return Failure(broken.reason)
        # Too many requests are still an answer; but what says that it is not available is not.
        if judge(reply.status, reply.headers) is Verdict.RETRY or reply.status == 503:
            return Failure(reason_of(reply.status), reply.status)
        if path == "/models" and reply.status == 200:
            self._take_list(member.name, body)
        return rtt_s if reply.reused else None

    def _take_list(self, name: str, body: bytes) -> None:
        cards = read_list(body)
        if cards is not None:
            self._listed[name] = cards


async def _read_some(read: Callable[[], Coroutine[Any, Any, bytes]]) -> bytes:
    pieces, length = [], 0
    while data := await read():
        pieces.append(data)
        length += len(data)
        if length > _MAX_LIST_BYTES:
            return b""
    return b"".join(pieces)


def read_list(body: bytes) -> list[ModelCard] | None:
    """The models of an upstream's `GET /models`; None when it is not of that form."""
    try:
        value = json.loads(body)
        data = value["data"]
        cards = [
            ModelCard(one["id"], str(one.get("owned_by", "upstream"))[:128])
            for one in data[:_MAX_MODELS]
            # As a request may name it; and nobody there can list one of ours.
            if isinstance(one["id"], str) and _ID_RE.fullmatch(one["id"])
        ]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return cards
