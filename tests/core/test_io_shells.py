"""The thin shells of core against the real thing: HTTP, sd_notify sockets, clocks, log lines."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from prometheus_client import CollectorRegistry, Counter

from core import io_clock
from core.errors import NearpathError
from core.io_clock import AnchoredClock
from core.io_http import bind_tcp, bound_address, make_health_app
from core.io_systemd import Notifier

# -- io_http


@contextlib.asynccontextmanager
async def serve(app: web.Application, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    runner = web.AppRunner(app)
    await runner.setup()
    sock = bind_tcp(listen)
    await web.SockSite(runner, sock).start()
    try:
        yield f"http://{bound_address(sock)}"
    finally:
        await runner.cleanup()


async def test_metrics_in_both_text_formats() -> None:
    registry = CollectorRegistry()
    Counter("np_tests", "Tests that were run.", registry=registry).inc(3)
    async with serve(make_health_app(registry, list)) as url, ClientSession() as client:
        async with client.get(f"{url}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            text = await answer.text()
            assert "np_tests_total 3.0\n" in text
            assert "# EOF" not in text
        async with client.get(
            f"{url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
        ) as answer:
            assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
            text = await answer.text()
            assert "np_tests_total 3.0\n" in text
            assert text.endswith("# EOF\n")


async def test_health_and_readiness() -> None:
    reasons: list[str] = []
    async with serve(make_health_app(CollectorRegistry(), lambda: reasons)) as url, ClientSession() as client:

        async def get(path: str) -> tuple[int, str]:
            async with client.get(url + path) as answer:
                return answer.status, await answer.text()

        assert await get("/healthz") == (200, "ok\n")
        assert await get("/readyz") == (200, "ready\n")
        reasons += ["no table yet", "the store is full"]
        assert await get("/readyz") == (503, "no table yet\nthe store is full\n")
        assert await get("/healthz") == (200, "ok\n")
        assert (await get("/other"))[0] == 404
        async with client.post(f"{url}/readyz") as answer:
            assert answer.status == 405


async def test_health_over_ipv6() -> None:
    try:
        bind_tcp("[::1]:0").close()
    except NearpathError:
        pytest.skip("no IPv6 on loopback")
    async with serve(make_health_app(CollectorRegistry(), list), "[::1]:0") as url, ClientSession() as client:
        assert url.startswith("http://[::1]:")
        async with client.get(f"{url}/healthz") as answer:
            assert answer.status == 200


def test_an_address_that_cannot_be_had_is_named_with_what_to_do() -> None:
    with contextlib.closing(bind_tcp("127.0.0.1:0")) as sock:
        taken = bound_address(sock)
        assert not taken.endswith(":0")
        with pytest.raises(
            NearpathError, match=rf"cannot listen on {taken} \(TCP\): Address already in use: .*ss -ltnp"
        ):
            bind_tcp(taken)
    with pytest.raises(NearpathError, match=r"cannot listen on 192\.0\.2\.1:0 .*the address is not on this host"):
        bind_tcp("192.0.2.1:0")


def test_no_address_family_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # A kernel without IPv6 refuses the socket itself, before any bind.
    def refuse(*_args: object) -> socket.socket:
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(NearpathError, match=r"cannot listen on \[::1\]:0 \(TCP\): Address family not supported"):
        bind_tcp("[::1]:0")


# -- io_systemd


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end of the notification socket."""
    name = f"np-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        if request.param == "path":
            # Short, as tmp_path may be over the 107 bytes of a socket address.
            monkeypatch.chdir(tmp_path)
            sock.bind("notify")
            monkeypatch.setenv("NOTIFY_SOCKET", "notify")
        else:
            sock.bind("\0" + name)
            monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        sock.setblocking(False)
        yield sock


