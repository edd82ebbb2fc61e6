"""The whole gateway: kept answers, what happens when the upstreams go and come back, reload, readiness, records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from core.errors import ConfigError, NearpathError
from local_infer.api.sse import DONE, data_of, split_events
from local_infer.drill.io_drill import drill
from local_infer.drill.io_recent import read_recent
from local_infer.drill.outcomes import read_wishes
from local_infer.io_daemon import Daemon
from local_infer.retrieval.faq import FaqEntry
from local_infer.retrieval.io_build import build_index
from tests.local_infer.gateway import KEY, running_gateway, url_of, write_config
from tests.local_infer.mock_upstream import TEXT, MockUpstream, Reply
from tests.local_infer.tiny_model import build_model

CHAT: dict[str, Any] = {
    "model": "gpt-test", "temperature": 0, "messages": [{"role": "user", "content": "如何关闭自动续费"}],
}  # fmt: skip
QUICK = {"give_up": "1s", "connect": "500ms", "probe_every": "100ms", "retry_budget": "100%"}


class Client:
    """Asks a daemon."""

    def __init__(self, daemon: Daemon, session: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self._session = session

    async def ask(self, body: Any = CHAT, **headers: str) -> tuple[int, Any, bytes]:
        """(status, headers, body) of a chat."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"{url_of(self.daemon)}/chat/completions"
        async with self._session.post(url, json=body, headers=given) as response:
            return response.status, response.headers, await response.read()

    async def get(self, url: str) -> tuple[int, str]:
        """(status, text)."""
        async with self._session.get(url) as response:
            return response.status, await response.text()

    async def wait_ready(self, ready: bool) -> str:
        """Until /readyz says so; what it says."""
        url = url_of(self.daemon).removesuffix("/v1") + "/readyz"
        async with asyncio.timeout(15):
            while True:
                status, text = await self.get(url)
                if (status == 200) is ready:
                    return text
                await asyncio.sleep(0.02)


@asynccontextmanager
async def playing(folder: Path, **config: Any) -> AsyncIterator[tuple[Client, MockUpstream]]:
    async with (
        MockUpstream() as upstream,
        running_gateway(folder, {"east": upstream}, **{"routing": QUICK, **config}) as daemon,
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session,
    ):
        yield Client(daemon, session), upstream


async def test_fresh_hit_is_transparent_while_upstreams_are_up(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, upstream):
        _status, first, body = await client.ask()
        assert first["Cache-Status"].startswith("node-1; fwd=")
        status, headers, again = await client.ask()
        assert (status, again) == (200, body)
        assert headers["Cache-Status"].startswith("node-1; hit; ttl=")
        assert headers["Cache-Control"] == "private, max-age=3600"
        assert int(headers["Age"]) <= 1
        assert "X-Degraded" not in headers
        assert len(upstream.asked) == 1
        # Its own answer goes out as a stream too, and who asks for a new one gets it.
        _status, headers, events = await client.ask({**CHAT, "stream": True})
        assert headers["Content-Type"].startswith("text/event-stream")
        assert events.endswith(DONE)
        _status, headers, _body = await client.ask(Cache_Control="no-cache")
        assert "fwd=request" in headers["Cache-Status"]
        _status, hot = await client.get(f"{url_of(client.daemon)}/hot-keys")
        assert json.loads(hot.splitlines()[0])["body"]["messages"] == CHAT["messages"]


async def test_equal_requests_at_once_cost_one(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, upstream):
        upstream.always = Reply.slow(0.2)
        answers = await asyncio.gather(*(client.ask() for _ in range(5)))
        assert len({body for _status, _headers, body in answers}) == 1
        assert len(upstream.asked) == 1


async def test_upstream_goes_and_comes_back(tmp_path: Path) -> None:
    other = {**CHAT, "messages": [{"role": "user", "content": "something else"}]}
    async with playing(tmp_path, ladder={"prefix": {"stale": "[old] "}, "retry_after": "7s"}) as (client, upstream):
        await client.ask()
        assert await client.wait_ready(True) == "ok\n"
        await upstream.down()

        # Before it is known to be down it is tried, and what is kept is still as good as before.
        status, headers, body = await client.ask(other)
        assert status == 503
        assert 1 <= int(headers["Retry-After"]) <= 7
        assert headers["X-Degraded"].startswith("none; ")
        assert json.loads(body)["error"]["type"] == "service_unavailable_error"

        assert "degraded: no upstream can be asked" in await client.wait_ready(False)
        status, headers, body = await client.ask()
        answer = json.loads(body)
        assert status == 200
        assert (answer["model"], answer["system_fingerprint"]) == ("cache/gpt-test", "degraded:cache")
        assert answer["choices"][0]["message"]["content"] == TEXT
        step, _reason, age = headers["X-Degraded"].split("; ")
        assert (step, int(age) <= 20, headers["Cache-Control"]) == ("cache", True, "no-store")

        _status, headers, events = await client.ask({**CHAT, "stream": True})
        chunks = [json.loads(data_of(e)) for e in split_events(events) if data_of(e) != b"[DONE]"]
        assert {chunk["model"] for chunk in chunks} == {"cache/gpt-test"}
        assert events.endswith(DONE)

        status, _headers, _body = await client.ask(X_Ladder_Refuse="cache, stale")
        assert status == 503

        await upstream.up()
        assert await client.wait_ready(True) == "ok\n"
        status, headers, body = await client.ask(other)
        assert (status, json.loads(body)["model"], "X-Degraded" in headers) == (200, "gpt-test", False)


