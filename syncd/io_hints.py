"""What a good configuration cannot say: whether this machine fits it. For `syncd check-config`."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from core.config_sync import SyncConfig, Tree, is_in_clear
from core.errors import NearpathError
from core.io_config_sync import work_directory
from syncd.source.io_watch import limit_problem, watch_limit
from syncd.transfer.io_rsync_check import check_binary

MAX_COUNTED = 200_000
"""Directories that are counted to see whether the watches are enough; beyond it the count is "at least"."""


def find_hints(config: SyncConfig) -> list[str]:
    """Everything on this machine that syncd would stumble over, in words; empty when nothing was found.

    To be run as the daemon's user: rights are those of who asks.
    """
    hints = [*_rsync(), *_state(Path(config.state_dir))]
    files = [(parent.token_file, "token") for parent in config.parents.values()]
    files += [(parent.password_file, "password") for parent in config.parents.values()]
    files += [(push.password_file, "password") for tree in config.trees.values() for push in tree.push.values()]
    files += [(tree.key_file, "secret key") for tree in config.trees.values()]
    if config.appliance is not None:
        files.append((config.appliance.token_file, "token"))
        if is_in_clear(config.appliance.url):
            hints.append(f"{config.appliance.url} shows this node's token to everybody on the way: https://")
    if config.tls is not None:
        files.append((config.tls.key, "TLS key"))
    holders: dict[str, str] = {}
    for name, child in config.children.items():
        other = holders.setdefault(child.token_sha256, name)
        if other != name:
            hints.append(f"children {other} and {name} have the same token: each can speak for the other")
    for file, what in dict.fromkeys(files):
        hints += _secret(file, what)
    for name, tree in config.trees.items():
        hints += _tree(name, tree)
    return hints


def _rsync() -> Iterator[str]:
    try:
        yield from (f"rsync: {problem}" for problem in check_binary())
    except NearpathError as error:
        yield str(error)


def _state(folder: Path) -> Iterator[str]:
    try:
        found = folder.stat()
    except FileNotFoundError:
        above = next(path for path in folder.parents if path.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            yield f"state_dir {folder} is not there and cannot be made in {above} by this user"
        return
    except OSError as error:
        yield f"state_dir {folder}: {error.strerror}"
        return
    if not stat.S_ISDIR(found.st_mode):
        yield f"state_dir {folder} is no directory"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"state_dir {folder} cannot be written by this user (it belongs to uid {found.st_uid})"
    elif found.st_mode & stat.S_IRWXO:
        yield f"state_dir {folder} is open to everybody: chmod 0750 {folder}"


def _secret(file: str, what: str) -> Iterator[str]:
    if not file:
        return
    try:
        found = os.stat(file)
    except FileNotFoundError:
        yield f"the {what} {file} is not there"
        return
    except OSError as error:
        yield f"the {what} {file}: {error.strerror}"
        return
    if not os.access(file, os.R_OK):
        yield f"the {what} {file} cannot be read by this user"
    if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
        yield f"the {what} {file} can be read or written by others: chmod 0600 {file}"


def _tree(name: str, tree: Tree) -> Iterator[str]:
    path = Path(tree.path)
    if not path.is_dir():
        if not tree.parents:
            yield f"tree {name}: {path} is not there: syncd waits for it"
            return
        above = next(folder for folder in path.parents if folder.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            yield f"tree {name}: {path} is not there and cannot be made in {above} by this user"
        return
    if not tree.parents:
        yield from _origin(name, tree)
        return
    if not os.access(path, os.W_OK | os.X_OK):
        yield f"tree {name}: {path} cannot be written by this user"
    work = Path(work_directory(tree))
    above = next(folder for folder in (work, *work.parents) if folder.exists())
    if above.stat().st_dev != path.stat().st_dev:
        yield (
            f"tree {name}: its work directory {work} is on another file system than {path}: files could not be renamed "
            f"into place; set `work` to a directory on the same one, outside of {path}"
        )
    elif not os.access(above, os.W_OK | os.X_OK):
        yield f"tree {name}: the work directory {work} cannot be made or written by this user"


def _origin(name: str, tree: Tree) -> Iterator[str]:
    directories = 0
    unread: list[str] = []
    for _folder, _names, _files in os.walk(tree.path, onerror=lambda error: unread.append(str(error))):
        directories += 1
        if directories >= MAX_COUNTED:
            break
    if unread:
        yield f"tree {name}: {len(unread)} directories cannot be read by this user, such as {unread[0]}"
    problem = limit_problem(directories, watch_limit()) if tree.watch != "fanotify" else ""
    if problem:
        yield f"tree {name}: {'at least: ' if directories >= MAX_COUNTED else ''}{problem}"
