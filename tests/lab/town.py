"""A whole nearpath in the lab, all of it real programs: four regions with agent and client, three mirrors, the appliance.

RTTs are PlanetLab's (nodes of the extract, by number), so that the true order of the mirrors is known:

| region | m-one | m-two | m-three |
|---|---|---|---|
| north | 99 | 196 | 207 |
| south | 179 | 85 | 212 |
| east | 160 | 198 | 43 |
| west | 77 | 127 | 186 |
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.tokens import token_sha256
from tests.lab.dig import Answer, NoAnswer, dig
from tests.lab.matrix import planetlab_rtt_ms
from tests.lab.mirror_server import Mirror, start_mirrors
from tests.lab.process import LabProcess
from tests.lab.wan import Node, Wan

REGIONS = ("north", "south", "east", "west")
MIRRORS = ("m-one", "m-two", "m-three")
SERVICE = "www.mirror.example."
INTERVAL_S = 1.0
STALE_FOR_S = 12.0
LIVE_FOR_S = 4.0

_NUMBERS = {"north": 21, "south": 6, "east": 11, "west": 35, "m-one": 16, "m-two": 33, "m-three": 10, "dns": 34}
_SLICE = 12

_CONFIG = """\
version: 1
state_dir: state
dns:
  listen: ["0.0.0.0:53", "[::]:53"]
zones:
  - {{origin: mirror.example., file: mirror.example.zone}}
regions:
  upper: {{}}
  north: {{parent: upper, prefixes: [{north4}, "{north6}"]}}
  north-town: {{parent: north, prefixes: [10.1.200.0/24]}}
  south: {{parent: upper, prefixes: [{south4}, "{south6}"]}}
  east: {{prefixes: [{east4}, "{east6}"]}}
  west: {{prefixes: [{west4}, "{west6}"]}}
checks:
  web: {{kind: http, port: 80, interval: 1s, timeout: 600ms}}
mirrors:
{mirrors}
services:
  {service}:
    mirrors: [m-one, m-two, m-three]
    checks: [web]
    ttl: 10s
agents:
{agents}
report: {{listen: ["0.0.0.0:8053"]}}
metrics: {{listen: ["127.0.0.1:9153"]}}
steering:
  rise: 4
  hold_down: 2s
  dwell: 3s
  live_for: {live_for}s
  stale_for: {stale_for}s
  damping: {{half_life: 20s, suppress: 1700, reuse: 1000, max_suppress: 1m}}
"""

_ZONE = """\
$TTL 300
@    IN SOA ns1 hostmaster 1 3600 600 86400 60
     IN NS  ns1
