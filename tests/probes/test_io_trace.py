"""A trace through real kernels: two routers on the way to a mirror, one with a small link, one that says nothing; and what
is traced when an operator names a mirror.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.config import IcmpCheck, TcpCheck
from core.errors import NearpathError
from core.messages import Target, TargetList, encode
from probes.trace.io_command import TraceOptions, _find
from tests.probes.netspace import ROOT
from tests.probes.small_appliance import make_config

# Namespaces by a process each, which end with the test: they are in its PID namespace.
TOWN = """
set -e
ip link set lo up
hold() { # until it has a namespace of its own
  unshare -n sleep 60 & eval "$1=$!"
  while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
}
inside() { pid=$1; shift; nsenter -t $pid -n "$@"; }
hold R1; hold R2; hold M
wire() { # name, namespace, name, namespace
  ip link add $1 type veth peer name $3
  [ $2 = 0 ] || ip link set $1 netns $2
  ip link set $3 netns $4
}
wire a0 0 r1a $R1
ip link add tmp0 type veth peer name tmp1; ip link set tmp0 netns $R1; ip link set tmp1 netns $R2
inside $R1 ip link set tmp0 name r1b; inside $R2 ip link set tmp1 name r2a
ip link add tmp0 type veth peer name tmp1; ip link set tmp0 netns $R2; ip link set tmp1 netns $M
inside $R2 ip link set tmp0 name r2b; inside $M ip link set tmp1 name m0
address() { # namespace or 0, device, host part, net
  at=; [ $1 = 0 ] || at="nsenter -t $1 -n"
  $at ip link set $2 up; $at ip addr add 10.77.$4.$3/24 dev $2; $at ip addr add fd77:$4::$3/64 dev $2 nodad
}
address 0 a0 1 1; address $R1 r1a 2 1; address $R1 r1b 1 2; address $R2 r2a 2 2; address $R2 r2b 1 3; address $M m0 2 3
for r in $R1 $R2; do inside $r sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; done
ip route add default via 10.77.1.2; ip -6 route add default via fd77:1::2
inside $R1 ip route add 10.77.3.0/24 via 10.77.2.2; inside $R1 ip -6 route add fd77:3::/64 via fd77:2::2
inside $R2 ip route add 10.77.1.0/24 via 10.77.2.1; inside $R2 ip -6 route add fd77:1::/64 via fd77:2::1
inside $M ip route add default via 10.77.3.1; inside $M ip -6 route add default via fd77:3::1
inside $M "$PYTHON" -c '
import socket, time
server = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
time.sleep(60)' &
while [ -z "$(inside $M ss -Hltn sport = :443)" ]; do sleep 0.01; done
trace() { "$PYTHON" -m probes.main trace --json --timeout 0.5 "$@"; }
"""


def in_town(script: str) -> list[Any]:
    """The JSON lines of `script`, run in the town of namespaces. Skips by name where they may not be made."""
    for tool in ("unshare", "nsenter", "ip", "ss", "sysctl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    new = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if subprocess.run([*new, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no right to make network namespaces (needs root)")
    done = subprocess.run(
        [*new, "sh", "-c", TOWN + script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHON": sys.executable, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def addresses(path: dict[str, Any]) -> list[list[str]]:
    return [[answer["address"] for answer in hop["answers"]] for hop in path["hops"]]


def test_a_trace_finds_the_routers_the_target_and_the_small_link() -> None:
    four, six, closed, pings = in_town("""
