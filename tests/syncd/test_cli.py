"""The `syncd` command against real nodes: what operators type, what they read, and the exit statuses."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from core.errors import NearpathError
from core.io_control import ask_control
from syncd import main as _all_commands  # noqa: F401  registers what io_cli does not hold
from syncd.io_ask import SYNCD
from syncd.io_cli import app
from syncd.io_cli_show import printable, size
from tests.syncd.nodes import Node, differences, running


@dataclass(frozen=True)
class Said:
    """What a command printed and how it ended; `error` is what `main` prints to stderr."""

    status: int
    text: str
    error: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def syncd(node: Node, *arguments: str) -> Said:
    """Run a command with a node's configuration, in this process: it asks the node's, which is a real one."""
    done = CliRunner().invoke(app, [arguments[0], "-c", str(node.home / "syncd.yaml"), *arguments[1:]])
    if isinstance(done.exception, NearpathError):
        return Said(1, done.stdout, str(done.exception))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Said(done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True)
class Tiers:
    """An origin, a copy in mode live, and a copy of the copy in mode atomic; all current."""

    origin: Node
    region: Node
    edge: Node


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiers]:
    home = tmp_path_factory.mktemp("tiers")
    origin, region, edge = (Node(name, home / name) for name in ("origin", "region", "edge"))
    origin.configure(children=["region"], watch="inotify")
    for i in range(60):
        place = origin.tree / f"d{i % 6}" / f"f{i}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"%d" % i * 100)
    key = syncd(origin, "key", "t").text.strip()
    region.configure([origin], ["edge"], key)
    edge.configure([region], [], key, mode="atomic")
    with running(origin, region, edge):
        yield Tiers(origin, region, edge)


def pull(node: Node) -> None:
    said = syncd(node, "pull", "t")
    assert said.status == 0, said.error
    assert said.text == "t is current\n"


def settled(tiers: Tiers, *nodes: Node) -> None:
    """All that is on the origin's disk is on the nodes'."""
    for node in nodes:
        node.until(lambda node=node: differences(tiers.origin.tree, node.tree) == [], "it has all")  # type: ignore[misc]


# --- looking ------------------------------------------------------------------------------------------------------------


def test_pull_ends_when_the_copy_is_current(tiers: Tiers) -> None:
    for node in (tiers.region, tiers.edge):
        pull(node)
        settled(tiers, node)
    assert syncd(tiers.edge, "pull", "t", "--progress").status == 0


def test_status_tells_of_every_tree(tiers: Tiers) -> None:
    tiers.region.until(lambda: "edge" in tiers.region.status()["children"], "its child asked")
    tiers.region.until(lambda: tiers.region.status()["entries"] == 67, "it has counted")
    told = syncd(tiers.region, "status").text
    for words in ("tree t", "copy, live", "current", "67 entries", "▶ origin", "edge  has everything", "at most"):
        assert words in told
    told = syncd(tiers.origin, "status").text
    assert "origin" in told
    assert "7 directories watched (inotify)" in told
    assert syncd(tiers.origin, "key", "t").text.strip() in told
    assert syncd(tiers.edge, "status", "--json").json["trees"]["t"]["mode"] == "atomic"


def test_verify_reports_and_repairs(tiers: Tiers) -> None:
    pull(tiers.region)
    settled(tiers, tiers.region)
    assert syncd(tiers.region, "verify", "t").status == 0
    (tiers.region.tree / "d1/f1").write_bytes(b"x")
    (tiers.region.tree / "d2/f2").unlink()
    (tiers.region.tree / "d2/\x1b[31m\n").write_bytes(b"")
    (tiers.region.tree / "d3/f3").chmod(0o600)
    said = syncd(tiers.region, "verify", "t", "--no-repair")
    assert said.status == 1
    assert "d1/f1: has 1 bytes, should have 100\n" in said.text
    assert "d2/f2: is missing\n" in said.text
    assert "d2/\\x1b[31m\\n: should not be here\n" in said.text
    assert "d3/f3: has mode 0600, should have 0644\n" in said.text
    assert len(differences(tiers.origin.tree, tiers.region.tree)) >= 4, "nothing was repaired"
    again = syncd(tiers.region, "verify", "t", "--json")
    assert again.status == 1
    assert {"path": "d2/f2", "what": "is missing"} in again.json["differences"]
    assert differences(tiers.origin.tree, tiers.region.tree) == []
    assert syncd(tiers.region, "verify", "t").text == "t: 67 entries read, 0 different\n"


def test_verify_contents_finds_what_no_listing_shows(tiers: Tiers) -> None:
    pull(tiers.region)
    said = syncd(tiers.region, "verify", "t", "--contents").text
    assert re.search(r"t: every content read, 0 wrong; \d+ for the first time, with nothing to compare them with", said)
    rotten = tiers.region.tree / "d4/f4"
    found = rotten.stat()
    with rotten.open("r+b") as file:
        file.write(b"X")
    os.utime(rotten, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert syncd(tiers.region, "verify", "t").status == 0, "names, sizes and times are as they should be"
    said = syncd(tiers.region, "verify", "t", "--contents", "--no-repair")
    assert said.status == 1
    assert said.text.endswith("nobody wrote to it\nt: every content read, 1 wrong\n"), "all were known by now"
    assert rotten.read_bytes()[:1] == b"X", "who only looks changes nothing"
    said = syncd(tiers.region, "verify", "t", "--contents")
    assert said.status == 1
    assert "d4/f4: its content is not what it was" in said.text
    tiers.region.until(lambda: rotten.read_bytes() == (tiers.origin.tree / "d4/f4").read_bytes(), "it is fetched anew")


def test_held_deletes_are_planned_shown_and_approved(tiers: Tiers) -> None:
    pull(tiers.edge)
    (tiers.origin.tree / "new").write_bytes(b"n" * 10)
    for i in range(1, 6):
        # At once: with rmtree on a busy machine, some of it could come first, and be few enough to pass.
        os.rename(tiers.origin.tree / f"d{i}", tiers.origin.home / f"gone{i}")
    tiers.region.until(lambda: tiers.region.status()["state"] == "held", "deletes are held")
    told = syncd(tiers.region, "plan", "t").text
    assert "held: tree t: " in told
    assert " entries to delete" in told
    said = syncd(tiers.region, "pull", "t")
    assert said.status == 1
    assert "held" in said.error
    token = tiers.region.status()["held"]["token"]
    assert f"syncd approve t {token}\n" in "\n".join(
        line.rstrip() for line in syncd(tiers.region, "status").text.splitlines()
    )
    assert "nothing is held" in syncd(tiers.region, "approve", "t", "00000000").error
    assert syncd(tiers.region, "approve", "t", token).status == 0
    settled(tiers, tiers.region)
    assert syncd(tiers.region, "plan", "t").text == "nothing to do\n"
    # The edge has a guard of its own.
    tiers.edge.until(lambda: tiers.edge.status()["state"] == "held", "deletes are held")
    syncd(tiers.edge, "approve", "t", tiers.edge.status()["held"]["token"])
    settled(tiers, tiers.edge)


def test_rollback_stays_until_released(tiers: Tiers) -> None:
    pull(tiers.edge)
    (tiers.origin.tree / "file").write_text("good")
    tiers.edge.until(lambda: (tiers.edge.tree / "file").exists(), "it has the file")
    listed = syncd(tiers.edge, "rollback", "t").text
    versions = re.findall(r"^(\d+)  made \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:  shown)?$", listed, re.MULTILINE)
    assert listed.endswith("  shown\n")
    assert "0" not in versions, "nobody is shown the emptiness before the first sync"
    assert "version 0 of tree t is empty" in syncd(tiers.edge, "rollback", "t", "0").error
    before, good = versions[-2], versions[-1]
    assert "there is no version 999" in syncd(tiers.edge, "rollback", "t", "999").error
    assert syncd(tiers.edge, "rollback", "t", before).status == 0
    assert not (tiers.edge.tree / "file").exists()
    (tiers.origin.tree / "file").write_text("better")
    pull(tiers.region)
    said = syncd(tiers.edge, "pull", "t")
    assert said.status == 1
    assert "rolled back" in said.error
    assert os.readlink(tiers.edge.tree).endswith(f"/{before}")
    tiers.edge.stop()
    tiers.edge.start()
    tiers.edge.until(lambda: tiers.edge.status()["state"] == "held", "it stays after a restart")
    assert tiers.edge.status()["version"] == 0, "dnsd must not take it for the newest"
    assert f"unknown: version {before} is shown, an older one" in syncd(tiers.edge, "status").text
    assert syncd(tiers.edge, "rollback", "t", "--release").status == 0
    pull(tiers.edge)
    assert (tiers.edge.tree / "file").read_text() == "better"
    assert int(good) > int(before)


def test_trust_forget_accept_reload(tiers: Tiers) -> None:
    assert syncd(tiers.region, "trust", "t").status == 0
    pull(tiers.region)
    assert tiers.region.status()["root_hash"] == tiers.origin.status()["root_hash"]
    assert "comes back" in syncd(tiers.origin, "forget", "region").text
    assert "no child 'nobody'" in syncd(tiers.origin, "forget", "nobody").error
    assert "nothing to accept" in syncd(tiers.origin, "accept", "t").error
    assert syncd(tiers.region, "reload").text == "reloaded\n"
    for command in ("trust", "pull", "plan", "rollback"):
        assert "is the origin" in syncd(tiers.origin, command, "t").error
    assert "there is no tree 'x'" in syncd(tiers.region, "verify", "x").error


def test_trust_takes_an_older_root(tiers: Tiers) -> None:
    pull(tiers.region)
    tiers.region.stop()
    _sign_ahead(tiers.region, tiers.origin)
    tiers.region.start()
    tiers.region.until(lambda: "syncd trust" in tiers.region.status()["why"], "an older root is refused")
    assert syncd(tiers.region, "trust", "t").status == 0
    pull(tiers.region)
    tiers.region.until_current(tiers.origin.status()["root_hash"])


def _sign_ahead(copy: Node, origin: Node) -> None:
    """Make the copy remember a root of the origin's key with a version of the year 2100."""
    from syncd.store.io_store import close_store, open_store, set_fact
    from syncd.store.signed_root import Root, sign_root

    seed = bytes.fromhex((origin.home / "state/keys/t.key").read_text().strip())
    db = open_store(copy.home / "state/trees/t.db")
    set_fact(db, "signed_root", sign_root(Root("t", 4102444800, b"\1" * 32, 1, 0.0), seed))
    close_store(db)


