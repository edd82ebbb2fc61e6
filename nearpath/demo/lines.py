"""What the demo prints: lines to try in another terminal. tests/nearpath/test_demo.py runs them as they stand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console

from nearpath.demo.place import API_SERVICE, MIRROR_ADDRESS, ORIGIN, REGIONS, SERVICE, Place, nearest


def command(name: str) -> str:
    """A program of ours: the one beside this Python, else the one that the PATH has."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def show_lines(console: Console, place: Place) -> None:
    """Print what to try."""
    for line in _lines(place):
        console.print(line, markup=line.startswith("[bold"))
    sys.stdout.flush()


def _lines(place: Place) -> list[str]:
    name = SERVICE.rstrip(".")
    dig = f"dig @127.0.0.1 -p {place.ports['dns']} +short {name}"
    nearpath = os.path.relpath(command("nearpath"))
    config = f"-c {os.path.relpath(place.appliance)}"
    http = place.ports["http"]
    clients = [
        f"   {dig} +subnet={prefix:16} # a client in {region:7} -> {MIRROR_ADDRESS[mirror]} ({mirror})"
        for (region, mirror), (_head, prefix) in zip(nearest().items(), REGIONS.values(), strict=True)
    ]
    dig_api = f"dig @127.0.0.1 -p {place.ports['dns']} +short {API_SERVICE.rstrip('.')}"
    gateway = f"http://{MIRROR_ADDRESS['tokyo']}:{place.ports['gateway']}/v1/chat/completions"
    ask = f"curl -si --json @{os.path.relpath(place.ask)} {gateway}"
    stopped = os.path.relpath(place.folder / "sync-frankfurt.pid")
    return [
        "",
        "[bold green]nearpath is up.[/] Now, in another terminal:",
        "",
        "[bold]1. Each client gets the mirror that is fastest from where it is[/]",
        *clients,
        "",
        "[bold]2. See all of it, and why[/]",
        f"   {nearpath} status {config}",
        f"   {nearpath} explain {name} --client 198.51.100.7 {config}",
        "",
        "[bold]3. Make tokyo slow, and ask again a few seconds later: the answer has followed[/]",
        f"   curl -X POST 'http://{MIRROR_ADDRESS['tokyo']}:{http}/delay?ms=300'      # and -X DELETE .../delay to undo",
        "",
        "[bold]4. Publish a file at the origin: a moment later every mirror serves it[/]",
        f"   date > {os.path.relpath(place.content(ORIGIN) / 'now.txt')}; sleep 1; "
        f"curl -s http://{MIRROR_ADDRESS['tokyo']}:{http}/files/now.txt",
        f"   {os.path.relpath(command('syncd'))} status -c {os.path.relpath(place.node('tokyo'))}",
        "",
        "[bold]5. Freeze frankfurt's syncd: it is still up, but 15 s later europe is sent where the files are fresh[/]",
        f"   kill -STOP $(cat {stopped})      # and kill -CONT to undo",
        f"   {nearpath} explain {name} --client 192.0.2.7 {config}",
        "",
        "[bold]6. Ask tokyo's API gateway; cut it off from the API, ask again: it answers, and says how; DNS leaves it[/]",
        f"   {ask}",
        f"   curl -X POST http://{MIRROR_ADDRESS['tokyo']}:{http}/cut      # and -X DELETE to undo",
        f"   {dig_api} +subnet={REGIONS['asia'][1]}",
        "",
        "[bold]7. Take a mirror out by hand, or break the configuration[/]",
        f"   {nearpath} drain frankfurt {config}      # and undrain",
        f"   edit {os.path.relpath(place.appliance)}, then: {nearpath} reload {config}",
        "",
        f"metrics: curl http://127.0.0.1:{place.ports['metrics']}/metrics    "
        f"logs: {os.path.relpath(place.folder)}/*.log",
        "end: Ctrl-C",
    ]
