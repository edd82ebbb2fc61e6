"""Small files on disk at both ends: the parent reads them below its tree, the child writes them into its stage."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence

from core.exclude import NOTHING, Exclude
from syncd.model import Entry
from syncd.publish.io_below import Below, is_directory, remove_all
from syncd.publish.io_publish import explained
from syncd.publish.steps import PublishError
from syncd.source.io_digest import digest_of
from syncd.source.row import Row, Written, held_ns
from syncd.transfer import wire
from syncd.transfer.rsync import UNREADABLE
from syncd.transfer.small import WRONG_CONTENT
from syncd.transfer.wire import Answer, Content, Lack, Linked

VANISHED = "it vanished at the parent"
CHANGED = "it changed again at the parent"
NO_FILE = "it is no longer a file at the parent"
"""The first three as `rsync.parse_line` and `io_publish.check_staged` say them."""

_WHY = {
    Lack.GONE: VANISHED,
    Lack.NO_FILE: NO_FILE,
    Lack.TOO_LARGE: CHANGED,  # only small ones are asked for
    Lack.CHANGED: CHANGED,
    Lack.UNREADABLE: UNREADABLE,
}
# What is tried again as a whole, since it is not about one path.
_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})

# Non-blocking: what is a fifo by the time it is opened must not hang the thread.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_MADE_WITH = 0o755
"""Permissions that the usual umask leaves when a file is made: then nothing need be said about them again."""
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


# --- the parent ---------------------------------------------------------------------------------------------------------


def read_files(root: bytes, paths: Sequence[bytes], exclude: Exclude = NOTHING) -> bytes:
    """The answer to a request for `paths` below the directory `root`; without what is in `exclude`.

    What is excluded is answered as if it were not there. PublishError when `root` is no directory.
    """
    with Below(root) as tree:
        return b"".join(wire.encode_files(_answers(tree, paths, exclude)))


def _answers(tree: Below, paths: Sequence[bytes], exclude: Exclude) -> Iterator[Answer]:
    links: dict[tuple[int, ...], int] = {}
    for index, path in enumerate(paths):
        if exclude.covers(path):
            yield Lack.GONE
            continue
        answer, found = _read_file(tree, path)
        if found is not None and found.st_nlink > 1 and isinstance(answer, Content):
            first = links.setdefault((found.st_dev, found.st_ino, *_stamps(found)), index)
            answer = answer if first == index else Linked(first)
        yield answer


def _read_file(tree: Below, path: bytes) -> tuple[Answer, os.stat_result | None]:
    if not path:
        return Lack.NO_FILE, None
    try:
        directory, name = tree.at(path)
        before = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISREG(before.st_mode):
            return Lack.NO_FILE, None  # and is not opened: that alone rewinds some tapes
        fd = os.open(name, _READ, dir_fd=directory)
    except (FileNotFoundError, PublishError):
        return Lack.GONE, None
    except OSError as error:
        return Lack.NO_FILE if error.errno in (errno.ELOOP, errno.ENXIO) else Lack.UNREADABLE, None
    try:
        return _read_open(fd, before)
    except OSError:
        return Lack.UNREADABLE, None
    finally:
        os.close(fd)


def _read_open(fd: int, before: os.stat_result) -> tuple[Answer, os.stat_result]:
    """The content of what is open; `before`: what its name said before it was opened, which may be another file."""
    if before.st_size > wire.SMALL_FILE_BYTES:
        return Lack.TOO_LARGE, before
    content = os.read(fd, before.st_size + 1)
    while len(content) < before.st_size and (more := os.read(fd, before.st_size + 1 - len(content))):
        content += more  # some network file systems give less at a time
    after = os.fstat(fd)
    if not stat.S_ISREG(after.st_mode):
        return Lack.NO_FILE, after
    is_same = (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)
    if not is_same or len(content) != before.st_size or _stamps(after) != _stamps(before):
        return Lack.CHANGED, before
    return Content(stat.S_IMODE(before.st_mode), held_ns(before.st_mtime_ns), content), before


def _stamps(found: os.stat_result) -> tuple[int, int, int]:
    """What changes with the content; the ctime also when the name was replaced, and what was opened has no name left."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


# --- the child ----------------------------------------------------------------------------------------------------------


def stage_answer(
    stage: bytes, entries: Sequence[Entry], data: bytes, hard_links: bool, written: Written
) -> tuple[int, dict[bytes, str]]:
    """`stage_files` of an answer as it came: (to how many of `entries` it is, those of them that failed).

    MessageError when it is not of its form: then nothing was written.
    """
    answers = wire.decode_files(len(entries), data)
    return len(answers), stage_files(stage, entries, answers, hard_links, written)


