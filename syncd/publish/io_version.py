"""Publish mode `atomic`: every version of a tree whole in a directory of its own; the public name is a symlink to one.

    mirror -> mirror.versions/42        mirror.versions/41 (kept for a grace time)        .building (being made)

A new version is the old one with every file hard-linked, to which the steps of the plan are done; then it is synced,
gets its name, and one rename replaces the symlink. Building costs a link per file of the tree (measured: 14 us, so 14 s
for a million), whatever changed: for huge trees with small changes, mode `live` publishes in milliseconds.

A crash before the version has its name throws it away, staged files being linked, not moved, into it; after that only
the symlink is missing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from core.exclude import NOTHING as LEAVES_NOTHING_OUT
from core.exclude import Exclude
from syncd.model import join
from syncd.publish.io_attributes import NOTHING, Kept, take_over
from syncd.publish.io_below import Below, exchange, remove_all, sync_file_system
from syncd.publish.io_publish import Layout, begin, explained, finish, no_trip, run
from syncd.publish.io_steps import copy_file
from syncd.publish.steps import Do, Intent, PublishError

BUILDING = b".building"
RETIRED = b".retired-"


@dataclass(frozen=True, slots=True)
class Versions:
    """`public`: the name clients use, a symlink; `versions`: the directory beside it, on the same file system."""

    public: bytes
    versions: bytes
    work: bytes
    kept: Kept = NOTHING
    exclude: Exclude = LEAVES_NOTHING_OUT

    def path(self, number: int) -> bytes:
        """The directory of one version."""
        return os.path.join(self.versions, b"%d" % number)


def current(place: Versions) -> int:
    """The version that clients see. PublishError when the public name is no symlink to a version."""
    try:
        target = os.readlink(place.public)
        return int(os.path.basename(target))
    except (OSError, ValueError):
        raise PublishError(
            f"{os.fsdecode(place.public)} is not a symlink to one of {os.fsdecode(place.versions)}",
            "mode atomic needs one: move it away, or set another `path`; a plain directory is taken over by itself",
        ) from None


def adopt(place: Versions) -> None:
    """Turn the plain directory at the public name into version 0 and a symlink to it, in one exchange.

    Does nothing when that is done already; a public name that does not exist becomes an empty version 0.
    """
    os.makedirs(place.versions, exist_ok=True)
    if os.path.islink(place.public):
        current(place)
        return
    first = place.path(0)
    if not os.path.exists(place.public):
        os.makedirs(first, exist_ok=True)
        _point(place, 0, no_trip)
        return
    # The symlink is made where the directory will be, pointing to itself for now; then both swap places.
    with suppress(FileNotFoundError):
        os.unlink(first)
    os.symlink(_target(place, 0), first)
    with Below(os.path.dirname(place.public) or b".") as home, Below(place.versions) as versions:
        try:
            exchange(home.fd, os.path.basename(place.public), versions.fd, b"0")
        except OSError as error:
            raise PublishError(
                f"{os.fsdecode(place.public)} cannot be exchanged for a symlink: {error.strerror}",
                "it must be a plain directory, no mount point, on a file system with RENAME_EXCHANGE (ext4, xfs, btrfs)",
            ) from error


def publish_version(
    place: Versions, intent: Intent, now: float, *, durable: bool = True, trip: Callable[[str], None] = no_trip
) -> None:
    """Make version `intent.number` and show it; again, after a crash, goes on. Then the caller records it, and `finish`es.

    `now`: wall seconds, from which the old version's grace time runs. PublishError, DiskFull: clients see the old version.
    """
    old = current(place)
    if old == intent.number:
        return
    if intent.number < old:
        raise PublishError(
            f"version {intent.number} is older than {old}, which is public", "`syncd rollback` does that"
        )
    if not os.path.isdir(place.path(intent.number)):
        try:
            _build(place, old, intent, durable, trip)
        except PublishError:
            _throw_away(place)  # what a full disk needs most
            raise
    trip("write retired")
    _write_retired(place, old, now)
    _point(place, intent.number, trip)


def finish_version(place: Versions, intent: Intent) -> None:
    """Forget the publish, once the caller has recorded it: staged files are in the new version now."""
    with Below(os.path.join(place.work, b"stage")) as stage:
        for step in intent.steps:
            if step.do is Do.PUT and stage.stat(step.path) is not None:
                fd, name = stage.at(step.path)
                os.unlink(name, dir_fd=fd)
    finish(Layout(place.path(intent.number), place.work))


def roll_back(place: Versions, number: int, now: float) -> None:
    """Show an older version that is still there, with what is left alone and came since. PublishError when it is not."""
    if not os.path.isdir(place.path(number)):
        kept = sorted(int(n) for n in os.listdir(place.versions) if n.isdigit())
        raise PublishError(f"there is no version {number}", f"there are: {', '.join(map(str, kept))}")
    old = current(place)
    if old != number:
        try:
            carry_own(place.path(old), place.path(number), place.exclude)
        except OSError as error:
            raise explained(error, place.path(number)) from error
        _write_retired(place, old, now)
        _point(place, number, no_trip)


def expire(place: Versions, now: float, grace_s: float) -> list[int]:
    """Remove versions that have not been public for `grace_s` (at least the TTL of the name); their numbers.

    They go to the trash, for `sweep`. A version without a note of when it was replaced gets one now.
    """
    public = current(place)
    gone: list[int] = []
    for name in sorted(os.listdir(place.versions)):
        if not name.isdigit() or int(name) == public or not os.path.isdir(place.path(int(name))):
            continue
        note = os.path.join(place.versions, RETIRED + name)
        try:
            with open(note, encoding="ascii") as file:
                retired = float(file.read())
        except (FileNotFoundError, ValueError):
            _write_retired(place, int(name), now)
            continue
        # A clock that was set back would keep versions for ever.
        if now - retired >= grace_s or retired > now + grace_s:
            found = os.stat(place.path(int(name)))
            os.rename(place.path(int(name)), os.path.join(place.work, b"trash", b"%d.gone" % found.st_ino))
            os.unlink(note)
            gone.append(int(name))
    return gone


def _build(place: Versions, old: int, intent: Intent, durable: bool, trip: Callable[[str], None]) -> None:
    _throw_away(place)
    building = os.path.join(place.versions, BUILDING)
    trip("mkdir building")
    os.mkdir(building, 0o700)
    layout = Layout(building, place.work, place.kept, place.exclude)
    try:
        clone(place.path(old), building, trip, place.kept)
    except OSError as error:
        raise explained(error, building) from error
    begin(layout, intent)
    run(layout, begun=intent, consume=False, durable=False, trip=trip)
    try:
        carry_own(place.path(old), building, place.exclude)
    except OSError as error:
        raise explained(error, building) from error
    with Below(place.versions) as versions:
        if durable:
            sync_file_system(versions.fd)
        trip("name version")
        os.rename(BUILDING, b"%d" % intent.number, src_dir_fd=versions.fd, dst_dir_fd=versions.fd)
        os.fsync(versions.fd)


def clone(source: bytes, target: bytes, trip: Callable[[str], None] = no_trip, kept: Kept = NOTHING) -> int:
    """Make in the empty directory `target` the directories of `source`, and its files as hard links; number of entries."""
    made = 0
    attributes: list[tuple[bytes, os.stat_result]] = []
    with Below(source) as old, Below(target) as new:
        todo = [b""]
        attributes.append((b"", os.fstat(old.fd)))
        while todo:
            path = todo.pop()
            trip("clone")
            from_fd, to_fd = old.open_directory(path), new.directory(path)
            try:
                with os.scandir(from_fd) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        made += 1
                        if entry.is_dir(follow_symlinks=False):
                            below = path + b"/" + name if path else name
                            os.mkdir(name, 0o700, dir_fd=to_fd)
                            attributes.append((below, entry.stat(follow_symlinks=False)))
                            todo.append(below)
                        else:
                            _link(entry, name, from_fd, to_fd)
            finally:
                os.close(from_fd)
        for path, found in reversed(attributes):
            if kept:
                take_over(old.at(path), new.at(path), kept)
            fd = new.open_directory(path)
            try:
                os.fchmod(fd, stat.S_IMODE(found.st_mode))
                os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))
            finally:
                os.close(fd)
    return made


def carry_own(source: bytes, target: bytes, exclude: Exclude) -> None:
    """Bring what is left alone, and came to `source` after `target` was cloned of it: nobody else would have it any more.

    PublishError where something else than a directory is in its way: the version is built anew, around it.
    """
    if not exclude:
        return
    with Below(source) as old, Below(target) as new:
        todo = [(b"", False)]
        while todo:
            directory, is_own = todo.pop()
            fd = old.open_directory(directory)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        below, is_dir = join(directory, os.fsencode(entry.name)), entry.is_dir(follow_symlinks=False)
                        is_left = is_own or exclude.leaves_out(below, is_dir)
                        if is_dir:
                            todo.append((below, is_left))
                        elif is_left and new.stat(below) is None:
                            _make_above(new, below)
                            _link(entry, os.fsencode(entry.name), fd, new.directory(directory))
            finally:
                os.close(fd)


def _make_above(tree: Below, path: bytes) -> None:
    for end in (at for at, byte in enumerate(path) if byte == ord("/")):
        if tree.stat(path[:end]) is None:
            fd, name = tree.at(path[:end])
            os.mkdir(name, 0o755, dir_fd=fd)


def _link(entry: os.DirEntry[str], name: bytes, from_fd: int, to_fd: int) -> None:
    """One more name of a file; a copy of what is somebody else's, of whom the kernel lets us make none."""
    try:
        os.link(name, name, src_dir_fd=from_fd, dst_dir_fd=to_fd, follow_symlinks=False)
    except PermissionError:
        if not entry.is_file(follow_symlinks=False):
            raise
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=from_fd)
        try:
            found = os.fstat(source)
            copy_file(source, name, to_fd, stat.S_IMODE(found.st_mode), found.st_mtime_ns)
        finally:
            os.close(source)


def _throw_away(place: Versions) -> None:
    building = os.path.join(place.versions, BUILDING)
    if os.path.isdir(building):
        remove_all(building)
        os.rmdir(building)


def _target(place: Versions, number: int) -> bytes:
    """What the public symlink says: relative, so that the whole can be moved or mounted elsewhere."""
    return os.path.relpath(place.path(number), os.path.dirname(place.public) or b".")


def _point(place: Versions, number: int, trip: Callable[[str], None]) -> None:
    fresh = place.public + b".next"
    with suppress(FileNotFoundError):
        os.unlink(fresh)
    trip("make symlink")
    os.symlink(_target(place, number), fresh)
    trip("rename symlink")
    os.rename(fresh, place.public)
    with Below(os.path.dirname(place.public) or b".") as home:
        os.fsync(home.fd)
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(place.versions, RETIRED + b"%d" % number))


def _write_retired(place: Versions, number: int, now: float) -> None:
    note = os.path.join(place.versions, RETIRED + b"%d" % number)
    with open(note + b".new", "w", encoding="ascii") as file:
        file.write(f"{now:.3f}")
    os.rename(note + b".new", note)
