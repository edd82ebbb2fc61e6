"""The parent's one port: root, journal, listings, small files, and rsync on an upgraded connection. See `wire.py`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from aiohttp import web

from core.errors import MessageError, NearpathError
from syncd.publish.steps import PublishError
from syncd.transfer import wire
from syncd.transfer.io_accept import Door, DoorLimits, greet
from syncd.transfer.io_rsync import environment
from syncd.transfer.io_small import read_files
from syncd.transfer.rsync import RsyncError, daemon_command, daemon_config

_T = TypeVar("_T")

_CHUNK_BYTES = 256 * 1024
_STOP_S = 2.0
_KEEP_S = 120.0
"""A connection without a request is kept so long: longer than children keep it (io_parent), so none is cut as it asks."""
_LAST_S = 15.0
"""For the last bytes of a stream to reach a child that reads slowly."""


class Source(Protocol):
    """Where the answers come from: the daemon that owns the trees. None: this node does not have that (yet)."""

    async def root(self, tree: str) -> bytes | None:
        """The signed root."""

    async def journal(self, tree: str, after: wire.Cursor, limit: int) -> wire.Batch | wire.Behind | None:
        """What came after `after`, from at most `limit` written changes; an empty batch when there is nothing new."""

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
    door: DoorLimits = field(default_factory=DoorLimits)


@dataclass(frozen=True, slots=True)
class Serving:
    """How rsync serves. `owner` (uid, gid) and `chroot` count when this runs as root: see `daemon_config`."""

    binary: str = "rsync"
    owner: tuple[int, int] | None = None
    chroot: bool = False
    exclude: tuple[str, ...] = ()


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
        """Replaced as a whole at a reload."""
        self.sent_bytes: Counter[str] = Counter()
        self.streams: Counter[str] = Counter()
        self._requests: Counter[str] = Counter()
        self._open: set[asyncio.Task[object]] = set()
        self._ending: set[asyncio.Task[object]] = set()
        self._source = source
        self._limits = limits
        self._serving = serving
        self._runner: web.AppRunner | None = None
        self._accepting: list[asyncio.Task[None]] = []
        self.door: Door | None = None
        """Of the port while it is open: how many connections there are, and were refused."""

    def app(self) -> web.Application:
        """The application with the five paths."""
        app = web.Application(client_max_size=wire.MAX_ASK_BYTES)
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
            handler_cancellation=True,
            shutdown_timeout=_STOP_S,
            keepalive_timeout=_KEEP_S,
        )
        await self._runner.setup()
        assert self._runner.server is not None
        self.door = Door(self._runner.server, tls, self._limits.door)
        self._accepting = [asyncio.create_task(self.door.serve(one)) for one in (sock, *more)]

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
            after, wait_s, published = wire.parse_journal_query(request.query)
            answer = await self._read(tree, after)
            if isinstance(answer, wire.Batch):
                await self._source.moved(tree, node, published)
                if answer.cursor == after and wait_s:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(min(wait_s, self._limits.wait_s)):
                            await self._source.changed(tree, after.sequence)
                    answer = await self._read(tree, after)
            if isinstance(answer, wire.Behind):
                return web.Response(status=410, body=wire.encode_behind(answer), content_type="application/json")
            return web.Response(body=wire.encode_batch(answer), content_type="application/octet-stream")

    async def _read(self, tree: str, after: wire.Cursor) -> wire.Batch | wire.Behind:
        """The journal after a cursor. Less at a time when it would be too large: a coalesced batch cannot be cut."""
        limit = wire.MAX_BATCH
        while True:
            answer = await self._source.journal(tree, after, limit)
            if answer is None:
                raise _nothing_yet(tree)
            if limit == 1 or isinstance(answer, wire.Behind) or _size_bound(answer) <= wire.MAX_BATCH_BYTES:
                return answer
            limit = max(1, limit // 4)

    async def _listings(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (_, tree):
            paths = wire.decode_ask(await _body(request, self._limits.body_s))
            frames = wire.encode_listings(_there(await self._source.listings(tree, paths), tree)[: len(paths)])
            return web.Response(body=b"".join(frames), content_type="application/octet-stream")

    async def _links(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (_, tree):
            groups = _there(await self._source.links(tree), tree)
            return web.Response(body=wire.encode_links(groups), content_type="application/octet-stream")

    async def _files(self, request: web.Request) -> web.StreamResponse:
        with self._asked(request) as (node, tree):
            serving = self._serving
            if serving.owner is not None and serving.owner[0] != os.geteuid():
                raise _refuse(501, "this parent reads files as another user: take rsync")
            paths = wire.decode_ask(await _body(request, self._limits.body_s), wire.MAX_FILES_ASKED)
            root = os.path.realpath(_there(await self._source.path(tree), tree))  # noqa: ASYNC240 (a few lstats)
            try:
                body = await asyncio.to_thread(read_files, os.fsencode(root), paths, serving.exclude)
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
                async with _rsync_process(self._serving, root, self._ending) as process:
                    return await self._splice(request, process, node)

    async def _splice(self, request: web.Request, process: asyncio.subprocess.Process, node: str) -> web.StreamResponse:
        response = web.StreamResponse(status=101, headers={"Connection": "Upgrade", "Upgrade": wire.UPGRADE})
        response.force_close()
        await response.prepare(request)
        await response.write_eof()

        def count(size: int) -> None:
            self.sent_bytes[node] += size

        await _splice(request, process, self._limits.idle_s, count)
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
            greet(request.transport)
            if self._requests[node] >= self._limits.requests_per_child:
                raise _refuse(429, f"{node} has {self._requests[node]} requests open", {"Retry-After": "1"})
            with _counted(self._requests, node):
                yield node, tree
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


def server_tls(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.3 with this certificate chain and key (PEM files); NearpathError when they cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise NearpathError(
            f"the certificate {certificate} with the key {key} cannot be used: {error}",
            "both are PEM files that this daemon's user can read, and belong together",
        ) from None
    return context


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


async def _body(request: web.Request, limit_s: float) -> bytes:
    try:
        async with asyncio.timeout(limit_s):
            return await request.read()
    except TimeoutError:
        raise _refuse(408, f"the request did not come within {limit_s:g} s") from None


def _there(answer: _T | None, tree: str) -> _T:
    if answer is None:
        raise _nothing_yet(tree)
    return answer


def _nothing_yet(tree: str) -> web.HTTPException:
    return _refuse(503, f"tree {tree!r} has nothing to serve yet", {"Retry-After": "5"})


def _size_bound(batch: wire.Batch) -> int:
    """An upper bound of what `encode_batch` makes: every byte of a path takes three at most."""
    fixed = 300  # the fields' names, five numbers and a digest
    paths = (len(c.path) + len(c.source) + (len(c.entry.target) if c.entry else 0) for c in batch.changes)
    return fixed + fixed * len(batch.changes) + 3 * sum(paths)


@contextmanager
def _counted(counter: Counter[str], node: str) -> Iterator[None]:
    counter[node] += 1
    try:
        yield
    finally:
        counter[node] -= 1
        if not counter[node]:
            del counter[node]


# --- the rsync stream ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _rsync_process(
    serving: Serving, root: str, ending: set[asyncio.Task[object]]
) -> AsyncIterator[asyncio.subprocess.Process]:
    """rsync's daemon for the tree at `root` on pipes; it is gone when this ends. 503 when it cannot be started."""
    try:
        config = daemon_config(wire.MODULE, root, owner=serving.owner, chroot=serving.chroot, exclude=serving.exclude)
    except RsyncError as error:
        raise _refuse(503, f"the parent cannot serve this tree by rsync: {error}") from None
    # A file with a name: rsync 3.5.0 closes the descriptors that it inherits. Only this user can read or change it.
    with tempfile.NamedTemporaryFile(prefix="syncd-rsyncd-", suffix=".conf") as file:
        file.write(config.encode("utf-8", "surrogateescape"))
        file.flush()
        try:
            process = await asyncio.create_subprocess_exec(
                *daemon_command(file.name, serving.binary),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment(),
                start_new_session=True,
                limit=_CHUNK_BYTES,
            )
        except OSError as error:
            raise _refuse(503, f"{serving.binary} cannot be started on the parent: {error.strerror}") from None
        try:
            yield process
        finally:
            # The end of the connection cancels this as well: rsync is ended all the same.
            end: asyncio.Task[object] = asyncio.create_task(_end(process))
            ending.add(end)
            end.add_done_callback(ending.discard)
            await asyncio.shield(end)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End rsync and what it started: they are a session of their own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        if process.stdin is not None:
            process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_S)
            return


