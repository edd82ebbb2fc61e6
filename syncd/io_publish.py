"""Doing the steps of a publish on disk, so that kill -9 at any instruction leaves nothing that cannot be gone on from.

A work directory beside the tree, on the same file system, holds all that clients must not see:

    stage/     what rsync brought, at its final path        slots/    what is parked
    fresh/     made here, about to be renamed into place    trash/    what is gone, until `sweep`
    intent     the steps of the publish under way           progress  the step it is at, and the inode being placed

The intent is on disk before the first step. Before each rename the number of its step and the inode it places are
noted in `progress` (one small write, which outlives the process); so whoever goes on knows of the one step in doubt
whether it happened: its path holds that inode, or not. After a power loss that note proves nothing, since it and the
renames may have reached the disk in any order: the intent is then abandoned, and its paths looked at again.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from syncd.io_below import Below, exchange, is_directory, remove_all, set_mode, sync_file_system
from syncd.model import Entry
from syncd.publish import Do, Intent, PublishError, Step, decode_intent, encode_intent, touched

SYNC_EACH = 64
"""Up to so many files or directories are synced one by one; beyond, the whole file system at once is quicker."""

_PROGRESS = struct.Struct(">QQ")
_ROOMS = (b"stage", b"slots", b"fresh", b"trash")
BOOT_ID = b"/proc/sys/kernel/random/boot_id"


class DiskFull(PublishError):
    """The disk is full; nothing partial is visible, and the publish goes on where it stopped once there is space."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where one tree is published: `root`, the directory clients see, and `work`, of this daemon alone."""

    root: bytes
    work: bytes

    @property
    def stage(self) -> bytes:
        """Where files are fetched to, each at its path in the tree."""
        return os.path.join(self.work, b"stage")


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


def check_staged(layout: Layout, steps: Sequence[Step]) -> dict[bytes, str]:
    """Files that the steps need and that did not come as announced, each with the reason (for `hold_back`)."""
    failed: dict[bytes, str] = {}
    with Below(layout.stage) as stage:
        for step in steps:
            if step.do is Do.PUT and step.entry is not None and (why := _unlike(stage, step.entry)):
                failed[step.path] = why
    return failed


def _unlike(stage: Below, entry: Entry) -> str:
    found = stage.stat(entry.path)
    if found is None:
        return "it was not transferred"
    if not stat.S_ISREG(found.st_mode):
        return "it is no longer a file at the parent"
    if found.st_size != entry.size or (entry.mtime_ns and found.st_mtime_ns != entry.mtime_ns):
        return "it changed again at the parent"
    return ""


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
    layout: Layout, *, consume: bool = True, durable: bool = True, trip: Callable[[str], None] = no_trip
) -> Intent | None:
    """Do what is left of the publish under way; None when there is none. Afterwards the caller records it, then `finish`.

    `consume`: staged files and existing ones may be moved and changed; False makes new links and copies instead, for a
    tree that shares files with another version. `durable`: what is visible is on disk, not only in memory, on return.
    PublishError, DiskFull: it stopped between two steps; `run` again goes on from there.
    """
    todo = pending(layout)
    if todo is None:
        return None
    if not todo.trusted:
        raise PublishError(
            f"{os.fsdecode(layout.root)}: the machine went down during a publish",
            "`abandon` it and look at its paths again",
        )
    done, inode = _read_progress(layout)
    with Below(layout.root) as tree, Below(layout.work) as work:
        doer = _Doer(tree, work, consume, trip)
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


def _read_progress(layout: Layout) -> tuple[int, int]:
    try:
        with open(os.path.join(layout.work, b"progress"), "rb") as file:
            data = file.read(_PROGRESS.size)
    except FileNotFoundError:
        return 0, 0
    return _PROGRESS.unpack(data) if len(data) == _PROGRESS.size else (0, 0)


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
    if error.errno == errno.EXDEV:
        return PublishError(f"{place}: a mount point lies inside the tree", "make it a tree of its own")
    if error.errno == errno.EROFS:
        return PublishError(f"{place} is mounted read-only", "remount it, and see the kernel's log why")
    return PublishError(f"{place}: {error}", "the publish is tried again; see the path's owner and mode")