def stage_files(
    stage: bytes,
    entries: Sequence[Entry],
    answers: Sequence[Answer],
    hard_links: bool = True,
    written: Written | None = None,
) -> dict[bytes, str]:
    """Write each file that came as its entry announced it to its path below `stage`; the others, each with the reason.

    As announced: of its size, its time and, where there is one, its digest.

    `answers` are to the first so many of `entries`; what was written is added to `written`. DiskFull, or another
    PublishError, when the disk refuses: files that were written before stay, and a partial one does not.
    """
    failed: dict[bytes, str] = {}
    written = {} if written is None else written
    with Below(stage) as below:
        for entry, answer in zip(entries, answers, strict=False):
            link = b""
            if isinstance(answer, Linked):
                first, answer = entries[answer.index], answers[answer.index]
                if hard_links and first.path not in failed and _is_one_file(first, entry):
                    link = first.path
            try:
                why = _stage(below, entry, answer, link, written)
            except OSError as error:
                if error.errno in _DISK_ERRORS:
                    raise explained(error, stage) from error
                why = f"it cannot be written here: {error.strerror}"
            if why:
                failed[entry.path] = why
    return failed


def _is_one_file(one: Entry, other: Entry) -> bool:
    return (one.mode, one.size, one.mtime_ns, one.digest) == (other.mode, other.size, other.mtime_ns, other.digest)


def _stage(below: Below, entry: Entry, answer: Answer, link: bytes, written: Written) -> str:
    """Why the entry is not staged; empty when it is. `link`: the path of a staged file of which this is another name."""
    if isinstance(answer, Lack):
        return _WHY[answer]
    assert isinstance(answer, Content)  # decode_files lets a link lead to nothing else
    if len(answer.content) != entry.size or answer.mtime_ns != entry.mtime_ns:
        return CHANGED
    if entry.digest is not None and digest_of(answer.content) != entry.digest:
        return WRONG_CONTENT
    if not link:
        try:
            written[entry.path] = _write(*below.at(entry.path), entry, answer.content)
        except (FileExistsError, PublishError):
            _make_room(below, entry.path)
            written[entry.path] = _write(*below.at(entry.path), entry, answer.content)
        return ""
    written[link] = written[entry.path] = None  # a further name moves the ctime
    _make_room(below, entry.path)
    below.at(link)
    target, name = below.at(entry.path)
    source, first = below.at(link)  # both are open now: see Below.directory
    os.link(first, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    return ""


def _make_room(below: Below, path: bytes) -> None:
    """Make the directories above `path`; whatever an earlier try left in the way of them, or at `path`, goes."""
    names = path.split(b"/")
    for depth in range(1, len(names)):
        above = b"/".join(names[:depth])
        found = below.stat(above)
        if not is_directory(found):
            directory, name = below.at(above)
            if found is not None:
                os.unlink(name, dir_fd=directory)
            os.mkdir(name, 0o700, dir_fd=directory)
    found = below.stat(path)
    if found is None:
        return
    if not is_directory(found):
        directory, name = below.at(path)
        os.unlink(name, dir_fd=directory)
        return
    fd = below.open_directory(path)
    try:
        remove_all(b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)
    below.forget()
    directory, name = below.at(path)
    os.rmdir(name, dir_fd=directory)


def _write(directory: int, name: bytes, entry: Entry, content: bytes) -> Row:
    """The file whole, its time set last: what a crash leaves of it has another time, and is fetched again."""
    fd = os.open(name, _WRITE, entry.mode & 0o777, dir_fd=directory)
    try:
        done = os.write(fd, content) if content else 0
        while done < len(content):
            done += os.write(fd, content[done:])
        if entry.mode & ~_MADE_WITH:
            os.fchmod(fd, entry.mode)  # after the content: writing takes setuid away
        os.utime(fd, ns=(time.time_ns(), entry.mtime_ns))
        found = os.fstat(fd)
        if stat.S_IMODE(found.st_mode) != entry.mode:  # an umask, or a default ACL, that is stricter than the usual
            os.fchmod(fd, entry.mode)
            os.utime(fd, ns=(time.time_ns(), entry.mtime_ns))
            found = os.fstat(fd)
    except OSError:
        os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(fd)
    return Row(found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns, 0, found.st_ino, b"")
