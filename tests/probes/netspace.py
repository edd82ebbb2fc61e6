"""A python program run in network namespaces of its own, for what loopback of this host does not show. Needs root."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_in_netns(set_up: str, program: str, *, drop_caps: bool = False) -> str:
    """Standard output of `program` after the shell lines `set_up` in a fresh namespace, which ends with it.

    Skips the test by name where this user may not make namespaces; fails it with the program's words when it fails.
    """
    probe = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("no right to make a network namespace (needs root): " + probe.stderr.decode().strip())
    python = [sys.executable, "-c", program]
    if drop_caps:
        python = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *python]
    script = f'set -e\nip link set lo up\n{set_up}\nexec "$@"\n'
    done = subprocess.run(
        ["unshare", "-n", "-m", "sh", "-c", script, "sh", *python],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
