"""The daemon's side of its stager (`io_stager_process`): a process that stages large answers with small files.

Python runs one thread at a time, so what a burst takes to be staged is taken from planning, publishing and recording it;
a process of its own has an interpreter of its own. It is a help and never a need: whatever comes while it starts, is busy
or is gone is staged here, with the same outcome.
"""

from __future__ import annotations

import asyncio
import math
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from core.io_log import get_logger
from syncd.model import Entry
from syncd.source.row import Written
from syncd.transfer import stage_codec
from syncd.transfer.io_small import stage_answer
from syncd.transfer.io_stager_process import ERRORS, receive
from syncd.transfer.stage_codec import Outcome
from syncd.transfer.wire import MAX_FILES_ASKED

WORTH_FILES = MAX_FILES_ASKED
WORTH_BYTES = 256 * 1024
"""An answer with so many files, or bytes, goes to the stager. A few files are here sooner than a word is there and back."""
PATIENCE_S = 120.0
"""For one answer, at most 4 MiB; a disk that takes longer keeps whoever writes to it waiting."""
IDLE_S = 60.0
REST_S = 60.0
"""After it died, or could not be started: what killed it (want of memory, most likely) may do it again."""
START_S = 30.0
STOP_S = 5.0

_BUFFER_BYTES = 1024 * 1024  # the kernel gives what net.core.wmem_max allows
_MODULE = "syncd.transfer.io_stager_process"
_TIME = struct.Struct("@ll")  # struct timeval
_BROKEN = (OSError, EOFError, ValueError, LookupError, TypeError, struct.error)
"""What there is instead of an answer: nothing in time, nobody there, or not of its form."""

_log = get_logger("syncd")


@dataclass(frozen=True, slots=True)
class _Helper:
    process: asyncio.subprocess.Process
    sock: socket.socket

    async def end(self, patience_s: float = STOP_S) -> None:
        """Let it end, or kill it when it does not; nothing is written by it any more when this returns."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        try:
            await asyncio.wait_for(self.process.wait(), patience_s)
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        self.sock.close()


class Stager:
    """See the module. One for all parents of a daemon, used from its event loop."""

    def __init__(
        self, patience_s: float = PATIENCE_S, idle_s: float = IDLE_S, rest_s: float = REST_S, worth: int = WORTH_FILES
    ) -> None:
        self._worth = worth
        self._patience_s = patience_s
        self._idle_s = idle_s
        self._rest_s = rest_s
        self._helper: _Helper | None = None
        self._is_busy = False
        self._starting: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._rest_until_s = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process; None when there is none that a request could go to."""
        return self._helper.process.pid if self._helper is not None else None

    async def stage(
        self, stage: bytes, entries: Sequence[Entry], data: bytes, hard_links: bool, written: Written
    ) -> tuple[int, dict[bytes, str]]:
        """`io_small.stage_answer`, there or here. Not to be cancelled: files would be written behind the caller's back."""
        if len(entries) >= self._worth or len(data) >= WORTH_BYTES:
            helper = self._helper
            if helper is None:
                self._start()
            elif not self._is_busy:
                outcome = await self._ask(helper, stage, entries, data, hard_links)
                if outcome is not None:
                    written.update(outcome.written)
                    if outcome.error is not None:
                        kind, what, fix = outcome.error
                        raise ERRORS[kind](what, fix)
                    return outcome.answered, outcome.failed
        return await asyncio.to_thread(stage_answer, stage, entries, data, hard_links, written)

    async def close(self) -> None:
        """End the process; from now on all is staged here."""
        self._rest_until_s = math.inf
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        self._rest()
        await asyncio.gather(*self._ending)

    async def _ask(
        self, helper: _Helper, stage: bytes, entries: Sequence[Entry], data: bytes, hard_links: bool
    ) -> Outcome | None:
        """What it answers; None when it did not, and is no more."""
        self._is_busy = True
        self._wait_idle(None)
        try:
            return await asyncio.to_thread(_exchange, helper.sock, stage, entries, data, hard_links)
        except _BROKEN as error:
            self._lost(f"process {helper.process.pid} is given up", error)
            if self._helper is helper:
                self._helper = None
            await helper.end(0.0)
            return None
        finally:
            self._is_busy = False
            if self._helper is helper:
                self._wait_idle(self._idle_s)

    def _start(self) -> None:
        if self._starting is None and time.monotonic() >= self._rest_until_s:
            self._starting = asyncio.create_task(self._run(), name="stager")

    async def _run(self) -> None:
        """Start the process, and wait until it can take a request."""
        helper: _Helper | None = None
        try:
            ours, theirs = _pair()
            try:
                with theirs:
                    process = await asyncio.create_subprocess_exec(
                        sys.executable, "-m", _MODULE, stdin=theirs.fileno(), stdout=asyncio.subprocess.DEVNULL
                    )
            except BaseException:
                ours.close()
                raise
            helper = _Helper(process, ours)
            _wait_at_most(ours, START_S)
            await asyncio.to_thread(receive, ours, len(stage_codec.READY))
            _wait_at_most(ours, self._patience_s)
            self._helper = helper
            self._wait_idle(self._idle_s)
        except _BROKEN as error:
            self._lost("it could not be started", error)
        finally:
            self._starting = None
            if helper is not None and self._helper is None:
                await helper.end(0.0)

    def _lost(self, what: str, error: Exception) -> None:
        self._rest_until_s = max(self._rest_until_s, time.monotonic() + self._rest_s)
        why = "no answer in time" if isinstance(error, BlockingIOError) else str(error)
        fix = "until it is started again, syncd does its work itself"
        _log.warning("stager_lost", what=what, why=why, fix=fix)

    def _wait_idle(self, idle_s: float | None) -> None:
        """Let the process rest after so long without a request; None: it has one."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = None if idle_s is None else asyncio.get_running_loop().call_later(idle_s, self._rest)

    def _rest(self) -> None:
        """Let the process end; the next large answer starts one again."""
        self._wait_idle(None)
        helper, self._helper = self._helper, None
        if helper is not None:
            task = asyncio.create_task(helper.end(), name="stager-end")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


def _pair() -> tuple[socket.socket, socket.socket]:
    """(the daemon's end, the stager's end)."""
    pair = socket.socketpair()
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return pair


def _wait_at_most(sock: socket.socket, patience_s: float) -> None:
    """BlockingIOError after so long. By the kernel: Python's own takes the interpreter anew after each piece sent."""
    patience = _TIME.pack(int(patience_s), int(patience_s % 1 * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, patience)


def _exchange(sock: socket.socket, stage: bytes, entries: Sequence[Entry], data: bytes, hard_links: bool) -> Outcome:
    """A request and its answer; one of _BROKEN when there is none. For a thread: it waits."""
    sock.sendall(stage_codec.encode_request(stage, entries, hard_links, data))
    sock.sendall(data)
    head = receive(sock, stage_codec.ANSWER_HEAD.size)
    return stage_codec.decode_answer(head, receive(sock, stage_codec.answer_bytes(head, len(entries))), entries)
