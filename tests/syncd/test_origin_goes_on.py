"""An origin whose thread or signer meets a fault that nobody foresaw: it goes on, and says so."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.config_sync import Tree
from syncd.source import io_origin
from syncd.source.io_origin import Origin
from syncd.source.io_source import SourceTree, State
from syncd.store import io_offer
from syncd.store.io_signer import sign
from tests.syncd.serving import until


def make_origin(tmp_path: Path) -> Origin:
    (tmp_path / "tree").mkdir()
    tree = Tree(path=str(tmp_path / "tree"), watch="inotify")
    return Origin("t", tree, tmp_path / "t.db", tmp_path / "key")


def once(function: Callable[..., Any], error: Exception, failed: list[Exception]) -> Callable[..., Any]:
    def fails_once(*arguments: Any, **options: Any) -> Any:
        if not failed:
            failed.append(error)
            raise error
        return function(*arguments, **options)

    return fails_once


async def test_a_signer_that_fails_for_whatever_reason_signs_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Exception] = []
    monkeypatch.setattr(io_origin, "REOPEN_S", 0.05)
    monkeypatch.setattr(io_offer, "sign", once(sign, sqlite3.OperationalError("disk I/O error"), failed))
    origin = make_origin(tmp_path)
    await origin.start()
    try:
        await until(lambda: origin.root is not None)
        assert failed
    finally:
        await origin.stop()


async def test_a_tree_that_cannot_be_opened_for_whatever_reason_is_opened_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Exception] = []
    monkeypatch.setattr(io_origin, "REOPEN_S", 0.05)
    monkeypatch.setattr(SourceTree, "_open_root", once(SourceTree._open_root, OSError(24, "Too many files"), failed))
    origin = make_origin(tmp_path)
    async with asyncio.timeout(20):
        await origin.start()
    try:
        await until(lambda: origin.is_ready)
        assert failed
    finally:
        await origin.stop()


async def test_a_damaged_index_is_no_lost_root(tmp_path: Path) -> None:
    origin = make_origin(tmp_path)
    (tmp_path / "t.db").write_bytes(b"no database" * 1000)
    await origin.start()
    try:
        assert origin.status.state is State.STORE_FAILED
        assert "move it away" in origin.status.why
    finally:
        await origin.stop()
