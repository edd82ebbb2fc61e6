"""A file system that is soon full, mounted for a test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(disk: Path, size: str) -> Iterator[Path]:
    """An empty one at the new folder `disk`, of `size` as mount(8) has it; the test is skipped where none can be had."""
    if os.geteuid() != 0:
        pytest.skip("a file system that is full needs root to be mounted")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)
