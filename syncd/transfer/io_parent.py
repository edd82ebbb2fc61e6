"""The child's side of the parent's port: root, journal, listings, small files; how rsync reaches it. See `wire.py`."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import aiohttp
from aiohttp import AddrInfoType
from yarl import URL

from core.errors import MessageError, NearpathError
from core.io_http import why_not_reached
from core.io_token import read_token
from syncd.model import Entry, Kind
from syncd.source.row import Written
from syncd.store.manifest import MAX_ASKED, MAX_LISTING_BYTES
from syncd.store.signed_root import MAX_ROOT_BYTES
from syncd.transfer import wire
from syncd.transfer.io_connector import client_tls
from syncd.transfer.io_small import stage_answer
from syncd.transfer.io_stager import Stager
from syncd.transfer.rsync import Connector

_TIMEOUT_S = 30.0
_KEEP_S = 90.0
"""Longer than a long poll, so that the connections that take turns with it stay warm; the parent keeps them longer."""
_DEAD_S = 20
"""A parent that does not even acknowledge what it is sent is given up; and so often an idle connection is tried."""
_PATIENCE_S = 60.0
_SLOWEST_BYTES_S = 1024
"""An answer takes at most `_PATIENCE_S`, and longer only while it comes faster than this."""
_MAX_ANSWER_BYTES = wire.MAX_LISTINGS_BYTES + MAX_LISTING_BYTES


class ParentError(NearpathError):
    """The parent cannot be asked just now, or does not answer as it must: tried again later, or another one is asked."""


class ParentRefuses(ParentError):
    """The parent does not know this node, or does not let it have the tree: its configuration must change."""


class Parent:
    """One parent, for any number of trees. The token is read from its file at every request: it may be renewed.

    `url`: https://HOST:PORT; http for loopback only, since it shows the token. `ca`: PEM file of the certificates to
    trust, "" for the system's. `stager` writes large answers with small files. Every method raises ParentError or
    ParentRefuses, MessageError for a malformed answer.
    """

    def __init__(self, url: str, node: str, token_file: str, ca: str = "", stager: Stager | None = None) -> None:
        self.url = self.where = url.rstrip("/")
        self.node = wire.check_node(node)
        self._token_file = token_file
        self._ca = ca
        self._stager = stager
        self._roots: dict[str, tuple[str, bytes]] = {}
        self._told: dict[str, wire.Cursor] = {}
        """where it said to go on from after a comparison"""
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Parent:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def root(self, tree: str) -> bytes:
        """The signed root, to be given to `verify_root`. One request, which transfers nothing when it did not change."""
        known = self._roots.get(tree)
        headers = {"If-None-Match": known[0]} if known else {}
        status, body, tag = await self._ask("GET", tree, "root", MAX_ROOT_BYTES, (200, 304), headers=headers)
        if status == 304:
            if known is None:
                raise MessageError(f"{self.url} says that nothing changed since never", "it is broken")
            return known[1]
        self._roots[tree] = (tag[:100], body)
        return body

    async def journal(
        self,
        tree: str,
        after: wire.Cursor,
        wait_s: float = 50.0,
        published: wire.Cursor | None = None,
        prove: bool = False,
    ) -> wire.Batch | wire.Behind:
        """What came after the cursor `after`, up to which all is published here; waits at most `wait_s` for something.

        `published`: only so much is, who asks is ahead of it. An empty batch: nothing came. Cursor(): for a child that has
        none; it is told where to begin (Behind). `prove`: up to where a signed root stands, with the root; waits for one.
        """
        status, body, _ = await self._ask(
            "GET",
            tree,
            "journal",
            wire.MAX_BATCH_BYTES,
            (200, 410),
            query=wire.journal_query(after, wait_s, published, prove),
            timeout_s=_TIMEOUT_S + wait_s,
        )
        if status != 200:
            behind = wire.decode_behind(body)
            if after.journal and self._told.pop(tree, None) == after:
                # Once it may have been cut meanwhile; at once and for ever would be all that this node does.
                raise ParentError(
                    f"{self.url} takes back the cursor it gave for tree {tree!r}", "asked again a bit later"
                )
            self._told[tree] = behind.cursor
            return behind
        batch = wire.decode_batch(body)
        _check_forward(batch, after)
        return batch

    async def listings(self, tree: str, paths: Sequence[bytes]) -> dict[bytes, bytes]:
        """Listings of the directories `paths`, for `manifest.compare`; what is no directory there is left out."""
        found: dict[bytes, bytes] = {}
        left = list(paths)
        while left:
            asked = left[:MAX_ASKED]
            _, body, _ = await self._ask(
                "POST", tree, "listings", _MAX_ANSWER_BYTES, (200,), body=wire.encode_ask(asked)
            )
            answer = wire.decode_listings(asked, body)
            found |= {path: listing for path, listing in answer.items() if listing is not None}
            left = left[len(answer) :]
        return found

    async def links(self, tree: str) -> list[tuple[bytes, ...]]:
        """The names of each file that has several there."""
        _, body, _ = await self._ask("GET", tree, "links", 2 * wire.MAX_LINKS_BYTES, (200,))
        return wire.decode_links(body)

    async def files(
        self,
        tree: str,
        entries: Sequence[Entry],
        stage: bytes,
        hard_links: bool = True,
        written: Written | None = None,
    ) -> dict[bytes, str]:
        """Bring small files (SMALL_FILE_BYTES) into the directory `stage`, each at its path; those that failed, and why.

        A file is written only when its size and time are those of its entry; "it vanished at the parent" (VANISHED of
        io_small) is not tried again, as with rsync. Names of one file that are asked for together become hard links.
        What was written is added to `written`. DiskFull when there is no space: what was written before stays.
        """
        for entry in entries:
            if entry.kind is not Kind.FILE or entry.size > wire.SMALL_FILE_BYTES:
                raise ValueError(f"{entry.path!r} is no small file: see small.divide")
        failed: dict[bytes, str] = {}
        written = {} if written is None else written
        left = list({entry.path: entry for entry in entries}.values())
        ahead = self._ask_files(tree, left)
        try:
            while ahead is not None:
                asked, task = ahead
                data = await task
                ahead = self._ask_files(tree, left)  # it comes while the one before is written
                work = asyncio.ensure_future(self._stage_files(stage, asked, data, hard_links, written))
                try:
                    answered, new = await asyncio.shield(work)
                except asyncio.CancelledError:
                    await asyncio.wait([work])  # nothing is written behind the back of who goes on
                    raise
                failed |= new
                left = asked[answered:] + left
                ahead = ahead or self._ask_files(tree, left)
        finally:
            if ahead is not None:
                ahead[1].cancel()
                await asyncio.gather(ahead[1], return_exceptions=True)
        return failed

    def _ask_files(self, tree: str, left: list[Entry]) -> tuple[list[Entry], asyncio.Task[bytes]] | None:
        """Ask for the first so many of `left`, and take them off: (which ones, the answer); None when none are left."""
        asked = left[: wire.MAX_FILES_ASKED]
        del left[: wire.MAX_FILES_ASKED]
        return (asked, asyncio.create_task(self._files(tree, asked))) if asked else None

    async def _files(self, tree: str, entries: Sequence[Entry]) -> bytes:
        body = wire.encode_ask([entry.path for entry in entries], wire.MAX_FILES_ASKED)
        _, data, _ = await self._ask("POST", tree, "files", wire.MAX_FILES_BYTES, (200,), body=body)
        return data

    async def _stage_files(
        self, stage: bytes, entries: Sequence[Entry], data: bytes, hard_links: bool, written: Written
    ) -> tuple[int, dict[bytes, str]]:
        if self._stager is not None:
            return await self._stager.stage(stage, entries, data, hard_links, written)
        return await asyncio.to_thread(stage_answer, stage, entries, data, hard_links, written)

    def connector(self, tree: str) -> Connector:
        """For `io_rsync.pull`: rsync reaches the tree through `io_connector`, with the same token file and trust."""
        options = ["--node", self.node, "--token-file", self._token_file, *(["--ca", self._ca] if self._ca else [])]
        command = (sys.executable, "-m", "syncd.transfer.io_connector", *options, self.url, wire.check_tree(tree))
        return Connector(command, wire.MODULE)

    async def _ask(
        self,
        method: str,
        tree: str,
        what: str,
        limit_bytes: int,
        expected: tuple[int, ...],
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> tuple[int, bytes, str]:
        """(status, body, ETag) of an answer with an expected status and at most `limit_bytes`."""
        every = {
            "Authorization": f"Bearer {_read_token(self._token_file)}",
            wire.NODE_HEADER: self.node,
            "Accept-Encoding": "identity",
        }
        # No limit on the whole: a large listing over a slow line takes its time, as long as bytes keep coming.
        timeout = aiohttp.ClientTimeout(total=None, connect=_TIMEOUT_S, sock_read=timeout_s)
        again = method == "POST"  # aiohttp itself asks again with GET; ours only read, too
        while True:
            try:
                async with self._client().request(
                    method,
                    _encoded(self.url + wire.tree_path(tree, what)),
                    params=query,
                    data=body,
                    headers={**every, **(headers or {})},
                    timeout=timeout,
                    allow_redirects=False,  # another node must not get the token
                ) as answer:
                    data = await _read(answer, limit_bytes if answer.status in expected else 4 * wire.MAX_TEXT)
                break
            except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError) as error:
                is_cut = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
                if again and is_cut and not isinstance(error, aiohttp.ClientConnectorError):
                    again = False  # most likely a kept connection, cut while it was idle
                    continue
                raise ParentError(
                    f"{self.url} does not answer: {why_not_reached(error)}", "is syncd up there?"
                ) from None
        if answer.status in expected:
            return answer.status, data, answer.headers.get("ETag", "")
        said = data.decode("utf-8", "replace").strip()
        if answer.status in (401, 403):
            raise ParentRefuses(f"{self.url} refuses tree {tree!r} to {self.node}", said)
        raise ParentError(f"{self.url} answers {answer.status} for the {what} of tree {tree!r}", said)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            tls: ssl.SSLContext | bool = True
            if self.url.startswith("https:"):
                try:
                    tls = client_tls(self._ca)
                except (OSError, ssl.SSLError) as error:
                    raise ParentError(f"the certificates in {self._ca} cannot be read: {error}", "a PEM file") from None
            self._session = aiohttp.ClientSession(
                connector=_connector(tls),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # nothing was asked for compressed; a little of it would become much
            )
        return self._session


def _check_forward(batch: wire.Batch, after: wire.Cursor) -> None:
    """MessageError for an answer that would be asked for again and again, or take the copy back in the journal."""
    cursor = batch.cursor
    is_back = cursor.journal != after.journal or not after.sequence <= cursor.sequence <= batch.last
    is_idle = not batch.changes and cursor.sequence == after.sequence < batch.last and not batch.root
    if is_back or is_idle or (batch.changes and cursor.sequence == after.sequence):
        raise MessageError(
            f"a journal page from {after.sequence} to {cursor.sequence} of {batch.last}, with {len(batch.changes)} changes",
            "it leads nowhere: the other node is broken or hostile",
        )


def _connector(tls: ssl.SSLContext | bool) -> aiohttp.TCPConnector:
    # No limit: each tree has a poll open for long, and behind a limit the polls would keep everything else waiting.
    # The connection that was idle for longest is taken first, so with polls every minute all in use stay warm.
    return aiohttp.TCPConnector(ssl=tls, limit=0, keepalive_timeout=_KEEP_S, socket_factory=_socket)


def _socket(info: AddrInfoType) -> socket.socket:
    """A socket whose connection is kept alive over NAT, and found dead soon. asyncio itself sets TCP_NODELAY."""
    family, kind, protocol, _, _ = info
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _DEAD_S),
        (socket.TCP_KEEPINTVL, _DEAD_S // 2),
        (socket.TCP_KEEPCNT, 3),
        (socket.TCP_USER_TIMEOUT, _DEAD_S * 1000),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock


def _read_token(file: str) -> str:
    try:
        return read_token(file, "syncd token")
    except NearpathError as error:
        raise ParentError(error.what, error.fix) from None


def _encoded(url: str) -> URL:
    return URL(url, encoded=True)  # as wire.tree_path encoded it, and not once more


async def _read(answer: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    data = bytearray()
    began_s = time.monotonic()
    async for chunk in answer.content.iter_any():
        data += chunk
        if time.monotonic() - began_s > _PATIENCE_S + len(data) / _SLOWEST_BYTES_S:
            raise TimeoutError(f"{len(data):,} bytes of an answer in {time.monotonic() - began_s:.0f} s")
        if len(data) > limit_bytes:
            raise MessageError(f"an answer of more than {limit_bytes} bytes", "the other node is broken or hostile")
    return bytes(data)
