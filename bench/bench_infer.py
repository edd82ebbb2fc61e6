"""Benchmark of the API gateway: what it adds to a bare upstream, its rate, cached answers, streams; LiteLLM beside it.

Run with `python -m bench.bench_infer [--seconds N] [--no-litellm] [--no-retrieval]`. Gateway, upstream and load generator
are processes of their own on loopback; a bare run of the upstream is always beside the gateway's. LiteLLM is looked for in
run/litellm, and installed there when it is missing. The last line is one JSON object: {"bench": "infer", ...}, with the
keys of `KEYS`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench.infer_otlp import collector, measure_beside, measure_path
from bench.infer_retrieval import measure_retrieval
from local_infer.load.io_processes import KEY, Process, free_port, running_gateway, wait_for

KEYS = """
added_p50_ms added_p99_ms rps cpu_share error_share p95_ms max_rps cached_rps vs_litellm sse_us_per_chunk first_chunk_ms
retrieval_p99_ms rss_mb false_hits recall otlp_us otlp_off_us otlp_beside_us otlp_dead_beside_us
""".split()  # noqa: SIM905

RATE = 200
TARGET_RPS = 1600
ROOT = Path(__file__).resolve().parent.parent

PASS_BODY = (
    '{"model":"bench","messages":[{"role":"system","content":"You are a helpful assistant of a mirror."},'
    '{"role":"user","content":"What is the path of release @ of the package?"}]}'
)
CACHED_BODY = PASS_BODY.replace('"messages"', '"temperature":0,"messages"')
STREAM_BODY = PASS_BODY.replace('"messages"', '"stream":true,"messages"')


@contextmanager
def upstream(pace_s: float = 0.0, chunks: int = 1) -> Iterator[tuple[Process, int]]:
    """The lean upstream, and its port."""
    process = Process(sys.executable, "-m", "bench.infer_upstream", str(pace_s), str(chunks))
    try:
        yield process, int(process.line())
    finally:
        process.stop()


@contextmanager
def gateway(folder: Path, port: int, **more: Any) -> Iterator[tuple[Process, int]]:
    """A gateway in front of the upstream on `port`, as it comes but for its addresses and `more`, and its port."""
    with (
        (folder / "gateway.log").open("wb") as log,
        running_gateway(folder, [f"http://127.0.0.1:{port}/v1"], log, **more) as running,
    ):
        yield running


@contextmanager
def litellm(folder: Path, port: int, command: Path) -> Iterator[tuple[Process, int]]:
    """LiteLLM's proxy in front of the upstream on `port`, one worker, logging as little as it can."""
    config = {
        "model_list": [
            {
                "model_name": "bench",
                "litellm_params": {
                    "model": "openai/bench", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "none"
                },
            }
        ],
        "litellm_settings": {"set_verbose": False, "telemetry": False},
        "general_settings": {"master_key": KEY},
    }  # fmt: skip
    file, own = folder / "litellm.yaml", free_port()
    file.write_text(yaml.safe_dump(config))
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    with (folder / "litellm.log").open("wb") as log:
        process = Process(
            str(command), "--config", str(file), "--host", "127.0.0.1", "--port", str(own), "--num_workers", "1",
            env=env, stderr=log,
        )  # fmt: skip
    try:
        wait_for(own, process, 120.0)
        yield process, own
    finally:
        process.stop()


def load(port: int, seconds: float, body: str = PASS_BODY, **more: Any) -> dict[str, Any]:
    """One run of the load generator."""
    settings = {
        "port": port, "path": "/v1/chat/completions", "key": KEY, "connections": 32, "seconds": seconds, "body": body,
        "distinct": 1_000_000, **more,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench.infer_load", json.dumps(settings)], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measured(process: Process, port: int, seconds: float, body: str = PASS_BODY, **more: Any) -> dict[str, Any]:
    """A run with the CPU time that `process` took for it (`cpu_s`)."""
    before_s = process.cpu_s()
    result = load(port, seconds, body, **more)
    return {**result, "cpu_s": process.cpu_s() - before_s}


def find_litellm() -> Path | None:
    """LiteLLM's command; installed when it is missing and can be."""
    command = ROOT / "run" / "litellm" / "bin" / "litellm"
    if not command.exists():
        print("installing litellm[proxy] into run/litellm ...", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(command.parent.parent)], check=True)
        pip = [str(command.parent / "pip"), "install", "-q", "litellm[proxy]"]
        if subprocess.run(pip, check=False, capture_output=True).returncode:
            return None
    return command


# -- the measurements


def measure_added(process: Process, port: int, bare_port: int, seconds: float) -> dict[str, float]:
    """Latency over the bare upstream at RATE requests/s; the best of three pairs, run in turn."""
    pairs = []
    for _ in range(3):
        bare = load(bare_port, seconds, rate=RATE, connections=64)
        through = measured(process, port, seconds, rate=RATE, connections=64)
        pairs.append((bare, through))
    return {
        f"added_{p}_ms": min(through[f"{p}_ms"] - bare[f"{p}_ms"] for bare, through in pairs) for p in ("p50", "p99")
    }


