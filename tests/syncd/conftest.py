"""Fixtures of all tests of `SourceTree`: a directory, and a source on it that is watched as the fixture `watch` says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.source.io_source import SourceTree
from tests.syncd.watched import Start


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    (tmp_path / "tree").mkdir()
    return os.fsencode(tmp_path / "tree")


@pytest.fixture
def watch() -> str:
    return "inotify"


@pytest.fixture
def start(root: bytes, tmp_path: Path, watch: str) -> Iterator[Start]:
    """Starts a source on the tree; the one before is closed first, so a second call is a restart."""
    open_now: list[SourceTree] = []

    def stop() -> None:
        while open_now:
            open_now.pop().close()

    def start(**options: Any) -> SourceTree:
        stop()
        source = SourceTree(root, tmp_path / "store.db", watch=watch, **options)
        open_now.append(source)
        source.start()
        return source

    start.stop = stop  # type: ignore[attr-defined]
    yield start  # type: ignore[misc]
    stop()
