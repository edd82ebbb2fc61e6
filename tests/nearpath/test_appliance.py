"""`nearpath up` as a real process on loopback: start, answer, reload, drain, stop, and every way it can be set up wrong."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nearpath.daemon import Daemon, daemon_in, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("dig") is None, reason="needs the program dig (Debian package bind9-dnsutils)"
)

NAME = "www.mirror.example"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with daemon_in(tmp_path) as running:
        running.start()
        yield running


def test_unmeasured_clients_get_the_mirror_of_their_region(daemon: Daemon) -> None:
    assert daemon.dig(NAME, "+subnet=192.0.2.0/24") == "192.0.2.1"
    assert daemon.dig(NAME, "+subnet=198.51.100.0/24") == "198.51.100.1"
    story = daemon.explain(NAME, "198.51.100.77")
    assert (story["region"], story["quality"], story["decided_by"]) == ("south", "table", "distance")
    assert story["addresses"] == ["198.51.100.1"]
    assert story["note"], "what is not measured is said"
    assert daemon.dig(NAME, "AAAA") == "", "no IPv6 mirrors: NODATA"


def test_explain_and_the_answer_agree_for_a_prefix_and_an_ipv6_client(daemon: Daemon) -> None:
    for client in ("192.0.2.0/24", "198.51.100.128/25", "203.0.113.9", "2001:db8::/48"):
        subnet = client if "/" in client else f"{client}/32"
        answer = daemon.dig(NAME, f"+subnet={subnet}")
        assert daemon.explain(NAME, client)["addresses"] == [answer]


def test_a_bad_file_changes_nothing_and_says_why_with_line_and_path(daemon: Daemon) -> None:
    zone = daemon.folder / "mirror.example.zone"
    zone.write_text(zone.read_text().replace("as it was", "changed"))
    daemon.edit("interval: 1s", "intervall: 1s")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "reload_failed" in daemon.log.read_text(), 5, "the refusal is logged", daemon.log)
    assert "nearpath.yaml:10: checks.web.intervall: is not a known key" in daemon.log.read_text()
    assert daemon.dig("mirror.example", "TXT") == '"as it was"'
    assert daemon.status()["appliance"]["reload_error"]
    refused = daemon.cli("reload", check=False)
    assert refused.returncode == 1
    assert "intervall" in refused.stderr
    assert "the old configuration runs on" in refused.stderr

    daemon.edit("intervall", "interval")
    daemon.cli("reload")
    assert daemon.dig("mirror.example", "TXT") == '"changed"'
    assert not daemon.status()["appliance"]["reload_error"]


def test_a_bad_zone_refuses_the_whole_reload(daemon: Daemon) -> None:
    daemon.edit("192.0.2.1]", "192.0.2.99]")
    (daemon.folder / "mirror.example.zone").write_text("$TTL 60\n@ IN NS ns1\n")
    refused = daemon.cli("reload", check=False)
    assert "mirror.example.zone" in refused.stderr
    assert "SOA" in refused.stderr
    assert daemon.dig(NAME, "+subnet=192.0.2.0/24") == "192.0.2.1", "nothing of it was taken over"


def test_a_setting_that_needs_a_restart_says_so(daemon: Daemon) -> None:
    daemon.edit("nsid: box", "nsid: other")
    refused = daemon.cli("reload", check=False)
    assert "dns cannot change while running" in refused.stderr
    assert "restart" in refused.stderr


def test_a_reload_adds_and_removes_mirrors_under_load(daemon: Daemon) -> None:
    daemon.edit("  beta:", "  gamma: {addresses: [203.0.113.1], region: south}\n  beta:")
    daemon.edit("mirrors: [alpha, beta]", "mirrors: [gamma, alpha]")
    daemon.cli("reload")
    assert daemon.dig(NAME, "+subnet=198.51.100.0/24") == "203.0.113.1"
    assert daemon.dig(NAME, "+subnet=192.0.2.0/24") == "192.0.2.1"


def test_drain_takes_a_mirror_out_and_outlives_kill_9(daemon: Daemon) -> None:
    daemon.cli("drain", "alpha")
    wait_until(lambda: daemon.dig(NAME, "+subnet=192.0.2.0/24") == "198.51.100.1", 5, "alpha is left out")
    story = daemon.explain(NAME, "192.0.2.1")
    assert "drained" in next(c["reason"] for c in story["candidates"] if c["mirror"] == "alpha")
    daemon.kill()
    daemon.start()
    assert daemon.dig(NAME, "+subnet=192.0.2.0/24") == "198.51.100.1"
    daemon.cli("undrain", "alpha")
    wait_until(lambda: daemon.dig(NAME, "+subnet=192.0.2.0/24") == "192.0.2.1", 5, "alpha is back")
    unknown = daemon.cli("drain", "alfa", check=False)
    assert unknown.returncode == 1
    assert "'alfa' is not a mirror" in unknown.stderr
    assert "alpha, beta" in unknown.stderr


def test_all_mirrors_drained_answers_go_on_and_say_so(daemon: Daemon) -> None:
    for mirror in ("alpha", "beta"):
        daemon.cli("drain", mirror)
    wait_until(lambda: daemon.explain(NAME, "192.0.2.1")["fail_open"] == "admin", 5, "fail open")
    assert daemon.dig(NAME, "+subnet=192.0.2.0/24") == "192.0.2.1"


def test_it_stops_cleanly_and_frees_everything(daemon: Daemon) -> None:
    address = daemon.status()["appliance"]["dns"][0].rpartition(":")
    assert daemon.stop() == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address[0], int(address[2])))
    gone = daemon.cli("status", check=False)
    assert "no appliance answers" in gone.stderr
    assert "nearpath up" in gone.stderr


def test_metrics_health_and_readiness(daemon: Daemon) -> None:
    base = "http://" + daemon.status()["appliance"]["metrics"][0]
    text = urllib.request.urlopen(f"{base}/metrics", timeout=5).read().decode()
    assert "nearpath_ready 1.0" in text
    assert 'nearpath_quality{catchment="north",family="4",service="www.mirror.example."} 3.0' in text
    assert urllib.request.urlopen(f"{base}/healthz", timeout=5).status == 200
    assert urllib.request.urlopen(f"{base}/readyz", timeout=5).read() == b"ready\n"


def test_a_second_appliance_on_the_same_state_is_refused(daemon: Daemon) -> None:
    second = daemon.cli("up", check=False)
    assert second.returncode == 1
    assert "another appliance runs on state_dir" in second.stderr


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        daemon.edit('["127.0.0.1:0", "[::1]:0"]', f'["127.0.0.1:{port}"]')
        refused = daemon.cli("up", check=False)
        assert refused.returncode == 1
        assert f"127.0.0.1:{port}" in refused.stderr


def test_faults_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon:
        daemon.edit("zones:", "region_tables:\n  - {name: isp, file: missing.csv}\nzones:")
        (tmp_path / "mirror.example.zone").write_text("www IN A 300.1.1.1\n")
        refused = daemon.cli("up", check=False)
        assert "missing.csv" in refused.stderr
        assert "mirror.example.zone" in refused.stderr
        done = subprocess.run(
            [sys.executable, "-m", "nearpath.main", "check-config", str(daemon.config)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert "missing.csv" in done.stderr
