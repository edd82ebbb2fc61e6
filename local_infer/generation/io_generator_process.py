"""The gateway's end of a process that generates: start it, hand it requests, end it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.config_infer import InferConfig
from core.errors import NearpathError
from local_infer.generation.child_wire import Load, Message, Reader, Ready, Refused, WireError, pack
from local_infer.generation.io_onnx import TELEMETRY_OFF

LOAD_S = 300.0
"""A model of a few GB from a slow disk takes a minute or two; what takes longer hangs."""

_END_S = 2.0
_ROOT = str(Path(__file__).resolve().parents[2])


class Crashed(NearpathError):
    """The process ended, or said something that is no message."""


@dataclass(frozen=True, slots=True)
class About:
    """What a loaded process told of itself."""

    provider: str
    context: int
    guidance: bool


class GeneratorProcess:
    """A process with a loaded model. Make it with `await GeneratorProcess.start(...)`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._reader = Reader()
        self._come: deque[Message] = deque()
        self.about = About("", 0, False)
        self.retired = False
        """Ended on purpose."""

    @classmethod
    async def start(cls, config: InferConfig) -> GeneratorProcess:
        """Start one, loaded and warm; NearpathError when the model cannot be used, Crashed when the process ended."""
        generation = config.generation
        assert generation is not None
        paths = [_ROOT, *(path for path in [os.environ.get("PYTHONPATH")] if path)]
        # In the child's environment from the first instruction on, whatever is imported there first.
        env = {**os.environ, TELEMETRY_OFF: "1", "PYTHONPATH": os.pathsep.join(paths)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "local_infer.generation.io_generator_child", str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=env,
        )  # fmt: skip
        child = cls(process)
        try:
            models = config.models
            child.send(Load(generation.model, list(models.providers), models.threads, generation.context))
            async with asyncio.timeout(LOAD_S):
                message = await child.receive()
            if isinstance(message, Refused):
                raise NearpathError(f"the model in {generation.model} cannot be used", message.what)
            if not isinstance(message, Ready):
                raise Crashed("the generator process said something else than Ready")
            child.about = About(message.provider, message.context, message.guidance)
        except TimeoutError:
            await child.close()
            raise Crashed(f"the model in {generation.model} was not loaded within {LOAD_S:g} s") from None
        except BaseException:
            await child.close()
            raise
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: Message) -> None:
        """Write a message; when the process is gone, `receive` will tell."""
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(pack(message))

    async def receive(self) -> Message:
        """The next message; Crashed when there will be none."""
        assert self._process.stdout is not None
        while not self._come:
            data = await self._process.stdout.read(1 << 16)
            if not data:
                raise Crashed("the generator process ended")
            try:
                self._come += self._reader.feed(data)
            except WireError as error:
                raise Crashed("the generator process wrote no message", str(error)) from None
        return self._come.popleft()

    async def ended(self) -> int:
        """Its exit status, once it has ended; negative: the signal that ended it."""
        return await self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End it: it leaves when its input ends, and is made to when it does not."""
        self.retired = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
