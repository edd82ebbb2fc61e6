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

from tests.local_infer.tiny_model import build_model
from tests.systemd.container import Container, installed

pytestmark = pytest.mark.timeout(1200)

TOKEN = "t" * 43
EXPOSURE = {"nearpath": 1.4, "dnsd": 1.4, "probe-agent": 1.1, "syncd": 1.3, "local-infer": 1.2}
UNITS = ["nearpath", "probe-agent", "dnsd", "syncd", "local-infer"]
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

# The origin that syncd.service pulls from: a second syncd with a plain unit.
ORIGIN = f"""\
version: 1
node: origin
state_dir: /var/lib/origin
listen: ["127.0.0.1:8730"]
children: {{edge: {{token_sha256: {hashlib.sha256(TOKEN.encode()).hexdigest()}}}}}
trees:
  t: {{path: /srv/origin/t, sweep: 60s}}
"""

ORIGIN_UNIT = """\
[Service]
Type=notify
User=nearpath-sync
StateDirectory=origin
ExecStart=/opt/nearpath/bin/syncd run -c /etc/nearpath/origin.yaml
[Install]
WantedBy=multi-user.target
"""

EDGE = """\
version: 1
node: edge
state_dir: /var/lib/nearpath-sync
parents:
  origin: {url: "http://127.0.0.1:8730", token_file: syncd.token}
trees:
  t: {path: /srv/mirror/t, parents: [origin], public_key: KEY, poll: 1s}
"""

# No upstream can be reached: all is answered on the box, from an index in one process and by a model in another.
GATEWAY = """\
version: 1
state_dir: /var/lib/nearpath-infer
listen: ["127.0.0.1:8080"]
anonymous: true
upstreams: {east: {url: "http://127.0.0.1:1/v1"}}
routing: {give_up: 500ms}
retrieval: {index: /srv/models/faq}
generation: {model: /srv/models/tiny, name: tiny}
metrics: {listen: ["127.0.0.1:9155"]}
"""

FAQ = '- {question: "How do I change my password?", answer: "In the settings."}\n'
SAID = "本机的回答"

# Asks the gateway; prints status, X-Degraded and the body.
ASK = """
import json, sys, urllib.error, urllib.request
body = {"model": "m", "temperature": 0, "messages": [{"role": "user", "content": sys.argv[1]}]}
request = urllib.request.Request("http://127.0.0.1:8080/v1/chat/completions", json.dumps(body).encode(),
                                 {"Content-Type": "application/json"})
try:
    answer = urllib.request.urlopen(request, timeout=20)
except urllib.error.HTTPError as error:
    answer = error
print(json.dumps([answer.status, answer.headers["X-Degraded"], json.load(answer)]))
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
        set_up_mirror(container)
        set_up_gateway(container)
        container.chroot("systemctl", "enable", *UNITS, "origin")
        container.boot()
        yield container


def set_up_mirror(box: Container) -> None:
    """An origin with a tree of 300 files, and what syncd.service needs to copy it."""
    etc = box.tree / "etc/nearpath"
    (etc / "origin.yaml").write_text(ORIGIN)
    (box.tree / "etc/systemd/system/origin.service").write_text(ORIGIN_UNIT)
    tree = box.tree / "srv/origin/t"
    tree.mkdir(parents=True)
    for i in range(300):
        (tree / f"file{i}").write_bytes(b"%d" % i * 1000)
    (tree / "shared").mkdir()
    (tree / "shared").chmod(0o2775)
    (box.tree / "srv/mirror").mkdir()
    (box.tree / "var/lib/origin").mkdir()
    box.chroot("chown", "nearpath-sync:", "/srv/mirror", "/var/lib/origin")
    # What install-units prints: then the key of a tree can be made before syncd was ever started.
    box.chroot("systemd-tmpfiles", "--create", "nearpath.conf")
    assert box.chroot("stat", "-c", "%U %a", "/var/lib/nearpath-sync").strip() == "nearpath-sync 750"
    key = box.chroot("runuser", "-u", "nearpath-sync", "--", "/opt/nearpath/bin/syncd", "key", "t", "-c",
                     "/etc/nearpath/origin.yaml")  # fmt: skip
    (etc / "syncd.yaml").write_text(EDGE.replace("KEY", key.strip()))
    token = etc / "syncd.token"
    token.touch(mode=0o400)
    token.write_text(TOKEN + "\n")
    box.chroot("chown", "nearpath-sync:", "/etc/nearpath/syncd.token")


def set_up_gateway(box: Container) -> None:
    """A model folder, an index and the configuration of local-infer.service."""
    (box.tree / "etc/nearpath/local-infer.yaml").write_text(GATEWAY)
    models = box.tree / "srv/models"
    build_model(models / "tiny", SAID)
    (models / "faq.yaml").write_text(FAQ)
    box.chroot("/opt/nearpath/bin/local-infer", "build", "--faq", "/srv/models/faq.yaml", "--out", "/srv/models/faq")


def ask_gateway(box: Container, text: str) -> tuple[int, str, dict[str, object]]:
    """(status, X-Degraded, answer) of the gateway to a question; (0, ...) while it cannot be asked."""
    done = box.do("python3", "-c", ASK, text)
    if done.returncode:
        return 0, done.stderr, {}
    status, degraded, answer = json.loads(done.stdout)
    return status, degraded, answer


def generators(box: Container) -> list[str]:
    """Process ids of the gateway's children."""
    return box.do("pgrep", "-P", show(box, "local-infer", "MainPID")).stdout.split()


