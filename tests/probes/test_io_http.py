"""HTTP probes against real servers, well and badly behaved, plain and TLS."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.config import HttpCheck, Source
from core.messages import Target
from probes.faults import LocalFault
from probes.io_http import SO_TIMESTAMPNS, hold_stamps, kernel_stamp_ns, make_contexts, probe_http
from probes.report import Outcome
from tests.probes.small_appliance import until
from tests.probes.wire_server import Answer, make_certificate, reset_after, say, server_tls, serving

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
CONTEXTS = make_contexts()


@pytest.fixture(autouse=True)
async def stamping() -> AsyncIterator[None]:
    """The kernel stamps packets, as it does for an agent that runs."""
    with hold_stamps():
        await until(lambda: has_stamp(), "the kernel stamps packets")
        yield


def has_stamp() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.sendto(b"x", sock.getsockname())
        time.sleep(0.001)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        read_ns = time.time_ns()
        stamp_ns = kernel_stamp_ns(sock.recvmsg(1, 128)[1])
        # A packet that was not stamped when it came gets the time of the read.
        return stamp_ns is not None and stamp_ns < read_ns - 500_000


def target(port: int, *, host: str = "cdn.example.", **check: object) -> Target:
    details = {"kind": "http", "port": port, "interval": "60s", "timeout": "5s", **check}
    return Target("m", "web", 4, "127.0.0.1", host, HttpCheck.model_validate(details))


async def probe(answer: Answer, *, host: str = "cdn.example.", **check: object) -> Outcome:
    async with serving(answer) as port:
        return await probe_http(target(port, host=host, **check), Source(), CONTEXTS)


async def test_the_first_byte_counts_not_the_rest() -> None:
    outcome = await probe(say(0.08, b"H", 0.3, OK[1:]))
    assert outcome.rtt_s is not None
    assert 0.08 <= outcome.rtt_s < 0.38
    assert (outcome.stamp, outcome.loss) == ("kernel", "")


async def test_the_connect_is_not_part_of_the_rtt_and_a_busy_program_neither() -> None:
    """The event loop is blocked while the answer waits in the socket: the kernel's stamp leaves that out."""

    async def answer(_request: bytes, writer: asyncio.StreamWriter) -> None:
        sock: socket.socket = writer.get_extra_info("socket")
        os.write(sock.fileno(), OK)
        time.sleep(0.25)  # noqa: ASYNC251 - this is the point
        await asyncio.sleep(60)  # no end of the connection yet: the kernel would stamp both as one

    outcome = await probe(answer)
    assert outcome.rtt_s is not None
    assert outcome.rtt_s < 0.25
    assert outcome.stamp == "kernel"


async def test_what_is_asked_for() -> None:
    seen: list[bytes] = []

    async def answer(request: bytes, writer: asyncio.StreamWriter) -> None:
        seen.append(request)
        writer.write(OK)

    async with serving(answer) as port:
        await probe_http(target(port, path="/x?y=1"), Source(), CONTEXTS)
    assert seen[0].startswith(b"GET /x?y=1 HTTP/1.1\r\nHost: cdn.example:%d\r\n" % port)
    assert b"Connection: close\r\n" in seen[0]


async def test_load_report_is_taken_also_from_a_failed_answer() -> None:
    good = b"HTTP/1.1 200 OK\r\nendpoint-load-metrics: TEXT cpu_utilization=0.25\r\n\r\n"
    assert (await probe(say(good))).load_ratio == 0.25
    bad = good.replace(b"200 OK", b"503 Busy")
    assert await probe(say(bad)) == Outcome(None, "status 503", load_ratio=0.25)


