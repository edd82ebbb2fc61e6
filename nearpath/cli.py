"""The `nearpath` command: each command is a thin shell around a function of this package."""

from __future__ import annotations

import getpass
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from core.errors import NearpathError
from core.io_config import read_agent_config, read_config
from core.io_token import issue_token
from nearpath.client import ask
from nearpath.views import show_explanation, show_status

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="nearpath: every client gets the mirror that is fastest from where it is, up as seen from there, and fresh.",
)
regions_app = typer.Typer(no_args_is_help=True, help="Look into the region tables.")
app.add_typer(regions_app, name="regions")

ConfigFile = Annotated[
    Path, typer.Option("-c", "--config", envvar="NEARPATH_CONFIG", help="The appliance's configuration file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_CONFIG = Path("/etc/nearpath/nearpath.yaml")
_PIPE_WIDTH = 200
"""Columns when the output is not a terminal: nothing is cut that somebody wants to grep."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


@app.command()
def up(
    config: ConfigFile = DEFAULT_CONFIG,
    no_dns: Annotated[bool, typer.Option("--no-dns", help="Only decide; a `dnsd` beside it answers.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object per log line.")] = False,
    debug: Annotated[bool, typer.Option("--debug")] = False,
) -> None:
    """Run the appliance: DNS, report interface, steering. SIGHUP reloads, SIGTERM stops."""
    from core.io_log import set_up_logging
    from nearpath.run import run_appliance

    set_up_logging(json=log_json, debug=debug)
    run_appliance(config, with_dns=not no_dns)


@app.command()
def status(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Show mirrors x regions: RTT, loss, age, state, choice; the agents; and how fresh each mirror's content is."""
    picture = ask(config, "GET", "/v1/status")
    if as_json:
        _print_json(picture)
    else:
        show_status(console, picture)


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="The steered name.")],
    client: Annotated[str, typer.Option("--client", help="The client's IP or prefix (IP/LEN).")],
    kind: Annotated[str, typer.Option("--type", help="A or AAAA.")] = "A",
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
) -> None:
    """Show why a client gets the answer it gets: each candidate, each step, which step won, how old the data is."""
    if kind.upper() not in ("A", "AAAA"):
        raise NearpathError(f"{kind!r} is not a steered type", "ask for A or AAAA")
    story = ask(config, "GET", "/v1/explain", params={"name": name, "client": client, "type": kind.upper()})
    if as_json:
        _print_json(story)
    else:
        show_explanation(console, story)


