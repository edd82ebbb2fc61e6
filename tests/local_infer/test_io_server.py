"""The server on real sockets: answers, errors, reload, stop, TLS. Limits and streams have files of their own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from core.errors import NearpathError
from local_infer.api.sse import DONE
from local_infer.fault import UNAVAILABLE, ApiError
from local_infer.model import Answer, Ask, ModelCard, Stream
from tests.local_infer.certificate import make_certificate
from tests.local_infer.server import CHAT, UPSTREAM, error_of, make_config, running, streams

# -- answers and errors


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
    parts: dict[str, Any] = {
        "hottest": lambda tenant, count: f"{tenant} {count}\n".encode(),
        "not_ready": lambda: reasons,
    }
    async with running(parts=parts) as front:
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
            reader, writer = await asyncio.open_connection(*front.address, ssl=context)
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
