"""What lies on a copy's disk that its patterns cover: a mirror's own files, and what it has left out. Never removed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from core.exclude import Exclude
from syncd.model import join
from syncd.publish.io_below import Below, is_directory, set_mode
from syncd.publish.steps import Do, PublishError, Step

_COMES = frozenset({Do.PUT, Do.SYMLINK, Do.LINK, Do.UNPARK, Do.MOVE, Do.BRING})
"""What takes the place of whatever stands there; a directory that is made is filled where one stands."""

_MOVES = frozenset({Do.MOVE, Do.PARK})
"""What takes along all that lies in a directory, which had nothing of the kind in it when it was planned."""


def find_own(tree: Below, path: bytes, exclude: Exclude) -> bytes | None:
    """The first thing that is left out at or below the directory `path`; None when there is none, or no directory.

    Nothing that was opened for it stays open: whoever asks is about to put something else there.
    """
    if not exclude or not is_directory(tree.stat(path)):
        return None
    if path and exclude.leaves_out(path, is_directory=True):
        return path
    try:
        return _first(tree, path, exclude)
    finally:
        tree.forget()


def _first(tree: Below, path: bytes, exclude: Exclude) -> bytes | None:
    todo = [path]
    while todo:
        directory = todo.pop()
        for name, is_dir in _names(tree, directory):
            below = join(directory, name)
            if exclude.leaves_out(below, is_dir):
                return below
            if is_dir:
                todo.append(below)
    return None


def holds_only_own(tree: Below, path: bytes, exclude: Exclude) -> bool:
    """Whether the directory `path` was kept for what is left out in it, and holds nothing else but directories."""
    own = find_own(tree, path, exclude)
    if own is None or own == path:
        return own == path
    todo = [path]
    while todo:
        directory = todo.pop()
        for name, is_dir in _names(tree, directory):
            below = join(directory, name)
            if exclude.leaves_out(below, is_dir):
                continue
            if not is_dir:
                return False
            todo.append(below)
    return True


def prune(tree: Below, path: bytes, exclude: Exclude) -> None:
    """Remove all that lies in the directory `path`, but what is left out, and the directories that it lies in.

    It can be done twice: what was cut short is gone on with.
    """
    if path and exclude.leaves_out(path, is_directory=True):
        return
    todo = [(path, False)]
    while todo:
        directory, is_emptied = todo.pop()
        if is_emptied:
            fd, name = tree.at(directory)
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            continue
        if directory != path:
            todo.append((directory, True))
            _open_up(tree, directory)
        for name, is_dir in _names(tree, directory):
            below = join(directory, name)
            if exclude.leaves_out(below, is_dir):
                continue
            if is_dir:
                todo.append((below, False))
            else:
                fd, last = tree.at(below)
                with suppress(FileNotFoundError):
                    os.unlink(last, dir_fd=fd)
    tree.forget()


def check_way(root: bytes, steps: Iterable[Step], exclude: Exclude) -> None:
    """PublishError when a step would put something in the place of a directory in which something lies that is left out,
    or take that along to another name: it came after the plan was made."""
    if not exclude:
        return
    with Below(root) as tree:
        for step in steps:
            if step.do in _COMES:
                refuse_own(tree, step.path, exclude)
            if step.do in _MOVES:
                refuse_to_take_along(tree, step.source, exclude)


def refuse_to_take_along(tree: Below, path: bytes, exclude: Exclude) -> None:
    """PublishError when something that is left out lies at or below the directory `path`, which is about to move."""
    if (own := find_own(tree, path, exclude)) is not None:
        raise PublishError(
            f"{os.fsdecode(tree.root)}: {os.fsdecode(own)!r}, which is left alone by `exclude`, came into a directory "
            "that moves",
            "it is planned anew, and stays where it is",
        )


def refuse_own(tree: Below, path: bytes, exclude: Exclude) -> None:
    """PublishError when something that is left out lies at or below the directory `path`, whose place is wanted."""
    own = find_own(tree, path, exclude)
    if own is not None:
        raise PublishError(
            f"{os.fsdecode(tree.root)}: {os.fsdecode(own)!r} is left alone by `exclude`, and the parent has something "
            f"else than a directory at {os.fsdecode(path)!r}",
            "move it away, or remove it: it goes on by itself",
        )


def _names(tree: Below, directory: bytes) -> list[tuple[bytes, bool]]:
    fd = tree.open_directory(directory)
    try:
        with os.scandir(fd) as found:
            return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
    finally:
        os.close(fd)


def _open_up(tree: Below, directory: bytes) -> None:
    """Let its owner, us, remove what is in a directory that goes."""
    found = tree.stat(directory)
    if found is not None and os.geteuid() and found.st_mode & 0o700 != 0o700:
        fd, name = tree.at(directory)
        set_mode(fd, name, stat.S_IMODE(found.st_mode) | 0o700)
