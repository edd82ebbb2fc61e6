"""`make run` as a new user tries it: the printed lines are run as they stand, and show what is promised."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import NearpathError
from core.io_state import hold_state_dir
from nearpath.demo.files import write_files
from nearpath.demo.place import USUAL_PORTS, Place
from nearpath.demo.run import run_demo
from tests.nearpath.daemon import ROOT, wait_until

pytestmark = [
    pytest.mark.skipif(shutil.which("dig") is None, reason="needs the program dig (Debian package bind9-dnsutils)"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs the program curl"),
]


class Demo:
    """The running demo and the command lines that it printed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "demo.txt"
        with self.output.open("wb") as stream:
            argv = [sys.executable, "-m", "nearpath.main", "demo", "--dir", str(folder / "run"), "--any-port"]
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=ROOT)

    def lines(self, word: str) -> list[str]:
        """The printed command lines that hold a word, without their remarks."""
        text = self.output.read_text()
        return [line.split("    #")[0].strip() for line in text.splitlines() if word in line and line.startswith("   ")]

    def sh(self, line: str) -> str:
        """Run a printed line in a shell, in the folder where the user stands."""
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
        return (done.stdout + done.stderr).strip()


def test_what_still_runs_on_an_earlier_demo_keeps_its_files(tmp_path: Path) -> None:
    place = Place(tmp_path, dict.fromkeys(USUAL_PORTS, 1))
    for state in ("state", "sync-origin/state"):
        lock = hold_state_dir(tmp_path / state, "test")
        with pytest.raises(NearpathError, match=rf"process {os.getpid()} still runs on .*/{state}.*`kill"):
            write_files(place)
        os.close(lock)
    write_files(place)
    assert not (tmp_path / "state").exists()


def test_a_second_demo_in_one_folder_says_which_process_has_it(tmp_path: Path) -> None:
    lock = hold_state_dir(tmp_path, "test")
    with pytest.raises(NearpathError, match=rf"another demo runs in .*, process {os.getpid()}: .*--dir FOLDER"):
        run_demo(tmp_path, any_port=True)
    os.close(lock)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    running = Demo(tmp_path_factory.mktemp("demo"))
    try:
        wait_until(lambda: "end: Ctrl-C" in running.output.read_text(), 90, "the demo is up", running.output)
        yield running
    finally:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(20) == 0


def test_the_printed_dig_lines_show_a_different_mirror_for_each_subnet(demo: Demo) -> None:
    digs = [line for line in demo.lines("+subnet=") if "www." in line]
    promised = re.findall(r"-> (\S+) \((\w+)\)", demo.output.read_text())
    assert len(digs) == len(promised) == 3
    assert [demo.sh(line) for line in digs] == [address for address, _mirror in promised]
    assert len(set(promised)) == 3


def test_status_and_explain_say_why(demo: Demo) -> None:
    status, explain = demo.lines("nearpath status")[0], demo.lines("nearpath explain")[0]
    shown = demo.sh(status)
    for word in ("tokyo", "frankfurt", "virginia", "asia", "europe", "america", "live", "ms"):
        assert word in shown
    why = demo.sh(explain)
    assert "tokyo first" in why
    assert "slower by" in why
    assert "quality: live" in why


def test_a_published_file_is_on_every_mirror_a_moment_later(demo: Demo) -> None:
    published = demo.sh(demo.lines("date >")[0])
    assert published == (demo.folder / "run" / "content" / "now.txt").read_text().strip()
    for mirror in ("tokyo", "frankfurt", "virginia"):
        assert (demo.folder / "run" / f"content-{mirror}" / "now.txt").read_text().strip() == published
    status = demo.sh(demo.lines("syncd status")[0])
    assert "current" in status, status


def test_a_gateway_that_is_cut_off_says_what_it_answers_and_dns_leaves_it(demo: Demo) -> None:
    ask, cut, api = (demo.lines(word)[0] for word in ("--json", "/cut", "api.mirror.example"))
    tokyo = demo.sh(api)
    whole = demo.sh(ask)
    assert "The API far away answers" in whole
    assert "X-Degraded" not in whole
    assert "cannot reach" in demo.sh(cut)
    degraded = demo.sh(ask)
    assert "X-Degraded: retrieval" in degraded
    assert '"model":"local/faq"' in degraded
    wait_until(lambda: demo.sh(api) not in ("", tokyo), 20, "DNS leaves the gateway", demo.output)
    assert "reaches the API again" in demo.sh(cut.replace("-X POST", "-X DELETE"))


def test_a_slow_mirror_and_a_stale_one_are_left_and_taken_back(demo: Demo) -> None:
    asia, europe, curl = (demo.lines(word)[0] for word in ("198.51.100.0/24", "192.0.2.0/24", "curl -X POST"))
    tokyo, frankfurt = demo.sh(asia), demo.sh(europe)
    virginia = re.findall(r"-> (\S+) \(virginia\)", demo.output.read_text())[0]
    freeze = demo.lines("kill -STOP")[0]
    assert demo.sh(freeze) == ""
    assert "300 ms" in demo.sh(curl)
    wait_until(lambda: demo.sh(asia) == virginia, 15, "asia moves to the mirror that is now fastest", demo.output)
    slow, stale = demo.lines("nearpath explain")
    why = demo.sh(slow)
    assert "virginia first" in why
    assert re.search(r"tokyo .*slower by \d+\.\d ms", why), why
    demo.sh(curl.replace("-X POST", "-X DELETE"))
    wait_until(lambda: demo.sh(europe) == virginia, 30, "europe moves to a mirror with fresh files", demo.output)
    why = demo.sh(stale)
    assert re.search(r"frankfurt .*fresh: content lags \d+ s, more than max_lag 15 s", why), why
    demo.sh(freeze.replace("-STOP", "-CONT"))
    wait_until(lambda: demo.sh(asia) == tokyo, 40, "tokyo is answered again once it has lasted", demo.output)
    wait_until(lambda: demo.sh(europe) == frankfurt, 40, "frankfurt is answered again", demo.output)


def test_a_process_that_ends_is_told_of(demo: Demo) -> None:
    pid = int((demo.folder / "run" / "gateway-tokyo.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    told = f"gateway-tokyo has ended (SIGKILL), the others go on: its log is {demo.folder / 'run'}/gateway-tokyo.log"
    wait_until(lambda: told in demo.output.read_text().replace("\n", ""), 10, "it is told", demo.output)


def test_a_typo_in_the_configuration_is_named_and_the_old_one_runs_on(demo: Demo) -> None:
    config = demo.folder / "run" / "nearpath.yaml"
    good = config.read_text()
    config.write_text(good.replace("timeout:", "timeuot:"))
    said = demo.sh(demo.lines("nearpath reload")[0].partition("then: ")[2])
    assert re.search(r"nearpath\.yaml:\d+: checks\.web\.timeuot: is not a known key", said), said
    assert demo.sh(demo.lines("+subnet=192.0.2.0/24")[0])
    config.write_text(good)
