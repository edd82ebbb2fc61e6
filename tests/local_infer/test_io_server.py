"""The front on real sockets: limits, errors, streams, clients that leave, reload and stop. The ladder is a script."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_clock import AnchoredClock
from local_infer.fault import UNAVAILABLE, ApiError
from local_infer.gateway.io_server import Gateway, Parts
from local_infer.gateway.sse import DONE
from local_infer.model import Answer, Ask, ModelCard, Origin, Step, Stream
from tests.local_infer.certificate import make_certificate

CHAT = {"model": "m", "messages": [{"role": "user", "content": "你好"}]}
UPSTREAM = Origin(Step.UPSTREAM, "east", cache_status="fwd=miss")
AnswerFn = Callable[[Ask], Awaitable[Answer]]


def make_config(**more: Any) -> InferConfig:
    digest = hashlib.sha256(b"secret").hexdigest()
    return InferConfig.model_validate(
        {
            "version": 1, "node": "node-1", "state_dir": "x", "listen": ["127.0.0.1:0"],
            "keys": {"web": {"token_sha256": digest}}, "upstreams": {"a": {"url": "http://127.0.0.1/v1"}},
            **more,
        }
    )  # fmt: skip


async def echo(ask: Ask) -> Answer:
    """The request as the answer."""
    return Answer(200, {"content-type": "application/json"}, ask.body, UPSTREAM)


def streams(make: Callable[[], Stream]) -> AnswerFn:
    """An answer that is this stream."""

    async def answer(_ask: Ask) -> Answer:
        return Answer(200, {}, make(), UPSTREAM)

    return answer


class Front:
    """A gateway, and a client of it."""

    def __init__(self, gateway: Gateway, registry: CollectorRegistry, session: aiohttp.ClientSession) -> None:
        self.gateway = gateway
        self.registry = registry
        self.session = session

    @property
    def url(self) -> str:
        return f"http://{self.gateway.addresses[0]}"

    def post(
        self, body: Any = CHAT, path: str = "/v1/chat/completions", key: str | None = "secret", **more: Any
    ) -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = body if isinstance(body, bytes) or not isinstance(body, dict) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **headers, **more.pop("headers", {})}
        return self.session.post(self.url + path, data=data, headers=headers, **more)

    def counted(self, **labels: str) -> float:
        given = {"endpoint": "/chat/completions", "step": "upstream", "status": "200", **labels}
        return self.registry.get_sample_value("local_infer_requests_total", given) or 0.0

    async def wait_counted(self, **labels: str) -> None:
        async with asyncio.timeout(5):
            while not self.counted(**labels):  # noqa: ASYNC110 (the registry has no event)
                await asyncio.sleep(0.005)


@asynccontextmanager
async def running(answer: AnswerFn = echo, cards: tuple[ModelCard, ...] = (), **config: Any) -> AsyncIterator[Front]:
    registry = CollectorRegistry()
    gateway = Gateway(make_config(**config), answer, lambda: cards, registry, AnchoredClock().now)
    await gateway.start()
    try:
        async with aiohttp.ClientSession() as session:
            yield Front(gateway, registry, session)
    finally:
        await gateway.close(0.0)


async def error_of(response: aiohttp.ClientResponse) -> Any:
    body = await response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


# -- plain answers and errors


async def test_answer_passes_with_its_headers() -> None:
    async with running() as front, front.post() as response:
        assert response.status == 200
        assert await response.json() == CHAT
        assert response.headers["Cache-Status"] == "node-1; fwd=miss"
        assert response.headers["X-Request-Id"].startswith("req_")
        assert response.headers["Server"] == "nearpath"
        assert "x-ratelimit-limit-requests" not in response.headers
        assert front.counted() == 1


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/v1/chat/completions", "GET", 405, "method_not_allowed"),
        ("/v1/models", "POST", 405, "method_not_allowed"),
        ("/v1/images/generations", "POST", 404, "unknown_url"),
        ("/chat/completions", "POST", 404, "unknown_url"),
        ("/", "GET", 404, "unknown_url"),
        ("/v1/models/none", "GET", 404, "model_not_found"),
    ],
)
async def test_wrong_path_or_method(path: str, method: str, status: int, code: str) -> None:
    async with running() as front:
        headers = {"Authorization": "Bearer secret"}
        async with front.session.request(method, front.url + path, headers=headers) as response:
            assert response.status == status
            assert (await error_of(response))["code"] == code


async def test_no_key_wrong_key_and_body_never_read_for_them() -> None:
    async with running() as front:
        for key, code in ((None, "missing_api_key"), ("wrong", "invalid_api_key")):
            async with front.post(b"x" * 100_000, key=key) as response:
                assert response.status == 401
                assert (await error_of(response))["code"] == code
        async with front.session.get(front.url + "/v1/models") as response:
            assert response.status == 401


async def test_every_answer_has_an_id_of_its_own() -> None:
    async with running(cards=(ModelCard("m", "a"),)) as front:
        ids = []
        for path, key in (("/v1/models", "secret"), ("/v1/models/no", "secret"), ("/v1/models", "no"), ("/v1/no", "")):
            headers = {"Authorization": f"Bearer {key}"}
            async with front.session.get(front.url + path, headers=headers) as response:
                ids.append(response.headers["X-Request-Id"])
        assert len(set(ids)) == 4
        assert all(id.startswith("req_") for id in ids)


async def test_faults_of_the_client_have_the_types_of_the_api() -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    async with running(keys={"web": {"token_sha256": digest, "models": ["small"]}}) as front:
        for key, status, code in (("no", 401, "invalid_api_key"), ("secret", 403, "model_not_found")):
            async with front.post({**CHAT, "model": "big"}, key=key) as response:
                error = await error_of(response)
                assert (response.status, error["type"], error["code"]) == (status, "invalid_request_error", code)
        headers = {"Authorization": "Bearer secret"}
        async with front.session.get(front.url + "/v1/models/big", headers=headers) as response:
            error = await error_of(response)
            assert (response.status, error["type"], error["code"]) == (404, "invalid_request_error", "model_not_found")


async def test_errors_of_the_ladder_keep_their_words() -> None:
    async def none(_ask: Ask) -> Answer:
        raise ApiError(
            503, UNAVAILABLE, "no step answers", retry_after_s=10, headers={"X-Degraded": "none; connect; 0"}
        )

    async with running(none) as front, front.post() as response:
        assert response.status == 503
        assert (await error_of(response))["type"] == "service_unavailable_error"
        assert (response.headers["Retry-After"], response.headers["X-Degraded"]) == ("10", "none; connect; 0")


async def test_fault_of_ours_tells_nothing() -> None:
    async def broken(_ask: Ask) -> Answer:
        raise RuntimeError("secret of ours")

    async with running(broken) as front, front.post() as response:
        assert response.status == 500
        error = await error_of(response)
        assert "secret" not in error["message"]
        assert response.headers["X-Request-Id"] in error["message"]


async def test_model_a_key_may_not_use() -> None:
    digest = hashlib.sha256(b"secret").hexdigest()
    keys = {"web": {"token_sha256": digest, "models": ["small"]}}
    cards = (ModelCard("small", "a"), ModelCard("big", "a"))
    async with running(keys=keys, cards=cards) as front:
        async with front.post({**CHAT, "model": "big"}) as response:
            assert response.status == 403
        async with front.post({**CHAT, "model": "small"}) as response:
            assert response.status == 200
        headers = {"Authorization": "Bearer secret"}
        async with front.session.get(front.url + "/v1/models", headers=headers) as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["small"]
        async with front.session.get(front.url + "/v1/models/big", headers=headers) as response:
            assert response.status == 404


async def test_one_model_whose_name_has_a_slash() -> None:
    async with running(cards=(ModelCard("local/m", "node-1", {"provider": "cpu"}),)) as front:
        headers = {"Authorization": "Bearer secret"}
        async with front.session.get(front.url + "/v1/models/local/m", headers=headers) as response:
            assert (await response.json())["provider"] == "cpu"


# -- limits


async def test_body_limit_declared_sent_and_decompressed() -> None:
    async with running(limits={"body": "1KiB"}) as front:
        big = b'{"model":"' + b"m" * 2000 + b'"}'

        async def pieces() -> AsyncIterator[bytes]:
            yield big[:500]
            yield big[500:]

        for body, headers in ((big, {}), (pieces(), {}), (gzip.compress(big), {"Content-Encoding": "gzip"})):
            async with front.post(body, headers=headers) as response:
                assert response.status == 413
                assert (await error_of(response))["code"] == "body_too_large"
        async with front.post(
            gzip.compress(json.dumps(CHAT).encode()), headers={"Content-Encoding": "gzip"}
        ) as response:
            assert await response.json() == CHAT


async def test_garbage_instead_of_what_the_headers_say() -> None:
    async with running() as front, front.post(b"no gzip", headers={"Content-Encoding": "gzip"}) as response:
        assert response.status == 400


async def test_expect_continue_is_answered_when_the_key_is_good() -> None:
    async with running() as front:
        async with front.post(expect100=True) as response:
            assert await response.json() == CHAT
        async with front.post(expect100=True, key="wrong") as response:
            assert response.status == 401


async def raw(front: Front, data: bytes) -> bytes:
    """What comes back on a connection of its own, up to its end."""
    host, _colon, port = front.gateway.addresses[0].rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 100\r\n"


@pytest.mark.parametrize("data", [b"POST /v1/cha", HEAD, HEAD + b"\r\n{"], ids=["line", "headers", "body"])
async def test_slow_requests_end(data: bytes) -> None:
    async with running(limits={"header_time": "100ms"}) as front:
        answer = await raw(front, data)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nX-Request-Id: req_" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_a_head_that_begins_with_the_connection_must_end_in_time_too() -> None:
    """On the daemon's loop, and sent before the gateway has taken the connection: nobody waits for those bytes yet."""

    async def slow() -> None:
        async with running(limits={"header_time": "100ms"}) as front:
            host, _colon, port = front.gateway.addresses[0].rpartition(":")
            with socket.create_connection((host, int(port))) as client:
                client.sendall(HEAD)
                client.setblocking(False)
                async with asyncio.timeout(10):
                    answer = await asyncio.get_running_loop().sock_recv(client, 100)
            assert answer.startswith(b"HTTP/1.1 408 ")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(slow())


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["line", "header", "smuggling"],
)
async def test_broken_http_is_told_in_the_form_of_the_api(data: bytes) -> None:
    async with running() as front:
        answer = await raw(front, data)
        assert b" 400 Bad Request\r\n" in answer
        assert b"aiohttp" not in answer
        assert b"\r\nX-Request-Id: req_" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