def mirrored(box: Container) -> bool:
    """Whether the copy is the origin's tree, by content."""
    done = box.do("rsync", "-rlptnic", "--delete", "/srv/origin/t/", "/srv/mirror/t/")
    assert done.returncode == 0, done.stderr
    return not done.stdout


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


@pytest.mark.parametrize("unit", UNITS)
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
    [
        ("nearpath", "nearpath", 1 << 10),
        ("dnsd", "nearpath", 1 << 10),
        ("probe-agent", "nearpath-agent", 0),
        ("syncd", "nearpath-sync", 0),
        ("local-infer", "nearpath-infer", 0),
    ],
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
    found = box.do("stat", "-c", "%U %a", "/var/lib/nearpath-sync", "/var/lib/nearpath-sync/control.sock").stdout.split(
        "\n"
    )
    assert found[:2] == ["nearpath-sync 750", "nearpath-sync 660"]
    assert box.do("stat", "-c", "%U %a", "/var/lib/nearpath-infer").stdout.strip() == "nearpath-infer 700"
    control = box.do("stat", "-c", "%U:%G %a", "/var/lib/nearpath/control.sock").stdout.strip()
    assert control == "nearpath:nearpath 660"


@pytest.mark.parametrize("unit", UNITS)
def test_kill_9_is_followed_by_a_restart(box: Container, unit: str) -> None:
    old = show(box, unit, "MainPID")
    assert box.do("systemctl", "kill", "--kill-who=main", "-s", "KILL", unit).returncode == 0
    eventually(lambda: restarted(box, unit, old))
    eventually(lambda: dig(box, NAME, "A") in ADDRESSES)


@pytest.mark.parametrize("unit", ["nearpath", "syncd", "local-infer"])
def test_watchdog_ends_a_process_that_hangs(box: Container, unit: str) -> None:
    drop_in = add_drop_in(box, unit, "watchdog", FAST_WATCHDOG)
    box.do("systemctl", "daemon-reload")
    box.do("systemctl", "restart", unit)
    pid = show(box, unit, "MainPID")
    time.sleep(8)  # longer than the watchdog's limit: a daemon that works is left alone
    assert show(box, unit, "MainPID") == pid
    box.do("kill", "-STOP", pid)
    eventually(lambda: restarted(box, unit, pid))
    assert "Watchdog timeout" in journal(box, unit)
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


