"""A TCP proxy on loopback that breaks connections: some after a random number of bytes, all of them at once when told."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from types import TracebackType

from tests.syncd.nodes import Node, free_port

MEAN_BYTES = 20_000
"""Through one connection until it breaks, of those that do."""


class Cutter:
    """Stands for `node` in the configuration of its children (`name`, `url`). Counts what it did."""

    def __init__(self, node: Node, seed: int, cut_ratio: float = 0.0, delay_s: float = 0.0) -> None:
        self.name = node.name
        self.port = free_port()
        self.cuts = self.passed = self.connections = 0
        self.cut_ratio = cut_ratio
        """of the connections to come; 0: none breaks"""
        self.delay_s = delay_s
        """of what is passed on, each way"""
        self._behind = node.port
        self._rng = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"cutter-{node.name}", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Cutter:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", self.port), self._loop).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut_all(self) -> None:
        """Break every connection that is open now."""
        self._loop.call_soon_threadsafe(self._cut_all)

    def _cut_all(self) -> None:
        self.cuts += len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = [-1]
        if self._rng.random() < self.cut_ratio:
            left = [int(self._rng.expovariate(1 / MEAN_BYTES))]
        try:
            behind, ahead = await asyncio.open_connection("127.0.0.1", self._behind)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, ahead}
        self._writers |= both
        try:
            await asyncio.gather(self._pass(reader, ahead, both, left), self._pass(behind, writer, both, left))
        finally:
            self._writers -= both
            for each in both:
                each.close()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        both: set[asyncio.StreamWriter],
        left: list[int],
    ) -> None:
        """Pass bytes on in one direction until the end, or until `left` for both directions are through."""
        with suppress(OSError):
            while data := await source.read(1 << 16):
                self.passed += len(data)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if 0 <= left[0] < len(data):
                    target.write(data[: left[0]])
                    await target.drain()
                    self.cuts += 1
                    for each in both:
                        each.transport.abort()
                    return
                left[0] -= len(data) if left[0] >= 0 else 0
                target.write(data)
                await target.drain()
            if target.can_write_eof():
                target.write_eof()
