"""`local-infer bench`: a run that starts all it needs, a run against a running gateway, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from core.errors import NearpathError
from core.io_state import hold_state_dir
from local_infer.load.io_filling import _fill
from local_infer.load.io_load import Load, Plan, Run
from local_infer.load.io_processes import Watched, pid_of
from local_infer.load.io_report import as_json
from local_infer.load.io_upstream import Upstream
from local_infer.load.shots import Habits, Shooter
from local_infer.main import app
from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import MockUpstream, Reply


async def run(url: str, plan_seconds: float = 0.7, rate: float = 60.0, leave: float = 0.0) -> Run:
    rng = random.Random(4)
    plan = Plan(url, KEY, plan_seconds, rate, 32, leave=leave)
    return await Load(plan, Shooter("mixed", "bench", rng), rng, Watched(os.getpid()), lambda _run, _s: None).run()


async def test_every_kind_through_a_gateway(tmp_path: Path) -> None:
    played = Upstream(0, random.Random(1))
    await played.listen()
    stand_in = MockUpstream()
    stand_in.port = played.port
    async with running_gateway(tmp_path, {"east": stand_in}) as daemon:
        paced = await run(url_of(daemon), leave=0.3)
        fast = await run(url_of(daemon), 0.3, rate=0.0)
    for done in (paced, fast):
        assert set(done.all.outcomes) <= {"good", "left"}, done.whys
        assert done.all.outcomes["good"] > 0
    told = as_json(paced, {"profile": "mixed"})
    assert told["errors"] == told["lost"] == told["crossed"] == 0
    assert sum(told["steps"].values()) == pytest.approx(1, abs=0.001)
    assert sum(one["count"] for one in told["kinds"].values()) == told["count"]
    assert told["gateway"]["cpu_us_per_request"] > 0
    assert told["whole_ms"]["p50"] >= told["first_ms"]["p50"] > 0


async def test_answers_of_others_and_none_are_found() -> None:
    # Straight at an upstream that says the same to everybody, then at nobody.
    async with MockUpstream(always=Reply(text="the same")) as wrong:
        done = await run(wrong.url, 0.2)
    assert done.all.bad > 0
    assert "crossed" in done.all.outcomes
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        done = await run(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", 0.2)
    assert set(done.all.outcomes) == {"lost"}
    assert "ClientConnectorError" in done.whys[0]


async def test_what_goes_wrong_while_stores_are_filled_is_told(tmp_path: Path) -> None:
    rng = random.Random(4)
    async with MockUpstream(always=Reply(text="the same")) as wrong:
        load = Load(Plan(wrong.url, KEY, 0.2, 0.0, 4), Shooter("faq", "bench", rng), rng, None, lambda _run, _s: None)
        filled = await _fill(load, f"unix:{tmp_path}", Watched(os.getpid()))  # that says nothing of its stores
    assert filled.bad > 0
    assert filled.whys[0].startswith("crossed faq")
    assert (filled.ratios, filled.broken_off) == ({}, False)


def test_a_run_that_starts_all_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("local_infer.load.io_bench._FILL_MOST_S", 0.5)
    monkeypatch.setattr("local_infer.load.io_bench._HABITS", Habits(resume=0.3, keep=0.7, look_up=0.3))
    # Faults begin with a good time that is longer than this.
    arguments = ["bench", "--self", "--faults", "--seconds", "1", "--profile", "mixed", "--rate", "100", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["bench"], told["errors"], told["lost"], told["crossed"]) == ("infer-load", 0, 0, 0)
    assert told["gateway"]["cpu_cores"] > 0
    assert told["filling"]["requests"] > 0
    assert set(told["filling"]["ratios"]) == {
        "cache memory", "cache disk", "cache keys", "cache follow", "retrieval verified", "retrieval wordings"
    }  # fmt: skip
    assert 0 < told["filling"]["ratios"]["cache memory"] < 1
    assert "not full: " in result.stderr
    assert sum(told["steps"].values()) == pytest.approx(1, abs=0.001)
    assert list(tmp_path.iterdir()) == []


async def test_a_run_in_which_all_was_refused_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_INFER_KEY", "np-wrong")
    async with MockUpstream() as upstream, running_gateway(tmp_path, {"east": upstream}) as daemon:
        arguments = ["--url", url_of(daemon), "--profile", "faq", "--seconds", "0.2", "--rate", "50", "--no-check"]
        bench = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "local_infer.main", "bench", *arguments, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _out, said = await bench.communicate()
    assert bench.returncode == 1
    assert said.startswith(b"no request was answered: ")
    assert b" 401 invalid_api_key: look at --url, key and --model" in said


def test_whose_process_it_is(tmp_path: Path) -> None:
    with pytest.raises(NearpathError, match=r"no gateway runs on .* \(No such file"):
        pid_of(tmp_path)
    held = hold_state_dir(tmp_path, "test")
    assert pid_of(tmp_path) == os.getpid()
    os.close(held)
    with pytest.raises(NearpathError, match="no gateway runs on"):
        pid_of(tmp_path)
    assert Watched(os.getpid()).rss_mb() > 10


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--self", "--profile", "none"], "there is no profile"),
        (["--url", "http://127.0.0.1:1/v1", "--faults"], "add --self"),
        ([], "give either --self"),
        (["--url", "http://127.0.0.1:1/v1", "--key-file", "none"], "cannot read the key"),
    ],
)
def test_what_it_refuses(arguments: list[str], what: str) -> None:
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(result.exception, NearpathError)
    assert what in str(result.exception)
