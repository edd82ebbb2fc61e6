"""Traces and metrics at a real OTLP/HTTP collector: what is in them, what never is, and a collector that is away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from core.errors import NearpathError
from core.io_config_infer import read_infer_config
from local_infer.io_check import check_all
from local_infer.io_daemon import Daemon
from local_infer.telemetry import io_otlp
from local_infer.telemetry.io_otlp import read_headers
from tests.local_infer.gateway import KEY, running_gateway, url_of, write_config
from tests.local_infer.mock_upstream import MockUpstream, Reply
from tests.local_infer.otlp_collector import Collector

SECRET = "my-private-question"
CHAT: dict[str, Any] = {"model": "gpt-test", "temperature": 0, "messages": [{"role": "user", "content": SECRET}]}
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@asynccontextmanager
async def telling(folder: Path, upstreams: dict[str, MockUpstream], url: str, **more: Any) -> AsyncIterator[Daemon]:
    otlp = {"endpoint": url, "sample": "100%", "every": "1s", "service": "mirror-api", **more}
    async with running_gateway(folder, upstreams, otlp=otlp) as daemon:
        yield daemon


async def ask(
    daemon: Daemon, session: aiohttp.ClientSession, headers: dict[str, str] | None = None, **more: Any
) -> int:
    async with session.post(f"{url_of(daemon)}/chat/completions", json={**CHAT, **more}, headers=headers) as response:
        await response.read()
        return response.status


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"})


async def metrics_of(daemon: Daemon) -> str:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://{daemon.metrics_addresses[0]}/metrics") as response,
    ):
        return await response.text()


async def until_counted(daemon: Daemon, name: str, least: float) -> None:
    """Until a counter of /metrics is there."""
    value = re.compile(rf"(?m)^{re.escape(name)} (\S+)$")
    async with asyncio.timeout(20):
        while (match := value.search(await metrics_of(daemon))) is None or float(match[1]) < least:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_spans_and_metrics_of_requests(tmp_path: Path) -> None:
    secret = tmp_path / "otlp.headers"
    secret.touch(mode=0o600)
    secret.write_text("x-collector-key: abc-123\n")
    async with (
        MockUpstream() as east,
        MockUpstream() as west,
        Collector() as collector,
        telling(tmp_path, {"east": east, "west": west}, collector.url, headers_file="otlp.headers") as daemon,
        session() as client,
    ):
        # Who is asked first is not known: the next answer of whichever it is.
        coming: list[Reply] = []
        east.always = west.always = lambda _seen: coming.pop(0) if coming else Reply()
        # 1: the first one fails, the other answers: two attempts below one request, in the client's trace.
        coming.append(Reply.error(500))
        assert await ask(daemon, client, {"traceparent": PARENT, "tracestate": "a=1"}) == 200
        # 2: the same from the cache; 3: a stream; 4: cut; 5: no key.
        assert await ask(daemon, client) == 200
        usage = {"include_usage": True}
        assert await ask(daemon, client, stream=True, temperature=1, stream_options=usage) == 200
        coming.append(Reply.cut(3))
        assert await ask(daemon, client, stream=True, temperature=1) == 200
        assert await ask(daemon, client, {"Authorization": "Bearer wrong"}) == 401
        await collector.until(lambda: len(collector.spans) >= 9 and len(collector.metrics) >= 5)

    first, kept, streamed, cut, refused = collector.named("server")
    attempts = collector.named("client")
    assert collector.resource["service.name"] == "mirror-api"
    assert collector.resource["service.instance.id"] == "node-1"
    assert all(headers["x-collector-key"] == "abc-123" for headers in collector.headers)

    assert (first["name"], first["trace"], first["parent"]) == ("chat gpt-test", PARENT[3:35], PARENT[36:52])
    assert first["nearpath.step"] == "upstream"
    assert first["nearpath.cache"] == "miss"
    assert first["gen_ai.operation.name"] == "chat"
    assert first["gen_ai.provider.name"] == "openai"
    assert first["gen_ai.request.model"] == first["gen_ai.response.model"] == "gpt-test"
    assert (first["gen_ai.usage.input_tokens"], first["gen_ai.usage.output_tokens"]) == (5, 7)
    assert first["gen_ai.response.finish_reasons"] == ["stop"]
    assert first["server.port"] == int(daemon_port(daemon))
    assert first["http.response.status_code"] == 200
    assert not first["error"]
    failed, good = (span for span in attempts if span["parent"] == first["span"])
    assert {failed["nearpath.upstream"], good["nearpath.upstream"]} == {"east", "west"}
    assert (failed["error.type"], failed["error"], failed["http.response.status_code"]) == ("status 500", True, 500)
    assert ("error.type" in good, good["server.port"] in (east.port, west.port)) == (False, True)
    # What the upstreams were sent: the client's trace, each with the span of its own attempt.
    sent = {
        seen.headers["traceparent"]
        for seen in [*east.asked, *west.asked]
        if seen.headers["traceparent"][3:35] == first["trace"]
    }
    assert sent == {f"00-{first['trace']}-{span['span']}-01" for span in (failed, good)}
    assert east.asked[0].headers["tracestate"] == "a=1"

    assert (kept["nearpath.step"], kept["nearpath.cache"], kept["parent"]) == ("cache", "hit", "")
    assert [span for span in attempts if span["trace"] == kept["trace"]] == []
    assert streamed["gen_ai.request.stream"] is True
    assert 0 <= streamed["gen_ai.response.time_to_first_chunk"] * 1e9 <= streamed["ns"]
    assert streamed["gen_ai.usage.output_tokens"] == 7
    assert (cut["error.type"], cut["error"]) == ("stream_cut", True)
    [broken] = [span for span in attempts if span["trace"] == cut["trace"]]
    assert (broken["error.type"], broken["parent"]) == ("cut", cut["span"])
    assert (refused["error.type"], refused["http.response.status_code"], refused["error"]) == (
        "invalid_api_key",
        401,
        False,
    )

    durations = collector.metrics["gen_ai.server.request.duration"]
    assert sum(point["count"] for point in durations) == 5
    assert {point["unit"] for point in durations} == {"s"}
    assert durations[0]["bounds"][0] == 0.01
    assert {point.get("error.type", "") for point in durations} == {"", "stream_cut", "invalid_api_key"}
    assert sum(point["count"] for point in collector.metrics["gen_ai.client.operation.duration"]) == 4
    tokens = collector.metrics["gen_ai.client.token.usage"]
    # Twice from upstreams; what was kept was not used again.
    assert {point["gen_ai.token.type"]: point["sum"] for point in tokens} == {"input": 10, "output": 14}
    assert sum(point["count"] for point in collector.metrics["gen_ai.server.time_to_first_token"]) == 2
    assert "gen_ai.client.operation.time_to_first_chunk" in collector.metrics
    for content in (SECRET, "this is the upstream", "你好", KEY):
        assert content.encode() not in collector.raw


def daemon_port(daemon: Daemon) -> str:
    # Closed by now: what it listened on is in its configuration's place.
    return str(daemon._gateway._place[1])  # type: ignore[union-attr]


async def test_a_client_that_records_nothing_is_not_recorded(tmp_path: Path) -> None:
    async with (
        MockUpstream() as east,
        Collector() as collector,
        telling(tmp_path, {"east": east}, collector.url) as daemon,
        session() as client,
    ):
        assert await ask(daemon, client, {"traceparent": PARENT[:-1] + "0"}) == 200
        assert east.asked[0].headers["traceparent"].startswith(PARENT[:36])
        assert east.asked[0].headers["traceparent"].endswith("-00")
        await collector.until(lambda: "gen_ai.server.request.duration" in collector.metrics)
        assert collector.spans == []


async def test_a_dead_collector(tmp_path: Path) -> None:
    async with MockUpstream() as east, Collector() as gone:
        url = gone.url
    async with (
        MockUpstream() as east,
        telling(tmp_path, {"east": east}, url) as daemon,
        session() as client,
    ):
        for _ in range(3):
            assert await ask(daemon, client) == 200
        await until_counted(daemon, 'local_infer_otlp_spans_total{outcome="failed"}', 1)
        assert daemon.not_ready() == []
        started = asyncio.get_running_loop().time()
    # It is not waited for at the end either.
    assert asyncio.get_running_loop().time() - started < 10


async def test_a_process_that_died_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_otlp, "_RESTART_S", 0.05)
    async with (
        MockUpstream() as east,
        Collector() as collector,
        telling(tmp_path, {"east": east}, collector.url) as daemon,
        session() as client,
    ):
        telemetry = daemon._gateway._telemetry  # type: ignore[union-attr]
        assert telemetry is not None
        old = telemetry._process
        assert old is not None
        old.kill()
        async with asyncio.timeout(20):
            while telemetry._process is old:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert await ask(daemon, client) == 200
        await collector.until(lambda: bool(collector.spans))


async def test_what_the_pipe_does_not_take_is_lost_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_otlp, "_MOST_WAITING_BYTES", -1)
    async with (
        MockUpstream() as east,
        telling(tmp_path, {"east": east}, "http://127.0.0.1:9") as daemon,
        session() as client,
    ):
        assert await ask(daemon, client) == 200
        await until_counted(daemon, "local_infer_otlp_lost_records_total", 2)


async def test_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    headers = tmp_path / "otlp.headers"
    headers.write_text("no header\n")
    headers.chmod(0o644)
    async with MockUpstream() as east, Collector() as collector:
        otlp = {"endpoint": collector.url, "headers_file": "otlp.headers"}
        file = write_config(tmp_path, {"east": east}, otlp=otlp)
        assert await check_all(read_infer_config(file)) == 1
        text = capsys.readouterr().out
        assert "others on this host may use it" in text
        assert "line 1 of" in text
        headers.chmod(0o600)
        headers.write_text("Authorization: Basic abc\n")
        assert await check_all(read_infer_config(file)) == 0
        assert "answers 200" in capsys.readouterr().out
        collector.status = 401
        assert await check_all(read_infer_config(file)) == 1
        assert "answers 401" in capsys.readouterr().out
        monkeypatch.setattr(io_otlp, "find_spec", lambda _name: None)
        assert await check_all(read_infer_config(file)) == 1
        assert "install nearpath with the `otlp` extra" in capsys.readouterr().out
        with pytest.raises(NearpathError, match="not installed"):
            await Daemon.open(file)


def test_headers_file(tmp_path: Path) -> None:
    file = tmp_path / "h"
    file.write_text("A-b: c:d \n\n x: 1\n")
    assert read_headers(str(file)) == {"A-b": "c:d", "x": "1"}
    with pytest.raises(NearpathError, match="cannot be read"):
        read_headers(str(tmp_path / "none"))
    file.write_text(json.dumps({"a": "secret"}) + "\n")
    with pytest.raises(NearpathError) as told:
        read_headers(str(file))
    assert "secret" not in str(told.value)
