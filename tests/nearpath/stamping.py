"""An appliance with two nodes that may send stamps, and what they send."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from core.messages import SyncStamp, decode
from core.tokens import token_sha256
from nearpath.stamps import NODE_HEADER
from tests.nearpath.reporting import Box, make_config, open_box

NODES = {
    "n1": {"mirrors": ["m1"], "token_sha256": token_sha256("token of n1")},
    "n2": {"mirrors": ["m2"], "token_sha256": token_sha256("token of n2")},
}


def open_nodes(folder: Path) -> AbstractAsyncContextManager[Box]:
    """`open_box` with NODES."""
    return open_box(folder, config=make_config(nodes=NODES))


def stamp(tree: str = "main", **changes: Any) -> dict[str, Any]:
    return {"tree": tree, "version": 7, "root_hash": "ab" * 32, "lag_s": 1.5, "state": "fresh", "busy": False,
            "age_s": 0.25, **changes}  # fmt: skip


def node_headers(node: str, token: str | None = None) -> dict[str, str]:
    return {NODE_HEADER: node, "Authorization": f"Bearer {token or f'token of {node}'}"}


async def send(box: Box, *stamps: dict[str, Any], node: str = "n1", **changes: Any) -> tuple[int, str]:
    body = {"node": node, "wall_s": box.clock.at, "stamps": list(stamps), **changes}
    async with box.client.post("/v1/stamps", headers=node_headers(node), json=body) as answer:
        return answer.status, await answer.text()


async def stored(box: Box) -> dict[str, SyncStamp]:
    return {key: decode(SyncStamp, value.body) for key, value in (await box.bus.items("stamp/")).items()}


def counted(box: Box) -> list[tuple[str, str, int]]:
    return [(s.mirror, s.tree, s.version) for s in box.steerer.engine.stamps()]