async def test_stale_answer_when_nothing_else_is_left(tmp_path: Path) -> None:
    cache = {"fresh_for": "0s", "revalidate_for": "0s"}
    async with playing(tmp_path, cache=cache, ladder={"prefix": {"stale": "[old] "}}) as (client, upstream):
        await client.ask()
        await upstream.down()
        status, headers, body = await client.ask()
        answer = json.loads(body)
        assert status == 200
        assert (answer["model"], answer["system_fingerprint"]) == ("cache/gpt-test", "degraded:stale")
        assert answer["choices"][0]["message"]["content"] == "[old] " + TEXT
        assert headers["X-Degraded"].startswith("stale; ")
        # RFC 9211 2.2: hit and fwd exclude each other.
        assert headers["Cache-Status"].startswith("node-1; hit; ttl=-")


async def test_answers_outlive_a_restart(tmp_path: Path) -> None:
    async with MockUpstream() as upstream:
        session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"})
        async with session:
            for round_ in ("first", "second"):
                async with running_gateway(tmp_path, {"east": upstream}, routing=QUICK) as daemon:
                    _status, headers, _body = await Client(daemon, session).ask()
                    assert ("hit" in headers["Cache-Status"]) is (round_ == "second")
        assert len(upstream.asked) == 1


async def test_warm_up_before_ready(tmp_path: Path) -> None:
    (tmp_path / "warm.jsonl").write_text(json.dumps({"body": CHAT}) + "\n")
    async with playing(tmp_path, cache={"warm_file": "warm.jsonl"}) as (client, upstream):
        assert len(upstream.asked) == 1
        _status, headers, _body = await client.ask()
        assert "hit" in headers["Cache-Status"]


async def test_reload(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, upstream), MockUpstream(Reply(text="from the new one")) as new:
        await client.ask()
        file = write_config(tmp_path, {"west": new}, routing=QUICK, cache={"memory": "0B"}, metrics={"listen": []})
        await client.daemon.reload()
        # What only a restart can change is as before.
        _status, headers, _body = await client.ask()
        assert "hit" in headers["Cache-Status"]
        _status, _headers, body = await client.ask({**CHAT, "seed": 1})
        assert json.loads(body)["choices"][0]["message"]["content"] == "from the new one"
        file.write_text(file.read_text().replace("version: 1", "version: 2"))
        with pytest.raises(ConfigError):
            await client.daemon.reload()
        assert (await client.ask({**CHAT, "seed": 2}))[0] == 200
        # An address that is taken: the upstreams are not changed either.
        taken = client.daemon.metrics_addresses[0]
        write_config(tmp_path, {"east": upstream}, routing=QUICK, listen=["127.0.0.1:0", taken])
        with pytest.raises(NearpathError, match="cannot listen"):
            await client.daemon.reload()
        assert (await client.ask({**CHAT, "seed": 3}))[0] == 200
        assert len(upstream.asked) == 1


async def test_records_for_a_drill_only_when_asked_for(tmp_path: Path) -> None:
    async with playing(tmp_path, ladder={"record": 10}) as (client, upstream):
        await client.ask()
        await client.ask({**CHAT, "stream": True, "seed": 1})
        await upstream.down()
        await client.ask({**CHAT, "seed": 2})
    seen = {json.loads(one.body).get("seed", 0): one for one in read_recent(tmp_path / "state")}
    assert json.loads(seen[0].answer or b"")["choices"][0]["message"]["content"] == TEXT
    assert seen[1].answer is not None
    assert seen[1].answer.endswith(DONE)
    assert seen[2].answer is None
    assert (seen[0].client, seen[0].tenant, seen[0].endpoint) == ("web", "web", "/chat/completions")


async def test_metrics_of_all_parts(tmp_path: Path) -> None:
    async with playing(tmp_path) as (client, _upstream):
        await client.ask()
        _status, text = await client.get(f"http://{client.daemon.metrics_addresses[0]}/metrics")
        for name in ("local_infer_requests_total", "local_infer_first_byte_seconds_bucket", "local_infer_tokens_total"):
            assert name in text
        assert "如何" not in text


