"""Skips the lab's tests by name where the lab cannot run."""

from __future__ import annotations

import shutil

import pytest

from tests.lab import netns

NEEDED_PROGRAMS = {"nsenter": "util-linux", "dig": "bind9-dnsutils"}


def why_not() -> str | None:
    """What is missing here for the tests marked `lab`, or None."""
    for program, package in NEEDED_PROGRAMS.items():
        if shutil.which(program) is None:
            return f"the lab needs the program {program} (Debian package {package})"
    return netns.why_not_here()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("lab") is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
