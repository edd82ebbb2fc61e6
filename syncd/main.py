"""The `syncd` command: runs the daemon of a mirror node, and asks a running one."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Annotated

import typer

from core.io_life import Life, errors_printed, live
from core.io_log import get_logger, set_up_logging
from syncd import io_cli_set_up  # noqa: F401  its commands join those of io_cli
from syncd.io_cli import DEFAULT_CONFIG, ConfigFile, app
from syncd.io_daemon import Daemon

_log = get_logger("main")


@app.command()
def run(
    config: ConfigFile = DEFAULT_CONFIG,
    json_log: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Keep the trees of this node as they should be, until SIGTERM."""
    set_up_logging(json=json_log, debug=debug)
    with errors_printed("syncd"):
        asyncio.run(live(lambda: _start(config)))


async def _start(file: Path) -> Life:
    daemon = await Daemon.open(file)
    gc.freeze()  # what is there now stays: it need not be looked through
    _log.info("started", node=daemon.config.node, trees=list(daemon.config.trees))

    def status() -> str:
        return "; ".join(daemon.not_ready()) or f"{len(daemon.config.trees)} trees"

    async def reload() -> None:
        await daemon.reload()
        _log.info("reloaded", file=str(daemon.file))

    return Life(status=status, reload=reload, close=daemon.close)


def main() -> None:
    """Run the command line; an error an operator can act on is printed as such, exit status 1."""
    with errors_printed("syncd", 1):
        app()


if __name__ == "__main__":
    main()
