"""Random operations on a real directory, and what a full walk of it says: the naive side of the source's tests."""

from __future__ import annotations

import os
import random
import shutil
import stat
import sys
import time

NAMES = [b"a", b"b", b"-dash", b"new\nline", "\u8fd1\u8def".encode(), b"\xff\xfe", b"L" * 255, b"Packages.gz"]

Seen = dict[bytes, tuple[object, ...]]


def scan(root: bytes) -> Seen:
    """path -> (mode, size, mtime_ns, inode, target) of all that is replicated, the root as b"", by plain os.walk."""
    st = os.lstat(root)
    seen: Seen = {b"": (st.st_mode, 0, st.st_mtime_ns, st.st_ino, b"")}
    for above, directories, files in os.walk(root):
        for name in directories + files:
            full = os.path.join(above, name)
            st = os.lstat(full)
            path = os.path.relpath(full, root)
            if stat.S_ISREG(st.st_mode):
                seen[path] = (st.st_mode, st.st_size, st.st_mtime_ns, st.st_ino, b"")
            elif stat.S_ISDIR(st.st_mode):
                seen[path] = (st.st_mode, 0, st.st_mtime_ns, st.st_ino, b"")
            elif stat.S_ISLNK(st.st_mode):
                seen[path] = (st.st_mode, 0, st.st_mtime_ns, st.st_ino, os.readlink(full))
    return seen


def no_wait(path: bytes, flags: int) -> int:
    """Opening a fifo would wait for a reader; so it fails."""
    return os.open(path, flags | os.O_NONBLOCK, 0o644)


class Churn:
    """One operation at a time, any of them may find that its path is of the wrong kind: then nothing happens."""

    def __init__(self, root: bytes, seed: int, max_depth: int = 4) -> None:
        self.root = root
        # Where a symlink out of the tree leads. Operations follow it, so it must be a place that is the test's own.
        self.outside = root + b".outside"
        os.makedirs(self.outside, exist_ok=True)
        self.rng = random.Random(seed)
        self.max_depth = max_depth

    def path(self) -> bytes:
        """Some path; often one that exists, since there are few names."""
        names = [self.rng.choice(NAMES[:6] if i else NAMES) for i in range(self.rng.randint(1, self.max_depth))]
        return os.path.join(self.root, *names)

    def step(self) -> None:
        """One random operation."""
        operation = self.rng.choice(
            [
                self.write, self.write, self.write, self.append, self.tree, self.tree, self.rename, self.rename,
                self.rename, self.delete, self.delete, self.delete_tree, self.chmod, self.touch, self.symlink,
                self.hard_link, self.same_second, self.fifo, self.out_and_in,
            ]
        )  # fmt: skip
        try:
            operation()
        except OSError:
            return

    def write(self) -> None:
        path = self.path()
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb", opener=no_wait) as file:
            file.write(self.rng.randbytes(self.rng.randrange(100)))

    def append(self) -> None:
        with open(self.path(), "ab", opener=no_wait) as file:
            file.write(b"more")

    def tree(self) -> None:
        top = self.path()
        for i in range(self.rng.randrange(1, 4)):
            deep = os.path.join(top, *[b"s%d" % i] * self.rng.randrange(1, 4))
            os.makedirs(deep, exist_ok=True)
            with open(os.path.join(deep, b"f"), "wb") as file:
                file.write(b"x" * i)

    def rename(self) -> None:
        os.rename(self.path(), self.path())

    def delete(self) -> None:
        path = self.path()
        if os.path.isdir(path) and not os.path.islink(path):
            os.rmdir(path)
        else:
            os.unlink(path)

    def delete_tree(self) -> None:
        path = self.path()
        # rmtree opens what it is given, and a fifo would wait.
        if path.count(b"/") - self.root.count(b"/") > 1 and os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)

    def chmod(self) -> None:
        os.chmod(self.path(), self.rng.choice([0o600, 0o644, 0o755]))

    def touch(self) -> None:
        """Some time for whatever it is, now and then for the root."""
        path = self.root if self.rng.random() < 0.1 else self.path()
        os.utime(path, ns=(0, self.rng.randrange(10**18)), follow_symlinks=False)

    def symlink(self) -> None:
        path = self.path()
        if self.rng.random() < 0.5 and os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        os.symlink(self.rng.choice([b"a", self.outside, b"../b", b"nowhere\n"]), path)

    def hard_link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def same_second(self) -> None:
        """Another content of the same size, with the mtime put back."""
        path = self.path()
        st = os.lstat(path)
        if stat.S_ISREG(st.st_mode):
            with open(path, "r+b", opener=no_wait) as file:
                file.write(self.rng.randbytes(st.st_size))
            os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))

    def fifo(self) -> None:
        os.mkfifo(self.path())

    def out_and_in(self) -> None:
        """Out of the tree, changed there, and back under another name."""
        aside = self.root + b".aside"
        os.rename(self.path(), aside)
        try:
            if os.path.isdir(aside) and not os.path.islink(aside):
                with open(os.path.join(aside, b"written-outside"), "wb") as file:
                    file.write(b"1")
            os.rename(aside, self.path())
        except OSError:
            if os.path.isdir(aside) and not os.path.islink(aside):
                shutil.rmtree(aside)
            elif os.path.lexists(aside):
                os.unlink(aside)


def main() -> None:
    """python churn.py ROOT SEED STEPS PAUSE_US: churn in a process of its own."""
    root, seed, steps, pause_us = os.fsencode(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    churn = Churn(root, seed)
    for i in range(steps):
        churn.step()
        if pause_us and i % 8 == 0:
            time.sleep(pause_us / 1e6)


if __name__ == "__main__":
    main()
