"""The demo's files: configuration of the appliance, the agents and the syncd nodes, a zone, and something to replicate."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from core.errors import NearpathError
from core.io_state import find_holder
from core.tokens import token_sha256
from nearpath.demo.api import MODEL
from nearpath.demo.place import API_SERVICE, MIRROR_ADDRESS, ORIGIN, REGIONS, SERVICE, TREE, Place
from syncd.store.signed_root import public_key

_CONTENT = {
    "README": "Write here: every mirror has it a moment later.\n",
    "pool/hello-1.0.txt": "the package hello\n",
    "index.txt": "pool/hello-1.0.txt\n",
}

_FAQ = """- questions: ["How do I change my password?", "I forgot my password", "怎么修改密码？", "忘记密码怎么办"]
  answer: In the settings, under "security".
- questions: ["How do I cancel the automatic renewal?", "怎么取消自动续费？"]
  answer: Under "my account", "subscriptions".
"""
_QUESTION = "How can I change my password?"


def write_files(place: Place) -> None:
    """Write all of it; tokens and keys are drawn anew for every run. NearpathError while something runs on it."""
    for path in _old(place):
        _refuse_beneath(path)
    # What an earlier demo has kept (a drained mirror, old measurements) would make this one look broken.
    for path in _old(place):
        shutil.rmtree(path, ignore_errors=True)
    agents = {region: secrets.token_urlsafe(32) for region in REGIONS}
    stamps = {mirror: secrets.token_urlsafe(32) for mirror in MIRROR_ADDRESS}
    for region, token in agents.items():
        _write_agent(place, region, token)
    _write_nodes(place, stamps)
    _write_content(place.content(ORIGIN))
    _write_gateways(place)
    _write_appliance(place, agents, stamps)


def _refuse_beneath(state: Path) -> None:
    """NearpathError when a process runs on this folder, or on the state below it: it would lose what it works with."""
    for folder in (state, state / "state"):
        with suppress(OSError):
            if pid := find_holder(folder):
                raise NearpathError(
                    f"process {pid} still runs on {folder}, which the demo makes anew", f"end it first: `kill {pid}`"
                )


def _old(place: Place) -> Iterator[Path]:
    yield place.folder / "state"
    yield from (place.folder / f"agent-{region}" for region in REGIONS)
    for name in (ORIGIN, *MIRROR_ADDRESS):
        yield place.node(name).parent
        yield place.content(name)
    for mirror in MIRROR_ADDRESS:
        yield place.gateway(mirror).parent


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text + "\n")


def _write_content(content: Path) -> None:
    for name, text in _CONTENT.items():
        path = content / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _write_agent(place: Place, region: str, token: str) -> None:
    _write_secret(place.folder / f"agent-{region}.token", token)
    place.agent(region).write_text(
        f"""version: 1
name: demo-{region}
appliance: http://127.0.0.1:{place.ports["report"]}
token_file: agent-{region}.token
state_dir: agent-{region}
source: {{ipv4: {REGIONS[region][0]}.1}}
"""
    )


def _write_nodes(place: Place, stamps: dict[str, str]) -> None:
    """The origin of the tree and a copy on every mirror, each with a token for its parent and one for the appliance."""
    seed = secrets.token_bytes(32)
    pulls = {mirror: secrets.token_urlsafe(32) for mirror in MIRROR_ADDRESS}
    children = "\n".join(f"  {name}: {{token_sha256: {token_sha256(token)}}}" for name, token in pulls.items())
    origin = place.node(ORIGIN)
    origin.parent.mkdir()
    _write_secret(origin.parent / "tree.key", seed.hex())
    origin.write_text(
        f"""# The origin of the demo's files. On loopback; elsewhere it needs `tls`.
version: 1
node: {ORIGIN}
state_dir: state
listen: ["127.0.0.1:{place.ports["sync"]}"]
children:
{children}
trees:
  {TREE}: {{path: {place.content(ORIGIN).absolute()}, key_file: tree.key}}
"""
    )
    for mirror in MIRROR_ADDRESS:
        config = place.node(mirror)
        config.parent.mkdir()
        _write_secret(config.parent / "parent.token", pulls[mirror])
        _write_secret(config.parent / "appliance.token", stamps[mirror])
        config.write_text(
            f"""# The copy of the demo's files that the mirror {mirror} serves.
