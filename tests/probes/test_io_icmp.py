"""ICMP probes on real sockets: loopback, and small namespaces for rights, errors from afar, and forged replies."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import pytest

from core.config import IcmpCheck, Source
from core.messages import Family, Target
from probes.faults import LocalFault
from probes.io_icmp import IcmpProber, open_icmp
from tests.probes.netspace import run_in_netns

LOOPBACK: dict[Family, str] = {4: "127.0.0.1", 6: "::1"}


def target(family: Family, address: str, timeout: str = "1s", size: str = "24B") -> Target:
    check = IcmpCheck(kind="icmp", interval="60s", timeout=timeout, payload_size=size)
    return Target("m", "ping", family, address, "h", check)


def need_icmp(family: Family) -> None:
    try:
        sock, _ = open_icmp(family, LOOPBACK[family])
    except LocalFault as fault:
        pytest.skip(f"ICMP over IPv{family} is not permitted here: {fault}")
    sock.close()


@pytest.fixture
async def prober() -> AsyncIterator[IcmpProber]:
    prober = IcmpProber(Source())
    yield prober
    prober.close()


@pytest.mark.parametrize("size", ["0B", "24B", "1400B"])
@pytest.mark.parametrize("family", [4, 6])
async def test_loopback_answers_with_a_kernel_stamp(prober: IcmpProber, family: Family, size: str) -> None:
    need_icmp(family)
    outcomes = [await prober.probe(target(family, LOOPBACK[family], size=size)) for _ in range(5)]
    assert all(outcome.loss == "" and outcome.rtt_s is not None and 0 < outcome.rtt_s < 1 for outcome in outcomes)
    assert "kernel" in {outcome.stamp for outcome in outcomes}


async def test_many_at_once_are_told_apart(prober: IcmpProber) -> None:
    need_icmp(4)
    targets = [target(4, f"127.0.{i}.{j}") for i in range(10) for j in range(1, 31)]
    outcomes = await asyncio.gather(*(prober.probe(t) for t in targets))
    assert [t.address for t, o in zip(targets, outcomes, strict=True) if o.rtt_s is None] == []


async def test_no_descriptor_and_no_state_is_left(prober: IcmpProber) -> None:
    need_icmp(4)
    await prober.probe(target(4, "127.0.0.1"))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(500):
        await prober.probe(target(4, "127.0.0.1"))
    assert len(os.listdir("/proc/self/fd")) == before
    prober.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


async def test_a_source_that_is_not_here_is_this_hosts_fault() -> None:
    need_icmp(4)
    prober = IcmpProber(Source(ipv4="192.0.2.77"))
    with pytest.raises(LocalFault, match=r"192\.0\.2\.77.*EADDRNOTAVAIL.*`source:`"):
        await prober.probe(target(4, "127.0.0.1"))
    prober.close()


async def test_family_and_address_must_agree(prober: IcmpProber) -> None:
    with pytest.raises(LocalFault, match="not of family"):
        await prober.probe(target(6, "127.0.0.1"))


PROGRAM = """
import asyncio, json
from core.config import IcmpCheck, Source
from core.messages import Target
from probes.faults import LocalFault
from probes.io_icmp import IcmpProber, open_icmp

async def ask(prober, family, address, timeout="300ms"):
    check = IcmpCheck(kind="icmp", interval="60s", timeout=timeout)
    try:
        outcome = await prober.probe(Target("m", "c", family, address, "h", check))
    except LocalFault as fault:
        return f"local: {fault}"
    return outcome.loss or outcome.stamp

async def main():
    prober = IcmpProber(Source(SOURCES))
    # A link that has just come up loses the first neighbour solicitation (RFC 4861), and the next comes after a second.
    family, address = CASES[1][1:]
    for _ in range(20):
        if await ask(prober, family, address) in ("kernel", "user") or address == "::1":
            break
    found = {}
    for name, family, address in CASES:
        found[name] = [await ask(prober, family, address) for _ in range(2)]
    try:
        found["raw"] = open_icmp(4, None)[1]
    except LocalFault:
        found["raw"] = None
    print(json.dumps(found))

