"""A hostile child, and strangers, at the parent's port: what they can take of it, and what they leave in its log."""

from __future__ import annotations

import asyncio
import logging
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import ClientConnectionResetError

from core.tokens import token_sha256
from syncd.transfer import io_serve, wire
from syncd.transfer.io_parent import Parent, ParentError, ParentRefuses
from syncd.transfer.io_rsync import own_ids
from syncd.transfer.io_serve import Limits
from syncd.transfer.rsync import daemon_command, daemon_config, rsh_argument
from tests.syncd.serving import ID, TOKEN, Site, served, until

HEAD = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\nX-Nearpath-Node: edge1\r\n".encode()
ROOT = b"GET /v1/trees/t/root HTTP/1.1\r\n" + HEAD + b"\r\n"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with served(tmp_path) as found:
        yield found


async def call(site: Site, said: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = site.url.partition("://")[2].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    return reader, writer


async def status_of(reader: asyncio.StreamReader) -> int:
    return int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])


# --- strangers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"PUT /v1/trees/t/root HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET /v1/trees/t/root HTTP/1.1\r\nHost: x\r\nX-Nearpath-Node: ../x\r\n\r\n", b"400"),
        (b"GET /v1/trees/t/root HTTP/1.1\r\nHost: x\r\nX-Nearpath-Node: push:x\r\n\r\n", b"400"),
        (b"GET /v1/trees/t/root HTTP/1.1\r\nHost: x\r\nX-Nearpath-Node: edge1\r\n\r\n", b"401"),
    ],
)
async def test_a_stranger_has_one_question_a_connection(site: Site, asked: bytes, status: bytes) -> None:
    reader, writer = await call(site, asked + asked)
    said = await reader.read()  # to the end: the connection is closed
    writer.close()
    assert said.count(b"HTTP/1.1 ") == 1
    assert said.startswith(b"HTTP/1.1 " + status)


async def test_who_showed_a_token_may_be_wrong_and_go_on(site: Site) -> None:
    reader, writer = await call(site, ROOT + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + ROOT)
    seen = []
    for _ in range(3):
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(int(head.split(b" ", 2)[1]))
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
    writer.close()
    assert seen == [200, 404, 200]


