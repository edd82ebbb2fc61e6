"""`local-infer check` tries what the cache uses, which the gateway would do without in silence."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from core.io_config_infer import read_infer_config
from local_infer.cache import io_cache_redis
from local_infer.io_check_cache import Finding, check_cache
from tests.local_infer.gateway import KEY, running_gateway, url_of, write_config
from tests.local_infer.mock_upstream import MockUpstream


async def findings(folder: Path, **cache: object) -> list[Finding]:
    return await check_cache(read_infer_config(write_config(folder, {"a": MockUpstream()}, cache=cache)))


async def test_without_any_of_it_there_is_nothing_to_try(tmp_path: Path) -> None:
    assert await findings(tmp_path) == []


@pytest.mark.skipif(not io_cache_redis._installed, reason="the Redis client (extra `infer`) is not installed")
async def test_a_redis_that_is_away(tmp_path: Path) -> None:
    [(good, name, text)] = await findings(tmp_path, redis=f"unix://{tmp_path}/none.sock")
    assert (good, name) == (False, "cache.redis")
    assert "cannot be asked" in text


async def test_a_warm_file(tmp_path: Path) -> None:
    [(good, name, text)] = await findings(tmp_path, warm_file="warm.jsonl")
    assert (good, name) == (False, "cache.warm_file")
    assert "No such file" in text
    line = json.dumps({"body": {"model": "m", "messages": [{"role": "user", "content": "x"}]}})
    (tmp_path / "warm.jsonl").write_text(f"{line}\n{{}}\n{line}\n")
    [(good, _name, text)] = await findings(tmp_path, warm_file="warm.jsonl")
    assert (good, "2 requests in" in text, "line 2: has no object `body`" in text) == (False, True, True)
    (tmp_path / "warm.jsonl").write_text(f"{line}\n")
    [(good, _name, text)] = await findings(tmp_path, warm_file="warm.jsonl")
    assert (good, text) == (True, f"1 requests in {tmp_path / 'warm.jsonl'}")


async def test_neighbours(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    file = tmp_path / "neighbour.key"
    file.touch(mode=0o600)
    async with MockUpstream() as upstream, running_gateway(there, {"east": upstream}) as daemon:
        urls = [url_of(daemon), "http://127.0.0.1:1/v1"]
        file.write_text("wrong")
        found = await findings(tmp_path, neighbours=urls, neighbour_key_file=file.name)
        assert [good for good, _name, _text in found] == [False, False]
        assert "does not take the key in neighbour_key_file" in found[0][2]
        file.write_text(KEY)
        found = await findings(tmp_path, neighbours=urls, neighbour_key_file=file.name)
        assert [good for good, _name, _text in found] == [True, False]
        assert hashlib.sha256(KEY.encode()).hexdigest() not in str(found)
        assert KEY not in str(found)