async def test_start_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    async with MockUpstream(key="k") as upstream:
        file = write_config(tmp_path, {"east": upstream})
        config = yaml.safe_load(file.read_text())
        (tmp_path / "east.key").unlink()
        with pytest.raises(Exception, match=r"east\.key"):
            await Daemon.open(file)
        # The state folder is free again.
        del config["upstreams"]["east"]["key_file"]
        file.write_text(yaml.safe_dump(config))
        daemon = await Daemon.open(file)
        await daemon.close(0.0)


async def test_whole_ladder(tmp_path: Path) -> None:
    entry = FaqEntry("renew", ("如何关闭自动续费",), "设置里关掉即可。", "", b"")
    build_index([entry], tmp_path / "faq", embedder=None, now=0.0)
    build_model(tmp_path / "model", "离线回答")
    config: dict[str, Any] = {
        "retrieval": {"index": "faq"},
        "generation": {"model": "model", "name": "tiny"},
        "models": {"memory_floor": "0B"},
        "ladder": {"prefix": {"generation": "[offline] "}, "shadow": "0%", "record": 20},
    }
    async with playing(tmp_path, **config) as (client, upstream):
        _status, text = await client.get(f"{url_of(client.daemon)}/models")
        cards = {card["id"]: card for card in json.loads(text)["data"]}
        assert {"gpt-test", "local/faq", "local/tiny"} <= cards.keys()
        assert cards["local/tiny"]["provider"]
        # Asked for by name it is no degradation, although the upstream is up.
        status, headers, body = await client.ask({**CHAT, "model": "local/tiny"})
        assert status == 200
        assert "X-Degraded" not in headers
        assert "离线回答" in json.loads(body)["choices"][0]["message"]["content"]
        assert len(upstream.asked) == 0

        await upstream.down()
        status, headers, body = await client.ask()
        answer = json.loads(body)
        assert (answer["model"], answer["system_fingerprint"]) == ("local/faq", "degraded:retrieval")
        assert answer["choices"][0]["message"]["content"] == "设置里关掉即可。"
        assert headers["X-Degraded"].startswith("retrieval; ")

        # The opposite question must not get that answer: generation speaks, and says so.
        opposite = {**CHAT, "messages": [{"role": "user", "content": "如何开启自动续费"}]}
        status, headers, body = await client.ask(opposite)
        answer = json.loads(body)
        assert (answer["model"], answer["system_fingerprint"]) == ("local/tiny", "degraded:generation")
        assert answer["choices"][0]["message"]["content"].startswith("[offline] ")
        assert headers["X-Degraded"].startswith("generation; ")

        _status, headers, events = await client.ask({**opposite, "stream": True})
        assert headers["X-Degraded"].startswith("generation; ")
        assert events.endswith(DONE)
        status, _headers, _body = await client.ask(opposite, X_Ladder_Refuse="generation")
        assert status == 503

        # A drill beside the gateway tells of each request what it gets now.
        async with asyncio.timeout(10):
            while True:
                recorded = list(read_recent(tmp_path / "state"))
                if len(recorded) == 5:
                    break
                await asyncio.sleep(0.02)
        assert recorded[-1].headers == '{"X-Ladder-Refuse": "generation"}'
        outcomes, _ = await drill(client.daemon.config)
        assert [one.step for one in outcomes[:1]] == ["would_generate"]  # local/tiny by its name
        for one, found in zip(recorded[1:], outcomes[1:], strict=True):
            _status, headers, _body = await client.ask(json.loads(one.body), **read_wishes(one.headers))
            assert headers["X-Degraded"].split(";")[0] == found.step.replace("would_generate", "generation")

        # A reload takes the visible text, and says what it could not take.
        assert client.daemon.restart_needed == []
        changed = {
            "ladder": {"prefix": {"generation": "[anew] "}, "record": 30},
            "generation": {**config["generation"], "max_tokens": 7},
        }
        write_config(tmp_path, {"east": upstream}, **{"routing": QUICK, **config, **changed})
        await client.daemon.reload()
        _status, _headers, body = await client.ask({**opposite, "seed": 1})
        assert json.loads(body)["choices"][0]["message"]["content"].startswith("[anew] ")
        assert client.daemon.restart_needed == ["generation.max_tokens", "ladder.record"]
        assert "restart needed for generation.max_tokens, ladder.record" in client.daemon.status()
        write_config(tmp_path, {"east": upstream}, **{"routing": QUICK, **config})
        await client.daemon.reload()
        assert client.daemon.restart_needed == []


async def test_why_nobody_answers_is_told_for_as_long_as_it_lasts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with playing(tmp_path, access_log={"enabled": True}) as (client, upstream):
        upstream.always = Reply.error(401)
        for _ in range(8):
            status, headers, _body = await client.ask()
            assert (status, headers["X-Degraded"]) == (503, "none; credentials; 0")
        assert len(upstream.asked) < 8, "its circuit is open by now"
        assert "(credentials)" in await client.wait_ready(False)
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"event":"access"' in line]
    assert [line["reason"] for line in lines] == ["credentials"] * 8
