"""The parent's one port: root, journal, listings, small files, and rsync on an upgraded connection. See `wire.py`."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from core.errors import MessageError
from core.exclude import Exclude
from syncd.publish.steps import PublishError
from syncd.transfer import wire
from syncd.transfer.io_accept import Door, DoorLimits, greet, is_stranger
from syncd.transfer.io_small import read_files
from syncd.transfer.io_splice import CHUNK_BYTES, rsync_process, splice
from syncd.transfer.rsync import RsyncError, daemon_config

_T = TypeVar("_T")

_STOP_S = 2.0
_KEEP_S = 120.0
"""A connection without a request is kept so long: longer than children keep it (io_parent), so none is cut as it asks."""
_LARGE_AT_ONCE = 4
"""Listings and names of links take up to 32 MB each: a child that asks for more of them waits for its own."""


class Source(Protocol):
    """Where the answers come from: the daemon that owns the trees. None: this node does not have that (yet)."""

    async def root(self, tree: str) -> bytes | None:
        """The signed root."""

    async def journal(
        self, tree: str, after: wire.Cursor, limit: int, proof: wire.Proof | None = None
    ) -> wire.Batch | wire.Behind | None:
        """What came after `after`, from at most `limit` written changes; an empty batch when there is nothing new.

        With `proof` nothing that came after it, and its root when the batch ends just there.
        """

    async def proved(self, tree: str, sequence: int) -> wire.Proof | None:
        """Return the newest root once one is known to stand at `sequence` or beyond; one is made as soon as can be.

        None when none can be, just now.
        """

    async def changed(self, tree: str, sequence: int) -> None:
        """Return once the journal is beyond `sequence`: at once when it is already."""

    async def moved(self, tree: str, node: str, cursor: wire.Cursor) -> None:
        """`node` has published everything up to `cursor`, which `journal` could read from."""

    async def listings(self, tree: str, paths: Sequence[bytes]) -> Sequence[bytes | None] | None:
        """Listings of as many of `paths` as is handy, in order, at least one; None for what is no directory."""

    async def links(self, tree: str) -> Sequence[tuple[bytes, ...]] | None:
        """The names of each file that has several."""

    async def path(self, tree: str) -> str | None:
        """The absolute path of what is published. A symlink is followed once per stream, so a stream sees one version."""

    def exclude(self, tree: str) -> Exclude:
        """What lies there and is served to nobody."""

    def why_not(self, tree: str) -> str:
        """Why nothing of a tree that is here is served; empty when it is."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What children may take of this node."""

    streams_per_child: int = 8
    """rsyncs at a time: `pull_all` uses 2 to 4, and the old ones may linger for a moment"""
    streams: int = 256
    requests_per_child: int = 32
    idle_s: float = 300.0
    """a stream on which nothing moved for so long is ended; as `timeout` in daemon_config"""
    wait_s: float = wire.MAX_WAIT_S
    body_s: float = 30.0
    """for a request to come whole"""
    stall_s: float = 60.0
    """a child that takes so long for 256 KB of an answer is let go"""
    door: DoorLimits = field(default_factory=DoorLimits)

    @property
    def connections_per_child(self) -> int:
        """Four times what it can use: connections that a power cut left behind go after minutes."""
        return 4 * (self.requests_per_child + self.streams_per_child)


@dataclass(frozen=True, slots=True)
class Serving:
    """How rsync serves. `owner` (uid, gid) and `chroot` count when this runs as root: see `daemon_config`."""

    binary: str = "rsync"
    owner: tuple[int, int] | None = None
    chroot: bool = False
    config_dir: str = ""
    """where the configuration of each stream lies while it runs, see `io_splice.clear_configs`; default: the system's"""


