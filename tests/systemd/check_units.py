"""The units under a real systemd: `make systemd-test` (root; some minutes; not part of `make test`).

One container for all checks; they run in the order they stand here and leave it working.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.systemd.container import Container, installed

pytestmark = pytest.mark.timeout(1200)

TOKEN = "t" * 43
EXPOSURE = {"nearpath": 1.4, "dnsd": 1.4, "probe-agent": 1.1}
NAME = "www.mirror.test"
ADDRESSES = {"127.0.0.2", "127.0.0.3"}

NEARPATH = f"""\
version: 1
state_dir: /var/lib/nearpath
dns:
  listen: ["127.0.0.1:53"]
zones:
  - {{origin: mirror.test., file: mirror.zone}}
regions:
  here: {{prefixes: ["127.0.0.0/8"]}}
checks:
  ping: {{kind: icmp, interval: 500ms, timeout: 400ms}}
mirrors:
  two: {{addresses: ["127.0.0.2"]}}
  three: {{addresses: ["127.0.0.3"]}}
services:
  {NAME}.: {{mirrors: [two, three], checks: [ping], answers: 1}}
agents:
  vantage: {{region: here, token_sha256: {hashlib.sha256(TOKEN.encode()).hexdigest()}}}
report:
  listen: ["127.0.0.1:8053"]
metrics:
  listen: ["127.0.0.1:9153"]
"""

AGENT = """\
version: 1
name: vantage
appliance: http://127.0.0.1:8053
token_file: agent.token
state_dir: /var/lib/nearpath-agent
"""

# Most checks want dnsd beside an appliance that answers too: zones alone, on an address of its own.
DNSD_ALONE = """\
version: 1
state_dir: /var/lib/nearpath
dns:
  listen: ["127.0.0.9:53"]
zones:
  - {origin: mirror.test., file: mirror.zone}
