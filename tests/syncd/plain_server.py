"""Real servers of an existing fleet for tests: an rsync daemon and an sshd on loopback, each with a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.syncd.fleet import NO_OVERRIDE
from tests.syncd.nodes import free_port


@contextmanager
def ended(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def until(holds: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end_s, what
        time.sleep(0.1)


@contextmanager
def rsync_daemon(home: Path) -> Iterator[str]:
    """`rsync://...` of a daemon with the modules `source` (read-only), `pushed` and `secret`, which asks for a password.

    It cannot read what modes forbid, also when root runs it.
    """
    port = free_port()
    ids = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.geteuid() == 0 else ""
    modules = "".join(
        f"[{name}]\npath = {home / folder}\nread only = {read_only}\nmunge symlinks = no\n{ids}"
        for name, folder, read_only in (
            ("source", "source", "yes"),
            ("pushed", "pushed", "no"),
            ("secret", "guarded", "no"),
        )
    )
    modules += f"auth users = mirror\nsecrets file = {home}/secrets\n"
    for secret, text in (("secrets", "mirror:of the test\n"), ("password", "of the test\n")):
        (home / secret).write_text(text)
        (home / secret).chmod(0o600)
    (home / "rsyncd.conf").write_text(f"port = {port}\naddress = 127.0.0.1\nuse chroot = no\n{modules}")
    (home / "pushed").mkdir()
    (home / "guarded").mkdir()
    url = f"rsync://127.0.0.1:{port}"
    wrap = NO_OVERRIDE if os.geteuid() == 0 else ()
    with ended([*wrap, "rsync", "--daemon", "--no-detach", f"--config={home}/rsyncd.conf"]):
        until(lambda: subprocess.run(["rsync", url + "/"], capture_output=True).returncode == 0, "rsyncd answers")
        yield url


@contextmanager
def ssh_daemon(home: Path) -> Iterator[str]:
    """An sshd that lets this user in; the PATH with an `ssh` that finds it."""
    port = free_port()
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    (home / "authorized").write_text((home / "client.pub").read_text())
    (home / "sshd.conf").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host\nAuthorizedKeysFile {home}/authorized\n"
        f"StrictModes no\nPidFile none\nUsePAM no\nPermitRootLogin prohibit-password\n"
    )
    (home / "ssh.conf").write_text(
        f"Host *\n  Port {port}\n  IdentityFile {home}/client\n  UserKnownHostsFile {home}/known\n"
        "  StrictHostKeyChecking accept-new\n"
    )
    # An operator would write this into ~/.ssh/config, which is not the test's to write.
    bin_folder = home / "bin"
    bin_folder.mkdir()
    (bin_folder / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {home}/ssh.conf "$@"\n')
    (bin_folder / "ssh").chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = [str(shutil.which("sshd")), "-D", "-e", "-f", str(home / "sshd.conf")]
    with open(home / "sshd.log", "wb") as log, ended(sshd, stderr=log):
        yield f"{bin_folder}:{os.environ['PATH']}"