asyncio.run(main())
"""


def ask_in_netns(set_up: str, cases: list[tuple[str, int, str]], *, drop_caps: bool = False) -> dict[str, list[str]]:
    program = PROGRAM.replace("CASES", repr(cases)).replace("SOURCES", "")
    found: dict[str, list[str]] = json.loads(run_in_netns(set_up, program, drop_caps=drop_caps))
    return found


BOTH = [("v4", 4, "127.0.0.1"), ("v6", 6, "::1")]
OPEN = "echo '0 2147483647' > /proc/sys/net/ipv4/ping_group_range"
SHUT = "echo '1 0' > /proc/sys/net/ipv4/ping_group_range"


def test_without_any_capability_ping_sockets_are_used() -> None:
    found = ask_in_netns(OPEN, BOTH, drop_caps=True)
    assert found == {"v4": ["kernel"] * 2, "v6": ["kernel"] * 2, "raw": False}


def test_with_the_capability_alone_raw_sockets_are_used() -> None:
    assert ask_in_netns(SHUT, BOTH) == {"v4": ["kernel"] * 2, "v6": ["kernel"] * 2, "raw": True}


def test_with_neither_the_error_says_what_to_permit() -> None:
    found = ask_in_netns(SHUT, BOTH, drop_caps=True)
    for version in ("v4", "v6"):
        assert all("net.ipv4.ping_group_range" in text and "CAP_NET_RAW" in text for text in found[version])
    assert found["raw"] is None


# One router between the agent and the mirrors: it has no way to one, and says so.
ROUTER = """
mount -t tmpfs tmpfs /run; mkdir -p /run/netns
ip netns add router
ip link add va type veth peer name vb netns router
ip addr add 10.77.0.1/24 dev va; ip -6 addr add fd77::1/64 dev va nodad; ip link set va up
ip -n router addr add 10.77.0.2/24 dev vb; ip -n router -6 addr add fd77::2/64 dev vb nodad
ip -n router link set vb up; ip -n router link set lo up
ip netns exec router sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding'
ip netns exec router sh -c 'echo 0 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit'
ip -n router route add unreachable 10.78.0.1/32; ip -n router -6 route add unreachable fd78::1/128
ip -n router route add blackhole 10.78.0.2/32; ip -n router -6 route add blackhole fd78::2/128
ip route add 10.78.0.0/24 via 10.77.0.2; ip -6 route add fd78::/64 via fd77::2
"""
CASES = [
    ("far", 4, "10.77.0.2"), ("far6", 6, "fd77::2"),
    ("unreachable", 4, "10.78.0.1"), ("unreachable6", 6, "fd78::1"),
    ("silent", 4, "10.78.0.2"),
    ("no route", 4, "203.0.113.1"), ("no route6", 6, "2001:db8::1"),
    ("far again", 4, "10.77.0.2"), ("far again6", 6, "fd77::2"),
]  # fmt: skip


@pytest.mark.parametrize("ping", [OPEN, SHUT])
def test_errors_from_afar_are_losses_at_once_and_no_route_is_this_hosts_fault(ping: str) -> None:
    found = ask_in_netns(ROUTER + ping, CASES)
    for good in ("far", "far6", "far again", "far again6"):
        assert found[good] == ["kernel"] * 2, good
    assert found["unreachable"] == found["unreachable6"] == ["unreachable"] * 2
    assert found["silent"] == ["timeout"] * 2
    for text in (*found["no route"], *found["no route6"]):
        assert text.startswith("local: ")
        assert "ENETUNREACH" in text
        assert "no route" in text


FORGER = """
import asyncio, socket, struct
from core.config import IcmpCheck, Source
from core.messages import Target
from probes.icmp import checksum, strip_ipv4
from probes.io_icmp import IcmpProber

def reply(request, change):
    body = bytearray(b"\\0\\0\\0\\0" + request[4:])
    change(body)
    body[2:4] = struct.pack("!H", checksum(bytes(body)))
    return bytes(body)

async def main():
    # The kernel's own answers are switched off: this program plays the mirror and its attacker.
    wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    wire.setblocking(False)
    async def answer(good):
        while True:
            message = strip_ipv4(await asyncio.get_running_loop().sock_recv(wire, 2048))
            if message[:1] == b"\\x08":
                break
        def flip(at):
            def change(body): body[at] ^= 1
            return change
        for at in (5, 7, 8, 31):
            wire.sendto(reply(message, flip(at)), ("127.0.0.1", 0))
        if good:
            wire.sendto(reply(message, lambda body: None), ("127.0.0.1", 0))
    prober = IcmpProber(Source())
    for good in (False, True):
        task = asyncio.create_task(answer(good))
        check = IcmpCheck(kind="icmp", interval="60s", timeout="300ms")
        outcome = await prober.probe(Target("m", "c", 4, "127.0.0.1", "h", check))
        await task
        print(outcome.loss or "answered")

asyncio.run(main())
"""


def test_forged_replies_are_not_taken() -> None:
    silent = "echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all"
    assert run_in_netns(silent, FORGER).split() == ["timeout", "answered"]
