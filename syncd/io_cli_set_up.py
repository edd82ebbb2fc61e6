"""The commands for setting a node up; they need no running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import NearpathError
from core.io_config_sync import is_signed_here, read_sync_config
from core.io_token import issue_token
from syncd.io_cli import DEFAULT_CONFIG, ConfigFile, TreeName, app, console
from syncd.io_daemon import key_of
from syncd.io_hints import find_hints
from syncd.store.io_signer import read_key
from syncd.store.signed_root import public_key


@app.command("check-config")
def check_config(
    config: ConfigFile = DEFAULT_CONFIG,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 with hints, too.")] = False,
) -> None:
    """Check the configuration; prints all faults with line and key, and hints of what does not fit on this machine."""
    hints = find_hints(read_sync_config(config))
    for hint in hints:
        console.print(f"hint: {hint}", soft_wrap=True)
    console.print(f"{config}: good" + (f", {len(hints)} hints" if hints else ""), soft_wrap=True)
    if hints and strict:
        raise typer.Exit(1)


@app.command()
def token(
    file: Annotated[Path | None, typer.Option(help="Write the token here (mode 0600), not to the screen.")] = None,
) -> None:
    """Draw a token for a child; prints the line for its parent's configuration."""
    for line in issue_token(file, "the child", "the parent's configuration, under children"):
        console.print(line, soft_wrap=True)


@app.command()
def key(tree: TreeName, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Print the public key of a tree that this node signs: its origin, or the copy of a plain rsync server."""
    loaded = read_sync_config(config)
    origins = [name for name in loaded.trees if is_signed_here(loaded, name)]
    if tree not in origins:
        raise NearpathError(
            f"this node is not the origin of a tree {tree!r}", f"it is of: {', '.join(origins) or 'none'}"
        )
    print(public_key(read_key(key_of(loaded, tree))).hex())
