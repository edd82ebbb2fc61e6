"""Hooks: run without a shell, told of the tree, ended after their time, with everything they started."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from syncd.io_hooks import MAX_SHOWN, run_hook
from tests.syncd.nodes import Node, running


def hook(*command: str, timeout_s: float = 20.0, **environment: str) -> str:
    return asyncio.run(run_hook(command, environment, timeout_s))


def script(text: str) -> Sequence[str]:
    return sys.executable, "-c", text


def test_success_says_nothing(tmp_path: Path) -> None:
    place = tmp_path / "said"
    assert hook("sh", "-c", 'printf %s "$NEARPATH_TREE" > "$1"', "sh", str(place), NEARPATH_TREE="debian") == ""
    assert place.read_text() == "debian"


def test_words_are_no_shell(tmp_path: Path) -> None:
    assert hook("test", "$(touch x); *", "=", "$(touch x); *") == ""


def test_failure_is_told_with_the_end_of_what_it_said() -> None:
    assert hook("sh", "-c", "echo first; echo no room >&2; exit 3") == "sh ended with 3: first\nno room"
    told = hook(*script("print('x' * 9000, 'end'); raise SystemExit(1)"))
    assert told.endswith("end")
    assert len(told) < MAX_SHOWN + len(sys.executable) + 30


def test_a_command_that_is_not_there() -> None:
    assert hook("/no/such/hook") == "/no/such/hook cannot be started: No such file or directory"


def test_it_is_ended_after_its_time_with_all_it_started(tmp_path: Path) -> None:
    place = tmp_path / "pid"
    told = hook("sh", "-c", f"sleep 600 & echo $! > {place}; wait", timeout_s=0.5)
    assert told == "sh took more than 0.5 s and was ended"
    stat = Path(f"/proc/{place.read_text().strip()}/stat")
    until_s = time.monotonic() + 10.0

    def is_over() -> bool:
        try:
            # Where nobody reaps orphans it stays as a zombie.
            return stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return True

    while not is_over():  # a signal that was sent need not have come to it yet
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_around_a_publish(tmp_path: Path) -> None:
    origin, copy = Node("origin", tmp_path / "origin"), Node("copy", tmp_path / "copy")
    origin.configure(children=["copy"])
    origin.tree.mkdir()
    (origin.tree / "one").write_text("1")
    allow, done = tmp_path / "allow", tmp_path / "done"
    hooks = {
        "before": ["test", "-e", str(allow)],
        "after": ["sh", "-c", f'echo "$NEARPATH_TREE $NEARPATH_PATH $NEARPATH_DELETES" >> {done}; exit 5'],
    }
    copy.configure([origin], key=origin.key(), hooks=hooks)
    with running(origin, copy):
        copy.until(lambda: "hook before publishing" in copy.status()["why"], "the hook puts it off")
        assert not (copy.tree / "one").exists()
        allow.touch()
        copy.ask("POST", "/v1/pull", {"tree": "t"})
        copy.until(lambda: copy.status()["root_hash"], "it is published")
        assert "ended with 5" in copy.status()["hook_failed"], "reported, and nothing more"
    assert done.read_text().splitlines()[0] == f"t {copy.tree} 0"
    assert os.listdir(copy.tree) == ["one"]
