"""The kept steering table: what a `dnsd` of its own reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from core.errors import MessageError
from policy.table import dump_services, load_services

MakeWorld = Callable[..., Any]


def test_a_dumped_table_comes_back(make_world: MakeWorld) -> None:
    world = make_world()
    table = world.engine.decide(world.now)
    assert load_services(dump_services(table), world.regions) == table


ROW = [["m"], ["192.0.2.1"], 5, 0, False, ""]


@pytest.mark.parametrize(
    "dumped",
    [
        "", "[]", "{}", "[" * 100_000,
        {"generation": 1e999}, {"decided_s": "x"}, {"services": []}, {"services": {"a.": []}},
        {"services": {"a.": {"4": []}}},
        {"services": {"a.": {"4": [[["no such region"], *ROW]], "6": []}}},
        {"services": {"a.": {"4": [[[[]], *ROW]], "6": []}}},
        {"services": {"a.": {"4": [[["world"], *ROW[:-1]]], "6": []}}},
        {"services": {"a.": {"4": [[["world"], *ROW[:3], 99, False, ""]], "6": []}}},
    ],
    ids=range(13),
)  # fmt: skip
def test_a_damaged_table_is_refused_with_the_one_error_that_dnsd_survives(make_world: MakeWorld, dumped: Any) -> None:
    good = {"generation": 1, "decided_s": 1.0, "services": {}}
    text = dumped if isinstance(dumped, str) else json.dumps({**good, **dumped})
    with pytest.raises(MessageError, match="damaged"):
        load_services(text.encode(), make_world().regions)
