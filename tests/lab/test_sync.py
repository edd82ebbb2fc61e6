"""Three tiers over a WAN of 40 ms, with DNS in front: an origin, two regional nodes, two edges, clients that follow DNS.

The origin goes on publishing releases: payload first, then an index that names it. Whatever fails on the way, a client that
asks DNS, reads the index where it is sent, and then every file that the index names, must find all of them, whole.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.tokens import token_sha256
from tests.lab.process import LabProcess
from tests.lab.steered import TOKEN, Steered, here, repeating
from tests.lab.wan import ROOT, Node, Wan
from tests.probes.wire_server import make_certificate
from tests.syncd.nodes import ask_socket

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

SERVICE = "files.mirror.example."
EDGES = ("edge-a", "edge-b")
NODES = ("origin", "reg-a", "reg-b", *EDGES)
PARENTS = {"reg-a": ["origin"], "reg-b": ["origin"], "edge-a": ["reg-a", "reg-b"], "edge-b": ["reg-b", "reg-a"]}
MAX_LAG_S = 5.0

# Asks for the index and all it names, in the client's namespace; prints what was missing or not whole.
_CLIENT = """
import hashlib, sys, urllib.request
def get(path):
    with urllib.request.urlopen(f"http://{sys.argv[1]}/{path}", timeout=5) as answer:
        return answer.read()
try:
    lines = get("index.txt").decode().splitlines()
except Exception as error:
    print("index", error); sys.exit()
if lines[-1] != "end": print("index cut")
for line in lines[:-1]:
    digest, path = line.split()
    try:
        if hashlib.sha256(get(path)).hexdigest() != digest: print("not whole", path)
    except Exception as error:
        print("missing", path, error)
