"""Running rsync: a batch of paths in, the outcome path by path out."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import TypeVar

from syncd.model import MAX_PATH_BYTES
from syncd.publish.plan import Fetch
from syncd.transfer.loss import Loss
from syncd.transfer.plain import LOOK_FORMAT
from syncd.transfer.rsync import (
    MAX_ERRORS_KEPT,
    NO_DATA,
    REFUSES,
    Arrived,
    Fault,
    Options,
    Progress,
    Result,
    RsyncError,
    Transport,
    Verdict,
    attribute_arguments,
    dry_arguments,
    files_from,
    judge,
    parse_line,
    parse_unlike,
    pull_arguments,
    push_arguments,
    unlike_arguments,
    whole_arguments,
)
from syncd.transfer.streams import share

MAX_LINE_BYTES = 64 * 1024
"""A path of 4,096 bytes takes at most 16,384 when each is escaped; two of them fit."""
MAX_LOSS_BYTES = 256 << 20
"""Of what a dry run of a push says, which a hostile mirror could go on with for ever: see `io_plain.MAX_SAID_BYTES`."""
STOP_S = 5.0
PATIENCE_S = 900.0
MAX_WHY = 1000
"""Of what rsync says of a fault, which a hostile other end may say at length."""
SLOWEST_BYTES_S = 4096
"""rsync's own time limit is for silence: who sends a byte a minute is given up after PATIENCE_S more than at this speed."""

MAX_RUNS = 64
"""Of one batch that is split, so that what rsync refuses of it keeps nothing else waiting."""
_BADNESS = (Verdict.DONE, Verdict.PARTIAL, Verdict.AGAIN, Verdict.LOCAL, Verdict.FATAL)

T = TypeVar("T")

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
    slowest_bytes_s = min(SLOWEST_BYTES_S, options.limit_bytes_s // 4 or SLOWEST_BYTES_S)

    async def some(asked: Sequence[Fetch]) -> Result:
        paths, size = [fetch.entry.path for fetch in asked], sum(fetch.entry.size for fetch in asked)
        try:
            async with asyncio.timeout(PATIENCE_S + size / slowest_bytes_s):
                return await _run(pull_arguments(transport, options, stage), paths, watch, purse=options.purse)
        except TimeoutError:
            return judge(paths, (), (), NO_DATA)

    return await _in_parts(some, fetches, count(1))


async def _in_parts(run: Callable[[Sequence[T]], Awaitable[Result]], asked: Sequence[T], runs: Iterator[int]) -> Result:
    """`run` of all that is asked for; where rsync refuses some of it, and with that all, of one half after the other."""
    result = await run(asked)
    if next(runs) >= MAX_RUNS or len(asked) < 2 or REFUSES not in result.failed.values():
        return result
    half = len(asked) // 2
    first, second = [await _in_parts(run, part, runs) for part in (asked[:half], asked[half:])]
    worse = first if _BADNESS.index(first.verdict) >= _BADNESS.index(second.verdict) else second
    return Result(
        worse.verdict,
        worse.text,
        first.arrived | second.arrived,
        first.vanished | second.vanished,
        first.failed | second.failed,
    )


async def pull_all(
    transport: Transport,
    options: Options,
    stage: str,
    batches: Sequence[Sequence[Fetch]],
    watch: Callable[[], Watcher] = lambda: ignore,
    streams: int = 4,
) -> list[Result]:
    """`pull` of each batch, `streams` at a time, which share the bandwidth limit; results in order of batches.

    `watch` makes a watcher for each.
    """
    gate = asyncio.Semaphore(streams)
    limit = share(options.limit_bytes_s, min(streams, len(batches)))

    async def one(batch: Sequence[Fetch]) -> Result:
        async with gate:
            return await pull(transport, replace(options, limit_bytes_s=limit), stage, batch, watch())

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(batch)) for batch in batches]
    return [task.result() for task in tasks]


async def pull_attributes(transport: Transport, options: Options, room: str, paths: Sequence[bytes]) -> Result:
    """Bring directories and symlinks, with nothing in them, to the directory `room`, for their attributes."""

    async def some(asked: Sequence[bytes]) -> Result:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await _run(attribute_arguments(transport, options, room), _named(asked), ignore)
        except TimeoutError:
            return judge(asked, (), (), NO_DATA)

    return await _in_parts(some, paths, count(1))


