"""What ends no trace with a traceback, and lets none go on for hours: routes that say no, odd addresses, a bad router."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest

from core.errors import NearpathError
from probes.trace.io_command import TraceOptions, _find
from probes.trace.io_trace import MOST_STEPS, Ask, _find_mtu
from probes.trace.packets import Answer, Flow
from tests.probes.netspace import ROOT

TYPED = TraceOptions(None, False, None, False, 1, 1, 0.1, False)


@pytest.mark.parametrize("target", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "0"])
def test_an_address_that_is_none_of_one_host_is_refused_in_words(target: str) -> None:
    with pytest.raises(NearpathError, match="no address of one host"):
        _find(target, None, TYPED)


def test_an_ipv4_address_in_ipv6_clothes_is_traced_as_what_it_is() -> None:
    assert _find("::ffff:192.0.2.7", None, TYPED) == ("192.0.2.7", 443, False)


def test_a_route_that_says_no_is_told() -> None:
    tools = [tool for tool in ("unshare", "ip") if shutil.which(tool) is None]
    if tools or subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"cannot make a network namespace {tools}")
    script = "ip link set lo up; ip route add unreachable 10.8.0.0/16; exec $0 -m probes.main trace 10.8.0.1"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script, sys.executable],
        capture_output=True, text=True, cwd=ROOT, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("probe-agent: cannot reach 10.8.0.1: unreachable")


class Shrinking:
    """A wire with a router that always asks for one byte less."""

    link_mtu = 65_000
    flow = Flow("icmp", "192.0.2.1", "192.0.2.7", 1)
    sent = 0

    def echo(self, size_bytes: int, timeout_s: float) -> tuple[str, Answer]:
        self.sent += 1
        return "192.0.2.66", Answer(1, "too big", size_bytes - 1) if size_bytes > 100 else Answer(1, "echo")


def test_a_router_that_asks_for_ever_smaller_packets_is_not_followed_for_ever() -> None:
    wire: Any = Shrinking()
    mtu, why_not = _find_mtu(Ask("icmp", "192.0.2.7"), wire)
    assert mtu is None
    assert why_not == "192.0.2.66 asks for ever smaller packets"
    assert wire.sent <= MOST_STEPS + 3