@pytest.mark.parametrize(
    ("unit", "file"),
    [
        ("nearpath", "nearpath"),
        ("dnsd", "dnsd"),
        ("probe-agent", "agent"),
        ("syncd", "syncd"),
        ("local-infer", "local-infer"),
    ],
)
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


def test_mirror_is_copied_and_says_so(box: Container) -> None:
    eventually(lambda: mirrored(box))
    assert box.do("stat", "-c", "%a", "/srv/mirror/t/shared").stdout.strip() == "2775"
    told = box.do("runuser", "-u", "nearpath-sync", "--", "/opt/nearpath/bin/syncd", "pull", "t")
    assert (told.returncode, told.stdout) == (0, "t is current\n"), told.stderr
    refused = box.do("runuser", "-u", "nearpath-agent", "--", "/opt/nearpath/bin/syncd", "status")
    assert (refused.returncode, "no permission" in refused.stderr) == (1, True), refused.stderr
    hints = box.do("runuser", "-u", "nearpath-sync", "--", "/opt/nearpath/bin/syncd", "check-config", "--strict")
    assert hints.returncode == 0, hints.stdout + hints.stderr


def test_mirror_goes_on_after_kill_9(box: Container) -> None:
    for i in range(200):
        (box.tree / f"srv/origin/t/new{i}").write_bytes(b"%d" % i * 100_000)
    old = show(box, "syncd", "MainPID")
    box.do("systemctl", "kill", "--kill-who=main", "-s", "KILL", "syncd")
    (box.tree / "srv/origin/t/late").write_text("written while it was down")
    eventually(lambda: restarted(box, "syncd", old))
    eventually(lambda: mirrored(box))


def test_mirror_with_fanotify(box: Container) -> None:
    """With the drop-in that the unit itself shows in a comment."""
    probe = "from syncd.source.io_fanotify import fanotify_problem; print(fanotify_problem(b'/srv'))"
    # As a unit of the container, behind nspawn's own filter of system calls.
    probed = box.do("systemd-run", "--wait", "--pipe", "-q", "/opt/nearpath/bin/python", "-c", probe)
    assert probed.returncode == 0, probed.stderr
    if problem := probed.stdout.strip():
        pytest.skip(f"not even root has fanotify in this container: {problem}")
    shown = (box.tree / "etc/systemd/system/syncd.service").read_text()
    lines = re.findall(
        r"(?m)^#   (\[Service\]|PrivateUsers.*|AmbientCap.*|CapabilityB.*|SystemCallFilter=fanotify.*)$", shown
    )
    assert len(lines) == 6, lines  # [Service] stands in the comment on ReadWritePaths as well
    file = box.tree / "etc/nearpath/syncd.yaml"
    good = file.read_text()
    own = box.tree / "srv/own"
    own.mkdir()
    file.write_text(good + "  own: {path: /srv/own, watch: fanotify}\n")
    drop_in = add_drop_in(box, "syncd", "fanotify", "\n".join(lines[1:]) + "\n")
    box.do("systemctl", "daemon-reload")
    try:
        assert box.do("systemctl", "restart", "syncd").returncode == 0, journal(box, "syncd")

        def told() -> dict[str, object]:
            done = box.do("runuser", "-u", "nearpath-sync", "--", "/opt/nearpath/bin/syncd", "status", "--json")
            return dict(json.loads(done.stdout)["trees"]["own"])

        eventually(lambda: told()["state"] == "ready")
        assert told()["watch"] == "fanotify", journal(box, "syncd")
        (own / "below").mkdir()
        (own / "below/file").write_text("x")
        eventually(lambda: told()["entries"] == 3)
        assert mirrored(box)
    finally:
        file.write_text(good)
        drop_in.unlink()
        box.do("systemctl", "daemon-reload")
        box.do("systemctl", "restart", "syncd")


