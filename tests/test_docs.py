"""What the pages say is what the code does: commands, configuration keys, metrics, schemas, links."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from local_infer.main import app as infer_app
from nearpath.cli import app
from nearpath.configdoc import find_undescribed, render
from nearpath.schema import FILES, schema_text
from syncd.io_cli import app as syncd_app
from syncd.main import main as syncd_main
from tests.tracked import ROOT, tracked_files

PACKAGES = ["core", "policy", "dnsd", "probes", "syncd", "local_infer", "nearpath"]


def pages() -> list[Path]:
    """Markdown pages that git knows or would take up."""
    return [ROOT / path for path in tracked_files("*.md")]


def text_of(name: str) -> str:
    path = ROOT / name
    assert path.is_file(), f"{name} is missing"
    return path.read_text("utf-8")


def commands(group: Any, above: str) -> Iterator[str]:
    below = getattr(group, "commands", None)
    if below is None:
        yield above
        return
    for name, command in below.items():
        yield from commands(command, f"{above} {name}")


# --- commands -----------------------------------------------------------------------------------------------------------


def test_every_command_is_in_the_manual() -> None:
    written = text_of("README.md") + text_of("docs/operations.md")
    all_commands = list(commands(typer.main.get_command(app), "nearpath"))
    assert "nearpath regions lint" in all_commands
    assert [name for name in all_commands if name not in written] == []


def test_every_command_of_syncd_is_in_its_manual() -> None:
    assert syncd_main.__module__ == "syncd.main"  # which adds commands of its own
    all_commands = list(commands(typer.main.get_command(syncd_app), "syncd"))
    assert {"syncd run", "syncd status", "syncd token"} <= set(all_commands)
    assert [name for name in all_commands if name not in text_of("docs/syncd.md")] == []


def test_every_command_of_local_infer_is_in_its_manual() -> None:
    group = typer.main.get_group(infer_app)
    shown = [f"local-infer {name}" for name, command in group.commands.items() if not command.hidden]
    assert {"local-infer run", "local-infer build"} <= set(shown)
    assert [name for name in shown if name not in text_of("docs/local_infer.md")] == []


def test_every_make_target_named_in_a_page_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-zA-Z-]+):", text_of("Makefile")))
    targets |= {path.stem.replace("_", "-") for path in (ROOT / "bench").glob("bench_*.py")}
    for page in pages():
        named = set(re.findall(r"`make ([a-z0-9-]+)", page.read_text("utf-8")))
        assert named <= targets, page.name


def test_every_module_of_syncd_is_in_the_design() -> None:
    tables = text_of("docs/design.md").partition("\n## syncd\n")[2]
    modules = {path.stem for path in (ROOT / "syncd").rglob("*.py")} - {"__init__"}
    assert {"io_child", "plan"} <= modules
    assert [name for name in sorted(modules) if f"`{name}`" not in tables] == []


# --- configuration ------------------------------------------------------------------------------------------------------


def test_every_key_is_described() -> None:
    assert find_undescribed() == []


def test_configuration_reference_is_up_to_date() -> None:
    assert text_of("docs/configuration.md") == render(), "run `make schema`"


@pytest.mark.parametrize("name", FILES)
def test_schema_is_up_to_date(name: str) -> None:
    assert text_of(f"configs/schema/{name}.schema.json") == schema_text(FILES[name]), "run `make schema`"


# --- metrics ------------------------------------------------------------------------------------------------------------

METRIC_NAME = re.compile(r"(?:nearpath|dnsd|syncd|local_infer)_[a-z0-9_]+")


def metrics_in(source: str) -> dict[str, str]:
    """Metric name -> help text: in calls (`Gauge(NAME, HELP, ...)`) and in tables of (NAME, HELP, ...)."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        row = node.args if isinstance(node, ast.Call) else node.elts if isinstance(node, ast.Tuple) else []
        words = [part.value for part in row if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        if row and words and METRIC_NAME.fullmatch(words[0]) and len(row) > 1:
            found[words[0]] = words[-1] if len(words) > 1 else ""
    return found


def test_metrics_are_found_in_source() -> None:
    source = (
        "a = Counter('dnsd_queries', 'asked', ['plane'])\n"
        "for n, h, g in (('dnsd_faults', 'failed', x), ('other', 'words', y)): make(n, h)\n"
        "def f():\n    yield _gauge('nearpath_ready', 'x', 1)\n"
    )
    assert metrics_in(source) == {"dnsd_queries": "asked", "dnsd_faults": "failed", "nearpath_ready": "x"}


def test_every_metric_is_in_the_manual() -> None:
    made: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*metrics.py")):
            made |= metrics_in(path.read_text("utf-8"))
    assert made, "no metric was found: has the way they are made changed?"
    # prometheus-client adds _total to counters; the manual names what a scrape shows.
    written = {name.removesuffix("_total") for name in re.findall(r"(?m)^\| `(\w+)", text_of("docs/metrics.md"))}
    missing = [f"| `{name}` | {text} |" for name, text in made.items() if name.removesuffix("_total") not in written]
    assert not missing, "add to docs/metrics.md:\n" + "\n".join(missing)
    gone = written - {name.removesuffix("_total") for name in made}
    assert not gone, "docs/metrics.md names metrics that are gone"


# --- links --------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Anchors of the headings of a page, as code hosts make them."""
    found: set[str] = set()
    for heading in re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text)):
        plain = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = sum(1 for other in found if re.fullmatch(re.escape(plain) + r"(-\d+)?", other))
        found.add(f"{plain}-{number}" if number else plain)
    return found


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if (
            (file != page and not file.exists())
            or not file.is_relative_to(ROOT)
            or (
                anchor
                and file.suffix == ".md"
                and anchor not in anchors(text if file == page else file.read_text("utf-8"))
            )
        ):
            broken.append(target)
    return broken


def test_broken_links_are_found() -> None:
    page = ROOT / "docs" / "sample.md"
    text = "# A b `c`\n[x](design.md) [y](#a-b-c) [z](nothing.md) [w](#gone) [v](https://example.org) [u](../../out.md)"
    assert broken_links(page, text) == ["nothing.md", "#gone", "../../out.md"]


def test_links_lead_somewhere() -> None:
    found = {str(page.relative_to(ROOT)): broken_links(page, page.read_text("utf-8")) for page in pages()}
    assert {page: links for page, links in found.items() if links} == {}


def test_pages_of_the_repository_are_there() -> None:
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "docs/design.md", "docs/operations.md", "docs/glossary.md"):
        assert text_of(name).strip(), name
