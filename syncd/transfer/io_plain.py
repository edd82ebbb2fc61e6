"""Looking at a plain rsync server: the parent of a copy that has no syncd."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence

from core import config_sync
from syncd.transfer.io_parent import ParentError
from syncd.transfer.io_rsync import end, environment
from syncd.transfer.plain import Look, is_of_root, look_arguments, parse_look, parse_unread, transport_of, unread_text
from syncd.transfer.rsync import Rsyncd, Ssh, Verdict, meaning
from syncd.transfer.wire import Cursor

MAX_SAID_BYTES = 256 << 20
"""A dry run says about 100 bytes for each difference: 2.5 million of them, and their paths, are held at once."""
_MAX_WRONG_BYTES = 64 * 1024
"""Of what rsync says on its standard error, the last so many are kept."""
_CHUNK_BYTES = 256 * 1024
_PARTLY = 23
"""rsync's exit code when something could not be listed; 24 is of names that vanished meanwhile: a live tree."""


class PlainParent:
    """A server of an existing fleet: `transport: ssh` or `transport: rsyncd`."""

    files = None
    """there is nobody to ask: everything comes by rsync"""

    def __init__(self, config: config_sync.Parent) -> None:
        self.every_s = config.every
        self.place = self.where = config.place or ""
        self.cursor = Cursor(hashlib.blake2b(self.place.encode(), digest_size=16).digest(), 0)
        """which says: the copy has content, and it came from this server"""
        self._transport = transport_of(self.place, config.password_file)

    def connector(self, _tree: str) -> Ssh | Rsyncd:
        """How rsync reaches it."""
        return self._transport

    async def close(self) -> None:
        """There is nothing to close."""

    async def differences(self, root: str, exclude: Sequence[str] = ()) -> Look:
        """What is different there from the directory `root`, but for `exclude`. ParentError when nothing can be listed."""
        arguments = look_arguments(self._transport, root, exclude)
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment(), "TZ": "UTC"},
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            said, wrong = await asyncio.gather(self._said(process.stdout), _last(process.stderr))
            await process.wait()
        except BaseException:
            await end(process)
            raise
        return self._judge(process.returncode or 0, said, wrong)

    def _judge(self, code: int, said: bytes, wrong: bytes) -> Look:
        verdict, text = meaning(code)
        if verdict not in (Verdict.DONE, Verdict.PARTIAL):
            last = wrong.decode("utf-8", "replace").strip().splitlines()[-2:]
            raise ParentError(f"{self.place}: {text}", " ".join(last)[:300] or "tried again")
        changes = parse_look(re.split(rb"\n", said), with_deletes=verdict is Verdict.DONE)
        if code != _PARTLY:
            return Look(changes, is_settled=verdict is Verdict.DONE)
        unread = parse_unread(wrong)
        if root := next((fault for fault in unread if is_of_root(fault)), None):
            where = root.path.decode("utf-8", "backslashreplace")
            raise ParentError(
                f"{self.place}: {where!r} cannot be listed: {root.why}",
                "is it there, mounted, and readable for the rsync there (its `uid`, or the ssh user)?",
            )
        what, fix = unread_text(self.place, unread, wrong)
        return Look(changes, unread, f"{what}: {fix}")

    async def _said(self, stream: asyncio.StreamReader) -> bytes:
        """All that is said, which a hostile server could go on with for ever."""
        said = bytearray()
        while data := await stream.read(_CHUNK_BYTES):
            said += data
            if len(said) > MAX_SAID_BYTES:
                raise ParentError(
                    f"{self.place} differs in too much (over {MAX_SAID_BYTES:,} bytes of names)",
                    "if that is meant, copy it once with rsync -a",
                )
        return bytes(said)


async def _last(stream: asyncio.StreamReader) -> bytes:
    """The end of all that is said."""
    said = b""
    while data := await stream.read(_CHUNK_BYTES):
        said = (said + data)[-_MAX_WRONG_BYTES:]
    return said