@pytest.mark.parametrize(
    ("answer", "loss"),
    [
        (say(b"HTTP/1.1 404 Not Found\r\n\r\n"), "status 404"),
        (say(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 500 x\r\n\r\n"), "status 500"),
        (say(b""), "closed"),
        (say(b"HTTP/1.1 200 OK\r\nA: b\r\n"), "closed"),
        (say(b"SSH-2.0-OpenSSH_9\r\n"), "bad response: not HTTP/1"),
        (say(b"HTTP/1.1 200 OK\r\nBad name: x\r\n\r\n"), "bad response: header line"),
        (say(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000), "bad response: headers over 32 KiB"),
        (reset_after(b"HTTP/1.1 200 OK\r\nA: b"), "reset"),
        (reset_after(b""), "reset"),
    ],
)
async def test_losses_have_their_reason(answer: Answer, loss: str) -> None:
    outcome = await probe(answer)
    assert (outcome.rtt_s, outcome.loss) == (None, loss)


async def test_status_that_is_expected() -> None:
    assert (await probe(say(b"HTTP/1.1 418 x\r\n\r\n"), expect=[418])).loss == ""
    assert (await probe(say(OK), expect=[418])).loss == "status 200"


async def test_hang_and_drip_end_at_the_timeout() -> None:
    assert (await probe(say(60.0), timeout="100ms")).loss == "timeout response"
    drip: list[bytes | float] = []
    for _ in range(1000):
        drip += [b"HTTP/1.1 200 OK\r\n"[:1] if not drip else b"X", 0.02]
    assert (await probe(say(b"HTTP/1.1 200 OK\r\nA: ", *drip), timeout="200ms")).loss == "timeout response"


async def test_an_endless_body_is_not_read() -> None:
    async def answer(_request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    assert (await probe(answer)).loss == ""


async def test_refused_port_and_full_backlog() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert (await probe_http(target(sock.getsockname()[1]), Source(), CONTEXTS)).loss == "refused"
        sock.listen(0)
        filler = [socket.socket() for _ in range(8)]
        for other in filler:
            other.setblocking(False)
            other.connect_ex(sock.getsockname())
        late = await probe_http(target(sock.getsockname()[1], timeout="100ms"), Source(), CONTEXTS)
        assert late.loss == "timeout connect"
        for other in filler:
            other.close()


async def test_a_host_that_is_none_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(LocalFault, match="not a host"):
        await probe_http(target(1, host="a\r\nX: y"), Source(), CONTEXTS)


# -- TLS


def trusting(cert_file: Path) -> dict[bool, ssl.SSLContext]:
    contexts = make_contexts()
    contexts[True].load_verify_locations(cert_file)
    return contexts


async def test_tls_with_a_trusted_certificate(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "cdn.example")
    async with serving(say(0.05, OK), server_tls(cert, key)) as port:
        outcome = await probe_http(target(port, tls=True), Source(), trusting(cert))
    assert outcome.loss == ""
    assert outcome.rtt_s is not None
    assert 0.05 <= outcome.rtt_s < 5
    assert outcome.stamp == "kernel"


async def test_tls_names_what_is_wrong_with_the_certificate(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "cdn.example")
    async with serving(say(OK), server_tls(cert, key)) as port:
        untrusted = await probe_http(target(port, tls=True), Source(), CONTEXTS)
        other_name = await probe_http(target(port, tls=True, host="www.example."), Source(), trusting(cert))
        unchecked = await probe_http(target(port, tls=True, verify=False, host="www.example."), Source(), CONTEXTS)
    assert untrusted.loss == "tls certificate: self-signed certificate"
    assert other_name.loss.startswith("tls certificate: Hostname mismatch")
    assert unchecked.loss == ""


async def test_tls_with_a_server_that_speaks_none() -> None:
    async with serving(say(OK)) as port:
        outcome = await probe_http(target(port, tls=True, timeout="300ms"), Source(), CONTEXTS)
    assert outcome.loss == "timeout tls"  # it waits for the end of a request that is none

    async def blurt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(blurt, "127.0.0.1", 0)
    outcome = await probe_http(target(server.sockets[0].getsockname()[1], tls=True), Source(), CONTEXTS)
    server.close()
    assert outcome.loss in ("tls wrong version number", "tls record layer failure")


async def test_tls_hang_up_in_the_handshake() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.read(100)
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    outcome = await probe_http(target(server.sockets[0].getsockname()[1], tls=True), Source(), CONTEXTS)
    server.close()
    assert outcome.loss in ("tls closed", "reset")


async def test_descriptors_are_stable_over_a_thousand_probes_good_and_bad(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path, "cdn.example")
    before = open_sockets()
    counts: dict[str, int] = {}
    with socket.socket() as shut:
        shut.bind(("127.0.0.1", 0))
        async with serving(say(OK)) as good, serving(say(60.0)) as hung, serving(say(OK), server_tls(cert, key)) as tls:
            targets = [
                *[target(good) for _ in range(20)],
                *[target(hung, timeout="50ms") for _ in range(10)],
                *[target(shut.getsockname()[1]) for _ in range(10)],
                *[target(tls, tls=True) for _ in range(5)],
                *[target(tls, tls=True, verify=False) for _ in range(5)],
            ]
            for _ in range(20):
                for outcome in await asyncio.gather(*(probe_http(t, Source(), CONTEXTS) for t in targets)):
                    counts[outcome.loss] = counts.get(outcome.loss, 0) + 1
    assert counts["refused"] == 200
    assert counts["timeout response"] >= 190
    assert counts["tls certificate: self-signed certificate"] == 100
    # The servers live in this process too and need a moment to see the resets.
    async with asyncio.timeout(10):
        while len(open_sockets()) > len(before) or len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def open_sockets() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if _is_socket(fd)]


def _is_socket(fd: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
    except OSError:
        return False
