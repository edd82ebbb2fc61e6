"""The control socket, both sides of it over a real one."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from core.errors import NearpathError
from core.io_control import CONTROL_SOCKET, Peer, Refusal, ask_control, bind_control, control_app, read_object, told

PEER = Peer("toy", "start it with `toy up`")


async def _echo(request: web.Request) -> web.Response:
    body = await read_object(request)
    return told({"body": body, "query": dict(request.query)})


async def _refuse(_request: web.Request) -> web.Response:
    raise Refusal(409, "the cat is out", "call it")


async def _fail(_request: web.Request) -> web.Response:
    raise NearpathError("no such thing", "name another")


async def _be_late(_request: web.Request) -> web.Response:
    raise TimeoutError


async def _hang(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    return told({})


@pytest.fixture
async def state_dir(tmp_path: Path) -> AsyncIterator[Path]:
    app = control_app(
        [
            web.post("/v1/echo", _echo),
            web.get("/v1/refuse", _refuse),
            web.get("/v1/fail", _fail),
            web.get("/v1/late", _be_late),
            web.get("/v1/hang", _hang),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.SockSite(runner, bind_control(tmp_path)).start()
    yield tmp_path
    await runner.cleanup()


async def test_question_and_answer(state_dir: Path) -> None:
    odd = {"name": "no utf-8: \udcff", "n": 1}
    answer = await ask_control(PEER, state_dir, "POST", "/v1/echo", odd, {"client": "2001:db8::/32"})
    assert answer == {"body": odd, "query": {"client": "2001:db8::/32"}}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/refuse", None, 409, "the cat is out: call it"),
        ("GET", "/v1/fail", None, 400, "no such thing: name another"),
        ("GET", "/v1/late", None, 503, "the daemon is too busy for this now: its status says with what"),
        ("POST", "/v1/echo", ["no", "object"], 400, "the request is no JSON object: use the command line"),
        ("POST", "/v1/echo", {"much": "x" * (64 << 10)}, 413, "the toy at .* gave no answer: 413"),
        ("GET", "/v1/nothing", None, 404, "the toy at .* gave no answer: 404"),
    ],
)
async def test_a_refusal_says_why(
    method: str, path: str, body: object, status: int, said: str, state_dir: Path
) -> None:
    with pytest.raises(NearpathError, match=said):
        await ask_control(PEER, state_dir, method, path, body)
    connector = aiohttp.UnixConnector(str(state_dir / CONTROL_SOCKET))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, f"http://x{path}", json=body) as response,
    ):
        assert response.status == status


async def test_a_daemon_that_hangs_is_not_waited_for(state_dir: Path) -> None:
    with pytest.raises(NearpathError, match=r"the toy at .* gave no answer: none within 0.1 s: see its log"):
        await ask_control(PEER, state_dir, "GET", "/v1/hang", timeout_s=0.1)


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(NearpathError, match=rf"no toy answers at {tmp_path}/control.sock: start it with `toy up`"):
        await ask_control(PEER, tmp_path, "GET", "/v1/status")
    bind_control(tmp_path).close()  # as a killed daemon leaves it
    with pytest.raises(NearpathError, match="no toy answers"):
        await ask_control(PEER, tmp_path, "GET", "/v1/status")


def test_the_socket_is_for_its_group_and_replaces_one_left_behind(tmp_path: Path) -> None:
    bind_control(tmp_path).close()
    with bind_control(tmp_path):
        assert stat.S_IMODE((tmp_path / CONTROL_SOCKET).stat().st_mode) == 0o660


def test_a_state_dir_too_deep_for_a_socket_is_said(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(NearpathError, match=r"cannot create the control socket .* choose a shorter state_dir"):
        bind_control(deep)
