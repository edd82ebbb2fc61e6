"""The API's own JavaScript client works unchanged. It needs node, and the client in run/node."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.local_infer.gateway import KEY, running_gateway, url_of
from tests.local_infer.mock_upstream import TEXT, MockUpstream, Reply
from tests.tracked import ROOT

_HERE = Path(__file__).parent / "openai_node"
_PREFIX = ROOT / "run" / "node"
_MISSING = "the JavaScript client is not installed: scripts/set-up node"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not (_PREFIX / "node_modules" / "openai").is_dir(), reason=_MISSING),
]

Play = Callable[[str], Awaitable[Any]]


@asynccontextmanager
async def playing(folder: Path, always: Reply | None = None) -> AsyncIterator[tuple[Play, MockUpstream]]:
    """An upstream, a gateway, and a function that plays a case of client.mjs against it."""
    async with MockUpstream(always) as upstream, running_gateway(folder, {"east": upstream}) as daemon:

        async def play(case: str) -> Any:
            process = await asyncio.create_subprocess_exec(
                "node", str(_HERE / "client.mjs"), str(_PREFIX), url_of(daemon), KEY, case,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, errors = await process.communicate()
            assert process.returncode == 0, errors.decode()
            return json.loads(out)

        yield play, upstream


async def test_every_endpoint(tmp_path: Path) -> None:
    async with playing(tmp_path) as (play, _upstream):
        seen = await play("all")
        assert seen.pop("request").startswith("req_")
        assert seen == {
            "whole": TEXT, "streamed": TEXT, "text": TEXT, "vectors": [[0.25, -0.5, 0], [0.25, -0.5, 1]],
            "models": ["gpt-test", "embed-test"], "retrieved": "gpt-test",
        }  # fmt: skip


async def test_error_classes(tmp_path: Path) -> None:
    async with playing(tmp_path) as (play, _upstream):
        seen = await play("errors")
        assert {case: (error["name"], error["status"]) for case, error in seen.items()} == {
            "bad": ("BadRequestError", 400),
            "missing": ("NotFoundError", 404),
            "key": ("AuthenticationError", 401),
        }


async def test_characters_cut_anywhere_arrive_whole(tmp_path: Path) -> None:
    async with playing(tmp_path, Reply.split_characters()) as (play, _upstream):
        assert (await play("text"))["streamed"] == "如何关闭自动续费？😀 完"


async def test_stream_cut_in_the_middle_raises(tmp_path: Path) -> None:
    async with playing(tmp_path, Reply.reset(3)) as (play, _upstream):
        error = await play("fails")
        assert error["name"] == "APIError"
        assert "cut" in error["message"]


async def test_nobody_answers(tmp_path: Path) -> None:
    async with playing(tmp_path) as (play, upstream):
        await upstream.down()
        error = await play("fails")
        assert (error["name"], error["status"]) == ("InternalServerError", 503)


async def test_client_that_leaves_cancels_the_upstream(tmp_path: Path) -> None:
    async with playing(tmp_path, Reply.stall(3)) as (play, upstream):
        await play("leaves")
        async with asyncio.timeout(1):
            await upstream.asked[0].gone.wait()
