"""An origin and a copy that share any number of trees, for scenarios that each have a tree of their own."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from syncd.publish.steps import stays_inside
from syncd.store.signed_root import public_key
from tests.syncd.nodes import Node

SEED = bytes(range(32))
KEY = public_key(SEED).hex()
NO_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search")
"""So that root, too, is refused what a mode refuses."""


class Fleet:
    """An origin and a copy of all its trees; trees lie in `trees` of each."""

    def __init__(self, home: Path) -> None:
        self.origin = Node("origin", home / "origin", wrap=NO_OVERRIDE if os.geteuid() == 0 else ())
        self.copy = Node("copy", home / "copy")

    def at(self, node: Node, tree: str) -> Path:
        return node.home / "trees" / tree

    def configure(self, trees: dict[str, dict[str, Any]]) -> None:
        """Write both configurations, with these trees."""
        for tree in trees:
            self.at(self.origin, tree).mkdir(parents=True, exist_ok=True)
        self.origin.configure(children=["copy"])
        (self.origin.home / "key").write_text(SEED.hex())
        edit(self.origin, trees={name: place(self.at(self.origin, name)) | {"key_file": "key"} for name in trees})
        self.copy.configure(parents=[self.origin], children=["other"], key=KEY)
        of_copy = {"parents": ["origin"], "public_key": KEY, "poll": "1s"}
        copies = {name: place(self.at(self.copy, name)) | of_copy | more for name, more in trees.items()}
        edit(self.copy, trees=copies)

    def status(self, tree: str) -> dict[str, Any]:
        """What the copy says of a tree."""
        return tree_of(self.copy, tree)

    def until_same(self, tree: str, timeout_s: float = 30.0) -> None:
        """Wait until the copy of a tree is as the origin has it."""
        above, below = self.at(self.origin, tree), self.at(self.copy, tree)
        self.copy.until(lambda: seen(below) == seen(above), f"tree {tree} as at the origin", timeout_s)

    def until_current(self, tree: str) -> None:
        """Wait until the copy found itself equal to what the origin signed last."""
        self.until_same(tree)
        self.copy.until(
            lambda: self.status(tree)["root_hash"] == tree_of(self.origin, tree)["root_hash"] != "", f"{tree} current"
        )


def place(path: Path) -> dict[str, Any]:
    return {"path": str(path), "reserve": {"size": "0B", "share": "0%"}}


def edit(node: Node, **keys: Any) -> None:
    """Change top keys of a configuration."""
    file = node.home / "syncd.yaml"
    file.write_text(json.dumps(yaml.safe_load(file.read_text()) | keys))


def tree_of(node: Node, tree: str) -> dict[str, Any]:
    answer = node.ask()
    return answer["trees"].get(tree, {}) if answer else {}


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    """path -> (mode, mtime, content) of all below `root`, directories too, but for symlinks that lead out."""
    found: dict[str, tuple[object, ...]] = {}
    for path in [root, *root.rglob("*")]:
        try:
            st = path.lstat() if path != root else path.stat()
            content: str | None = None
            if stat.S_ISREG(st.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(path)
                if not stays_inside(os.fsencode(path.relative_to(root)), os.fsencode(content)):
                    continue
            found[str(path.relative_to(root))] = (st.st_mode, st.st_mtime_ns, content)
        except OSError:
            continue
    return found


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole, as publishers of mirrors do: under another name, then renamed."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.rename(path)
