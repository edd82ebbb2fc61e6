"""The front servers' configurations that are shipped, with the real servers, the real gateway and curl over HTTP/2."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.local_infer.front import Front, post_options, read_reply, running_front
from tests.local_infer.gateway import KEY, running_gateway
from tests.local_infer.mock_upstream import MockUpstream, Reply

_CHAT = "/v1/chat/completions"
_IMMUTABLE = "public, max-age=31536000, immutable"

pytestmark = [
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed (Debian package curl)"),
    pytest.mark.parametrize(
        "kind",
        [
            pytest.param(
                kind, marks=pytest.mark.skipif(not shutil.which(kind), reason=f"{kind} is not installed ({package})")
            )
            for kind, package in (("nginx", "Debian package nginx-light"), ("caddy", "Debian package caddy"))
        ],
    ),
]


def question(text: str, **more: Any) -> str:
    return json.dumps({"model": "gpt-test", "messages": [{"role": "user", "content": text}], "temperature": 0, **more})


@asynccontextmanager
async def whole(kind: str, folder: Path, **config: Any) -> AsyncIterator[tuple[Front, MockUpstream]]:
    """Upstream, gateway and front; the mirror's files are in folder/files."""
    (folder / "files").mkdir(exist_ok=True)
    config = {"routing": {"give_up": "300ms", "connect": "200ms", "probe_every": "100ms"}, **config}
    async with (
        MockUpstream() as upstream,
        running_gateway(folder, {"east": upstream}, **config) as daemon,
        running_front(kind, folder / "f", daemon.addresses[0], folder / "files") as front,
    ):
        yield front, upstream


