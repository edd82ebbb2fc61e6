"""A small WAN on one machine: real programs in network namespaces, joined by a router that delays and drops.

    with Wan(
        [Node("cn-agent", region="cn"), Node("cn-client", region="cn"), Node("m-hk"), Node("m-fra"), Node("dns")],
        rtt_ms={("cn", "m-hk"): 40, ("cn", "m-fra"): 180, ("cn", "dns"): 30},
        default_rtt_ms=100,
    ) as wan:
        wan.popen("m-hk", mirror_argv("m-hk", control=...))
        wan.set_rtt("cn", "m-hk", 250)
        wan.down("m-hk")

A name of a path's end is a node or a site (a region's nodes form a site). Needs root; `netns.why_not_here()` says what
is missing. Failures inside the block print the logs of all programs; the directory with the logs is then kept.
"""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from tests.lab import netns, ping, process
from tests.lab.process import LabProcess
from tests.lab.topology import LabError, Node, Topology, plan

__all__ = ["LabError", "LabProcess", "Node", "PathCounters", "Wan"]

ROOT = Path(__file__).resolve().parents[2]
ROUTER_STOP_S = 20.0  # removing 200 namespaces takes the kernel some seconds

Result = TypeVar("Result")

_serials = itertools.count(1)


@dataclass(frozen=True)
class PathCounters:
    """What the router did on some paths; `unroutable` and after it is about the router as a whole."""

    packets: int
    bytes: int
    dropped: int
    unroutable: int
    queued: int
    late_packets: int  # handed over more than 0.3 ms too late: this machine was busy, expect inexact RTTs
    late_max_ms: float


