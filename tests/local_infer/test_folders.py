"""The folders of local_infer import each other in one direction only."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

from tests.tracked import ROOT, tracked_files


def folders_imported() -> dict[str, set[str]]:
    """What each folder imports of the others; modules beside them (types, errors, composition) are left out."""
    found: dict[str, set[str]] = {}
    for file in tracked_files("local_infer"):
        parts = file.parts
        if file.suffix != ".py" or len(parts) != 3:
            continue
        own = found.setdefault(parts[1], set())
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            split = [name.split(".") for name in names if name.startswith("local_infer.")]
            own |= {name[1] for name in split if (ROOT / "local_infer" / name[1]).is_dir()}
        own.discard(parts[1])
    return found


def test_no_folder_is_imported_by_what_it_imports() -> None:
    found = folders_imported()
    assert found["gateway"] >= {"api", "telemetry"}, "the imports are seen"
    assert list(TopologicalSorter(found).static_order()), "CycleError names the circle"
    assert not found["api"], "what all others share"