class TurnByTurn:
    """An upstream that sends an event only when the test has seen the one before it at the client."""

    def __init__(self) -> None:
        self.key = None
        self.url = ""
        self.turn = asyncio.Semaphore(1)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            return web.json_response({"object": "list", "data": []})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(5):
            await self.turn.acquire()
            chunk = {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": str(number)}}]}
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await self.turn.acquire()
        await response.write(b"data: [DONE]\n\n")
        return response


async def test_each_event_comes_before_the_next_is_sent(kind: str, tmp_path: Path) -> None:
    upstream = TurnByTurn()
    runner = web.ServerRunner(web.Server(upstream.answer))  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    (tmp_path / "files").mkdir()
    try:
        async with (
            running_gateway(tmp_path, {"east": upstream}) as daemon,  # type: ignore[dict-item]
            running_front(kind, tmp_path / "f", daemon.addresses[0], tmp_path / "files") as front,
        ):
            # As real clients say: packing would gather events.
            packed = ["-H", "Accept-Encoding: gzip, deflate"]
            argv = front.argv(_CHAT, *post_options(question("count", stream=True)), *packed)
            curl = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
            assert curl.stdout is not None
            head = await curl.stdout.readuntil(b"\r\n\r\n")
            for number in range(5):
                event = await curl.stdout.readuntil(b"\n\n")
                assert json.loads(event.removeprefix(b"data: "))["choices"][0]["delta"] == {"content": str(number)}
                upstream.turn.release()
            assert await curl.stdout.read() == b"data: [DONE]\n\n"
            assert await curl.wait() == 0
            reply = read_reply(head)
            assert (reply.version, reply.status) == ("HTTP/2", 200)
            assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert reply.headers["cache-control"] == "no-store"
            assert reply.headers["x-request-id"].startswith("req_")
    finally:
        await runner.cleanup()


async def test_a_client_that_leaves_ends_the_request_upstream(kind: str, tmp_path: Path) -> None:
    async with whole(kind, tmp_path) as (front, upstream):
        upstream.always = Reply.stall(after=2)
        argv = front.argv(_CHAT, *post_options(question("long", stream=True)))
        curl = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        assert curl.stdout is not None
        await curl.stdout.readuntil(b"\n\n")
        curl.kill()
        await curl.wait()
        await (await upstream.wait_for(1)).gone.wait()


async def test_marks_of_kept_and_degraded_answers_pass(kind: str, tmp_path: Path) -> None:
    async with whole(kind, tmp_path) as (front, upstream):
        first = await front.post(_CHAT, question("hello"))
        assert first.headers["cache-status"] == "node-1; fwd=miss; stored"
        kept = await front.post(_CHAT, question("hello"))
        assert kept.headers["cache-status"].startswith("node-1; hit; ttl=")
        assert kept.headers["cache-control"] == "private, max-age=3600"
        assert kept.headers["age"] == "0"
        assert "x-degraded" not in kept.headers
        assert kept.body == first.body
        ready = await front.get("/readyz")
        assert (ready.status, ready.body) == (200, b"ok\n")

        await upstream.down()
        while (ready := await front.get("/readyz")).status == 200:
            pass
        assert (ready.status, ready.body[:9]) == (503, b"degraded:")
        assert (await front.get("/healthz")).status == 200
        degraded = await front.post(_CHAT, question("hello"))
        assert (degraded.status, json.loads(degraded.body)["system_fingerprint"]) == (200, "degraded:cache")
        assert degraded.headers["x-degraded"].startswith("cache; ")
        assert degraded.headers["cache-control"] == "no-store"
        nothing = await front.post(_CHAT, question("something else"))
        assert (nothing.status, nothing.headers["retry-after"]) == (503, "10")
        assert nothing.headers["x-degraded"].startswith("none; ")
        assert json.loads(nothing.body)["error"]["type"] == "service_unavailable_error"
        assert nothing.headers["x-request-id"].startswith("req_")


async def test_refusals_pass_as_the_gateway_words_them(kind: str, tmp_path: Path) -> None:
    keys = {"web": {"token_sha256": hashlib.sha256(KEY.encode()).hexdigest(), "rate": 2}}
    async with whole(kind, tmp_path, limits={"body": "1KiB"}, keys=keys) as (front, upstream):
        large = await front.post(_CHAT, question("x" * 2000))
        assert (large.status, json.loads(large.body)["error"]["code"]) == (413, "body_too_large")
        stranger = await front.get("/v1/models", "-H", "Authorization: Bearer wrong")
        assert (stranger.status, json.loads(stranger.body)["error"]["code"]) == (401, "invalid_api_key")
        upstream.next(Reply.error(429, retry_after="17"))
        busy = await front.post(_CHAT, question("a"))
        assert (busy.status, busy.headers["retry-after"]) == (429, "17")
        await front.post(_CHAT, question("b"))
        limited = await front.post(_CHAT, question("c"))
        assert (limited.status, limited.headers["x-ratelimit-remaining-requests"]) == (429, "0")
        assert 0 < int(limited.headers["retry-after"]) <= 60


async def test_without_a_gateway_clients_are_told_to_come_back(kind: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    async with MockUpstream() as upstream, running_gateway(tmp_path, {"east": upstream}) as daemon:
        gateway = daemon.addresses[0]
    async with running_front(kind, tmp_path / "f", gateway, tmp_path / "files") as front:
        for path in (_CHAT, "/readyz"):
            gone = await front.post(path, question("a"))
            assert (gone.version, gone.status, gone.headers["retry-after"]) == ("HTTP/2", 503, "2")
            assert gone.headers["content-type"] == "application/json"
            assert gone.headers["cache-control"] == "no-store"
            assert gone.headers["x-request-id"]
            assert json.loads(gone.body)["error"]["code"] == "no_gateway"


async def test_files_of_the_mirror(kind: str, tmp_path: Path) -> None:
    expected = {
        "debian/pool/main/h/hello/hello_2.10-3_amd64.deb": _IMMUTABLE,
        "debian/pool/main/h/hello/hello_2.10.orig.tar.gz": _IMMUTABLE,
        "debian/dists/stable/main/by-hash/SHA256/00ff": _IMMUTABLE,
        "debian/dists/stable/InRelease": "no-cache",
        "debian/dists/stable/main/binary-amd64/Packages.xz": "no-cache",
        "debian/ls-lR.gz": "public, max-age=300",
        "fedora/repodata/repomd.xml": "no-cache",
        f"fedora/repodata/{'ab' * 32}-primary.xml.zst": _IMMUTABLE,
        "fedora/Packages/h/hello-2.12-1.x86_64.rpm": _IMMUTABLE,
        "pypi/simple/pip/index.html": "no-cache",
        "pypi/packages/pip-24.0-py3-none-any.whl": _IMMUTABLE,
        "arch/core/os/x86_64/core.db": "no-cache",
        "arch/core/os/x86_64/bash-5.2-1-x86_64.pkg.tar.zst": _IMMUTABLE,
        "arch/core/os/x86_64/bash-5.2-1-x86_64.pkg.tar.zst.sig": "no-cache",
        "images/debian-12.iso": "public, max-age=300",
        "models/blobs/sha256-0af3": _IMMUTABLE,
    }
    for name in [*expected, ".debian.syncd/stage/hello.deb"]:
        file = tmp_path / "files" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    async with whole(kind, tmp_path) as (front, _upstream):
        replies = {name: await front.get(f"/{name}") for name in expected}
        assert {name: reply.headers.get("cache-control") for name, reply in replies.items()} == expected
        assert {name: reply.body.decode() for name, reply in replies.items()} == {name: name for name in expected}
        name = "debian/dists/stable/InRelease"
        again = await front.get(f"/{name}", "-H", f"If-None-Match: {replies[name].headers['etag']}")
        assert (again.status, again.headers["cache-control"]) == (304, "no-cache")
        part = await front.get("/images/debian-12.iso", "-r", "0-5")
        assert (part.status, part.body) == (206, b"images")
        for missing in ("/debian/pool/main/n/new_1_amd64.deb", "/.debian.syncd/stage/hello.deb"):
            gone = await front.get(missing)
            assert (gone.status, gone.headers.get("cache-control")) == (404, "no-store"), missing
        plain = await front.get(f"/{name}", plain=True)
        assert (plain.status, plain.headers["cache-control"]) == (200, "no-cache")
        refused = await front.post(_CHAT, question("a"), plain=True)
        assert (refused.status, json.loads(refused.body)["error"]["code"]) == (403, "https_required")