class _Taken(asyncio.StreamReaderProtocol):
    """Takes a connection over from aiohttp, which is told of its end so that it forgets it."""

    def __init__(self, reader: asyncio.StreamReader, before: asyncio.BaseProtocol, moved: Callable[[], None]) -> None:
        super().__init__(reader)
        self.lost = asyncio.Event()
        self._before = before
        self._moved = moved

    def data_received(self, data: bytes) -> None:
        self._moved()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()
        self._before.connection_lost(exc)


async def _splice(
    request: web.Request, process: asyncio.subprocess.Process, idle_s: float, count: Callable[[int], None]
) -> None:
    """Move bytes between the connection and rsync until either is gone, or nothing moved for `idle_s`."""
    loop = asyncio.get_running_loop()
    transport = request.transport
    if transport is None:
        return
    before = transport.get_protocol()
    assert process.stdin is not None
    assert process.stdout is not None
    last_s = loop.time()

    def moved() -> None:
        nonlocal last_s
        last_s = loop.time()

    def sent(size: int) -> None:
        moved()
        count(size)

    reader = asyncio.StreamReader(_CHUNK_BYTES, loop)
    taken = _Taken(reader, before, moved)
    transport.set_protocol(taken)
    taken.connection_made(transport)
    writer = asyncio.StreamWriter(transport, taken, reader, loop)
    transport.resume_reading()  # aiohttp may have paused it; an early byte is the child's own fault

    async def idle() -> None:
        while (left_s := last_s + idle_s - loop.time()) > 0:  # noqa: ASYNC110 (an event per chunk would cost more)
            await asyncio.sleep(left_s)

    work: list[Awaitable[object]] = [_copy(process.stdout, writer, sent), taken.lost.wait(), idle()]
    ends = [asyncio.ensure_future(each) for each in work]
    up = asyncio.ensure_future(_copy(reader, process.stdin, lambda _: moved(), close=True))
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if ends[0].done():
            transport.close()  # what is still in the buffer goes out before
            with suppress(TimeoutError):
                await asyncio.wait_for(taken.lost.wait(), _LAST_S)
    finally:
        transport.abort()
        for task in (*ends, up):
            task.cancel()
        await asyncio.gather(*ends, up, return_exceptions=True)


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, moved: Callable[[int], None], close: bool = False
) -> None:
    """Copy to the end of `reader`, no faster than `writer` takes it; `close` the writer then."""
    with suppress(ConnectionError, BrokenPipeError):
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
            moved(len(data))
    if close:
        writer.close()
