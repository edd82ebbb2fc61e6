"""The lab itself, measured with real packets: delays, losses, partitions, programs, and nothing left behind."""

from __future__ import annotations

import hashlib
import http.client
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.rrset
import pytest

from tests.lab import netns
from tests.lab.dig import NoAnswer, dig
from tests.lab.matrix import planetlab_rtt_ms
from tests.lab.mirror_server import pattern, start_mirror, start_mirrors
from tests.lab.process import wait_until
from tests.lab.wan import ROOT, LabError, Node, Wan

pytestmark = pytest.mark.lab

# The router keeps 0.1 ms on a machine that has time for it (see `late_packets`); here others may keep the CPU from the
# pinging test itself for some milliseconds.
LATE_MS = 5.0
EARLY_MS = 0.3


def median_ms(wan: Wan, a: str, b: str, family: int = 4) -> float:
    return statistics.median(rtt for rtt in wan.ping_ms(a, b, 9, family=family) if rtt is not None)


def assert_rtt(wan: Wan, a: str, b: str, asked_ms: float, family: int = 4) -> None:
    measured = median_ms(wan, a, b, family)
    assert asked_ms - EARLY_MS < measured < asked_ms + LATE_MS, (a, b, family, wan.counters(a, b))


def test_measured_rtt_is_that_of_the_matrix(tmp_path: Path) -> None:
    sites = ["cn", "de", "us"]
    rtt_ms = planetlab_rtt_ms([*sites, "m"])
    with Wan([*(Node(f"{site}-agent", region=site) for site in sites), Node("m")], rtt_ms, directory=tmp_path) as wan:
        for site in sites:
            assert_rtt(wan, f"{site}-agent", "m", rtt_ms[site, "m"])
            assert_rtt(wan, f"{site}-agent", "m", rtt_ms[site, "m"], family=6)


def test_rtt_changes_at_once_for_a_site_or_one_direction(tmp_path: Path) -> None:
    nodes = [Node("cn-agent", region="cn"), Node("cn-client", region="cn"), Node("m-hk"), Node("m-fra")]
    with Wan(nodes, {}, default_rtt_ms=10, directory=tmp_path) as wan:
        wan.set_rtt("cn", "m-hk", 60)
        assert_rtt(wan, "cn-agent", "m-hk", 60)
        assert_rtt(wan, "m-hk", "cn-client", 60)
        assert_rtt(wan, "cn-agent", "m-fra", 10)
        assert_rtt(wan, "cn-agent", "cn-client", 0.2)
        wan.set_rtt("cn-agent", "m-hk", 20, one_way=True)  # 10 there, 30 back
        assert_rtt(wan, "cn-agent", "m-hk", 40)
        assert_rtt(wan, "cn-client", "m-hk", 60)


def test_jitter_adds_and_never_takes_away(tmp_path: Path) -> None:
    with Wan([Node("a"), Node("b")], {("a", "b"): 20}, directory=tmp_path) as wan:
        wan.set_jitter("a", "b", 30)
        rtts = [rtt for rtt in wan.ping_ms("a", "b", 30, every_s=0.04) if rtt is not None]
        assert len(rtts) == 30
        assert min(rtts) > 20 - EARLY_MS
        assert max(rtts) - min(rtts) > 10  # 30 draws with a mean of 30 ms; the seed fixes them


def test_loss_is_the_ratio_asked_for_in_each_direction(tmp_path: Path) -> None:
    with Wan([Node("a"), Node("b")], {("a", "b"): 1}, directory=tmp_path) as wan:
        wan.set_loss("a", "b", 0.3)
        answered = sum(rtt is not None for rtt in wan.ping_ms("a", "b", 400, every_s=0.001, timeout_s=0.5))
        there, back = wan.counters("a", "b"), wan.counters("b", "a")
        assert there.packets == 400
        assert 70 < there.dropped < 170  # expected 120, standard deviation 9
        assert back.packets == there.packets - there.dropped
        assert answered <= back.packets - back.dropped
        wan.set_loss("a", "b", 1)
        assert wan.ping_ms("a", "b", 5, timeout_s=0.1) == [None] * 5
        wan.set_loss("a", "b", 0)
        assert None not in wan.ping_ms("a", "b", 5)


