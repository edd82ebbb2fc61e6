"""A tree of `tree_model` on a real disk, and back."""

from __future__ import annotations

import os
import signal
import stat
import traceback
from collections.abc import Callable
from pathlib import Path

from syncd.model import Entry, Kind
from syncd.publish.steps import Do, Step
from tests.syncd.tree_model import Tree


def write_tree(tree: Tree, root: Path) -> None:
    """Put `tree` into the empty directory `root`; names with equal content are hard links."""
    first: dict[int, bytes] = {}
    base = os.fsencode(root)
    for path in sorted(tree.entries):
        entry, place = tree.entries[path], os.path.join(base, path)
        if entry.kind is Kind.DIRECTORY:
            os.mkdir(place)
        elif entry.kind is Kind.SYMLINK:
            os.symlink(entry.target, place)
            os.utime(place, ns=(0, entry.mtime_ns), follow_symlinks=False)
        elif tree.content[path] in first:
            os.link(first[tree.content[path]], place)
        else:
            first[tree.content[path]] = place
            write_file(place, entry, tree.content[path])
    for path, entry in sorted(tree.whole().items(), reverse=True):
        if entry.kind is Kind.DIRECTORY:
            os.chmod(os.path.join(base, path), entry.mode)
            os.utime(os.path.join(base, path), ns=(0, entry.mtime_ns))


def write_file(place: bytes, entry: Entry, content: int) -> None:
    with open(place, "wb") as file:
        file.write((b"%d\n" % content).ljust(entry.size, b"."))
    os.chmod(place, entry.mode)
    os.utime(place, ns=(entry.mtime_ns, entry.mtime_ns))


def stage_files(steps: tuple[Step, ...], parent: Tree, stage: bytes) -> None:
    """What rsync would do: the files that are put, as the parent has them."""
    for step in steps:
        if step.do is Do.PUT:
            place = os.path.join(stage, step.path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            write_file(place, parent.entries[step.path], parent.content[step.path])


def read_tree(root: Path | bytes) -> dict[bytes, tuple[object, ...]]:
    """What a reader sees of `root` (which may be a symlink to it), in the form of `Tree.seen`."""
    base = os.fsencode(root)
    top = os.stat(base)
    seen: dict[bytes, tuple[object, ...]] = {
        b"": (Kind.DIRECTORY, stat.S_IMODE(top.st_mode), top.st_mtime_ns, b"", None)
    }
    todo = [b""]
    while todo:
        directory = todo.pop()
        with os.scandir(os.path.join(base, directory)) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                path = directory + b"/" + name if directory else name
                found = os.lstat(os.path.join(base, path))
                mode = stat.S_IMODE(found.st_mode)
                if stat.S_ISLNK(found.st_mode):
                    seen[path] = (Kind.SYMLINK, 0, found.st_mtime_ns, os.readlink(os.path.join(base, path)), None)
                elif stat.S_ISDIR(found.st_mode):
                    seen[path] = (Kind.DIRECTORY, mode, found.st_mtime_ns, b"", None)
                    todo.append(path)
                else:
                    with open(os.path.join(base, path), "rb") as file:
                        content = int(file.readline())
                    seen[path] = (Kind.FILE, mode, found.st_mtime_ns, b"", content)
    return seen


def killed_at(action: Callable[[Callable[[str], None]], object], count: int) -> bool:
    """Run `action(trip)` in a process that kills itself at the `count`-th trip; False when it came to its end before."""
    child = os.fork()
    if child == 0:
        left = count

        def trip(what: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 3
        try:
            action(trip)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the publish failed instead of being killed"
    return os.WIFSIGNALED(status)