def test_notifications(manager: socket.socket) -> None:
    notifier = Notifier()
    notifier.ready()
    notifier.ready("serving\nSTOPPING=1")
    notifier.reloading(12345)
    notifier.status("two\nlines")
    notifier.alive()
    notifier.stopping()
    got = []
    with contextlib.suppress(BlockingIOError):
        while True:
            got.append(manager.recv(4096).decode())
    # A line break in a status would begin another notification.
    assert got == [
        "READY=1", "READY=1\nSTATUS=serving STOPPING=1", "RELOADING=1\nMONOTONIC_USEC=12345", "STATUS=two lines",
        "WATCHDOG=1", "STOPPING=1",
    ]  # fmt: skip


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@np-test-nobody-listens", "x" * 500, "relative"])
def test_a_daemon_lives_on_without_a_manager(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier()
    notifier.ready("x")
    notifier.alive()


def test_without_the_variable_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("no socket is needed"))
    Notifier().ready()


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        ("30000000", "", 15.0), ("30000000", "me", 15.0), ("30000000", "1", None), ("0", "", None), ("", "", None),
        ("soon", "", None), ("-5", "", None), ("²", "", None), ("1", "", 5e-7),
    ],
)  # fmt: skip
def test_watchdog_interval(usec: str, pid: str, interval_s: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "me" else pid)
    assert Notifier().watchdog_interval_s == interval_s


# -- io_clock


def test_the_clock_never_goes_back_and_starts_at_the_wall_clock() -> None:
    before = time.time()
    clock = AnchoredClock()
    times = [clock.now() for _ in range(10_000)]
    # The wall clock is slewed at most 0.5 ms/s; a second is room for a slow machine.
    assert before - 1 < times[0]
    assert times[-1] < time.time() + 1
    assert times == sorted(times)
    assert abs(clock.skew_s()) < 1


def test_a_wall_clock_that_is_set_moves_the_skew_only(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, boot = [1_000_000.0], [50.0]
    monkeypatch.setattr(io_clock.time, "time", lambda: wall[0])
    monkeypatch.setattr(io_clock.time, "clock_gettime", lambda _clock: boot[0])
    clock = AnchoredClock()
    boot[0] += 10
    wall[0] += 10
    assert (clock.now(), clock.skew_s()) == (1_000_010.0, 0.0)
    wall[0] -= 3600
    assert (clock.now(), clock.skew_s()) == (1_000_010.0, -3600.0)
    boot[0] += 86400  # a suspend counts
    wall[0] += 86400
    assert (clock.now(), clock.skew_s()) == (1_086_410.0, -3600.0)


# -- log

LOG_SCRIPT = """
from core.io_log import get_logger, set_up_logging
log = get_logger("test")
set_up_logging(json={json}, debug={debug})
log.info("started", port=53, token="hunter2", authorization="Bearer hunter2", text="two\\nlines \\x1b[31m")
log.debug("detail")
def check(token):
    return len(token) / 0
try:
    check("hunter" + str(1 + 1))
except ZeroDivisionError:
    log.exception("broken")
"""


def run_log(*, json: bool, debug: bool) -> str:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", LOG_SCRIPT.format(json=json, debug=debug)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout == ""
    assert "hunter2" not in done.stderr  # neither as a key nor among the locals of a traceback
    return done.stderr


def test_json_log_lines() -> None:
    started, detail, broken = (json.loads(line) for line in run_log(json=True, debug=True).splitlines())
    assert {key: started[key] for key in ("event", "level", "part", "port", "token", "text")} == {
        "event": "started", "level": "info", "part": "test", "port": 53, "token": "[hidden]",
        "text": "two\nlines \x1b[31m",
    }  # fmt: skip
    assert detail["event"] == "detail"
    assert broken["exception"][0]["exc_type"] == "ZeroDivisionError"


def test_text_log_lines_hold_one_event_each() -> None:
    first, *rest = run_log(json=False, debug=False).splitlines()
    assert "started" in first
    assert "port=53" in first
    assert "token=[hidden]" in first.replace("'", "")
    assert "\x1b" not in first  # what came from outside must not steer the terminal
    assert "broken" in rest[0]
    assert any("ZeroDivisionError" in line for line in rest)
