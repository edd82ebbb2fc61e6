"""Moving an origin, and a new key, as docs/syncd.md tells operators to do it; with real nodes."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.syncd.nodes import Node, differences

FILES = 50


@dataclass
class Site:
    """An origin, and two copies of its tree; the first of them also serves."""

    origin: Node
    heir: Node
    edge: Node
    key: str

    def until_fresh(self, origin: Node, *copies: Node) -> None:
        """Something new is at the origin, signed, and proved to be at the copies."""
        before = origin.status()["root_hash"]
        fresh = f"fresh{before[:8]}"
        (origin.tree / "d" / fresh).write_text(before)
        origin.until(lambda: origin.status()["root_hash"] not in ("", before), "it is signed")
        for copy in copies:
            copy.until(lambda copy=copy: (copy.tree / "d" / fresh).exists(), "it is there")
            copy.until(lambda copy=copy: copy.status()["root_hash"] == origin.status()["root_hash"], "it is proved")
            assert differences(origin.tree, copy.tree) == []


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    origin, heir, edge = (Node(name, tmp_path / name) for name in ("origin", "heir", "edge"))
    origin.configure(children=["heir", "edge"])
    site = Site(origin, heir, edge, origin.key())
    heir.configure(parents=[origin], children=["edge", "origin"], key=site.key)
    edge.configure(parents=[origin], key=site.key)
    (origin.tree / "d").mkdir(parents=True)
    for i in range(FILES):
        (origin.tree / "d" / f"f{i}").write_bytes(b"%d\n" % i * 50)
    try:
        for node in (origin, heir, edge):
            node.start()
        site.until_fresh(origin, heir, edge)
        yield site
    finally:
        for node in (origin, heir, edge):
            node.stop(signal.SIGKILL)


def key_file(node: Node) -> Path:
    return node.home / "state" / "keys" / "t.key"


def test_the_origin_moves_to_a_copy_and_takes_a_new_key(site: Site) -> None:
    old, heir, edge = site.origin, site.heir, site.edge
    root_hash = heir.status()["root_hash"]
    old.stop()
    heir.stop()
    key_file(heir).parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copy2(key_file(old), key_file(heir))
    heir.configure(children=["edge", "origin"])
    heir.start()
    heir.until(lambda: heir.status()["root_hash"] == root_hash, "it signs the same tree")
    edge.configure(parents=[heir], key=site.key)
    old.configure(parents=[heir], key=site.key)
    assert edge.run("reload").returncode == 0
    old.start()
    site.until_fresh(heir, edge, old)
    assert edge.log.count("comparing_manifests") == 2, "it went over to the new journal"
    assert edge.log.count("differences_found") == 1, "and fetched nothing for that"

    heir.stop()
    key_file(heir).rename(key_file(heir).with_suffix(".lost"))
    fresh = heir.key()
    assert fresh != site.key
    heir.start()
    edge.until(lambda: "not signed with the origin's key" in edge.status()["why"], "it says why it waits")
    assert len(list((edge.tree / "d").iterdir())) == FILES + 2, "what is there stays"
    edge.configure(parents=[heir], key=fresh)
    assert edge.run("reload").returncode == 0
    site.until_fresh(heir, edge)