class Server:
    """See the module. `sent_bytes`: what each child was sent of files; `streams`: how many rsyncs run for it now."""

    def __init__(
        self,
        source: Source,
        children: Mapping[str, wire.Child],
        limits: Limits = Limits(),
        serving: Serving = Serving(),
    ) -> None:
        self.children = children
        """Replaced as a whole, see `allow`."""
        self.sent_bytes: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._large: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_LARGE_AT_ONCE))
        self._open: set[asyncio.Task[object]] = set()
        self._asking: dict[asyncio.Task[object], tuple[str, str]] = {}
        """(node, tree) of what is being answered, streams too"""
        self._ending: set[asyncio.Task[object]] = set()
        self._source = source
        self._limits = limits
        self._serving = serving
        self._runner: web.AppRunner | None = None
        self._accepting: list[asyncio.Task[None]] = []
        self.door: Door | None = None
        """Of the port while it is open: how many connections there are, and were refused."""

    def app(self) -> web.Application:
        """The application with the paths that `wire` lists."""
        app = web.Application(client_max_size=wire.MAX_ASK_BYTES, middlewares=[_strangers_ask_once])
        base = "/v1/trees/{tree}/"
        app.add_routes(
            [
                web.get(base + "root", self._root),
                web.get(base + "journal", self._journal),
                web.post(base + "listings", self._listings),
                web.get(base + "links", self._links),
                web.post(base + "files", self._files),
                web.get(base + "rsync", self._rsync),
            ]
        )
        return app

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None, *more: socket.socket) -> None:
        """Serve on listening sockets (`core.io_http.bind_tcp`). Without `tls` only on loopback, or behind a proxy."""
        # A child that goes away cancels its handler: long polls and rsyncs end with their connection.
        self._runner = web.AppRunner(
            self.app(),
            access_log=None,
            logger=_port_log(),
            auto_decompress=False,  # no child compresses; a little of what is compressed would become much
            handler_cancellation=True,
            shutdown_timeout=_STOP_S,
            keepalive_timeout=_KEEP_S,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self.door = Door(self._runner.server, tls, self._limits.door)
        self._accepting = [asyncio.create_task(self.door.serve(one)) for one in (sock, *more)]

    def allow(self, children: Mapping[str, wire.Child]) -> None:
        """Serve these from now on; what is under way for one that lost its tree, or has another token, ends at once."""
        before, self.children = self.children, children
        for task, (node, tree) in tuple(self._asking.items()):
            child, old = children.get(node), before.get(node)
            if child is None or old is None or tree not in child.trees or child.token_sha256 != old.token_sha256:
                task.cancel()

    async def stop(self) -> None:
        """End everything; no rsync is left when this returns."""
        for accepting in self._accepting:
            accepting.cancel()
        if self._accepting:
            await asyncio.wait(self._accepting)
            self._accepting = []
        for task in tuple(self._open):
            task.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        while left := self._open | self._ending:  # aiohttp cancels handlers, but does not wait for them
            await asyncio.wait(left)

    # --- requests

    async def _root(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (_, tree):
            blob = _there(await self._source.root(tree), tree)
            tag = wire.etag(blob)
            if request.headers.get("If-None-Match") == tag:
                return web.Response(status=304, headers={"ETag": tag})
            return web.Response(body=blob, headers={"ETag": tag}, content_type="application/octet-stream")

    async def _journal(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (node, tree):
            after, wait_s, published, prove = wire.parse_journal_query(request.query)
            answer = await self._read(tree, after)
            if isinstance(answer, wire.Batch):
                await self._source.moved(tree, node, published)
                if prove or (answer.cursor == after and wait_s):
                    proof = None
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(wait_s, self._limits.wait_s)):
                            if prove:
                                proof = await self._source.proved(tree, after.sequence)
                            else:
                                await self._source.changed(tree, after.sequence)
                    answer = await self._read(tree, after, proof)
            if isinstance(answer, wire.Behind):
                return web.Response(status=410, body=wire.encode_behind(answer), content_type="application/json")
            return web.Response(body=wire.encode_batch(answer), content_type="application/octet-stream")

    async def _read(self, tree: str, after: wire.Cursor, proof: wire.Proof | None = None) -> wire.Batch | wire.Behind:
        """The journal after a cursor. Less at a time when it would be too large: a coalesced batch cannot be cut."""
        limit = wire.MAX_BATCH
        while True:
            answer = await self._source.journal(tree, after, limit, proof)
            if answer is None:
                raise _nothing_yet(tree)
            if limit == 1 or isinstance(answer, wire.Behind) or wire.size_of(answer) <= wire.MAX_BATCH_BYTES:
                return answer
            limit = max(1, limit // 4)

    async def _listings(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (node, tree):
            paths = wire.decode_ask(await _body(request, self._limits.body_s))
            async with self._large[node]:
                frames = wire.encode_listings(_there(await self._source.listings(tree, paths), tree)[: len(paths)])
                return await _send(request, frames, self._limits.stall_s)

    async def _links(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (node, tree):
            async with self._large[node]:
                groups = _there(await self._source.links(tree), tree)
                return await _send(request, [wire.encode_links(groups)], self._limits.stall_s)

    async def _files(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (node, tree):
            serving = self._serving
            if serving.owner is not None and serving.owner[0] != os.geteuid():
                raise _refuse(501, "this parent reads files as another user: take rsync")
            paths = wire.decode_ask(await _body(request, self._limits.body_s), wire.MAX_FILES_ASKED)
            root = os.path.realpath(_there(await self._source.path(tree), tree))  # noqa: ASYNC240 (a few lstats)
            try:
                body = await asyncio.to_thread(read_files, os.fsencode(root), paths, self._source.exclude(tree))
            except PublishError as error:
                raise _refuse(503, f"the parent cannot read this tree: {error}", {"Retry-After": "5"}) from None
            self.sent_bytes[node] += len(body)
            return web.Response(body=body, content_type="application/octet-stream")

    async def _rsync(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (node, tree):
            if request.headers.get("Upgrade", "").lower() != wire.UPGRADE:
                raise _refuse(426, f"this path speaks {wire.UPGRADE} only", {"Upgrade": wire.UPGRADE})
            root = os.path.realpath(_there(await self._source.path(tree), tree))  # noqa: ASYNC240 (a few lstats)
            with self._stream(node):
                serving = self._serving
                try:
                    left_out = self._source.exclude(tree).patterns
                    config = daemon_config(
                        wire.MODULE, root, owner=serving.owner, chroot=serving.chroot, exclude=left_out
                    )
                    async with rsync_process(serving.binary, config, self._ending, serving.config_dir) as process:
                        return await self._splice(request, process, node)
                except RsyncError as error:
                    raise _refuse(503, f"the parent cannot serve this tree by rsync: {error}") from None

    async def _splice(self, request: web.Request, process: asyncio.subprocess.Process, node: str) -> web.StreamResponse:
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": wire.UPGRADE})
        response.force_close()
        await response.prepare(request)
        await response.write_eof()

        def count(size: int) -> None:
            self.sent_bytes[node] += size

        await splice(request, process, self._limits.idle_s, count)
        return response

    # --- who asks, and how much

    @contextmanager
    def _asked(self, request: web.Request) -> Iterator[tuple[str, str]]:
        """(node, tree) of a request that is allowed; errors of what was asked become answers."""
        try:
            node = wire.check_node(request.headers.get(wire.NODE_HEADER, ""))
            tree = wire.check_tree(request.match_info["tree"])
            refused = wire.refusal(self.children, node, request.headers.get("Authorization", ""), tree)
            if refused is not None:
                refusal = _refuse(*refused)
                if refused[0] == 401:
                    refusal.force_close()  # the next guess costs a handshake
                raise refusal
            if why := self._source.why_not(tree):
                raise _refuse(403, why)
            if not greet(request.transport, node, self._limits.connections_per_child):
                raise _refuse(429, f"{node} has too many connections open", {"Retry-After": "60"})
            if self._requests[node] >= self._limits.requests_per_child:
                raise _refuse(429, f"{node} has {self._requests[node]} requests open", {"Retry-After": "1"})
            task = asyncio.current_task()
            assert task is not None
            self._asking[task] = node, tree
            try:
                with _counted(self._requests, node):
                    yield node, tree
            finally:
                del self._asking[task]
        except MessageError as error:
            raise _refuse(400, str(error)) from None

    @contextmanager
    def _stream(self, node: str) -> Iterator[None]:
        if self.streams[node] >= self._limits.streams_per_child:
            raise _refuse(429, f"{node} has {self.streams[node]} rsync streams open", {"Retry-After": "1"})
        if self.streams.total() >= self._limits.streams:
            raise _refuse(503, "this parent serves as many rsync streams as it may", {"Retry-After": "5"})
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with _counted(self.streams, node):
                yield
        finally:
            self._open.discard(task)


_REFUSALS: dict[int, type[web.HTTPException]] = {
    400: web.HTTPBadRequest,
    401: web.HTTPUnauthorized,
    403: web.HTTPForbidden,
    408: web.HTTPRequestTimeout,
    426: web.HTTPUpgradeRequired,
    429: web.HTTPTooManyRequests,
    501: web.HTTPNotImplemented,
    503: web.HTTPServiceUnavailable,
}


def _refuse(status: int, why: str, headers: Mapping[str, str] | None = None) -> web.HTTPException:
    return _REFUSALS[status](text=why[: wire.MAX_TEXT] + "\n", headers=headers)


@web.middleware
async def _strangers_ask_once(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Whoever was refused, or asked for what is not here, and has shown no token yet, pays for a new connection."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if is_stranger(request.transport):
            error.force_close()
        raise


class _OwnFaults(logging.Filter):
    """Leaves out what others cause: bytes of strangers, which may be tokens, and who hangs up amid an answer."""

    def filter(self, record: logging.LogRecord) -> bool:
        fault = record.exc_info[1] if record.exc_info else None
        return not isinstance(fault, HttpProcessingError | RequestPayloadError | ConnectionError)


def _port_log() -> logging.Logger:
    """Where aiohttp tells of requests that failed by a fault of ours."""
    log = logging.getLogger("syncd.port")
    if not log.filters:
        log.addFilter(_OwnFaults())
    return log


async def _send(request: web.Request, parts: Sequence[bytes], stall_s: float) -> web.StreamResponse:
    """Answer with `parts` as fast as they are taken; who takes none for `stall_s`, or hangs up, is let go."""
    response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
    response.content_length = sum(map(len, parts))
    await response.prepare(request)
    try:
        for part in parts:
            for at in range(0, len(part), CHUNK_BYTES):
                async with asyncio.timeout(stall_s):
                    await response.write(memoryview(part)[at : at + CHUNK_BYTES])
        async with asyncio.timeout(stall_s):
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        if request.transport is not None:
            request.transport.abort()
    return response


async def _body(request: web.Request, limit_s: float) -> bytes:
    try:
        async with asyncio.timeout(limit_s):
            return await request.read()
    except TimeoutError:
        raise _refuse(408, f"the request did not come within {limit_s:g} s") from None
    except RequestPayloadError:
        raise _refuse(400, "the request's body is not of its form") from None


def _there(answer: _T | None, tree: str) -> _T:
    if answer is None:
        raise _nothing_yet(tree)
    return answer


def _nothing_yet(tree: str) -> web.HTTPException:
    return _refuse(503, f"tree {tree!r} has nothing to serve yet", {"Retry-After": "5"})


@contextmanager
def _counted(counter: Counter[str], node: str) -> Iterator[None]:
    counter[node] += 1
    try:
        yield
    finally:
        counter[node] -= 1
        if not counter[node]:
            del counter[node]