@app.command()
def drain(mirror: str, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Take a mirror out of all answers; kept over restarts until `nearpath undrain`."""
    ask(config, "POST", "/v1/drain", {"mirror": mirror, "by": getpass.getuser()})
    console.print(f"{mirror} is drained: answers given before live on for their TTL")


@app.command()
def undrain(mirror: str, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Let a drained mirror be answered again."""
    ask(config, "POST", "/v1/undrain", {"mirror": mirror, "by": getpass.getuser()})
    console.print(f"{mirror} is no longer drained")


@app.command()
def reload(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Make the running appliance read its configuration again; on a fault it keeps the old one and this says why."""
    ask(config, "POST", "/v1/reload")
    console.print("reloaded")


@app.command("check-config")
def check_config(
    file: Annotated[Path | None, typer.Argument(help="Default: the one named with -c, or NEARPATH_CONFIG.")] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    agent: Annotated[bool, typer.Option("--agent", help="FILE is a probe agent's configuration.")] = False,
) -> None:
    """Check a configuration file and every file it names; prints all faults with line and path."""
    file = file or config
    if agent:
        read_agent_config(file)
    else:
        from nearpath.loading import load

        loaded = load(read_config(file))
        for warning in loaded.warnings:
            console.print(f"warning: {warning}")
    console.print(f"{file}: good")


@app.command("config-schema")
def config_schema(
    agent: Annotated[bool, typer.Option("--agent", help="The probe agent's schema.")] = False,
    syncd: Annotated[bool, typer.Option("--syncd", help="syncd's schema.")] = False,
    infer: Annotated[bool, typer.Option("--infer", help="local-infer's schema.")] = False,
) -> None:
    """Print the JSON schema of a configuration file, for editors; the appliance's unless another is named."""
    from nearpath.schema import FILES, schema_text

    name = "agent" if agent else "syncd" if syncd else "local-infer" if infer else "nearpath"
    print(schema_text(FILES[name]), end="")


@app.command("agent-token")
def agent_token(
    file: Annotated[Path | None, typer.Option(help="Write the token here (mode 0600), not to the screen.")] = None,
) -> None:
    """Draw a token for a probe agent or a mirror node's syncd; prints the line for the appliance's configuration."""
    for line in issue_token(file, "the agent or of syncd", "the appliance's configuration, under agents or nodes"):
        console.print(line, soft_wrap=True)


@app.command()
def doctor(
    config: ConfigFile = DEFAULT_CONFIG,
    parent: Annotated[
        str | None, typer.Option(help="Ask this server of the parent zone (ADDR[:PORT]) for the delegation.")
    ] = None,
    resolver: Annotated[
        str | None, typer.Option(help="Find the parent through this resolver (ADDR[:PORT]), not /etc/resolv.conf.")
    ] = None,
    ns_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the servers the delegation names; other than 53 in labs.")
    ] = 53,
    agent: Annotated[
        bool, typer.Option("--agent", help="The configuration is a probe agent's: check the agent on this host.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check an installation the way a delegation fails in practice, and say what to do."""
    from nearpath.doctor import examine, show_findings
    from nearpath.doctor_agent import examine_agent

    findings = examine_agent(config) if agent else examine(config, parent=parent, resolver=resolver, ns_port=ns_port)
    if as_json:
        _print_json([finding.as_json() for finding in findings])
    else:
        show_findings(console, findings)
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="An RTT matrix (.npz), see docs/steering.md.")],
    mirrors: Annotated[int, typer.Option("--mirrors", "-k", min=1, help="How many nodes are mirrors.")] = 10,
    seeds: Annotated[str, typer.Option(help="Random draws of the mirrors, comma separated.")] = "11,12,13",
    as_json: AsJson = False,
) -> None:
    """Run the decision code over a recorded RTT matrix, beside simpler policies."""
    from nearpath.replaying import replay_file

    try:
        draws = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise NearpathError(f"{seeds!r} are not seeds", "write whole numbers with commas, such as 11,12,13") from None
    replay_file(console, file, mirrors, draws, as_json)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo keeps its files.")] = Path("run"),
    any_port: Annotated[bool, typer.Option("--any-port", help="Take free ports, not the usual ones.")] = False,
) -> None:
    """Start the appliance on loopback with three small mirrors, three agents, real probes and real answers."""
    from nearpath.demo.run import run_demo

    sys.exit(run_demo(folder, any_port=any_port))


@app.command("install-units")
def install_units(
    root: Annotated[Path, typer.Option(help="Install below this folder.")] = Path("/"),
    user: Annotated[str | None, typer.Option(help="Run the daemons as this user, not as users of their own.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite units that were changed locally.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Place the systemd units of all daemons, their user and their limits."""
    from nearpath.units import install

    for line in install(root, user, force=force, dry_run=dry_run):
        console.print(line, soft_wrap=True)


@regions_app.command("lint")
def regions_lint(config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Report overlaps, conflicts and gaps of the region tables."""
    from nearpath.loading import lint_config_regions

    findings = lint_config_regions(read_config(config))
    if as_json:
        _print_json([{"severity": f.severity, "code": f.code, "text": f.text} for f in findings])
    else:
        for finding in findings:
            console.print(f"{finding.severity:<8}{finding.code:<20}{finding.text}", soft_wrap=True)
        console.print(f"{len(findings)} findings")
    if any(f.severity == "error" for f in findings):
        raise typer.Exit(1)


@regions_app.command("lookup")
def regions_lookup(
    client: Annotated[str, typer.Argument(help="IP or IP/LEN.")], config: ConfigFile = DEFAULT_CONFIG
) -> None:
    """Show which region a client is in, and which table and prefix say so."""
    from dnsd.io_files import read_regions
    from nearpath.control import parse_client

    regions = read_regions(read_config(config))
    shown, family, address = parse_client(client)
    region, scope_len = regions.lookup(family, address)
    console.print(f"{shown}: {regions.tree.names[region]} (scope /{scope_len}; {regions.provenance(family, address)})")