print("release", lines[0].split("/")[-2])
"""


class Fleet:
    """The nodes with what the scenario does and asks."""

    def __init__(self, wan: Wan) -> None:
        self.wan = wan
        self.syncd: dict[str, LabProcess] = {}
        self.certificates: dict[str, tuple[Path, Path]] = {}
        self.release = 0
        self.faults: list[str] = []
        self.seen: list[tuple[float, str, int]] = []
        """(time, edge, release) of what clients found"""
        self.steered = Steered(wan, SERVICE, EDGES)

    def folder(self, node: str) -> Path:
        return self.wan.directory / node

    # -- starting

    def start_all(self) -> None:
        for node in NODES:
            (self.folder(node) / "tree").mkdir(parents=True)
            self.certificates[node] = make_certificate(self.folder(node), node, address=self.wan.address(node))
        self._write("origin", "")
        key = self.syncd_command("origin", "key", "t").strip()
        for node in NODES[1:]:
            self._write(node, key)
        self.publish()
        for node in NODES:
            self.start(node)
        for edge in EDGES:
            self.wan.python(edge, "-m", "http.server", "80", "-d", self.folder(edge) / "tree", name=f"{edge}-http")
        self.steered.start(
            {"path": "/index.txt", "interval": "1s", "timeout": "600ms"},
            rise=3,
            service={"tree": "t", "max_lag": f"{MAX_LAG_S:g}s"},
            nodes={edge: {"mirrors": [edge], "token_sha256": token_sha256(TOKEN)} for edge in EDGES},
        )

    def start(self, node: str) -> None:
        config = self.folder(node) / "syncd.yaml"
        self.syncd[node] = self.wan.python(node, "-m", "syncd.main", "run", "-c", config, name=f"{node}-syncd")

    def syncd_command(self, node: str, *arguments: str) -> str:
        argv = [
            sys.executable,
            "-m",
            "syncd.main",
            arguments[0],
            *arguments[1:],
            "-c",
            self.folder(node) / "syncd.yaml",
        ]
        return self.wan.run(node, argv, timeout_s=20, cwd=ROOT).stdout

    def _write(self, node: str, key: str) -> None:
        config: dict[str, Any] = {
            "version": 1,
            "node": node,
            "state_dir": "state",
            "appliance": {
                "url": f"http://{self.wan.address('dns')}:8053",
                "token_file": str(self.steered.token_file),
                "every": "1s",
            },
        }
        children = [child for child, parents in PARENTS.items() if node in parents]
        if children:
            config["listen"] = [f"{self.wan.address(node)}:8443"]
            cert, secret = self.certificates[node]
            config["tls"] = {"cert": str(cert), "key": str(secret)}
            config["children"] = {child: {"token_sha256": token_sha256(TOKEN)} for child in children}
        tree: dict[str, Any] = {"path": str(self.folder(node) / "tree"), "reserve": {"size": "0B", "share": "0%"}}
        if node in PARENTS:
            config["parents"] = {
                parent: {
                    "url": f"https://{self.wan.address(parent)}:8443",
                    "token_file": str(self.steered.token_file),
                    "ca_file": str(self.certificates[parent][0]),
                }
                for parent in PARENTS[node]
            }
            tree |= {"parents": PARENTS[node], "public_key": key, "poll": "1s", "indexes": ["index.txt"]}
        config["trees"] = {"t": tree}
        (self.folder(node) / "syncd.yaml").write_text(yaml.safe_dump(config))

    # -- doing

    def publish(self, files: int = 12) -> int:
        """One more release at the origin: its payload, then the index of all that are kept (the last three)."""
        self.release += 1
        tree = self.folder("origin") / "tree"
        folder = tree / "pool" / str(self.release)
        folder.mkdir(parents=True)
        for number in range(files):
            content = hashlib.sha256(b"%d %d" % (self.release, number)).digest() * 1500
            (folder / f"{number}.bin").write_bytes(content)
        kept = range(max(1, self.release - 2), self.release + 1)
        paths = [path for r in reversed(kept) for path in sorted((tree / "pool" / str(r)).iterdir())]
        lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(tree)}" for path in paths]
        (tree / "index.new").write_text("\n".join([*lines, "end"]) + "\n")
        (tree / "index.new").rename(tree / "index.txt")
        return self.release

    # -- asking

    def status(self, node: str) -> Any:
        answer = ask_socket(self.folder(node) / "state" / "control.sock")
        return answer["trees"]["t"] if answer else None

    def has_settled(self) -> bool:
        """Whether the fleet has begun its work: before the first stamps all edges are equally unknown."""
        current = all((self.status(edge) or {}).get("state") == "current" for edge in EDGES)
        return current and self.steered.named() == "edge-a"

    def visit(self) -> None:
        """What a client does: ask DNS, read the index there, then every file that it names."""
        edge = self.steered.named()
        if edge is None:
            return
        argv = [sys.executable, "-c", _CLIENT, self.wan.address(edge)]
        *faults, last = self.wan.run("here-client", argv, timeout_s=30).stdout.splitlines()
        if not last.startswith("release "):
            faults.append(last)
        else:
            self.seen.append((time.monotonic(), edge, int(last.split()[1])))
        self.faults += [f"{edge}: {fault}" for fault in faults]

    def until_released(self, release: int, timeout_s: float = 60.0) -> None:
        """Wait until clients are served this release."""
        self.wan.wait_until(
            lambda: self.seen and self.seen[-1][2] >= release, timeout_s, f"clients are served release {release}"
        )


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    near = {("here", "edge-a"): 10.0, ("here", "edge-b"): 30.0, ("here", "dns"): 5.0}
    with Wan([*here(), *(Node(node) for node in NODES)], rtt_ms=near, default_rtt_ms=40.0) as wan:
        fleet = Fleet(wan)
        fleet.start_all()
        wan.wait_until(fleet.has_settled, 60, "both edges have the content, and the nearer one is named")
        yield fleet


def test_a_regional_node_that_dies_in_a_publish_harms_no_client(fleet: Fleet) -> None:
    with repeating(fleet.visit):
        fleet.until_released(fleet.release)
        for _ in range(2):
            fleet.until_released(fleet.publish())
        followed = fleet.status("edge-a")["parent"]
        other = {"reg-a": "reg-b", "reg-b": "reg-a"}[followed]
        # In the middle of the next release, as soon as its first file is staged or published there.
        release = fleet.publish(files=40)
        pool = fleet.folder(followed) / "tree" / "pool" / str(release)
        stage = fleet.folder(followed) / ".tree.syncd" / "stage" / "pool" / str(release)
        fleet.wan.wait_until(lambda: pool.exists() or stage.exists(), 20, "the release is on its way")
        fleet.syncd[followed].send_signal(signal.SIGKILL)
        fleet.syncd[followed].ended_by_test = True
        fleet.until_released(release)
        fleet.until_released(fleet.publish())
        assert fleet.status("edge-a")["parent"] == other
        fleet.start(followed)
        fleet.until_released(fleet.publish())
    assert fleet.faults == [], "\n".join(fleet.faults)


def test_an_edge_that_lags_is_not_named_and_comes_back(fleet: Fleet) -> None:
    with repeating(fleet.visit):
        fleet.until_released(fleet.release)
        assert fleet.steered.named() == "edge-a"
        for regional in ("reg-a", "reg-b"):
            fleet.wan.cut("edge-a", regional)
        fleet.publish()
        fleet.wan.wait_until(lambda: fleet.steered.named() == "edge-b", MAX_LAG_S + 20, "the fresh edge is named")
        fleet.until_released(fleet.release)
        for regional in ("reg-a", "reg-b"):
            fleet.wan.join("edge-a", regional)
        fleet.wan.wait_until(lambda: fleet.steered.named() == "edge-a", 60, "the nearer edge is named again")
    assert fleet.faults == [], "\n".join(fleet.faults)
    since_cut = [edge for _s, edge, release in fleet.seen if release == fleet.release]
    assert since_cut[0] == "edge-b"