inside $R2 ip link set r2b mtu 1400; inside $M ip link set m0 mtu 1400
trace 10.77.3.2 --mtu -n 3
trace fd77:3::2 --mtu -n 3
trace 10.77.3.2 --port 444 -n 1
trace fd77:3::2 --icmp -n 2
""")
    assert addresses(four) == [["10.77.1.2"], ["10.77.2.2"], ["10.77.3.2"]]
    assert [hop["answers"][0]["what"] for hop in four["hops"]] == ["hop", "hop", "open"]
    assert all(len(hop["answers"][0]["rtt_ms"]) == hop["sent"] == 3 for hop in four["hops"])
    assert four["path_mtu"] == {"size_bytes": 1400, "said_by": "10.77.2.2", "silent": False}
    assert addresses(six) == [["fd77:1::2"], ["fd77:2::2"], ["fd77:3::2"]]
    assert six["path_mtu"] == {"size_bytes": 1400, "said_by": "fd77:2::2", "silent": False}
    assert closed["hops"][-1]["answers"][0]["what"] == "closed"
    assert addresses(pings) == addresses(six)
    assert pings["hops"][-1]["answers"][0]["what"] == "echo"


def test_a_trace_names_silent_routers_and_silent_losses_of_large_packets() -> None:
    # A veth drops what is longer than its other end takes (and 4 bytes more), and nobody is told.
    silent, gone, refused = in_town("""
inside $M ip link set m0 mtu 1400
inside $R1 sysctl -qw net.ipv4.icmp_msgs_burst=0 net.ipv4.icmp_msgs_per_sec=0
trace 10.77.3.2 --mtu -n 2 --timeout 0.2
inside $R2 ip route add blackhole 10.77.4.0/24; inside $R1 ip route add 10.77.4.0/24 via 10.77.2.2
trace 10.77.4.9 -n 1 --max-hops 8 --timeout 0.2
inside $R1 ip route add prohibit 10.77.5.0/24
inside $R1 sysctl -qw net.ipv4.icmp_msgs_burst=50 net.ipv4.icmp_msgs_per_sec=1000
trace 10.77.5.9 -n 1
""")
    assert addresses(silent) == [[], ["10.77.2.2"], ["10.77.3.2"]]
    assert silent["path_mtu"]["silent"]
    assert 1397 <= silent["path_mtu"]["size_bytes"] <= 1404
    assert "downloads will hang" in silent["findings"][-1]
    assert gone["findings"][0].startswith("nothing answers, not even the first router")
    assert "says that 10.77.5.9 is prohibited" in refused["findings"][0]


def test_a_trace_without_rights_says_what_it_needs() -> None:
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if shutil.which("setpriv") else []
    done = subprocess.run(
        [*command, sys.executable, "-m", "probes.main", "trace", "127.0.0.1"],
        capture_output=True, text=True, cwd=ROOT, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "raw sockets" in done.stderr
    assert "CAP_NET_RAW" in done.stderr


# -- what was typed

TYPED = TraceOptions(None, False, None, False, 1, 1, 0.1, False)
TCP = TcpCheck.model_validate({"kind": "tcp", "port": 8443})
PING = IcmpCheck.model_validate({"kind": "icmp"})


@pytest.mark.parametrize(
    ("target", "more", "found"),
    [
        ("192.0.2.7", {}, ("192.0.2.7", 443, False)),
        ("2001:DB8::0", {"port": 80, "icmp": True}, ("2001:db8::", 80, True)),
        ("m1", {}, ("198.51.100.1", 8443, False)),
        ("m1", {"port": 444}, ("198.51.100.1", 444, False)),
        ("m1", {"icmp": True}, ("198.51.100.1", 8443, True)),
        ("m1", {"ipv6": True}, ("2001:db8::1", 443, True)),
        ("m1", {"ipv6": True, "port": 444}, ("2001:db8::1", 444, False)),
    ],
)
def test_a_mirror_is_traced_as_its_clients_reach_it(
    tmp_path: Path, target: str, more: dict[str, Any], found: tuple[str, int, bool]
) -> None:
    agent = make_config(tmp_path, "http://127.0.0.1:1")
    targets = [
        Target("m1", "ping", 4, "198.51.100.1", "a.example.", PING),
        Target("m1", "web", 4, "198.51.100.1", "a.example.", TCP),
        Target("m1", "ping", 6, "2001:db8::1", "a.example.", PING),
    ]
    Path(agent.state_dir).mkdir(exist_ok=True)
    (Path(agent.state_dir) / "targets.json").write_bytes(encode(TargetList("1", targets)))
    assert _find(target, agent, replace(TYPED, **more)) == found


def test_a_name_that_nobody_knows_is_told() -> None:
    with pytest.raises(NearpathError, match="a mirror that the agent probes"):
        _find("%", None, TYPED)