async def test_idle_connections_are_closed() -> None:
    async with running(limits={"idle": "100ms"}) as front:
        assert await raw(front, b"") == b""


async def test_rate_and_concurrency() -> None:
    hold, entered = asyncio.Event(), asyncio.Event()

    async def wait(ask: Ask) -> Answer:
        entered.set()
        await hold.wait()
        return await echo(ask)

    digest = hashlib.sha256(b"secret").hexdigest()
    async with running(wait, keys={"web": {"token_sha256": digest, "rate": 2, "concurrency": 1}}) as front:
        first = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        async with front.post() as response:
            assert response.status == 429
            assert (await error_of(response))["code"] == "concurrency_limit_exceeded"
        hold.set()
        response = await first
        assert response.headers["x-ratelimit-remaining-requests"] == "1"
        response.release()
        async with front.post() as response:
            assert response.status == 200
        async with front.post() as response:
            assert response.status == 429
            assert (await error_of(response))["code"] == "rate_limit_exceeded"
            assert 1 <= int(response.headers["Retry-After"]) <= 30


async def test_one_key_leaves_room_for_another_that_asks() -> None:
    hold, entered = asyncio.Event(), asyncio.Event()

    async def wait(ask: Ask) -> Answer:
        if ask.client.name == "secret":
            entered.set()
            await hold.wait()
        return await echo(ask)

    keys = {name: {"token_sha256": hashlib.sha256(name.encode()).hexdigest()} for name in ("secret", "other")}
    async with running(wait, keys=keys, limits={"requests": 2}) as front:
        async with front.post(key="other") as response:
            assert response.status == 200
        first = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        async with front.post() as response:  # there is room, but it is for the other one
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            assert (await error_of(response))["code"] == "concurrency_limit_exceeded"
        async with front.post(key="other") as response:
            assert response.status == 200
        hold.set()
        (await first).release()


