"""Reloads of an appliance in this process: two at once, and faults of our own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.config import Config
from core.errors import NearpathError
from nearpath import appliance as module
from nearpath.appliance import Appliance
from nearpath.loading import Loaded, load
from tests.nearpath.daemon import CONFIG, ZONE


@pytest.fixture
async def appliance(tmp_path: Path) -> AsyncIterator[Appliance]:
    (tmp_path / "nearpath.yaml").write_text(CONFIG.replace(', "[::1]:0"', ""))
    (tmp_path / "mirror.example.zone").write_text(ZONE)
    opened = await Appliance.open(tmp_path / "nearpath.yaml")
    yield opened
    await opened.close()


async def test_of_two_reloads_at_once_the_later_file_wins(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGHUP and `nearpath reload`, the first of which reads slowly."""
    first_has_read, may_go_on, calls = threading.Event(), threading.Event(), []

    def slow_at_first(config: Config, older: Loaded | None = None) -> Loaded:
        loaded = load(config, older)
        calls.append(config)
        if len(calls) == 1:
            first_has_read.set()
            may_go_on.wait(10)
        return loaded

    monkeypatch.setattr(module, "load", slow_at_first)
    first = asyncio.create_task(appliance.reload())
    await asyncio.to_thread(first_has_read.wait, 10)
    file = appliance.config_file
    file.write_text(file.read_text().replace("192.0.2.1]", "192.0.2.9]"))
    second = asyncio.create_task(appliance.reload())
    done, _ = await asyncio.wait([second], timeout=0.3)
    may_go_on.set()
    await asyncio.gather(first, second)
    assert appliance.config.mirrors["alpha"].addresses == ["192.0.2.9"]
    assert not done, "the second waited for the first"


async def test_a_fault_of_our_own_is_told_and_the_next_reload_works(
    appliance: Appliance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any) -> Loaded:
        raise ZeroDivisionError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(module, "load", broken)
        with pytest.raises(NearpathError, match="fault in nearpath"):
            await appliance.reload()
    assert "a fault of ours" in appliance.reload_error
    await appliance.reload()
    assert appliance.reload_error == ""
