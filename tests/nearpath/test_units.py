"""`nearpath install-units`: what is placed, what is kept, and what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from core.errors import NearpathError
from nearpath.shipped import find_shipped
from nearpath.units import (
    Action,
    commands_of,
    find_obstacles,
    install,
    is_untouched,
    marked,
    place_units,
    plan_units,
    render_units,
)

BIN = Path("/srv/np/bin")
UNITS = ["dnsd.service", "local-infer.service", "nearpath.service", "probe-agent.service", "syncd.service"]


def placed(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def actions(root: Path, *, force: bool = False) -> set[Action]:
    return {step.action for step in plan_units(render_units(BIN), root, force=force)}


def test_first_placing_then_nothing_to_do(tmp_path: Path) -> None:
    assert actions(tmp_path) == {Action.NEW}
    place_units(plan_units(render_units(BIN), tmp_path))
    assert list(placed(tmp_path)) == [
        "etc/sysctl.d/60-nearpath-ping.conf",
        *(f"etc/systemd/system/{unit}" for unit in UNITS),
        "etc/sysusers.d/nearpath.conf",
        "etc/tmpfiles.d/nearpath.conf",
    ]
    assert actions(tmp_path) == {Action.SAME}
    assert {p.stat().st_mode & 0o777 for p in tmp_path.rglob("*") if p.is_file()} == {0o644}


def test_commands_are_those_of_this_installation(tmp_path: Path) -> None:
    place_units(plan_units(render_units(BIN), tmp_path))
    text = "".join(placed(tmp_path).values())
    assert "/opt/nearpath/bin" not in text
    assert commands_of(render_units(BIN)) == [
        BIN / name for name in ("dnsd", "local-infer", "nearpath", "probe-agent", "syncd")
    ]


def test_newer_text_replaces_an_untouched_file(tmp_path: Path) -> None:
    place_units(plan_units(render_units(Path("/older/bin")), tmp_path))
    steps = plan_units(render_units(BIN), tmp_path)
    assert {s.path.name for s in steps if s.action is Action.UPDATE} == set(UNITS)
    place_units(steps)
    assert actions(tmp_path) == {Action.SAME}


def test_local_change_is_kept_and_force_saves_it(tmp_path: Path) -> None:
    place_units(plan_units(render_units(BIN), tmp_path))
    unit = tmp_path / "etc/systemd/system/nearpath.service"
    changed = unit.read_text().replace("RestartSec=1", "RestartSec=9")
    unit.write_text(changed)
    steps = plan_units(render_units(Path("/newer/bin")), tmp_path)
    assert {s.path.name: s.action for s in steps if s.path == unit} == {unit.name: Action.KEEP}
    place_units(steps)
    assert unit.read_text() == changed
    place_units(plan_units(render_units(BIN), tmp_path, force=True))
    assert unit.with_name("nearpath.service.old").read_text() == changed
    assert actions(tmp_path) == {Action.SAME}


def test_file_of_somebody_else_is_kept(tmp_path: Path) -> None:
    unit = tmp_path / "etc/systemd/system/dnsd.service"
    unit.parent.mkdir(parents=True)
    unit.write_text("[Service]\nExecStart=/usr/sbin/other-dnsd\n")
    lines = install(tmp_path, bin_dir=BIN)
    assert unit.read_text() == "[Service]\nExecStart=/usr/sbin/other-dnsd\n"
    assert any(str(unit) in line and "kept" in line for line in lines)
    assert any("--force" in line for line in lines)


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    lines = install(tmp_path, bin_dir=BIN, dry_run=True)
    assert placed(tmp_path) == {}
    assert sum(line.startswith("new") for line in lines) == len(render_units(BIN))


def test_mark_covers_every_character() -> None:
    text = "[Unit]\nDescription=x\n"
    assert is_untouched(marked(text))
    for other in (marked(text) + "\n", marked(text).replace("x", "y"), text, ""):
        assert not is_untouched(other)


def test_other_user_runs_all_and_is_not_created() -> None:
    files = render_units(BIN, "mirror")
    assert "sysusers.d" not in {file.target.parent.name for file in files}
    for file in files:
        if file.target.suffix == ".service":
            assert re.findall(r"(?m)^(?:User|Group)=(.*)$", file.text) == ["mirror", "mirror"]
        if file.target.parent.name == "tmpfiles.d":
            assert file.text.splitlines()[-1].split() == [
                "d",
                "/var/lib/nearpath-sync",
                "0750",
                "mirror",
                "mirror",
                "-",
            ]


@pytest.mark.parametrize("user", ["", "a b", "x\nExecStartPre=/bin/evil", "Ä", "-x"])
def test_user_that_is_no_name_is_refused(user: str) -> None:
    with pytest.raises(NearpathError, match="is not a user name"):
        render_units(BIN, user)


@pytest.mark.parametrize("path", ["/srv/a b/bin", "/srv/%h/bin", '/srv/"x"/bin'])
def test_path_that_a_unit_cannot_hold_is_refused(path: str) -> None:
    with pytest.raises(NearpathError, match="mean something in a unit"):
        render_units(Path(path))


def test_hidden_and_missing_programs_are_obstacles(tmp_path: Path) -> None:
    obstacles = find_obstacles(render_units(Path("/home", "np", "bin")))
    assert sum("is not there" in text for text in obstacles) == len(UNITS)
    assert sum("ProtectHome=yes" in text for text in obstacles) == len(UNITS)
    assert any("PrivateTmp" in text for text in find_obstacles([], [Path("/tmp/x/python3")]))
    assert find_obstacles([], [Path("/usr/bin/python3"), Path("/rooted/x"), Path("/homes/x")]) == []


def test_programs_that_can_start_are_no_obstacle(tmp_path: Path) -> None:
    for name in ("nearpath", "dnsd", "probe-agent", "syncd", "local-infer"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    found = find_obstacles(render_units(tmp_path))
    assert [text for text in found if "is not there" in text] == []


def test_unwritable_root_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where a folder belongs")
    with pytest.raises(NearpathError, match=r"etc/systemd/system/dnsd\.service"):
        install(tmp_path, bin_dir=BIN)


def test_missing_shipped_file_says_where_it_looked() -> None:
    with pytest.raises(NearpathError, match="looked in"):
        find_shipped("systemd", "nothing.service")


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in find_shipped("systemd", unit).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_notifies_restarts_and_is_watched(unit: str) -> None:
    got = settings(unit)
    assert got["Type"] == ["notify"]
    assert got["Restart"] == ["always"]
    assert int(got["WatchdogSec"][0]) > 0
    assert got["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert got["User"][0] not in ("", "root")


def test_only_what_answers_dns_has_a_capability() -> None:
    for unit, capability in [
        ("nearpath.service", "CAP_NET_BIND_SERVICE"),
        ("dnsd.service", "CAP_NET_BIND_SERVICE"),
        ("probe-agent.service", ""),
        ("syncd.service", ""),
        ("local-infer.service", ""),
    ]:
        got = settings(unit)
        assert got["AmbientCapabilities"] == got["CapabilityBoundingSet"] == [capability]


def test_users_of_the_units_are_created() -> None:
    created = set(re.findall(r"(?m)^u\s+(\S+)", find_shipped("systemd", "sysusers.d", "nearpath.conf").read_text()))
    assert created == {settings(unit)["User"][0] for unit in UNITS} == {settings(unit)["Group"][0] for unit in UNITS}


MOST_EXPOSED = {
    "nearpath.service": 1.4,
    "dnsd.service": 1.4,
    "probe-agent.service": 1.1,
    "syncd.service": 1.3,
    "local-infer.service": 1.2,
}
"""`systemd-analyze security` (0 safe, 10 unsafe); docs/systemd.md tells what makes up the rest."""


@pytest.mark.parametrize(("unit", "limit"), MOST_EXPOSED.items())
def test_exposure_is_as_documented(unit: str, limit: float) -> None:
    program = shutil.which("systemd-analyze")
    if not program:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    done = subprocess.run(
        [program, "security", "--offline=true", "--no-pager", str(find_shipped("systemd", unit))],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(rf"Overall exposure level for {unit}: ([0-9.]+)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= limit


def test_documented_exposure_is_the_tested_one() -> None:
    written = (find_shipped().parent / "docs/systemd.md").read_text("utf-8")
    assert dict(re.findall(r"\| `(\S+\.service)` \| ([0-9.]+) \|", written)) == {
        unit: str(limit) for unit, limit in MOST_EXPOSED.items()
    }


def test_targets_are_relative() -> None:
    assert all(not file.target.is_absolute() and file.target.parts[0] == "etc" for file in render_units(BIN))
    assert PurePosixPath("etc/systemd/system/nearpath.service") in {file.target for file in render_units(BIN)}
