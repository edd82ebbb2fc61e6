"""The configuration reference says what the models say."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from core.config import Name, Section
from core.units import Duration, Size
from nearpath.configdoc import Key, describe, render


class Inner(Section):
    """What lies inside."""

    kind: Literal["a", "b"] = Field(default="a", description="which")


class Outer(Section):
    """The whole."""

    wait: Duration = Field(default=90.0, gt=0, le=86400, description="how long")
    room: Size | None = Field(default=2048, ge=512, description="how much")
    names: list[Name] = Field(min_length=1, max_length=3, description="who")
    inner: dict[Name, Inner] = Field(default_factory=dict)
    silent: int = 0


def test_every_key_has_type_default_limits_and_meaning() -> None:
    outer, inner = describe(Outer)
    assert outer.keys == (
        Key("wait", "time", "`90s`", "more than 0s, at most 1d", "how long"),
        Key("room", "size", "`2KiB`", "at least 512B", "how much"),
        Key("names", "list of name", "required", "at least one, at most 3 entries", "who"),
        Key("inner", "mapping of name to section", "none", "", "What lies inside."),
        Key("silent", "whole number", "`0`", "", ""),
    )
    assert (inner.place, inner.summary) == ("inner.NAME", "What lies inside.")
    assert inner.keys == (Key("kind", "`a` or `b`", "`a`", "", "which"),)


def test_unknown_type_is_an_error_and_not_a_wrong_page() -> None:
    class Odd(Section):
        """Odd."""

        value: complex = 0j

    with pytest.raises(TypeError, match="complex"):
        describe(Odd)


def test_page_is_a_table_per_section() -> None:
    page = render()
    assert "### `steering.damping`" in page
    assert "| `max_udp_size` | size | `1232B` |" in page
    assert all(line.count("|") - line.count("\\|") == 5 for line in page.splitlines() if line.startswith("| `"))
