"""The router of the lab WAN: one process between the TUN devices of all nodes, which delays, drops and reorders.

Run by wan.py as `python -m tests.lab.router`, controlled by JSON lines: a request per line on standard input, an answer
per line on standard output. The first request is the set-up (`Setup` below); the others are the methods of `Router`
named in `REQUESTS`. When standard input ends, the router removes the namespaces it made, with all that runs in them: so
nothing is left of a test run that was killed.

Python is fast enough for this (some 30,000 packets/s on one core). What makes it exact is: one thread, no garbage
collection, real-time priority, and select(), whose time-out is not rounded to milliseconds as that of epoll is.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from pyroute2 import IPRoute

from tests.lab import netns

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PR_SET_TIMERSLACK = 29

DEVICE = "wan0"
MTU_BYTES = 1500
BATCH = 32  # packets read from one device before looking at what is due
QUEUE_PACKETS = 20_000  # in flight at most; 300 ms of all that this router can move
TUN_QUEUE_PACKETS = 2_000  # the kernel's default of 500 drops in a TCP burst before we are scheduled

# From a program's send to our select(), and from our write to the other's receive: with no delay asked, a round trip
# takes 0.1 ms and more. Taken off each one-way delay, so that asked and measured RTT agree to some 0.05 ms.
OWN_DELAY_S = 60e-6

# In each namespace: ping without rights, ports below 1024 without rights, no RTT remembered from the last connection.
SYSCTLS = {
    "net/ipv4/ping_group_range": "0 2147483647",
    "net/ipv4/ip_unprivileged_port_start": "0",
    "net/ipv4/tcp_no_metrics_save": "1",
    "net/ipv6/conf/all/accept_ra": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
}


class Direction:
    """One direction between two nodes: how it behaves, what it did."""

    __slots__ = (
        "blocked", "bytes", "delay_s", "dropped", "jitter_s", "last_due_s", "loss_ratio", "packets", "random",
        "reorder_ratio", "reorder_s",
    )  # fmt: skip

    def __init__(self, delay_s: float, seed: str) -> None:
        self.delay_s = delay_s
        self.jitter_s = 0.0  # mean of an exponential distribution: queues only ever add
        self.loss_ratio = 0.0
        self.reorder_ratio = 0.0
        self.reorder_s = 0.0  # a reordered packet is held back by this, so RTTs below delay_s never occur
        self.blocked = False
        self.random = random.Random(seed)
        self.last_due_s = 0.0
        self.packets = self.bytes = self.dropped = 0

    def due_s(self, now: float) -> float:
        """When a packet that comes now is to be handed over. Jitter alone keeps the order."""
        due = now + self.delay_s - OWN_DELAY_S
        if self.jitter_s:
            due += self.random.expovariate(1.0 / self.jitter_s)
        if due < self.last_due_s:
            due = self.last_due_s
        if self.reorder_ratio and self.random.random() < self.reorder_ratio:
            return due + self.reorder_s
        self.last_due_s = due
        return due


class Router:
    """Moves packets; its methods named in REQUESTS are what the test can ask for."""

    def __init__(self, setup: dict[str, Any]) -> None:
        nodes = setup["nodes"]
        size = len(nodes)
        self.tuns = [set_up_node(node["netns"], node["addresses"]) for node in nodes]
        self.node_of = {address_bytes(address): i for i, node in enumerate(nodes) for address in node["addresses"]}
        delay_s = setup["delay_s"]
        self.paths = [[Direction(delay_s[i][j], f"{setup['seed']}/{i}/{j}") for j in range(size)] for i in range(size)]
        self.is_down = [False] * size
        self.queue: list[tuple[float, int, int, int, bytes]] = []  # due, serial, from, to, packet
        self.serial = 0
        self.unroutable = 0
        self.late_packets = 0  # handed over more than 0.3 ms after they were due: this machine was too busy
        self.late_max_s = 0.0

    # -- packets

    def receive(self, source: int, now: float) -> None:
        """Take what a node has sent."""
        descriptor = self.tuns[source]
        for _ in range(BATCH):
            try:
                packet = os.read(descriptor, 65535)
            except BlockingIOError:
                return
            version = packet[0] >> 4
            target = self.node_of.get(packet[16:20] if version == 4 else packet[24:40])
            if target is None:
                self.unroutable += 1  # also router solicitations, multicast
                continue
            path = self.paths[source][target]
            path.packets += 1
            path.bytes += len(packet)
            if (
                path.blocked
                or self.is_down[source]
                or self.is_down[target]
                or len(self.queue) >= QUEUE_PACKETS
                or (path.loss_ratio and path.random.random() < path.loss_ratio)
            ):
                path.dropped += 1
                continue
            self.serial += 1
            heapq.heappush(self.queue, (path.due_s(now), self.serial, source, target, packet))

    def deliver(self, now: float) -> None:
        """Hand over what is due."""
        queue = self.queue
        while queue and queue[0][0] <= now:
            due, _, source, target, packet = heapq.heappop(queue)
            path = self.paths[source][target]
            if path.blocked or self.is_down[source] or self.is_down[target]:
                path.dropped += 1
                continue
            late_s = monotonic() - due
            if late_s > 3e-4:
                self.late_packets += 1
                self.late_max_s = max(self.late_max_s, late_s)
            try:
                os.write(self.tuns[target], packet)
            except OSError:  # the device is down (a test may do that), or its queue is full
                path.dropped += 1

    # -- requests

    def set_path(self, pairs: list[list[int]], **values: float) -> None:
        """Change some values of some directed paths."""
        for source, target in pairs:
            path = self.paths[source][target]
            for name, value in values.items():
                if name not in {"delay_s", "jitter_s", "loss_ratio", "reorder_ratio", "reorder_s", "blocked"}:
                    raise ValueError(f"a path has no {name!r}")
                setattr(path, name, value)
            path.last_due_s = 0.0  # a changed path may be overtaken by its packets, as when a route changes

    def set_down(self, nodes: list[int], is_down: bool) -> None:
        """Take nodes off the net, or put them back."""
        for node in nodes:
            self.is_down[node] = is_down

    def counters(self, pairs: list[list[int]]) -> dict[str, Any]:
        """Sums over some directed paths, and how the router itself does."""
        paths = [self.paths[source][target] for source, target in pairs]
        return {
            "packets": sum(path.packets for path in paths),
            "bytes": sum(path.bytes for path in paths),
            "dropped": sum(path.dropped for path in paths),
            "unroutable": self.unroutable,
            "queued": len(self.queue),
            "late_packets": self.late_packets,
            "late_max_ms": self.late_max_s * 1000,
        }

    def forget_counters(self) -> None:
        """Start all counters at zero."""
        for row in self.paths:
            for path in row:
                path.packets = path.bytes = path.dropped = 0
        self.unroutable = self.late_packets = 0
        self.late_max_s = 0.0


REQUESTS = ("set_path", "set_down", "counters", "forget_counters")


def address_bytes(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def set_up_node(namespace: str, addresses: list[str]) -> int:
    """Make a namespace, and in it a TUN device that holds the addresses and the default routes; its descriptor."""
    netns.create(namespace)
    return netns.call_inside(namespace, lambda: open_tun(addresses))


def open_tun(addresses: list[str]) -> int:
    """The inner part: also loopback and the settings of the namespace."""
    for name, value in SYSCTLS.items():
        with suppress(OSError):  # a kernel without this one; a scenario that needs it will say so
            Path("/proc/sys", name).write_text(value)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")
        device = ip.link_lookup(ifname=DEVICE)[0]
        ip.link("set", index=device, state="up", mtu=MTU_BYTES, txqlen=TUN_QUEUE_PACKETS)
        for address in addresses:
            ip.addr("add", index=device, address=address, prefixlen=128 if ":" in address else 32)
        ip.route("add", dst="0.0.0.0/0", oif=device)
        ip.route("add", dst="::/0", oif=device)
    return descriptor


def be_punctual() -> str:
    """Ask for what makes timers exact; says what was refused."""
    gc.disable()
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as error:
        return f"no real-time priority ({error.strerror}): delays will be less exact when the machine is busy"
    return ""


def answer(router: Router, line: bytes) -> bytes:
    """Carry out one request."""
    try:
        request = json.loads(line)
        method = request.pop("do")
        if method not in REQUESTS:
            raise ValueError(f"no such request: {method!r}")
        reply: dict[str, Any] = {"result": getattr(router, method)(**request)}
    except (ValueError, TypeError, KeyError, IndexError) as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps(reply).encode() + b"\n"


def serve(router: Router) -> None:
    """Move packets until standard input ends."""
    control, pending = sys.stdin.fileno(), b""
    node_of_tun = {descriptor: i for i, descriptor in enumerate(router.tuns)}
    watched = [control, *router.tuns]
    while True:
        timeout_s = max(0.0, router.queue[0][0] - monotonic()) if router.queue else None
        ready, _, _ = select.select(watched, (), (), timeout_s)
        now = monotonic()
        router.deliver(now)
        for descriptor in ready:
            if descriptor != control:
                router.receive(node_of_tun[descriptor], now)
                router.deliver(monotonic())
                continue
            received = os.read(control, 65536)
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                os.write(sys.stdout.fileno(), answer(router, line))


def main() -> None:
    line = b""
    while not line.endswith(b"\n"):  # the test sends nothing more before it has our answer
        received = os.read(sys.stdin.fileno(), 1 << 20)
        if not received:
            return
        line += received
    setup = json.loads(line)
    names = [node["netns"] for node in setup["nodes"]]
    try:
        router = Router(setup)
        warning = be_punctual()
        os.write(sys.stdout.fileno(), json.dumps({"result": warning}).encode() + b"\n")
        serve(router)
    finally:
        netns.remove(names)


if __name__ == "__main__":
    main()
