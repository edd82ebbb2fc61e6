"""Doing the steps of a publish on disk, so that kill -9 at any instruction leaves nothing that cannot be gone on from.

A work directory beside the tree, on the same file system, holds all that clients must not see:

    stage/     what rsync brought, at its final path        slots/    what is parked
    fresh/     made here, about to be renamed into place    trash/    what is gone, until `sweep`
    ahead/     what was fetched for the batch after this      attributes/  see `io_attributes`
    left/      what was staged for an earlier try: see `io_leftovers`
    intent     the steps of the publish under way           progress  the step it is at, and the inode being placed

The intent is on disk before the first step. Before each rename the number of its step and the inode it places are
noted in `progress` (one small write, which outlives the process); so whoever goes on knows of the one step in doubt
whether it happened: its path holds that inode, or not. A staged file needs no such note, since it is gone from staging
exactly when it was renamed; a delete needs none either, since it can be done twice: of many in a row only the first is
noted, and all of them are gone through again. After a power loss a note proves nothing, since it and the renames may
have reached the disk in any order: the intent is then abandoned, and its paths looked at again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from core.exclude import NOTHING as LEAVES_NOTHING_OUT
from core.exclude import Exclude
from syncd.model import Entry
from syncd.publish.io_attributes import NOTHING, ROOM, Kept
from syncd.publish.io_below import Below, remove_all, set_mode
from syncd.publish.io_steps import PROGRESS, Doer, is_as_announced
from syncd.publish.steps import Do, Intent, PublishError, Ranks, Step, decode_intent, encode_intent, touched
from syncd.source.row import Written

LEFT = b"left"
_ROOMS = (b"stage", b"slots", b"fresh", b"trash", b"ahead", ROOM, LEFT)
BOOT_ID = b"/proc/sys/kernel/random/boot_id"


class DiskFull(PublishError):
    """The disk is full; nothing partial is visible, and the publish goes on where it stopped once there is space."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one tree is published: `root`, the directory clients see, and `work`, of this daemon alone. `kept`: how.

    `exclude`: what lies there and is left alone, see `io_own`.
    """

    root: bytes
    work: bytes
    kept: Kept = NOTHING
    exclude: Exclude = LEAVES_NOTHING_OUT

    @property
    def stage(self) -> bytes:
        """Where files are fetched to, each at its path in the tree."""
        return os.path.join(self.work, b"stage")

    @property
    def attributes(self) -> bytes:
        """Where directories and symlinks are brought to for their attributes."""
        return os.path.join(self.work, ROOM)

    @property
    def ahead(self) -> bytes:
        """Where files of the batch after the next one are fetched to, until it is the next: see `take_ahead`."""
        return os.path.join(self.work, b"ahead")


@dataclass(frozen=True, slots=True)
class Pending:
    """A publish that was begun and not finished. Not `trusted`: the machine was restarted since."""

    intent: Intent
    done: int
    trusted: bool


def no_trip(what: str) -> None:
    """Called before every system call that changes something; tests end the process there."""


def prepare(layout: Layout) -> None:
    """Make the work directory. PublishError unless renames between it and the tree are possible."""
    for room in _ROOMS:
        os.makedirs(os.path.join(layout.work, room), mode=0o700, exist_ok=True)
    os.chmod(layout.work, 0o700)
    with Below(layout.root) as tree, Below(layout.work) as work:
        if os.fstat(tree.fd).st_dev != os.fstat(work.fd).st_dev:
            raise PublishError(
                f"{os.fsdecode(layout.work)} is not on the file system of {os.fsdecode(layout.root)}",
                "set `work` to a directory on it: files come into place by rename",
            )


def check_staged(layout: Layout, steps: Sequence[Step], staged: Written | None = None) -> dict[bytes, str]:
    """Files that the steps need and that did not come as announced, each with the reason (for `hold_back`).

    `staged`: what this process wrote there itself, as announced, which needs no look.
    """
    failed: dict[bytes, str] = {}
    written = {} if staged is None else staged
    with Below(layout.stage) as stage:
        for step in steps:
            if step.do is Do.PUT and step.entry is not None:
                row, entry = written.get(step.path), step.entry
                if row is not None and row.size == entry.size and row.mtime_ns == entry.mtime_ns:
                    continue
                found = stage.stat(step.path)
                if found is None or not is_as_announced(found, entry) or not _has_mode(stage, entry, found):
                    failed[step.path] = _unlike(found)
    return failed


def _has_mode(stage: Below, entry: Entry, found: os.stat_result) -> bool:
    """Whether a staged file has the mode that it was announced with, now at the latest: rsync gives it the parent's."""
    if stat.S_IMODE(found.st_mode) == entry.mode:
        return True
    if found.st_nlink > 1:
        return False  # clients see it under its other name, or older versions have it
    directory, name = stage.at(entry.path)
    with suppress(OSError):  # a file system without modes
        set_mode(directory, name, entry.mode)
    return True


