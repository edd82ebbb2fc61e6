"""TCP connect probes against real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from core.config import Source, TcpCheck
from core.messages import Family, Target
from probes.faults import LocalFault
from probes.io_tcp import probe_tcp
from tests.probes.netspace import run_in_netns


def target(port: int, family: Family = 4, address: str = "127.0.0.1", timeout: str = "2s") -> Target:
    return Target("m", "tcp", family, address, "h", TcpCheck(kind="tcp", port=port, interval="60s", timeout=timeout))


def unused_port(address: str = "127.0.0.1") -> int:
    """A port nobody listens on, kept free of others by being bound for the length of this call only."""
    with closing(socket.socket()) as sock:
        sock.bind((address, 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(("family", "address"), [(4, "127.0.0.1"), (6, "::1")])
async def test_rtt_is_the_kernels_own(family: Family, address: str) -> None:
    af = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.create_server((address, 0), family=af) as server:
        outcome = await probe_tcp(target(server.getsockname()[1], family, address), Source())
    assert outcome.rtt_s is not None
    assert 0 < outcome.rtt_s < 1
    assert (outcome.stamp, outcome.loss) == ("kernel", "")


async def test_refused() -> None:
    assert (await probe_tcp(target(unused_port()), Source())).loss == "refused"


async def test_the_source_address_is_used() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = await probe_tcp(target(server.getsockname()[1]), Source(ipv4="127.0.0.9"))
        accepted, peer = server.accept()
        accepted.close()
    assert outcome.loss == ""
    assert peer[0] == "127.0.0.9"


async def test_a_source_that_is_not_here_is_this_hosts_fault() -> None:
    with pytest.raises(LocalFault, match=r"192\.0\.2\.77.*EADDRNOTAVAIL"):
        await probe_tcp(target(1), Source(ipv4="192.0.2.77"))


async def test_family_and_address_must_agree() -> None:
    with pytest.raises(LocalFault, match="not of family"):
        await probe_tcp(target(1, 6), Source())


async def test_a_connection_ends_with_a_reset_and_leaves_no_time_wait() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        await probe_tcp(target(port), Source())
        accepted, _ = server.accept()
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
        accepted.close()
    table = Path("/proc/net/tcp").read_text()  # noqa: ASYNC240
    assert f"0100007F:{port:04X} 06" not in table  # remote address, state TIME_WAIT


async def test_a_full_backlog_times_out() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        filler = [socket.socket() for _ in range(8)]
        for sock in filler:
            sock.setblocking(False)
            sock.connect_ex(server.getsockname())
        outcome = await probe_tcp(target(server.getsockname()[1], timeout="100ms"), Source())
        for sock in filler:
            sock.close()
    assert outcome.loss == "timeout"


async def test_descriptors_are_stable_over_a_thousand_probes_good_and_bad() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        good, bad = server.getsockname()[1], unused_port()
        server.setblocking(False)

        def drain() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        asyncio.get_running_loop().add_reader(server.fileno(), drain)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            outcomes = await asyncio.gather(
                *(probe_tcp(target(good), Source()) for _ in range(25)),
                *(probe_tcp(target(bad), Source()) for _ in range(20)),
                *(probe_tcp(target(1), Source(ipv4="192.0.2.77")) for _ in range(5)),
                return_exceptions=True,
            )
            kinds = [getattr(outcome, "loss", "local") for outcome in outcomes]
            assert (kinds.count(""), kinds.count("refused"), kinds.count("local")) == (25, 20, 5)
        asyncio.get_running_loop().remove_reader(server.fileno())
        drain()
        assert len(os.listdir("/proc/self/fd")) == before


SELF_CONNECT = """
import asyncio, json
from core.config import Source, TcpCheck
from core.messages import Target
from probes.io_tcp import probe_tcp

async def main():
    check = TcpCheck(kind="tcp", port=40001, interval="60s", timeout="1s")
    found = [(await probe_tcp(Target("m", "c", 4, "127.0.0.1", "h", check), Source())).loss for _ in range(40)]
    print(json.dumps(sorted(set(found))))

asyncio.run(main())
"""


def test_a_probe_that_meets_itself_is_no_success() -> None:
    # With two local ports to choose from, about every second connect to 40001 draws 40001 as its own.
    ports = "echo '40000 40001' > /proc/sys/net/ipv4/ip_local_port_range"
    assert json.loads(run_in_netns(ports, SELF_CONNECT)) == ["refused"]
