"""The commands that ask a running syncd."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from core.errors import NearpathError
from syncd.io_ask import ask, look
from syncd.io_cli_show import now_wall_s, plan_view, printable, status_view

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="syncd: keep the trees of a mirror node as their origins have them, and say how fresh they are.",
)

ConfigFile = Annotated[Path, typer.Option("--config", "-c", envvar="SYNCD_CONFIG", help="syncd's configuration file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TreeName = Annotated[str, typer.Argument(metavar="TREE", help="Name of a tree in the configuration.")]
DEFAULT_CONFIG = Path("/etc/nearpath/syncd.yaml")

_PIPE_WIDTH = 200
"""Columns when the output is not a terminal: nothing is cut that somebody wants to grep."""
_LOOK_EVERY_S = 0.2
_WATCH_EVERY_S = 1.0
_GRACE_S = {"held": 1.0, "disk-full": 1.0, "stopped": 1.0, "no-parent": 3.0, "failed": 3.0, "retrying": 3.0}
"""A bad state that is still there so long after the question is the answer: what it was before has ended by then."""

console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def _print_json(value: Any) -> None:
    # ASCII, so that a name that is no UTF-8 can be printed: it comes back with surrogateescape.
    print(json.dumps(value, indent=2))


@app.command()
def status(
    config: ConfigFile = DEFAULT_CONFIG,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew every second.")] = False,
) -> None:
    """Show every tree: state and why, parents, progress, lag, children, what is held and what could not be done."""
    answer = look(config)
    if as_json:
        _print_json(answer)
        return
    if not watch:
        console.print(status_view(answer, now_wall_s()))
        return
    try:
        with Live(status_view(answer, now_wall_s()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(_WATCH_EVERY_S)
                live.update(status_view(look(config), now_wall_s()), refresh=True)
    except KeyboardInterrupt:
        return


@app.command()
def pull(
    tree: TreeName,
    config: ConfigFile = DEFAULT_CONFIG,
    progress: Annotated[bool, typer.Option("--progress", help="Show progress bars.")] = False,
    timeout_s: Annotated[
        float | None, typer.Option("--timeout", min=1, help="Give up after so many seconds; syncd goes on.")
    ] = None,
) -> None:
    """Look at the parent now, and wait until the copy is current; exit status 1, with the reason, when it cannot be."""
    asked_s = ask(config, "POST", "/v1/pull", {"tree": tree})["asked_s"]
    _wait_current(config, tree, asked_s, progress, timeout_s)
    console.print(f"{tree} is current")


def _wait_current(config: Path, tree: str, asked_s: float, with_bars: bool, timeout_s: float | None) -> None:
    started_s = time.monotonic()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not with_bars, transient=True) as bars:
        bar = bars.add_task(tree, total=None)
        while True:
            now = _tree_of(look(config), tree)
            if now["state"] == "current" and now["current_asked_s"] >= asked_s:
                return
            if (told := now["fetching"]) is not None:
                words = f"{tree}: {told['done_files']:,} of {told['files']:,} files"
                bars.update(bar, description=words, total=told["bytes"], completed=told["done_bytes"])
            else:
                bars.update(bar, description=f"{tree}: {now['state']}")
            waited_s = time.monotonic() - started_s
            if waited_s > _GRACE_S.get(now["state"], math.inf):
                raise NearpathError(f"tree {tree} is not current: {now['state']}", printable(_reason(tree, now)))
            if timeout_s is not None and waited_s > timeout_s:
                raise NearpathError(f"tree {tree} is not current after {timeout_s:g} s: {now['state']}", "it goes on")
            time.sleep(_LOOK_EVERY_S)


def _reason(tree: str, now: dict[str, Any]) -> str:
    if now["state"] == "no-parent" and (said := [p["why"] for p in now["parents"] if p["why"]]):
        return "; ".join(said)
    if now["why"]:
        return str(now["why"])
    if now["troubles"]:
        first = now["troubles"][0]
        return f"{now['waiting']:,} changes wait, such as {first['path']}: {first['why']}"
    return f"`syncd status` says more of {tree}"


def _tree_of(snapshot: dict[str, Any], tree: str) -> dict[str, Any]:
    found: dict[str, Any] | None = snapshot["trees"].get(tree)
    if found is None:
        raise NearpathError(f"there is no tree {tree!r}", f"trees: {', '.join(snapshot['trees'])}")
    return found


@app.command()
def verify(
    tree: TreeName,
    config: ConfigFile = DEFAULT_CONFIG,
    repair: Annotated[bool, typer.Option(help="Also make it as the parent has it.")] = True,
    contents: Annotated[
        bool, typer.Option("--contents", help="Also read every content now, and compare it with what it was.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every name of a copy's disk and compare it with the parent; exit status 1 when something was different.

    Compared are names, kinds, sizes, times, permissions and targets of symlinks. At an origin: every name is looked at, and
    what changed unseen is told to the children.
    """
    answer = ask(config, "POST", "/v1/verify", {"tree": tree, "repair": repair}, timeout_s=None)
    wrong, first = _read_contents(config, tree, repair) if contents else ([], 0)
    if as_json:
        _print_json(answer | ({"wrong_contents": wrong, "first_read": first} if contents else {}))
    elif answer["role"] == "origin":
        console.print(f"{tree}: this node is its origin; every name is being looked at, see `syncd status`")
    else:
        _show_findings(tree, answer)
    if contents and not as_json:
        for found in wrong:
            console.print(f"{printable(found['path'])}: {printable(found['what'])}", soft_wrap=True)
        text = f"{tree}: every content read, {len(wrong)} wrong"
        if first:
            text += f"; {first:,} for the first time, with nothing to compare them with: they are known from now on"
        console.print(text, soft_wrap=True)
    if answer["role"] == "copy" and repair and (answer["different"] or wrong):
        _wait_current(config, tree, ask(config, "POST", "/v1/pull", {"tree": tree})["asked_s"], False, None)
        if not as_json:
            console.print("repaired: the copy is current again")
    if answer.get("different") or answer.get("troubles") or wrong:
        raise typer.Exit(1)


