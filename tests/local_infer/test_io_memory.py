"""What memory can be had, read from trees as Linux has them: no cgroup, v2 with limits above, v1, in a container."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from local_infer.generation.io_memory import available_bytes, read_groups, rss_bytes

MIB = 1 << 20


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    write(tmp_path / "proc/meminfo", "MemTotal: 4096000 kB\nMemFree: 1 kB\nMemAvailable:    2048000 kB\n")
    return tmp_path / "proc"


def group(place: Path, limit: str, used: int, inactive: int) -> None:
    write(place / "memory.max", f"{limit}\n")
    write(place / "memory.current", f"{used}\n")
    write(place / "memory.stat", f"anon 5\nactive_file 7\ninactive_file {inactive}\n")


def test_host_only(proc: Path, tmp_path: Path) -> None:
    assert available_bytes(proc, tmp_path / "none") == 2048000 * 1024


def test_v2_the_tightest_group_above_counts(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    write(proc / "self/cgroup", "0::/system.slice/local-infer.service\n")
    group(groups / "system.slice/local-infer.service", "max", 300 * MIB, 0)
    group(groups / "system.slice", str(500 * MIB), 450 * MIB, 20 * MIB)
    assert available_bytes(proc, groups) == 70 * MIB
    group(groups / "system.slice/local-infer.service", str(310 * MIB), 300 * MIB, 5 * MIB)
    assert available_bytes(proc, groups) == 15 * MIB
    group(groups / "system.slice/local-infer.service", str(100 * MIB), 300 * MIB, 0)
    assert available_bytes(proc, groups) == 0


def test_within_a_container_the_root_is_its_own_group(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    write(proc / "self/cgroup", "0::/docker/0123\n")
    group(groups, str(200 * MIB), 150 * MIB, 10 * MIB)
    assert available_bytes(proc, groups) == 60 * MIB


def test_v1(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    write(proc / "self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/a/b\n0::/\n")
    place = groups / "memory/a/b"
    write(place / "memory.limit_in_bytes", f"{128 * MIB}\n")
    write(place / "memory.usage_in_bytes", f"{100 * MIB}\n")
    write(place / "memory.stat", f"total_inactive_file {MIB}\n")
    write(groups / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(groups / "memory/memory.usage_in_bytes", "5\n")
    assert available_bytes(proc, groups) == 29 * MIB


def test_lines_of_proc_self_cgroup() -> None:
    assert read_groups("12:name=systemd:/\n4:hugetlb,memory:/m\n0::/u:v\nrubbish\n") == [("memory", "/m"), ("", "/u:v")]


def test_nothing_to_read_means_no_limit(tmp_path: Path) -> None:
    assert available_bytes(tmp_path, tmp_path) >= 1 << 60


def test_this_machine() -> None:
    assert 0 < available_bytes() < 1 << 60
    assert rss_bytes(os.getpid()) > 5 * MIB
    assert rss_bytes(2**22 + 1) == 0