def _unlike(found: os.stat_result | None) -> str:
    if found is None:
        return "it was not transferred"
    if not stat.S_ISREG(found.st_mode):
        return "it is no longer a file at the parent"
    return "it changed again at the parent"


def bring_whole(layout: Layout, steps: Sequence[Step], ranks: Ranks) -> tuple[Step, ...]:
    """`steps` with directories that are brought in one rename instead of file by file: after `hold_back`, before `begin`.

    Those that are new, and for which exactly the payload lies in staging that is put into them: then nothing is visible
    sooner than anything that must come before it. A new directory with an index in it is still made, and filled. Files
    that come with their directory need no step of their own any more.
    """
    new = {step.path: step for step in steps if step.do is Do.MAKE and step.entry is not None}
    if layout.exclude and new:
        with Below(layout.root) as tree:
            new = {path: step for path, step in new.items() if tree.stat(path) is None}
    if not new:
        return tuple(steps)
    wanted: dict[bytes, set[bytes]] = {path: set() for path in new}
    for step in steps:
        if step.do is Do.PUT:
            above, _, name = step.path.rpartition(b"/")
            if above in new and not ranks.of(step.path):
                wanted[above].add(name)
    whole: set[bytes] = set()
    with Below(layout.stage) as stage:
        # The deepest first: a directory is whole when those in it are.
        for path in sorted(new, key=lambda path: -path.count(b"/")):
            entry = new[path].entry
            if entry is not None and _is_whole(stage, path, wanted[path], whole, entry.mode | 0o700):
                whole.add(path)
    if not whole:
        return tuple(steps)
    left = [step for step in steps if step.do is not Do.PUT or step.path.rpartition(b"/")[0] not in whole]
    return tuple([step._replace(do=Do.BRING) if step.do is Do.MAKE and step.path in whole else step for step in left])


def _is_whole(stage: Below, path: bytes, files: set[bytes], whole: set[bytes], mode: int) -> bool:
    """Whether staging holds just these files in `path`, and whole directories; it gets its mode then, while unseen."""
    try:
        fd = stage.open_directory(path)
    except PublishError:
        return False
    try:
        count = 0
        with os.scandir(fd) as found:
            for each in found:
                name = os.fsencode(each.name)
                if each.is_file(follow_symlinks=False):
                    count += 1
                    if name not in files:
                        return False
                elif not each.is_dir(follow_symlinks=False) or path + b"/" + name not in whole:
                    return False
        if count == len(files):
            os.fchmod(fd, mode)
        return count == len(files)
    finally:
        os.close(fd)


def begin(layout: Layout, intent: Intent) -> None:
    """Write down what is about to be done. DiskFull, with nothing changed, when there is no room even for that."""
    for room in _ROOMS[1:3]:
        remove_all(os.path.join(layout.work, room))
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(layout.work, b"progress"))
    with open(BOOT_ID, "rb") as boot:
        data = boot.read(36) + encode_intent(intent)
    try:
        _write_whole(os.path.join(layout.work, b"intent"), data)
    except OSError as error:
        raise explained(error, layout.work) from error


