"""A short run of the churn through killed, cut off and full nodes; `make churn` runs it for an hour."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.syncd.churn_nodes import run_in, why_no_disk, writable_again

SECONDS = 8.0


@pytest.mark.parametrize("seed", [20261])
def test_three_tiers_are_equal_after_churn_with_kills_cuts_and_a_full_disk(tmp_path: Path, seed: int) -> None:
    home = tmp_path / "churn"
    home.mkdir()
    try:
        done = run_in(home, SECONDS, seed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=110)
    finally:
        writable_again(home)
    assert done.returncode == 0, done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["equal"], done.stdout
    assert result["steps"] > 100, result
    assert result["kills"] > 1, result
    assert result["cuts"] > 0, result


@pytest.mark.skipif(bool(why_no_disk()), reason=f"the disk was not full in the churn: {why_no_disk()}")
def test_nothing_is_left_of_the_small_disk(tmp_path: Path) -> None:
    """Even when the run is ended in its middle."""
    home = tmp_path / "churn"
    home.mkdir()
    with pytest.raises(subprocess.TimeoutExpired):
        run_in(home, 60, 1, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=4)
    assert (home / "edge.img").exists(), "it came to the disk"
    while subprocess.run(["losetup", "-j", str(home / "edge.img")], capture_output=True, check=True).stdout:
        time.sleep(0.05)  # the kernel takes a namespace away behind the back of who ended its last process
    assert not (home / "edge" / "lost+found").exists(), "it is mounted nowhere"
    assert stat.S_ISDIR((home / "edge").stat().st_mode)