def test_held_back_packets_are_overtaken(tmp_path: Path) -> None:
    with (
        Wan([Node("a"), Node("b")], {("a", "b"): 4}, directory=tmp_path) as wan,
        wan.socket("a", kind=socket.SOCK_DGRAM) as sender,
        wan.socket("b", kind=socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((wan.address("b"), 0))
        receiver.settimeout(5)

        def arrivals() -> list[int]:
            for number in range(200):
                sender.sendto(struct.pack("!I", number), receiver.getsockname())
            return [struct.unpack("!I", receiver.recv(100))[0] for _ in range(200)]

        assert arrivals() == list(range(200))
        wan.set_jitter("a", "b", 3)
        assert arrivals() == list(range(200))
        wan.set_reorder("a", "b", 0.1, held_back_ms=20)
        mixed = arrivals()
        assert sorted(mixed) == list(range(200))
        assert mixed != list(range(200))


def test_a_node_goes_down_and_comes_back(tmp_path: Path) -> None:
    with Wan([Node("a"), Node("b"), Node("c")], {}, default_rtt_ms=2, directory=tmp_path) as wan:
        wan.down("b")
        for source, target in (("a", "b"), ("b", "c")):
            assert wan.ping_ms(source, target, 3, timeout_s=0.1) == [None] * 3
        assert None not in wan.ping_ms("a", "c", 3)
        wan.up("b")
        assert None not in wan.ping_ms("a", "b", 3)


def test_a_cut_parts_only_the_two(tmp_path: Path) -> None:
    nodes = [Node("cn-1", region="cn"), Node("cn-2", region="cn"), Node("m"), Node("n")]
    with Wan(nodes, {}, default_rtt_ms=2, directory=tmp_path) as wan:
        wan.cut("cn", "m")
        assert wan.ping_ms("cn-2", "m", 3, timeout_s=0.1) == [None] * 3
        assert None not in wan.ping_ms("cn-2", "n", 3)
        assert None not in wan.ping_ms("n", "m", 3)
        wan.join("cn", "m")
        assert None not in wan.ping_ms("cn-2", "m", 3)


@pytest.mark.parametrize("family", [4, 6])
def test_tcp_brings_every_byte_through_loss_and_reordering(tmp_path: Path, family: int) -> None:
    size = 4_000_000
    with Wan([Node("client"), Node("m")], {("client", "m"): 4}, directory=tmp_path) as wan:
        wan.set_reorder("client", "m", 0.02, held_back_ms=2)
        wan.set_loss("client", "m", 0.003)
        start_mirror(wan, "m")
        start = time.monotonic()
        body = fetch(wan, "client", "m", f"/bytes/{size}", family)[1]
        print(f"IPv{family}: {size / (time.monotonic() - start) / 1e6:.1f} MB/s, {wan.counters('m', 'client')}")
        assert hashlib.sha256(body).digest() == hashlib.sha256(pattern(size)).digest()
        passed = wan.counters("m", "client")
        assert passed.bytes > size
        assert passed.dropped > 0  # expected 8; the seed fixes them


def fetch(
    wan: Wan, node: str, mirror: str, path: str = "/", family: int = 4, timeout_s: float = 20.0
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(wan.address(mirror, family), 80)
    connection.sock = wan.socket(node, {4: socket.AF_INET, 6: socket.AF_INET6}[family])
    connection.sock.settimeout(timeout_s)
    try:
        connection.sock.connect((wan.address(mirror, family), 80))
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_mirrors_say_their_name_and_misbehave_on_demand(tmp_path: Path) -> None:
    with Wan([Node("client"), Node("m-1"), Node("m-2")], {}, default_rtt_ms=2, directory=tmp_path) as wan:
        first, second = start_mirrors(wan, ["m-1", "m-2"])
        assert fetch(wan, "client", "m-1") == (200, b"m-1\n")
        assert fetch(wan, "client", "m-2", family=6) == (200, b"m-2\n")
        visit = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())"
        done = wan.run("client", [sys.executable, "-c", visit, f"http://{wan.address('m-1')}/"])
        assert done.stdout == "b'm-1\\n'\n"
        first.behave("status 503")
        assert fetch(wan, "client", "m-1")[0] == 503
        first.behave("hang")
        with pytest.raises(TimeoutError):
            fetch(wan, "client", "m-1", timeout_s=0.3)
        first.behave("reset")
        with pytest.raises((ConnectionResetError, http.client.RemoteDisconnected)):
            fetch(wan, "client", "m-1")
        first.behave("ok")
        assert fetch(wan, "client", "m-1") == (200, b"m-1\n")
        second.kill()
        with pytest.raises(ConnectionRefusedError):
            fetch(wan, "client", "m-2")
        with pytest.raises(ValueError, match="not a behaviour"):
            first.behave("sing")


@contextmanager
def name_server(wan: Wan, node: str) -> Iterator[None]:
    """Answers each query with two addresses, an ECS scope of 20 and an Extended DNS Error, over UDP."""

    def serve() -> None:
        while True:
            query, client = endpoint.recvfrom(4096)
            if not query:
                return
            question = dns.message.from_wire(query)
            answer = dns.message.make_response(question)
            answer.flags |= dns.flags.AA
            answer.answer.append(
                dns.rrset.from_text(question.question[0].name, 30, "IN", "A", "192.0.2.2", "192.0.2.1")
            )
            subnet = next(option for option in question.options if isinstance(option, dns.edns.ECSOption))
            options = [
                dns.edns.ECSOption(subnet.address, subnet.srclen, 20),
                dns.edns.EDEOption(dns.edns.EDECode.STALE_ANSWER, "agents silent"),
            ]
            answer.use_edns(0, options=options)
            endpoint.sendto(answer.to_wire(want_shuffle=False), client)

    with wan.socket(node, kind=socket.SOCK_DGRAM) as endpoint:
        endpoint.bind((wan.address(node), 53))
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            endpoint.sendto(b"", endpoint.getsockname())
            thread.join()


def test_dig_shows_what_a_client_in_a_region_gets(tmp_path: Path) -> None:
    with Wan([Node("cn-client", region="cn"), Node("dns")], {}, default_rtt_ms=2, directory=tmp_path) as wan:
        with pytest.raises(NoAnswer):
            dig(wan, "cn-client", "dl.example.org", timeout_s=1)
        with name_server(wan, "dns"):
            answer = dig(wan, "cn-client", "dl.example.org", subnet="10.1.0.0/16")
    assert answer.rcode == "NOERROR"
    assert "aa" in answer.flags
    assert answer.addresses == ["192.0.2.2", "192.0.2.1"]
    assert answer.ttl_s == 30
    assert answer.scope_len == 20
    assert answer.ede == ((3, "agents silent"),)


def test_twenty_nodes_reach_each_other(tmp_path: Path) -> None:
    nodes = [Node(f"agent-{k}", region=f"region-{k // 2}") for k in range(12)] + [Node(f"m-{k}") for k in range(8)]
    with Wan(nodes, {}, default_rtt_ms=3, directory=tmp_path) as wan:
        for a, b in zip(nodes, nodes[1:] + nodes[:1], strict=True):
            assert None not in wan.ping_ms(a.name, b.name, 1), (a, b)
        assert wan.counters("agent-0", "m-0").packets == 0


def test_programs_cannot_reach_anything_but_the_lab(tmp_path: Path) -> None:
    with Wan([Node("a"), Node("b")], {("a", "b"): 1}, directory=tmp_path) as wan:
        devices = wan.run("a", ["cat", "/proc/net/dev"]).stdout.splitlines()[2:]  # after two lines of heading
        links = {line.partition(":")[0].strip() for line in devices}
        assert links == {"lo", "wan0"}
        with wan.socket("a", kind=socket.SOCK_DGRAM) as probe:
            probe.sendto(b"x", ("198.51.100.1", 9))  # no node's address: counted, never sent anywhere
        wan.wait_until(lambda: wan.counters("a", "b").unroutable == 1, 5, "the router has seen the packet")


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # ended; whoever adopted it has not asked yet


# Leaves its process group and session, as a daemon does, ignores SIGTERM, and says its pid.
DAEMON = """
import os, signal, sys, time
if os.fork(): os._exit(0)
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""


def test_nothing_is_left_after_a_failure_and_the_logs_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = Wan([Node("a"), Node("b")], {("a", "b"): 1}, directory=tmp_path)
    with suppress(ZeroDivisionError), lab as wan:
        names = [wan.namespace("a"), wan.namespace("b")]
        assert set(names) <= set(netns.listed())
        sleeper = wan.popen("a", ["sh", "-c", "echo I am here; exec sleep 600"])
        daemon = wan.python("b", "-c", DAEMON)
        daemon.ended_by_test = True
        pid = int(wan.wait_until(daemon.text, 10, "the daemon says its pid"))
        wan.wait_until(sleeper.text, 10, "the sleeper has spoken")
        assert set(netns.pids(names[0])) == {sleeper.pid}
        assert not gone(pid)
        _ = 1 / 0
    assert not set(names) & set(netns.listed())
    wait_until(lambda: gone(pid), 5, "the daemon is gone")
    assert sleeper.returncode == -signal.SIGTERM
    assert "I am here" in capsys.readouterr().err
    assert (tmp_path / "a-sh.log").read_text() == "I am here\n"


OWNER = """
import sys, time
from tests.lab.wan import Node, Wan
with Wan([Node("a"), Node("b")], {("a", "b"): 1}) as wan:
    print(wan.namespace("a"), wan.popen("a", ["sleep", "600"]).pid, flush=True)
    time.sleep(600)
"""


def test_nothing_is_left_when_the_test_run_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        assert owner.stdout is not None
        name, pid = owner.stdout.readline().decode().split()
        assert name in netns.listed()
    finally:
        owner.kill()
        owner.communicate()
    wait_until(lambda: name not in netns.listed(), 20, "the router has removed the namespaces")
    wait_until(lambda: gone(int(pid)), 30, "the program is gone")


def test_namespaces_of_a_dead_owner_are_removed_and_others_are_not(tmp_path: Path) -> None:
    stale = f"lab-{os.getpid()}-1-1-a"  # our pid, but not our start time: as if the pid had come around
    subprocess.run(
        [sys.executable, "-c", f"from tests.lab import netns; netns.create({stale!r})"], cwd=ROOT, check=True
    )
    with Wan(
        [Node("a"), Node("b")], {("a", "b"): 1}, directory=tmp_path
    ) as wan:  # removes what is stale when it starts
        assert stale not in netns.listed()
        assert stale not in netns.remove_stale()
        assert None not in wan.ping_ms("a", "b", 1)
    with pytest.raises(ValueError, match="not a namespace of the lab"):
        netns.remove(["default"])


def test_waiting_fails_with_a_reason_and_the_logs(tmp_path: Path) -> None:
    with Wan([Node("a"), Node("b")], {("a", "b"): 1}, directory=tmp_path) as wan:
        with pytest.raises(AssertionError, match=r"waited for: the moon; 0.05 s are over; last result: 0"):
            wan.wait_until(lambda: 0, 0.05, "the moon")
        wan.popen("a", ["sh", "-c", "echo no such file; exit 3"], name="broken")
        with pytest.raises(AssertionError, match=r"(?s)broken ended by itself with 3.*no such file"):
            wan.wait_until(lambda: False, 60, "a broken program")
        with pytest.raises(LabError, match=r"(?s)ended with 4.*oh"):
            wan.run("a", ["sh", "-c", "echo oh; exit 4"])
        with pytest.raises(LabError, match="no node 'z'"):
            wan.run("z", ["true"])


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    with Wan([Node("a"), Node("b")], {("a", "b"): 1}, directory=tmp_path) as wan:
        with pytest.raises(LabError, match="not a ratio"):
            wan.set_loss("a", "b", 30)
        with pytest.raises(LabError, match="not a delay"):
            wan.set_rtt("a", "b", -1)
        with pytest.raises(LabError, match="same node"):
            wan.set_rtt("a", "a", 1)
        with pytest.raises(AssertionError, match="should hold for 5 s: never"):
            wan.holds(lambda: False, 5, "never")
    with pytest.raises(LabError, match="not running"):
        wan.set_rtt("a", "b", 1)