def measure_rate(process: Process, port: int, upstream_process: Process, seconds: float) -> dict[str, float]:
    """At TARGET_RPS: rate, share of both cores (of all three processes, of the gateway), P95, errors; then at full rate."""
    runs = []
    for _ in range(3):
        before_s = upstream_process.cpu_s()
        run = measured(process, port, seconds, rate=TARGET_RPS, connections=128)
        runs.append({**run, "all_cpu_s": run["cpu_s"] + run["own_cpu_s"] + upstream_process.cpu_s() - before_s})
    # The machine may be busy with other things: the best run is nearest to what the gateway does.
    paced = min(runs, key=lambda one: one["p95_ms"])
    cores_s = (os.cpu_count() or 1) * paced["elapsed_s"]
    full = max((measured(process, port, seconds) for _ in range(2)), key=lambda run: run["rps"])
    return {
        "rps": paced["rps"],
        "cpu_share": paced["all_cpu_s"] / cores_s,
        "gateway_cpu_share": paced["cpu_s"] / cores_s,
        "p95_ms": paced["p95_ms"],
        "error_share": paced["errors"] / max(1, paced["count"]),
        "max_rps": full["rps"],
        "rps_per_cpu_s": full["count"] / full["cpu_s"],
    }


def measure_cached(process: Process, port: int, seconds: float) -> dict[str, float]:
    """Answers from memory: 100 requests asked for again and again."""
    load(port, 1.0, CACHED_BODY, distinct=100)
    best = max((measured(process, port, seconds, CACHED_BODY, distinct=100) for _ in range(2)), key=lambda r: r["rps"])
    return {"cached_rps": best["rps"], "cached_error_share": best["errors"] / best["count"]}


def measure_streams(folder: Path, seconds: float) -> dict[str, float]:
    """CPU for each chunk of long streams, 10 ms apart; of the first chunk of short ones, how much longer than bare it is
    under way once the upstream sent it, and how much later than bare it comes after the request.
    """
    with upstream(0.01, 200) as (_process, bare_port), gateway(folder, bare_port) as (process, port):
        load(port, 0.5, STREAM_BODY)
        long = measured(process, port, max(seconds, 5.0), STREAM_BODY, connections=48)
    with upstream(0.0, 3) as (_process, bare_port), gateway(folder, bare_port) as (process, port):
        pairs = []
        for _ in range(3):
            bare = load(bare_port, seconds / 2, STREAM_BODY, rate=100, connections=16)
            pairs.append((bare, load(port, seconds / 2, STREAM_BODY, rate=100, connections=16)))
    return {
        "sse_us_per_chunk": long["cpu_s"] / max(1, long["chunks"]) * 1e6,
        "first_chunk_ms": min(through["forwarded_p50_ms"] - bare["forwarded_p50_ms"] for bare, through in pairs),
        "first_chunk_added_ms": min(through["first_p50_ms"] - bare["first_p50_ms"] for bare, through in pairs),
    }


def measure_otlp(folder: Path, bare_port: int, seconds: float) -> dict[str, float]:
    """What telemetry costs on a request's path, and in the process beside: with a collector, and with none there."""
    found = measure_path()
    with collector() as url:
        for key, endpoint in (("otlp_beside_us", url), ("otlp_dead_beside_us", "http://127.0.0.1:9")):
            otlp = {"endpoint": endpoint, "sample": "100%"}
            with gateway(folder, bare_port, otlp=otlp) as (process, port):
                run = partial(load, port, seconds, rate=RATE, connections=64)
                run()
                found[key] = measure_beside(process, run)
    return found


def measure_litellm(folder: Path, bare_port: int, seconds: float) -> dict[str, float] | None:
    """LiteLLM's rate, and its requests for each second of CPU; None when it cannot be had."""
    command = find_litellm()
    if command is None:
        return None
    with litellm(folder, bare_port, command) as (process, port):
        load(port, 2.0, connections=8)
        run = max((measured(process, port, seconds) for _ in range(2)), key=lambda one: one["rps"])
        good = run["count"] - run["errors"]
        return {
            "litellm_rps": good / run["elapsed_s"],
            "litellm_rps_per_cpu_s": good / run["cpu_s"],
            "litellm_p50_ms": run["p50_ms"],
            "litellm_rss_mb": process.rss_mb(),
        }


def main() -> None:
    """All measurements, a table, one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each run")
    parser.add_argument("--no-litellm", action="store_true", help="leave the peer out")
    parser.add_argument("--only-otlp", action="store_true", help="only what telling a collector costs")
    parser.add_argument("--no-retrieval", action="store_true", help="leave the retrieval step out")
    arguments = parser.parse_args()
    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="bench-infer-") as name:
        folder = Path(name)
        with upstream() as (_process, bare_port):
            found |= measure_otlp(folder, bare_port, arguments.seconds)
        if arguments.only_otlp:
            _print(found)
            return
        with upstream() as (upstream_process, bare_port):
            with gateway(folder, bare_port) as (process, port):
                load(port, 1.0)
                found |= measure_added(process, port, bare_port, arguments.seconds)
                found |= measure_rate(process, port, upstream_process, arguments.seconds)
                found |= measure_cached(process, port, arguments.seconds)
                found["rss_mb"] = process.rss_mb()
            if not arguments.no_litellm:
                peer = measure_litellm(folder, bare_port, arguments.seconds)
                if peer is None:
                    print("LiteLLM is missing: it could not be installed", file=sys.stderr)
                else:
                    found |= peer
                    found["vs_litellm"] = found["rps_per_cpu_s"] / peer["litellm_rps_per_cpu_s"]  # type: ignore[operator]
        found |= measure_streams(folder, arguments.seconds)
        if not arguments.no_retrieval:
            found |= measure_retrieval(folder)
    _print(found)


def _print(found: dict[str, float | None]) -> None:
    table = Table("measure", "value")
    for key, value in found.items():
        table.add_row(key, "-" if value is None else f"{value:,.3f}")
    Console().print(table)
    extra = [key for key in found if key not in KEYS]
    print(json.dumps({"bench": "infer", **{key: _short(found.get(key)) for key in [*KEYS, *extra]}}))


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    main()