async def test_all_slots_taken() -> None:
    hold, entered = asyncio.Event(), asyncio.Event()

    async def wait(ask: Ask) -> Answer:
        entered.set()
        await hold.wait()
        return await echo(ask)

    async with running(wait, limits={"requests": 1}) as front:
        first = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        async with front.post() as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            assert (await error_of(response))["code"] == "overloaded"
        hold.set()
        (await first).release()
        async with front.post() as response:
            assert response.status == 200


async def test_longest_answer() -> None:
    cancelled = asyncio.Event()

    async def never(_ask: Ask) -> Answer:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()
        raise AssertionError

    async with running(never, limits={"total": "100ms"}) as front, front.post() as response:
        assert response.status == 503
        assert (await error_of(response))["code"] == "timeout"
        assert cancelled.is_set()


async def test_large_answer() -> None:
    body = b'"' + b"x" * 3_000_000 + b'"'

    async def large(_ask: Ask) -> Answer:
        return Answer(200, {}, body, UPSTREAM)

    async with running(large) as front, front.post() as response:
        assert await response.read() == body


async def test_large_answers_under_way_share_a_bounded_memory() -> None:
    async def large(_ask: Ask) -> Answer:
        return Answer(200, {}, bytes(30_000_000), UPSTREAM)

    async with running(large, limits={"requests": 2, "body": "1KiB"}) as front:
        unread = await front.post().__aenter__()  # its headers; the rest waits in the gateway
        async with front.post() as response:
            assert response.status == 429
            assert (await error_of(response))["code"] == "overloaded"
        unread.close()
        await front.wait_counted(status="499")
        assert front.gateway._room.held_bytes == 0
        async with front.post() as response:
            assert len(await response.read()) == 30_000_000


