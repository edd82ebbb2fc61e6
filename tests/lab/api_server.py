"""An API for the lab, a program on a node: `python -m tests.lab.api_server NAME ADDRESS PORT`. Its answers say its name."""

from __future__ import annotations

import asyncio
import sys

from tests.local_infer.mock_upstream import MockUpstream, Reply


async def _serve(name: str, address: str, port: int) -> None:
    async with MockUpstream(Reply(text=name), host=address, port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
