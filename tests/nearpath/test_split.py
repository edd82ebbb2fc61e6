"""DNS in a process of its own: `nearpath up --no-dns` decides, `dnsd` answers, and either may die."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.nearpath.daemon import ROOT, Daemon, daemon_in, wait_until

pytestmark = pytest.mark.skipif(
    shutil.which("dig") is None, reason="needs the program dig (Debian package bind9-dnsutils)"
)


@contextmanager
def dnsd_on(daemon: Daemon, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A `dnsd` on the same configuration, and the port it answers on."""
    with log.open("wb") as stream:
        argv = [sys.executable, "-m", "dnsd.main", "-c", str(daemon.config), "--log-json"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=ROOT)
    try:
        wait_until(lambda: '"ready"' in log.read_text() or process.poll() is not None, 20, "dnsd is ready", log)
        assert process.poll() is None, log.read_text()
        yield process, log.read_text().partition('"127.0.0.1:')[2].partition('"')[0]
    finally:
        process.kill()
        process.wait(10)


def dig(port: str, *arguments: str) -> str:
    argv = ["dig", "@127.0.0.1", "-p", port, "www.mirror.example", "+tries=1", "+time=2", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=15, check=True).stdout


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with daemon_in(tmp_path) as one:
        yield one


def test_without_any_decision_dnsd_refuses_rather_than_deny_names(daemon: Daemon) -> None:
    argv = [sys.executable, "-m", "dnsd.main", "-c", str(daemon.config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "no decision yet for www.mirror.example." in done.stderr
    assert "nearpath up --no-dns" in done.stderr


def test_dnsd_follows_the_appliance_outlives_it_and_says_so(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start("--no-dns")
    assert daemon.status()["appliance"]["dns"] == []
    wait_until(lambda: (tmp_path / "state" / "bus.sqlite").stat().st_size > 0, 5, "the store is there")
    with dnsd_on(daemon, tmp_path / "dnsd.log") as (_process, port):
        wait_until(
            lambda: "192.0.2.1" in dig(port, "+short", "+subnet=192.0.2.0/24"), 5, "the region's mirror is answered"
        )
        daemon.cli("drain", "alpha")
        wait_until(lambda: "198.51.100.1" in dig(port, "+short", "+subnet=192.0.2.0/24"), 8, "the drain has arrived")
        wait_until(lambda: "nobody decides" not in dig(port), 10, "the appliance is heard")
        daemon.kill()
        wait_until(lambda: "nobody decides now, this is the last decision" in dig(port), 20, "the silence is told")
        assert "198.51.100.1" in dig(port, "+short", "+subnet=192.0.2.0/24"), "it answers all the same"
    with dnsd_on(daemon, tmp_path / "dnsd2.log") as (_process, port):
        assert "198.51.100.1" in dig(port, "+short", "+subnet=192.0.2.0/24"), "also after a restart of its own"
        daemon.start("--no-dns")
        wait_until(lambda: "nobody decides" not in dig(port), 20, "the appliance is heard again")


def test_a_reload_of_dnsd_does_not_forget_that_the_appliance_lives(daemon: Daemon, tmp_path: Path) -> None:
    daemon.start("--no-dns")
    log = tmp_path / "dnsd.log"
    with dnsd_on(daemon, log) as (process, port):
        wait_until(lambda: "nobody decides" not in dig(port), 10, "the appliance is heard")
        heard = log.read_text().count("appliance_heard")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: '"reloaded"' in log.read_text(), 10, "it has reloaded", log)
        assert "nobody decides" not in dig(port)
        assert log.read_text().count("appliance_heard") == heard == 1
