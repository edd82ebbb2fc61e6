"""Looking at a plain rsync server: the parent of a copy that has no syncd."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Sequence
from contextlib import suppress

from core import config_sync
from core.errors import NearpathError
from syncd.model import Change, Entry
from syncd.transfer.io_parent import ParentError
from syncd.transfer.io_rsync import environment
from syncd.transfer.plain import look_arguments, parse_look, transport_of
from syncd.transfer.rsync import Rsyncd, Ssh, Verdict, meaning

MAX_SAID_BYTES = 1 << 30
"""A dry run says about 100 bytes for each difference."""


class PlainParent:
    """A server of an existing fleet: `transport: ssh` or `transport: rsyncd`."""

    has_files = False

    def __init__(self, config: config_sync.Parent) -> None:
        self.every_s = config.every
        self.place = config.place or ""
        self._transport = transport_of(self.place, config.password_file)

    def connector(self, _tree: str) -> Ssh | Rsyncd:
        """How rsync reaches it."""
        return self._transport

    async def files(
        self, tree: str, entries: Sequence[Entry], stage: bytes, hard_links: bool = True
    ) -> dict[bytes, str]:
        """There is nobody to ask: everything comes by rsync."""
        raise NotImplementedError

    async def close(self) -> None:
        """There is nothing to close."""

    async def differences(self, root: str) -> list[Change]:
        """What is different there from the directory `root`. ParentError when the server cannot be asked."""
        arguments = look_arguments(self._transport, root)
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment(), "TZ": "UTC"},
            start_new_session=True,
        )
        try:
            said, wrong = await process.communicate()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        verdict, text = meaning(process.returncode or 0)
        if verdict not in (Verdict.DONE, Verdict.PARTIAL):
            last = wrong.decode("utf-8", "replace").strip().splitlines()[-2:]
            raise ParentError(f"{self.place}: {text}", " ".join(last)[:300] or "tried again")
        if len(said) > MAX_SAID_BYTES:
            raise NearpathError(f"{self.place} differs in too much ({len(said):,} bytes)", "copy it once with rsync -a")
        return parse_look(re.split(rb"\n", said), with_deletes=verdict is Verdict.DONE)
