"""Calls to an appliance that is well, away, slow, lying or hostile: every answer bounded, every error says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from core.config import TcpCheck
from core.errors import NearpathError
from core.messages import Target, encode
from probes.io_appliance import ApplianceClient, CallFailed, find_token_exposure, make_tls_context
from probes.report import Moment, Outcome, SpooledSample, make_report
from tests.probes.small_appliance import TOKEN, SmallAppliance, make_config
from tests.probes.wire_server import Answer, make_certificate, say, server_tls, serving

MOMENT = Moment("b", 1.0, 2.0)
REPORT = make_report("ab" * 16, [SpooledSample(1, "m", "c", 4, Outcome(0.1), MOMENT)], MOMENT)
TARGET = Target("m", "c", 4, "127.0.0.1", "h.example", TcpCheck(kind="tcp", port=1, interval="5s", timeout="1s"))


@asynccontextmanager
async def client_of(folder: Path, url: str, timeout_s: float = 20.0, **more: object) -> AsyncIterator[ApplianceClient]:
    client = ApplianceClient(make_config(folder, url, **more), timeout_s=timeout_s)
    try:
        yield client
    finally:
        await client.close()


async def failure(call: Callable[[], Awaitable[object]]) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await call()
    assert TOKEN not in str(caught.value)
    return caught.value


async def test_targets_are_fetched_once_and_then_confirmed(tmp_path: Path) -> None:
    appliance = SmallAppliance([TARGET])
    await appliance.start()
    async with client_of(tmp_path, appliance.url) as client:
        fetched = await client.fetch_targets("")
        assert fetched == appliance.targets
        assert await client.fetch_targets(fetched.etag) is None
        assert await client.deliver(REPORT) == 1
    await appliance.stop()
    assert appliance.fetches == [200, 304]


async def test_https_with_a_ca_file_and_without(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "appliance.example")
    appliance = SmallAppliance([TARGET], server_tls(cert, key))
    await appliance.start()
    async with client_of(tmp_path, appliance.url, ca_file=str(cert)) as client:
        assert await client.deliver(REPORT) == 1
    async with client_of(tmp_path, appliance.url) as client:
        error = await failure(lambda: client.deliver(REPORT))
    await appliance.stop()
    assert error.reason == "tls"
    assert "ca_file" in error.fix
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(NearpathError, match=r"ca_file .*empty\.pem cannot be used"):
        make_tls_context(make_config(tmp_path, "https://127.0.0.1:1", ca_file="empty.pem"))


def http(status: str, body: bytes = b"", *headers: bytes) -> Answer:
    head = [b"HTTP/1.1 " + status.encode(), b"Content-Length: %d" % len(body), b"Connection: close", *headers]
    return say(b"\r\n".join(head) + b"\r\n\r\n" + body)


BOMB = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (http("401 No"), "auth"),
        (http("403 No"), "auth"),
        (http("400 Bad"), "content"),
        (http("413 Large"), "content"),
        (http("500 Oops"), "server"),
        (http("302 Found", b"", b"Location: http://127.0.0.1:1/"), "server"),
        (http("304 Same"), "server"),
        (http("200 OK", b"<html>"), "garbage"),
        (http("200 OK", b'{"acked": "many"}'), "garbage"),
        (http("200 OK", b'{"acked": 1, "more": 2}'), "garbage"),
        (http("200 OK", b"[" * 60_000), "garbage"),
        (http("200 OK", BOMB, b"Content-Encoding: gzip"), "garbage"),
        (http("200 OK", b"x" * 70_000), "garbage"),
        (say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", 60.0), "timeout"),
        (say(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000), "garbage"),
        (say(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 100_000), "garbage"),
        (say(b"220 mail.example ESMTP\r\n"), "garbage"),
        (say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "garbage"),
        (say(b""), "network"),
        (say(60.0), "timeout"),
        (say(b"HTTP/1.1 200 OK\r\nA: ", *[b"x", 0.05] * 40), "timeout"),
    ],
)
async def test_bad_answers_are_bounded_and_told_apart(tmp_path: Path, answer: Answer, reason: str) -> None:
    async with serving(answer) as port, client_of(tmp_path, f"http://127.0.0.1:{port}", 0.5) as client:
        error = await failure(lambda: client.deliver(REPORT))
    assert (error.reason, error.retry_after_s) == (reason, None)


async def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    sent = 0

    async def endless(_request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with serving(endless) as port, client_of(tmp_path, f"http://127.0.0.1:{port}") as client:
        error = await failure(lambda: client.deliver(REPORT))
    assert error.reason == "garbage"
    assert "over 64 KiB" in str(error)
    assert sent < 32 << 20  # what the sockets' buffers took


@pytest.mark.parametrize("status", ["503 Busy", "429 Slow down"])
async def test_retry_after(tmp_path: Path, status: str) -> None:
    async with (
        serving(http(status, b"", b"Retry-After: 7")) as port,
        client_of(tmp_path, f"http://127.0.0.1:{port}") as client,
    ):
        error = await failure(lambda: client.deliver(REPORT))
    assert (error.reason, error.retry_after_s) == ("busy", 7.0)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"etag": "x", "targets": [{}]}', b'{"etag": "x", "targets": null}'])
async def test_bad_targets(tmp_path: Path, body: bytes) -> None:
    async with serving(http("200 OK", body)) as port, client_of(tmp_path, f"http://127.0.0.1:{port}") as client:
        assert (await failure(lambda: client.fetch_targets(""))).reason == "garbage"


async def test_targets_that_ask_for_nonsense_are_refused_as_a_whole(tmp_path: Path) -> None:
    appliance = SmallAppliance([TARGET])
    good = encode(appliance.targets)
    for old, new in (
        (b'"5s"', b'"1ms"'),
        (b"127.0.0.1", b"fe80::1%eth0"),
        (b'"port":1', b'"port":0'),
        (b'"m"', b'"M\\n"'),
    ):
        assert old in good
        body = good.replace(old, new)
        async with serving(http("200 OK", body)) as port, client_of(tmp_path, f"http://127.0.0.1:{port}") as client:
            assert (await failure(lambda client=client: client.fetch_targets(""))).reason == "garbage"


async def test_the_token_does_not_follow_a_redirect(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def thief(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"acked":1}')

    async with serving(thief) as there:
        redirect = http("307 There", b"", b"Location: http://127.0.0.1:%d/v1/samples" % there)
        async with serving(redirect) as port, client_of(tmp_path, f"http://127.0.0.1:{port}") as client:
            assert (await failure(lambda: client.deliver(REPORT))).reason == "server"
    assert seen == []


async def test_nobody_there(tmp_path: Path) -> None:
    async with serving(say(b"")) as port:
        pass
    async with client_of(tmp_path, f"http://127.0.0.1:{port}") as client:
        error = await failure(lambda: client.deliver(REPORT))
    assert error.reason == "network"
    assert "is the appliance up" in error.fix


# -- the token file


async def test_a_file_without_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"two words\n")
    async with client_of(tmp_path, "http://127.0.0.1:1") as client:
        assert (await failure(lambda: client.deliver(REPORT))).reason == "token"


@pytest.mark.parametrize(("mode", "exposed"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_token_that_others_can_read(tmp_path: Path, mode: int, exposed: bool) -> None:
    file = tmp_path / "token"
    file.write_text("secret")
    file.chmod(mode)
    found = find_token_exposure(str(file))
    assert (found is not None) == exposed
    assert found is None or "chmod 600" in found