async def test_client_that_does_not_read_a_large_answer_is_left_in_time() -> None:
    async def large(_ask: Ask) -> Answer:
        return Answer(200, {}, b"x" * 30_000_000, UPSTREAM)

    async with running(large, limits={"total": "200ms"}) as front:
        host, _colon, port = front.gateway.addresses[0].rpartition(":")
        _reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps(CHAT).encode()
        writer.write(HEAD.replace(b"100", b"%d" % len(body)) + b"\r\n" + body)
        await front.wait_counted(status="503")
        assert front.gateway.under_way == 0
        writer.close()


# -- streams


async def test_stream_is_passed_run_by_run_as_it_comes() -> None:
    more = asyncio.Event()
    runs = ["data: 你".encode() + b"\n\n", b"data: 2\n\ndata: 3\n\n", DONE]

    async def events() -> Stream:
        for run in runs:
            yield run
            await more.wait()

    async with running(streams(events)) as front, front.post({**CHAT, "stream": True}) as response:
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert await response.content.readany() == runs[0]
        more.set()
        assert await response.content.read() == runs[1] + runs[2]
    assert front.counted() == 1


async def test_client_that_leaves_cancels_the_stream() -> None:
    closed = asyncio.Event()

    async def events() -> Stream:
        try:
            yield b"data: 1\n\n"
            await asyncio.sleep(3600)
        finally:
            closed.set()

    async with running(streams(events)) as front:
        response = await front.post({**CHAT, "stream": True})
        await response.content.readany()
        response.close()
        async with asyncio.timeout(1):
            await closed.wait()
        await front.wait_counted(status="499")


async def test_client_that_leaves_cancels_a_whole_answer() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def never(_ask: Ask) -> Answer:
        entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()
        raise AssertionError

    async with running(never) as front:
        asked = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        asked.cancel()
        async with asyncio.timeout(1):
            await cancelled.wait()
        await front.wait_counted(status="499", step="none")


async def test_client_that_leaves_a_stream_it_does_not_read() -> None:
    closed, flowing = asyncio.Event(), asyncio.Event()

    async def events() -> Stream:
        try:
            while True:
                yield b"data: " + b"x" * 100_000 + b"\n\n"
                flowing.set()
        finally:
            closed.set()

    async with running(streams(events)) as front:
        host, _colon, port = front.gateway.addresses[0].rpartition(":")
        _reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        body = json.dumps({**CHAT, "stream": True}).encode()
        writer.write(HEAD.replace(b"100", b"%d" % len(body)) + b"\r\n" + body)
        await flowing.wait()
        writer.transport.abort()
        async with asyncio.timeout(1):
            await closed.wait()


async def test_stream_that_fails_or_lasts_too_long_ends_with_an_error_event() -> None:
    async def failing() -> Stream:
        yield b"data: 1\n\n"
        raise RuntimeError("of ours")

    async def endless() -> Stream:
        yield b"data: 1\n\n"
        await asyncio.sleep(3600)

    for events, code in ((failing, "internal"), (endless, "timeout")):
        async with (
            running(streams(events), limits={"total": "200ms"}) as front,
            front.post({**CHAT, "stream": True}) as response,
        ):
            first, last = (await response.content.read()).split(b"\n\n", 1)
            assert first == b"data: 1"
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
            assert b"[DONE]" not in last


# -- reload and stop