class _Doer:
    """Does steps, one after the other, on an open tree and an open work directory."""

    def __init__(self, tree: Below, work: Below, consume: bool, trip: Callable[[str], None]) -> None:
        self.tree = tree
        self.work = work
        self.consume = consume
        self.trip = trip
        self.number = 0
        self.expected = 0
        """inode noted for the first step, which may have happened already; 0 for every other"""
        self.opened: dict[int, tuple[int, int]] = {}
        """read-only directories made writable for a moment, by inode: descriptor (they may move) and mode"""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self.progress = os.open(b"progress", flags, 0o600, dir_fd=work.fd)

    def close(self) -> None:
        for fd, mode in self.opened.values():
            os.chmod(b"/proc/self/fd/%d" % fd, mode)
            os.close(fd)
        os.close(self.progress)

    def run(self, steps: Sequence[Step], done: int, inode: int) -> None:
        self.expected = inode
        for self.number in range(done, len(steps)):
            self._do(steps[self.number])
            self.expected = 0
        self._note(len(steps), 0)

    def _do(self, step: Step) -> None:
        fresh, path = b"fresh/%d" % self.number, step.path
        if step.do is Do.MOVE:
            self._place(self.tree, step.source, path)
            self.tree.forget()
        elif step.do is Do.UNPARK:
            self._place(self.work, b"slots/%d" % step.slot, path)
            self.tree.forget()
        elif step.do is Do.PARK:
            self._park(step)
        elif step.do is Do.PUT and self.consume:
            self._place(self.work, b"stage/" + path, path)
        elif step.do is Do.DELETE:
            self._delete(path)
        elif step.do is Do.ATTR:
            self._attributes(step, fresh)
        elif not self._is_done(path):
            self._make(step, fresh)
            self._place(self.work, fresh, path)
        else:
            self._discard(self.work, fresh)

    def _make(self, step: Step, fresh: bytes) -> None:
        """Make what the step brings, in the work directory."""
        self._discard(self.work, fresh)
        self.trip(f"make {step.do.name}")
        if step.do is Do.LINK:
            from_fd, from_name = self.tree.at(step.source)
        else:
            from_fd, from_name = self.work.at(b"stage/" + step.path) if step.do is Do.PUT else (-1, b"")
        # Last, since looking up the other one may close it; this one is then open, and no third is looked up.
        fd, name = self.work.at(fresh)
        if step.do is Do.MAKE:
            os.mkdir(name, 0o700, dir_fd=fd)
        elif step.do is Do.SYMLINK:
            assert step.entry is not None
            os.symlink(step.entry.target, name, dir_fd=fd)
            if step.entry.mtime_ns:
                times = (step.entry.mtime_ns, step.entry.mtime_ns)
                os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)
        else:
            os.link(from_name, name, src_dir_fd=from_fd, dst_dir_fd=fd, follow_symlinks=False)

    def _is_done(self, path: bytes) -> bool:
        """Whether the step in doubt has happened: its path holds the inode that was about to be placed there."""
        found = self.tree.stat(path) if self.expected else None
        return found is not None and found.st_ino == self.expected

    def _place(self, below: Below, source: bytes, path: bytes) -> None:
        """Rename what is at `source` to `path` in the tree, whatever stands there, at once where the kernel can."""
        if self._is_done(path):
            left = below.stat(source)
            if left is not None and (below is self.work or left.st_ino != self.expected):
                self._discard(below, source)
            return
        found = below.stat(source)
        if found is None:
            raise PublishError(
                f"{os.fsdecode(self.tree.root)}: {source!r} is gone, and should become {path!r}",
                "something besides syncd changes this tree; it is compared with the parent's and put right",
            )
        self._note(self.number, found.st_ino)
        self._writable(lambda: self._rename(below, source, path), path, source if below is self.tree else path)
        # rename(2) of two names of one file does nothing and succeeds.
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode) and below.stat(source) is not None:
            self._discard(below, source)

    def _rename(self, below: Below, source: bytes, path: bytes) -> None:
        # The second look-up may close what the first one opened when it makes room; then the first one is repeated.
        to_fd, to_name = self.tree.at(path)
        from_fd, from_name = below.at(source)
        to_fd, to_name = self.tree.at(path)
        self.trip("rename into place")
        try:
            os.rename(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return
        self.trip("exchange")
        try:
            exchange(from_fd, from_name, to_fd, to_name)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            self._discard(self.tree, path)  # this file system cannot exchange: the name is gone for a moment
            to_fd, to_name = self.tree.at(path)
            from_fd, from_name = below.at(source)
            self.trip("rename after discard")
            os.rename(from_name, to_name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
            return
        self.tree.forget()
        self._discard(below, source)

    def _park(self, step: Step) -> None:
        slot = b"slots/%d" % step.slot
        slot_fd, slot_name = self.work.at(slot)
        parked = self.work.stat(slot)
        if parked is not None and self.expected == parked.st_ino:
            return
        found = self.tree.stat(step.source)
        if found is None:
            raise PublishError(
                f"{os.fsdecode(self.tree.root)}: {step.source!r} is gone, and should become {step.path!r}",
                "something besides syncd changes this tree; it is compared with the parent's and put right",
            )
        self._note(self.number, found.st_ino)
        fd, name = self.tree.at(step.source)
        self.trip("park")
        if is_directory(found):
            self._writable(lambda: os.rename(name, slot_name, src_dir_fd=fd, dst_dir_fd=slot_fd), step.source)
            self.tree.forget()
        else:
            os.link(name, slot_name, src_dir_fd=fd, dst_dir_fd=slot_fd, follow_symlinks=False)

    def _delete(self, path: bytes) -> None:
        if self.tree.stat(path) is not None:
            self._note(self.number, 0)
            self._writable(lambda: self._discard(self.tree, path), path)

    def _discard(self, below: Below, path: bytes) -> None:
        """Take `path` out of sight: a file is unlinked, a directory goes to the trash at once, with all below it."""
        found = below.stat(path)
        if found is None:
            return
        fd, name = below.at(path)
        self.trip("discard")
        if not is_directory(found):
            os.unlink(name, dir_fd=fd)
            return
        trash = self.work.directory(b"trash")
        if below is self.work:
            fd, name = below.at(path)
        # An inode number is in the trash once at a time, so the name is free.
        os.rename(name, b"%d.gone" % found.st_ino, src_dir_fd=fd, dst_dir_fd=trash)
        below.forget()

    def _attributes(self, step: Step, fresh: bytes) -> None:
        assert step.entry is not None
        found = self.tree.stat(step.path)
        if found is None:
            return
        if not self.consume and stat.S_ISREG(found.st_mode):
            if not self._is_done(step.path):
                self._copy(step.path, fresh, step.entry)
                self._place(self.work, fresh, step.path)
            return
        self._note(self.number, 0)
        fd, name = self.tree.at(step.path)
        self.trip("attributes")
        if not stat.S_ISLNK(found.st_mode):
            set_mode(fd, name, step.entry.mode)
            if found.st_ino in self.opened:
                os.close(self.opened.pop(found.st_ino)[0])
        if step.entry.mtime_ns:
            times = (step.entry.mtime_ns, step.entry.mtime_ns)
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

    def _copy(self, path: bytes, fresh: bytes, entry: Entry) -> None:
        """A copy of a file that other versions share, with attributes of its own (a reflink where the disk can)."""
        self._discard(self.work, fresh)
        fd, name = self.tree.at(path)
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        fd, name = self.work.at(fresh)
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            while os.copy_file_range(source, target, 1 << 30):
                pass
            os.fchmod(target, entry.mode)
            os.utime(target, ns=(entry.mtime_ns, entry.mtime_ns))
            os.fsync(target)
        finally:
            os.close(source)
            os.close(target)

    def _writable(self, action: Callable[[], None], *paths: bytes) -> None:
        """Do `action`; a directory that we own and may not write is opened up for it, as rsync does, and closed again."""
        try:
            action()
        except PermissionError:
            for path in {path.rpartition(b"/")[0] for path in paths} | {p for p in paths if p != b""}:
                found = self.tree.stat(path) if path else os.fstat(self.tree.fd)
                if path and found is not None and is_directory(found) and found.st_mode & 0o300 != 0o300:
                    fd, name = self.tree.at(path)
                    if found.st_ino not in self.opened:
                        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                        self.opened[found.st_ino] = os.open(name, flags, dir_fd=fd), stat.S_IMODE(found.st_mode)
                    set_mode(fd, name, stat.S_IMODE(found.st_mode) | 0o700)
            action()

    def _note(self, number: int, inode: int) -> None:
        self.trip("note")
        os.pwrite(self.progress, _PROGRESS.pack(number, inode), 0)

    # durability --------------------------------------------------------------------------------------------------------

    def sync_staged(self, steps: Sequence[Step]) -> None:
        """Contents first: a name must not reach the disk before what it stands for."""
        staged = [step.path for step in steps if step.do is Do.PUT]
        if len(staged) > SYNC_EACH:
            sync_file_system(self.work.fd)
            return
        for path in staged:
            if self.work.stat(b"stage/" + path) is not None:
                fd, name = self.work.at(b"stage/" + path)
                self._sync(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd))

    def sync_tree(self, steps: Sequence[Step]) -> None:
        """Every name that changed is on disk."""
        changed = {path.rpartition(b"/")[0] for path in touched(steps)}
        changed |= {step.path for step in steps if step.do is Do.ATTR}
        if len(changed) > SYNC_EACH:
            sync_file_system(self.tree.fd)
            return
        for path in changed:
            if not path or is_directory(self.tree.stat(path)):
                self._sync(self.tree.open_directory(path))

    def _sync(self, fd: int) -> None:
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
