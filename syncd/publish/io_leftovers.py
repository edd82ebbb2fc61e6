"""What an earlier try left of files: what is still wanted is gone on from, the rest goes.

Before anything is fetched, the stage becomes another directory, and what was in it moves aside. So an rsync that outlived
the daemon which started it goes on in a directory that nobody looks at: it works by names relative to where it stands.
What was aside is then gone through, also after a crash in the middle of that:

- a file that came whole, and whose digest the origin told, is in its place again: the digest is compared before it is
  published, as that of any file that was fetched;
- of any other, and of what was cut, rsync makes what it can: it lies in rsync's directory for partial files, and rsync
  compares it with the parent's by its own checksums, block by block. So nothing is believed of a file for its size and
  time only; nor of what a power cut left.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from syncd.model import Entry, join
from syncd.publish.io_below import Below, is_directory, remove_all
from syncd.publish.io_publish import LEFT, Layout
from syncd.publish.io_steps import is_as_announced
from syncd.publish.steps import PublishError

WORTH_BYTES = 1024 * 1024
"""Of a file: what is smaller is sooner fetched than compared."""

_TEMPORARY = re.compile(rb"\.(.+)\.[A-Za-z0-9]{6}", re.DOTALL)
"""What rsync calls a file that is coming; one that was killed leaves it."""


class _Left(NamedTuple):
    """Something that was left, at `place` in its directory, of a wanted file. `whole`: under the file's own name."""

    path: bytes
    place: bytes
    found: os.stat_result
    whole: bool


def renew_stage(layout: Layout, wanted: Mapping[bytes, Entry], partial: bytes) -> frozenset[bytes]:
    """An empty stage, but for what is left of the `wanted` files; the paths of those that lie in it whole.

    `partial`: what rsync calls its directories for partial files. Not while a publish is under way.
    """
    aside = os.path.join(layout.work, LEFT)
    _move_aside(layout.stage, aside)
    rooms = sorted(os.listdir(aside))
    if not rooms:
        return frozenset()
    whole: set[bytes] = set()
    for room in rooms if wanted else ():
        with Below(layout.root) as tree, Below(layout.stage) as stage, Below(os.path.join(aside, room)) as source:
            lefts = sorted(_lefts(source, wanted, partial), key=lambda left: (left.whole, left.found.st_size))
            for left in reversed(lefts):
                with suppress(FileNotFoundError, PublishError):  # who outlived its daemon may have taken it
                    _keep(left, wanted[left.path], source, stage, tree, partial, whole)
    remove_all(aside)
    return frozenset(whole)


def _move_aside(stage: bytes, aside: bytes) -> None:
    with suppress(FileNotFoundError):  # it could not be made when the disk was full
        with os.scandir(stage) as found:
            if next(found, None) is None:
                return
        os.rename(stage, os.path.join(aside, b"%d" % os.stat(stage).st_ino))
    os.mkdir(stage, 0o700)


def _lefts(source: Below, wanted: Mapping[bytes, Entry], partial: bytes) -> Iterator[_Left]:
    """What lies below `source` and may serve for one of the wanted files."""
    todo = [b""]
    while todo:
        place = todo.pop()
        home, _, last = place.rpartition(b"/")
        is_partial = last == partial
        home = home if is_partial else place
        try:
            fd = source.open_directory(place)
        except (PublishError, PermissionError):
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        todo += [join(place, name)] * (not is_partial)
                    elif entry.is_file(follow_symlinks=False):
                        path, whole = _file_of(home, name, wanted)
                        found = source.stat(join(place, name)) if path is not None else None
                        # A file with another name is one that clients see, most likely.
                        if path is not None and found is not None and found.st_nlink == 1 and found.st_size:
                            yield _Left(path, join(place, name), found, whole and not is_partial)
        finally:
            os.close(fd)


def _file_of(home: bytes, name: bytes, wanted: Mapping[bytes, Entry]) -> tuple[bytes | None, bool]:
    """(path of the wanted file that `name` in `home` is, or was to become, whether it has its own name)."""
    if (path := join(home, name)) in wanted:
        return path, True
    if temporary := _TEMPORARY.fullmatch(name):
        for first in (temporary[1], b"." + temporary[1]):
            if (path := join(home, first)) in wanted:
                return path, False
    return None, False


def _keep(
    left: _Left, entry: Entry, source: Below, stage: Below, tree: Below, partial: bytes, whole: set[bytes]
) -> None:
    if left.path in whole:
        return
    home, _, name = left.path.rpartition(b"/")
    if left.whole and entry.digest is not None and is_as_announced(left.found, entry):
        _move(source, left.place, stage, left.path)
        whole.add(left.path)
        return
    place = join(join(home, partial), name)
    published = tree.stat(left.path)
    if published is not None and stat.S_ISREG(published.st_mode) and published.st_size > 2 * left.found.st_size:
        return  # rsync would take this one to compare with, and not the one that has more of it
    there = stage.stat(place)
    if there is None or there.st_size < left.found.st_size:
        _move(source, left.place, stage, place)


def _move(source: Below, place: bytes, stage: Below, path: bytes) -> None:
    """Rename into the stage, with all directories above it made."""
    names = path.split(b"/")[:-1]
    for depth in range(1, len(names) + 1):
        above = b"/".join(names[:depth])
        if not is_directory(stage.stat(above)):
            fd, name = stage.at(above)
            os.mkdir(name, 0o700, dir_fd=fd)
    from_fd, from_name = source.at(place)
    to_fd, to_name = stage.at(path)
    os.rename(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
