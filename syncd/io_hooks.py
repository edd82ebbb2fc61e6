"""Running an operator's hook: a command without a shell, in its own session, ended after its time."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress

MAX_SHOWN = 300


async def run_hook(command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> str:
    """Run `command`; "" when it ended with 0, else what became of it, with the end of what it printed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    except OSError as error:
        return f"{command[0]} cannot be started: {error.strerror}"
    try:
        async with asyncio.timeout(timeout_s):
            said, _ = await process.communicate()
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(error, TimeoutError):
            return f"{command[0]} took more than {timeout_s:g} s and was ended"
        raise
    if process.returncode:
        end = said.decode("utf-8", "replace").strip()[-MAX_SHOWN:]
        return f"{command[0]} ended with {process.returncode}: {end}"
    return ""
