"""A service on some hosts of a WAN with nearpath in front: on the host `dns`; an agent and a client in region `here`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml

from core.tokens import token_sha256
from tests.lab.dig import NoAnswer, dig
from tests.lab.wan import Node, Wan

TOKEN = "0123456789abcdef-lab"
"""Of the agent, and of all nodes."""


def here() -> list[Node]:
    """The hosts beside those of the service."""
    return [Node("here-agent", region="here"), Node("here-client", region="here"), Node("dns")]


class Steered:
    """Starts nearpath for a service of these hosts, and asks as a client does."""

    def __init__(self, wan: Wan, service: str, hosts: Sequence[str]) -> None:
        self._wan = wan
        self._service = service
        self._hosts = hosts
        self._of_address = {wan.address(host): host for host in hosts}
        self.token_file = wan.directory / "token"
        self.token_file.touch(mode=0o600)
        self.token_file.write_text(TOKEN)

    def start(self, check: dict[str, Any], rise: int, service: dict[str, Any] | None = None, **more: Any) -> None:
        """`service` and `more`: what the scenario sets besides, of the service and of the whole configuration."""
        wan, ns, above = self._wan, self._wan.address("dns"), self._wan.directory
        config = {
            "version": 1,
            "state_dir": "state",
            "dns": {"listen": ["0.0.0.0:53"]},
            "zones": [{"origin": "mirror.example.", "file": "mirror.example.zone"}],
            "regions": {"here": {"prefixes": [wan.prefix("here")]}},
            "checks": {"web": {"kind": "http", "port": 80, **check}},
            "mirrors": {host: {"addresses": [wan.address(host)]} for host in self._hosts},
            "services": {
                self._service: {"mirrors": list(self._hosts), "checks": ["web"], "ttl": "1s", **(service or {})}
            },
            "agents": {"here-agent": {"region": "here", "token_sha256": token_sha256(TOKEN)}},
            "report": {"listen": ["0.0.0.0:8053"]},
            "steering": {"rise": rise, "hold_down": "1s", "dwell": "500ms", "live_for": "4s", "stale_for": "12s"},
            **more,
        }
        (above / "nearpath.yaml").write_text(yaml.safe_dump(config))
        zone = f"$TTL 300\n@ IN SOA ns1 hostmaster 1 3600 600 86400 60\n  IN NS ns1\nns1 IN A {ns}\n"
        (above / "mirror.example.zone").write_text(zone)
        agent = {
            "version": 1, "name": "here-agent", "appliance": f"http://{ns}:8053", "token_file": "token", "state_dir": "a",
        }  # fmt: skip
        (above / "agent.yaml").write_text(yaml.safe_dump(agent))
        wan.python("dns", "-m", "nearpath.main", "up", "-c", above / "nearpath.yaml", name="nearpath")
        wan.python("here-agent", "-m", "probes.main", "-c", above / "agent.yaml", name="agent")

    def named(self) -> str | None:
        """The host that DNS names for a client, or None while no answer comes."""
        try:
            answer = dig(self._wan, "here-client", self._service, "A", family=4)
        except NoAnswer:
            return None
        return self._of_address[answer.addresses[0]] if answer.addresses else None


@contextmanager
def repeating(visit: Callable[[], None]) -> Iterator[None]:
    """A client that does this all the time, in a thread of its own."""
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            visit()
            stop.wait(0.05)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
