"""The child's side whole, with real rsync: plan, fetch, check, publish; then rsync itself finds no difference."""

# ruff: noqa: ASYNC221 (a test has its loop to itself)

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from syncd.publish.io_publish import Layout, begin, check_staged, finish, prepare, run
from syncd.publish.plan import make_plan
from syncd.publish.steps import Intent, Ranks, hold_back
from syncd.transfer.io_rsync import own_ids, pull_all
from syncd.transfer.rsync import Connector, Options, Verdict, daemon_command, daemon_config, rsh_argument
from syncd.transfer.streams import split
from tests.syncd.disk_tree import write_tree
from tests.syncd.tree_model import Tree

pytestmark = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")


@pytest.mark.skipif(
    os.geteuid() != 0,
    reason="random trees have directories without the owner's write bit, in which only root can publish yet",
)
@pytest.mark.parametrize("seed", range(300, 312))
async def test_rsync_finds_no_difference_afterwards(tmp_path: Path, seed: int) -> None:
    rng, parent = random.Random(seed), Tree()
    for _ in range(25):
        parent.churn(rng)
    child = parent.copy()
    parent.journal.clear()
    for _ in range(25):
        parent.churn(rng)
    for name, tree in (("parent", parent), ("tree", child)):
        (tmp_path / name).mkdir()
        write_tree(tree, tmp_path / name)
    config = tmp_path / "rsyncd.conf"
    config.write_text(daemon_config("tree", str(tmp_path / "parent"), owner=own_ids()))
    transport = Connector(("sh", "-c", "exec " + rsh_argument(daemon_command(str(config)))), "tree")
    layout = Layout(os.fsencode(tmp_path / "tree"), os.fsencode(tmp_path / "work"))
    prepare(layout)

    ranks = Ranks(["dd"])
    plan = make_plan(parent.journal, child, ranks)
    options = Options(basis=str(tmp_path / "tree"))
    for fetches in (plan.payload, plan.indexes):
        results = await pull_all(transport, options, os.fsdecode(layout.stage), split(fetches))
        assert all(result.verdict is Verdict.DONE for result in results), results
    now, later = hold_back(plan.steps, check_staged(layout, plan.steps), ranks)
    assert later == ()
    begin(layout, Intent(1, now))
    run(layout, durable=False)
    finish(layout)
    compare = ["rsync", "-anic", "--delete", f"{tmp_path}/parent/", f"{tmp_path}/tree/"]
    assert subprocess.run(compare, capture_output=True, text=True, check=True).stdout == ""