def _read_contents(config: Path, tree: str, repair: bool) -> tuple[list[dict[str, str]], int]:
    """Have every content read now: (what was wrong, how many were read for the first time, which only records them)."""
    before = _tree_of(look(config), tree)["scrub"]
    passes = ask(config, "POST", "/v1/scrub", {"tree": tree, "repair": repair})["passes"]
    while (now := _tree_of(look(config), tree)["scrub"])["passes"] <= passes:
        if now["why"]:
            raise NearpathError(f"the contents of tree {tree} cannot be read", printable(now["why"]))
        time.sleep(_LOOK_EVERY_S)
    found: list[dict[str, str]] = now["wrong"][: now["found"] - before["found"]]
    return found, now["first"] - before["first"]


def _show_findings(tree: str, answer: dict[str, Any]) -> None:
    for found in answer["differences"]:
        console.print(f"{printable(found['path']) or '.'}: {found['what']}", soft_wrap=True)
    for trouble in answer["troubles"]:
        console.print(f"{printable(trouble['path'])}: cannot be looked at: {printable(trouble['why'])}", soft_wrap=True)
    for refused in answer["refused"]:
        console.print(f"{printable(refused['path'])}: {printable(refused['what'])}", soft_wrap=True)
    text = f"{tree}: {answer['entries']:,} entries read, {answer['different']:,} different"
    if answer["refused"]:
        text += f", {len(answer['refused']):,} refused"
    if answer["unsure"]:
        text += f"; {answer['unsure']:,} changed meanwhile, of which nothing can be said"
    console.print(text)


@app.command()
def plan(tree: TreeName, config: ConfigFile = DEFAULT_CONFIG, as_json: AsJson = False) -> None:
    """Say what would be fetched and deleted now, held changes with it; nothing is done."""
    answer = ask(config, "POST", "/v1/plan", {"tree": tree}, timeout_s=None)
    if as_json:
        _print_json(answer)
    else:
        console.print(plan_view(answer), soft_wrap=True)


@app.command()
def approve(
    tree: TreeName,
    token: Annotated[str, typer.Argument(help="As `syncd status` shows it: it stands for just these deletes.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Let the deletes through that a guard holds."""
    ask(config, "POST", "/v1/approve", {"tree": tree, "token": token})
    console.print(f"{tree}: approved")


@app.command()
def accept(tree: TreeName, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Take the directory that is there now for the tree's, though it is another one than before, or empty."""
    ask(config, "POST", "/v1/accept", {"tree": tree})
    console.print(f"{tree}: what lies there now is accepted, and looked at")


@app.command()
def trust(tree: TreeName, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Forget the last accepted root of a copy, when its origin was restored from a backup: an older one is taken then."""
    ask(config, "POST", "/v1/trust", {"tree": tree})
    console.print(f"{tree}: the next root that the origin's key signed is taken, whatever its version")


@app.command()
def forget(
    child: Annotated[str, typer.Argument(help="Name of a node that pulled from here.")],
    config: ConfigFile = DEFAULT_CONFIG,
) -> None:
    """Forget a child that is no more: the journal is not kept for it any longer."""
    answer = ask(config, "POST", "/v1/forget", {"child": child})
    note = "; it is still under `children`, and comes back when it asks again" if answer["configured"] else ""
    console.print(f"{child} is forgotten{note}")


@app.command()
def rollback(
    tree: TreeName,
    version: Annotated[
        int | None, typer.Argument(help="One of those that are kept; without it they are listed.")
    ] = None,
    config: ConfigFile = DEFAULT_CONFIG,
    release: Annotated[bool, typer.Option("--release", help="Follow the parent again.")] = False,
) -> None:
    """Show an older version of a tree of mode atomic, and stay at it until --release."""
    if release and version is not None:
        raise NearpathError("--release and a version", "give one of them")
    body = {"tree": tree, "version": version, "release": release}
    answer = ask(config, "POST", "/v1/rollback", body)
    if release:
        console.print(f"{tree} follows its parent again")
    elif version is not None:
        console.print(f"{tree} shows version {version} until `syncd rollback {tree} --release`")
    else:
        for kept in answer["versions"]:
            made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(kept["made_wall_s"]))
            console.print(f"{kept['version']}  made {made}{'  shown' if kept['public'] else ''}")
        if not answer["versions"]:
            raise NearpathError(f"tree {tree} keeps no versions", "only trees of mode atomic do")


@app.command()
def reload(config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Make the daemon read its configuration again; on a fault it keeps the old one and this says why."""
    ask(config, "POST", "/v1/reload")
    console.print("reloaded")