async def test_reload_of_keys_and_addresses() -> None:
    async with running() as front:
        old = front.url
        other = hashlib.sha256(b"other").hexdigest()
        keys = {"web": {"token_sha256": other}}
        await front.gateway.reconfigure(make_config(keys=keys, listen=["127.0.0.1:0", "[::1]:0"]))
        assert front.url == old
        assert len(front.gateway.addresses) == 2
        async with front.post() as response:
            assert response.status == 401
        async with front.post(key="other") as response:
            assert response.status == 200
        await front.gateway.reconfigure(make_config(keys=keys, listen=["[::1]:0"]))
        assert front.url.startswith("http://[::1]:")
        async with front.post(key="other") as response:
            assert response.status == 200
        taken = front.gateway.addresses[0]
        with pytest.raises(NearpathError, match="cannot listen"):
            await front.gateway.reconfigure(make_config(keys=keys, listen=["[::1]:0", "127.0.0.1:0", taken]))
        assert front.gateway.addresses == [taken]


async def test_stop_lets_requests_end_and_says_so() -> None:
    hold, entered = asyncio.Event(), asyncio.Event()

    async def events() -> Stream:
        yield b"data: 1\n\n"
        entered.set()
        await hold.wait()
        yield DONE

    async with running(streams(events)) as front:
        response = await front.post({**CHAT, "stream": True})
        await entered.wait()
        stop = asyncio.ensure_future(front.gateway.close(10.0))
        await asyncio.sleep(0)
        with pytest.raises(aiohttp.ClientConnectorError):
            await front.post()
        hold.set()
        assert await response.content.read() == b"data: 1\n\n" + DONE
        await stop


async def test_stop_ends_what_takes_too_long_with_an_error() -> None:
    async def events() -> Stream:
        yield b"data: 1\n\n"
        await asyncio.sleep(3600)

    entered = asyncio.Event()

    async def answer(ask: Ask) -> Answer:
        if ask.stream:
            return Answer(200, {}, events(), UPSTREAM)
        entered.set()
        await asyncio.sleep(3600)
        raise AssertionError

    async with running(answer) as front:
        stream = await front.post({**CHAT, "stream": True})
        await stream.content.readany()
        whole = asyncio.ensure_future(front.post().__aenter__())
        await entered.wait()
        await front.gateway.close(0.05)
        assert json.loads((await stream.content.read()).removeprefix(b"data: "))["error"]["code"] == "stopping"
        response = await whole
        assert (response.status, response.headers["Connection"]) == (503, "close")
        assert (await error_of(response))["code"] == "stopping"


async def test_health_hot_keys_and_readiness() -> None:
    reasons: list[str] = []
    async with running() as front:
        parts = Parts(echo, lambda: (), lambda tenant, count: f"{tenant} {count}\n".encode(), lambda: reasons)
        front.gateway.replace_parts(parts)
        for path, status in (("/healthz", 200), ("/readyz", 200)):
            async with front.session.get(front.url + path) as response:
                assert response.status == status
        reasons.append("degraded: no upstream")
        async with front.session.get(front.url + "/readyz") as response:
            assert (response.status, await response.text()) == (503, "degraded: no upstream\n")
        async with front.session.get(front.url + "/healthz") as response:
            assert response.status == 200
        headers = {"Authorization": "Bearer secret"}
        async with front.session.get(front.url + "/v1/hot-keys?count=5", headers=headers) as response:
            assert await response.text() == "web 5\n"
        async with front.session.get(front.url + "/v1/hot-keys?count=x", headers=headers) as response:
            assert response.status == 400
        async with front.session.get(front.url + "/v1/hot-keys") as response:
            assert response.status == 401


# -- TLS


async def test_tls_and_a_renewed_certificate(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    tls = {"cert": str(cert), "key": str(key)}
    async with running(tls=tls) as front:

        async def shown() -> bytes:
            context = ssl.create_default_context(cafile=str(cert))
            host, _colon, port = front.gateway.addresses[0].rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            der: bytes = writer.get_extra_info("ssl_object").getpeercert(True)
            writer.close()
            return der

        first = await shown()
        make_certificate(tmp_path)
        await front.gateway.reconfigure(make_config(tls=tls))
        assert await shown() != first
        key.write_text("broken")
        with pytest.raises(NearpathError, match="cannot use certificate"):
            await front.gateway.reconfigure(make_config(tls=tls))
        with pytest.raises(NearpathError, match="restart"):
            await front.gateway.reconfigure(make_config())
