"""HTTP/1.1 and HTTP/2 side by side: from the gateway to a far upstream, and from clients to nginx in front of the gateway.

Run with `python -m bench.bench_infer_http2 [--seconds N] [--rtt-ms 40]`; needs nginx, h2load (Debian: nghttp2-client), and
root for the WAN in network namespaces; what cannot be measured here is left out, with the reason. The upstream is the lean
one of `bench_infer` behind an nginx that ends TLS and speaks both. The last line is one JSON object.

    far_*_cold_p50_ms   64 requests within 50 ms at a gateway with one warm connection; and p99
    far_*_p50_ms, _p99  at 100 requests/s
    far_*_lossy_p99_ms  the same, with 1% of the packets lost each way
    far_*_us            CPU of the gateway for a request
    front_*_rps         32 requests at a time through nginx over TLS (1 connection with HTTP/2 for each 8)
    front_*_us          CPU of nginx for a request
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench.bench_infer import KEY, PASS_BODY, ROOT, Process, free_port, gateway, upstream, wait_for
from bench.sync_nodes import make_certificate
from tests.lab import netns
from tests.lab.wan import Node, Wan

BURST = 64
RATE = 100
LOSS = 0.01
START_S = 40.0
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")

_NGINX = """\
{user}
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log warn;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    upstream behind {{ server 127.0.0.1:{port}; keepalive 64; }}
    server {{
        listen {address} ssl http2;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        keepalive_requests 1000000;
        location / {{
            proxy_pass http://behind;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, host: str, port: int, prefix: tuple[str, ...] = ()) -> Iterator[tuple[Process, str]]:
    """nginx with TLS and both protocols before 127.0.0.1:`port`; itself, and its address."""
    folder.mkdir()
    make_certificate(folder, host)
    address = f"{host}:{free_port()}"
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(_NGINX.format(folder=folder, user=user, port=port, address=address))
    argv = ["nginx", "-p", str(folder), "-e", str(folder / "nginx.log"), "-c", str(folder / "nginx.conf")]
    process = Process(*prefix, *argv)
    try:
        if not prefix:
            wait_for(int(address.rpartition(":")[2]), process)
        yield process, address
    finally:
        process.stop()


def children_cpu_s(process: Process) -> float:
    """CPU time of a program's children so far: nginx works in them."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process.child.pid:
            total += int(fields[11]) + int(fields[12])
    return total * _TICK_S


# --- far upstreams


def far(folder: Path, rtt_ms: float, seconds: float) -> dict[str, float]:
    """A gateway on one node of a WAN, the upstream on another; once for each protocol."""
    found: dict[str, float] = {}
    directory = folder / "lab"
    directory.mkdir()
    with Wan([Node("gw"), Node("up")], {}, default_rtt_ms=rtt_ms, directory=directory) as wan, ExitStack() as stack:
        inside = {node: ("ip", "netns", "exec", wan.namespace(node)) for node in ("gw", "up")}
        lean = Process(*inside["up"], sys.executable, "-m", "bench.infer_upstream", "0", "1")
        stack.callback(lean.stop)
        assert lean.child.stdout is not None
        port = int(lean.child.stdout.readline())
        front = nginx(folder / "up", wan.address("up"), port, inside["up"])
        _process, address = stack.enter_context(front)
        for name in ("h1", "h2"):
            wan.set_loss("gw", "up", 0.0)
            found |= _far_one(folder, inside["gw"], address, name, seconds)
            wan.set_loss("gw", "up", LOSS)
            lossy = _far_one(folder, inside["gw"], address, name, seconds)
            found[f"far_{name}_lossy_p99_ms"] = lossy[f"far_{name}_p99_ms"]
    return found


def _far_one(folder: Path, inside: tuple[str, ...], address: str, name: str, seconds: float) -> dict[str, float]:
    own = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
    config = {
        "version": 1,
        "state_dir": "state",
        "listen": ["127.0.0.1:8080"],
        "keys": {"bench": {"token_sha256": hashlib.sha256(KEY.encode()).hexdigest()}},
        "upstreams": {
            "far": {"url": f"https://{address}/v1", "ca_file": str(folder / "up" / "cert.pem"), "http2": name == "h2"}
        },
    }
    (own / "gateway.yaml").write_text(yaml.safe_dump(config))
    with (own / "gateway.log").open("wb") as log:
        argv = [sys.executable, "-m", "local_infer.main", "run", "-c", str(own / "gateway.yaml")]
        process = Process(*inside, *argv, stderr=log)
    try:
        _load(inside, seconds=3.0, connections=1, rate=2)  # until it serves, and its one connection is warm
        burst = _load(inside, seconds=0.05, connections=BURST, rate=BURST * 20, linger_s=2.0)
        before_s = process.cpu_s()
        paced = _load(inside, seconds=seconds, connections=64, rate=RATE)
        us = (process.cpu_s() - before_s) / max(1, paced["count"]) * 1e6
    finally:
        process.stop()
    if burst["errors"] or paced["errors"]:
        print(f"{name}: {burst['errors']} + {paced['errors']} errors; see {own}", file=sys.stderr)
    return {
        f"far_{name}_cold_p50_ms": burst["p50_ms"],
        f"far_{name}_cold_p99_ms": burst["p99_ms"],
        f"far_{name}_p50_ms": paced["p50_ms"],
        f"far_{name}_p99_ms": paced["p99_ms"],
        f"far_{name}_us": us,
    }


def _load(inside: tuple[str, ...], **settings: Any) -> dict[str, Any]:
    """A run of the load generator in the gateway's namespace; tried again until the gateway serves."""
    whole = {"port": 8080, "path": "/v1/chat/completions", "key": KEY, "body": PASS_BODY, "distinct": 1_000_000}
    argv = [*inside, sys.executable, "-m", "bench.infer_load", json.dumps({**whole, **settings})]
    ends = time.monotonic() + START_S
    while time.monotonic() < ends:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            result: dict[str, Any] = json.loads(done.stdout)
            return result
        time.sleep(0.2)
    raise SystemExit(f"the load generator failed: {done.stderr[-2000:]}")


# --- clients


def front(folder: Path, seconds: float) -> dict[str, float]:
    """h2load over TLS through nginx, with HTTP/1.1 and with HTTP/2."""
    (folder / "body.json").write_text(PASS_BODY)
    found: dict[str, float] = {}
    with (
        upstream() as (_upstream, bare_port),
        gateway(folder, bare_port) as (_gateway, port),
        nginx(folder / "front", "127.0.0.1", port) as (server, address),
    ):
        for name, options in (("h1", ["--h1", "-c32"]), ("h2", ["-c4", "-m8"])):
            runs = []
            for _ in range(3):
                before_s = children_cpu_s(server)
                count, rate = _h2load(folder, address, options, seconds)
                runs.append((rate, (children_cpu_s(server) - before_s) / max(1, count) * 1e6))
            found[f"front_{name}_rps"], found[f"front_{name}_us"] = max(runs)
    return found


def _h2load(folder: Path, address: str, options: list[str], seconds: float) -> tuple[int, float]:
    argv = ["h2load", *options, "-t1", f"-D{seconds:g}", f"-d{folder / 'body.json'}"]
    argv += ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    done = subprocess.run([*argv, f"https://{address}/v1/chat/completions"], capture_output=True, text=True, check=True)
    count = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", done.stdout)
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", done.stdout)
    if not count or not rate or int(count[2]) + int(count[3]):
        raise SystemExit(f"h2load: {done.stdout[-1500:]}")
    return int(count[1]), float(rate[1])


def main() -> None:
    """Both, a table, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run")
    parser.add_argument("--rtt-ms", type=float, default=40.0, help="to the far upstream")
    arguments = parser.parse_args()
    missing = [program for program in ("nginx", "h2load") if shutil.which(program) is None]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-http2-") as name:
        if why := netns.why_not_here() or ("nginx is missing" if "nginx" in missing else ""):
            print(f"no far upstream: {why}", file=sys.stderr)
        else:
            found |= far(Path(name), arguments.rtt_ms, arguments.seconds)
        if missing:
            print(f"no front server: {', '.join(missing)} missing", file=sys.stderr)
        else:
            found |= front(Path(name), arguments.seconds)
    table = Table("measure", "HTTP/1.1", "HTTP/2", "ratio")
    for key in (key for key in found if "_h1_" in key):
        one, two = found[key], found[key.replace("_h1_", "_h2_")]
        table.add_row(key.replace("_h1_", " "), f"{one:,.1f}", f"{two:,.1f}", f"{two / one:.2f}")
    Console().print(table)
    print(json.dumps({"bench": "infer_http2", **{key: round(value, 3) for key, value in found.items()}}))


if __name__ == "__main__":
    main()
