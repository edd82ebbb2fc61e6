"""The commands for setting a node up; they need no running daemon."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Annotated

import typer

from core.errors import NearpathError
from core.io_config_sync import is_signed_here, read_sync_config
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
    drawn = secrets.token_urlsafe(32)
    if file is None:
        console.print(f"token (for the token_file of the child): {drawn}", soft_wrap=True)
    else:
        try:
            file.touch(mode=0o600, exist_ok=False)
            file.write_text(drawn + "\n", "ascii")
        except OSError as error:
            raise NearpathError(
                f"cannot write {file}: {error.strerror}", "name a new file in a writable folder"
            ) from None
        console.print(f"token written to {file}", soft_wrap=True)
    digest = hashlib.sha256(drawn.encode()).hexdigest()
    console.print(f"for the parent's configuration, under children:  token_sha256: {digest}", soft_wrap=True)


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