def test_mirror_reloads_on_sighup(box: Container) -> None:
    file = box.tree / "etc/nearpath/syncd.yaml"
    good, pid = file.read_text(), show(box, "syncd", "MainPID")
    file.write_text(good.replace("poll: 1s", "pol: 1s"))
    try:
        box.do("systemctl", "reload", "syncd")
        eventually(lambda: "old configuration" in show(box, "syncd", "StatusText"))
        (box.tree / "srv/origin/t/meanwhile").write_text("x")
        eventually(lambda: mirrored(box))
    finally:
        file.write_text(good.replace("poll: 1s", "poll: 2s"))
    box.do("systemctl", "reload", "syncd")
    eventually(lambda: "old configuration" not in show(box, "syncd", "StatusText"))
    assert show(box, "syncd", "MainPID") == pid
    (box.tree / "srv/origin/t/after").write_text("x")
    eventually(lambda: mirrored(box))


def test_gateway_of_infer_answers_on_the_box(box: Container) -> None:
    """Models run under the hardening: in the gateway itself, and in its child, which has no more rights than it."""
    eventually(lambda: ask_gateway(box, "How do I change my password?")[0] == 200)
    status, degraded, answer = ask_gateway(box, "How do I change my password?")
    assert (status, degraded.split(";")[0], answer["model"]) == (200, "retrieval", "local/faq")
    status, degraded, answer = ask_gateway(box, "tell me a story")
    assert (status, degraded.split(";")[0], answer["model"]) == (200, "generation", "local/tiny"), journal(
        box, "local-infer"
    )
    assert SAID in json.dumps(answer, ensure_ascii=False)
    (child,) = generators(box)
    of_child = box.do("cat", f"/proc/{child}/status", f"/proc/{child}/oom_score_adj").stdout
    of_gateway = box.do("cat", f"/proc/{show(box, 'local-infer', 'MainPID')}/status").stdout
    for kind in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp"):
        found = [re.findall(rf"(?m)^{kind}:\s+(.*)$", text) for text in (of_child, of_gateway)]
        assert found[0] == found[1] != [], kind
    assert of_child.endswith("\n800\n")
    assert box.do("ps", "-o", "ni=", "-p", child).stdout.strip() == "5"


def test_gateway_of_infer_outlives_its_child(box: Container) -> None:
    pid, (child,) = show(box, "local-infer", "MainPID"), generators(box)
    box.do("kill", "-KILL", child)
    eventually(lambda: ask_gateway(box, "tell me a story")[1].startswith("generation;"))
    assert show(box, "local-infer", "MainPID") == pid
    assert generators(box) not in ([], [child])


def test_gateway_of_infer_reloads_on_sighup(box: Container) -> None:
    file, pid = box.tree / "etc/nearpath/local-infer.yaml", show(box, "local-infer", "MainPID")
    file.write_text(GATEWAY.replace("give_up", "give_upp"))
    try:
        box.do("systemctl", "reload", "local-infer")
        eventually(lambda: "give_upp" in journal(box, "local-infer"))
        assert ask_gateway(box, "How do I change my password?")[0] == 200
        file.write_text(GATEWAY.replace("anonymous: true", f"keys: {{web: {{token_sha256: {'0' * 64}}}}}"))
        box.do("systemctl", "reload", "local-infer")
        eventually(lambda: ask_gateway(box, "How do I change my password?")[0] == 401)
    finally:
        file.write_text(GATEWAY)
    box.do("systemctl", "reload", "local-infer")
    eventually(lambda: ask_gateway(box, "How do I change my password?")[0] == 200)
    assert show(box, "local-infer", "MainPID") == pid


@pytest.mark.parametrize("unit", [*UNITS[1:], UNITS[0]])
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
    assert sum(line.startswith("same") for line in lines) == 8, lines


@pytest.mark.parametrize("unit", UNITS)
def test_nothing_was_swallowed(box: Container, unit: str) -> None:
    assert "Traceback" not in journal(box, unit)