# --- without a daemon ---------------------------------------------------------------------------------------------------


def test_no_daemon_is_said(tmp_path: Path) -> None:
    node = Node("alone", tmp_path)
    node.configure()
    assert "no syncd answers" in syncd(node, "status").error


def test_no_permission_is_said(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: becomes another user")
    (tmp_path / "state").mkdir(mode=0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(NearpathError, match=r"no permission for .* group"):
            asyncio.run(ask_control(SYNCD, tmp_path / "state", "GET", "/v1/status"))
    finally:
        os.seteuid(0)


def test_token_is_kept_from_the_screen(tmp_path: Path) -> None:
    file = tmp_path / "edge.token"
    done = CliRunner().invoke(app, ["token", "--file", str(file)])
    drawn = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(drawn) >= 43
    assert drawn not in done.stdout
    assert hashlib.sha256(drawn.encode()).hexdigest() in done.stdout
    again = CliRunner().invoke(app, ["token", "--file", str(file)])
    assert isinstance(again.exception, NearpathError)
    assert file.read_text().strip() == drawn


def test_check_config_tells_all_faults_and_hints(tmp_path: Path) -> None:
    node = Node("one", tmp_path)
    node.configure()
    file = tmp_path / "syncd.yaml"
    good = yaml.safe_load(file.read_text())
    node.tree.mkdir()
    assert syncd(node, "check-config").text.endswith(": good\n")
    copy = {"path": str(tmp_path / "copy"), "parents": ["up"], "public_key": "0" * 64}
    away = Path("/dev/shm")
    if away.is_dir() and away.stat().st_dev != tmp_path.stat().st_dev:
        copy["work"] = str(away / "syncd-test-never-made")
    parents = {"up": {"url": "https://up.example:8730", "token_file": "token"}}
    file.write_text(yaml.safe_dump(good | {"trees": {"t": copy}, "parents": parents}))
    (tmp_path / "copy").mkdir()
    (tmp_path / "token").chmod(0o644)
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    said = syncd(node, "check-config")
    assert said.status == 0
    assert f"chmod 0600 {tmp_path / 'token'}" in said.text
    assert "open to everybody" in said.text
    assert ("another file system" in said.text) == ("work" in copy)
    assert syncd(node, "check-config", "--strict").status == 1
    file.write_text(yaml.safe_dump(good | {"trees": {"t": copy | {"pol": 1}}, "listen": ["0.0.0.0:8730"]}))
    faults = syncd(node, "check-config").error
    for words in ("trees.t.parents", "pol", "without `tls`", "add `children`"):
        assert words in faults


# --- what is printed ----------------------------------------------------------------------------------------------------


def test_names_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\udcffé") == "a\\x1b[2Jb\\nc\\xffé"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2.5e12, "2.5 TB")])
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
