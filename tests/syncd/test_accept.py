"""Who may connect to the parent's port, how many, and for how long without a token: real sockets."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from syncd.transfer import wire
from syncd.transfer.io_accept import Door, DoorLimits, address_of
from syncd.transfer.io_parent import ParentError, ParentRefuses
from syncd.transfer.io_serve import Limits
from tests.syncd.serving import ID, Site, make_certificate, served, until

SOON = DoorLimits(head_s=0.2)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make_certificate(tmp_path_factory.mktemp("tls"))


def door_of(site: Site) -> Door:
    assert site.server.door is not None
    return site.server.door


@asynccontextmanager
async def caller(site: Site, is_tls: bool) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the port; with TLS when the port has it and `is_tls`."""
    host, _, port = site.url.partition("://")[2].rpartition(":")
    tls = ssl.create_default_context(cafile=site.ca) if site.ca and is_tls else None
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still came until the other end closed the connection."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("said", [b"", b"GET /v1/trees/t/root HT", b"GET /v1/trees/t/root HTTP/1.1\r\nX: y\r\n"])
@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_head_that_does_not_come_whole_ends_the_connection(
    tmp_path: Path, certificate: tuple[str, str], said: bytes, is_tls: bool
) -> None:
    async with (
        served(tmp_path, certificate if is_tls else None, Limits(door=SOON)) as site,
        caller(site, is_tls) as (reader, writer),
    ):
        writer.write(said)
        assert await ended(reader) == b""
        await until(lambda: door_of(site).connections == 0)


async def test_a_head_that_trickles_gains_no_time(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(door=SOON)) as site, caller(site, False) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        end = asyncio.create_task(ended(reader))
        while not end.done():  # for ever, if each byte bought more time
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.05)
        assert await end == b""


async def test_a_handshake_that_does_not_come_ends_the_connection(tmp_path: Path, certificate: tuple[str, str]) -> None:
    async with served(tmp_path, certificate, Limits(door=SOON)) as site, caller(site, False) as (reader, _):
        assert await ended(reader) == b""
        await until(lambda: door_of(site).connections == 0)


async def test_a_request_that_shows_no_token_gains_no_time(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(door=SOON)) as site, caller(site, False) as (reader, writer):
        writer.write(b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 404 " in await ended(reader)


async def test_a_wrong_token_costs_the_connection(tmp_path: Path) -> None:
    async with served(tmp_path) as site, site.child("wrong") as stranger:
        for _ in range(3):
            with pytest.raises(ParentRefuses):
                await stranger.root("t")
        assert door_of(site).accepted == 3


async def test_who_showed_a_token_has_time(tmp_path: Path, certificate: tuple[str, str]) -> None:
    async with served(tmp_path, certificate, Limits(door=SOON)) as site:
        await site.parent.root("t")
        await site.parent.journal("t", wire.Cursor(ID, 0), wait_s=0.5)  # beyond head_s, busy
        await asyncio.sleep(0.5)  # and idle
        await site.parent.root("t")
        assert door_of(site).accepted == 1


async def test_a_body_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(body_s=0.1)) as site, caller(site, False) as (reader, writer):
        lines = [
            "POST /v1/trees/t/files HTTP/1.1",
            "Host: x",
            "Authorization: Bearer right-token",
            "X-Nearpath-Node: edge1",
        ]
        writer.write("\r\n".join([*lines, "Content-Length: 10", "", ""]).encode())
        assert b" 408 " in await reader.readline()


async def test_a_flood_of_silent_connections_keeps_no_child_out(tmp_path: Path, certificate: tuple[str, str]) -> None:
    limits = Limits(door=DoorLimits(head_s=60.0, strangers_per_address=5))
    async with served(tmp_path, certificate, limits) as site, AsyncExitStack() as stack:
        await site.parent.root("t")
        silent = [await stack.enter_async_context(caller(site, i % 2 == 0)) for i in range(20)]
        await until(lambda: door_of(site).accepted == 21)
        assert door_of(site).connections == 6
        assert door_of(site).refused == 15
        assert [await ended(reader) for reader, _ in silent[:15]] == [b""] * 15  # the oldest went
        await site.parent.root("t")
        assert door_of(site).accepted == 21  # the child's own connection is still there
        async with site.child() as other:
            assert await other.root("t") == site.source.blob


@pytest.mark.parametrize("limits", [DoorLimits(connections_per_address=2), DoorLimits(connections=2)])
async def test_known_ones_stay_when_there_is_no_room(tmp_path: Path, limits: DoorLimits) -> None:
    async with served(tmp_path, limits=Limits(door=limits)) as site:
        poll = asyncio.create_task(site.parent.journal("t", wire.Cursor(ID, 0), wait_s=60))
        await until(lambda: bool(site.source.cursors))
        await site.parent.root("t")
        async with site.child() as late, caller(site, False) as (reader, _):
            assert await ended(reader) == b""
            with pytest.raises(ParentError, match="does not answer"):
                await late.root("t")
            assert door_of(site).connections == 2
            site.source.add(b"a")
            assert isinstance(await poll, wire.Batch)
            await site.parent.close()
            await until(lambda: door_of(site).connections == 0)
            await late.root("t")


async def test_strangers_from_everywhere_are_bounded(tmp_path: Path) -> None:
    limits = Limits(door=DoorLimits(head_s=60.0, strangers=2))
    async with served(tmp_path, limits=limits) as site, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(caller(site, False)) for _ in range(3)]
        assert await ended(silent[0][0]) == b""
        assert door_of(site).connections == 2


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("odd", "odd"),
    ],
)
def test_what_connections_are_counted_by(host: str, address: str) -> None:
    assert address_of(host) == address