version: 1
node: {mirror}
state_dir: state
parents:
  {ORIGIN}: {{url: "http://127.0.0.1:{place.ports["sync"]}", token_file: parent.token}}
trees:
  {TREE}:
    path: {place.content(mirror).absolute()}
    parents: [{ORIGIN}]
    public_key: {public_key(seed).hex()}
    # Published after the files that it names.
    indexes: [index.txt]
    # A demo is not to fail for want of a gigabyte.
    reserve: {{size: 0B, share: 0%}}
appliance:
  url: http://127.0.0.1:{place.ports["report"]}
  token_file: appliance.token
"""
        )


def _write_gateways(place: Place) -> None:
    """A gateway on every mirror, the FAQ they share, and a request to try them with."""
    place.faq.write_text(_FAQ, "utf-8")
    place.ask.write_text(json.dumps({"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}]}) + "\n")
    for mirror, address in MIRROR_ADDRESS.items():
        config = place.gateway(mirror)
        config.parent.mkdir()
        config.write_text(
            f"""# The API gateway on the mirror {mirror}.
version: 1
node: {mirror}
state_dir: state
listen: ["{address}:{place.ports["gateway"]}"]
# Whoever comes is served: this is a demo on loopback.
anonymous: true
upstreams:
  far: {{url: "http://{address}:{place.ports["api"]}/v1"}}
routing: {{probe_every: 1s, give_up: 2s}}
retrieval: {{index: ../faq-index}}
"""
        )


def _write_appliance(place: Place, agents: dict[str, str], stamps: dict[str, str]) -> None:
    ports = place.ports
    lines = {
        "agents": [
            f"demo-{region}: {{region: {region}, token_sha256: {token_sha256(token)}}}"
            for region, token in agents.items()
        ],
        "nodes": [
            f"{mirror}: {{mirrors: [{mirror}], token_sha256: {token_sha256(token)}}}"
            for mirror, token in stamps.items()
        ],
        "regions": [f"{name}: {{prefixes: [{prefix}, {head}.0/24]}}" for name, (head, prefix) in REGIONS.items()],
        "mirrors": [f"{name}: {{addresses: [{address}]}}" for name, address in MIRROR_ADDRESS.items()],
    }
    part = {name: "\n".join(f"  {line}" for line in section) for name, section in lines.items()}
    place.appliance.write_text(
        f"""# The demo's configuration, written by `nearpath demo` at each start.
version: 1
state_dir: state

dns:
  listen: ["127.0.0.1:{ports["dns"]}"]
  nsid: demo

zones:
  - {{origin: mirror.example., file: mirror.example.zone}}

regions:
{part["regions"]}

checks:
  web: {{kind: http, port: {ports["http"]}, interval: 1s, timeout: 500ms}}
  # 503 from a gateway that cannot reach its upstream.
  gateway: {{kind: http, port: {ports["gateway"]}, path: /readyz, interval: 1s, timeout: 500ms}}

mirrors:
{part["mirrors"]}

services:
  {SERVICE}:
    mirrors: [{", ".join(MIRROR_ADDRESS)}]
    checks: [web]
    ttl: 10s
    # A mirror whose files may be older than this is not answered.
    max_lag: 15s
  {API_SERVICE}:
    mirrors: [{", ".join(MIRROR_ADDRESS)}]
    checks: [web, gateway]
    ttl: 10s

agents:
{part["agents"]}

# The mirrors' syncd: they say how fresh their files are.
nodes:
{part["nodes"]}

report:
  listen: ["127.0.0.1:{ports["report"]}"]
metrics:
  listen: ["127.0.0.1:{ports["metrics"]}"]

steering:
  dwell: 2s
  hold_down: 3s
  live_for: 10s
"""
    )
    (place.folder / "mirror.example.zone").write_text(
        """$ORIGIN mirror.example.
$TTL 300
@    IN SOA ns1 hostmaster 1 3600 600 86400 60
     IN NS  ns1
ns1  IN A   127.0.0.1
@    IN TXT "the zone of the nearpath demo"
"""
    )