"""

ALONE = """\
[Service]
ExecStart=
ExecStart=/opt/nearpath/bin/dnsd -c /etc/nearpath/dnsd.yaml
"""

ZONE = """\
$TTL 300
@ IN SOA ns1 hostmaster 1 3600 600 86400 60
@ IN NS ns1
ns1 IN A 127.0.0.1
fixed IN A 192.0.2.1
"""

DECIDE_ONLY = """\
[Service]
ExecStart=
ExecStart=/opt/nearpath/bin/nearpath up --no-dns -c /etc/nearpath/nearpath.yaml
"""
FAST_WATCHDOG = "[Service]\nWatchdogSec=6\nTimeoutAbortSec=3\n"


@pytest.fixture(scope="module")
def box() -> Iterator[Container]:
    if os.geteuid() != 0:
        pytest.skip("needs root: boots a container")
    for program in ("debootstrap", "systemd-nspawn", "nsenter"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed (debootstrap, systemd-container, util-linux)")
    with installed() as container:
        etc = container.tree / "etc/nearpath"
        etc.mkdir(exist_ok=True)
        files = {"nearpath.yaml": NEARPATH, "agent.yaml": AGENT, "dnsd.yaml": DNSD_ALONE, "mirror.zone": ZONE}
        for name, text in files.items():
            (etc / name).write_text(text)
        token = etc / "agent.token"
        token.touch(mode=0o400)
        token.write_text(TOKEN + "\n")
        container.chroot("chown", "nearpath-agent:", "/etc/nearpath/agent.token")
        add_drop_in(container, "dnsd", "alone", ALONE)
        container.chroot("systemctl", "enable", "nearpath", "probe-agent", "dnsd")
        container.boot()
        yield container


def add_drop_in(box: Container, unit: str, name: str, text: str) -> Path:
    file = box.tree / f"etc/systemd/system/{unit}.service.d/{name}.conf"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def show(box: Container, unit: str, key: str) -> str:
    return box.do("systemctl", "show", "-P", key, unit).stdout.strip()


def eventually(what: Callable[[], object], within_s: float = 30.0) -> None:
    """Wait until `what()` is true; the last value is in the failure."""
    end = time.monotonic() + within_s
    while not (value := what()) and time.monotonic() < end:
        time.sleep(0.2)
    assert value, f"still {value!r} after {within_s:.0f} s"


def dig(box: Container, *question: str, server: str = "127.0.0.1") -> str:
    return box.do("dig", f"@{server}", "+short", "+tries=1", "+time=2", *question).stdout.strip()


def journal(box: Container, unit: str) -> str:
    return box.do("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout


def restarted(box: Container, unit: str, old_pid: str) -> bool:
    return show(box, unit, "MainPID") not in ("0", old_pid) and show(box, unit, "ActiveState") == "active"


@pytest.mark.parametrize("unit", ["nearpath", "probe-agent", "dnsd"])
def test_unit_becomes_ready(box: Container, unit: str) -> None:
    eventually(lambda: show(box, unit, "ActiveState") != "activating")
    assert show(box, unit, "ActiveState") == "active", journal(box, unit)
    assert show(box, unit, "NRestarts") == "0", journal(box, unit)
    assert show(box, unit, "StatusText")


def test_answers_over_udp_and_tcp(box: Container) -> None:
    eventually(lambda: dig(box, NAME, "A") in ADDRESSES)
    assert dig(box, "+tcp", NAME, "A") in ADDRESSES
    assert dig(box, "fixed.mirror.test", "A") == "192.0.2.1"
    assert dig(box, "fixed.mirror.test", "A", server="127.0.0.9") == "192.0.2.1"


def test_agent_measures_by_icmp_without_any_right(box: Container) -> None:
    def samples() -> int:
        done = box.do("runuser", "-u", "nearpath", "--", "/opt/nearpath/bin/nearpath", "status", "--json")
        assert done.returncode == 0, done.stderr
        return int(json.loads(done.stdout)["agents"][0]["samples"])

    eventually(lambda: samples() > 4)
    metrics = box.do("/opt/nearpath/bin/nearpath", "explain", NAME, "--client", "127.0.0.1", "--json").stdout
    assert '"live"' in metrics or "'live'" in metrics, metrics


@pytest.mark.parametrize(
    ("unit", "user", "capabilities"),
    [("nearpath", "nearpath", 1 << 10), ("dnsd", "nearpath", 1 << 10), ("probe-agent", "nearpath-agent", 0)],
)
def test_rights_are_the_least(box: Container, unit: str, user: str, capabilities: int) -> None:
    status = box.do("cat", f"/proc/{show(box, unit, 'MainPID')}/status").stdout
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(re.findall(rf"{kind}:\s+(\S+)", status)[0], 16) == capabilities, kind
    uid = box.do("id", "-u", user).stdout.strip()
    assert re.findall(r"Uid:\s+(\d+)", status) == [uid]
    assert re.findall(r"NoNewPrivs:\s+(\d)", status) == ["1"]
    assert re.findall(r"Seccomp:\s+(\d)", status) == ["2"]


def test_state_belongs_to_the_daemon_alone(box: Container) -> None:
    found = box.do("stat", "-c", "%U %a", "/var/lib/nearpath", "/var/lib/nearpath-agent").stdout.split("\n")
    assert found[:2] == ["nearpath 750", "nearpath-agent 700"]
    control = box.do("stat", "-c", "%U:%G %a", "/var/lib/nearpath/control.sock").stdout.strip()
    assert control == "nearpath:nearpath 660"


@pytest.mark.parametrize("unit", ["nearpath", "probe-agent", "dnsd"])
def test_kill_9_is_followed_by_a_restart(box: Container, unit: str) -> None:
    old = show(box, unit, "MainPID")
    assert box.do("systemctl", "kill", "--kill-who=main", "-s", "KILL", unit).returncode == 0
    eventually(lambda: restarted(box, unit, old))
    eventually(lambda: dig(box, NAME, "A") in ADDRESSES)


def test_watchdog_ends_a_process_that_hangs(box: Container) -> None:
    drop_in = add_drop_in(box, "nearpath", "watchdog", FAST_WATCHDOG)
    box.do("systemctl", "daemon-reload")
    box.do("systemctl", "restart", "nearpath")
    pid = show(box, "nearpath", "MainPID")
    time.sleep(8)  # longer than the watchdog's limit: a daemon that works is left alone
    assert show(box, "nearpath", "MainPID") == pid
    box.do("kill", "-STOP", pid)
    eventually(lambda: restarted(box, "nearpath", pid))
    assert "Watchdog timeout" in journal(box, "nearpath")
    eventually(lambda: dig(box, NAME, "A") in ADDRESSES)
    drop_in.unlink()
    box.do("systemctl", "daemon-reload")


def test_bad_reload_changes_nothing_and_says_why(box: Container) -> None:
    file = box.tree / "etc/nearpath/nearpath.yaml"
    pid = show(box, "nearpath", "MainPID")
    file.write_text(NEARPATH.replace("answers: 1", "anwsers: 1"))
    try:
        box.do("systemctl", "reload", "nearpath")
        eventually(lambda: "anwsers" in journal(box, "nearpath"))
        assert show(box, "nearpath", "MainPID") == pid
        assert dig(box, NAME, "A") in ADDRESSES
        eventually(lambda: "old configuration" in show(box, "nearpath", "StatusText"))
    finally:
        file.write_text(NEARPATH)
    box.do("systemctl", "reload", "nearpath")
    eventually(lambda: "old configuration" not in show(box, "nearpath", "StatusText"))


def test_good_reload_is_taken(box: Container) -> None:
    file = box.tree / "etc/nearpath/nearpath.yaml"
    file.write_text(NEARPATH.replace("answers: 1", "answers: 2"))
    try:
        box.do("systemctl", "reload", "nearpath")
        eventually(lambda: set(dig(box, NAME, "A").split()) == ADDRESSES)
    finally:
        file.write_text(NEARPATH)
        box.do("systemctl", "reload", "nearpath")


@pytest.mark.parametrize(("unit", "file"), [("nearpath", "nearpath"), ("dnsd", "dnsd"), ("probe-agent", "agent")])
def test_wrong_configuration_is_not_tried_for_ever(box: Container, unit: str, file: str) -> None:
    path = box.tree / f"etc/nearpath/{file}.yaml"
    good = path.read_text()
    path.write_text(good + "typo: 1\n")
    try:
        box.do("systemctl", "restart", unit)
        eventually(lambda: show(box, unit, "ActiveState") == "failed")
        assert show(box, unit, "ExecMainStatus") == "78"
        assert "typo" in journal(box, unit)
    finally:
        path.write_text(good)
        box.do("systemctl", "restart", unit)
    assert show(box, unit, "ActiveState") == "active"


@pytest.mark.parametrize("unit", ["probe-agent", "dnsd", "nearpath"])
def test_stop_is_clean(box: Container, unit: str) -> None:
    assert box.do("systemctl", "stop", unit).returncode == 0
    assert show(box, unit, "Result") == "success"
    assert show(box, unit, "ExecMainStatus") == "0"
    assert box.do("systemctl", "start", unit).returncode == 0


def test_dnsd_answers_while_the_appliance_is_away(box: Container) -> None:
    alone = box.tree / "etc/systemd/system/dnsd.service.d/alone.conf"
    alone.unlink()
    split = add_drop_in(box, "nearpath", "split", DECIDE_ONLY)
    box.do("systemctl", "daemon-reload")
    box.do("systemctl", "restart", "nearpath")
    box.do("systemctl", "restart", "dnsd")
    try:
        eventually(lambda: show(box, "dnsd", "ActiveState") == "active")
        assert dig(box, NAME, "A") in ADDRESSES
        assert box.do("systemctl", "stop", "nearpath").returncode == 0
        assert dig(box, NAME, "A") in ADDRESSES
        assert box.do("systemctl", "restart", "dnsd").returncode == 0, journal(box, "dnsd")
        assert dig(box, NAME, "A") in ADDRESSES
        box.do("systemctl", "start", "nearpath")
        assert show(box, "nearpath", "ActiveState") == "active", journal(box, "nearpath")
    finally:
        split.unlink()
        add_drop_in(box, "dnsd", "alone", ALONE)
        box.do("systemctl", "daemon-reload")
        box.do("systemctl", "restart", "dnsd", "nearpath")


@pytest.mark.parametrize(("unit", "limit"), EXPOSURE.items())
def test_exposure(box: Container, unit: str, limit: float) -> None:
    told = box.do("systemd-analyze", "security", "--no-pager", f"{unit}.service").stdout
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", told)
    assert level, told
    assert float(level[1]) <= limit


def test_units_are_placed_only_once(box: Container) -> None:
    lines = box.do("/opt/nearpath/bin/nearpath", "install-units").stdout.splitlines()
    assert sum(line.startswith("same") for line in lines) == 5, lines


@pytest.mark.parametrize("unit", ["nearpath", "probe-agent", "dnsd"])
def test_nothing_was_swallowed(box: Container, unit: str) -> None:
    assert "Traceback" not in journal(box, unit)
