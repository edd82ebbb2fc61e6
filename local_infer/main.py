"""The `local-infer` command: runs the gateway, checks its configuration, makes keys, builds the FAQ index, drills."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from core.io_config_infer import read_infer_config
from core.io_life import Life, errors_printed, live
from core.io_log import get_logger, set_up_logging
from local_infer.drill.io_drill import drill_command
from local_infer.gateway.keys import KEY_BYTES, make_key
from local_infer.io_check import check_all
from local_infer.io_daemon import Daemon
from local_infer.load.io_bench import bench_command
from local_infer.retrieval.io_build import build_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", envvar="LOCAL_INFER_CONFIG", help="The gateway's configuration file.")
]
_DEFAULT_FILE = Path("/etc/nearpath/local-infer.yaml")

_YOUNG_OBJECTS = 5000
"""New objects between two looks of the cycle collector (CPython: 700): a tenth less CPU for each request, measured."""

_log = get_logger("main")


@app.callback()
def _group() -> None:
    """An API gateway that keeps answering when its upstreams cannot be reached, and says so."""


@app.command()
def run(
    config: ConfigFile = _DEFAULT_FILE,
    json_log: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Serve until SIGTERM; SIGHUP reads the configuration anew."""
    set_up_logging(json=json_log, debug=debug)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(live(lambda: _start(config)))


@app.command()
def check(config: ConfigFile = _DEFAULT_FILE) -> None:
    """Check configuration, files, rights and upstreams; exit status 0 when all is well."""
    raise typer.Exit(asyncio.run(check_all(read_infer_config(config))))


app.command("check-config", hidden=True)(check)


@app.command("new-key")
def new_key() -> None:
    """Make a key for a client: the key for the client, its hash for the configuration."""
    key, digest = make_key(os.urandom(KEY_BYTES))
    print(f"key:          {key}\ntoken_sha256: {digest}")


app.command("key", hidden=True)(new_key)
app.command("build")(build_command)
app.command("drill")(drill_command)
app.command("bench")(bench_command)


async def _start(file: Path) -> Life:
    daemon = await Daemon.open(file)
    # What is here now stays: the collector need not look at it again and again, which costs milliseconds each time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, 20, 20)
    _log.info("started", node=daemon.config.node, listen=daemon.addresses, metrics=daemon.metrics_addresses)

    async def reload() -> None:
        await daemon.reload()
        _log.info("reloaded", file=str(daemon.file), listen=daemon.addresses, restart_needed=daemon.restart_needed)

    return Life(status=daemon.status, reload=reload, close=daemon.close)


def main() -> None:
    """Run the command line; an error an operator can act on is printed as such."""
    with errors_printed("local-infer"):
        app()


if __name__ == "__main__":
    main()
