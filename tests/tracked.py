"""The files of the repository, as git lists them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def tracked_files(*patterns: str) -> list[Path]:
    """Files that git knows or would take up (so one is checked before its first commit), relative to ROOT."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip(f"git does not list the files of this checkout: {listed.stderr.decode(errors='replace').strip()}")
    return [Path(name) for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
