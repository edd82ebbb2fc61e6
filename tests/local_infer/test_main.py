"""The `local-infer` command as systemd runs it: ready, watched, reloaded, drained; and its small commands."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from core.io_config_infer import read_infer_config
from core.io_http import bind_tcp, bound_address
from local_infer.io_check import _listens, check_all
from local_infer.main import main, new_key
from tests.local_infer.gateway import KEY, running_gateway, write_config
from tests.local_infer.mock_upstream import DONE, MockUpstream, Reply
from tests.tracked import ROOT

CHAT = {"model": "gpt-test", "messages": [{"role": "user", "content": "my private question"}]}


class Running:
    """The command as a process; `notes` is what it tells systemd."""

    def __init__(self, process: asyncio.subprocess.Process, notes: socket.socket, log: Path) -> None:
        self.process = process
        self.log = log
        self._notes = notes

    async def noted(self, start: str) -> str:
        """The next notification that begins so."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while True:
                text = (await loop.sock_recv(self._notes, 4096)).decode()
                if text.startswith(start):
                    return text

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Log lines of this event."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line.get("event") == event]

    @property
    def url(self) -> str:
        """Of the first address listened on, as last logged."""
        return f"http://{[*self.lines('started'), *self.lines('reloaded')][-1]['listen'][0]}/v1"

    async def ask(self, key: str = KEY, **more: Any) -> tuple[int, bytes]:
        """(status, body) of a chat."""
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(f"{self.url}/chat/completions", json={**CHAT, **more}) as response,
        ):
            return response.status, await response.read()


async def command(*arguments: str, **more: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "local_infer.main", *arguments, cwd=ROOT, **more)


@asynccontextmanager
async def running(file: Path, folder: Path) -> AsyncIterator[Running]:
    notes = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notes.setblocking(False)
    notes.bind(str(folder / "notify"))
    env = {**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "200000"}
    env.pop("WATCHDOG_PID", None)
    log = folder / "log"
    with log.open("wb") as stream:
        process = await command("run", "-c", str(file), "--log-json", env=env, stderr=stream)
    try:
        one = Running(process, notes, log)
        await one.noted("READY=1")
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        notes.close()


async def test_life(tmp_path: Path) -> None:
    async with MockUpstream(key="sk-upstream") as upstream:
        file = write_config(tmp_path, {"east": upstream}, access_log={"enabled": True})
        async with running(file, tmp_path) as daemon:
            await daemon.noted("WATCHDOG=1")
            assert (await daemon.ask())[0] == 200
            assert (await daemon.ask("other"))[0] == 401

            config = yaml.safe_load(file.read_text())
            config["keys"]["more"] = {"token_sha256": hashlib.sha256(b"other").hexdigest()}
            file.write_text(yaml.safe_dump(config))
            daemon.process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in await daemon.noted("RELOADING=1")
            await daemon.noted("READY=1")
            assert (await daemon.ask("other"))[0] == 200

            file.write_text("version: 1\nnonsense: true\n")
            daemon.process.send_signal(signal.SIGHUP)
            await daemon.noted("RELOADING=1")
            assert "reload failed" in await daemon.noted("READY=1")
            assert (await daemon.ask("other"))[0] == 200

            metrics = daemon.lines("started")[0]["metrics"][0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{metrics}/metrics") as response:
                    text = await response.text()
                async with session.get(f"http://{metrics}/readyz") as response:
                    assert response.status == 200
            assert 'local_infer_requests_total{endpoint="/chat/completions",status="401",step="none"} 1.0' in text

            # A stream under way ends properly although the daemon was told to stop.
            upstream.always = Reply(between_s=0.02)
            stream = asyncio.ensure_future(daemon.ask(stream=True))
            await upstream.wait_for(4)
            daemon.process.send_signal(signal.SIGTERM)
            await daemon.noted("STOPPING=1")
            status, body = await stream
            assert (status, body.endswith(DONE)) == (200, True)
            async with asyncio.timeout(10):
                assert await daemon.process.wait() == 0
        access = daemon.lines("access")
        assert [line["status"] for line in access] == [200, 401, 200, 200, 200]
        assert access[0]["completion_tokens"] == 7
        logged = daemon.log.read_text()
        for secret in ("private question", "this is the upstream", KEY, "sk-upstream"):
            assert secret not in logged


async def test_second_one_on_a_state_dir(tmp_path: Path) -> None:
    async with MockUpstream() as upstream:
        file = write_config(tmp_path, {"east": upstream})
        async with running_gateway(tmp_path, {"east": upstream}):
            second = await command("run", "-c", str(file), stderr=asyncio.subprocess.PIPE)
            assert second.stderr is not None
            assert b"another local-infer runs" in await second.stderr.read()
            assert await second.wait() == 1


def test_wrong_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("version: 2\n")
    monkeypatch.setattr(sys, "argv", ["local-infer", "check-config", "-c", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 78
    assert "problems in the configuration" in capsys.readouterr().err


async def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with MockUpstream(key="sk-upstream") as upstream:
        file = write_config(tmp_path, {"east": upstream})
        assert await check_all(read_infer_config(file)) == 0
        assert "FAIL" not in capsys.readouterr().out
        assert not (tmp_path / "state").exists()

        (tmp_path / "east.key").chmod(0o644)
        upstream.key = "sk-new"
        assert await check_all(read_infer_config(file)) == 1
        text = capsys.readouterr().out
        assert "has mode 0644" in text
        assert "answers 401: it does not take the key" in text
        assert "sk-" not in text

        await upstream.down()
        assert await check_all(read_infer_config(file)) == 1
        assert "cannot be asked: connect" in capsys.readouterr().out


async def test_check_beside_the_gateway_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with MockUpstream() as upstream, running_gateway(tmp_path, {"east": upstream}) as daemon:
        own = daemon.addresses[0]
        file = write_config(tmp_path, {"east": upstream}, listen=[own])
        assert await check_all(read_infer_config(file)) == 0
        assert f"{own} is in use by the gateway that runs (pid {os.getpid()})" in capsys.readouterr().out
        # An address is no less taken because a gateway runs: only its own are free for it.
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
        assert (_listens(os.getpid(), own), _listens(other.pid, own)) == (True, False)
        await other.communicate(b"\n")
        file = write_config(tmp_path, {"east": upstream}, listen=[own], state_dir=str(tmp_path / "other"))
        assert await check_all(read_infer_config(file)) == 1
        assert "another program has the port" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"])
def test_who_listens(address: str) -> None:
    with bind_tcp(address) as sock:
        assert _listens(os.getpid(), bound_address(sock))
        other = {"127.0.0.1:0": "127.0.0.2", "[::1]:0": "[::]", "0.0.0.0:0": "127.0.0.1"}[address]
        assert not _listens(os.getpid(), f"{other}:{sock.getsockname()[1]}")


def test_new_key(capsys: pytest.CaptureFixture[str]) -> None:
    new_key()
    words = capsys.readouterr().out.split()
    assert words[0::2] == ["key:", "token_sha256:"]
    assert hashlib.sha256(words[1].encode()).hexdigest() == words[3]
