"""Reading syncd's configuration: paths made absolute, and what one section says of another checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.config_sync import Parent, SyncConfig, Tree
from core.io_config import PathKey, read_model


def read_sync_config(file: str | Path) -> SyncConfig:
    """syncd's configuration in `file`; paths in it are made absolute from its folder. Raises ConfigError."""
    base = Path(file).resolve().parent
    config = read_model(file, SyncConfig, lambda raw: [*find_dangling(raw), *find_exposed(raw, base)])
    parents = {name: _placed(parent, base) for name, parent in config.parents.items()}
    trees = {name: _placed(tree, base) for name, tree in config.trees.items()}
    updates: dict[str, Any] = {"state_dir": str(base / config.state_dir), "parents": parents, "trees": trees}
    if config.tls is not None:
        tls = {"cert": str(base / config.tls.cert), "key": str(base / config.tls.key)}
        updates["tls"] = config.tls.model_copy(update=tls)
    if config.appliance is not None:
        updates["appliance"] = _placed(config.appliance, base)
    return config.model_copy(update=updates)


def _placed(section: Any, base: Path) -> Any:
    """`section` with every `*_file` in it made absolute."""
    files = [name for name in type(section).model_fields if name.endswith("_file") and getattr(section, name)]
    placed: dict[str, Any] = {name: str(base / getattr(section, name)) for name in files}
    if isinstance(section, Tree):
        placed["push"] = {name: _placed(push, base) for name, push in section.push.items()}
    return section.model_copy(update=placed)


def find_dangling(raw: Mapping[str, Any]) -> Sequence[tuple[PathKey, str]]:
    """What names something that is not there, or cannot be together; `raw` may have faults of its own."""
    return [*_unknown_names(raw), *_overlaps(raw), *_unprotected(raw), *_unsigned(raw)]


def find_exposed(raw: Mapping[str, Any], base: Path) -> Iterator[tuple[PathKey, str]]:
    """What must not be in a tree: every child, and mostly the web, is sent what is in one; and it changes all the time.

    Where symlinks lead counts as well. `base`: the folder from which relative paths are named.
    """
    trees = {
        name: {tree["path"].rstrip("/"), os.path.realpath(tree["path"])}
        for name, tree in _sections(raw, "trees")
        if isinstance(tree.get("path"), str) and tree["path"].rstrip("/").startswith("/")
    }
    for key, path in _private(raw):
        place = os.path.join(base, path)
        for name, roots in trees.items():
            if any((p + "/").startswith(root + "/") for root in roots for p in (place, os.path.realpath(place))):
                yield key, f"{place} lies in the tree {name}: whoever has the tree would have it, too"
    for name, roots in trees.items():
        for other, others in trees.items():
            inside = any(root.startswith(above + "/") for root in roots for above in others)
            if (
                name != other
                and inside
                and not raw["trees"][name]["path"].startswith(raw["trees"][other]["path"] + "/")
            ):
                yield ("trees", name, "path"), f"it leads into the tree {other}: trees must be apart"


def _private(raw: Mapping[str, Any]) -> Iterator[tuple[PathKey, str]]:
    """(key, path) of what is secret, or of this daemon alone."""
    state_dir = raw.get("state_dir")
    if isinstance(state_dir, str):
        for path in (state_dir, os.path.join(state_dir, "keys"), os.path.join(state_dir, "trees")):
            yield ("state_dir",), path
    tls, appliance = _mapping(raw, "tls"), _mapping(raw, "appliance")
    named: list[tuple[PathKey, Mapping[str, Any], str]] = [
        (("tls", "key"), tls, "key"),
        (("appliance", "token_file"), appliance, "token_file"),
    ]
    for name, parent in _sections(raw, "parents"):
        named += [(("parents", name, key), parent, key) for key in ("token_file", "password_file")]
    for name, tree in _sections(raw, "trees"):
        named += [(("trees", name, key), tree, key) for key in ("key_file", "work")]
        for push, target in _sections(tree, "push"):
            named.append((("trees", name, "push", push, "password_file"), target, "password_file"))
    for place, section, key in named:
        found = section.get(key)
        if isinstance(found, str) and found:
            yield place, found