def pending(layout: Layout) -> Pending | None:
    """The publish that is under way here, if any; PublishError when its note is damaged."""
    try:
        with open(os.path.join(layout.work, b"intent"), "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    with open(BOOT_ID, "rb") as boot:
        trusted = boot.read(36) == data[:36]
    intent = decode_intent(data[36:])
    return Pending(intent, _read_progress(layout)[0], trusted)


def run(
    layout: Layout,
    *,
    begun: Intent | None = None,
    consume: bool = True,
    durable: bool = True,
    trip: Callable[[str], None] = no_trip,
) -> Intent | None:
    """Do what is left of the publish under way; None when there is none. Afterwards the caller records it, then `finish`.

    `begun`: what this process gave to `begin` just before, which then need not be read back.
    `consume`: staged files and existing ones may be moved and changed; False makes new links and copies instead, for a
    tree that shares files with another version. `durable`: what is visible is on disk, not only in memory, on return.
    PublishError, DiskFull: it stopped between two steps; `run` again goes on from there.
    """
    todo = Pending(begun, 0, True) if begun is not None else pending(layout)
    if todo is None:
        return None
    if not todo.trusted:
        raise PublishError(
            f"{os.fsdecode(layout.root)}: the machine went down during a publish",
            "`abandon` it and look at its paths again",
        )
    done, inode = _read_progress(layout)
    with Below(layout.root) as tree, Below(layout.work) as work:
        doer = Doer(tree, work, consume, trip, layout.kept, layout.exclude)
        try:
            if durable and not done and not inode:
                doer.sync_staged(todo.intent.steps)
            doer.run(todo.intent.steps, done, inode)
            if durable:
                doer.sync_tree(todo.intent.steps)
        except OSError as error:
            raise explained(error, layout.root) from error
        finally:
            doer.close()
    return todo.intent


def finish(layout: Layout, trip: Callable[[str], None] = no_trip) -> None:
    """Forget the publish: the caller has recorded its outcome. Before this, `run` again changes nothing."""
    trip("unlink intent")
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(layout.work, b"intent"))
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(layout.work, b"progress"))


def abandon(layout: Layout) -> tuple[bytes, ...]:
    """Give up the publish under way; the paths that must be looked at again, since it may have changed them."""
    todo = pending(layout)
    for room in _ROOMS[1:3]:
        remove_all(os.path.join(layout.work, room))
    finish(layout)
    return touched(todo.intent.steps) if todo else ()


def sweep(layout: Layout) -> int:
    """Remove for good what was deleted; number of entries. Away from the publish, since it takes its time."""
    return remove_all(os.path.join(layout.work, b"trash"))


def clear_stage(layout: Layout) -> int:
    """Remove what was fetched and never published; number of entries. Not while rsync runs."""
    return remove_all(layout.stage)


def clear_attributes(layout: Layout) -> None:
    """Empty the room for attributes: what was brought for another batch says nothing of this one."""
    os.makedirs(layout.attributes, mode=0o700, exist_ok=True)
    remove_all(layout.attributes)


def take_ahead(layout: Layout) -> None:
    """What was fetched ahead is the stage now; what was staged before goes. Not while a publish is under way."""
    clear_stage(layout)
    os.rename(layout.ahead, layout.stage)
    os.mkdir(layout.ahead, 0o700)


def _read_progress(layout: Layout) -> tuple[int, int]:
    try:
        with open(os.path.join(layout.work, b"progress"), "rb") as file:
            data = file.read(PROGRESS.size)
    except FileNotFoundError:
        return 0, 0
    return PROGRESS.unpack(data) if len(data) == PROGRESS.size else (0, 0)


def _write_whole(path: bytes, data: bytes) -> None:
    """Replace a file such that after a crash the old or the new one is there."""
    with open(path + b".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + b".new", path)
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def explained(error: OSError, where: bytes) -> PublishError:
    """What an operator can do about an error of the disk under `where`."""
    place = os.fsdecode(where)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{place}: {error.strerror}", "make space; syncd goes on by itself")
    if error.errno == errno.ENOENT:
        return PublishError(
            f"{place}: {error.filename!r} is gone",
            "something besides syncd changes this tree; it is compared with the parent's and put right",
        )
    if error.errno == errno.EXDEV:
        return PublishError(f"{place}: a mount point lies inside the tree", "make it a tree of its own")
    if error.errno == errno.EROFS:
        return PublishError(f"{place} is mounted read-only", "remount it, and see the kernel's log why")
    return PublishError(f"{place}: {error}", "the publish is tried again; see the path's owner and mode")
