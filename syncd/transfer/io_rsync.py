"""Running rsync: a batch of paths in, the outcome path by path out."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from syncd.publish.plan import Fetch
from syncd.transfer.rsync import (
    MAX_ERRORS_KEPT,
    NO_DATA,
    Arrived,
    Fault,
    Options,
    Progress,
    Result,
    RsyncError,
    Transport,
    files_from,
    judge,
    parse_line,
    pull_arguments,
    push_arguments,
    whole_arguments,
)
from syncd.transfer.streams import share

MAX_LINE_BYTES = 64 * 1024
"""A path of 4,096 bytes takes at most 16,384 when each is escaped; two of them fit."""
STOP_S = 5.0
PATIENCE_S = 900.0
SLOWEST_BYTES_S = 4096
"""rsync's own time limit is for silence: who sends a byte a minute is given up after PATIENCE_S more than at this speed."""

Watcher = Callable[[Arrived | Progress], None]


def ignore(what: Arrived | Progress) -> None:
    """A watcher that does not care."""


async def pull(
    transport: Transport, options: Options, stage: str, fetches: Sequence[Fetch], watch: Watcher = ignore
) -> Result:
    """Bring files from the parent into the directory `stage`: one rsync. RsyncError when it cannot be started.

    `watch` is told of each file that is whole and of the progress. Cancelled: rsync is ended, with its children; partial
    files stay for the next try. All of `fetches` have the same `exact`.
    """
    options = replace(options, exact=any(fetch.exact for fetch in fetches))
    paths, size = [fetch.entry.path for fetch in fetches], sum(fetch.entry.size for fetch in fetches)
    slowest_bytes_s = min(SLOWEST_BYTES_S, options.limit_bytes_s // 4 or SLOWEST_BYTES_S)
    try:
        async with asyncio.timeout(PATIENCE_S + size / slowest_bytes_s):
            return await _run(pull_arguments(transport, options, stage), paths, watch)
    except TimeoutError:
        return judge(paths, (), (), NO_DATA)


async def pull_all(
    transport: Transport,
    options: Options,
    stage: str,
    batches: Sequence[Sequence[Fetch]],
    watch: Watcher = ignore,
    streams: int = 4,
) -> list[Result]:
    """`pull` of each batch, `streams` at a time, which share the bandwidth limit; results in order of batches."""
    gate = asyncio.Semaphore(streams)
    limit = share(options.limit_bytes_s, min(streams, len(batches)))

    async def one(batch: Sequence[Fetch]) -> Result:
        async with gate:
            return await pull(transport, replace(options, limit_bytes_s=limit), stage, batch, watch)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(batch)) for batch in batches]
    return [task.result() for task in tasks]


async def push(
    transport: Transport,
    options: Options,
    root: str,
    paths: Sequence[bytes],
    delete: bool = False,
    watch: Watcher = ignore,
) -> Result:
    """Bring `paths` from `root` to a plain mirror: one rsync. With `delete`, paths that are gone here are deleted there."""
    return await _run(push_arguments(transport, options, root, delete), paths, watch)


async def push_whole(transport: Transport, options: Options, root: str, delete: bool) -> Result:
    """Bring all of `root` to a plain mirror, compared by rsync; with `delete`, what is not here goes there, at the end."""
    return await _run(whole_arguments(transport, options, root, delete), (), ignore)


async def _run(arguments: Sequence[str], paths: Sequence[bytes], watch: Watcher) -> Result:
    arrived: set[bytes] = set()
    faults: list[Fault] = []

    def take(line: bytes) -> None:
        said = parse_line(line)
        if isinstance(said, Fault):
            if len(faults) < MAX_ERRORS_KEPT:
                faults.append(said)
        elif said is not None:
            if isinstance(said, Arrived):
                arrived.add(said.path)
            watch(said)

    process = await _start(arguments)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        await asyncio.gather(
            _feed(process.stdin, files_from(paths)), _lines(process.stdout, take), _lines(process.stderr, take)
        )
        code = await process.wait()
    except BaseException:
        await _stop(process)
        raise
    return judge(paths, arrived, faults, code)


def environment() -> dict[str, str]:
    """What rsync is started with: this process's environment without what would change its ways or its words."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RSYNC_")}
    # Messages as they are parsed, and every byte of a name that is not ASCII escaped.
    return {**kept, "LC_ALL": "C"}


async def _start(arguments: Sequence[str]) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
    except FileNotFoundError:
        raise RsyncError(f"{arguments[0]} is not there", "install rsync (Debian: apt install rsync)") from None


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # what ended it shows in its exit code
        stream.write(data)
        await stream.drain()
    stream.close()


async def _lines(stream: asyncio.StreamReader, take: Callable[[bytes], None]) -> None:
    """Give `take` each line; progress lines end with a carriage return, and begin with one that ends nothing."""
    rest = b""
    while data := await stream.read(MAX_LINE_BYTES):
        *whole, rest = re.split(rb"[\r\n]", rest + data)
        for line in whole:
            if line:
                take(line)
        rest = rest[-MAX_LINE_BYTES:]
    if rest:
        take(rest)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End rsync and what it started (its receiver, the connector): they are a session of their own."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # then it moves what it has to the partial directory
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            await end(process)


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill it with what it started; what it still had to say is dropped, for asyncio would wait for that to be read."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    streams = [stream for stream in (process.stdout, process.stderr) if stream is not None]
    with suppress(TimeoutError):  # somebody else may hold the other end
        async with asyncio.timeout(STOP_S):
            await asyncio.gather(*(_drop(stream) for stream in streams))
            await process.wait()


async def _drop(stream: asyncio.StreamReader) -> None:
    with suppress(RuntimeError):  # it is being read all the same
        while await stream.read(MAX_LINE_BYTES):
            pass


def own_ids() -> tuple[int, int] | None:
    """The `owner` for `daemon_config` when root serves as itself; None for others, who cannot and need not change."""
    return (os.getuid(), os.getgid()) if os.geteuid() == 0 else None