def _mapping(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = raw.get(key)
    return found if isinstance(found, Mapping) else {}


def _sections(raw: Mapping[str, Any], key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, section in _mapping(raw, key).items():
        if isinstance(section, Mapping):
            yield name, section


def _unknown_names(raw: Mapping[str, Any]) -> Iterator[tuple[PathKey, str]]:
    parents, trees = _mapping(raw, "parents"), _mapping(raw, "trees")
    for name, tree in _sections(raw, "trees"):
        wanted = tree.get("parents")
        for i, parent in enumerate(wanted if isinstance(wanted, list) else []):
            if isinstance(parent, str) and parent not in parents:
                yield ("trees", name, "parents", i), f"parent {parent!r} is not defined (defined: {_names(parents)})"
    for name, child in _sections(raw, "children"):
        wanted = child.get("trees")
        for i, tree_name in enumerate(wanted if isinstance(wanted, list) else []):
            if isinstance(tree_name, str) and tree_name not in trees:
                yield ("children", name, "trees", i), f"tree {tree_name!r} is not defined (defined: {_names(trees)})"


def _names(defined: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, defined))[:8]) or "none"


def _overlaps(raw: Mapping[str, Any]) -> Iterator[tuple[PathKey, str]]:
    """Trees inside each other: what one publishes the other would take for a change, or delete."""
    paths = {
        name: tree["path"].rstrip("/") for name, tree in _sections(raw, "trees") if isinstance(tree.get("path"), str)
    }
    for name, path in paths.items():
        for other, above in paths.items():
            if name != other and ((path == above and name > other) or path.startswith(above + "/")):
                yield ("trees", name, "path"), f"{path} lies in the tree {other} ({above}): trees must be apart"


def _unprotected(raw: Mapping[str, Any]) -> Iterator[tuple[PathKey, str]]:
    if raw.get("tls") is None and isinstance(raw.get("listen"), list):
        for i, listen in enumerate(raw["listen"]):
            if isinstance(listen, str) and not listen.startswith(("127.", "[::1]")):
                yield ("listen", i), f"{listen} without `tls`: tokens and content could be read and changed on the way"
    if raw.get("listen") and not raw.get("children"):
        yield ("listen",), "nobody may pull: add `children`, or leave `listen` out"


def _unsigned(raw: Mapping[str, Any]) -> Iterator[tuple[PathKey, str]]:
    """Copies of a syncd hold what they get against the origin's signature."""
    plain = {name for name, parent in _sections(raw, "parents") if parent.get("transport", "nearpath") != "nearpath"}
    for name, tree in _sections(raw, "trees"):
        wanted = tree.get("parents")
        mixed = [parent for parent in wanted if parent not in plain] if isinstance(wanted, list) else []
        if mixed and tree.get("public_key") is None:
            yield ("trees", name), "a copy needs the origin's `public_key`: `syncd key` prints it there"
        if mixed and len(mixed) < len(wanted or []):
            yield ("trees", name, "parents"), "a syncd and a plain rsync server cannot both be parents of one tree"


def work_directory(tree: Tree) -> str:
    """Where the private directory of a tree is: beside its path, and so mostly on the same file system.

    It is named after the path, not the tree: nodes that share a machine have copies of one tree side by side.
    """
    above, name = os.path.split(os.path.normpath(tree.path))
    return tree.work or os.path.join(above, f".{name}.syncd")


def is_plain(parent: Parent) -> bool:
    """Whether the parent is a plain rsync server, without a journal."""
    return parent.transport != "nearpath"


def is_signed_here(config: SyncConfig, tree: str) -> bool:
    """Whether this node signs a tree: nothing above it does."""
    return all(is_plain(config.parents[parent]) for parent in config.trees[tree].parents)
