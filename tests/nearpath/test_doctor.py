"""The doctor on real installations: each thing is broken for real, and the finding must name it and say what to do."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from core.config import Tls
from core.io_config import read_config
from core.io_state import hold_state_dir
from nearpath.doctor import Finding, examine, show_findings
from nearpath.doctor_agent import examine_agent
from nearpath.doctor_answers import check_answers
from nearpath.doctor_ask import Server
from nearpath.doctor_files import Account, certificate_end, check_secret, check_state_dir
from nearpath.doctor_host import control_peer, is_local, local_addresses, port_holders
from nearpath.doctor_running import check_agents, check_appliance, check_mirrors
from nearpath.doctor_zone import read_own_zones
from tests.nearpath.daemon import ROOT, Daemon, daemon_in, wait_until
from tests.nearpath.name_server import child, loopback_net, refuse

NOBODY = Account(65534, frozenset({65534}), "nobody")
ME = Account(os.geteuid(), frozenset({os.getegid()}), "me")


@pytest.fixture
def site(tmp_path: Path) -> Daemon:
    """The files of an installation; nothing runs."""
    return Daemon(tmp_path)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """An appliance that runs, for tests that do not change it."""
    with daemon_in(tmp_path_factory.mktemp("appliance")) as daemon:
        daemon.start()
        yield daemon


def bad(findings: list[Finding]) -> list[str]:
    assert all(finding.fix for finding in findings if finding.level == "bad"), "each bad finding says what to do"
    return [finding.what for finding in findings if finding.level == "bad"]


def of(area: str, findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.area == area]


# -- files and rights


def test_all_faults_of_a_configuration_are_found_at_once(site: Daemon) -> None:
    site.edit("kind: http", "kind: hhtp")
    site.edit("state_dir: state\n", "state_dir: state\nstatedir: x\n")
    found = bad(examine(site.config))
    assert any("nearpath.yaml:3: statedir: is not a known key" in what for what in found)
    assert any("checks.web" in what for what in found)


def test_a_bad_zone_file_and_a_missing_table(site: Daemon) -> None:
    site.edit("regions:\n", "region_tables: [{name: t, file: no-such-table.csv}]\nregions:\n")
    (site.folder / "mirror.example.zone").write_text("@ IN A 300.0.0.1\n")
    found = bad(of("configuration", examine(site.config)))
    assert any("mirror.example.zone:1" in what for what in found)
    assert any("no-such-table.csv" in what for what in found)


def test_warnings_of_zones_are_notes(site: Daemon) -> None:
    findings = of("configuration", examine(site.config))
    assert [f.level for f in findings] == ["good", "note"]
    assert "only one NS record" in findings[1].what


def test_what_does_not_run_is_said(site: Daemon) -> None:
    (finding,) = of("appliance", examine(site.config))
    assert finding.level == "note"
    assert "no appliance runs" in finding.what


def test_a_state_dir_that_its_user_cannot_write(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o755)
    (state / "bus.sqlite").touch(mode=0o644)
    found = bad(list(check_state_dir(state, NOBODY)))
    assert any(f"state_dir {state} cannot be written by nobody" in what for what in found)
    assert any("nobody cannot write bus.sqlite" in what for what in found)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only folder")
def test_a_read_only_state_dir_of_our_own(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o555)
    assert any("cannot be written" in what for what in bad(list(check_state_dir(state, ME))))


def test_a_state_dir_open_to_all_and_one_that_is_a_file(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    assert bad(list(check_state_dir(state, ME))) == [f"state_dir {state} can be changed by every user"]
    state.chmod(0o750)
    assert {f.level for f in check_state_dir(state, ME)} <= {"good", "note"}
    (tmp_path / "file").touch()
    assert bad(list(check_state_dir(tmp_path / "file", ME))) == [f"state_dir {tmp_path / 'file'} is not a folder"]


@pytest.mark.parametrize(
    ("mode", "level"), [(0o600, "good"), (0o400, "good"), (0o640, "note"), (0o644, "bad"), (0o660, "bad")]
)
def test_modes_of_secrets(tmp_path: Path, mode: int, level: str) -> None:
    file = tmp_path / "token"
    file.touch()
    file.chmod(mode)
    assert [f.level for f in check_secret(file, "token file", ME)] == [level]


@pytest.fixture
def certificate(tmp_path: Path) -> Tls:
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl (Debian package openssl)")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "5",
    ]
    subprocess.run([*command, "-subj", "/CN=localhost", "-keyout", key, "-out", cert], check=True, capture_output=True)
    return Tls(cert=str(cert), key=str(key))


def test_a_certificate_that_ends_soon_is_a_note(site: Daemon, certificate: Tls) -> None:
    site.edit(
        'report: {listen: ["127.0.0.1:0"]}', 'report: {listen: ["127.0.0.1:0"], tls: {cert: cert.pem, key: key.pem}}'
    )
    (finding,) = of("TLS", examine(site.config))
    assert finding.level == "note"
    assert re.search(r"ends in [45] days", finding.what)
    Path(certificate.key).chmod(0o644)
    assert any("TLS key" in what and "0644" in what for what in bad(examine(site.config)))


def test_a_certificate_and_the_key_of_another(certificate: Tls, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-out", other], check=True)
    with pytest.raises(ssl.SSLError):
        certificate_end(Tls(cert=certificate.cert, key=str(other)))


# -- ports and addresses


def test_a_taken_port_names_program_and_pid(site: Daemon) -> None:
    code = (
        "import socket, sys\nu = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nu.bind(('127.0.0.1', 0))\n"
        "print(u.getsockname()[1], flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        port = int(other.stdout.readline())
        site.edit('"127.0.0.1:0", "[::1]:0"', f'"127.0.0.1:{port}"')
        found = bad(of("ports", examine(site.config)))
        assert len(found) == 1
        assert f"dns.listen 127.0.0.1:{port}/UDP is taken by python" in found[0]
        assert f"(pid {other.pid})" in found[0]
        other.communicate()


def test_a_wildcard_of_another_program_takes_our_address_too(site: Daemon) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        sock.bind(("::", 0))
        sock.listen()
        port = sock.getsockname()[1]
        site.edit('metrics: {listen: ["127.0.0.1:0"]}', f'metrics: {{listen: ["127.0.0.1:{port}"]}}')
        found = bad(of("ports", examine(site.config)))
    assert len(found) == 1
    assert f"metrics.listen 127.0.0.1:{port}/TCP is taken by" in found[0]
    assert f"(pid {os.getpid()})" in found[0]


def test_an_address_that_is_not_here(site: Daemon) -> None:
    site.edit('"[::1]:0"', '"203.0.113.77:53"')
    found = bad(of("ports", examine(site.config)))
    assert len(found) == 1
    assert "dns.listen: no interface of this host has 203.0.113.77" in found[0]


def test_addresses_of_this_host_and_holders_of_ports() -> None:
    addresses = local_addresses()
    assert "127.0.0.1" in addresses
    assert is_local("127.9.9.9", addresses)
    assert not is_local("203.0.113.77", addresses)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        holders = port_holders({sock.getsockname()[1]})
    assert [(h.host, h.protocol, h.pid) for h in holders] == [("127.0.0.1", "TCP", os.getpid())]


def test_agents_without_a_report_address(site: Daemon) -> None:
    site.edit("agents: {}", f"agents: {{a1: {{region: north, token_sha256: '{'0' * 64}'}}}}")
    site.edit('report: {listen: ["127.0.0.1:0"]}', "report: {}")
    assert any("report.listen is empty" in what for what in bad(examine(site.config)))


# -- a running appliance


def test_a_running_appliance_is_asked_for_real(running: Daemon) -> None:
    findings = examine(running.config)
    assert bad(findings) == []
    answers = [f.what for f in of("answers", findings)]
    for address in running.status()["appliance"]["dns"]:
        assert any(f"{address}: mirror.example. SOA and NS, UDP" in what for what in answers)
        assert any(f"{address}: EDNS payload sizes 512/1232/4096 are kept" in what for what in answers)
    assert any("NSID 'box'" in what for what in answers)
    assert any("ECS echoed): 1" in what for what in answers)
    (state,) = of("appliance", findings)
    assert state.level == "good"
    assert [f.what for f in of("ports", findings)] == ["every listen address is on this host"], (
        "port 0: nothing to find"
    )
    assert any("`table`" in f.what for f in of("mirrors", findings)), "nothing is measured here: said"
    assert running.process is not None
    assert control_peer(running.folder / "state" / "control.sock")[0] == running.process.pid


def test_the_command_prints_areas_and_exits_by_the_worst(running: Daemon, tmp_path: Path) -> None:
    done = running.cli("doctor")
    assert "answers" in done.stdout
    assert re.search(r"\d+ good, \d+ notes?, 0 bad", done.stdout)
    broken = Daemon(tmp_path)
    broken.edit("state_dir: state\n", "")
    done = broken.cli("doctor", "--json", check=False)
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)
    assert finding["level"] == "bad"
    assert "state_dir: is missing" in finding["what"]
    assert set(finding) == {"level", "what", "fix", "area"}


def test_a_zone_file_that_was_changed_but_not_reloaded(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon:
        daemon.start()
        zone = tmp_path / "mirror.example.zone"
        zone.write_text(zone.read_text().replace("hostmaster 1 ", "hostmaster 2 "))
        findings = of("answers", examine(daemon.config))
        assert any("has serial 1, its file has 2" in what for what in bad(findings))
        assert any("nearpath reload" in f.fix for f in findings)
        daemon.edit("interval: 1s", "interval: 1")
        daemon.cli("reload", check=False)
        daemon.edit("interval: 1", "interval: 1s")
        found = bad(of("appliance", examine(daemon.config)))
        assert any("the last reload failed" in what and "checks.web.interval" in what for what in found)


def test_an_appliance_that_hangs(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon:
        daemon.start()
        daemon.edit('"[::1]:0"', '"127.0.0.1:0"')
        config = read_config(daemon.config)
        addresses = daemon.status()["appliance"]["dns"]
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            servers = [Server("127.0.0.1", int(addresses[0].rpartition(":")[2]))]
            found = bad(list(check_answers(config, read_own_zones(config), servers)))
        finally:
            daemon.process.send_signal(signal.SIGCONT)
    assert len(found) == 1
    assert "no answer over UDP" in found[0]


def test_another_name_server_on_our_address(site: Daemon) -> None:
    config = read_config(site.config)
    with loopback_net() as net:
        stranger = net.serve("127.0.0.1", refuse)
        udp_only = net.serve("127.0.53.5", child("mirror.example.", 1, ("ns1.mirror.example.",)), tcp=False)
        servers = [Server(s.host, s.port) for s in (stranger, udp_only)]
        found = bad(list(check_answers(config, read_own_zones(config), servers)))
    assert any(what.startswith(f"{servers[0]} UDP: mirror.example. SOA: REFUSED, not authoritative") for what in found)
    assert any(what.startswith(f"{servers[1]} TCP: mirror.example. SOA") for what in found)
    assert any(what.startswith(f"{servers[1]}: NSID is ''") for what in found)
    assert any("the client subnet is not echoed" in what for what in found)
    assert any("a foreign name is answered with NOERROR, not REFUSED" in what for what in found)
    assert any(f"{servers[1]} UDP: www.mirror.example. A" in what and "no address" in what for what in found)


# -- what status says


def picture(**changes: object) -> dict[str, object]:
    state = {"uptime_s": 900.0, "generation": 5, "not_ready": [], "reload_error": "", "store_error": "", **changes}
    return {"appliance": state}


def test_a_store_that_fails_and_readiness() -> None:
    found = bad(list(check_appliance(picture(store_error="disk full", not_ready=["deciding has stopped"]))))
    assert any("disk full" in what for what in found)
    assert any("deciding has stopped" in what for what in found)


def test_agents_that_are_silent_lose_samples_or_have_a_wrong_clock(site: Daemon) -> None:
    site.edit("agents: {}", f"agents: {{a1: {{region: north, token_sha256: '{'0' * 64}'}}}}")
    well = {
        "agent": "a1",
        "region": "north",
        "heard_age_s": 1.0,
        "clock_skew_s": 0.1,
        "samples": 9,
        "missing": 0,
        "quarantined": 0,
    }
    agents = [
        well,
        {**well, "agent": "a2", "heard_age_s": None},
        {**well, "agent": "a3", "heard_age_s": 60.0},
        {**well, "agent": "a4", "missing": 12, "clock_skew_s": -30.0},
    ]
    findings = list(check_agents(read_config(site.config), {**picture(), "agents": agents}))
    assert bad(findings) == [
        "agent a2 (north) was never heard since the appliance's start",
        "agent a3 (north) is silent for 1 m 0 s",
    ]
    told = [f.what for f in findings if f.level == "note"]
    assert "agent a4 (north) had to drop 12 samples: its spool was full" in told
    assert "agent a4 (north): its clock is -30.0 s off ours" in told
    assert "regions without an agent of their own: south" in told


def test_a_mirror_down_everywhere_and_a_service_that_fails_open() -> None:
    def catchment(name: str, alpha: str, fail_open: str = "", quality: str = "live") -> dict[str, object]:
        mirrors = [{"mirror": "alpha", "state": alpha}, {"mirror": "beta", "state": "down" if fail_open else "up"}]
        return {
            "service": "www.mirror.example.", "family": 4, "catchment": name, "regions": [name],
            "quality": quality, "fail_open": fail_open, "mirrors": mirrors,
        }  # fmt: skip

    both = [{"mirror": m, "drained": False, "addresses": ["192.0.2.1"]} for m in ("alpha", "beta")]
    shown = {"catchments": [catchment("n", "down"), catchment("s", "damped", quality="stale")], "mirrors": both}
    findings = list(check_mirrors(shown))
    assert bad(findings) == ["alpha (192.0.2.1) is damped or down from everywhere"]
    assert any("`stale` data in s" in f.what for f in findings)
    partly = {"catchments": [catchment("n", "down"), catchment("s", "up")], "mirrors": both}
    assert bad(list(check_mirrors(partly))) == [], "down from one region only is what steering is for"
    assert [f.what for f in check_mirrors(partly) if f.level == "note"] == [
        "alpha is down as seen from n, which others answer for"
    ]
    opened = {"catchments": [catchment("n", "down", "up")], "mirrors": both}
    assert any("fails open in n: step up left no mirror" in what for what in bad(list(check_mirrors(opened))))


# -- an agent's host


@pytest.fixture
def agent_site(tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """An appliance that knows agent a1, and the file of a1 with its real token."""
    with daemon_in(tmp_path) as daemon:
        made = daemon.folder / "agent.token"
        argv = [sys.executable, "-m", "nearpath.main", "agent-token", "--file", str(made)]
        out = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        found = re.search(r"token_sha256: (\w{64})", out)
        assert found is not None
        daemon.edit("agents: {}", f"agents: {{a1: {{region: north, token_sha256: '{found[1]}'}}}}")
        daemon.start()
        file = daemon.folder / "agent.yaml"
        (report,) = daemon.status()["appliance"]["report"]
        file.write_text(
            f"version: 1\nname: a1\nappliance: http://{report}\ntoken_file: agent.token\nstate_dir: agent-state\n"
        )
        yield daemon, file


def test_an_agent_that_is_set_up_right_and_its_faults(agent_site: tuple[Daemon, Path]) -> None:
    daemon, file = agent_site
    findings = examine_agent(file)
    assert bad(findings) == []
    assert any("takes the token and gives 2 targets" in f.what for f in findings)
    assert any("no agent runs on state_dir" in f.what for f in findings)
    lock = hold_state_dir(daemon.folder / "agent-state", "agent")
    assert any(f"an agent runs here, process {os.getpid()}" in f.what for f in examine_agent(file))
    os.close(lock)
    token = daemon.folder / "agent.token"
    token.write_text("not the token\n")
    token.chmod(0o644)
    found = bad(examine_agent(file))
    assert any("refuses agent a1" in what for what in found)
    assert any("has mode 0644" in what for what in found)
    daemon.stop()
    wait_until(daemon.process_ended, 5, "it has ended")
    assert any("cannot be reached" in what for what in bad(examine_agent(file)))


def test_findings_are_printed_by_area_with_what_to_do() -> None:
    console = Console(record=True, width=100)
    show_findings(
        console,
        [
            Finding("good", "fine", "", "ports"),
            Finding("bad", "broken", "mend it", "ports"),
            Finding("note", "odd", "look", "clock"),
        ],
    )
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert lines == [
        "ports",
        "  ✔  fine",
        "  ✘  broken",
        "     → mend it",
        "clock",
        "  !  odd",
        "     → look",
        "1 good, 1 note, 1 bad",
    ]


def test_an_appliance_that_only_decides_needs_a_dnsd(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        daemon.edit('"127.0.0.1:0", "[::1]:0"', f'"127.0.0.1:{port}"')
        argv = [sys.executable, "-m", "nearpath.main", "up", "--no-dns", "-c", str(daemon.config)]
        with daemon.log.open("ab") as log:
            daemon.process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=ROOT)
        wait_until(lambda: daemon.process_ended() or daemon.is_ready(), 20, "it is ready", daemon.log)
        found = bad(of("ports", examine(daemon.config)))
    assert any(f"dns.listen 127.0.0.1:{port}/UDP is taken by" in what and "not by dnsd" in what for what in found)
    assert any(f"dns.listen 127.0.0.1:{port}/TCP: nobody answers there" in what for what in found)


def test_ports_of_a_running_appliance_are_its_own_and_a_changed_one_is_missed(tmp_path: Path) -> None:
    with daemon_in(tmp_path) as daemon:
        daemon.start()
        shown = daemon.status()["appliance"]
        assert daemon.process is not None
        daemon.edit('"127.0.0.1:0", "[::1]:0"', ", ".join(f'"{address}"' for address in shown["dns"]))
        ours = [f.what for f in of("ports", examine(daemon.config))]
        assert ours[1:] == [f"all 4 sockets are the appliance's (pid {daemon.process.pid})"]
        with loopback_net() as net:
            taken = net.serve("127.0.53.6", refuse)
            daemon.edit(f'"{shown["dns"][0]}"', f'"127.0.53.6:{taken.port}"')
            found = bad(of("ports", examine(daemon.config)))
        assert len(found) == 2
        assert all(f"127.0.53.6:{taken.port}" in what and f"(pid {os.getpid()}) has it" in what for what in found)
