"""The command line's side of the control socket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from core.errors import NearpathError
from core.io_config import read_state_dir

CONTROL_SOCKET = "control.sock"
_TIMEOUT_S = 30.0


def ask(config_file: Path, method: str, path: str, **request: Any) -> dict[str, Any]:
    """The JSON answer of the appliance that runs with `config_file`; NearpathError with its words when it refuses."""
    socket_path = Path(read_state_dir(config_file)) / CONTROL_SOCKET
    return asyncio.run(_ask(socket_path, method, path, request))


async def _ask(socket_path: Path, method: str, path: str, request: dict[str, Any]) -> dict[str, Any]:
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    connector = aiohttp.UnixConnector(path=str(socket_path))
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://nearpath{path}", **request) as response,
        ):
            body: dict[str, Any] = await response.json()
            if response.status != 200:
                raise NearpathError(str(body.get("error", "refused")), str(body.get("fix", "")))
            return body
    except FileNotFoundError:
        raise _not_running(socket_path) from None
    except aiohttp.ClientConnectorError as error:
        if isinstance(error.os_error, PermissionError):
            raise NearpathError(f"no permission for {socket_path}", "run as root or as a member of its group") from None
        raise _not_running(socket_path) from None
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NearpathError(f"the appliance gave no answer: {error or 'timeout'}", "see its log") from None


def _not_running(socket_path: Path) -> NearpathError:
    return NearpathError(
        f"no appliance answers at {socket_path}",
        "start it with `nearpath up -c FILE`, or name its configuration with -c FILE (or NEARPATH_CONFIG)",
    )
