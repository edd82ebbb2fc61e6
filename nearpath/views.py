"""What the command line shows: rich tables of a status picture and of an explanation."""

from __future__ import annotations

from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from core.units import format_duration

_STATE_STYLE = {"up": "green", "down": "red", "damped": "yellow", "drained": "magenta", "unknown": "dim"}
_SYNC_STYLE = {"fresh": "green", "syncing": "yellow", "stalled": "red", "empty": "bold red"}
_LATE_STAMP_S = 30.0
_QUALITY_STYLE = {"live": "green", "stale": "yellow", "predicted": "yellow", "table": "yellow", "static": "red"}


def show_status(console: Console, picture: dict[str, Any]) -> None:
    """Print a status picture: the appliance, its agents, the stamps of mirrors, then for each service mirrors x regions."""
    console.print(_heading(picture["appliance"]))
    if picture["agents"]:
        console.print(_agents(picture["agents"]))
    # A node that never sent one is seen too: its mirrors may be left out because of that.
    silent = [node for node in picture["nodes"] if node["heard_age_s"] is None]
    if picture["stamps"] or silent:
        console.print(_stamps(picture["stamps"], silent))
    services: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for catchment in picture["catchments"]:
        services.setdefault((catchment["service"], catchment["family"]), []).append(catchment)
    for (service, family), catchments in services.items():
        console.print(_matrix(service, family, catchments))
    console.print(Text("▶ chosen   ms RTT   % loss   age of the newest sample   ! not live", style="dim"))


def _heading(appliance: dict[str, Any]) -> RenderableType:
    ready = Text("ready", style="green") if appliance["ready"] else Text("NOT READY", style="bold red")
    lines: list[RenderableType] = [
        Text.assemble(
            "nearpath ", ready, f"  up {format_duration(appliance['uptime_s'])}  generation {appliance['generation']}"
        ),
        Text(f"dns {' '.join(appliance['dns'])}  report {' '.join(appliance['report']) or '-'}", style="dim"),
    ]
    lines += [Text(f"not ready: {reason}", style="bold red") for reason in appliance["not_ready"]]
    if appliance["reload_error"]:
        lines.append(Text(f"the last reload failed, the old configuration runs on: {appliance['reload_error']}", "red"))
    if appliance["store_error"]:
        lines.append(Text(f"state is not being stored: {appliance['store_error']}", "red"))
    return Group(*lines)


def _agents(agents: list[dict[str, Any]]) -> Table:
    table = Table(title="agents", title_justify="left", box=None, pad_edge=False)
    for column in ("agent", "region", "heard", "newest sample", "samples", "clock skew", "missing"):
        table.add_column(column)
    for agent in agents:
        heard = agent["heard_age_s"]
        silent = heard is None or heard > 30
        table.add_row(
            agent["agent"],
            agent["region"],
            Text("never" if heard is None else f"{format_duration(heard)} ago", style="red" if silent else "green"),
            _age(agent["newest_sample_age_s"]),
            str(agent["samples"]),
            "-" if agent["clock_skew_s"] is None else f"{agent['clock_skew_s']:+.2f} s",
            str(agent["missing"]),
        )
    return table


def _stamps(stamps: list[dict[str, Any]], silent: list[dict[str, Any]]) -> Table:
    table = Table(title="stamps", title_justify="left", box=None, pad_edge=False)
    for column in ("mirror", "tree", "version", "lag", "state", "age", "node"):
        table.add_column(column)
    for stamp in stamps:
        state = Text(stamp["state"], style=_SYNC_STYLE[stamp["state"]])
        if stamp["busy"]:
            state.append(" busy", style="yellow")
        late = stamp["age_s"] > _LATE_STAMP_S
        table.add_row(
            stamp["mirror"],
            stamp["tree"],
            str(stamp["version"]),
            format_duration(stamp["lag_s"]),
            state,
            Text(format_duration(stamp["age_s"]), style="red" if late else ""),
            stamp["node"] or "-",
        )
    stamped = {stamp["mirror"] for stamp in stamps}
    for node in silent:
        for mirror in node["mirrors"]:
            if mirror not in stamped:
                table.add_row(mirror, "-", "-", "-", Text("never heard", style="red"), "-", node["node"])
    return table


def _age(age_s: float | None) -> str:
    return "-" if age_s is None else format_duration(age_s)


