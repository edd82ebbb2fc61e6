"""What `syncd status` and its kin print: rich renderables made from the daemon's answers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from core.units import format_duration

UNKNOWN_S = 5 * 365 * 86400.0
"""A lag beyond this stands for: it was not current since the start."""
MAX_LINES = 10
MAX_NAMED = 3
"""Paths of one kind at an origin."""

STATES = {
    "starting": "the tree is read; children wait for it",
    "ready": "watched; every change is told to the children",
    "root-lost": "the directory is gone or another one; nothing is concluded from that",
    "store-failed": "the index cannot be written; tried again",
    "reading": "what lies on the disk is read",
    "current": "everything the parent has is published",
    "retrying": "some files could not be fetched and are tried again; the others are published",
    "fetching": "files are fetched",
    "publishing": "what was fetched is published",
    "comparing": "compared with the parent; only what differs is fetched",
    "held": "waits for your word",
    "disk-full": "waits for space, and goes on by itself",
    "no-parent": "no parent answers; tried again",
    "stopped": "waits for its disk",
    "failed": "tried again",
}
_GOOD = ("ready", "current")
_BUSY = ("starting", "reading", "fetching", "publishing", "comparing")


def printable(text: object) -> str:
    """`text` with everything escaped that a terminal would obey, or that is no character: names come from other nodes."""
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def size(count: float) -> str:
    """Bytes for people: `0 B`, `12.3 MB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def status_view(snapshot: dict[str, Any], now_wall_s: float) -> RenderableType:
    """All of a daemon's snapshot."""
    head = Text(f"node {snapshot['node']}", style="bold")
    head.append(f"  up {format_duration(snapshot['up_s'])}", style="not bold")
    if snapshot["addresses"]:
        head.append(f"  serves {', '.join(snapshot['addresses'])}", style="not bold")
    lines: list[RenderableType] = [head]
    if snapshot["reload_error"]:
        lines.append(Text(f"the last reload failed: {printable(snapshot['reload_error'])}", style="red"))
    if (appliance := snapshot["appliance"]) is not None:
        lines.append(_appliance(appliance))
    for name, tree in snapshot["trees"].items():
        lines += [Text(), _tree(name, tree, now_wall_s)]
    return Group(*lines)


def _appliance(told: dict[str, Any]) -> Text:
    if told["error"]:
        return Text(f"stamps do not arrive at {told['url']}: {printable(told['error'])}", style="red")
    age_s = told["delivered_s_ago"]
    when = "not sent yet" if age_s is None else f"sent {format_duration(age_s)} ago"
    return Text(f"stamps to {told['url']}: {when}")


def _tree(name: str, tree: dict[str, Any], now_wall_s: float) -> RenderableType:
    head = Text(f"tree {name}", style="bold")
    role = tree["role"] if tree["role"] == "origin" else f"copy, {tree['mode']}"
    head.append(f"  {role}  {printable(tree['path'])}", style="not bold")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in _rows(name, tree, now_wall_s):
        grid.add_row(f"  {label}", value)
    return Group(head, grid)


def _rows(name: str, tree: dict[str, Any], now_wall_s: float) -> Iterator[tuple[str, RenderableType]]:
    state = tree["state"]
    style = "green" if state in _GOOD else "yellow" if state in _BUSY else "red"
    why = printable(tree["why"]) or STATES.get(state, "")
    yield "state", Text.assemble((state, style), f"  {why}" if why else "")
    if tree["role"] == "copy" and tree["held"]:
        yield "approve", Text(f"syncd approve {name} {tree['held']['token']}", style="bold")
    if tree["role"] == "copy" and tree["fetching"]:
        yield "progress", _progress(tree["fetching"])
    yield "content", Text(_content(tree))
    if tree["role"] == "copy":
        yield from _copy_rows(tree, now_wall_s)
    else:
        yield from _origin_rows(tree)
    if (read := tree["scrub"])["files"] or read["why"]:
        text = f"{read['files']:,} files read, {size(read['bytes'])}, {read['found']:,} wrong"
        yield "scrub", Text(f"{text}; {printable(read['why'])}" if read["why"] else text)
    yield from _many("wrong", [f"{printable(wrong['path'])}: {printable(wrong['what'])}" for wrong in read["wrong"]])
    if tree["free_bytes"] is not None:
        yield "free", Text(size(tree["free_bytes"]))
    if tree["children"]:
        yield "children", _children(tree["children"], now_wall_s)
    for pushed, told in tree["pushes"].items():
        text = f"{pushed}  {printable(told['to'])}  {_behind(told)}  {told['pushed']:,} pushed"
        why = printable(told["error"] or (told["held"] or {}).get("what", ""))
        yield "push", Text(f"{text}: {why}", style="red") if why else Text(text)
    for token in dict.fromkeys(told["held"]["token"] for told in tree["pushes"].values() if told["held"]):
        yield "approve", Text(f"syncd approve {name} {token}", style="bold")
    yield from _many("trouble", [_trouble(trouble) for trouble in tree["troubles"]])


def _content(tree: dict[str, Any]) -> str:
    text = f"{tree['entries']:,} entries"
    if "bytes" in tree:
        text += f", {size(tree['bytes'])}"
    if tree["version"]:
        text += f"; version {tree['version']}, root {tree['root_hash'][:12] or 'not compared yet'}"
    return f"{text}, contents signed" if tree["sealed"] else text


def _copy_rows(tree: dict[str, Any], now_wall_s: float) -> Iterator[tuple[str, RenderableType]]:
    lag_s = tree["lag_s"]
    if lag_s is None:
        yield "lag", Text("no content yet")
    elif lag_s > UNKNOWN_S:
        shown = tree["pinned"]
        why = "not current since the start" if shown is None else f"version {shown} is shown, an older one"
        yield "lag", Text(f"unknown: {why}")
    else:
        yield "lag", Text(f"at most {format_duration(lag_s)} behind the origin")
    yield "parent", _parents(tree)
    if tree["behind"] or tree["waiting"]:
        yield "queue", Text(f"{tree['behind']:,} changes to come, {tree['waiting']:,} put off")
    if tree["compared_wall_s"]:
        age = format_duration(max(0.0, now_wall_s - tree["compared_wall_s"]))
        yield "compared", Text(f"{age} ago, {tree['differences']:,} differences")
    if tree["left_out_entries"]:
        text = f"{tree['left_out_entries']:,} entries, {size(tree['left_out_bytes'])}: no child is served of this tree"
        yield "left out", Text(text)
    if tree["hook_failed"]:
        yield "hook", Text(printable(tree["hook_failed"]), style="red")
    yield from _many("refused", [f"{printable(r['path'])}: {printable(r['why'])}" for r in tree["refused"]])


def _origin_rows(tree: dict[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    queue = f"{tree['waiting']:,} paths settle, {tree['walking']:,} directories to read"
    watched = f"{tree['watches']:,} directories watched" if tree["watch"] == "inotify" else "the whole file system"
    yield "watch", Text(f"{watched} ({tree['watch']}), {tree['overflows']:,} overflows; {queue}")
    if tree["unwatched"]:
        yield "unwatched", Text(f"{tree['unwatched']:,} directories; they are read from time to time", style="red")
        yield from _first("", tree["unwatched_paths"], tree["unwatched"])
    if tree["watch_limit_problem"]:
        yield "limit", Text(tree["watch_limit_problem"], style="red")
    if tree["unreadable"]:
        text = f"{tree['unreadable']:,} files that no copy gets: let syncd's user read them (chmod, chgrp, setfacl)"
        yield "unreadable", Text(text, style="red")
        yield from _first("", tree["unreadable_paths"], tree["unreadable"])
    if tree["skipped"]:
        yield "skipped", Text(f"{tree['skipped']:,} names that are not replicated")
        yield from _first("", tree["skipped_paths"], tree["skipped"])
    yield from _sealing(tree)
    yield "key", Text(tree["public_key"])


def _first(label: str, named: Sequence[dict[str, str]], count: int) -> Iterator[tuple[str, RenderableType]]:
    """A few of `count` paths, each with the reason."""
    texts = [f"{printable(each['path'])}: {printable(each['why'])}" for each in named[:MAX_NAMED]]
    more = [f"... and {count - len(texts):,} more (--json names {len(named)})"] if count > len(texts) else []
    yield label, Text("\n".join([*texts, *more]), style="yellow")


def _sealing(tree: dict[str, Any]) -> Iterator[tuple[str, RenderableType]]:
    if (told := tree["sealing"]) is None:
        return
    if not tree["sealed"]:
        done = "" if told["share"] is None else f"{int(told['share'] * 100)}% of the contents are read"
        yield "sealing", Text(": ".join(filter(None, (done, printable(told["why"])))) or "not begun", style="yellow")
    if told["unreadable"]:
        yield "unsealed", Text(f"{told['unreadable']:,} files cannot be read: see the log", style="red")


def _parents(tree: dict[str, Any]) -> Text:
    text = Text()
    for parent in tree["parents"]:
        if text:
            text.append("\n")
        mark = "▶ " if parent["name"] == tree["parent"] else "  "
        text.append(f"{mark}{parent['name']}")
        if parent["srtt_ms"] is not None:
            text.append(f"  {parent['srtt_ms']:.1f} ms")
        if parent["lag_s"]:
            text.append(f"  {format_duration(parent['lag_s'])} behind")
        if parent["why"]:
            text.append(f"  {parent['failures']} failures: {printable(parent['why'])}", style="red")
    return text


def _children(children: dict[str, Any], now_wall_s: float) -> Text:
    width = max(map(len, children))
    lines = []
    for name, child in children.items():
        seen = f"seen {format_duration(max(0.0, now_wall_s - child['seen_wall_s']))} ago"
        streams = f"  {child['streams']} streams" if child["streams"] else ""
        lines.append(f"{name:<{width}}  {_behind(child)}  {seen}  {size(child['sent_bytes'])} sent{streams}")
    return Text("\n".join(lines))


def _behind(told: dict[str, Any]) -> str:
    return f"{told['behind']:,} changes behind" if told["behind"] else "has everything"


def _progress(told: dict[str, Any]) -> Table:
    """A bar, and what it stands for, in one line."""
    share = told["done_bytes"] / told["bytes"] if told["bytes"] else told["done_files"] / max(1, told["files"])
    left = f", {format_duration(told['left_s'])} left" if told["left_s"] is not None else ""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        ProgressBar(total=1.0, completed=share, width=30),
        f"{share:.0%}  {told['done_files']:,} of {told['files']:,} files, "
        f"{size(told['done_bytes'])} of {size(told['bytes'])}, {size(told['rate_bytes_s'])}/s{left}",
    )
    return grid


def _trouble(trouble: Any) -> str:
    if isinstance(trouble, str):
        return printable(trouble)
    return f"{printable(trouble['path'])}: {printable(trouble['why'])} ({trouble['tries']} tries)"


def _many(label: str, texts: Sequence[str]) -> Iterator[tuple[str, RenderableType]]:
    if texts:
        more = [f"... and {len(texts) - MAX_LINES:,} more"] if len(texts) > MAX_LINES else []
        yield label, Text("\n".join([*texts[:MAX_LINES], *more]), style="yellow")


def plan_view(answer: dict[str, Any]) -> RenderableType:
    """What `syncd plan` prints."""
    if not answer["steps"] and not answer["refused"]:
        return Text("nothing to do")
    lines = [
        Text(
            f"{answer['fetch_files']:,} files to fetch, at most {size(answer['fetch_bytes'])}; "
            f"{answer['deleted_entries']:,} entries to delete; {answer['steps']:,} steps"
        )
    ]
    lines += [Text(f"  fetch   {printable(f['path'])}  {size(f['bytes'])}") for f in answer["fetches"][:MAX_LINES]]
    lines += [Text(f"  delete  {printable(path)}") for path in answer["deletes"][:MAX_LINES]]
    lines += [Text(f"  refuse  {printable(r['path'])}: {printable(r['why'])}") for r in answer["refused"][:MAX_LINES]]
    if max(answer["fetch_files"], len(answer["deletes"]), len(answer["refused"])) > MAX_LINES:
        lines.append(Text("  ... (--json shows up to 1,000 of each)"))
    if answer["held"]:
        lines.append(Text(f"held: {printable(answer['held'])}", style="red"))
    return Group(*lines)


def now_wall_s() -> float:
    """For ages of what is told with wall times."""
    return time.time()
