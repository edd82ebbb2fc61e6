"""What is shipped: the packages pyproject.toml names, the files under configs/, pinned versions, and no tests."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.tracked import ROOT, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NOT_SHIPPED = {"tests", "bench", "build", "run", "scripts", "docs", "configs"}


def package_dirs() -> set[str]:
    found = {".".join(path.parent.parts) for path in tracked_files() if path.name == "__init__.py"}
    return {name for name in found if name.partition(".")[0] not in NOT_SHIPPED}


def test_every_package_is_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == package_dirs()


def test_every_module_is_in_a_package() -> None:
    packages = package_dirs()
    lost = [
        str(path)
        for path in tracked_files()
        if path.suffix == ".py" and path.parts[0] not in NOT_SHIPPED and ".".join(path.parent.parts) not in packages
    ]
    assert lost == []


def test_types_are_checked_in_every_package() -> None:
    listed = {name.partition(".")[0] for name in PROJECT["tool"]["setuptools"]["packages"]}
    assert set(PROJECT["tool"]["mypy"]["packages"]) == listed


def test_constraints_pin_versions_and_name_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []


def test_every_requirement_is_pinned() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", re.split(r"[ <>=!\[;~]", name)[0]).lower()

    pinned = {plain(line) for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    assert [name for name in wanted if plain(name) not in pinned] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        (folder / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / "src" / path)
    code = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=folder / "src", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_wheel_holds_every_module_and_no_tests(wheel: zipfile.ZipFile) -> None:
    code = {name for name in wheel.namelist() if ".data/" not in name and ".dist-info/" not in name}
    ours = {str(path) for path in tracked_files() if ".".join(path.parent.parts) in package_dirs()}
    assert {name for name in code if name.endswith(".py")} == {name for name in ours if name.endswith(".py")}
    assert {name.partition("/")[0] for name in code} == {name.partition(".")[0] for name in package_dirs()}


def test_wheel_holds_every_file_under_configs(wheel: zipfile.ZipFile) -> None:
    shipped = {name.partition(".data/data/share/nearpath/")[2] for name in wheel.namelist() if ".data/data/" in name}
    assert shipped == {str(path) for path in tracked_files() if path.parts[0] == "configs"}


def test_wheel_holds_the_licence_and_the_commands(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    entries = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    for command in ("nearpath", "dnsd", "probe-agent", "syncd", "local-infer"):
        assert f"\n{command} = " in entries


@pytest.mark.parametrize(("command", "target"), PROJECT["project"]["scripts"].items())
def test_every_command_has_its_function(command: str, target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), command


def test_licence_is_the_declared_one() -> None:
    assert PROJECT["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text


def test_changelog_knows_the_version() -> None:
    assert PROJECT["project"]["version"] in (ROOT / "CHANGELOG.md").read_text("utf-8")


@pytest.mark.parametrize("script", [".ci/run", "scripts/set-up", "scripts/pin-constraints"])
def test_scripts_are_valid_and_executable(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_every_make_target_explains_itself() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = set(" ".join(re.findall(r"(?m)^\.PHONY:(.*)$", text)).split())
    explained = set(re.findall(r"(?m)^([a-z%-]+):[^\n]*## ", text))
    assert phony == explained - {"bench-%"}