ns1  IN A   {dns}
"""

_AGENT = """\
version: 1
name: {region}-agent
appliance: http://{dns}:8053
token_file: {region}.token
state_dir: {region}-agent
"""


class Town:
    """The running lab with what a scenario wants to do and ask."""

    def __init__(self, wan: Wan) -> None:
        self.wan = wan
        self.folder: Path = wan.directory
        self.mirrors: dict[str, Mirror] = {}
        self.agents: dict[str, LabProcess] = {}
        self.appliance: LabProcess
        self.mirror_of = {wan.address(m, f): m for m in MIRRORS for f in (4, 6)}

    # -- starting and ending parts

    def start_all(self) -> None:
        self._write_files()
        self.mirrors = dict(zip(MIRRORS, start_mirrors(self.wan, list(MIRRORS)), strict=True))
        self.start_appliance()
        for region in REGIONS:
            self.start_agent(region)

    def start_appliance(self) -> None:
        self.appliance = self.wan.python(
            "dns", "-m", "nearpath.main", "up", "-c", self.folder / "nearpath.yaml", name="nearpath"
        )

    def start_agent(self, region: str) -> None:
        file = self.folder / f"{region}-agent.yaml"
        self.agents[region] = self.wan.python(
            f"{region}-agent", "-m", "probes.main", "-c", file, name=f"{region}-agent"
        )

    def _write_files(self) -> None:
        dns = self.wan.address("dns")
        prefixes = {f"{r}{f}": self.wan.prefix(r, f) for r in REGIONS for f in (4, 6)}
        mirrors = "\n".join(
            f'  {m}: {{addresses: [{self.wan.address(m)}, "{self.wan.address(m, 6)}"]}}' for m in MIRRORS
        )
        agents = []
        for region in REGIONS:
            token = f"token-of-{region}"
            (self.folder / f"{region}.token").write_text(token)
            (self.folder / f"{region}.token").chmod(0o600)
            (self.folder / f"{region}-agent.yaml").write_text(_AGENT.format(region=region, dns=dns))
            agents.append(f"  {region}-agent: {{region: {region}, token_sha256: {token_sha256(token)}}}")
        (self.folder / "nearpath.yaml").write_text(
            _CONFIG.format(
                **prefixes, mirrors=mirrors, agents="\n".join(agents), service=SERVICE,
                live_for=LIVE_FOR_S, stale_for=STALE_FOR_S,
            )
        )  # fmt: skip
        (self.folder / "mirror.example.zone").write_text(_ZONE.format(dns=dns))

    # -- asking

    def ask(self, region: str, rtype: str = "A") -> Answer:
        """What a client in the region is answered, asking the appliance itself."""
        return dig(self.wan, f"{region}-client", SERVICE, rtype, family=6 if rtype == "AAAA" else 4)

    def mirror_for(self, region: str, rtype: str = "A") -> str:
        """Name of the mirror that a client in the region is sent to."""
        answer = self.ask(region, rtype)
        assert answer.rcode == "NOERROR", answer.text
        assert len(answer.addresses) == 1, answer.text
        return self.mirror_of[answer.addresses[0]]

    def answered(self, region: str, rtype: str = "A") -> str | None:
        """`mirror_for`, or None while no answer comes."""
        try:
            return self.mirror_for(region, rtype)
        except NoAnswer:
            return None

    def nearpath(self, *arguments: str) -> Any:
        """JSON output of a `nearpath` command on the appliance's host."""
        config = str(self.folder / "nearpath.yaml")
        argv = [sys.executable, "-m", "nearpath.main", *arguments, "-c", config]
        done = self.wan.run("dns", argv, timeout_s=20, cwd=Path(__file__).resolve().parents[2])
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    def status(self) -> Any:
        return self.nearpath("status", "--json")

    def explain(self, client: str) -> Any:
        return self.nearpath("explain", SERVICE, "--client", client, "--json")

    def catchment(self, name: str, family: int = 4) -> Any:
        """The status of one catchment."""
        return next(c for c in self.status()["catchments"] if (c["catchment"], c["family"]) == (name, family))

    def agent_status(self, region: str) -> Any:
        return next(a for a in self.status()["agents"] if a["agent"] == f"{region}-agent")

    def true_order(self, region: str) -> list[str]:
        """The mirrors from fastest to slowest as the lab's matrix has them."""
        return sorted(MIRRORS, key=lambda mirror: self.true_rtt_ms(region, mirror))

    def true_rtt_ms(self, region: str, mirror: str) -> float:
        """The RTT of the lab's matrix."""
        return _rtt_ms()[region, mirror]

    # -- waiting

    def until_settled(self, timeout_s: float = 60.0) -> None:
        """Wait until every region is answered with its truly fastest mirror, live, over IPv4 and IPv6."""
        for rtype in ("A", "AAAA"):
            for region in REGIONS:
                best = self.true_order(region)[0]
                self.wan.wait_until(
                    lambda region=region, rtype=rtype, best=best: self.answered(region, rtype) == best,  # type: ignore[misc]
                    timeout_s,
                    f"{region} is sent to {best} ({rtype})",
                )
        self.wan.wait_until(
            lambda: [path for path in self._paths() if path[-2:] != ("live", "up")] == [],
            timeout_s,
            "every path is live and up",
        )

    def _paths(self) -> list[tuple[str, int, str, str, str]]:
        return [
            (c["catchment"], c["family"], m["mirror"], m["quality"], m["state"])
            for c in self.status()["catchments"]
            if c["catchment"] in REGIONS
            for m in c["mirrors"]
        ]


def _rtt_ms() -> dict[tuple[str, str], float]:
    return planetlab_rtt_ms(list(_NUMBERS), _SLICE, list(_NUMBERS.values()))


@contextmanager
def running_town() -> Iterator[Town]:
    """A Town with everything started; the answers may not have settled yet."""
    nodes = [Node(f"{r}-{what}", region=r) for r in REGIONS for what in ("agent", "client")]
    with Wan([*nodes, *(Node(m) for m in MIRRORS), Node("dns")], rtt_ms=_rtt_ms()) as wan:
        town = Town(wan)
        town.start_all()
        yield town


def wait_s(seconds: float) -> None:
    """Let real time pass: the scenario is about what happens, or does not, in it."""
    time.sleep(seconds)


def remove(folder: Path) -> None:
    """Forget a program's state."""
    shutil.rmtree(folder, ignore_errors=True)
