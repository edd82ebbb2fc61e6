"""The rsync stream at the parent: rsync's daemon on pipes, spliced to a connection that aiohttp gave up."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from syncd.transfer.io_rsync import environment
from syncd.transfer.rsync import RsyncError, daemon_command

CHUNK_BYTES = 256 * 1024
_PREFIX, _SUFFIX = "syncd-rsyncd-", ".conf"
_STOP_S = 2.0
_LAST_S = 15.0
"""For the last bytes of a stream to reach a child that reads slowly."""


def clear_configs(config_dir: str) -> None:
    """Make the directory for configurations of rsync's daemon, and remove those that a killed syncd left there."""
    os.makedirs(config_dir, mode=0o700, exist_ok=True)
    for name in os.listdir(config_dir):
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            os.unlink(os.path.join(config_dir, name))


@asynccontextmanager
async def rsync_process(
    binary: str, config: str, ending: set[asyncio.Task[object]], config_dir: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """rsync's daemon with `config` on pipes; it is gone when this ends. RsyncError when it cannot be started.

    `ending`: where the end of it is noted, which goes on when this is cancelled. `config_dir`: see `clear_configs`.
    """
    # A file with a name: rsync 3.5.0 closes the descriptors that it inherits. Only this user can read or change it.
    with tempfile.NamedTemporaryFile(prefix=_PREFIX, suffix=_SUFFIX, dir=config_dir or None) as file:
        file.write(config.encode("utf-8", "surrogateescape"))
        file.flush()
        try:
            process = await asyncio.create_subprocess_exec(
                *daemon_command(file.name, binary),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment(),
                start_new_session=True,
                limit=CHUNK_BYTES,
            )
        except OSError as error:
            raise RsyncError(
                f"{binary} cannot be started on the parent: {error.strerror}", "install rsync there"
            ) from None
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


async def splice(
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

    reader = asyncio.StreamReader(CHUNK_BYTES, loop)
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
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
            moved(len(data))
    if close:
        writer.close()
