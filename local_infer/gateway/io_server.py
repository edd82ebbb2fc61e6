"""The gateway's front: HTTP in, keys and limits, `Ask` to the ladder, its `Answer` out; everything a client touches.

One request, one task: when its client goes away aiohttp cancels the task, and with it whatever makes the answer.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry

from core.config import split_listen
from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_http import bind_tcp, bound_address, server_tls
from core.io_log import get_logger
from local_infer.api.forms import write_model, write_models
from local_infer.api.headers import SERVER as SERVER_NAME
from local_infer.api.headers import answer_headers, error_headers
from local_infer.api.request import read_ask
from local_infer.api.sse import write_event
from local_infer.fault import INVALID, RATE_LIMIT, SERVER, UNAVAILABLE, ApiError, no_such_model
from local_infer.gateway.gateway_metrics import GatewayMetrics, access_line
from local_infer.gateway.io_access_log import AccessLog
from local_infer.gateway.io_connection import GatewayServer, StreamedResponse, read_body, too_large
from local_infer.gateway.keys import Caller, Keys
from local_infer.model import Answer, Ask, Clock, Endpoint, ModelCard, Stream
from local_infer.room import UNCOUNTED_BYTES, Room, weigh
from local_infer.telemetry.io_otlp import Telemetry
from local_infer.telemetry.note import CLIENT_GONE, Note

_ENDPOINTS = {f"/v1{endpoint.value}": endpoint for endpoint in Endpoint}
_MODELS = "/v1/models"
_HOT_KEYS = "/v1/hot-keys"
_MAX_HOT_KEYS = 10_000
_TAIL_BYTES = 2048
_LOGGED_BYTES = 1 << 20
_BUSY_RETRY_S = 1.0
_LAST_WORDS_S = 1.0
_log = get_logger("gateway")


def _hottest(_tenant: str, _count: int) -> bytes:
    return b""


def _ready() -> Sequence[str]:
    return ()


@dataclass(frozen=True, slots=True)
class _Parts:
    """What the front asks of the rest: the ladder, cards for /v1/models, hot keys for a neighbour, why it is not ready."""

    answer: Callable[[Ask], Awaitable[Answer]]
    cards: Callable[[], Sequence[ModelCard]]
    hottest: Callable[[str, int], bytes]
    not_ready: Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True)
class _Exchange:
    """One request that was let in; `limit` is the clock over it all."""

    request: web.BaseRequest
    endpoint: Endpoint
    config: InferConfig
    caller: Caller
    note: Note
    limit: asyncio.Timeout


class Gateway:
    """Listens, and serves until closed. `start` it on the event loop."""

    def __init__(
        self,
        config: InferConfig,
        answer: Callable[[Ask], Awaitable[Answer]],
        cards: Callable[[], Sequence[ModelCard]],
        registry: CollectorRegistry,
        clock: Clock,
        *,
        hottest: Callable[[str, int], bytes] = _hottest,
        not_ready: Callable[[], Sequence[str]] = _ready,
        telemetry: Telemetry | None = None,
        room: Room | None = None,
    ) -> None:
        self._config = config
        self._telemetry = telemetry
        self._place = ("", 0)
        self._parts = _Parts(answer, cards, hottest, not_ready)
        self._clock = clock
        self._keys = Keys(config)
        self._metrics = GatewayMetrics(registry)
        self._metrics.under_way.set_function(lambda: self._under_way)
        self._metrics.connections.set_function(lambda: self._server.count if self._server else 0)
        self._log = AccessLog()
        self._metrics.log_lost.set_function(lambda: self._log.lost)
        self._started_s = int(clock())
        self._id_prefix, self._id_count = f"req_{os.urandom(6).hex()}", 0
        self._under_way = 0
        self._room = room or Room(config.limits)
        self._limits: set[asyncio.Timeout] = set()
        self._idle = asyncio.Event()
        self._stopping = False
        self._server: GatewayServer | None = None
        self._listeners: dict[str, tuple[asyncio.AbstractServer, str]] = {}
        self._tls: ssl.SSLContext | None = None

    # -- life

    async def start(self) -> None:
        """Listen on every configured address; NearpathError when one cannot be had, and then on none."""
        self._server = GatewayServer(self._handle, self._config.limits, self._new_id)
        self._tls = server_tls(self._config.tls.cert, self._config.tls.key) if self._config.tls else None
        try:
            for listen in self._config.listen:
                await self._listen(listen)
        except NearpathError:
            await self.close(0.0)
            raise

    @property
    def addresses(self) -> list[str]:
        """`ADDRESS:PORT` listened on, with the real ports."""
        return [address for _listener, address in self._listeners.values()]

    @property
    def under_way(self) -> int:
        """Requests under way."""
        return self._under_way

    async def reconfigure(self, config: InferConfig) -> None:
        """Keys, limits, certificate and addresses of a new configuration; NearpathError leaves all as it was.

        Requests under way, and what keys have used up, stay.
        """
        if (config.tls is None) != (self._config.tls is None):
            raise NearpathError("tls cannot be turned on or off while the gateway runs", "restart it")
        if config.tls is not None:
            server_tls(config.tls.cert, config.tls.key)  # a trial
        new = [listen for listen in config.listen if listen not in self._listeners]
        try:
            for listen in new:
                await self._listen(listen)
        except NearpathError:
            for listen in new:
                if listen in self._listeners:
                    self._listeners.pop(listen)[0].close()
            raise
        if config.tls is not None and self._tls is not None:
            # The listeners hold the first context: new connections get what is loaded into it.
            self._tls.load_cert_chain(config.tls.cert, config.tls.key)
        for listen in [listen for listen in self._listeners if listen not in config.listen]:
            self._listeners.pop(listen)[0].close()
        keys = Keys(config)
        keys.adopt(self._keys)
        assert self._server is not None
        self._server.limits = config.limits
        self._room.limit(config.limits)
        self._keys, self._config = keys, config

    async def close(self, drain_s: float) -> None:
        """Stop listening, let requests under way end for `drain_s`, then end them with an error, and close."""
        self._stopping = True
        for listener, _address in self._listeners.values():
            listener.close()
        if self._server is not None:
            self._server.close_idle()
            if self._under_way:
                self._idle.clear()
                try:
                    async with asyncio.timeout(drain_s):
                        await self._idle.wait()
                except TimeoutError:
                    _log.warning("requests_cut", count=self._under_way, after_s=drain_s)
                    for limit in self._limits:
                        limit.reschedule(0.0)
                    # Their last words: an error event each.
                    await asyncio.sleep(0.05)
            await self._server.shutdown(0.5)
        self._listeners.clear()
        self._log.close()

    async def _listen(self, listen: str) -> None:
        sock = bind_tcp(listen)
        address = bound_address(sock)
        loop = asyncio.get_running_loop()
        assert self._server is not None
        listener = await loop.create_server(self._server, sock=sock, ssl=self._tls, backlog=1024)
        self._listeners[listen] = (listener, address)
        self._place = split_listen(address)

    # -- requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        endpoint = _ENDPOINTS.get(request.path)
        if endpoint is None:
            response = self._handle_small(request)
            response.headers["X-Request-Id"] = self._new_id()
        else:
            response = await self._serve(request, endpoint)
        if self._stopping:
            response.force_close()
        return response

    def _new_id(self) -> str:
        self._id_count += 1
        return f"{self._id_prefix}{self._id_count:x}"

    async def _serve(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        config, now = self._config, self._clock()
        note = Note(self._new_id(), endpoint.value, now)
        try:
            caller = self._admit(request, config, now, note)
        except ApiError as error:
            response = self._refuse(error, note)
            self._over(note)
            return response
        self._under_way += 1
        limit = asyncio.timeout(config.limits.total)
        self._limits.add(limit)
        try:
            async with limit:
                return await self._answer(_Exchange(request, endpoint, config, caller, note, limit))
        except ApiError as error:
            return self._refuse(error, note)
        except (asyncio.CancelledError, ConnectionError):
            note.status = CLIENT_GONE
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return self._refuse(self._too_long(), note)
            _log.exception("request_failed", id=note.id, error=type(error).__name__)
            return self._refuse(_internal(note), note)
        finally:
            self._limits.discard(limit)
            caller.leave()
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
            self._over(note)

    def _find_caller(self, request: web.BaseRequest) -> Caller:
        caller = self._keys.find(request.headers.get(hdrs.AUTHORIZATION))
        if self._server is not None:
            self._server.know(request.protocol)
        return caller

    def _admit(self, request: web.BaseRequest, config: InferConfig, now: float, note: Note) -> Caller:
        """Who asks, counted in. Before anything of the body is read: strangers get no memory."""
        if request.method != "POST":
            raise _not_allowed(request.method, "POST")
        caller = self._find_caller(request)
        note.client = caller.client.name
        if (request.content_length or 0) > config.limits.body:
            raise too_large(config.limits.body)
        share = self._keys.share(caller, now, self._under_way)
        if self._under_way >= config.limits.requests:
            raise ApiError(
                429, RATE_LIMIT, "the gateway has as many requests under way as it takes", "try again soon",
                code="overloaded", retry_after_s=_BUSY_RETRY_S,
            )  # fmt: skip
        caller.enter(now, share)
        return caller

    async def _answer(self, exchange: _Exchange) -> web.StreamResponse:
        request, config = exchange.request, exchange.config
        compressed = hdrs.CONTENT_ENCODING in request.headers
        told = None if compressed else request.content_length
        with self._room.place(config.limits.body if told is None else told) as place:
            body = await read_body(request, config.limits)
            place.resize(weigh(body))
            return await self._answer_to(exchange, body)

    async def _answer_to(self, exchange: _Exchange, body: bytes) -> web.StreamResponse:
        request, config, caller, note = exchange.request, exchange.config, exchange.caller, exchange.note
        note.in_bytes = len(body)
        ask = read_ask(exchange.endpoint, request.headers, body, caller.client, note.id, note.started_s)
        note.model, note.stream = ask.model, ask.stream
        if self._telemetry is not None:
            note.trace = self._telemetry.begin(request.headers)
            ask = replace(ask, trace=note.trace)
        caller.check_model(ask.model)
        if config.access_log.content:
            note.question = body[:_LOGGED_BYTES]
        answer = await self._parts.answer(ask)
        origin = answer.origin
        note.status, note.step, note.source, note.reason = answer.status, origin.step.label, origin.name, origin.reason
        note.cache = origin.cache_status
        headers = answer_headers(answer, config)
        headers["X-Request-Id"] = note.id
        if caller.rate:
            headers.update(caller.limit_headers(self._clock()))
        if isinstance(answer.body, bytes):
            return await self._send_whole(
                exchange, web.Response(body=answer.body, status=answer.status, headers=headers)
            )
        return await self._send_stream(exchange, StreamedResponse(status=answer.status, headers=headers), answer.body)

    async def _send_whole(self, exchange: _Exchange, response: web.Response) -> web.StreamResponse:
        note, body = exchange.note, response.body
        assert isinstance(body, bytes)
        note.first_byte_s = self._clock()
        note.out_bytes = len(body)
        note.tail = body
        if exchange.config.access_log.content:
            note.answer = body[:_LOGGED_BYTES]
        if len(body) > UNCOUNTED_BYTES:
            # Written within the request's time limit: the client may read it slowly, or not at all.
            with self._room.sending(body):
                await self._write_long(exchange, response)
        return response

    async def _write_long(self, exchange: _Exchange, response: web.Response) -> None:
        try:
            await response.prepare(exchange.request)
            await response.write_eof()
        except BaseException:
            # Begun, so no other answer may follow on this connection.
            if exchange.request.transport is not None:
                exchange.request.transport.abort()
            raise

    async def _send_stream(
        self, exchange: _Exchange, response: web.StreamResponse, stream: Stream
    ) -> web.StreamResponse:
        note = exchange.note
        logged = bytearray() if exchange.config.access_log.content else None
        before, last, sent = b"", b"", 0
        fault: ApiError | None = None
        try:
            await response.prepare(exchange.request)
            async for events in stream:
                await response.write(events)
                if not sent:
                    note.first_byte_s = self._clock()
                sent += len(events)
                # Of a long run only its end: its room is given back when the next comes.
                before, last = last, events[-_TAIL_BYTES:]
                if logged is not None and len(logged) < _LOGGED_BYTES:
                    logged += events
        except asyncio.CancelledError:
            if not exchange.limit.expired():
                raise  # the client has gone
            fault = self._too_long()
        except ConnectionError:
            raise
        except ApiError as error:
            fault = error
        except Exception as error:
            _log.exception("stream_failed", id=note.id, error=type(error).__name__)
            fault = _internal(note)
        finally:
            await stream.aclose()
            note.out_bytes = sent
            note.tail = (before + last)[-_TAIL_BYTES:]
            if logged is not None:
                note.answer = bytes(logged)
        if fault is None:
            await response.write_eof()
        else:
            note.reason = note.reason or fault.code or "cut"
            await _end_with(exchange.request, response, fault)
        return response

    # -- the rest: models, hot keys, health

    def _handle_small(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        try:
            if path in ("/healthz", "/readyz"):
                return self._health(path)
            if path != _MODELS and path != _HOT_KEYS and not path.startswith(_MODELS + "/"):
                raise ApiError(404, INVALID, f"invalid URL ({request.method} {path[:200]})", code="unknown_url")
            if request.method not in ("GET", "HEAD"):
                raise _not_allowed(request.method, "GET")
            caller = self._find_caller(request)
            caller.enter_list(self._clock())
            if path == _HOT_KEYS:
                return self._hot_keys(request, caller)
            return self._models(path, caller)
        except ApiError as error:
            self._metrics.refused.labels(error.code or str(error.status)).inc()
            return _error_response(error)

    def _health(self, path: str) -> web.StreamResponse:
        reasons = [*(["stopping"] if self._stopping else []), *self._parts.not_ready()] if path == "/readyz" else []
        text = "\n".join(reasons or ["ok"]) + "\n"
        return web.Response(status=503 if reasons else 200, body=text.encode(), headers=_headers_of("text/plain"))

    def _models(self, path: str, caller: Caller) -> web.StreamResponse:
        cards = [card for card in self._parts.cards() if caller.may_use(card.id)]
        if path == _MODELS:
            body = write_models(cards, self._started_s)
        else:
            wanted = path.removeprefix(_MODELS + "/")
            card = next((card for card in cards if card.id == wanted), None)
            if card is None:
                raise no_such_model(wanted[:128])
            body = write_model(card, self._started_s)
        return web.Response(body=body, headers=_headers_of("application/json"))

    def _hot_keys(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        text = request.query.get("count", "1000")
        if not (text.isascii() and text.isdecimal() and len(text) <= 6):
            raise ApiError(400, INVALID, "'count' must be a whole number", param="count")
        body = self._parts.hottest(caller.client.tenant, min(int(text), _MAX_HOT_KEYS))
        return web.Response(body=body, headers=_headers_of("application/x-ndjson"))

    # -- ends

    def _too_long(self) -> ApiError:
        if self._stopping:
            return ApiError(503, UNAVAILABLE, "the gateway is stopping", "try again", code="stopping", retry_after_s=1)
        what = f"the answer took longer than {self._config.limits.total:g} s"
        return ApiError(503, UNAVAILABLE, what, code="timeout", retry_after_s=_BUSY_RETRY_S)

    def _refuse(self, error: ApiError, note: Note) -> web.StreamResponse:
        note.status = error.status
        note.reason = error.why or error.code or note.reason
        self._metrics.refused.labels(error.code or str(error.status)).inc()
        return _error_response(error, note.id)

    def _over(self, note: Note) -> None:
        now = self._clock()
        tokens = self._metrics.observe(note, now)
        if self._config.access_log.enabled:
            self._log.write(access_line(note, now, tokens))
        if self._telemetry is not None:
            self._telemetry.over(note, now, tokens, self._place)


def _headers_of(content_type: str) -> dict[str, str]:
    return {"Content-Type": content_type, "Cache-Control": "no-store", "Server": SERVER_NAME}


async def _end_with(request: web.BaseRequest, response: web.StreamResponse, error: ApiError) -> None:
    """An error event as the last of a stream, without `[DONE]`; a client that does not read it is left."""
    try:
        async with asyncio.timeout(_LAST_WORDS_S):
            await response.write(write_event(error.body()))
            await response.write_eof()
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError from None


def _error_response(error: ApiError, id: str = "") -> web.StreamResponse:
    headers = error_headers(error)
    if id:
        headers["X-Request-Id"] = id
    response = web.Response(status=error.status, body=error.body(), headers=headers)
    if error.status in (408, 413):
        response.force_close()  # the rest of the body is not worth reading
    return response


def _internal(note: Note) -> ApiError:
    return ApiError(500, SERVER, f"the gateway failed at this request ({note.id})", code="internal")


def _not_allowed(method: str, allowed: str) -> ApiError:
    return ApiError(
        405, INVALID, f"not allowed method {method[:20]}", f"use {allowed}", code="method_not_allowed",
        headers={"Allow": allowed},
    )  # fmt: skip
