"""The whole agent against a small real appliance: probes, delivery, outages, kill -9, tokens, reload."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from core.config import HttpCheck, TcpCheck
from core.errors import NearpathError
from core.messages import SampleReport, Target
from probes.io_agent import Agent
from tests.probes.netspace import ROOT
from tests.probes.small_appliance import NAME, TOKEN, SmallAppliance, make_config, until, write_config


def tcp_target(port: int, mirror: str = "m1", interval: str = "100ms", timeout: str = "50ms") -> Target:
    check = TcpCheck(kind="tcp", port=port, interval=interval, timeout=timeout)
    return Target(mirror, "tcp", 4, "127.0.0.1", "cdn.example.", check)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent in this process tries again soon; real processes keep their own waits."""
    monkeypatch.setattr("probes.report.BACKOFF_MAX_S", 0.5)


@pytest.fixture
def mirror() -> Iterator[int]:
    """The port of a mirror that takes connections (the kernel does; their resets clear the backlog)."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        yield server.getsockname()[1]


@asynccontextmanager
async def appliance_with(*targets: Target) -> AsyncIterator[SmallAppliance]:
    appliance = SmallAppliance(targets)
    await appliance.start()
    try:
        yield appliance
    finally:
        await appliance.stop()


@asynccontextmanager
async def agent_with(folder: Path, url: str, **more: object) -> AsyncIterator[Agent]:
    agent = await Agent.start(make_config(folder, url, **more))
    try:
        yield agent
    finally:
        await agent.stop()


async def test_good_and_lost_probes_of_each_kind_reach_the_appliance(tmp_path: Path, mirror: int) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="x", headers={"endpoint-load-metrics": "TEXT application_utilization=0.4"})

    app = web.Application()
    app.add_routes([web.get("/", page)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    web_port = runner.addresses[0][1]
    how = HttpCheck(kind="http", port=web_port, interval="100ms", timeout="100ms")
    with socket.socket() as shut:
        shut.bind(("127.0.0.1", 0))
        targets = [
            tcp_target(mirror),
            tcp_target(shut.getsockname()[1], "m2"),
            Target("m3", "web", 4, "127.0.0.1", "cdn.example.", how),
            Target("m4", "web", 4, "127.0.0.1", "cdn.example.", how.model_copy(update={"path": "/none"})),
        ]
        async with appliance_with(*targets) as appliance, agent_with(tmp_path, appliance.url):
            await until(lambda: {s.mirror for s in appliance.samples} == {"m1", "m2", "m3", "m4"})
            await until(lambda: len(appliance.samples) > 40)
    await runner.cleanup()
    by_mirror = {sample.mirror: sample for sample in appliance.samples}
    assert by_mirror["m1"].loss == ""
    assert by_mirror["m1"].rtt_s is not None
    assert (by_mirror["m2"].rtt_s, by_mirror["m2"].loss) == (None, "refused")
    assert by_mirror["m3"].load_ratio == 0.4
    assert by_mirror["m4"].loss == "status 404"
    assert all(s.age_by == "boot" and s.age_s < 30 for s in appliance.samples)
    assert appliance.holes() == []
    assert appliance.repeats == 0


async def test_the_appliance_goes_away_and_comes_back(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror)) as appliance, agent_with(tmp_path, appliance.url) as agent:
        await until(lambda: len(appliance.samples) >= 5)
        await appliance.stop()
        await until(lambda: len(agent._spool) >= 20)
        assert any("cannot be reached" in reason for reason in agent.not_ready())
        await appliance.start()
        await until(lambda: len(appliance.samples) >= 30)
        await until(lambda: agent.not_ready() == [])
    assert appliance.holes() == []
    assert appliance.repeats == 0
    # The age of what waited tells how long it did, so the appliance can date it.
    first_after = next(r for r in appliance.reports if len(r.samples) >= 15)
    ages = [sample.age_s for sample in first_after.samples]
    assert ages == sorted(ages, reverse=True)
    assert ages[0] - ages[-1] > 0.5


async def test_lost_acknowledgements_lead_to_the_same_numbers_again(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror)) as appliance, agent_with(tmp_path, appliance.url):
        appliance.lose_acks = 3
        await until(lambda: appliance.lose_acks == 0)
        await until(lambda: len(appliance.samples) >= 20)
    assert appliance.repeats >= 1
    assert appliance.holes() == []
    (incarnation,) = appliance.stored
    sent = [(s.sequence, s.mirror, s.rtt_s) for report in appliance.reports for s in report.samples]
    kept = {s.sequence: (s.sequence, s.mirror, s.rtt_s) for s in appliance.stored[incarnation].values()}
    assert all(kept[sequence[0]] == sequence for sequence in sent)


async def test_a_stop_delivers_what_is_there(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror)) as appliance:
        async with agent_with(tmp_path, appliance.url, deliver_every="60s") as agent:
            await until(lambda: agent._spool.last_sequence >= 10)
            last = agent._spool.last_sequence
        assert appliance.last[agent._spool.incarnation] >= last
    assert appliance.holes() == []


async def test_a_refused_token_keeps_the_samples_until_it_is_right(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror)) as appliance, agent_with(tmp_path, appliance.url) as agent:
        await until(lambda: len(appliance.samples) >= 3)
        appliance.token = "another-token"
        await until(lambda: appliance.refused >= 2 and len(agent._spool) >= 10)
        assert any("refuses this agent's token" in reason for reason in agent.not_ready())
        (tmp_path / "token").write_text("another-token")
        await until(lambda: len(appliance.samples) >= 20)
    assert appliance.holes() == []


async def test_busy_and_broken_answers_lose_nothing(tmp_path: Path, mirror: int) -> None:
    answers = [
        lambda: web.Response(status=503, headers={"Retry-After": "1"}),
        lambda: web.Response(status=500),
        lambda: web.Response(text="<html>captive portal</html>"),
        lambda: web.json_response({"acked": 0}),
        lambda: web.Response(body=b"x" * (1 << 20)),
    ]
    given: list[int] = []

    def answer(_report: SampleReport) -> web.Response | None:
        if len(given) < len(answers):
            given.append(len(given))
            return answers[given[-1]]()
        return None

    async with appliance_with(tcp_target(mirror)) as appliance:
        appliance.answer_samples = answer
        async with agent_with(tmp_path, appliance.url):
            await until(lambda: len(given) == len(answers))
            await until(lambda: len(appliance.samples) >= 10)
    assert appliance.holes() == []
    assert appliance.repeats == 0


async def test_a_sample_that_is_never_taken_does_not_block_the_others(tmp_path: Path, mirror: int) -> None:
    def answer(report: SampleReport) -> web.Response | None:
        return web.Response(status=400) if any(s.sequence == 7 for s in report.samples) else None

    async with appliance_with(tcp_target(mirror)) as appliance:
        appliance.answer_samples = answer
        async with agent_with(tmp_path, appliance.url) as agent:
            await until(lambda: max(appliance.last.values(), default=0) >= 20)
            assert agent._spool.dropped == 1
    assert appliance.holes() == [7]


async def test_a_spool_that_is_behind_the_appliance_counts_anew(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror)) as appliance, agent_with(tmp_path, appliance.url) as agent:
        old = agent._spool.incarnation
        appliance.last[old] = 1_000_000  # as if the agent's disk had been restored from a backup
        await until(lambda: agent._spool.incarnation != old)
        await until(lambda: len(appliance.stored.get(agent._spool.incarnation, {})) >= 10)
        new = agent._spool.incarnation
    assert appliance.holes() == []
    assert 1 in appliance.stored[new]


async def test_targets_are_kept_for_a_start_without_the_appliance(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror)) as appliance:
        async with agent_with(tmp_path, appliance.url):
            await until(lambda: len(appliance.samples) >= 3)
        await appliance.stop()
        async with agent_with(tmp_path, appliance.url) as agent:
            await until(lambda: len(agent._spool) >= 5)
        await appliance.start()
        appliance.fetches.clear()
        async with agent_with(tmp_path, appliance.url):
            await until(lambda: appliance.fetches)
            await until(lambda: len(appliance.samples) >= 10)
        assert appliance.fetches[0] == 304
    assert appliance.holes() == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"etag": 1}', b"\xff" * 1000])
async def test_kept_targets_that_are_damaged_are_fetched_anew(tmp_path: Path, mirror: int, content: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "targets.json").write_bytes(content)
    async with appliance_with(tcp_target(mirror)) as appliance, agent_with(tmp_path, appliance.url):
        await until(lambda: len(appliance.samples) >= 1)
    assert appliance.fetches[0] == 200


async def test_a_list_that_changes_is_followed(tmp_path: Path, mirror: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.io_report.FETCH_EVERY_S", 0.1)
    async with appliance_with(tcp_target(mirror)) as appliance, agent_with(tmp_path, appliance.url):
        await until(lambda: {s.mirror for s in appliance.samples} == {"m1"})
        appliance.set_targets([tcp_target(mirror, "m2")])
        await until(lambda: 304 in appliance.fetches and appliance.samples[-1].mirror == "m2")
        seen = len(appliance.samples)
        await until(lambda: len(appliance.samples) > seen + 5)
    assert {sample.mirror for sample in appliance.samples[seen:]} == {"m2"}


async def test_metrics_and_health(tmp_path: Path, mirror: int) -> None:
    listen = {"listen": ["127.0.0.1:0"]}
    async with (
        appliance_with(tcp_target(mirror)) as appliance,
        agent_with(tmp_path, appliance.url, metrics=listen) as agent,
        aiohttp.ClientSession(f"http://{agent.health_addresses[0]}") as session,
    ):
        await until(lambda: len(appliance.samples) >= 5)
        async with session.get("/metrics") as response:
            text = await response.text()
        async with session.get("/readyz") as response:
            assert response.status == 200
        assert agent.is_alive()
        await appliance.stop()
        await until(lambda: agent.not_ready())
        async with session.get("/readyz") as response:
            assert response.status == 503
    found = dict(re.findall(r"(?m)^(nearpath_\S+) (\S+)$", text))
    assert float(found['nearpath_probe_total{kind="tcp",result="ok"}']) >= 5
    assert float(found['nearpath_probe_rtt_seconds_count{kind="tcp"}']) >= 5
    assert float(found["nearpath_agent_delivered_samples_total"]) >= 5
    assert float(found["nearpath_agent_targets"]) == 1
    assert float(found["nearpath_agent_spool_works"]) == 1
    assert "m1" not in text


async def test_two_agents_cannot_share_a_spool(tmp_path: Path) -> None:
    async with agent_with(tmp_path, "http://127.0.0.1:1"):
        with pytest.raises(NearpathError, match="another agent runs on state_dir"):
            await Agent.start(make_config(tmp_path, "http://127.0.0.1:1"))
    async with agent_with(tmp_path, "http://127.0.0.1:1"):
        pass


async def test_a_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    await asyncio.to_thread(int)  # the executor's thread, which stays
    before = len(os.listdir("/proc/self/fd"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = {"listen": [f"127.0.0.1:{taken.getsockname()[1]}"]}
        with pytest.raises(NearpathError, match="cannot listen on"):
            await Agent.start(make_config(tmp_path, "http://127.0.0.1:1", metrics=listen))
    with pytest.raises(NearpathError, match="ca_file"):
        await Agent.start(make_config(tmp_path, "https://127.0.0.1:1", ca_file="none.pem"))
    assert len(os.listdir("/proc/self/fd")) == before
    async with agent_with(tmp_path, "http://127.0.0.1:1"):
        pass


async def test_reconfigure_refuses_what_needs_a_restart_and_takes_the_rest(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror)) as appliance, agent_with(tmp_path, "http://127.0.0.1:1") as agent:
        for more in ({"state_dir": "elsewhere"}, {"spool": {"max_samples": 2000}}):
            with pytest.raises(NearpathError, match="restart the agent"):
                await agent.reconfigure(make_config(tmp_path, appliance.url, **more))
        with pytest.raises(NearpathError, match="ca_file"):
            await agent.reconfigure(make_config(tmp_path, "https://127.0.0.1:1", ca_file="none.pem"))
        await agent.reconfigure(make_config(tmp_path, appliance.url, source={"ipv4": "127.0.0.5"}, concurrency=1))
        await until(lambda: len(appliance.samples) >= 3)


async def test_stop_leaves_nothing_behind(tmp_path: Path, mirror: int) -> None:
    async with appliance_with(tcp_target(mirror), tcp_target(1, "m2")) as appliance:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with agent_with(tmp_path, appliance.url, metrics={"listen": ["127.0.0.1:0"]}):
                seen = len(appliance.samples)
                await until(lambda seen=seen: len(appliance.samples) > seen + 3)
        await until(lambda: len(os.listdir("/proc/self/fd")) <= before, "descriptors closed")
        await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name() in ("probe", "deliver", "fetch")])


# -- the real process


@contextmanager
def process_with(file: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "probes.main", "-c", str(file)], cwd=ROOT, stdout=stream, stderr=stream
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def ended(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 20)


async def test_kill_9_again_and_again_loses_nothing_and_doubles_nothing(tmp_path: Path, mirror: int) -> None:
    """With acknowledgements lost and the appliance away in between, every number is stored once and none is missing."""
    targets = [tcp_target(mirror, f"m{i}") for i in range(10)]
    file, log = write_config(tmp_path, ""), tmp_path / "log"
    async with appliance_with(*targets) as appliance:
        file = write_config(tmp_path, appliance.url)
        for turn in range(4):
            with process_with(file, log) as process:
                seen = len(appliance.samples)
                await until(lambda seen=seen: len(appliance.samples) > seen + 50, log.read_text())
                match turn:
                    case 0:
                        appliance.lose_acks = 5
                        await until(lambda: appliance.lose_acks == 0)
                    case 1:
                        await appliance.stop()
                        await asyncio.sleep(0.5)
                process.send_signal(signal.SIGKILL)
                await ended(process)
            if turn == 1:
                await appliance.start()
        with process_with(file, log) as process:
            seen = len(appliance.samples)
            await until(lambda: len(appliance.samples) > seen + 50, log.read_text())
            process.send_signal(signal.SIGTERM)
            assert await ended(process) == 0
    assert len(appliance.stored) == 1
    assert appliance.holes() == []
    assert TOKEN not in log.read_text()


async def test_a_bad_file_at_reload_changes_nothing_and_says_why(tmp_path: Path, mirror: int) -> None:
    log = tmp_path / "log"
    async with appliance_with(tcp_target(mirror)) as appliance:
        file = write_config(tmp_path, appliance.url)
        good = file.read_text()
        with process_with(file, log) as process:
            await until(lambda: len(appliance.samples) >= 3, "first samples")
            file.write_text(good.replace("name:", "nmae:"))
            process.send_signal(signal.SIGHUP)
            await until(lambda: "reload_failed" in log.read_text(), "reload refused")
            assert "nmae: is not a known key" in log.read_text()
            seen = len(appliance.samples)
            await until(lambda: len(appliance.samples) > seen + 3, "samples go on")
            file.write_text(good + "concurrency: 2\n")
            process.send_signal(signal.SIGHUP)
            await until(lambda: "reloaded" in log.read_text(), "reloaded")
            process.send_signal(signal.SIGTERM)
            assert await ended(process) == 0
    assert appliance.holes() == []


async def test_check_tells_good_from_bad(tmp_path: Path, mirror: int) -> None:
    async def check(file: Path) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "probes.main", "-c", str(file), "--check",
            cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        text, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, text.decode()

    async with appliance_with(tcp_target(mirror)) as appliance:
        _, text = await check(write_config(tmp_path, appliance.url))
        assert re.search(r"(?m)^ok   token: ", text)
        assert re.search(r"(?m)^ok   state_dir: ", text)
        assert re.search(r"(?m)^ok   appliance: .* gives 1 targets$", text)
        (tmp_path / "token").write_text("wrong")
        code, text = await check(write_config(tmp_path, appliance.url))
        assert code == 1
        assert re.search(r"(?m)^FAIL appliance: .*refuses this agent's token", text)
        assert not (tmp_path / "state").exists()
        code, text = await check(write_config(tmp_path, appliance.url, conucrrency=3))
        assert code == 78
        assert "conucrrency: is not a known key" in text


def test_the_name_is_sent(tmp_path: Path) -> None:
    assert make_config(tmp_path, "http://127.0.0.1:1").name == NAME
