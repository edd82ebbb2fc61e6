"""The commands for setting a node up; they need no running daemon."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
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
    file = key_of(loaded, tree)
    make_room_for_key(file, Path(loaded.state_dir))
    is_new = not file.exists()
    seed = read_key(file)
    if is_new:
        give_to_owner(file)
    print(public_key(seed).hex())


def make_room_for_key(file: Path, state_dir: Path) -> None:
    """Make the folder of a key, and `state_dir` above it as the daemon would; NearpathError when this user cannot."""
    if not file.is_relative_to(state_dir):
        return
    try:
        for folder in (state_dir, *reversed([above for above in file.parents if above.is_relative_to(state_dir)][:-1])):
            if not folder.is_dir():
                folder.mkdir(mode=0o750 if folder == state_dir else 0o700, parents=folder == state_dir)
                give_to_owner(folder, state_dir.name if folder == state_dir else "")
    except FileExistsError:
        return  # the daemon was quicker
    except OSError as error:
        service = state_dir.name
        raise NearpathError(
            f"state_dir {state_dir} cannot be used to keep the key in: {error.strerror}",
            f"as root, for the service's user: install -d -o {service} -g {service} -m 0750 {state_dir} (that is done by "
            "`systemd-tmpfiles --create nearpath.conf` after `nearpath install-units`); or set state_dir",
        ) from None


def give_to_owner(path: Path, namesake: str = "") -> None:
    """What root makes here is the daemon's: give it to whom the folder belongs, or to the user `namesake`, if there is one.

    As the units have it: /var/lib/nearpath-sync is of the user nearpath-sync.
    """
    if os.geteuid() != 0:
        return
    above = path.parent.stat()
    owner = above.st_uid, above.st_gid
    if namesake:
        with suppress(KeyError):
            user = pwd.getpwnam(namesake)
            owner = user.pw_uid, user.pw_gid
    if owner != (0, 0):
        os.chown(path, *owner, follow_symlinks=False)
