"""How much memory can be had: what the kernel says of the host, and what is left within the cgroups of this process."""

from __future__ import annotations

from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""cgroup v1 says `no limit` with a number near 2^63."""


def available_bytes(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Bytes that can be taken without swapping or being killed: the least of host and all enclosing cgroups.

    Where nothing can be read (no Linux), a large number: then no model is ever unloaded for memory.
    """
    found = [_of_host(_read(proc / "meminfo"))]
    groups = read_groups(_read(proc / "self" / "cgroup"))
    for name, path in groups:
        top = cgroups if name == "" else cgroups / name
        place = top / path.lstrip("/")
        # A limit may be set on any group above; within a container the own path may not be there, its root is.
        while True:
            found.append(_of_v2(place) if name == "" else _of_v1(place))
            if place == top or top not in place.parents:
                break
            place = place.parent
    return min((size for size in found if size is not None), default=_UNLIMITED_BYTES)


def read_groups(text: str) -> list[tuple[str, str]]:
    """(controller, path) of /proc/self/cgroup that limit memory; the controller of cgroup v2 is empty."""
    groups = []
    for line in text.splitlines():
        _number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not path:
            continue
        if not names:
            groups.append(("", path))
        elif "memory" in names.split(","):
            groups.append(("memory", path))
    return groups


def rss_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Resident memory of a process; 0 when it is gone."""
    return _field(_read(proc / str(pid) / "status"), "VmRSS:", 1024) or 0


def _of_host(meminfo: str) -> int | None:
    return _field(meminfo, "MemAvailable:", 1024)


def _of_v2(place: Path) -> int | None:
    limit, used = _number(_read(place / "memory.max")), _number(_read(place / "memory.current"))
    if limit is None or used is None:
        return None
    # Page cache that nobody uses is given back before anybody is killed.
    return max(0, limit - used + (_field(_read(place / "memory.stat"), "inactive_file", 1) or 0))


def _of_v1(place: Path) -> int | None:
    limit = _number(_read(place / "memory.limit_in_bytes"))
    used = _number(_read(place / "memory.usage_in_bytes"))
    if limit is None or used is None or limit >= _UNLIMITED_BYTES:
        return None
    return max(0, limit - used + (_field(_read(place / "memory.stat"), "total_inactive_file", 1) or 0))


def _number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isdecimal() else None  # `max`: no limit


def _field(text: str, name: str, unit: int) -> int | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == name and words[1].isdecimal():
            return int(words[1]) * unit
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text("ascii", "replace")
    except OSError:
        return ""