class Wan:
    """The lab, up between `__enter__` and `__exit__`."""

    def __init__(
        self,
        nodes: Sequence[Node],
        rtt_ms: Mapping[tuple[str, str], float],
        *,
        default_rtt_ms: float | None = None,
        region_prefixes: Mapping[str, tuple[str, str]] | None = None,
        seed: int = 1,
        directory: Path | None = None,
    ) -> None:
        """`seed` fixes which packets of each path are lost and delayed. `directory` takes the logs (else a new one)."""
        self.topology: Topology = plan(nodes, rtt_ms, default_rtt_ms, region_prefixes)
        self.processes: list[LabProcess] = []
        self._seed = seed
        self._given_directory = directory
        self._prefix = netns.prefix(next(_serials))
        self._router: subprocess.Popen[bytes] | None = None
        self._names: Counter[str] = Counter()

    def __enter__(self) -> Wan:
        missing = netns.why_not_here()
        if missing:
            raise LabError(missing)
        netns.remove_stale()
        self.directory = self._given_directory or Path(tempfile.mkdtemp(prefix="nearpath-lab-"))
        try:
            self._start_router()
        except BaseException:
            self._close(keep_directory=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for program in self.processes:
                print(program.tail(), file=sys.stderr)
            print(f"logs of the lab: {self.directory}", file=sys.stderr)
        self._close(keep_directory=error is not None)

    # -- names and addresses

    def namespace(self, node: str) -> str:
        """Name of the node's network namespace (`ip netns exec NAME ...` works)."""
        if node not in self.topology.index:
            raise LabError(f"the lab has no node {node!r}; nodes: {', '.join(self.topology.index)}")
        return self._prefix + node

    def address(self, node: str, family: int = 4) -> str:
        """The node's address of the family (4 or 6)."""
        return self.topology.address(node, family)

    def prefix(self, region: str, family: int = 4) -> str:
        """The client prefix of a region, or of a node without one."""
        return self.topology.prefixes[region][{4: 0, 6: 1}[family]]

    # -- programs

    def popen(
        self,
        node: str,
        argv: Sequence[str | Path],
        *,
        name: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> LabProcess:
        """Start a program on a node. It is ended at the end of the lab; its log is `directory/NAME.log`."""
        base = name or f"{node}-{Path(argv[0]).name}"
        self._names[base] += 1
        unique = base if self._names[base] == 1 else f"{base}.{self._names[base]}"
        log = self.directory / f"{unique}.log"
        program = process.start(self.namespace(node), node, argv, name=unique, log=log, env=env, cwd=cwd)
        self.processes.append(program)
        return program

    def python(self, node: str, *argv: str | Path, **options: Any) -> LabProcess:
        """`popen` of this interpreter in the project's directory: `wan.python("dns", "-m", "nearpath", "up", ...)`."""
        return self.popen(node, [sys.executable, *argv], **{"cwd": ROOT, **options})

    def run(
        self,
        node: str,
        argv: Sequence[str | Path],
        *,
        timeout_s: float = 10.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        text_in: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on a node to its end. With `check`, a return code other than 0 is a LabError with its output."""
        try:
            done = subprocess.run(
                process.inside(self.namespace(node), argv),
                input=text_in,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                env=process.environment(env),
                cwd=cwd,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{argv} on {node!r} takes longer than {timeout_s} s; so far: {error.output!r}") from None
        if check and done.returncode != 0:
            raise LabError(f"{argv} on {node!r} ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def wait_until(self, predicate: Callable[[], Result], timeout_s: float, what: str) -> Result:
        """Wait for something true and return it; fails with the logs, at once when a program ended by itself."""
        return process.wait_until(predicate, timeout_s, what, self.processes)

    def holds(self, predicate: Callable[[], object], duration_s: float, what: str, every_s: float = 0.1) -> None:
        """Check that something stays true for a while; fails with the logs at the first time it is not."""
        end = time.monotonic() + duration_s
        while time.monotonic() < end:
            result = predicate()
            if not result:
                logs = "\n".join(program.tail() for program in self.processes)
                left_s = end - time.monotonic()
                raise AssertionError(
                    f"should hold for {duration_s} s: {what}; got {result!r}, {left_s:.1f} s early\n{logs}"
                )
            time.sleep(every_s)

    # -- from inside the test process

    def socket(
        self, node: str, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0
    ) -> socket.socket:
        """A socket of the test process that stands on a node."""
        return netns.open_socket(self.namespace(node), family, kind, protocol)

    def ping_ms(
        self,
        source: str,
        target: str,
        count: int = 10,
        *,
        family: int = 4,
        every_s: float = 0.01,
        timeout_s: float = 2.0,
    ) -> list[float | None]:
        """Measured RTT of `count` echo requests in ms, None for each that had no answer."""
        kind, protocol = ping.SOCKET[family]
        with self.socket(source, kind, socket.SOCK_DGRAM, protocol) as echo:
            return ping.echo_ms(echo, self.address(target, family), count, every_s, timeout_s)

    # -- paths; `a` and `b` are nodes or sites, and both directions change unless `one_way`

    def set_rtt(self, a: str, b: str, rtt_ms: float, *, one_way: bool = False) -> None:
        """Set the round-trip time: half of it each way. With `one_way`, only from a to b (by half of `rtt_ms`)."""
        self._set(a, b, one_way, delay_s=_seconds(rtt_ms) / 2)

    def set_jitter(self, a: str, b: str, jitter_ms: float, *, one_way: bool = False) -> None:
        """Add a random delay, exponentially distributed, of `jitter_ms` in the mean of a round trip. Keeps the order."""
        self._set(a, b, one_way, jitter_s=_seconds(jitter_ms) / 2)

    def set_loss(self, a: str, b: str, loss_ratio: float, *, one_way: bool = False) -> None:
        """Lose this part of the packets, 0 to 1, in each direction: a round trip is lost with 1 - (1 - loss_ratio)^2."""
        self._set(a, b, one_way, loss_ratio=_ratio(loss_ratio))

    def set_reorder(self, a: str, b: str, ratio: float, *, held_back_ms: float = 5.0, one_way: bool = False) -> None:
        """Hold this part of the packets back, so that later ones overtake them."""
        self._set(a, b, one_way, reorder_ratio=_ratio(ratio), reorder_s=_seconds(held_back_ms))

    def cut(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Part two nodes or sites: nothing passes, what is on the way is lost too."""
        self._set(a, b, one_way, blocked=True)

    def join(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Undo `cut`."""
        self._set(a, b, one_way, blocked=False)

    def down(self, node: str) -> None:
        """Take a node, or all of a site, off the net: no packet to it or from it passes. Its programs go on."""
        self._ask("set_down", nodes=self.topology.members(node), is_down=True)

    def up(self, node: str) -> None:
        """Undo `down`."""
        self._ask("set_down", nodes=self.topology.members(node), is_down=False)

    def counters(self, a: str, b: str) -> PathCounters:
        """What passed from a to b (this direction only)."""
        return PathCounters(**self._ask("counters", pairs=self.topology.pairs(a, b)))

    def forget_counters(self) -> None:
        """Start all counters at zero."""
        self._ask("forget_counters")

    # -- the router

    def _set(self, a: str, b: str, one_way: bool, **values: float) -> None:
        pairs = self.topology.pairs(a, b)
        if not one_way:
            pairs += [(j, i) for i, j in pairs]
        self._ask("set_path", pairs=pairs, **values)

    def _start_router(self) -> None:
        setup = {
            "seed": self._seed,
            "nodes": [
                {"netns": self.namespace(node.name), "addresses": self.topology.addresses[node.name]}
                for node in self.topology.nodes
            ],
            "delay_s": [[rtt_ms / 2000 for rtt_ms in row] for row in self.topology.rtt_ms],
        }
        with (self.directory / "router.log").open("wb") as log:
            self._router = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.router"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,  # a Ctrl-C is for the test; the router ends when we close its input
            )
        warning = self._exchange(setup)
        if warning:
            print(f"lab: {warning}", file=sys.stderr)

    def _ask(self, request: str, **arguments: Any) -> Any:
        return self._exchange({"do": request, **arguments})

    def _exchange(self, message: Mapping[str, Any]) -> Any:
        if self._router is None or self._router.stdin is None or self._router.stdout is None:
            raise LabError("the lab is not running: use it inside its `with` block")
        try:
            self._router.stdin.write(json.dumps(message).encode() + b"\n")
            self._router.stdin.flush()
            line = self._router.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            log = (self.directory / "router.log").read_text(errors="replace")
            raise LabError(f"the lab's router has ended with {self._router.wait(ROUTER_STOP_S)}\n{log}")
        reply = json.loads(line)
        if "error" in reply:
            raise LabError(f"the lab's router refused {message}: {reply['error']}")
        return reply["result"]

    def _close(self, keep_directory: bool) -> None:
        try:
            for program in reversed(self.processes):
                program.begin_end()
            for program in reversed(self.processes):
                program.finish_end()
        finally:
            self._stop_router()
            netns.remove(netns.listed(self._prefix))
            if self._given_directory is None and not keep_directory:
                shutil.rmtree(self.directory, ignore_errors=True)

    def _stop_router(self) -> None:
        router, self._router = self._router, None
        if router is None or router.stdin is None or router.stdout is None:
            return
        router.stdin.close()
        try:
            router.wait(ROUTER_STOP_S)
        except subprocess.TimeoutExpired:
            router.kill()
            router.wait()
        router.stdout.close()


def _seconds(ms: float) -> float:
    if not 0 <= ms <= 60_000:
        raise LabError(f"{ms} ms is not a delay: 0 to 60000 ms")
    return ms / 1000


def _ratio(value: float) -> float:
    if not 0 <= value <= 1:
        raise LabError(f"{value} is not a ratio: 0 to 1")
    return value
