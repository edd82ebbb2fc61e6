"""What the command line asks the running syncd."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from core.io_config import read_state_dir
from core.io_control import Peer, ask_control

SYNCD = Peer(
    "syncd", "is it running (`systemctl status syncd`)? another configuration is named with -c FILE or SYNCD_CONFIG"
)
_TIMEOUT_S = 90.0


def ask(config: Path, method: str, path: str, body: Any = None, timeout_s: float | None = _TIMEOUT_S) -> dict[str, Any]:
    """The JSON answer of the daemon that runs with `config`; NearpathError with its words when it refuses.

    `timeout_s` None: what takes as long as the tree is large.
    """
    state_dir = Path(read_state_dir(config))
    return asyncio.run(ask_control(SYNCD, state_dir, method, path, body, timeout_s=timeout_s))
