"""Steps of a publish, one after the other, on an open tree and an open work directory. See `io_publish`."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress

from core.exclude import NOTHING as LEAVES_NOTHING_OUT
from core.exclude import Exclude
from syncd.model import UNTOLD, Entry
from syncd.publish.io_attributes import NOTHING, ROOM, Kept, take_over
from syncd.publish.io_below import Below, exchange, is_directory, set_mode, sync_file_system
from syncd.publish.io_own import find_own, prune, refuse_own, refuse_to_take_along
from syncd.publish.steps import Do, PublishError, Step, touched
from syncd.source.row import held_ns

SYNC_EACH = 64
"""Up to so many files or directories are synced one by one; beyond, the whole file system at once is quicker."""

PROGRESS = struct.Struct(">QQ")
"""The file `progress`: number of the step under way, inode it places."""


def is_as_announced(found: os.stat_result | None, entry: Entry | None) -> bool:
    """Whether this is the stat of the file that the entry tells of."""
    if found is None or entry is None or not stat.S_ISREG(found.st_mode) or found.st_size != entry.size:
        return False
    return entry.mtime_ns == UNTOLD or held_ns(found.st_mtime_ns) == entry.mtime_ns


def copy_file(source: int, name: bytes, directory: int, mode: int, mtime_ns: int) -> None:
    """A copy (a reflink where the disk can) of the open file `source`, as `name` in the directory, durable."""
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        while os.copy_file_range(source, target, 1 << 30):
            pass
        os.fchmod(target, mode)
        os.utime(target, ns=(mtime_ns, mtime_ns))
        os.fsync(target)
    finally:
        os.close(target)


_UNNOTED = frozenset({Do.PUT, Do.DELETE})


class Doer:
    """Does steps, one after the other, on an open tree and an open work directory."""

    def __init__(
        self,
        tree: Below,
        work: Below,
        consume: bool,
        trip: Callable[[str], None],
        kept: Kept = NOTHING,
        exclude: Exclude = LEAVES_NOTHING_OUT,
    ) -> None:
        self.tree = tree
        self.work = work
        self.consume = consume
        self.trip = trip
        self.kept = kept
        self.exclude = exclude
        self.number = 0
        self.expected = 0
        """inode noted for the first step, which may have happened already; 0 for every other"""
        self.opened: dict[int, tuple[int, int]] = {}
        """read-only directories made writable for a moment, by inode: descriptor (they may move) and mode"""
        self.brought: set[bytes] = set()
        """directories that came from staging with all that is to be in them"""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self.progress = os.open(b"progress", flags, 0o600, dir_fd=work.fd)

    def close(self) -> None:
        for fd, mode in self.opened.values():
            os.chmod(b"/proc/self/fd/%d" % fd, mode)
            os.close(fd)
        os.close(self.progress)

    def run(self, steps: Sequence[Step], done: int, inode: int) -> None:
        self.expected = inode
        before = None
        for self.number in range(done, len(steps)):
            step = steps[self.number]
            if step.do in _UNNOTED and step.do is not before and not self.expected:
                self._note(self.number, 0)
            before = step.do
            if self.expected or not self._do_quickly(step):
                self._do(step)
            self.expected = 0
        self._note(len(steps), 0)

    def _do_quickly(self, step: Step) -> bool:
        """Do a put or a delete in one system call, where it is that simple: see the module on why nothing is noted."""
        try:
            if step.do is Do.PUT and self.consume:
                return self._put_quickly(step)
            if step.do is Do.DELETE:
                fd, name = self.tree.at(step.path)
                self.trip("unlink")
                os.unlink(name, dir_fd=fd)
                return True
        except FileNotFoundError:
            return step.do is Do.DELETE
        except (OSError, PublishError):
            pass
        return False

    def _put_quickly(self, step: Step) -> bool:
        path = step.path
        to_fd = self.tree.directory(path.rpartition(b"/")[0])
        try:
            from_fd, name = self.work.at(b"stage/" + path)
            found = os.stat(name, dir_fd=from_fd, follow_symlinks=False)
        except (FileNotFoundError, PublishError):
            return is_as_announced(self.tree.stat(path), step.entry)  # then it was done before
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            return False
        self.trip("rename staged")
        os.rename(name, name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
        return True

    def _do(self, step: Step) -> None:
        fresh, path = b"fresh/%d" % self.number, step.path
        if step.do in (Do.MOVE, Do.PARK):
            refuse_to_take_along(self.tree, step.source, self.exclude)
        if step.do is Do.BRING and self.consume:
            self._bring(path)
        elif step.do is Do.MOVE:
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
        elif step.do is Do.MAKE and not self._is_done(path) and self._holds_own(path):
            self._note(self.number, 0)
            self._writable(lambda: prune(self.tree, path, self.exclude), path)
        elif not self._is_done(path):
            self._make(step, fresh)
            self._place(self.work, fresh, path)
        else:
            self._discard(self.work, fresh)

    def _bring(self, path: bytes) -> None:
        if path.rpartition(b"/")[0] not in self.brought:
            if self.expected or self.work.stat(b"stage/" + path) is not None:
                self._place(self.work, b"stage/" + path, path)
                # What was kept open lies elsewhere now.
                self.work.forget()
                self.tree.forget()
            elif not is_directory(self.tree.stat(path)):
                raise PublishError(
                    f"{os.fsdecode(self.tree.root)}: {path!r} is gone, after it was published",
                    "something besides syncd changes this tree; it is compared with the parent's and put right",
                )
        self.brought.add(path)

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
        if step.do in (Do.MAKE, Do.BRING):
            os.mkdir(name, 0o700, dir_fd=fd)
            self._take_over(step.path, self.work, fresh)
            fd, name = self.work.at(fresh)
            if (
                step.entry is not None
            ):  # as clients may see it, at once: an index that names what is in it comes before ATTR
                set_mode(fd, name, step.entry.mode | 0o700)
        elif step.do is Do.SYMLINK:
            assert step.entry is not None
            os.symlink(step.entry.target, name, dir_fd=fd)
            self._take_over(step.path, self.work, fresh)
            fd, name = self.work.at(fresh)
            if step.entry.mtime_ns != UNTOLD:
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
        refuse_own(self.tree, path, self.exclude)
        to_fd, to_name = self.tree.at(path)
        from_fd, from_name = below.at(source)
        to_fd, to_name = self.tree.at(path)
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
            is_kept = self._holds_own(path)
            self._writable(lambda: self._remove(path, is_kept), path)

    def _remove(self, path: bytes, is_kept: bool) -> None:
        if is_kept:
            self.trip("prune")
            prune(self.tree, path, self.exclude)
        else:
            self._discard(self.tree, path)

    def _holds_own(self, path: bytes) -> bool:
        """Whether something lies at or below the directory `path` that is left alone."""
        return bool(self.exclude) and find_own(self.tree, path, self.exclude) is not None

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
        self._take_over(step.path, self.tree, step.path)
        fd, name = self.tree.at(step.path)
        if not stat.S_ISLNK(found.st_mode):
            set_mode(fd, name, step.entry.mode)
            if found.st_ino in self.opened:
                os.close(self.opened.pop(found.st_ino)[0])
        if step.entry.mtime_ns != UNTOLD:
            times = (step.entry.mtime_ns, step.entry.mtime_ns)
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

    def _take_over(self, path: bytes, below: Below, target: bytes) -> None:
        """Give `target` the attributes that were brought for `path`, if any are kept and were brought."""
        if not self.kept:
            return
        with suppress(PublishError, FileNotFoundError):  # it went at the parent meanwhile, as the next batch tells
            source = self.work.at(ROOM + b"/" + path if path else ROOM)
            to = below.at(target)
            source = self.work.at(ROOM + b"/" + path if path else ROOM)  # the other one may have closed it
            take_over(source, to, self.kept)

    def _copy(self, path: bytes, fresh: bytes, entry: Entry) -> None:
        """A copy of a file that other versions share, with attributes of its own (a reflink where the disk can)."""
        self._discard(self.work, fresh)
        fd, name = self.tree.at(path)
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            fd, name = self.work.at(fresh)
            copy_file(source, name, fd, entry.mode, entry.mtime_ns)
        finally:
            os.close(source)

    def _writable(self, action: Callable[[], None], *paths: bytes) -> None:
        """Do `action`; a directory that we own and may not write is opened up for it, as rsync does, and closed again."""
        try:
            action()
        except PermissionError:
            for path in {path.rpartition(b"/")[0] for path in paths} | {p for p in paths if p != b""}:
                found = self.tree.stat(path)
                if found is not None and is_directory(found) and found.st_mode & 0o300 != 0o300:
                    fd, name = self.tree.at(path)
                    if found.st_ino not in self.opened:
                        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
                        self.opened[found.st_ino] = os.open(name, flags, dir_fd=fd), stat.S_IMODE(found.st_mode)
                    set_mode(fd, name, stat.S_IMODE(found.st_mode) | 0o700)
            action()

    def _note(self, number: int, inode: int) -> None:
        self.trip("note")
        os.pwrite(self.progress, PROGRESS.pack(number, inode), 0)

    # durability --------------------------------------------------------------------------------------------------------

    def sync_staged(self, steps: Sequence[Step]) -> None:
        """Contents first: a name must not reach the disk before what it stands for."""
        staged: list[bytes] = []
        for step in steps:
            if step.do is Do.PUT:
                staged.append(step.path)
            elif step.do is Do.BRING:
                staged += self._files_in(step.path)
            if len(staged) > SYNC_EACH:
                sync_file_system(self.work.fd)
                return
        for path in staged:
            if self.work.stat(b"stage/" + path) is not None:
                fd, name = self.work.at(b"stage/" + path)
                try:
                    self._sync(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd))
                except PermissionError:  # its mode lets others read it, but not its owner: us
                    sync_file_system(self.work.fd)
                    return

    def _files_in(self, path: bytes) -> list[bytes]:
        """The files in the staged directory `path`."""
        if not is_directory(self.work.stat(b"stage/" + path)):
            return []  # it was brought before
        fd = self.work.open_directory(b"stage/" + path)
        try:
            with os.scandir(fd) as found:
                return [path + b"/" + os.fsencode(each.name) for each in found if each.is_file(follow_symlinks=False)]
        finally:
            os.close(fd)

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