async def find_unlike(
    transport: Transport, options: Options, root: str, paths: Sequence[bytes]
) -> tuple[Result, list[tuple[bytes, str]]]:
    """Which of `paths` have other attributes at the parent than below `root`, and which; nothing is changed."""
    asked = frozenset(paths)
    found: list[tuple[bytes, str]] = []

    def take(line: bytes) -> None:
        if (told := parse_unlike(line)) is not None and told[0] in asked:
            found.append(told)

    return await _run(unlike_arguments(transport, options, root), _named(paths), ignore, take), found


def _named(paths: Sequence[bytes]) -> list[bytes]:
    """Paths as rsync can be asked for them: the root has no name."""
    return [path or b"./" for path in paths]


async def push(
    transport: Transport,
    options: Options,
    root: str,
    paths: Sequence[bytes],
    delete: bool = False,
    watch: Watcher = ignore,
) -> Result:
    """Bring `paths` from `root` to a plain mirror: one rsync. With `delete`, paths that are gone here are deleted there."""
    return await _run(push_arguments(transport, options, root, delete), _named(paths), watch)


async def push_whole(
    transport: Transport, options: Options, root: str, delete: bool = False, most: int | None = None
) -> Result:
    """Bring all of `root` to a plain mirror, compared by rsync; with `delete`, what is not here goes there, at the end.

    Not more than `most` entries.
    """
    return await _run(whole_arguments(transport, options, root, delete, most), (), ignore)


async def find_loss(
    transport: Transport, options: Options, root: str, paths: Sequence[bytes] | None, delete: bool
) -> tuple[Result, Loss]:
    """What `push` of these paths, or `push_whole` without, would take away from the mirror; nothing is changed.

    RsyncError when the mirror says more of it than is held.
    """
    loss, said_bytes = Loss(), 0

    def take(line: bytes) -> None:
        nonlocal said_bytes
        said_bytes += len(line)
        if said_bytes > MAX_LOSS_BYTES:
            what = f"a dry run says over {MAX_LOSS_BYTES:,} bytes of what would be deleted at the mirror"
            raise RsyncError(
                what, "is it the right place there? if it is: delete there by hand what is not of this tree"
            )
        loss.take(line)

    arguments = (whole_arguments if paths is None else push_arguments)(transport, options, root, delete)
    return await _run(dry_arguments(arguments, LOOK_FORMAT), paths or (), ignore, take), loss


async def _run(
    arguments: Sequence[str],
    paths: Sequence[bytes],
    watch: Watcher,
    see: Callable[[bytes], None] | None = None,
    purse: str = "",
) -> Result:
    asked = frozenset(paths)
    arrived: set[bytes] = set()
    faults: list[Fault] = []

    def take(line: bytes) -> None:
        if see is not None:
            see(line)
        said = parse_line(line)
        if isinstance(said, Fault):
            if len(faults) < MAX_ERRORS_KEPT:
                faults.append(replace(said, path=said.path[:MAX_PATH_BYTES], why=said.why[:MAX_WHY]))
        elif isinstance(said, Progress):
            watch(said)
        elif said is not None and said.path in asked:
            # Of others only a hostile sender tells, whose messages come by the same way, and without end.
            arrived.add(said.path)
            watch(said)

    process = await _start([arguments[0], *_told_here(arguments[0]), *arguments[1:]], purse)
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


@lru_cache
def _told_here(binary: str) -> tuple[str, ...]:
    """What makes the other side tell its errors on the stream: since 3.2.3 they go to its own standard error, unread.

    Releases before that do so, and do not know the option.
    """
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, check=False, timeout=STOP_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(rb"rsync +version v?(\d+)\.(\d+)\.(\d+)", said)
    return ("--stderr=client",) if found and tuple(int(part) for part in found.groups()) >= (3, 2, 3) else ()


def environment() -> dict[str, str]:
    """What rsync is started with: this process's environment without what would change its ways or its words."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RSYNC_")}
    # Messages as they are parsed, and every byte of a name that is not ASCII escaped.
    return {**kept, "LC_ALL": "C"}


async def _start(arguments: Sequence[str], purse: str = "") -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment(), **({"NEARPATH_PURSE": purse} if purse else {})},
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
