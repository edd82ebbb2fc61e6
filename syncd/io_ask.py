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
_LOOK_TIMEOUT_S = 15.0
"""For what is only looked at: nobody waits long for a daemon that hangs."""


def look(config: Path, path: str = "/v1/status") -> dict[str, Any]:
    """`ask`, for what changes nothing and is answered at once."""
    return ask(config, "GET", path, timeout_s=_LOOK_TIMEOUT_S)


def ask(config: Path, method: str, path: str, body: Any = None, timeout_s: float | None = _TIMEOUT_S) -> dict[str, Any]:
    """The JSON answer of the daemon that runs with `config`; NearpathError with its words when it refuses.

    `timeout_s` None: what takes as long as the tree is large.
    """
    state_dir = Path(read_state_dir(config))
    return asyncio.run(ask_control(SYNCD, state_dir, method, path, body, timeout_s=timeout_s))
