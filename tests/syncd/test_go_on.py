"""What was fetched is not fetched again: nodes killed and ended amid a large file, versions whose time is over."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.syncd.fleet import KEY, SEED, seen
from tests.syncd.nodes import Node, running
from tests.syncd.small_disk import mounted

MB = 1_000_000


@pytest.fixture
def origin(tmp_path: Path) -> Node:
    origin = Node("origin", tmp_path / "origin")
    origin.tree.mkdir(parents=True)
    (origin.home / "key").write_text(SEED.hex())
    origin.configure(children=["copy"], key_file="key")
    return origin


def done_bytes(node: Node) -> int:
    """Of the large file, as its status tells."""
    told: dict[str, Any] = node.status().get("fetching") or {}
    return int(told.get("done_bytes", 0))


def sent_bytes(origin: Node) -> int:
    told: dict[str, Any] = origin.status().get("children") or {}
    return int(told.get("copy", {}).get("sent_bytes", 0))


def test_a_large_file_is_gone_on_with_whoever_was_ended_in_the_middle_of_it(tmp_path: Path, origin: Node) -> None:
    copy = Node("copy", tmp_path / "copy")
    copy.configure(parents=[origin], key=KEY, bandwidth=[{"per_second": "8MB"}])
    (origin.tree / "d").mkdir()
    (origin.tree / "d/big").write_bytes(os.urandom(32 * MB))
    (origin.tree / "small").write_text("x")
    with running(origin, copy):
        copy.until(lambda: 6 * MB < done_bytes(copy) < 32 * MB, "a part of the file is here, and shows")
        configs = origin.home / "state/rsyncd"
        left = os.listdir(configs)
        assert len(left) == 1, "one stream runs"
        origin.stop(signal.SIGKILL)
        origin.start()
        assert not set(left) & set(os.listdir(configs)), "what a killed node left in its state directory"
        copy.until(lambda: done_bytes(copy) > 16 * MB, "it goes on")
        told = copy.status()["fetching"]
        assert told["left_s"] is None or told["left_s"] < 600
        assert copy.process is not None
        copy.process.kill()  # but not its rsync, which goes on for a moment
        copy.process.wait()
        copy.process = None
        copy.start()
        copy.until(lambda: seen(copy.tree) == seen(origin.tree), "it is whole, and published")
        # From its beginning it would be 48 MB. Who is cut loses what was on the way to it.
        assert sent_bytes(origin) < 40 * MB, "what had come was sent again"
    work = copy.home / ".tree.syncd"
    assert [path for path in work.rglob("*") if path.is_file() and path.stat().st_size > 4096] == []


def test_old_versions_go_when_their_time_is_over_and_make_room_for_what_is_next(tmp_path: Path, origin: Node) -> None:
    with mounted(tmp_path / "disk", "60m") as disk:
        copy = Node("copy", disk / "copy")
        reserve = {"size": "1MiB", "share": "0%"}
        copy.configure(parents=[origin], key=KEY, mode="atomic", grace="2s", reserve=reserve)
        (origin.tree / "large").write_bytes(bytes(30 * MB))
        with running(origin, copy):
            copy.until(lambda: (copy.tree / "large").exists(), "the first version")
            (origin.tree / "large").unlink()
            (origin.tree / "little").write_text("x")
            copy.until(lambda: seen(copy.tree) == seen(origin.tree), "the second version")
            versions = copy.home / "tree.versions"

            def numbers() -> list[str]:
                return [name for name in os.listdir(versions) if name.isdigit()]

            copy.until(lambda: len(numbers()) == 1, "nothing is published, and the old versions go")
            (origin.tree / "larger").write_bytes(bytes(35 * MB))
            copy.until(lambda: seen(copy.tree) == seen(origin.tree), "there is room for it")
