"""Running an operator's hook: a command without a shell, in its own session, ended after its time."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

MAX_SHOWN = 300


async def run_hook(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> str:
    """Run `command`; "" when it ended with 0, else what became of it, with the end of what it printed."""
    # A file, not a pipe: what the command leaves running in the background holds its output, and nobody waits for that.
    with tempfile.TemporaryFile(prefix="syncd-hook-") as output:
        return await _run(command, environment, timeout_s, output)


async def _run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float, output: IO[bytes]) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        return f"{command[0]} cannot be started: {error.strerror}"
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(error, TimeoutError):
            return f"{command[0]} took more than {timeout_s:g} s and was ended"
        raise
    if process.returncode:
        output.seek(max(0, output.seek(0, os.SEEK_END) - 4 * MAX_SHOWN))
        end = output.read(4 * MAX_SHOWN).decode("utf-8", "replace").strip()[-MAX_SHOWN:]
        return f"{command[0]} ended with {process.returncode}: {end}"
    return ""
