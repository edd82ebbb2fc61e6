"""Scenarios of several tiers, with real nodes: parents that die, come back, lose or bring back an old state."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.syncd.cutter import Cutter
from tests.syncd.fleet import seen
from tests.syncd.nodes import Node

FAR_S = 0.03


@dataclass
class Tiers:
    """Two regionals below an origin; the first is far from the edge, and named first."""

    origin: Node
    far: Node
    near: Node
    edge: Node
    line: Cutter

    @property
    def all(self) -> list[Node]:
        return [self.origin, self.far, self.near, self.edge]

    def until_same(self, *copies: Node) -> None:
        """Wait until these copies are as the origin, and know it."""
        for copy in copies:
            copy.ask("POST", "/v1/pull", {"tree": "t"})
            copy.until(lambda copy=copy: seen(copy.tree) == seen(self.origin.tree), "the tree of the origin")
            copy.until(lambda copy=copy: copy.status()["root_hash"] == self.origin.status()["root_hash"], "its hash")


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    home = tmp_path_factory.mktemp("tiers")
    origin, far, near, edge = (Node(name, home / name) for name in ("origin", "far", "near", "edge"))
    origin.configure(children=["far", "near"])
    key = origin.key()
    far.configure(parents=[origin], children=["edge"], key=key)
    near.configure(parents=[origin], children=["edge"], key=key)
    with Cutter(far, 1, delay_s=FAR_S) as line:
        limit = [{"per_second": "1MB"}]
        edge.configure(parents=[line, near], key=key, bandwidth=limit)
        tiers = Tiers(origin, far, near, edge, line)
        (origin.tree / "d").mkdir(parents=True)
        for i in range(30):
            (origin.tree / "d" / f"f{i}").write_bytes(b"%d\n" % i * 10)
        try:
            origin.start()
            origin.until(lambda: origin.status()["root_hash"], "it is ready")
            far.start()
            near.start()
            tiers.until_same(far, near)
            yield tiers
        finally:
            for node in tiers.all:
                node.stop(signal.SIGKILL)


def test_a_fresh_node_is_filled_by_the_nearest_one_while_the_origin_is_down(tiers: Tiers) -> None:
    root_hash = tiers.origin.status()["root_hash"]
    tiers.origin.stop(signal.SIGKILL)
    tiers.edge.start()
    tiers.edge.until_current(root_hash)
    assert seen(tiers.edge.tree) == seen(tiers.origin.tree)
    # The far one is first in the configuration; but the other is nearer.
    tiers.edge.until(lambda: tiers.edge.status()["parent"] == "near", "it follows the nearer one")
    tiers.edge.until(lambda: all(parent["srtt_ms"] for parent in tiers.edge.status()["parents"]), "both are measured")
    assert tiers.edge.status()["lag_s"] > 0.0, "nobody has heard of the origin since"
    tiers.origin.start()


def test_when_the_parent_dies_in_the_middle_of_a_batch_the_other_takes_over(tiers: Tiers) -> None:
    for i in range(4):
        (tiers.origin.tree / f"large{i}").write_bytes(random.Random(i).randbytes(700_000))
    tiers.until_same(tiers.far, tiers.near)
    tiers.edge.until(lambda: tiers.edge.status()["fetching"], "it fetches")
    assert tiers.edge.status()["parent"] == "near"
    tiers.near.stop(signal.SIGKILL)
    tiers.until_same(tiers.edge)
    assert tiers.edge.status()["parent"] == "far"
    tiers.near.start()


def test_a_parent_that_lost_its_journal_or_got_an_old_one_back_serves_on(tiers: Tiers) -> None:
    tiers.until_same(*tiers.all[1:])
    backup = tiers.far.home / "backup"
    tiers.far.stop()
    shutil.copytree(tiers.far.home / "state" / "trees", backup)
    tiers.far.start()
    for i in range(10):
        (tiers.origin.tree / "d" / f"f{i}").write_bytes(b"after the backup")
    (tiers.origin.tree / "d" / "f11").rename(tiers.origin.tree / "renamed")
    tiers.until_same(*tiers.all[1:])
    tiers.far.stop()
    shutil.rmtree(tiers.far.home / "state" / "trees")
    backup.rename(tiers.far.home / "state" / "trees")
    tiers.far.start()
    (tiers.origin.tree / "since").write_text("x")
    tiers.until_same(*tiers.all[1:])
    tiers.near.stop(signal.SIGKILL)
    shutil.rmtree(tiers.near.home / "state" / "trees")
    (tiers.origin.tree / "meanwhile").write_text("x")
    tiers.near.start()
    tiers.until_same(*tiers.all[1:])
    fetched = tiers.near.status()["fetched_files"]
    assert fetched == 1, "only what came meanwhile"


def test_an_origin_restored_from_a_backup_is_followed_once_it_is_trusted(tiers: Tiers) -> None:
    tiers.until_same(*tiers.all[1:])
    backup = tiers.origin.home / "backup"
    tiers.origin.stop()
    backup.mkdir()
    for part in ("state", "tree"):
        subprocess.run(["rsync", "-a", f"{tiers.origin.home / part}/", f"{backup / part}/"], check=True)
    tiers.origin.start()
    (tiers.origin.tree / "lost").write_text("x")
    (tiers.origin.tree / "d" / "f20").write_text("changed since")
    tiers.until_same(*tiers.all[1:])
    tiers.origin.stop()
    for part in ("state", "tree"):
        subprocess.run(["rsync", "-a", "--delete", f"{backup / part}/", f"{tiers.origin.home / part}/"], check=True)
    tiers.origin.start()
    for copy in tiers.all[1:]:
        copy.ask("POST", "/v1/pull", {"tree": "t"})
        copy.until(lambda copy=copy: "syncd trust" in copy.status()["why"], "an older root is not taken")
        if copy is not tiers.edge:  # to whom its parent, which is trusted, tells it as any other change
            assert (copy.tree / "lost").exists(), "nothing is taken back before"
        assert copy.ask("POST", "/v1/trust", {"tree": "t"}) == {"trusted": "t"}
        tiers.until_same(copy)
        assert not (copy.tree / "lost").exists()
