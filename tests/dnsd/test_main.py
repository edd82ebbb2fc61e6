"""The `dnsd` command as a process: serve, reload, refuse, stop."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import dns.exception
import dns.message
import dns.query
import pytest

ROOT = Path(__file__).parent.parent.parent
ZONE = "$TTL 60\n@ SOA ns1 host {serial} 1h 15m 30d 5m\n@ NS ns1\nns1 A 192.0.2.1\nwww A 192.0.2.{serial}\n"
WAIT_S = 20


class Daemon:
    """A running dnsd; its log lines are read as they come."""

    def __init__(self, config: Path, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dnsd.main", "-c", str(config), "--log-json"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines: Queue[str] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)

    def wait_for(self, event: str) -> dict[str, object]:
        while True:
            line = self.lines.get(timeout=WAIT_S)
            entry: dict[str, object] = json.loads(line) if line.startswith("{") else {"event": line}
            if entry["event"] == event:
                return entry

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "example.org.zone").write_text(ZONE.format(serial=1))
    file = tmp_path / "nearpath.yaml"
    file.write_text(
        "version: 1\nstate_dir: state\ndns: {listen: ['127.0.0.1:0']}\n"
        "zones: [{origin: example.org., file: example.org.zone}]\n"
    )
    return file


@pytest.fixture
def daemon(config: Path) -> Iterator[Daemon]:
    running = Daemon(config)
    yield running
    running.process.kill()
    running.process.wait()


def ask(address: str, name: str = "www.example.org.") -> list[str]:
    host, _, port = address.rpartition(":")
    reply = dns.query.udp(dns.message.make_query(name, "A"), host, timeout=5, port=int(port))
    return [rdata.to_text() for rrset in reply.answer for rdata in rrset]


def test_serve_reload_and_stop(config: Path, daemon: Daemon) -> None:
    (address,) = daemon.wait_for("ready")["listen"]  # type: ignore[misc]
    assert ask(address) == ["192.0.2.1"]

    zone = config.parent / "example.org.zone"
    zone.write_text(ZONE.format(serial=2))
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.wait_for("reloaded")["generation"] == 2
    assert ask(address) == ["192.0.2.2"]

    zone.write_text(ZONE.format(serial=3) + "broken A 192.0.2.999\n")
    daemon.process.send_signal(signal.SIGHUP)
    reason = str(daemon.wait_for("reload_failed")["why"])
    assert "example.org.zone:6:" in reason
    assert "broken A 192.0.2.999" in reason
    assert ask(address) == ["192.0.2.2"]

    zone.unlink()
    daemon.process.send_signal(signal.SIGHUP)
    assert "cannot be read" in str(daemon.wait_for("reload_failed")["why"])
    assert ask(address) == ["192.0.2.2"]

    assert daemon.stop() == 0
    host, _, port = address.rpartition(":")
    with pytest.raises((dns.exception.Timeout, OSError)):
        dns.query.tcp(dns.message.make_query("www.example.org.", "A"), host, timeout=1, port=int(port))


def test_metrics_and_notification(config: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config.write_text(config.read_text().replace("['127.0.0.1:0']", f"['127.0.0.1:0'], metrics: ['127.0.0.1:{port}']"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.settimeout(WAIT_S)
        notified.bind(str(config.parent / "notify"))
        environment = {"NOTIFY_SOCKET": str(config.parent / "notify"), "WATCHDOG_USEC": "200000"}
        daemon = Daemon(config, environment)
        try:
            (address,) = daemon.wait_for("ready")["listen"]  # type: ignore[misc]
            assert notified.recv(4096).startswith(b"READY=1")
            assert notified.recv(4096) == b"WATCHDOG=1"
            ask(address)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                shown = page.read().decode()
            assert 'dnsd_answers_total{rcode="NOERROR",transport="udp"} 1.0' in shown
            assert 'dnsd_zone_serial{zone="example.org."} 1.0' in shown
        finally:
            assert daemon.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("127.0.0.1:0", "203.0.113.200:0"), "no interface has 203.0.113.200"),
        (("example.org.zone", "missing.zone"), "cannot be read"),
        (("origin:", "origine:"), "is not a known key"),
        (
            (
                "state_dir",
                "services: {dl.example.org.: {mirrors: [m], checks: [c]}}\nmirrors: {m: {addresses: [192.0.2.5]}}\n"
                "checks: {c: {kind: icmp}}\nstate_dir",
            ),
            "no decision yet",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_reason(config: Path, change: tuple[str, str], what: str) -> None:
    config.write_text(config.read_text().replace(*change))
    done = subprocess.run(
        [sys.executable, "-m", "dnsd.main", "-c", str(config)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == (78 if what in ("cannot be read", "is not a known key") else 1), "EX_CONFIG or not"
    assert what in done.stderr
    assert "Traceback" not in done.stderr