async def test_what_strangers_send_is_not_in_the_log_and_our_own_faults_are(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = b"GET /v1/trees/t/root HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cr\x01et\r\n\r\n"
    packed = (
        b"POST /v1/trees/t/files HTTP/1.1\r\n" + HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\na\0b\0c"
    )
    many = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000
    with caplog.at_level(logging.WARNING):
        for said in (odd, b"\x80\x80\x80 / x\r\n\r\n", packed, many):
            reader, writer = await call(site, said)
            assert await status_of(reader) == 400
            writer.close()
        assert caplog.records == []

        async def broken(_tree: str) -> bytes | None:
            raise KeyError("a fault of ours")

        monkeypatch.setattr(site.source, "root", broken)
        with pytest.raises(ParentError, match="500"):
            await site.parent.root("t")
    assert "a fault of ours" in caplog.text
    assert TOKEN not in caplog.text


# --- a child with a token -----------------------------------------------------------------------------------------------


def test_who_hangs_up_in_the_middle_of_an_answer_leaves_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """Seen in an hour of churn."""
    log = io_serve._port_log()
    log.error("Error handling request", exc_info=ClientConnectionResetError("Cannot write to closing transport"))
    assert caplog.records == []
    log.error("Error handling request", exc_info=ValueError("a fault of ours"))
    assert "a fault of ours" in caplog.text


async def test_one_child_cannot_take_all_the_connections(tmp_path: Path) -> None:
    limits = Limits(requests_per_child=1, streams_per_child=1)
    async with served(tmp_path, limits=limits) as site, AsyncExitStack() as stack:
        assert site.server.door is not None
        first: asyncio.StreamWriter | None = None
        for _ in range(limits.connections_per_child):
            reader, writer = await call(site, ROOT)
            stack.callback(writer.close)
            first = first or writer
            assert await status_of(reader) == 200
        reader, writer = await call(site, ROOT)
        assert await status_of(reader) == 429
        assert b"too many connections" in await reader.read()
        writer.close()
        other = site.child("other-token", "edge2")
        with pytest.raises(ParentError, match="503"):  # it is let in; its tree is not here yet
            await other.root("other")
        await other.close()
        assert first is not None
        first.close()
        door, most = site.server.door, limits.connections_per_child
        await until(lambda: door.connections < most)
        assert await site.parent.root("t") == site.source.blob


async def test_a_child_says_only_what_it_has_published_itself(site: Site) -> None:
    site.source.add(b"a", b"b", b"c")

    async def say(journal: bytes, after: int, published: int) -> int:
        query = {"id": journal.hex(), "after": str(after), "wait": "0", "published": str(published)}
        return (await site.parent._ask("GET", "t", "journal", 10_000, (200, 410), query=query))[0]

    with pytest.raises(ParentError, match="400"):
        await say(ID, 1, 2)  # published before it was asked for
    assert await say(b"x" * 16, 3, 3) == 410  # a cursor of another journal
    site.source.floor = 2
    assert await say(ID, 1, 1) == 410  # below what is kept
    assert site.source.cursors == {}
    assert await say(ID, 3, 2) == 200
    assert site.source.cursors == {("t", "edge1"): wire.Cursor(ID, 2)}


async def test_large_answers_wait_for_each_other_and_for_nobody_who_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(tmp_path, limits=Limits(stall_s=0.1)) as site:
        site.source.groups = [(b"a" * 200, b"b" * 200)] * 40_000  # 16 MB: more than sockets hold
        now, most = 0, 0

        async def links(_tree: str) -> list[tuple[bytes, ...]]:
            nonlocal now, most
            now, most = now + 1, max(most, now + 1)
            await asyncio.sleep(0)
            now -= 1
            return site.source.groups

        monkeypatch.setattr(site.source, "links", links)
        ask = b"GET /v1/trees/t/links HTTP/1.1\r\n" + HEAD + b"\r\n"
        silent = [await call(site, ask) for _ in range(4)]
        assert len(await site.parent.links("t")) == 40_000  # after those who do not read were let go
        for _, writer in silent:
            writer.close()
        site.source.groups = site.source.groups[:2]
        most = 0
        await asyncio.gather(*(site.parent.links("t") for _ in range(12)))
        assert 0 < most <= 4


async def test_a_child_that_is_revoked_loses_what_is_under_way(site: Site) -> None:
    poll = asyncio.create_task(site.parent.journal("t", wire.Cursor(ID, 0), wait_s=60))
    await until(lambda: bool(site.source.cursors))
    same = dict(site.server.children)
    site.server.allow(same | {"edge3": replace(same["edge2"], node="edge3")})
    assert not poll.done()
    site.server.allow({"edge1": replace(same["edge1"], token_sha256=token_sha256("renewed"))})
    with pytest.raises(ParentError):
        await poll
    with pytest.raises(ParentRefuses):
        await site.parent.root("t")


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_is_not_asked_to_follow_symlinks(tmp_path: Path) -> None:
    tree, there = tmp_path / "tree", tmp_path / "there"
    tree.mkdir()
    there.mkdir()
    (tmp_path / "secret").write_text("secret")
    (tree / "out").symlink_to("../secret")
    config = tmp_path / "rsyncd.conf"
    config.write_text(daemon_config("tree", str(tree), owner=own_ids()))
    refused = next(line for line in config.read_text().splitlines() if line.startswith("refuse options = ")).split()
    assert {"copy-links", "copy-unsafe-links", "copy-dirlinks"} <= set(refused)
    shell = "exec " + rsh_argument(daemon_command(str(config)))
    command = ["rsync", "-rL", "--rsh=" + rsh_argument(["sh", "-c", shell]), "h::tree/", f"{there}/"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode != 0
    assert b"refuse" in done.stderr
    assert list(there.iterdir()) == []


# --- the token ----------------------------------------------------------------------------------------------------------


async def test_the_token_is_in_no_error_and_no_argument(site: Site, tmp_path: Path) -> None:
    secret, file = "s3cret-of-somebody-else", tmp_path / "file"
    child = Parent(site.url, "edge1", str(file))
    texts = [" ".join(child.connector("t").command)]
    for content in (secret + "\x01", secret + " x", secret + "ä", secret):
        file.write_text(content)
        with pytest.raises(ParentError) as refused:
            await child.root("t")
        texts += [str(refused.value), repr(refused.value)]
    await site.server.stop()
    with pytest.raises(ParentError) as away:
        await child.root("t")
    await child.close()
    texts += [str(away.value), repr(away.value), repr(away.value.__context__)]
    assert len(texts) == 12
    assert not [text for text in texts if secret in text]
