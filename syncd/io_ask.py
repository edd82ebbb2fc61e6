"""The command line's side of the control socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from core.errors import NearpathError
from core.io_config import read_state_dir
from syncd.io_control import CONTROL_SOCKET

TIMEOUT_S = 90.0


def ask(config: Path, method: str, path: str, body: Any = None, timeout_s: float | None = TIMEOUT_S) -> dict[str, Any]:
    """The JSON answer of the daemon that runs with `config`; NearpathError with its words when it refuses.

    `timeout_s` None: what takes as long as the tree is large.
    """
    return asyncio.run(ask_at(Path(read_state_dir(config)) / CONTROL_SOCKET, method, path, body, timeout_s))


async def ask_at(place: Path, method: str, path: str, body: Any, timeout_s: float | None) -> dict[str, Any]:
    """Like `ask`, with the place of the socket."""
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.UnixConnector(path=str(place))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://syncd{path}", json=body) as response,
        ):
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise NearpathError(str(answer.get("error", "refused")), str(answer.get("fix", "")))
            return answer
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, PermissionError):
            raise NearpathError(
                f"no permission for {place}", "run it as root, as the daemon's user, or as a member of its group"
            ) from None
        raise NearpathError(
            f"no syncd answers at {place}",
            "is it running (`systemctl status syncd`)? another configuration is named with -c FILE or SYNCD_CONFIG",
        ) from None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NearpathError(f"syncd gave no answer: {error or 'not in time'}", "see its log") from None