def _matrix(service: str, family: int, catchments: list[dict[str, Any]]) -> Table:
    kind = "A" if family == 4 else "AAAA"
    table = Table(title=f"{service} {kind}", title_justify="left", box=None, pad_edge=False)
    table.add_column("region", no_wrap=True)
    mirrors = sorted({m["mirror"] for c in catchments for m in c["mirrors"]})
    for mirror in mirrors:
        table.add_column(mirror, no_wrap=True)
    table.add_column("quality")
    table.add_column("decided by")
    for catchment in catchments:
        cells = {m["mirror"]: _cell(m) for m in catchment["mirrors"]}
        others = len(catchment["regions"]) - 1
        quality = Text(catchment["quality"], style=_QUALITY_STYLE[catchment["quality"]])
        if catchment["fail_open"]:
            quality.append(f" FAIL OPEN ({catchment['fail_open']})", style="bold red")
        table.add_row(
            catchment["catchment"] + (f" (+{others})" if others else ""),
            *(cells.get(mirror, Text("-")) for mirror in mirrors),
            quality,
            catchment["decided_by"],
        )
    return table


def _cell(mirror: dict[str, Any]) -> Text:
    text = Text("▶ " if mirror["chosen"] else "  ", style="bold cyan")
    text.append(mirror["state"], style=_STATE_STYLE[mirror["state"]])
    if mirror["rtt_ms"] is not None:
        text.append(f" {mirror['rtt_ms']:.1f} ms", style="bold" if mirror["chosen"] else "")
    if mirror["loss_ratio"]:
        text.append(f" {mirror['loss_ratio'] * 100:.0f}%", style="red")
    if mirror["age_s"] is not None:
        text.append(f" {format_duration(mirror['age_s'])}", style="dim")
    if mirror["quality"] != "live":
        text.append(" !", style="yellow")
    return text


def show_explanation(console: Console, story: dict[str, Any]) -> None:
    """Print an explanation: which region, each candidate, each step, what is answered and how good that is."""
    kind = "A" if story["family"] == 4 else "AAAA"
    console.print(Text.assemble(("why ", "dim"), (f"{story['service']} {kind}", "bold"), f" for {story['client']}"))
    console.print(
        f"  region    {story['region']}  (ECS scope /{story['scope_len']}; {story['matched']})", highlight=False
    )
    if story["catchment"] != story["region"]:
        console.print(
            f"            decided together with {story['catchment']}: nothing tells them apart", highlight=False
        )
    table = Table(box=None, pad_edge=False)
    # Without any stamp there is nothing to say of content.
    synced = any(c["sync_state"] for c in story["candidates"])
    content = ["content"] if synced else []
    for column in (
        "",
        "mirror",
        "up",
        "votes",
        "RTT",
        "±",
        "loss cost",
        "seen from",
        "age",
        "quality",
        *content,
        "why",
    ):
        table.add_column(column, no_wrap=column != "why")
    for c in story["candidates"]:
        up = {True: Text("up", "green"), False: Text("down", "red"), None: Text("unknown", "dim")}[c["up"]]
        table.add_row(
            "▶" if c["rank"] == 1 else str(c["rank"]),
            Text(c["mirror"], "bold" if c["rank"] == 1 else ""),
            Text("drained", "magenta") if c["drained"] else up,
            c["votes"],
            "-" if c["rtt_ms"] is None else f"{c['rtt_ms']:.1f} ms",
            "-" if c["error_ms"] is None else f"{c['error_ms']:.1f} ms",
            f"{c['loss_cost_ms']:.0f} ms" if c["loss_cost_ms"] else "-",
            c["measured_from"],
            _age(c["age_s"]),
            Text(c["quality"], _QUALITY_STYLE[c["quality"]]),
            *([_content(c)] if synced else []),
            c["reason"],
        )
    console.print(table)
    for step in story["steps"]:
        console.print(f"  {step['step']:<10} {step['remark']}", highlight=False)
    since = story["incumbent_for_s"]
    chosen = story["candidates"][0]["mirror"]
    console.print(
        Text.assemble(
            "answer: ",
            (" ".join(story["addresses"]), "bold"),
            f"  TTL {story['ttl_s']} s  ({chosen}, decided by {story['decided_by']}"
            + (f", first for {format_duration(since)}" if since is not None else "")
            + ")",
        )
    )
    quality = Text.assemble("quality: ", (story["quality"], _QUALITY_STYLE[story["quality"]]))
    if story["note"]:
        quality.append(f"  (clients with EDNS are told: {story['note']})")
    console.print(quality)


def _content(candidate: dict[str, Any]) -> Text:
    """What the stamps say, such as `fresh v12 lag 3s`."""
    state = candidate["sync_state"]
    if not state:
        return Text("-")
    text = Text(state, style=_SYNC_STYLE[state])
    text.append(f" v{candidate['version']} lag {format_duration(candidate['lag_s'])}", style="")
    if candidate["busy"]:
        text.append(" busy", style="yellow")
    return text
