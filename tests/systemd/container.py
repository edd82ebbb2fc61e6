"""A Debian 12 with a real systemd in a container without a network, with nearpath installed from its wheel."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "systemd"
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,iproute2,bind9-dnsutils,procps,rsync"
BOOT_WITHIN_S = 60.0


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout


def base_tree() -> Path:
    """A minimal Debian 12 (debootstrap), made once and kept under build/."""
    base = CACHE / f"base-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    if not base.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=CACHE, prefix="partial-"))
        partial.chmod(0o755)
        print("debootstrap of Debian 12: about a minute, once", flush=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", partial)
        partial.rename(base)
    return base


def wheels() -> Path:
    """A folder with our wheel and those of all it needs, built from the tracked files."""
    folder = CACHE / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("nearpath-*.whl"):
        old.unlink()
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    with tempfile.TemporaryDirectory() as copy:
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (Path(copy) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(copy) / name)
        # The extra with what one of its packages wants on Debian's Python, which is older than the one that asks here.
        wanted = [f"{copy}[infer]", "async-timeout"]
        pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation"]
        run(*pip, "-c", ROOT / "constraints.txt", "-w", folder, *wanted)
    return folder


class Container:
    """A copy of the base tree; `boot()` it, `do()` things in it, `stop()` it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def chroot(self, *command: str) -> str:
        """Run a command in the tree that is not booted; wheels are in /mnt."""
        bind = f"--bind-ro={CACHE / 'wheels'}:/mnt"
        return run("systemd-nspawn", "--quiet", "--pipe", "--private-network", "--register=no", "--keep-unit", bind,
                   "-D", self.tree, "--", *command)  # fmt: skip

    def boot(self) -> None:
        """Boot it and wait until systemd has started everything that is enabled."""
        name = f"nearpath-{os.getpid()}"
        self._nspawn = subprocess.Popen(
            ["systemd-nspawn", "--boot", "--quiet", "--private-network", "--register=no", "--keep-unit",
             "--console=pipe", "-M", name, "-D", str(self.tree)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + BOOT_WITHIN_S
        while time.monotonic() < end and self._nspawn.poll() is None:
            self._leader = self._find_leader()
            if self._leader and self.do("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"):
                return
            time.sleep(0.2)
        raise RuntimeError(f"the container did not boot within {BOOT_WITHIN_S:.0f} s")

    def _find_leader(self) -> int:
        """The process id, here, of the container's init: the child of nspawn's child."""
        assert self._nspawn is not None
        at = [self._nspawn.pid]
        found: list[int] = []
        while at:
            pid = at.pop()
            with contextlib.suppress(OSError):
                if pid != self._nspawn.pid and Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    found.append(pid)
                at += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found[0] if found else 0

    def do(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in all namespaces of the booted container, as root."""
        return subprocess.run(
            ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "--", *command],
            capture_output=True, text=True, check=False, timeout=120, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )  # fmt: skip

    def stop(self) -> None:
        """Power it off, or kill our own nspawn when that takes too long."""
        if self._nspawn is None:
            return
        if self._leader:
            self.do("systemctl", "poweroff")
        try:
            self._nspawn.wait(40)
        except subprocess.TimeoutExpired:
            self._nspawn.send_signal(signal.SIGKILL)
            self._nspawn.wait()
        self._nspawn = None


@contextlib.contextmanager
def installed() -> Iterator[Container]:
    """A tree with nearpath in /opt/nearpath and its units placed, not booted yet; removed at the end."""
    base = base_tree()
    wheels()
    tree = Path(tempfile.mkdtemp(dir=CACHE, prefix="box-"))
    try:
        tree.chmod(0o755)
        run("cp", "-a", "--reflink=auto", f"{base}/.", tree)
        box = Container(tree)
        box.chroot("python3", "-m", "venv", "/opt/nearpath")
        box.chroot("/opt/nearpath/bin/pip", "install", "-q", "--no-index", "--find-links", "/mnt", "nearpath[infer]")
        box.chroot("/opt/nearpath/bin/nearpath", "install-units")
        box.chroot("systemd-sysusers")
        try:
            yield box
        finally:
            box.stop()
    finally:
        shutil.rmtree(tree, ignore_errors=True)
