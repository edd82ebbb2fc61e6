"""What the command line asks the running appliance."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.io_config import read_state_dir
from core.io_control import Peer, ask_control

_APPLIANCE = Peer(
    "appliance", "start it with `nearpath up -c FILE`, or name its configuration with -c FILE (or NEARPATH_CONFIG)"
)


def ask(
    config_file: Path, method: str, path: str, body: Any = None, params: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON answer of the appliance that runs with `config_file`; NearpathError with its words when it refuses."""
    return asyncio.run(ask_control(_APPLIANCE, Path(read_state_dir(config_file)), method, path, body, params))
