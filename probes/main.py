"""The `probe-agent` command: runs the agent until SIGTERM, reads its configuration anew on SIGHUP, checks it; traces."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from core.config import AgentConfig
from core.errors import NearpathError
from core.io_config import read_agent_config
from core.io_life import Life, errors_printed, live
from core.io_log import get_logger, set_up_logging
from core.io_token import read_token
from probes.faults import LocalFault
from probes.io_agent import Agent
from probes.io_appliance import TOKEN_COMMAND, ApplianceClient, find_token_exposure
from probes.io_icmp import open_icmp
from probes.io_tcp import source_for

_log = get_logger("main")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The agent's configuration file.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check configuration, rights and appliance, then end.")
    ] = False,
    json_log: Annotated[bool, typer.Option("--log-json", help="Log one JSON object a line.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Log more.")] = False,
) -> None:
    """Measure the mirrors from this host and report to the appliance."""
    if context.invoked_subcommand:
        context.obj = config
        return
    if config is None:
        raise typer.BadParameter("give the agent's configuration file", param_hint="--config")
    set_up_logging(json=json_log, debug=debug)
    loaded = read_agent_config(config)
    if check:
        raise typer.Exit(asyncio.run(_check(loaded)))
    asyncio.run(live(lambda: _start(config, loaded)))


async def _start(file: Path, config: AgentConfig) -> Life:
    if config.appliance.startswith("http://"):
        _log.warning("token_unprotected", why=f"{config.appliance} is not https", fix="use https beyond this host")
    agent = await Agent.start(config)
    _log.info("started", agent=config.name, appliance=config.appliance, health=agent.health_addresses)

    async def reload() -> None:
        await agent.reconfigure(await asyncio.to_thread(read_agent_config, file))
        _log.info("reloaded", file=str(file))

    async def is_well() -> bool:
        return agent.is_alive()

    return Life(status=agent.status, reload=reload, close=agent.stop, is_well=is_well, work=agent.wait_failed)


# -- probe-agent trace


@app.command("trace")
def trace_path(
    context: typer.Context,
    target: Annotated[str, typer.Argument(help="An address, a name, or with -c a mirror that the agent probes.")],
    port: Annotated[
        int | None,
        typer.Option(
            "--port", "-p", min=1, max=65535, help="Send SYNs to it (443, or the port of the mirror's check)."
        ),
    ] = None,
    icmp: Annotated[bool, typer.Option("--icmp", help="Send pings instead.")] = False,
    ipv6: Annotated[bool | None, typer.Option("--ipv6/--ipv4", "-6/-4", help="For a name: only this family.")] = None,
    mtu: Annotated[bool, typer.Option("--mtu", help="Find the path MTU too, by large pings.")] = False,
    rounds: Annotated[int, typer.Option("--rounds", "-n", min=1, max=100)] = 5,
    max_hops: Annotated[int, typer.Option("--max-hops", min=1, max=64)] = 30,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, max=10.0, help="Seconds, for each round.")] = 1.0,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The agent's configuration file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the hops on the way to a mirror, where time and packets are lost, and the path MTU. Needs raw sockets (root)."""
    # Only this command carries scapy: an agent that runs for months does without its 20 MB.
    from probes.trace.io_command import TraceOptions, run_trace

    file: Path | None = config or context.obj
    agent = read_agent_config(file) if file else None
    run_trace(target, agent, TraceOptions(port, icmp, ipv6, mtu, rounds, max_hops, timeout_s, json))


# -- probe-agent --check


async def _check(config: AgentConfig) -> int:
    """Try what the agent will need and print one line each; the exit status."""
    faults = 0
    for name, what in (
        ("token", _check_token(config)),
        ("state_dir", _check_state_dir(config)),
        ("icmp ipv4", _check_icmp(config, 4)),
        ("icmp ipv6", _check_icmp(config, 6)),
        ("appliance", await _check_appliance(config)),
    ):
        good, text = what
        faults += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: {text}")
    return 1 if faults else 0


def _check_token(config: AgentConfig) -> tuple[bool, str]:
    try:
        read_token(config.token_file, TOKEN_COMMAND)
    except NearpathError as error:
        return False, str(error)
    exposure = find_token_exposure(config.token_file)
    return exposure is None, exposure or config.token_file


def _check_state_dir(config: AgentConfig) -> tuple[bool, str]:
    folder = Path(config.state_dir)
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return True, f"{folder} can be written"
    return False, f"{nearest} cannot be written by this user: give it to the agent's user"


def _check_icmp(config: AgentConfig, family: int) -> tuple[bool, str]:
    version = 4 if family == 4 else 6
    try:
        sock, raw = open_icmp(version, source_for(config.source, version))  # type: ignore[arg-type]
    except (LocalFault, OSError) as error:
        return False, str(error)
    sock.close()
    return True, "raw socket (CAP_NET_RAW)" if raw else "ping socket, no privilege needed"


async def _check_appliance(config: AgentConfig) -> tuple[bool, str]:
    try:
        client = ApplianceClient(config)
    except NearpathError as error:
        return False, str(error)
    try:
        targets = await client.fetch_targets("")
    except NearpathError as error:
        return False, str(error)
    finally:
        await client.close()
    return True, f"{config.appliance} gives {len(targets.targets) if targets else 0} targets"


def main() -> None:
    """Run the command line; an error an operator can act on is printed as such."""
    with errors_printed("probe-agent"):
        app()


if __name__ == "__main__":
    main()
